"""Checkpoint files: the one place that reads them, and says what a file is that is none.

Nothing in a file is ever executed. PyTorch's weights-only reader builds tensors, plain containers
and what is named here; everything else is refused.
"""

import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from tarfile import is_tarfile
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, in one sentence."""


@contextmanager
def ends_with_a_sentence() -> Iterator[None]:
    """Ends a tool with the sentence of a CheckpointError; also a decorator."""
    try:
        yield
    except CheckpointError as error:
        raise SystemExit(str(error)) from None


def _statistic_of_history(owner: type, name: str) -> object:
    """Stands in for getattr, with which Python's pickle names the methods of a loss history."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    raise UnpicklingError(f'it asks for an attribute {name!r}')


class Unread:
    """Stands in for the settings that training scripts leave beside the weights."""

    def __new__(cls, *content: object) -> 'Unread':
        return super().__new__(cls)

    def __init__(self, *content: object) -> None:
        pass

    def __setstate__(self, content: object) -> None:
        pass


_multiarray = (np.core if np.__version__.startswith('1.') else np._core).multiarray
SETTINGS = ['argparse.Namespace', 'types.SimpleNamespace'] + [
    f'{module}.{pure}{system}Path'
    for module in ('pathlib', 'pathlib._local')
    for pure in ('', 'Pure')
    for system in ('Posix', 'Windows')
]
# What MMEngine's checkpoints hold beside tensors: the loss history, as NumPy arrays, and metainfo.
READABLE = [
    HistoryBuffer,
    (_statistic_of_history, 'builtins.getattr'),
    (dict, 'mmengine.config.config.ConfigDict'),
    slice,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']},
    # NumPy 1 and 2 name the same functions differently.
    *(
        (getattr(_multiarray, name), f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    ),
    *((Unread, name) for name in SETTINGS),
]


def read_checkpoint(path: str | Path, map_location: object = 'cpu') -> Mapping:
    """Reads a local checkpoint, and executes nothing that is in it.

    Args:
        path (str | Path): A file as torch.save or the safetensors library writes it.
        map_location (object): Where its tensors go, as in torch.load. Defaults to 'cpu'.

    Returns:
        Mapping: Its content. Settings such as an argparse.Namespace are left out of it.

    Raises:
        CheckpointError: If it is no checkpoint, damaged, or holds more than weights.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f'{path} is a folder: name the file in it, such as epoch_1.pth.')
    if not path.is_file():
        raise CheckpointError(
            f'There is no checkpoint {path}: tools/train.py writes them to work_dirs/, and the '
            'README says where the published ones are.'
        )
    try:
        if _is_safetensors(path):
            content = _read_safetensors(path)
        else:
            with load_weights_only():
                content = torch.load(path, map_location=map_location, weights_only=True)
    except (torch.OutOfMemoryError, MemoryError, CheckpointError):
        raise
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror or error}.') from error
    except Exception as error:  # there is no end to the ways in which a file can be damaged
        raise CheckpointError(f'{path} {_what_it_is(path, error)}.') from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'{path} holds {type(content).__name__} instead of weights by name: save them with '
            'torch.save(model.state_dict(), FILE).'
        )
    return content


def _is_safetensors(path: Path) -> bool:
    with path.open('rb') as file:
        header = int.from_bytes(file.read(8), 'little')
        return file.read(1) == b'{' and header < path.stat().st_size


def _read_safetensors(path: Path) -> dict:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(
            f'{path} is in the safetensors format: install the package safetensors, with which it '
            'is read.'
        ) from None
    return load_file(path)


def _what_it_is(path: Path, error: Exception) -> str:
    """What a file is that PyTorch cannot read, and the way out."""
    again = 'download or copy it again'
    save_weights = 'where it was made, save its weights with torch.save(model.state_dict(), FILE)'
    with path.open('rb') as file:
        head = file.read(4096)
    text = head.decode('utf-8-sig', 'replace').lstrip()
    size = f'{path.stat().st_size:,} bytes'
    if not head.strip(b'\0'):
        return f'is empty or starts with zeros ({size}): {again}'
    if text.startswith('version https://git-lfs'):
        return 'is a Git LFS pointer and not the checkpoint: get the file itself with git lfs pull'
    if text.startswith('<'):
        return (
            'is a web page and not a checkpoint, as a proxy, a login or a page about the file '
            f'gives instead of it: {again}, from the address of the file itself'
        )
    if not re.search(rb'[\x00-\x08\x0e-\x1f]', head) and head[0] < 128:
        kind = 'Python code' if re.search(r'^(import|from|def|class) ', text, re.M) else 'text'
        return f'is {kind} and not a checkpoint, it starts with {text[:40]!r}: name a .pth file'
    if head.startswith(b'PK'):
        if not zipfile.is_zipfile(path):
            return f'is cut off, its end is missing (there are {size}): {again}'
        names = {name.rpartition('/')[2] for name in zipfile.ZipFile(path).namelist()}
        if 'constants.pkl' in names:
            return 'is a TorchScript program: save the weights of its model with torch.save'
        if 'data.pkl' not in names:
            return 'is a ZIP archive without weights of PyTorch: unpack it and name a file in it'
    elif is_tarfile(path):
        return 'is a tar archive: unpack it, or write the weights again with torch.save'
    message = str(error)
    if named := re.search(r'GLOBAL (\S+) (?:was not|whose)', message):
        return (
            f'holds more than weights, namely an object made by {named[1]}, and building it would '
            f'execute what the file says: {save_weights}'
        )
    reason = re.sub(r'(?s)^.*WeightsUnpickler error:\s*|\n.*', '', message) or type(error).__name__
    if isinstance(error, UnpicklingError) and head.startswith((b'PK', b'\x80\x02\x8a\nl\xfc')):
        return f'holds more than weights ({reason}): {save_weights}'
    if head.startswith(b'\x80') and b'l\xfc\x9cF\xf9' not in head[:16]:
        return f'is a pickle and not a checkpoint: {save_weights}'
    return f'is damaged or not a checkpoint of PyTorch ({reason}): {again}'


def load_from_local(filename: str, map_location: object = None) -> Mapping:
    """MMEngine's reader of files; MMEngine logs a part of the name."""
    return read_checkpoint(filename, map_location)


def load_from_http(filename: str, map_location: object = None) -> Mapping:
    """MMEngine's reader of addresses: one process downloads, the others wait for it."""
    rank = get_rank()
    if rank != 0:
        barrier()
    path = fetch_weights(filename, "init_cfg=dict(type='Pretrained', checkpoint=FILE)")
    if rank == 0:
        barrier()
    return read_checkpoint(path, map_location)


FORCE, FORCE_NOT = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


@contextmanager
def load_weights_only() -> Iterator[None]:
    """Makes MMEngine read checkpoints as ``read_checkpoint`` does, and PyTorch execute nothing.

    MMEngine reads them with pickle, in OneDL's version as a fallback for those that are not plain
    weights. Inside this context such a file is refused, whatever the caller or a variable of the
    environment asks for, while the training records that MMEngine itself stores in its checkpoints
    are still read, so that training can be resumed.
    """
    variables = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    schemes = CheckpointLoader._schemes
    # PyTorch's context forbids at its end what it allowed, even if it was allowed before.
    allowed = torch.serialization.get_safe_globals()
    readable = [item for item in READABLE if item not in allowed]
    try:
        os.environ[FORCE] = '1'  # PyTorch raises an error where both are set
        CheckpointLoader._schemes = type(schemes)(schemes)
        CheckpointLoader.register_scheme('', load_from_local, force=True)
        CheckpointLoader.register_scheme(['http://', 'https://'], load_from_http, force=True)
        with torch.serialization.safe_globals(readable):
            yield
    finally:
        CheckpointLoader._schemes = schemes
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in variables.items() if value is not None})


def find_checkpoint(place: str | Path) -> str | None:
    """Finds the checkpoint that a user means.

    Args:
        place (str | Path): A checkpoint, a work folder, or the file ``last_checkpoint`` in one,
            which MMEngine writes with the path that the checkpoint had then.

    Returns:
        str | None: The checkpoint; in a folder the last one. None if there is none in the folder.

    Raises:
        CheckpointError: If the one that ``last_checkpoint`` names is gone.
    """
    record = Path(place, 'last_checkpoint') if os.path.isdir(place) else Path(place)
    if not record.name.startswith('last_checkpoint'):
        return str(place)
    if not record.is_file() and os.path.isdir(place):
        numbered = {
            int(path.stem.rpartition('_')[2]): str(path)
            for path in Path(place).glob('*_[0-9]*.pth')
            if re.fullmatch(r'(epoch|iter)_\d+', path.stem)
        }
        return numbered[max(numbered)] if numbered else None
    if not record.is_file():
        return str(place)
    recorded = record.read_text().strip()
    # The folder may have been moved or copied, from another system as well.
    for path in (record.with_name(re.split(r'[\\/]', recorded)[-1] or '.'), Path(recorded)):
        if path.is_file():
            return str(path)
    raise CheckpointError(
        f'{record} names {recorded}, which exists neither there nor in {record.parent}: name the '
        'checkpoint itself.'
    )


def require_checkpoint(path: str) -> None:
    """Checks that a local checkpoint can be read.

    Raises:
        CheckpointError: If it cannot.
    """
    if '://' not in path:
        read_checkpoint(path)


def require_resumable(path: str) -> None:
    """Checks that a local checkpoint holds the state of a training.

    Raises:
        CheckpointError: If it cannot be read, or MMEngine could not go on with it.
    """
    if '://' in path:
        return
    content = read_checkpoint(path)
    meta = content.get('meta')
    there = {*content, *(meta if isinstance(meta, Mapping) else ())}
    lacking = [name for name in ('epoch', 'iter', 'message_hub') if name not in there]
    if lacking:
        raise CheckpointError(
            f'{path} holds weights and no state of a training ({", ".join(lacking)}), so nothing '
            'can be resumed from it: to start from its weights, leave out --resume and add '
            f'--cfg-options load_from={path}'
        )
    if 'optimizer' not in content:
        print(f'{path} holds no state of the optimizer, which starts anew.')


def require_pretrained(cfg: Config) -> None:
    """Checks that the pretrained weights which the config names can be had, and downloads them.

    Raises:
        CheckpointError: If a file is missing or none of weights, or a download fails.
    """
    # The other processes of a node find in the cache what its first one has downloaded.
    if os.environ['LOCAL_RANK'] != '0':
        return
    for init_cfg in _pretrained(cfg.model):
        if init_cfg.checkpoint.startswith(('http://', 'https://')):
            fetch_weights(
                init_cfg.checkpoint,
                '--cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from random '
                'weights with --cfg-options model.backbone.init_cfg=None',
            )
        else:
            require_checkpoint(init_cfg.checkpoint)


def _pretrained(cfg: object) -> Iterator[ConfigDict]:
    if isinstance(cfg, dict):
        if cfg.get('type') == 'Pretrained':
            yield cfg
        cfg = cfg.values()
    elif not isinstance(cfg, (list, tuple)):
        return
    for value in cfg:
        yield from _pretrained(value)


def require_fitting(model: nn.Module, checkpoint: str, dataset_meta: Mapping | None = None) -> None:
    """Loads a checkpoint for a test, which is worth nothing if weights stay random.

    Args:
        model (nn.Module): The model, or a wrapper of it.
        checkpoint (str): A file or an address, as MMEngine takes it.
        dataset_meta (Mapping, optional): The metainfo of the dataset to be tested. Defaults to
            None: classes are not compared.

    Raises:
        CheckpointError: If weights of the model are missing or of another shape, or the checkpoint
            was trained for other classes, or in another order. Names in other case are the same.
    """
    with load_weights_only():
        content = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', logger='silent')
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    other_classes = _other_classes(content, dataset_meta or {})
    weights = content.get('state_dict', content)
    weights = {re.sub(r'^module\.', '', str(key)): value for key, value in weights.items()}
    try:
        missing = {*model.load_state_dict(weights, strict=False).missing_keys}
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error
    except RuntimeError as error:
        differing = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(
            f'{checkpoint} is of another model: {differing[0].rstrip(".")} ({len(differing)} '
            f'differences){other_classes and f", and it {other_classes}"}; name the config that it '
            'was trained with.'
        ) from error
    learnt = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    learnt += [name for name, _ in model.named_buffers() if '.running_' in f'.{name}']
    lacking = [name for name in learnt if name in missing]
    if lacking:
        raise CheckpointError(
            f'{checkpoint} lacks {len(lacking)} of the {len(learnt)} weights of this model, such '
            f'as {lacking[0]}, which would stay random: name the config that it was trained with, '
            'or a checkpoint of the whole model.'
        )
    if other_classes:
        raise CheckpointError(
            f'{checkpoint} {other_classes}: give the test dataset metainfo=dict(classes=...) with '
            'the names and the order of the checkpoint, or test it nevertheless with '
            '--ignore-classes.'
        )


def _other_classes(content: Mapping, dataset_meta: Mapping) -> str:
    """How the classes of a checkpoint differ from a dataset's, or '' if they do not."""
    meta = content.get('meta') or {}
    trained, tested = (
        [str(name) for name in named.get('classes') or named.get('CLASSES') or ()]
        for named in (meta.get('dataset_meta') or meta, dataset_meta)
    )
    if not trained or not tested:
        return ''
    for index in range(max(len(trained), len(tested))):
        ours, theirs = (
            repr(names[index]) if index < len(names) else 'none' for names in (trained, tested)
        )
        if ours.casefold() != theirs.casefold():
            return (
                f'was trained for {len(trained)} classes and the config tests {len(tested)}, of '
                f'which class {index} is {ours} in the checkpoint and {theirs} in the config'
            )
    return ''


def fetch_weights(url: str, way_out: str) -> Path:
    """Downloads weights, unless they are there, to where PyTorch and MMEngine look for them.

    A damaged file that an earlier download has left there is replaced.

    Args:
        url (str): Where they are.
        way_out (str): The option of the tool that names a file instead.

    Raises:
        CheckpointError: If they cannot be downloaded, or the file is damaged or holds more than
            weights, which is not executed. Such a download is not kept.
    """
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlsplit(url).path).name)
    left_over = ''
    if path.is_file():
        try:
            read_checkpoint(path)
            return path
        except CheckpointError as error:
            left_over = f'{str(error).partition(": ")[0]}, and '
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # PyTorch takes a connection that breaks off for the end of the file.
        with TemporaryDirectory(dir=path.parent) as folder:
            download = Path(folder, path.name)
            torch.hub.download_url_to_file(url, str(download))
            read_checkpoint(download)
            download.replace(path)
    except (OSError, HTTPException, CheckpointError) as error:
        reason = str(error)
        if isinstance(error, CheckpointError):
            reason = reason.replace(str(download), 'what came').partition(': ')[0]
        raise CheckpointError(
            f'{left_over}the weights {url} could not be downloaded ({reason}): download the file '
            f'where there is a network and name it with {way_out}'
        ) from error
    return path

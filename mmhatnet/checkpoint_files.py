"""Checkpoint files: the one place that reads them, and says what a file is that is none.

Nothing in a file is ever executed. PyTorch's weights-only reader builds tensors, plain containers
and what is named here; everything else is refused.
"""

import os
import re
import warnings
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
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer

from mmhatnet.errors import CheckpointError


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
        with path.open('rb') as file:
            head = file.read(4096)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read ({error.strerror}).') from error
    if head[8:9] == b'{':
        return _read_safetensors(path)
    try:
        with load_weights_only(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # to trust the file is among PyTorch's advice
            content = torch.load(path, map_location=map_location, weights_only=True)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # there is no end to the ways in which a file can be damaged
        raise CheckpointError(f'{path} {_what_it_is(path, head, error)}.') from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(
            f'{path} holds a {type(content).__name__} and no weights by name: save them with '
            'torch.save(model.state_dict(), FILE).'
        )
    return content


def _read_safetensors(path: Path) -> dict:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(
            f'{path} is in the safetensors format: install the package safetensors, with which it '
            'is read.'
        ) from None
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f'{path} is damaged ({error}): download or copy it again.') from error


def _what_it_is(path: Path, head: bytes, error: Exception) -> str:
    """What a file is that PyTorch cannot read, and the way out."""
    again = 'download or copy it again'
    save_weights = 'where it was made, save its weights with torch.save(model.state_dict(), FILE)'
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
        code = re.search(r'^((import|from|def|class) |\w+ = )', text, re.M)
        kind = 'Python code' if code else 'text'
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
    if named := re.search(r'GLOBAL (\S+) (?:was not|whose)', str(error)):
        return (
            f'holds {named[1]}, a part of a whole model or another object, which is not built '
            f'because that would execute what the file says: {save_weights}'
        )
    if not head.startswith((b'PK', b'\x80')):
        return f'is not a checkpoint of PyTorch, it starts with {head[:8]!r}: name a .pth file'
    reason = re.sub(r'(?s)^.*WeightsUnpickler error:\s*', '', str(error)) or type(error).__name__
    reason = re.split(r'\n|\. ', reason)[0]
    if head.startswith(b'\x80') and b'l\xfc\x9cF\xf9' not in head[:16]:
        return f'is a pickle and not a checkpoint: {save_weights}'
    if isinstance(error, UnpicklingError):
        return f'holds more than weights ({reason}): {save_weights}'
    return f'is damaged ({reason}): {again}'


def load_from_local(filename: str, map_location: object = None) -> Mapping:
    """MMEngine's reader of files; MMEngine logs a part of the name."""
    return read_checkpoint(filename, map_location)


def load_from_http(filename: str, map_location: object = None) -> Mapping:
    """MMEngine's reader of addresses: one process downloads, the others wait for it."""
    rank = get_rank()
    if rank != 0:
        barrier()
    path = fetch_weights(filename, 'its path in the place of the address')
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
    try:
        from mmengine.runner.checkpoint import CheckpointLoader
    except ImportError:  # it imports OpenCV, without which MMEngine reads no checkpoint at all
        yield
        return
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

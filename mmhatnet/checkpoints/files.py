"""Reads checkpoint files and downloads, and says what a file is that is not a checkpoint.

Nothing in a file is executed. PyTorch's weights-only reader builds tensors, plain containers and
the types in ``READABLE``, and refuses everything else. ``contents`` chooses what is handed on.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import torch

from mmhatnet.checkpoints.contents import (
    Array,
    DataType,
    History,
    Record,
    Scalar,
    Schedule,
    allowed_content,
    no_bytes,
)
from mmhatnet.checkpoints.memory import available_memory, memory_that_lacks, size_text
from mmhatnet.checkpoints.rehearsal import METHODS, ExcessError, rehearse
from mmhatnet.errors import CheckpointError, printable


class CheckpointMemoryError(CheckpointError):
    """A checkpoint does not fit into memory. Another download of it would not either."""


MapLocation: TypeAlias = str | torch.device | dict[str, str] | Callable[[Any, str], Any] | None

SAVE_WEIGHTS = 'save its weights with torch.save(model.state_dict(), FILE) where it was made'


def _method(owner: type, name: str) -> object:
    """Replaces getattr, by which a pickle names the methods of MMEngine's classes."""
    if name in METHODS.get(getattr(owner, 'stands_for', ''), ()):
        return Record()  # MMEngine's objects have them anyway.
    raise UnpicklingError(f'it asks for the attribute {name!r}')


SETTINGS = ['argparse.Namespace', 'types.SimpleNamespace'] + [
    f'{module}.{pure}{system}Path'
    for module in ('pathlib', 'pathlib._local')
    for pure in ('', 'Pure')
    for system in ('Posix', 'Windows')
]
# MMEngine stores these beside tensors: the loss history, which holds NumPy arrays, and metainfo.
# With a name of its own for each, no other context that allows or forbids types changes these.
READABLE: list[Any] = [
    (History, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (Schedule, 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'),
    (_method, 'builtins.getattr'),
    (dict, 'mmengine.config.config.ConfigDict'),
    (Record, 'builtins.slice'),
    (no_bytes, 'builtins.bytes'),
    (Record, 'numpy.ndarray'),
    (DataType, 'numpy.dtype'),
    *(
        (kind, f'numpy.{core}.multiarray.{name}')  # in NumPy 1 and 2
        for core in ('core', '_core')
        for kind, name in ((Array, '_reconstruct'), (Scalar, 'scalar'))
    ),
    *((Record, name) for name in SETTINGS),
]

# A file of more than HARMLESS bytes that are MAX_PACKING times the file's is no checkpoint.
HARMLESS, MAX_PACKING = 2**30, 10

FORCE, FORCE_NOT = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_lock = RLock()


@contextmanager
def readable_types() -> Iterator[None]:
    """Allows the types in ``READABLE``, while other threads that read wait."""
    with _lock:
        # When PyTorch's context ends, it forbids even what was allowed before it began.
        allowed = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([item for item in READABLE if item not in allowed]):
            yield


@contextmanager
def force_weights_only() -> Iterator[None]:
    """Makes ``torch.load`` read weights only, whatever its caller or the environment asks for.

    This holds for the whole process, so only loads by the code of others belong inside. Other
    threads that enter this context wait.
    """
    with _lock, readable_types():
        variables = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
        try:
            os.environ[FORCE] = '1'  # PyTorch raises an error if both variables are set.
            yield
        finally:
            del os.environ[FORCE]
            os.environ.update({name: text for name, text in variables.items() if text is not None})


def read_checkpoint(path: str | Path, map_location: MapLocation = 'cpu') -> dict[str, Any]:
    """Reads what a job may use of a local checkpoint, without executing anything in it.

    Args:
        path (str | Path): A file that torch.save or the safetensors library has written.
        map_location (MapLocation): The device of its tensors, as in torch.load. Defaults to 'cpu'.

    Returns:
        dict[str, Any]: Its weights, and the plain data that a training needs. Settings, configs
        and other text are left out.

    Raises:
        CheckpointError: If the file is missing, damaged or no checkpoint, holds objects other than
            weights, does not fit into memory, or has weights that are not finite.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f'{path} is a folder: name a file in it, such as epoch_1.pth.')
    if not path.is_file():
        raise CheckpointError(
            f'There is no checkpoint {path}: `mmhatnet train` writes them to work_dirs/, and '
            'the README says where the published ones are.'
        )
    try:
        with path.open('rb') as file:
            head = file.read(4096)
    except OSError as error:
        raise CheckpointError(
            f'{path} cannot be read ({error.strerror}): check its permissions.'
        ) from error
    size = _unpacked_size(path, head)
    _require_memory(path, size)
    try:
        if head[8:9] == b'{':
            content = _read_safetensors(path)
        else:
            rehearse(path, size)
            content = _read_pickle(path, map_location)
    except CheckpointError:
        raise
    except ExcessError as error:
        raise CheckpointError(
            f'{path} asks for more than it holds ({printable(str(error))}), as no checkpoint of a '
            f'model does: {SAVE_WEIGHTS}.'
        ) from error
    except Exception as error:  # A damaged file may raise anything.
        if needed := memory_that_lacks(error):
            raise CheckpointMemoryError(
                f'{path} does not fit into memory: {needed}. Its content has {size_text(size)}.'
            ) from error
        reason = printable(_describe_file(path, head, error))
        raise CheckpointError(f'{path} {reason}.') from error
    return allowed_content(content, path, size)


def read_meta(path: Path) -> dict[str, Any]:
    """Reads what a checkpoint says about its training. Weights are mapped, not read.

    Raises:
        Exception: Any that a damaged file raises.
    """
    with path.open('rb') as file:
        rehearse(path, _unpacked_size(path, file.read(4096)))
    with readable_types():
        content = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
    return allowed_content({'meta': content['meta']}, path)['meta']


def _read_pickle(path: Path, map_location: MapLocation) -> Any:
    if os.environ.get(FORCE) and os.environ.get(FORCE_NOT):
        raise CheckpointError(f'{FORCE} and {FORCE_NOT} contradict each other: unset one of them.')
    with readable_types(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch advises to trust the file.
        return torch.load(path, map_location=map_location, weights_only=True)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(
            f'{path} is a safetensors file: install the safetensors package, which reads it.'
        ) from None
    return load_file(path)


def _unpacked_size(path: Path, head: bytes) -> int:
    """Returns the bytes that the content of a file takes, as it declares them."""
    if head.startswith(b'PK') and (entries := _entries_of(path)):
        return sum(entry.file_size for entry in entries)
    return path.stat().st_size


def _entries_of(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as file:
            return file.infolist()
    except Exception:  # A damaged file may raise anything.
        return []


def _has_end(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # so it has one
        return True


def _require_memory(path: Path, size: int) -> None:
    """Refuses, before reading, what is packed as no checkpoint is, or larger than the memory."""
    stored = path.stat().st_size
    if size > MAX_PACKING * stored and size > HARMLESS:
        raise CheckpointError(
            f'{path} is packed as no checkpoint is: its {size_text(stored)} unpack to '
            f'{size_text(size)}. torch.save does not compress; do not use the file unless you know '
            'where it comes from, and then save it again with torch.save.'
        )
    available = available_memory()
    if size > available:
        raise CheckpointMemoryError(
            f'{path} does not fit into memory: its content has {size_text(size)}, and '
            f'{size_text(available)} are available. Read it on a machine with more memory and '
            'save its weights alone.'
        )


# A list of cases, one after another.
def _describe_file(path: Path, head: bytes, error: Exception) -> str:  # noqa: C901, PLR0911, PLR0912
    """Says what a file is that PyTorch cannot read, and what to do about it."""
    again = 'download or copy it again'
    text = head.decode('utf-8-sig', 'replace').lstrip()
    size = f'{path.stat().st_size:,} bytes'
    if not head.strip(b'\0'):
        return f'is empty or starts with zeros ({size}): {again}'
    if text.startswith('version https://git-lfs'):
        return 'is a Git LFS pointer, not the checkpoint: get the file itself with git lfs pull'
    if text.startswith('<'):
        return (
            'is a web page, not a checkpoint, such as a login page or a page about the file: '
            f'{again}, from the address of the file itself'
        )
    if not re.search(rb'[\x00-\x08\x0e-\x1f]', head) and head[0] < 128:
        code = re.search(r'^((import|from|def|class) |\w+ = )', text, re.M)
        content = 'Python code' if code else 'text'
        return f'is {content}, not a checkpoint, and starts with {text[:40]!r}: name a .pth file'
    if head.startswith(b'PK'):
        names = {entry.filename.rpartition('/')[2] for entry in _entries_of(path)}
        if not names and not _has_end(path):
            return f'is incomplete, its end is missing after {size}: {again}'
        if not names:
            return f'is damaged ({first_reason(error)}): {again}'
        if 'constants.pkl' in names:
            return 'is a TorchScript program: save the weights of its model with torch.save'
        if 'data.pkl' not in names:
            return 'is a ZIP archive without PyTorch weights: unpack it and name a file in it'
    elif head[257:262] == b'ustar':
        return 'is a tar archive: unpack it, or save the weights again with torch.save'
    elif head.startswith((b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'(\xb5/\xfd')):
        return 'is compressed: unpack it first'
    if named := re.search(r'GLOBAL (\S+) (?:was not|whose)', str(error)):
        return (
            f'holds {named[1]}, which belongs to a pickled model or another object and is not '
            f'loaded because that would execute code from the file: {SAVE_WEIGHTS}'
        )
    if not head.startswith((b'PK', b'\x80')):
        return f'is not a PyTorch checkpoint and starts with {head[:8]!r}: name a .pth file'
    reason = first_reason(error)
    if head.startswith(b'\x80') and b'l\xfc\x9cF\xf9' not in head[:16]:
        return f'is a pickle, not a checkpoint: {SAVE_WEIGHTS}'
    if isinstance(error, UnpicklingError):
        return f'holds more than weights ({reason}): {SAVE_WEIGHTS}'
    return f'is damaged ({reason}): {again}'


def first_reason(error: Exception) -> str:
    """Returns the reason in PyTorch's error message, without its advice."""
    reason = re.sub(r'(?s)^.*WeightsUnpickler error:\s*', '', str(error)) or type(error).__name__
    return re.split(r'\n|\. ', reason)[0]


def fetch_weights(url: str, hint: str) -> Path:
    """Downloads weights to the folder where PyTorch and MMEngine look for them.

    A sound file that is already there is kept, and a damaged one is replaced.

    Args:
        url (str): The address of the file.
        hint (str): The option of the tool that names a file instead.

    Returns:
        Path: The file.

    Raises:
        CheckpointError: If the download fails, or the file is damaged or holds objects other than
            weights. Such a download is deleted, and nothing in it is executed.
    """
    return fetch_and_read(url, hint)[0]


def fetch_and_read(url: str, hint: str) -> tuple[Path, dict[str, Any]]:
    """Does the same as ``fetch_weights``, and returns the content of the file as well."""
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlsplit(url).path).name)
    damage = ''
    if path.is_file():
        try:
            return path, read_checkpoint(path)
        except CheckpointMemoryError:
            raise
        except CheckpointError as error:
            damage = f'{str(error).partition(": ")[0]}, and '
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            download = Path(folder, path.name)
            torch.hub.download_url_to_file(url, str(download))
            try:
                # PyTorch takes a broken connection for the end of the file.
                content = read_checkpoint(download)
            except CheckpointMemoryError:
                download.replace(path)
                raise
            except CheckpointError as error:
                reason = str(error).replace(str(download), 'the download').partition(': ')[0]
                raise CheckpointError(reason) from error
            download.replace(path)
            return path, content
    except CheckpointMemoryError:
        raise
    except (OSError, HTTPException, CheckpointError) as error:
        raise CheckpointError(
            f'{damage}the weights {url} could not be downloaded ({error}): download the file on a '
            f'machine with a network and name it with {hint}'
        ) from error

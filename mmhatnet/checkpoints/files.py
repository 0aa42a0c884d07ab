"""Reads checkpoint files and downloads, and says what a file is that is not a checkpoint.

Nothing in a file is executed. PyTorch's weights-only reader builds tensors, plain containers and
the types in ``READABLE``, and refuses everything else.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from tarfile import is_tarfile
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmhatnet.errors import CheckpointError

MapLocation: TypeAlias = str | torch.device | dict[str, str] | Callable[[Any, str], Any] | None

SAVE_WEIGHTS = 'save its weights with torch.save(model.state_dict(), FILE) where it was made'


def _method_of_history(owner: type, name: str) -> object:
    """Replaces getattr, by which a pickle names the methods of a loss history."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    raise UnpicklingError(f'it asks for the attribute {name!r}')


class Unread:
    """Replaces the settings that training scripts store beside the weights."""

    def __new__(cls, *content: object) -> 'Unread':
        return super().__new__(cls)

    def __init__(self, *content: object) -> None:
        pass

    def __setstate__(self, content: object) -> None:
        pass


# NumPy 1 and 2 name the same module differently.
_core = 'core' if np.__version__.startswith('1.') else '_core'
_multiarray = import_module(f'numpy.{_core}.multiarray')
SETTINGS = ['argparse.Namespace', 'types.SimpleNamespace'] + [
    f'{module}.{pure}{system}Path'
    for module in ('pathlib', 'pathlib._local')
    for pure in ('', 'Pure')
    for system in ('Posix', 'Windows')
]
# MMEngine stores these beside tensors: the loss history, which holds NumPy arrays, and metainfo.
READABLE: list[Any] = [
    HistoryBuffer,
    (_method_of_history, 'builtins.getattr'),
    (dict, 'mmengine.config.config.ConfigDict'),
    slice,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']},
    *(
        (getattr(_multiarray, name), f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    ),
    *((Unread, name) for name in SETTINGS),
]

FORCE, FORCE_NOT = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
_lock = RLock()


@contextmanager
def force_weights_only() -> Iterator[None]:
    """Makes ``torch.load`` read weights only, whatever its caller or the environment asks for.

    This holds for the whole process, so only the load itself belongs inside. Other threads that
    enter this context wait.
    """
    with _lock:
        variables = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
        # When PyTorch's context ends, it forbids even what was allowed before it began.
        allowed = torch.serialization.get_safe_globals()
        added = [item for item in READABLE if item not in allowed]
        try:
            os.environ[FORCE] = '1'  # PyTorch raises an error if both variables are set.
            with torch.serialization.safe_globals(added):
                yield
        finally:
            del os.environ[FORCE]
            os.environ.update({name: text for name, text in variables.items() if text is not None})


def read_checkpoint(path: str | Path, map_location: MapLocation = 'cpu') -> dict[str, Any]:
    """Reads a local checkpoint without executing anything in it.

    Args:
        path (str | Path): A file that torch.save or the safetensors library has written.
        map_location (MapLocation): The device of its tensors, as in torch.load. Defaults to 'cpu'.

    Returns:
        dict[str, Any]: Its content. Settings such as an argparse.Namespace come without theirs.

    Raises:
        CheckpointError: If the file is missing, damaged or no checkpoint, or holds objects other
            than weights.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f'{path} is a folder: name a file in it, such as epoch_1.pth.')
    if not path.is_file():
        raise CheckpointError(
            f'There is no checkpoint {path}: tools/train.py writes checkpoints to work_dirs/, and '
            'the README says where the published ones are.'
        )
    try:
        with path.open('rb') as file:
            head = file.read(4096)
    except OSError as error:
        raise CheckpointError(
            f'{path} cannot be read ({error.strerror}): check its permissions.'
        ) from error
    if head[8:9] == b'{':
        return _read_safetensors(path)
    try:
        with force_weights_only(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # PyTorch advises to trust the file.
            content = torch.load(path, map_location=map_location, weights_only=True)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # A damaged file may raise anything.
        raise CheckpointError(f'{path} {_describe_file(path, head, error)}.') from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(
            f'{path} holds a {type(content).__name__} instead of named weights: save them with '
            'torch.save(model.state_dict(), FILE).'
        )
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(
            f'{path} is a safetensors file: install the safetensors package, which reads it.'
        ) from None
    try:
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f'{path} is damaged ({error}): download or copy it again.') from error


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
        if not zipfile.is_zipfile(path):
            return f'is incomplete, its end is missing after {size}: {again}'
        names = {name.rpartition('/')[2] for name in zipfile.ZipFile(path).namelist()}
        if 'constants.pkl' in names:
            return 'is a TorchScript program: save the weights of its model with torch.save'
        if 'data.pkl' not in names:
            return 'is a ZIP archive without PyTorch weights: unpack it and name a file in it'
    elif is_tarfile(path):
        return 'is a tar archive: unpack it, or save the weights again with torch.save'
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
            except CheckpointError as error:
                reason = str(error).replace(str(download), 'the download').partition(': ')[0]
                raise CheckpointError(reason) from error
            download.replace(path)
            return path, content
    except (OSError, HTTPException, CheckpointError) as error:
        raise CheckpointError(
            f'{damage}the weights {url} could not be downloaded ({error}): download the file on a '
            f'machine with a network and name it with {hint}'
        ) from error

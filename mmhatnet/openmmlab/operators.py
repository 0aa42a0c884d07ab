"""Gives mmcv operators where it was installed without compiled ones.

mmcv looks for a compiled module, ``mmcv._ext``. `install` copies ``mmcv_ext.py``, which has the
operators in Python, to ``mmcv/_ext.py``. Every process finds it there, whatever it imports first.
This matters because OneDL's MMDetection, if imported without operators, replaces them permanently
by functions that raise an error. Python prefers a compiled module that lies beside the file.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import cache_from_source, find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from mmhatnet.errors import MMHATNetError
from mmhatnet.openmmlab.versions import MMCV, install_command

SOURCE = Path(__file__).with_name('mmcv_ext.py')
MARK = b'python -m mmhatnet.install_ops'  # every version of the file contains it
ONEDL, LITE = install_command(MMCV), install_command(MMCV, 'mmcv-lite')


class OperatorsError(MMHATNetError):
    """Operators cannot be installed or removed. The message gives the reason and the remedy."""


def install() -> str:
    """Installs the operators in mmcv, or updates them. Working compiled operators stay in use.

    Returns:
        str: What was done.

    Raises:
        OperatorsError: If mmcv is not installed, has compiled operators that cannot be imported or
            an ``_ext.py`` of another origin, or if its folder cannot be written.
    """
    folder = _mmcv_folder()
    if folder is None or not (folder / '__init__.py').is_file():
        raise OperatorsError(
            f'mmcv is not installed: `{ONEDL}` or, beside the original packages, `{LITE}`.'
        )
    if find_spec('torchvision') is None:
        raise OperatorsError('The operators need torchvision: `pip install torchvision`.')
    target, content = folder / '_ext.py', SOURCE.read_bytes()
    spec = PathFinder.find_spec('mmcv._ext', [str(folder)])
    if spec is not None and spec.origin != str(target):
        _require_importable(spec.origin)
        return f'mmcv has compiled operators, which are used: {spec.origin}. Nothing was installed.'
    if target.exists():
        _require_ours(target)
        if target.read_bytes() == content:
            return f'mmcv has these operators already: {target}.'
    try:
        _write(target, content)
    except OSError as error:
        raise OperatorsError(
            f'{target} cannot be written: {error.strerror}. Run this as the user who installed '
            'mmcv, or install mmcv in a virtual environment of your own.'
        ) from error
    return f'Installed operators that need no compiler: {target}.'


def remove() -> str:
    """Removes the operators from mmcv, even if mmcv itself has been removed since.

    Returns:
        str: What was done.

    Raises:
        OperatorsError: If ``_ext.py`` is of another origin or cannot be removed.
    """
    folder = _mmcv_folder()
    if folder is None or not (folder / '_ext.py').exists():
        return 'mmcv has no operators that mmhatnet has installed.'
    target = folder / '_ext.py'
    _require_ours(target)
    try:
        target.unlink()
    except OSError as error:
        raise OperatorsError(f'{target} cannot be removed: {error.strerror}.') from error
    # If pip removed mmcv before, the file has kept an empty package alive.
    Path(cache_from_source(str(target))).unlink(missing_ok=True)
    for leftover in (folder / '__pycache__', folder):
        with suppress(OSError):  # not empty, or already gone
            leftover.rmdir()
    return f'Removed {target}.'


def provide() -> None:
    """Lets this process find the operators where mmcv has none.

    It warns if those that are installed come from another version of mmhatnet.
    """
    folder = _mmcv_folder()
    found = PathFinder.find_spec('mmcv._ext', [str(folder)]) if folder else None
    installed = Path(found.origin) if found and found.origin else None
    ours = installed is not None and installed.name == '_ext.py'
    if ours and installed.read_bytes() != SOURCE.read_bytes():
        warnings.warn(
            f'{installed} differs from the operators of this mmhatnet: run '
            '`python -m mmhatnet.install_ops`.',
            stacklevel=3,
        )
    if not any(isinstance(finder, _OperatorsFinder) for finder in sys.meta_path):
        sys.meta_path.append(_OperatorsFinder())  # last, so that installed operators come first


class _OperatorsFinder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_file_location(name, SOURCE) if name == 'mmcv._ext' else None


def _mmcv_folder() -> Path | None:
    spec = find_spec('mmcv')
    folders = spec and spec.submodule_search_locations
    return Path(folders[0]) if folders else None


def _require_importable(compiled: str) -> None:
    try:
        import_module('mmcv._ext')
    except ImportError as error:
        reinstall = ONEDL.replace('install', 'install --force-reinstall --no-deps --no-cache-dir')
        raise OperatorsError(
            f'mmcv has compiled operators that cannot be imported, and Python finds them first: '
            f'{compiled} ({error}). They were compiled for another PyTorch. Reinstall mmcv: '
            f'`{reinstall}` or, beside the original packages, `pip uninstall -y mmcv`, then '
            f'`{LITE}`.'
        ) from error


def _require_ours(file: Path) -> None:
    if MARK not in file.read_bytes():
        raise OperatorsError(f'{file} is not from mmhatnet: move it away first.')


def _write(target: Path, content: bytes) -> None:
    """Replaces a file at once, so that no process that imports mmcv meanwhile reads half of it."""
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, suffix='.tmp')
    try:
        with open(descriptor, 'wb') as file:
            file.write(content)
        os.chmod(temporary, SOURCE.stat().st_mode)
        os.replace(temporary, target)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise

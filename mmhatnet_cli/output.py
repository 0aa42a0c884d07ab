"""What frameworks print stays off the screen."""

import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

# What these packages print is of no use to users: that a dataset of a company cannot be imported,
# or that an index is created. What other code prints is shown, such as that of the user and a
# debugger.
QUIET = {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'pycocotools', 'torch', 'torchvision'}


def is_by_package(frame: FrameType | None) -> bool:
    """Returns whether a frame runs code of a package in ``QUIET``."""
    name = frame.f_globals.get('__name__', '') if frame else ''
    return name.partition('.')[0] in QUIET


def is_of_package(file: str) -> bool:
    """Returns whether a file of code is of a package in ``QUIET``."""
    return bool(QUIET.intersection(re.split(r'[\\/]', file)))


@contextmanager
def hide_packages() -> Iterator[None]:
    """Drops what the packages in ``QUIET`` print and warn of, until the context ends."""
    stdout, show = sys.stdout, warnings.showwarning

    def show_others(message: Warning | str, kind: type[Warning], file: str, *more) -> None:
        # What code other than Python's own hands on, such as the screen of a training, is shown.
        caller = inspect.currentframe().f_back.f_globals.get('__name__')
        if caller != 'warnings' or not is_of_package(file):
            show(message, kind, file, *more)

    sys.stdout = _WithoutPackages(stdout)
    warnings.showwarning = show_others  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, warnings.showwarning = stdout, show


class _WithoutPackages:
    """Takes the place of ``sys.stdout``."""

    def __init__(self, shown: TextIO) -> None:
        self._shown = shown

    def __getattr__(self, name: str) -> object:
        return getattr(self._shown, name)

    def write(self, text: str) -> int:
        if is_by_package(inspect.currentframe().f_back):
            return len(text)
        return self._shown.write(text)

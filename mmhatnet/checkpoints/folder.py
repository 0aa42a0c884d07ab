"""Finds the checkpoint that a user means, in a work folder the newest one."""

import math
import os
import re
import time
from pathlib import Path

from mmhatnet.checkpoints.files import read_meta
from mmhatnet.errors import CheckpointError

RECORD = 'last_checkpoint'
LATEST = 'latest.pth'


def find_checkpoint(place: str | Path) -> str | None:
    """Finds the checkpoint that a user means.

    Args:
        place (str | Path): A checkpoint, a work folder, or the file ``last_checkpoint`` in one.

    Returns:
        str | None: The checkpoint, in a folder the newest one. None if there is none.

    Raises:
        CheckpointError: If the checkpoint that ``last_checkpoint`` names is missing, and there is
            no other.
    """
    place = os.path.expanduser(place)
    if not os.path.exists(place):
        return place if '://' in place else None
    folder = Path(place)
    if not folder.is_dir():
        if folder.name not in (RECORD, f'{RECORD}.txt'):
            return place
        folder = folder.parent
    recorded, found = _recorded(folder), newest_first(folder)
    if recorded and not any(_is_named(path, recorded) for path in found):
        missing = f'{folder / RECORD} names {recorded}, which exists neither there nor in {folder}'
        if not found:
            raise CheckpointError(f'{missing}: name the checkpoint itself.')
        print(f'{missing}: {next(iter(found))} is used.')
    return next(map(str, found), None)


def newest_first(folder: Path) -> dict[Path, float]:
    """Returns the checkpoints of a work folder from which training can resume, the newest first.

    A checkpoint says when it was saved, so copies of a folder and a file ``last_checkpoint`` that
    is older, empty or garbled do not matter.

    Args:
        folder (Path): The folder.

    Returns:
        dict[Path, float]: When each checkpoint was saved, in seconds since 1970, including those
        that cannot be read.
    """
    recorded = _recorded(folder)
    places = [folder / (_name(recorded) or '.'), Path(recorded or '.')]
    last = next((path for path in places if path.is_file()), None)
    found = {last} if last else set()
    for place in {folder, last.parent if last else folder}:  # CheckpointHook's out_dir
        found |= {path for path in place.glob('*.pth') if _number(path) is not None}
    saved = {path: _saved_at(path) for path in found}
    order = sorted(
        saved, key=lambda path: (saved[path], path == last, _number(path) or 0), reverse=True
    )
    return {path: saved[path] for path in order}


def _saved_at(path: Path) -> float:
    """Returns when a checkpoint was saved, in seconds since 1970."""
    try:
        meta = read_meta(path)
        if 'saved' in meta:  # by mmhatnet.training
            saved = float(meta['saved'])
        else:  # MMEngine's own, in local time
            saved = time.mktime(time.strptime(meta['time'], '%Y%m%d_%H%M%S'))
    except Exception:  # A damaged file may raise anything.
        saved = math.nan
    return saved if math.isfinite(saved) else path.stat().st_mtime


def _recorded(folder: Path) -> str:
    try:
        text = (folder / RECORD).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ''
    return text if text.isprintable() else ''


def _name(recorded: str) -> str:
    """Returns a file name. The folder may have been copied from another operating system."""
    return re.split(r'[\\/]', recorded)[-1]


def _is_named(path: Path, recorded: str) -> bool:
    return path.name == _name(recorded)


def _number(path: Path) -> int | None:
    """Returns the number in the name of a checkpoint that training writes; None for others."""
    if path.name == LATEST:
        return 0
    found = re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem)
    return int(found[1]) if found else None

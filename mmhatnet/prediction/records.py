"""The running record of a prediction: a line of JSON for each image, written as they come.

The folder holds the settings, and a file for each process that ever wrote into it. A line is
written at once, and after all other files of its image, so a job may be killed at any time: what
has no complete line was not predicted. A line is one of

- ``{"image": path, "size": [height, width], "results": [...]}``; of a detector also ``"highest"``,
  the highest score, also of detections that are left out
- ``{"video": path, "frame": number, "image": ..., "size": ..., "results": ...}``
- ``{"video": path, "frames": number, "stated": number}`` after all frames of a video
- ``{"image": path, "failed": reason}``, also for a video
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from mmhatnet.errors import DataError
from mmhatnet.locks import lock_file
from mmhatnet.prediction.files import complete_or_absent, names_the_file


class Place(NamedTuple):
    """Where a record is.

    Attributes:
        file (Path): The file.
        offset (int): The byte at which its first line starts.
        lines (int): The number of its lines: that of the frames of a video, or 1.
    """

    file: Path
    offset: int
    lines: int = 1


@dataclass
class Index:
    """What the records hold.

    Attributes:
        places (dict[str, Place]): The images and videos that were predicted.
        failed (dict[str, str]): The reasons why images and videos failed, and were not predicted
            later.
        notes (dict[str, str]): Notes on videos.
    """

    places: dict[str, Place] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def read(self, paths: Iterable[str]) -> Iterator[dict]:
        """Yields the records of images and of the frames of videos, where there are any."""
        with ExitStack() as stack:
            streams: dict[Path, IO[bytes]] = {}
            for file, offset, lines in filter(None, map(self.places.get, paths)):
                if file not in streams:
                    streams[file] = stack.enter_context(file.open('rb'))
                streams[file].seek(offset)
                for _ in range(lines):
                    yield json.loads(streams[file].readline())

    def add(self, file: Path) -> None:
        """Reads a file of records."""
        first, frames = 0, 0  # of the current video
        for offset, line in _whole_lines(file):
            if 'frames' in line:
                if frames == line['frames']:  # no frame's line is damaged
                    self.places[line['video']] = Place(file, first, frames)
                    if frames != line['stated']:
                        self.notes[line['video']] = (
                            f'{line["video"]} states {line["stated"]} frames, of which {frames} '
                            'can be read.'
                        )
            elif 'frame' in line:
                if line['frame'] == 0:
                    first, frames = offset, 0
                frames += 1
            elif 'failed' in line:
                self.failed[line.get('video', line['image'])] = line['failed']
            else:
                self.places.setdefault(line['image'], Place(file, offset))


def _whole_lines(file: Path) -> Iterator[tuple[int, dict]]:
    """Yields the lines of a file with their offsets, except those that are no JSON."""
    offset = 0
    with file.open('rb') as stream:
        for line in stream:
            with suppress(ValueError):  # the system went down while it was written
                yield offset, json.loads(line)
            offset += len(line)


class Records:
    """The records of a job. To be used as a context, in which no other job may write them.

    Args:
        folder (Path): The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, None

    def __enter__(self) -> 'Records':
        return self

    def __exit__(self, *error: object) -> None:
        if self.lock is not None:
            self.lock.close()

    def begin(self, settings: Mapping[str, object], overwrite: bool) -> None:
        """Creates the folder, or goes on with one of the same settings.

        Args:
            settings (Mapping[str, object]): What decides about the results, by names for messages.
            overwrite (bool): Whether to delete earlier records.

        Raises:
            DataError: If the records are of other settings, or another job writes them.
        """
        with names_the_file(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            if overwrite:
                for path in self.folder.iterdir():
                    path.unlink()
                self._lock()
        file = self.folder / 'settings.json'
        if not file.exists():
            for left in self._files():  # of a job that was killed while it deleted its records
                left.unlink()
            with (
                complete_or_absent(file, self.folder / 'new') as partial,
                partial.open('w') as stream,
            ):
                json.dump(settings, stream)
                stream.flush()
                os.fsync(stream.fileno())
        earlier = json.loads(file.read_text())
        if others := [name for name in settings if earlier.get(name) != settings[name]]:
            raise DataError(
                f'{self.folder} is of a prediction that did not finish, with another '
                f'{" and another ".join(others)}: finish it with the same settings, name another '
                '--out-dir, or start anew with --overwrite.'
            )
        for file in self._files():
            _cut_last_line(file)

    def _lock(self) -> None:
        """Holds a lock until the file is closed, at the latest by the end of this process."""
        self.lock = (self.folder / 'lock').open('w')
        with suppress(OSError):  # not every network file system has locks
            if not lock_file(self.lock.fileno()):
                raise DataError(
                    f'Another process writes to {self.folder}: wait for it, or name another '
                    '--out-dir. Processes that are to share the images need --launcher.'
                )

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob('*.jsonl'))

    def index(self) -> Index:
        """Reads what has been predicted."""
        index = Index()
        for file in self._files():
            index.add(file)
        index.failed = {
            path: reason for path, reason in index.failed.items() if path not in index.places
        }
        return index

    def open(self, process: int) -> 'Writer':
        """Opens the file of a process, to append to it."""
        return Writer(self.folder / f'{process}.jsonl')

    def remove(self) -> None:
        """Deletes the records, the settings first: without them the others are worth nothing."""
        self.lock.close()  # NFS keeps files that are open
        (self.folder / 'settings.json').unlink()
        shutil.rmtree(self.folder)


class Writer:
    """Appends lines to a file of records, each at once. To be used as a context.

    Args:
        path (Path): The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> 'Writer':
        with names_the_file(self.path):
            self.file: IO[bytes] = self.path.open('ab', buffering=0)
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, **record: object) -> None:
        """Writes a record. One with numbers that are not finite becomes a failure.

        Raises:
            DataError: If it cannot be written.
        """
        try:
            text = json.dumps(record, allow_nan=False)
        except ValueError:
            names = {key: record[key] for key in ('video', 'image') if key in record}
            text = json.dumps({**names, 'failed': 'has predictions that are not finite'})
        rest = f'{text}\n'.encode()
        with names_the_file(self.path):
            while rest:
                rest = rest[self.file.write(rest) :]


def _cut_last_line(file: Path) -> None:
    """Cuts off a line that was not written to its end."""
    with file.open('r+b') as stream:
        end = 0
        for line in stream:
            end += len(line) if line.endswith(b'\n') else 0
        stream.truncate(end)

"""The work folder of a training: one job at a time, and the checkpoint to go on from."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmhatnet.checkpoints.folder import newest_first
from mmhatnet.checkpoints.safe_loader import Checkpoint
from mmhatnet.errors import CheckpointError, ConfigError
from mmhatnet.locks import lock_file

LOCK = '.training.lock'


class WorkFolder:
    """The work folder of a training, which no other training uses meanwhile.

    The system ends the lock with the process, however it ends.

    Args:
        path (str | Path): The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle: int | None = None

    def lock(self) -> None:
        """Creates the folder, and keeps other trainings out of it until this process ends.

        Raises:
            ConfigError: If another training uses it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            free = lock_file(self._handle)
        except OSError as error:  # a file system without locks
            free = True
            print(
                f'{self.path} cannot be locked ({error.strerror}): make sure that no other '
                'training uses it.'
            )
        if not free:
            record = self._read()
            self.unlock()
            raise ConfigError(
                f'Another training uses {self.path}: process {record.get("process", "unknown")} on '
                f'{record.get("host", "another machine")}. Stop it first, or name another folder '
                'with --work-dir.'
            )
        self._write(host=socket.gethostname(), process=os.getpid())

    def start_anew(self) -> None:
        """Notes that the checkpoints in the folder are of earlier trainings from now on."""
        self._write(started=time.time())

    def unlock(self) -> None:
        """Lets other trainings use the folder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def newest_readable(self, say: Callable[[str], object] = print) -> Checkpoint | None:
        """Reads the newest checkpoint of the last training that started anew.

        Those that cannot be read are named and left out, because a training that was killed may
        have left an incomplete one.

        Args:
            say (Callable): Takes messages for the user. Defaults to print.

        Returns:
            Checkpoint | None: The checkpoint; None if there is none.
        """
        started, earlier = self._read().get('started'), []
        found = newest_first(self.path) if self.path.is_dir() else {}
        for path, saved in found.items():
            if isinstance(started, float) and saved < started:
                earlier.append(path)
                continue
            try:
                return Checkpoint(str(path))
            except CheckpointError as error:
                say(f'Left out: {error}')
        if earlier:
            say(
                f'The last training in {self.path} left no checkpoint. {earlier[0].name} is of an '
                f'earlier one: to continue that, use --resume {earlier[0]}'
            )
        return None

    def _read(self) -> dict[str, Any]:
        try:
            if self._handle is None:
                record = json.loads((self.path / LOCK).read_bytes())
            else:  # Closing another handle would end the lock.
                os.lseek(self._handle, 0, os.SEEK_SET)
                record = json.loads(os.read(self._handle, 4096))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _write(self, **entries: Any) -> None:
        if self._handle is not None:
            text = json.dumps(self._read() | entries).encode()
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, text)
            os.ftruncate(self._handle, len(text))

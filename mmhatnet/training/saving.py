"""Checkpoints that are whole or absent, and deletions that wait until the next one is whole."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmhatnet.checkpoints.folder import RECORD
from mmhatnet.errors import CheckpointError

PARTIAL = '.{}.partial'


def unfinished_path(path: Path) -> Path:
    """Returns the name under which a file is written until it is complete."""
    return path.with_name(PARTIAL.format(path.name))


@contextmanager
def written_whole(path: Path, needed: Callable[[], int] = lambda: 0) -> Iterator[Path]:
    """Writes a file under another name, and renames it when it is complete and on the disk.

    Args:
        path (Path): The file, or the folder that a strategy such as DeepSpeed's writes.
        needed (Callable): Returns its bytes for the error message, or 0.

    Yields:
        Path: The name to write to, in the same folder.

    Raises:
        CheckpointError: If it cannot be written. Nothing incomplete stays, and an earlier file of
            this name is as it was.
    """
    unfinished = unfinished_path(path)
    try:
        yield unfinished
        if unfinished.is_file():
            _sync(unfinished)
        elif unfinished.is_dir() and path.is_dir():
            shutil.rmtree(path)
        if unfinished.exists():
            os.replace(unfinished, path)
            if os.name != 'nt':  # Windows opens no folders.
                _sync(path.parent)
    except OSError as error:
        _remove(unfinished)
        raise CheckpointError(_why_not_written(path, error, needed())) from error
    except BaseException:
        _remove(unfinished)
        raise


def _why_not_written(path: Path, error: OSError, needed: int) -> str:
    space = f'it needs about {needed / 2**20:,.1f} MiB, and ' if needed else ''
    with suppress(OSError):
        space += f'{shutil.disk_usage(path.parent).free / 2**20:,.1f} MiB are free: '
    return (
        f'{path} cannot be written ({error.strerror or error}): {space}make space. Earlier '
        'checkpoints are whole: --resume continues from the newest.'
    )


@contextmanager
def full_disk_as_message(folder: str) -> Iterator[None]:
    """Says what to do about a full disk, when something else than a checkpoint is written.

    Args:
        folder (str): The work folder.

    Raises:
        CheckpointError: If the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        file = error.filename or f'A file in {folder}'
        raise CheckpointError(
            f'{file} cannot be written ({error.strerror}): make space. Earlier checkpoints are '
            'whole: --resume continues from the newest.'
        ) from error


def save_resumable(runner: Runner, folder: str, name: str, **settings: Any) -> str:
    """Saves a checkpoint, and names it in the file ``last_checkpoint``. All processes call it.

    Args:
        runner (Runner): The runner.
        folder (str): Where the checkpoint goes.
        name (str): The name of the file.
        **settings: Further arguments of ``Runner.save_checkpoint``.

    Returns:
        str: The path of the checkpoint.
    """
    runner.save_checkpoint(folder, name, **settings)
    path = f'{folder}/{name}' if '://' in folder else os.path.join(folder, name)
    if is_main_process():
        with written_whole(Path(runner.work_dir, RECORD)) as unfinished:
            unfinished.write_text(path)
    return path


def _sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk. Some network disks are full only then."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot tell
            raise
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Deletes what a killed process has left of a checkpoint that it was writing."""
    for path in folder.glob(PARTIAL.format('*')):
        _remove(path)


class LaterRemovals:
    """A file backend of MMEngine's that removes files only when it is told to.

    Args:
        backend (Any): The file backend.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._removals: dict[str, Callable[[], None]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._removals[str(path)] = partial(self._backend.remove, path)

    def rmtree(self, path: str) -> None:
        self._removals[str(path)] = partial(self._backend.rmtree, path)

    def keep(self, path: object) -> None:
        """Forgets a removal, because the file was written again."""
        self._removals.pop(str(path), None)

    def flush(self) -> None:
        """Removes the files."""
        while self._removals:
            with suppress(FileNotFoundError):
                self._removals.popitem()[1]()


class WholeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, which never leaves a folder without a whole checkpoint.

    A checkpoint that is no longer needed is deleted after the next one is on the disk. Of the files
    that a resumed checkpoint names, only those are deleted that this training has written: they and
    the checkpoint lie in its folder, and they have the names of its checkpoints.
    """

    file_backend: Any
    best_ckpt_path: str | None
    best_ckpt_path_dict: dict[str, str | None]

    def before_train(self, runner: Runner) -> None:
        """Prepares the folder, and forgets what a resumed checkpoint says of other files."""
        kept = runner.message_hub.pop_info('keep_ckpt_ids', [])
        super().before_train(runner)
        self.file_backend = LaterRemovals(self.file_backend)
        folders = {Path(self.out_dir).resolve(), Path(runner.work_dir).resolve()}
        if is_main_process():
            for folder in folders:
                remove_unfinished(folder)
        continued = Path(runner._load_from or '').resolve().parent in folders
        if self.max_keep_ckpts > 0 and continued and isinstance(kept, list):
            present = runner.epoch if self.by_epoch else runner.iter
            steps = sorted({step for step in kept if type(step) is int and 0 < step <= present})
            self.keep_ckpt_ids.extend(steps)
            runner.message_hub.update_info('keep_ckpt_ids', steps)
        if self.save_best is None:
            return
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = self._own(self.best_ckpt_path) if continued else None
        else:
            paths = self.best_ckpt_path_dict
            self.best_ckpt_path_dict = {
                key: self._own(path) if continued else None for key, path in paths.items()
            }

    def _own(self, path: object) -> str | None:
        """Returns the path of a best checkpoint in the folder of this training, if it is there."""
        name = re.split(r'[\\/]', str(path))[-1]
        template = re.sub(r'\\{.*?\\}', r'\\d+', re.escape(self.filename_tmpl))
        own: str = self.file_backend.join_path(self.out_dir, name)
        return own if re.fullmatch(f'best_.+_{template}', name) and os.path.exists(own) else None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Saves a checkpoint, and then deletes those that are no longer kept."""
        if self.max_keep_ckpts > 0 and list(self.keep_ckpt_ids)[-1:] != [step]:
            # What this process does not delete because it is killed, the next process will.
            present = [*runner.message_hub.get_info('keep_ckpt_ids', []), step]
            for old in present[: -self.max_keep_ckpts]:
                self._remove(self.filename_tmpl.format(old))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', present)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        save_resumable(
            runner,
            self.out_dir,
            name,
            file_client_args=self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self.file_backend.keep(self.last_ckpt)
        self.file_backend.flush()
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Saves the best checkpoint, and then deletes the previous one."""
        super()._save_best_checkpoint(runner, metrics)
        if self.save_best is not None:
            single = len(self.key_indicators) == 1
            best = [self.best_ckpt_path] if single else self.best_ckpt_path_dict.values()
            for path in best:
                self.file_backend.keep(path)
        self.file_backend.flush()

    def _remove(self, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif is_main_process() and self.file_backend.isdir(path):
            self.file_backend.rmtree(path)  # as DeepSpeed's strategy writes it

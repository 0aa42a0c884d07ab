"""Kills tools/train.py at a moment: killed_training.py PLACE COUNT [options of the tool].

COUNT says how often the place must have been reached.
"""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend

from mmhatnet.training import saving
from mmhatnet.training.hooks import StopHook

TRAIN = Path(__file__).parents[1] / 'tools' / 'train.py'


def kill_at(place: str, count: int) -> None:
    """Replaces functions by ones that kill this process at a moment."""
    reached = 0

    def at(name: str, condition: bool = True) -> None:
        nonlocal reached
        reached += name == place and condition
        if reached == count:
            os.kill(os.getpid(), signal.SIGKILL)

    put, replace, keep = LocalBackend.put, os.replace, saving.LaterRemovals.remove

    def half_put(self: LocalBackend, content: bytes, path: str) -> None:
        put(self, content[: len(content) // 2], path)
        at('half a checkpoint is written', '.pth' in str(path))
        put(self, content, path)

    def watched_replace(source: Any, target: Any) -> None:
        checkpoint = str(target).endswith('.pth')
        at('a checkpoint is written, not renamed', checkpoint)
        at('last_checkpoint is written, not renamed', not checkpoint)
        replace(source, target)
        at('a checkpoint is renamed, last_checkpoint is not written', checkpoint)
        at('last_checkpoint is renamed, nothing is deleted', not checkpoint)

    def watched_remove(self: saving.LaterRemovals, path: str) -> None:
        keep(self, path)
        remove = self._removals[str(path)]

        def removed() -> None:
            at('an older checkpoint is about to be deleted')
            remove()
            at('an older checkpoint is deleted')

        self._removals[str(path)] = removed

    def before(hook: str, name: str) -> None:
        original: Callable = getattr(StopHook, hook)

        def watched(self: StopHook, *args: Any, **kwargs: Any) -> None:
            at(name)
            original(self, *args, **kwargs)

        setattr(StopHook, hook, watched)

    LocalBackend.put, os.replace = half_put, watched_replace
    saving.LaterRemovals.remove = watched_remove
    before('before_train', 'training starts')
    before('after_train_iter', 'an iteration ends')
    before('after_val_iter', 'validation')


if __name__ == '__main__':
    kill_at(sys.argv[1], int(sys.argv[2]))
    sys.argv = [str(TRAIN), *sys.argv[3:]]
    runpy.run_path(sys.argv[0], run_name='__main__')

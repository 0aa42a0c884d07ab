"""Runs tools/train.py, which gets a signal: signalled_training.py WHO COUNT [options of the tool].

SIGTERM comes after COUNT iterations, for this process or for all in its group.
"""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from mmhatnet.training.hooks import StopHook

TRAIN = Path(__file__).parents[1] / 'tools' / 'train.py'


def signal_after(who: str, count: int) -> None:
    original = StopHook.after_train_iter

    def watched(self: StopHook, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == count and who == 'process':
            os.kill(os.getpid(), signal.SIGTERM)
        if runner.iter + 1 == count and who == 'group':
            # Workers obey a signal that comes from this process, so another one sends it.
            group = os.getpid()  # of which this process is the leader; see below
            code = f'import os; os.killpg({group}, {int(signal.SIGTERM)})'
            subprocess.run([sys.executable, '-S', '-c', code], check=True, start_new_session=True)
        original(self, runner, *args, **kwargs)

    StopHook.after_train_iter = watched


if __name__ == '__main__':
    os.setpgid(0, 0)
    signal_after(sys.argv[1], int(sys.argv[2]))
    sys.argv = [str(TRAIN), *sys.argv[3:]]
    runpy.run_path(sys.argv[0], run_name='__main__')

"""Runs scripts in processes of their own. The frameworks are imported once for all of them."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

FORKSERVER = multiprocessing.get_context('forkserver')
FORKSERVER.set_forkserver_preload(['mmdet.apis', 'mmseg.apis', 'mmpretrain.apis'])


class Script:
    """A Python script with its arguments, which runs as on a command line.

    Args:
        path (str | Path): The script, or -m if the first argument is a module.
        args: Its arguments, of any type.
        log (Path): Where its output goes.
        cwd (Path): The folder that it runs in. Defaults to the current one.
        environment: Variables that are added to those of this process.
    """

    def __init__(self, path, *args, log: Path, cwd: Path | None = None, **environment) -> None:
        words = [str(path), *map(str, args)]
        self.log = log
        case = words, log, cwd or Path.cwd(), {**os.environ, **environment}
        self.process = FORKSERVER.Process(target=_run, args=case)
        self.process.start()

    def wait(self) -> str:
        """Returns its output.

        Raises:
            AssertionError: If it fails.
        """
        self.process.join()
        output = self.log.read_text()
        if self.process.exitcode:
            raise AssertionError(f'exit status {self.process.exitcode}:\n{output[-3000:]}')
        return output


def _run(words: list[str], log: Path, cwd: Path, variables: dict[str, str]) -> None:
    with log.open('w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(cwd)
    os.environ.update(variables)
    sys.path[:0] = filter(None, variables.get('PYTHONPATH', '').split(os.pathsep))
    if words[0] == '-m':
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name='__main__')

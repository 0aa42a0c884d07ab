"""How other commands are called, in the way that this one was."""

import os
import shlex
import shutil
import sys
from pathlib import Path

TOOLS = {'flops': 'get_flops'}  # the others are named as their commands


def command_line(command: str, *words: str) -> str:
    """Returns the command line of a command, for the user to copy.

    Args:
        command (str): The name of the command.
        *words (str): Its arguments.

    Returns:
        str: ``python tools/NAME.py ...`` in a process of a tool, or ``mmhatnet NAME ...``.
    """
    this = Path(sys.argv[0])
    tool = this.parent / f'{TOOLS.get(command, command).replace("-", "_")}.py'
    if this.suffix == '.py' and tool.is_file():
        start = [_typed(sys.executable), str(tool)]
    elif this.name == '__main__.py':
        start = [_typed(sys.executable), '-m', 'mmhatnet', command]
    else:
        start = [_typed(sys.argv[0]) if this.name == 'mmhatnet' else 'mmhatnet', command]
    return shlex.join([*start, *words])


def _typed(program: str) -> str:
    """Returns the name of a program where a shell finds this one by it, or else its path."""
    name = os.path.basename(program)
    found = shutil.which(name)
    return name if found and os.path.abspath(found) == os.path.abspath(program) else program

"""The command ``mmhatnet``.

This package imports the standard library alone, because ``import mmhatnet`` imports PyTorch, and
``mmhatnet --help`` answers at once. Each module that ``COMMANDS`` names is a command: its docstring
is the description, ``add_arguments(parser)`` adds its options, and ``run(args)`` imports what it
needs. ``run`` may raise ``argparse.ArgumentError(None, MESSAGE)`` for options that are wrong.
"""

import re
import signal
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from mmhatnet_cli.options import HelpFormatter
from mmhatnet_cli.output import hide_packages

COMMANDS = {
    'Your own data': ('new-config', 'check-data', 'train', 'test', 'predict', 'demo', 'export'),
    'Models': ('flops', 'benchmark', 'visualize-attention', 'convert-checkpoint'),
    'Other': ('make-toy-data', 'reproduce', 'install-ops'),
}
NAMES = [name for names in COMMANDS.values() for name in names]
OVERVIEW = """usage: mmhatnet COMMAND [arguments]

HAT-Net and other backbones for MMDetection, MMSegmentation and MMPretrain.
{commands}
`mmhatnet COMMAND --help` describes a command, and `mmhatnet --version` prints the version.
A config is a file, or one of this package: mmhatnet::maskrcnn_hatnet.py.
In several processes: torchrun --nproc-per-node 8 -m mmhatnet train CONFIG --launcher pytorch"""


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command that the first word names, as the console script ``mmhatnet`` does.

    Args:
        words (Sequence[str], optional): The words of the command line. Defaults to None: those
            that this process was started with.
    """
    name, *words = (sys.argv[1:] if words is None else words) or ['--help']
    if name in NAMES:
        run_command(name, words, f'mmhatnet {name}')
    elif name in ('-h', '--help'):
        print(OVERVIEW.format(commands=_overview()))
    elif name == '--version':
        print(f'mmhatnet {_version()}')
    else:
        similar = get_close_matches(name, NAMES, n=1)
        meant = f'perhaps `mmhatnet {similar[0]}` is meant' if similar else '`mmhatnet` lists all'
        print(f'mmhatnet: error: there is no command {name}: {meant}.', file=sys.stderr)
        raise SystemExit(2)


def run_command(name: str, words: Sequence[str] | None = None, program: str | None = None) -> None:
    """Runs a command.

    Args:
        name (str): One of ``NAMES``.
        words (Sequence[str], optional): Its arguments. Defaults to None: those that this process
            was started with.
        program (str, optional): What its help calls it. Defaults to None: the file that this
            process runs, such as ``train.py``.
    """
    words = sys.argv[1:] if words is None else words
    with exit_on_error():
        command = command_of(name)
        parser = parser_of(command, program)
        args = parser.parse_args(words)
        args.words = [*words]
        try:
            with hide_packages():
                command.run(args)
        except ArgumentError as error:
            parser.error(str(error))


def command_of(name: str) -> ModuleType:
    """Returns the module of a command."""
    return import_module(f'{__name__}.{name.replace("-", "_")}')


def parser_of(command: ModuleType, program: str | None = None) -> ArgumentParser:
    """Returns the parser of a command's arguments."""
    parser = ArgumentParser(program, description=command.__doc__, formatter_class=HelpFormatter)
    command.add_arguments(parser)
    return parser


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Ends a command with the message of an error of mmhatnet. Also works as a decorator.

    Ctrl-C ends it with the exit status of shells; a training that has begun saves itself before.
    """
    try:
        yield
    except KeyboardInterrupt:
        print('Interrupted.', file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except ImportError as error:
        if error.name != 'mmhatnet':
            raise
        raise SystemExit(str(error)) from None
    except ValueError as error:
        from mmhatnet.errors import MMHATNetError

        if not isinstance(error, MMHATNetError):
            raise
        raise SystemExit(str(error)) from None


def _overview() -> str:
    width, lines = max(map(len, NAMES)), []
    for group, names in COMMANDS.items():
        lines += ['', f'{group}:']
        for name in names:
            summary, *_ = (command_of(name).__doc__ or '').splitlines()
            lines.append(f'  {name:{width}}  {summary}')
    return '\n'.join([*lines, ''])


def _version() -> str:
    """Reads the version of mmhatnet, which may be used without installation."""
    spec = find_spec('mmhatnet')
    text = Path(spec.origin).read_text(encoding='utf-8') if spec and spec.origin else ''
    found = re.search(r"^__version__ = '(.+)'", text, re.MULTILINE)
    return found[1] if found else 'of an unknown version'

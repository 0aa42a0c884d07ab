"""The options that commands share, and how their help is written."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def path(text: str) -> str:
    """Reads an argument that names a file, a folder or an address.

    Shells replace ~ at the start of a word alone, not in ``--out=~/labels``, and programs that
    start commands replace neither it nor variables.

    Raises:
        argparse.ArgumentTypeError: If it is empty, as a variable without a value is.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError('its path is empty: name a file or folder')
    return os.path.expanduser(os.path.expandvars(text))


def local_path(text: str) -> Path:
    """Reads an argument that names a file or a folder of this machine."""
    return Path(path(text))


def at_least(least: int) -> Callable[[str], int]:
    """Returns a function that reads a whole number of at least ``least``."""

    def whole_number(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f'{number} must be at least {least}')
        return number

    return whole_number


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs that are not indented, and adds defaults where the help names none."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return '\n\n'.join(
            paragraph if '\n ' in f'\n{paragraph}' else fill(paragraph, width, indent)
            for paragraph in text.strip('\n').split('\n\n')
        )

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or '', action.default
        if 'default' in text or action.required or default in (None, argparse.SUPPRESS):
            return text
        if action.nargs == 0:
            return f'{text} (default: {"on" if default else "off"})'
        if isinstance(default, (list, tuple)):
            return f'{text} (default: {" ".join(map(str, default))})'
        return f'{text} (default: %(default)s)'


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds the config of a job."""
    parser.add_argument(
        'config',
        type=path,
        help='the config: a file, or one of this package, such as mmhatnet::maskrcnn_hatnet.py',
    )


def add_settings_option(parser: argparse.ArgumentParser) -> None:
    """Adds --cfg-options, and defaults of the other options that reading a config needs."""
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        metavar='KEY=VALUE',
        help='settings that override the config; a list is KEY="[a,b]" or KEY=a,b; quotation marks '
        'are needed around brackets, and no white space is allowed (default: none)',
    )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that training and testing share in all OpenMMLab projects."""
    parser.add_argument(
        '--work-dir',
        type=path,
        help='folder of logs and checkpoints (default: work_dirs/ and the config name)',
    )
    add_settings_option(parser)
    parser.add_argument(
        '--no-check',
        action='store_true',
        help='skip the checks of the data (default: they are made)',
    )
    parser.add_argument(
        '--no-report', action='store_true', help='write no report.html (default: it is written)'
    )
    parser.add_argument(
        '--verbose',
        action='store_true',
        help='show on the screen, too, what is otherwise in the log file alone',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed job are started: pytorch for `torchrun '
        '--nproc-per-node NUMBER -m mmhatnet ...`, slurm for `srun mmhatnet ...`',
    )
    # Older PyTorch launchers pass the rank as an option, not as an environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_inference_arguments(parser: argparse.ArgumentParser, device: str | None = None) -> None:
    """Adds the arguments that commands for single images share.

    Args:
        parser (argparse.ArgumentParser): The parser.
        device (str, optional): The default of --device. Defaults to None: a GPU if there is one.
    """
    add_config(parser)
    parser.add_argument(
        'checkpoint', type=path, help='the checkpoint, or the work folder of a training'
    )
    parser.add_argument(
        '--device',
        default=device,
        help=f'such as cpu or cuda:1 (default: {device or "a GPU if there is one"})',
    )
    add_settings_option(parser)

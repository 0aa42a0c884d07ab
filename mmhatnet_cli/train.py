"""Trains the model of a config of MMDetection, MMSegmentation or MMPretrain."""

import argparse
from math import inf

from mmhatnet_cli.options import add_common_options, add_config, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_common_options(parser)
    parser.add_argument(
        '--resume',
        type=path,
        nargs='?',
        const='auto',
        help='resume a run: from the given checkpoint, or without one from the latest in the '
        'work folder (default: start from the beginning)',
    )
    parser.add_argument(
        '--save-every',
        type=minutes,
        metavar='MINUTES',
        help='also save latest.pth at this interval (default: only as the config says)',
    )
    parser.add_argument(
        '--reapply-settings',
        action='store_true',
        help="with --resume: use the config's optimizer settings and schedules where the "
        "checkpoint has others (default: the checkpoint's)",
    )
    parser.add_argument(
        '--tracker',
        action='append',
        default=[],
        metavar='NAME',
        help='also send losses and metrics to tensorboard, mlflow, wandb or another of MMEngine: '
        'once for each (default: none)',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the batch size over the config's auto_scale_lr",
    )


def minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < inf:
        raise ValueError
    return number


def run(args: argparse.Namespace) -> None:
    from mmhatnet.cli.train import run_training

    run_training(args)

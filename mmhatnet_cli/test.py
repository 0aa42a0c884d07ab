"""Evaluates a checkpoint on the test data of a config, with its metrics."""

import argparse

from mmhatnet_cli.options import add_common_options, add_config, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument('checkpoint', type=path, help='the checkpoint to evaluate')
    add_common_options(parser)
    parser.add_argument(
        '--out',
        type=path,
        help='where predictions are written: a .pkl file, or for MMSegmentation a folder of '
        'label maps (default: they are not written)',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir',
        type=path,
        help='folder for visualizations of the predictions (default: there are none)',
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a window stays open')
    parser.add_argument('--tta', action='store_true', help='use test-time augmentation')
    parser.add_argument(
        '--ignore-classes',
        action='store_true',
        help='test even if the checkpoint was trained for other classes or another order of them '
        '(default: this is an error)',
    )


def run(args: argparse.Namespace) -> None:
    from mmhatnet.cli.test import run_test

    run_test(args)

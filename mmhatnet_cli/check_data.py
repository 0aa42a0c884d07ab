"""Checks the data of a config, and prints statistics, oddities and errors."""

import argparse
import sys

from mmhatnet_cli.options import add_config, add_settings_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        '--all',
        action='store_true',
        help='read all images and masks (default: a sample of them)',
    )
    add_settings_option(parser)


def run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from mmhatnet import cli
    from mmhatnet.data_checks import check_data

    cfg = cli.load_config(args)
    # Rich knows the width of terminals only.
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = check_data(cfg, 'train', 'val', 'test', every=args.all, console=console)
    report.show(console)
    raise SystemExit(bool(report.errors))

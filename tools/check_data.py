"""Checks the data of a config, and prints statistics, oddities and errors."""

import argparse
import sys
import warnings

from rich.console import Console

from mmhatnet import cli
from mmhatnet.data_checks import check_data


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=cli.path, help='the config of the job')
    parser.add_argument(
        '--all', action='store_true', help='read all images and masks instead of a sample'
    )
    cli.add_settings_option(parser)
    return parser.parse_args()


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    warnings.filterwarnings('ignore', module='mmdet')
    # Rich knows the width of terminals only.
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = check_data(cfg, 'train', 'val', 'test', every=args.all, console=console)
    report.show(console)
    raise SystemExit(bool(report.errors))


if __name__ == '__main__':
    main()

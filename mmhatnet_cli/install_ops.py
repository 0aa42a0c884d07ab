"""Gives the installed mmcv operators that need no compiler.

Compiled operators are left alone. Run it again after an update of mmhatnet.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--remove',
        action='store_true',
        help='remove the operators again (default: install them)',
    )


def run(args: argparse.Namespace) -> None:
    from mmhatnet.openmmlab import operators

    print(operators.remove() if args.remove else operators.install())

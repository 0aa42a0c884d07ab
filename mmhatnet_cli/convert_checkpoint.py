"""Writes a published checkpoint with the key names of this package.

The backbones load published checkpoints of all networks as they are, so conversion is optional. It
writes a file of nothing but weights, for the backbone or for the whole classifier of
configs/**/*_in1k.py.
"""

import argparse

from mmhatnet_cli.options import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('src', type=path, help='the published checkpoint')
    parser.add_argument('dst', type=path, help='the file to write')
    parser.add_argument(
        '--classifier',
        action='store_true',
        help='write the whole classifier (default: the backbone alone)',
    )


def run(args: argparse.Namespace) -> None:
    from mmhatnet.conversion import convert_checkpoint

    number = convert_checkpoint(args.src, args.dst, args.classifier)
    print(f'{number} tensors written to {args.dst}')

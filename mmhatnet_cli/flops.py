"""Counts the parameters and FLOPs of a config's model and of its backbone.

A FLOP is one multiply-add, as in the papers. Convolutions and linear layers are counted together.
The two products between activations in each attention are counted separately, because published
figures often omit them. Nothing else is counted: no normalization, softmax, resizing, sampling of
RoIAlign, NMS or addition of biases. HAT-Net's published figures include the latter, 17 M of the
large variant's 11.5 G. Two-stage detectors count with the most proposals and detections that they
keep, because the number that NMS leaves depends on the image.
"""

import argparse

from mmhatnet_cli.options import add_config, add_settings_option, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        '--shape',
        nargs=2,
        type=at_least(1),
        metavar=('HEIGHT', 'WIDTH'),
        help='height and width of the image (default: 800 1280 for detectors, 512 512 for '
        'segmentors, 224 224 for classifiers)',
    )
    add_settings_option(parser)


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from mmhatnet import cli
    from mmhatnet.flops import DEFAULT_SHAPES, count_flops

    cfg = cli.load_config(args)
    shape = tuple(args.shape or DEFAULT_SHAPES[cfg.default_scope])
    table = Table(f'{shape[0]}x{shape[1]}', 'parameters', 'GFLOPs: layers', 'attention', 'together')
    for part, (parameters, layers, attention) in count_flops(cfg, shape).items():
        flops = [f'{value / 1e9:.3f}' for value in (layers, attention, layers + attention)]
        table.add_row(part, f'{parameters / 1e6:.2f} M', *flops)
    Console().print(table)

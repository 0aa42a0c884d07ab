"""Counts the parameters and FLOPs of a config's model and of its backbone.

A FLOP is one multiply-add, as in the papers. Convolutions and linear layers are counted together.
The two products between activations in each attention are counted separately, because published
figures often omit them. Nothing else is counted: no normalization, softmax, resizing, sampling of
RoIAlign, NMS or addition of biases. HAT-Net's published figures include the latter, 17 M of the
large variant's 11.5 G. Two-stage detectors count with the most proposals and detections that they
keep, because the number that NMS leaves depends on the image.
"""

import argparse

from rich.console import Console
from rich.table import Table

from mmhatnet import cli
from mmhatnet.flops import DEFAULT_SHAPES, count_flops


@cli.exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=cli.path, help='the config of the job')
    parser.add_argument('--shape', nargs=2, type=int, help='height and width of the image')
    cli.add_settings_option(parser)
    args = parser.parse_args()
    cfg = cli.load_config(args)
    shape = tuple(args.shape or DEFAULT_SHAPES[cfg.default_scope])
    if min(shape) < 1:
        parser.error(f'--shape {shape[0]} {shape[1]} must be two positive numbers')
    table = Table(f'{shape[0]}x{shape[1]}', 'parameters', 'GFLOPs: layers', 'attention', 'together')
    for part, (parameters, layers, attention) in count_flops(cfg, shape).items():
        flops = [f'{value / 1e9:.3f}' for value in (layers, attention, layers + attention)]
        table.add_row(part, f'{parameters / 1e6:.2f} M', *flops)
    Console().print(table)


if __name__ == '__main__':
    main()

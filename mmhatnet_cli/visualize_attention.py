"""Visualizes what a position of an image attends to in each stage of HAT-Net.

Local attention covers the window of the position, which is framed and enlarged. Global attention
covers the pooled positions of the whole image. Colors show multiples of the mean weight. The image
goes through the test pipeline of the config without its crops.
"""

import argparse
from pathlib import Path

from mmhatnet_cli.options import add_inference_arguments, path

FORMATS = ('.pdf', '.png', '.svg')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_inference_arguments(parser)
    parser.add_argument('image', type=path, help='the image')
    parser.add_argument(
        '--point',
        nargs=2,
        type=int,
        required=True,
        metavar=('X', 'Y'),
        help='the position, in pixels from the top-left corner of the image',
    )
    parser.add_argument(
        '--out', type=path, default='attention.png', help='a .png, .pdf or .svg file'
    )
    parser.add_argument(
        '--block', type=int, default=-1, help='the block of each stage (default: the last)'
    )
    parser.add_argument('--heads', action='store_true', help='show each head (default: their mean)')


def run(args: argparse.Namespace) -> None:
    if Path(args.out).suffix not in FORMATS:
        message = f'--out {args.out} must end with one of {", ".join(FORMATS)}'
        raise argparse.ArgumentError(None, message)

    import matplotlib
    import mmcv

    from mmhatnet import cli
    from mmhatnet.attention_figure import attention_of_image, draw_figure
    from mmhatnet.errors import ConfigError
    from mmhatnet.inference import find_images, read_image

    cli.require_writable('--out', Path(args.out).parent)
    file, *others = find_images([args.image])
    (height, width), (x, y) = read_image(file).shape[:2], args.point
    if others or not (0 <= x < width and 0 <= y < height):
        raise ConfigError(f'--point {x} {y} is outside of {file}, which is {width} x {height}.')
    cfg, device = cli.load_config(args), cli.find_device(args.device)
    stages = attention_of_image(cfg, args.checkpoint, file, (x, y), args.block, device)
    image = mmcv.imread(file, 'grayscale')
    matplotlib.rcParams.update({'font.family': 'serif', 'pdf.fonttype': 42})
    figure = draw_figure(stages, image, (x, y), args.heads)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=300)
    print(f'{args.out} shows the attention at {x} {y} of {file}')

"""Exports a model, or a part of it, to a file for other runtimes.

The file takes images (N, C, H, W) of any batch, height and width: pixels from 0 to 255 as float32,
in the order of colors that its metadata name, and normalizes them itself. Classifiers give logits
(N, classes), segmentors logits (N, classes, H, W), and the parts of a model their features. The
file is kept if its outputs agree with PyTorch's at a size that was not traced.
"""

import argparse
import re
from pathlib import Path

from mmhatnet import cli
from mmhatnet.export import (
    FORMATS,
    PARTS,
    compare_speed,
    export_model,
    require_exporter,
)
from mmhatnet.inference import build_inferencer


def height_and_width(text: str) -> tuple[int, int]:
    if not re.fullmatch(r'[1-9]\d*x[1-9]\d*', text):
        raise argparse.ArgumentTypeError(f'{text} is not a size HxW such as 224x224')
    height, width = map(int, text.split('x'))
    return height, width


@cli.exit_on_error()
def main() -> None:
    parser = cli.inference_parser(__doc__)
    parser.set_defaults(device='cpu')
    parser.add_argument('--format', choices=FORMATS, default='onnx', help='default: %(default)s')
    parser.add_argument('--part', choices=PARTS, default='model', help='default: %(default)s')
    parser.add_argument(
        '--out', type=cli.path, help='the file (default: work_dirs/exported/ and the config name)'
    )
    parser.add_argument(
        '--benchmark',
        nargs='+',
        type=height_and_width,
        default=[],
        metavar='HxW',
        help='also print the time that images of these sizes take, such as 224x224',
    )
    args = parser.parse_args()
    out = Path(args.out or f'work_dirs/exported/{Path(args.config).stem}.{args.format}')
    if out.suffix != f'.{args.format}':
        parser.error(f'--out {out} must end with .{args.format}')
    cli.require_writable('--out', out.parent)
    require_exporter(args.format)
    cfg, device = cli.load_config(args), cli.find_device(args.device)
    inferencer = build_inferencer(cfg, args.checkpoint, device)
    model, classes = inferencer.model, inferencer.classes
    deviation = export_model(model, out, args.format, args.part, classes)
    if deviation is None:
        print(f'{out} was not checked: onnxruntime is not installed (pip install onnxruntime).')
    else:
        print(f'{out} deviates from PyTorch by at most {deviation:.1e} standard deviations.')
    if args.benchmark:
        print(compare_speed(model, out, args.part, args.benchmark))


if __name__ == '__main__':
    main()

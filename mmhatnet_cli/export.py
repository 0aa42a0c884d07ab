"""Exports a model, or a part of it, to a file for other runtimes.

The file takes images (N, C, H, W) of any batch, height and width: pixels from 0 to 255 as float32,
in the order of colors that its metadata name, and normalizes them itself. Classifiers give logits
(N, classes), segmentors logits (N, classes, H, W), and the parts of a model their features.
Detectors give boxes in pixels of the images, scores, labels and masks; the file resizes the images
as the test pipeline does. A file is kept if its outputs agree with PyTorch's at sizes that were not
traced.
"""

import argparse
import re
from pathlib import Path

from mmhatnet_cli.options import add_inference_arguments, path

FORMATS = ('onnx', 'pt2')
PARTS = ('model', 'neck', 'backbone')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_inference_arguments(parser, device='cpu')
    parser.add_argument('--format', choices=FORMATS, default='onnx', help='the format of the file')
    parser.add_argument('--part', choices=PARTS, default='model', help='what is exported')
    parser.add_argument(
        '--out', type=path, help='the file (default: work_dirs/exported/ and the config name)'
    )
    parser.add_argument(
        '--images',
        nargs='+',
        type=path,
        default=[],
        help='images to check the file of a detector with (default: a few of the test data)',
    )
    parser.add_argument(
        '--no-resize',
        action='store_true',
        help='leave out that the file of a detector resizes images (default: it does)',
    )
    parser.add_argument(
        '--precision',
        choices=['fp32', 'int8'],
        default='fp32',
        help='int8: the matrix products of an ONNX file of a detector are in 8 bits',
    )
    parser.add_argument(
        '--evaluate',
        action='store_true',
        help='also evaluate the file of a detector on the test data, as `mmhatnet test` does',
    )
    parser.add_argument(
        '--benchmark',
        nargs='+',
        type=height_and_width,
        default=[],
        metavar='HxW',
        help='also print the time that images of these sizes take, such as 224x224 (default: none)',
    )


def height_and_width(text: str) -> tuple[int, int]:
    if not re.fullmatch(r'[1-9]\d*x[1-9]\d*', text):
        raise argparse.ArgumentTypeError(f'{text} is not a size HxW such as 224x224')
    height, width = map(int, text.split('x'))
    return height, width


def run(args: argparse.Namespace) -> None:
    from mmhatnet import cli
    from mmhatnet.checkpoints.folder import find_checkpoint
    from mmhatnet.checkpoints.safe_loader import Checkpoint
    from mmhatnet.config_checks import require_complete, require_fitting_metrics
    from mmhatnet.errors import ConfigError
    from mmhatnet.export import (
        FileDetector,
        compare_speed,
        evaluate,
        export_detector,
        export_model,
        require_exporter,
        source_of,
    )
    from mmhatnet.inference import build_inferencer, find_images

    name = Path(cli.find_config(args.config)).stem
    out = Path(args.out or f'work_dirs/exported/{name}.{args.format}')
    if out.suffix != f'.{args.format}':
        raise argparse.ArgumentError(None, f'--out {out} must end with .{args.format}')
    if out.is_dir():
        raise argparse.ArgumentError(None, f'--out {out} is a folder: name a file.')
    cli.require_writable('--out', out.parent)
    require_exporter(args.format)
    cfg, device = cli.load_config(args), cli.find_device(args.device)
    detects = cfg.get('default_scope') == 'mmdet' and args.part == 'model'
    given = dict(images=args.images, no_resize=args.no_resize, evaluate=args.evaluate)
    given['precision'] = args.precision != 'fp32'
    if not detects and any(given.values()):
        option = next(key for key, value in given.items() if value).replace('_', '-')
        raise ConfigError(f'--{option} is for whole detectors: leave it out.')
    if args.precision == 'int8' and args.format != 'onnx':
        raise ConfigError('--precision int8 is for ONNX files: leave out --format pt2.')
    images = find_images(args.images)
    checkpoint = Checkpoint(find_checkpoint(args.checkpoint) or args.checkpoint)
    inferencer = build_inferencer(cfg, checkpoint, device)
    if args.evaluate:
        require_complete(cfg, 'test')
        cli.require_datasets(cfg, 'test')
        require_fitting_metrics(cfg, 'test')
    source = source_of(cfg, checkpoint)
    if detects:
        agreement = export_detector(
            *(inferencer, out, images, source),
            resize=not args.no_resize,
            int8=args.precision == 'int8',
        )
        line = agreement and f'{out}: {agreement}.'
        if args.no_resize or args.format == 'pt2':
            print(f'{out} does not resize images: give them as the test pipeline resizes them.')
    else:
        deviation = export_model(inferencer.model, out, args.part, inferencer.classes, source)
        line = deviation is not None and (
            f'{out} deviates from PyTorch by at most {deviation:.1e} standard deviations.'
        )
    unchecked = f'{out} was not checked: onnxruntime is not installed (pip install onnxruntime).'
    print(line or unchecked)
    if args.evaluate:
        metrics = evaluate(FileDetector(out, device), cfg, inferencer.classes)
        print(*(f'{name} {value}' for name, value in metrics.items()), sep='\n')
    if args.benchmark:
        print(compare_speed(inferencer, out, args.part, args.benchmark))

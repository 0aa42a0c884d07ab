"""Writes a config that trains on your own data.

    mmhatnet new-config --data FOLDER        # then: mmhatnet train config.py

The config fits the layout of the folder, which holds annotations of COCO (also as Roboflow, CVAT
and Label Studio export them), YOLO, Pascal VOC or LabelMe; or images and masks (in images/train and
annotations/train, or as in ADE20K and MMSegmentation); or a folder of images for each class in
train/ and val/.

Annotations that cannot be used as they are become COCO files in FOLDER/mmhatnet_coco. No other file
is changed. A data check follows.
"""

import argparse
import sys
from math import inf

from mmhatnet_cli.calls import command_line
from mmhatnet_cli.options import local_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--data', type=local_path, required=True, help='the folder of the data')
    parser.add_argument(
        '--job',
        choices=['maskrcnn', 'retinanet', 'semfpn', 'imagenet'],
        help='what to train (default: what fits the data best)',
    )
    parser.add_argument(
        '--arch',
        choices=['tiny', 'small', 'medium', 'large'],
        default='tiny',
        help='the variant of HAT-Net',
    )
    parser.add_argument('--out', type=local_path, default='config.py', help='the config to write')
    parser.add_argument(
        '--classes',
        nargs='+',
        help='the names of the labels in masks, in order (default: those of classes.txt in the '
        'folder, or class_0, class_1 and so on)',
    )
    parser.add_argument(
        '--hours',
        type=hours,
        help='the time that the training may take on this machine, of which it trains a few '
        'iterations to measure them (default: as long as the data are worth)',
    )
    # Annotations without a validation split are divided now without it.
    parser.add_argument('--split', action='store_true', help=argparse.SUPPRESS)


def hours(text: str) -> float:
    number = float(text)
    if not 0 < number < inf:
        raise ValueError
    return number


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.console import Console

    from mmhatnet import cli
    from mmhatnet.data_checks import check_data
    from mmhatnet.new_config import write_config

    made = write_config(args.data, args.out, args.job, args.arch, args.classes, args.hours)
    if made.report:
        print(made.report)
    print('\n'.join([f'{args.out} trains {made.job} on {args.data}.', *made.recipe]))
    # Rich knows the width of terminals only.
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = check_data(cli.read_config(str(args.out)), 'train', 'val', console=console)
    if made.report:
        report.counts.pop('Objects of each class', None)  # it has shown them
    report.show(console)
    if report.errors:
        check = command_line('check-data', str(args.out))
        raise SystemExit(f'Correct the data. This checks them again: {check}')
    folder = str(Path('work_dirs', args.out.stem))
    print('Next:')
    print(' ', command_line('train', str(args.out)))
    print(' ', command_line('predict', str(args.out), folder, str(made.images)))

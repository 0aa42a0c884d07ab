"""Writes a config that trains on your own data, for the layout of their folder.

    python tools/new_config.py --data FOLDER        # then: python tools/train.py config.py

The folder holds annotations of COCO (also as Roboflow, CVAT and Label Studio export them), YOLO,
Pascal VOC or LabelMe; or images and masks (in images/train and annotations/train, or as in ADE20K
and MMSegmentation); or a folder of images for each class in train/ and val/.

Annotations that cannot be used as they are become COCO files in FOLDER/mmhatnet_coco. No other file
is changed. A data check follows.
"""

import argparse
import shlex
import sys
import warnings
from pathlib import Path

from rich.console import Console

from mmhatnet import cli
from mmhatnet.data_checks import check_data
from mmhatnet.new_config import write_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=cli.local_path, required=True, help='the folder of the data')
    parser.add_argument(
        '--job',
        choices=['maskrcnn', 'retinanet', 'semfpn', 'imagenet'],
        help='what to train (default: what fits the data best)',
    )
    parser.add_argument(
        '--arch',
        choices=['tiny', 'small', 'medium', 'large'],
        default='tiny',
        help='the variant of HAT-Net (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        type=cli.local_path,
        default='config.py',
        help='the config to write (default: %(default)s)',
    )
    parser.add_argument('--classes', nargs='+', help='the names of the labels in masks, in order')
    # Annotations without a validation split are divided now without it.
    parser.add_argument('--split', action='store_true', help=argparse.SUPPRESS)
    return parser.parse_args()


def tool(name: str) -> list[str]:
    """Returns the words that start another command as this one was started."""
    program = Path(sys.argv[0])
    if program.suffix == '.py':
        return ['python', str(program.with_name(f'{name}.py'))]
    return ['mmhatnet', name.replace('_', '-')]


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    made = write_config(args.data, args.out, args.job, args.arch, args.classes)
    if made.report:
        print(made.report)
    print(f'{args.out} trains {made.job} on {args.data}.')
    warnings.filterwarnings('ignore', module='mmdet')
    # Rich knows the width of terminals only.
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = check_data(cli.read_config(str(args.out)), 'train', 'val', console=console)
    if made.report:
        report.counts.pop('Objects of each class', None)  # it has shown them
    report.show(console)
    if report.errors:
        check = shlex.join([*tool('check_data'), str(args.out)])
        raise SystemExit(f'Correct the data. This checks them again: {check}')
    print('Next:')
    print(' ', shlex.join([*tool('train'), str(args.out)]))
    folder = str(Path('work_dirs', args.out.stem))
    print(' ', shlex.join([*tool('predict'), str(args.out), folder, str(made.images)]))


if __name__ == '__main__':
    main()

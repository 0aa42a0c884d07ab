"""Writes a config that trains on your own data, for the layout of their folder.

    python tools/new_config.py --data FOLDER        # then: python tools/train.py config.py

The folder holds COCO annotations (also as Roboflow, CVAT and Label Studio export them), or images
and masks (in images/train and annotations/train, or as in ADE20K and MMSegmentation), or a folder
of images for each class in train/ and val/.
"""

import argparse

from mmhatnet import cli
from mmhatnet.errors import ConfigError
from mmhatnet.new_config import read_layout, render_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=cli.local_path, required=True, help='the folder of the data')
    parser.add_argument('--job', choices=['maskrcnn', 'retinanet', 'semfpn', 'imagenet'])
    parser.add_argument('--arch', choices=['tiny', 'small', 'medium', 'large'], default='tiny')
    parser.add_argument(
        '--out', type=cli.local_path, default='config.py', help='the config to write'
    )
    parser.add_argument('--classes', nargs='+', help='the names of the labels in masks, in order')
    parser.add_argument(
        '--split',
        action='store_true',
        help='divide a single file of annotations into NAME_train.json and NAME_val.json beside it',
    )
    return parser.parse_args()


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    if args.out.exists():
        raise ConfigError(f'{args.out} exists already: name another file with --out.')
    found = read_layout(args.data, args.job, names=args.classes, split=args.split)
    text = render_config(found, args.data, args.arch)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding='utf-8')
    print(f'{args.out} trains {found["job"]} on {args.data}: python tools/train.py {args.out}')


if __name__ == '__main__':
    main()

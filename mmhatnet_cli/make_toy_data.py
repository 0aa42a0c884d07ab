"""Writes small synthetic data in the layouts of COCO, ADE20K and ImageNet.

    FOLDER/coco/{annotations,train2017,val2017}                    objects with boxes and masks
    FOLDER/ade/ADEChallengeData2016/{images,annotations}/{training,validation}   labeled scenes
    FOLDER/imagenet/{train,val}/WNID                               one object per image

The same seed writes the same bytes with the same versions of NumPy, OpenCV and Pillow. The first
images do not depend on how many are written.
"""

import argparse

from mmhatnet_cli.options import at_least, local_path

DEFAULT_COUNTS = dict(coco=[400, 50], ade=[200, 40], imagenet=[100, 25])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'folder', nargs='?', type=local_path, default='data/toy', help='the folder to write'
    )
    parser.add_argument('--seed', type=at_least(0), default=0, help='the seed of all choices')
    for name, counts in DEFAULT_COUNTS.items():
        parser.add_argument(
            f'--{name}',
            nargs=2,
            type=at_least(0),
            default=counts,
            metavar=('TRAIN', 'VAL'),
            help='numbers of images' + ' of each class' * (name == 'imagenet'),
        )


def run(args: argparse.Namespace) -> None:
    from mmhatnet.synthetic_data import make_toy_data

    counts = {name: getattr(args, name) for name in DEFAULT_COUNTS}
    made = make_toy_data(args.folder, args.seed, counts)
    print(f"The synthetic data {'is' if made else 'was already'} in '{args.folder}'.")

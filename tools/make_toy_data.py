"""Writes three small synthetic datasets in the folder layouts that OpenMMLab's datasets read.

    FOLDER/coco/{annotations,train2017,val2017}                    objects with boxes and masks
    FOLDER/ade/ADEChallengeData2016/{images,annotations}/{training,validation}   labeled scenes
    FOLDER/imagenet/{train,val}/WNID                               one object per image

The same seed writes the same bytes with the same versions of NumPy, OpenCV and Pillow. The first
images do not depend on how many are written.
"""

import argparse

from mmhatnet import cli
from mmhatnet.synthetic_data import DEFAULT_COUNTS, make_toy_data


@cli.exit_on_error()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        'folder', nargs='?', type=cli.local_path, default='data/toy', help='the folder to write'
    )
    parser.add_argument('--seed', type=int, default=0, help='the seed of all random choices')
    for name, counts in DEFAULT_COUNTS.items():
        option = dict(
            nargs=2, metavar=('TRAIN', 'VAL'), help='numbers of images; for ImageNet, of each class'
        )
        parser.add_argument(f'--{name}', type=int, default=counts, **option)
    args = parser.parse_args(argv)
    counts = {name: getattr(args, name) for name in DEFAULT_COUNTS}
    if (least := min(args.seed, *(number for pair in counts.values() for number in pair))) < 0:
        parser.error(f'the seed or a number of images is {least}; give 0 or more')
    made = make_toy_data(args.folder, args.seed, counts)
    print(f"The synthetic data {'is' if made else 'was already'} in '{args.folder}'.")


if __name__ == '__main__':
    main()

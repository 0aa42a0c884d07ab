"""Predicts images and videos: visualizes boxes, masks, label maps or classes, and writes JSON.

For detectors, predictions.json holds results in COCO format, and images.json the images and
categories that their ids refer to. Segmentors write a label map of each image, a PNG file of class
numbers. The frames of a video are images in a folder of its name; their visualization is a video.
"""

import argparse

from mmhatnet import cli
from mmhatnet.inference import build_inferencer, find_images
from mmhatnet.prediction import write_predictions


def parse_args() -> argparse.Namespace:
    parser = cli.inference_parser(__doc__)
    parser.add_argument(
        'images', nargs='+', help='images and videos: files, folders, or patterns like "*.jpg"'
    )
    parser.add_argument('--out-dir', default='work_dirs/predictions', help='default: %(default)s')
    parser.add_argument(
        '--batch-size', type=int, default=1, help='the number of images in a batch, all of one size'
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='the minimum score of boxes; 0 for all (default: 0.3)',
    )
    parser.add_argument(
        '--ann-file', help='COCO annotations of these images, for their ids in the results'
    )
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f'--batch-size {args.batch_size} must be at least 1')
    return args


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    cfg, device = cli.load_config(args), cli.find_device(args.device)
    cli.require_writable('--out-dir', args.out_dir)
    inferencer = build_inferencer(cfg, args.checkpoint, device)
    sizes = find_images(args.images, videos=True)
    options = args.out_dir, args.batch_size, args.score_thr, args.ann_file
    write_predictions(inferencer, cfg.default_scope, sizes, *options)
    print(f'{len(sizes)} images: predictions.json and drawn/ in {args.out_dir}')


if __name__ == '__main__':
    main()

"""Predicts images and videos: visualizes boxes, masks, label maps or classes, and writes JSON.

For detectors, predictions.json holds results in COCO format, and images.json the images and
categories that their ids refer to. Segmentors write a label map of each image, a PNG file of class
numbers. The frames of a video are images in a folder of its name; their visualization is a video.

Results are recorded as they come. The same command goes on where an earlier one was ended. Images
that cannot be predicted are listed in failed.json, and the exit status is then not 0.
"""

import argparse

from mmhatnet import cli
from mmhatnet.errors import ConfigError
from mmhatnet.inference import build_inferencer, find_images
from mmhatnet.prediction import write_predictions
from mmhatnet.prediction.processes import default_workers, joined_processes


def parse_args() -> argparse.Namespace:
    parser = cli.inference_parser(__doc__)
    parser.add_argument(
        'images',
        type=cli.path,
        nargs='+',
        help='images and videos: files, folders, or patterns like "*.jpg"',
    )
    parser.add_argument(
        '--out-dir',
        type=cli.path,
        default='work_dirs/predictions',
        help='default: %(default)s',
    )
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
        '--ann-file',
        type=cli.path,
        help='COCO annotations of these images, for their ids in the results',
    )
    parser.add_argument('--no-drawn', action='store_true', help='write no visualizations')
    parser.add_argument(
        '--num-workers',
        type=int,
        default=default_workers(),
        help='the number of processes that load images for each that predicts (default: up to 4)',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='start anew where an earlier prediction into --out-dir did not finish',
    )
    # With the usual name of its value, load_config would prepare a training on GPUs.
    parser.add_argument(
        '--launcher',
        dest='started_by',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='how the processes that share the images are started',
    )
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f'--batch-size {args.batch_size} must be at least 1')
    if args.num_workers < 0:
        parser.error(f'--num-workers {args.num_workers} must be at least 0')
    return args


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    if args.ann_file and cfg.default_scope != 'mmdet':
        raise ConfigError('--ann-file: only the results of detectors have ids; omit the option.')
    cli.require_writable('--out-dir', args.out_dir)
    paths = find_images(args.images, videos=True)
    with joined_processes(args.started_by) as gpu:
        inferencer = build_inferencer(cfg, args.checkpoint, cli.find_device(args.device or gpu))
        number = write_predictions(
            *(inferencer, cfg, paths, args.out_dir, args.batch_size, args.score_thr),
            *(args.ann_file, not args.no_drawn, args.num_workers, args.overwrite),
        )
    if number is not None:
        files = 'predictions.json' if args.no_drawn else 'predictions.json and drawn/'
        print(f'{number:,} images: {files} in {args.out_dir}')


if __name__ == '__main__':
    main()

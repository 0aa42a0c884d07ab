"""Predicts images and videos, writes JSON, and visualizes what it finds.

For detectors, predictions.json holds results in COCO format, and images.json the images and
categories that their ids refer to. Segmentors write a label map of each image, a PNG file of class
numbers. The frames of a video are images in a folder of its name; their visualization is a video.

Results are recorded as they come. The same command goes on where an earlier one was ended. Images
that cannot be predicted are listed in failed.json, and the exit status is then not 0.
"""

import argparse

from mmhatnet_cli.options import add_inference_arguments, at_least, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_inference_arguments(parser)
    parser.add_argument(
        'images',
        type=path,
        nargs='+',
        help='images and videos: files, folders, or patterns like "*.jpg"',
    )
    parser.add_argument(
        '--out-dir',
        type=path,
        default='work_dirs/predictions',
        help='folder of the results',
    )
    parser.add_argument(
        '--batch-size',
        type=at_least(1),
        default=1,
        help='the number of images in a batch, all of one size',
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='the minimum score of boxes; 0 for all'
    )
    parser.add_argument(
        '--ann-file',
        type=path,
        help='COCO annotations of these images, for their ids in the results (default: images are '
        'numbered)',
    )
    parser.add_argument(
        '--no-drawn',
        action='store_true',
        help='write no visualizations (default: they are written)',
    )
    parser.add_argument(
        '--max-drawn',
        type=at_least(1),
        default=30,
        help='the most boxes that a visualization shows, those with the highest scores',
    )
    parser.add_argument(
        '--num-workers',
        type=at_least(0),
        help='the number of processes that load images for each that predicts (default: up to 4)',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='start anew where an earlier prediction into --out-dir did not finish (default: go '
        'on where it stopped)',
    )
    # With the usual name of its value, load_config would prepare a training on GPUs.
    parser.add_argument(
        '--launcher',
        dest='started_by',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='how the processes that share the images are started',
    )


def run(args: argparse.Namespace) -> None:
    from mmhatnet import cli
    from mmhatnet.errors import ConfigError
    from mmhatnet.inference import build_inferencer, find_images
    from mmhatnet.prediction import write_predictions
    from mmhatnet.prediction.processes import default_workers, joined_processes

    cfg = cli.load_config(args)
    if args.ann_file and cfg.default_scope != 'mmdet':
        raise ConfigError('--ann-file: only the results of detectors have ids; omit the option.')
    cli.require_writable('--out-dir', args.out_dir)
    paths = find_images(args.images, videos=True)
    workers = default_workers() if args.num_workers is None else args.num_workers
    with joined_processes(args.started_by) as gpu:
        inferencer = build_inferencer(cfg, args.checkpoint, cli.find_device(args.device or gpu))
        number = write_predictions(
            *(inferencer, cfg, paths, args.out_dir, args.batch_size, args.score_thr),
            *(args.ann_file, not args.no_drawn, workers, args.overwrite, args.max_drawn),
        )
    if number is not None:
        files = 'predictions.json' if args.no_drawn else 'predictions.json and drawn/'
        print(f'{number:,} images: {files} in {args.out_dir}')

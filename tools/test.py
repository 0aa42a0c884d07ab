"""Evaluates a checkpoint of MMDetection, MMSegmentation or MMPretrain, as the config says."""

import argparse
import copy
import os
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmhatnet import cli
from mmhatnet.checkpoint_files import load_weights_only
from mmhatnet.config_checks import build_errors_as_messages, require_complete
from mmhatnet.config_walk import datasets_of
from mmhatnet.errors import ConfigError
from mmhatnet.preflight.checkpoints import find_checkpoint, require_checkpoint, require_fitting

DEFAULT_TTA_MODELS = dict(
    mmdet=dict(
        type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    ),
    mmseg=dict(type='SegTTAModel'),
    mmpretrain=dict(type='AverageClsScoreTTA'),
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='the config of the job')
    parser.add_argument('checkpoint', help='the checkpoint to evaluate')
    cli.add_common_options(parser)
    parser.add_argument(
        '--out',
        help='where predictions are written: a .pkl file, or for MMSegmentation a folder of '
        'label maps',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for images with the predictions drawn')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a window stays open')
    parser.add_argument('--tta', action='store_true', help='augment and merge while testing')
    parser.add_argument(
        '--ignore-classes',
        action='store_true',
        help='test although the checkpoint was trained for other classes, or in another order',
    )
    return parser.parse_args()


def show_predictions(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ConfigError(f'--show and --show-dir: {args.config} has no visualization hook.')
    # The frameworks' own hooks name the same settings differently.
    hook['enable' if cfg.default_scope == 'mmpretrain' else 'draw'] = True
    hook.update(show=args.show, wait_time=args.wait_time)
    if args.show_dir:
        # MMDetection appends a relative folder to itself, image by image.
        folder = os.path.abspath(args.show_dir)
        if cfg.default_scope == 'mmseg':
            cfg.visualizer.save_dir = folder
            hook['interval'] = 1  # which the original package heeds in tests as well
        else:
            hook['test_out_dir' if cfg.default_scope == 'mmdet' else 'out_dir'] = folder


def evaluators(cfg: Config) -> list[ConfigDict]:
    """The test's evaluators, of which there may be one or several."""
    given = cfg.test_evaluator
    return list(given) if isinstance(given, (list, tuple)) else [given]


def augment_tests(cfg: Config) -> None:
    if cfg.default_scope == 'mmdet' and any('segm' in e.get('metric', []) for e in evaluators(cfg)):
        raise ConfigError(
            '--tta: MMDetection merges boxes and not masks; to test the boxes alone, add '
            '--cfg-options model.roi_head.mask_head=None test_evaluator.metric=bbox'
        )
    if 'tta_model' not in cfg:
        cfg.tta_model = DEFAULT_TTA_MODELS[cfg.default_scope]
    datasets = list(datasets_of(cfg, 'test'))
    if 'tta_pipeline' not in cfg:
        *transforms, pack = copy.deepcopy(datasets[0].pipeline)
        if cfg.default_scope == 'mmdet':
            pack.meta_keys = (*pack.meta_keys, 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
        cfg.tta_pipeline = [*transforms, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def write_predictions(cfg: Config, out: str) -> None:
    if cfg.default_scope == 'mmseg':
        for evaluator in evaluators(cfg):
            if evaluator.type.endswith('IoUMetric'):
                evaluator.update(output_dir=out, keep_results=True)
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {out}: the predictions are written to a .pkl or .pickle file.')
    dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
    cfg.test_evaluator = [*evaluators(cfg), dict(type=dump, out_file_path=out)]


def require_folders(cfg: Config, args: argparse.Namespace) -> None:
    if args.out and cfg.default_scope == 'mmseg':
        cli.require_writable('--out', args.out)
    elif args.out:
        if os.path.isdir(args.out):
            raise ConfigError(f'--out {args.out} is a folder: name a .pkl file.')
        cli.require_writable('--out', Path(args.out).parent)
    if args.show_dir:
        cli.require_writable('--show-dir', args.show_dir)


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    require_complete(cfg, 'test')
    args.checkpoint = find_checkpoint(args.checkpoint) or args.checkpoint
    require_checkpoint(args.checkpoint)
    require_folders(cfg, args)
    cli.require_sound_job(cfg, args, 'test')
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        show_predictions(cfg, args)
    if args.tta:
        augment_tests(cfg)
    if args.out:
        write_predictions(cfg, args.out)
    with load_weights_only(), build_errors_as_messages(cfg):
        runner = cli.build_runner(cfg, args, dump=False)
        metainfo = getattr(runner.test_loop.dataloader.dataset, 'metainfo', None)
        require_fitting(runner.model, args.checkpoint, None if args.ignore_classes else metainfo)
        runner.test()


if __name__ == '__main__':
    main()

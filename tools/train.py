"""Trains a model of MMDetection, MMSegmentation or MMPretrain, as the config says."""

import argparse

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmhatnet import cli
from mmhatnet.backbones.checkpoint import load_weights_only


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='the config of the job')
    cli.add_common_options(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on with a run: from the given checkpoint, or without one from the latest in the '
        'work folder',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the batch size over the config's auto_scale_lr",
    )
    return parser.parse_args()


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        asking = '--amp' if args.amp else f'The mixed precision of {args.config}'
        raise SystemExit(f'{asking} needs a GPU, and PyTorch finds none here.')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise SystemExit(
                f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size; give the '
                'batch size that its learning rate is for with --cfg-options '
                'auto_scale_lr.base_batch_size=N'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if cfg.get('load_from'):
        cli.require_checkpoint(cfg.load_from)


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    apply_options(cfg, args)
    cli.require_datasets(cfg, 'train', 'val')
    with load_weights_only():
        cli.require_pretrained(cfg)
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.train()


if __name__ == '__main__':
    main()

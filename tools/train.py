"""Trains a model of MMDetection, MMSegmentation or MMPretrain, as the config says."""

import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process

from mmhatnet import cli
from mmhatnet.checkpoints.loading import (
    find_checkpoint,
    read_pretrained,
    verify_checkpoint,
    verify_resumable,
)
from mmhatnet.checkpoints.safe_loader import Checkpoint, load_weights_only
from mmhatnet.config_checks import build_errors_as_messages, require_complete
from mmhatnet.errors import ConfigError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='the config of the job')
    cli.add_common_options(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume a run: from the given checkpoint, or by default from the latest in the '
        'work folder',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the batch size over the config's auto_scale_lr",
    )
    return parser.parse_args()


def apply_options(cfg: Config, args: argparse.Namespace) -> Checkpoint | None:
    """Applies the options to the config, and reads the checkpoint from which training starts."""
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        source = '--amp' if args.amp else f'The mixed precision of {args.config}'
        raise ConfigError(f'{source} needs a GPU, and PyTorch finds none here.')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ConfigError(
                f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size; set the '
                'batch size that its learning rate assumes with --cfg-options '
                'auto_scale_lr.base_batch_size=N'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = find_checkpoint(cfg.work_dir if args.resume == 'auto' else args.resume)
        if cfg.load_from is None and args.resume != 'auto':
            cfg.load_from = args.resume  # the error below names it
    if not cfg.get('load_from'):
        return None
    checkpoint = Checkpoint(cfg.load_from)
    if cfg.get('resume'):
        verify_resumable(checkpoint)
    return checkpoint


def report_earlier_training(cfg: Config) -> None:
    """Prints a note if there is nothing to resume, or if files may be overwritten."""
    earlier = sorted(path.name for path in Path(cfg.work_dir).glob('*.pth'))
    if cfg.get('resume') and not cfg.get('load_from'):
        print(
            f'There is nothing to resume in {cfg.work_dir}: the training starts from the beginning.'
        )
    elif earlier and not cfg.get('resume'):
        print(
            f'{cfg.work_dir} holds {", ".join(earlier)} of an earlier training. This one '
            'overwrites files of the same names: --resume continues the earlier one, --work-dir '
            'names another folder.'
        )


@cli.exit_on_error()
def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    require_complete(cfg, 'train', 'val')
    checkpoint = apply_options(cfg, args)
    cli.require_sound_job(cfg, args, 'train', 'val')
    with build_errors_as_messages(cfg):
        checkpoints = read_pretrained(cfg)
        if checkpoint:
            checkpoints.append(checkpoint)
    with load_weights_only(*checkpoints), build_errors_as_messages(cfg):
        if is_main_process():
            report_earlier_training(cfg)
        runner = cli.build_runner(cfg, args, dump=True)
        if checkpoint and cfg.get('resume'):
            # MMEngine skips weights that do not fit, and then fails on the optimizer state.
            verify_checkpoint(checkpoint, runner.model)
        runner.train()  # MMEngine loads the content read above, and calls its hooks.


if __name__ == '__main__':
    main()

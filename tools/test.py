"""Evaluates a checkpoint of MMDetection, MMSegmentation or MMPretrain, as the config says."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config

from mmhatnet import cli
from mmhatnet.checkpoints.folder import find_checkpoint
from mmhatnet.checkpoints.loading import verify_checkpoint
from mmhatnet.checkpoints.safe_loader import Checkpoint, load_weights_only
from mmhatnet.config_checks import build_errors_as_messages, require_complete
from mmhatnet.errors import ConfigError
from mmhatnet.evaluation import augment_tests, dump_predictions, show_predictions
from mmhatnet.openmmlab.output_files import separate_output_files
from mmhatnet.report import ReportHook


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', type=cli.path, help='the config of the job')
    parser.add_argument('checkpoint', type=cli.path, help='the checkpoint to evaluate')
    cli.add_common_options(parser)
    parser.add_argument(
        '--out',
        type=cli.path,
        help='where predictions are written: a .pkl file, or for MMSegmentation a folder of '
        'label maps',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir', type=cli.path, help='folder for visualizations of the predictions'
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a window stays open')
    parser.add_argument('--tta', action='store_true', help='use test-time augmentation')
    parser.add_argument(
        '--ignore-classes',
        action='store_true',
        help='test even if the checkpoint was trained for other classes or another order of them',
    )
    return parser.parse_args()


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
    with cli.Screen(args.verbose, cli.is_first_process(args.launcher), tables=True) as screen:
        test(args, screen)


def test(args: argparse.Namespace, screen: cli.Screen) -> None:
    cfg = cli.load_config(args)
    require_complete(cfg, 'test')
    checkpoint = Checkpoint(find_checkpoint(args.checkpoint) or args.checkpoint)
    require_folders(cfg, args)
    report = cli.require_sound_job(cfg, args, 'test')
    cfg.load_from = checkpoint.place
    if args.show or args.show_dir:
        show_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        augment_tests(cfg)
    if args.out:
        dump_predictions(cfg, args.out)
    with load_weights_only(checkpoint), build_errors_as_messages(cfg):
        runner = cli.build_runner(cfg, args, train=False, screen=screen)
        metainfo = getattr(runner.test_loop.dataloader.dataset, 'metainfo', None)
        verify_checkpoint(checkpoint, runner.model, None if args.ignore_classes else metainfo)
        separate_output_files(runner)
        if screen.first:
            runner.register_hook(
                cli.TestProgress(
                    screen,
                    lambda runner: cli.describe_job(runner, cfg, report, str(checkpoint), 'test'),
                )
            )
        if not args.no_report:
            runner.register_hook(ReportHook())
        runner.test()  # MMEngine loads the content read above, and calls its hooks.


if __name__ == '__main__':
    main()

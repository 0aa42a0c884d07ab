"""Evaluates a checkpoint as a config and the options of the command say."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config

from mmhatnet.checkpoints.folder import find_checkpoint
from mmhatnet.checkpoints.loading import verify_checkpoint
from mmhatnet.checkpoints.safe_loader import Checkpoint, load_weights_only
from mmhatnet.cli.job import (
    build_runner,
    is_first_process,
    load_config,
    require_sound_job,
    require_writable,
)
from mmhatnet.cli.overview import describe_job
from mmhatnet.cli.progress import TestProgress
from mmhatnet.cli.screen import Screen
from mmhatnet.config_checks import build_errors_as_messages, require_complete
from mmhatnet.errors import ConfigError
from mmhatnet.evaluation import augment_tests, dump_predictions, show_predictions
from mmhatnet.openmmlab.output_files import separate_output_files
from mmhatnet.report import ReportHook


def run_test(args: argparse.Namespace) -> None:
    """Evaluates a checkpoint.

    Args:
        args (argparse.Namespace): The arguments of the command.
    """
    with Screen(args.verbose, is_first_process(args.launcher), tables=True) as screen:
        _test(args, screen)


def _test(args: argparse.Namespace, screen: Screen) -> None:
    cfg = load_config(args)
    require_complete(cfg, 'test')
    checkpoint = Checkpoint(find_checkpoint(args.checkpoint) or args.checkpoint)
    _require_folders(cfg, args)
    report = require_sound_job(cfg, args, 'test')
    cfg.load_from = checkpoint.place
    if args.show or args.show_dir:
        show_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        augment_tests(cfg)
    if args.out:
        dump_predictions(cfg, args.out)
    with load_weights_only(checkpoint), build_errors_as_messages(cfg):
        runner = build_runner(cfg, args, train=False, screen=screen)
        metainfo = getattr(runner.test_loop.dataloader.dataset, 'metainfo', None)
        verify_checkpoint(checkpoint, runner.model, None if args.ignore_classes else metainfo)
        separate_output_files(runner)
        if screen.first:
            runner.register_hook(
                TestProgress(
                    screen,
                    lambda runner: describe_job(runner, cfg, report, str(checkpoint), 'test'),
                )
            )
        if not args.no_report:
            runner.register_hook(ReportHook())
        runner.test()  # MMEngine loads the content read above, and calls its hooks.


def _require_folders(cfg: Config, args: argparse.Namespace) -> None:
    if args.out and cfg.default_scope == 'mmseg':
        require_writable('--out', args.out)
    elif args.out:
        if os.path.isdir(args.out):
            raise ConfigError(f'--out {args.out} is a folder: name a .pkl file.')
        require_writable('--out', Path(args.out).parent)
    if args.show_dir:
        require_writable('--show-dir', args.show_dir)

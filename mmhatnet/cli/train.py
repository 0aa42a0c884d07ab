"""Trains a model as a config and the options of the command say."""

import argparse
import signal
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.runner import Runner
from torch import nn

from mmhatnet.checkpoints.folder import find_checkpoint, newest_first
from mmhatnet.checkpoints.loading import (
    read_pretrained,
    verify_checkpoint,
    verify_resumable,
    verify_start,
)
from mmhatnet.checkpoints.safe_loader import Checkpoint, load_weights_only
from mmhatnet.cli.job import build_runner, is_first_process, load_config, require_sound_job
from mmhatnet.cli.overview import describe_job, describe_resume
from mmhatnet.cli.progress import TrainingProgress
from mmhatnet.cli.screen import Screen
from mmhatnet.config_checks import build_errors_as_messages, require_complete
from mmhatnet.errors import ConfigError
from mmhatnet.report import ReportHook
from mmhatnet.trackers import find_trackers
from mmhatnet.training.hooks import Stopped
from mmhatnet.training.saving import full_disk_as_message
from mmhatnet.training.work_folder import WorkFolder
from mmhatnet_cli.calls import command_line


def run_training(args: argparse.Namespace) -> None:
    """Trains a model.

    Args:
        args (argparse.Namespace): The arguments of the command.

    Raises:
        SystemExit: If a signal stops it, with the exit status of shells.
    """
    with Screen(args.verbose, is_first_process(args.launcher)) as screen:
        _train(args, screen)


def _train(args: argparse.Namespace, screen: Screen) -> None:
    cfg = load_config(args)
    args.trackers = find_trackers(args.tracker)
    require_complete(cfg, 'train', 'val')
    apply_options(cfg, args)
    checkpoint = read_checkpoint(cfg, args.resume, print if screen.first else lambda text: None)
    report = require_sound_job(cfg, args, 'train', 'val')
    weights = None
    with build_errors_as_messages(cfg):
        checkpoints = [] if cfg.get('resume') else read_pretrained(cfg, checkpoint)
        if checkpoint:
            checkpoints.append(checkpoint)
        # An address is read when the processes are connected.
        late = checkpoint is not None and '://' in checkpoint.place
        if checkpoint and not late:
            weights = verify_weights(cfg, checkpoint, cfg.model)
    folder = WorkFolder(cfg.work_dir)
    with (
        load_weights_only(*checkpoints),
        build_errors_as_messages(cfg),
        full_disk_as_message(cfg.work_dir),
    ):
        if screen.first:
            report_earlier_training(cfg)
            folder.lock()
        runner = build_runner(cfg, args, train=True, start=checkpoint, screen=screen)
        if checkpoint and late:
            weights = verify_weights(cfg, checkpoint, runner.model)
        if screen.first:
            runner.register_hook(
                TrainingProgress(
                    screen,
                    lambda runner: describe_job(
                        runner, cfg, report, weights(runner) if weights else '', 'train', 'val'
                    ),
                )
            )
        if not args.no_report:
            runner.register_hook(ReportHook())
        # A training that is refused leaves the earlier one to be resumed.
        if not cfg.get('resume'):
            folder.start_anew()
        try:
            runner.train()  # MMEngine loads the content read above, and calls its hooks.
        except Stopped as stopped:
            if screen.first:
                print(
                    f'{signal.Signals(stopped.signal).name} stopped the training, and '
                    f'{stopped.checkpoint} holds all of it. It continues with: '
                    f'{resume_command(args)}'
                )
            raise SystemExit(128 + stopped.signal) from None
        finally:
            folder.unlock()


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    """Applies the options to the config."""
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


def read_checkpoint(
    cfg: Config, resume: str | None, say: Callable[[str], object]
) -> Checkpoint | None:
    """Reads the checkpoint from which training starts or resumes.

    Without a checkpoint to resume from, training starts as the config says.
    """
    checkpoint = None
    if resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from')):
        checkpoint = WorkFolder(cfg.work_dir).newest_readable(say)
        cfg.resume = checkpoint is not None
        if checkpoint:
            cfg.load_from = checkpoint.place
    elif resume is not None:
        cfg.resume, cfg.load_from = True, find_checkpoint(resume) or resume
    if checkpoint is None and cfg.get('load_from'):
        checkpoint = Checkpoint(cfg.load_from)
    if cfg.get('resume'):
        verify_resumable(checkpoint)
    elif resume is not None:
        say(
            f'There is nothing to resume in {cfg.work_dir}: the training starts from the beginning.'
        )
    return checkpoint


def report_earlier_training(cfg: Config) -> None:
    """Prints a note if files may be overwritten."""
    folder = Path(cfg.work_dir)
    earlier = sorted(path.name for path in folder.glob('*.pth'))
    if earlier and not cfg.get('resume'):
        # Without the file, --resume would continue this training.
        newest = next((f'--resume {path} continues it, ' for path in newest_first(folder)), '')
        print(
            f'{folder} holds {", ".join(earlier)} of an earlier training. This one overwrites '
            f'files of the same names: {newest}--work-dir names another folder.'
        )


def verify_weights(
    cfg: Config, checkpoint: Checkpoint, model: nn.Module | ConfigDict
) -> Callable[[Runner], str]:
    """Checks the weights with which training goes on or starts, and returns what describes them."""
    # MMEngine skips weights that do not fit. It fails on the optimizer state only then.
    if cfg.get('resume'):
        verify_checkpoint(checkpoint, model)
        return lambda runner: describe_resume(checkpoint, runner)
    start = verify_start(checkpoint, model)
    return lambda runner: start


def resume_command(args: argparse.Namespace) -> str:
    """Says how this training is resumed."""
    if args.launcher != 'none':  # Its own command line is not known.
        return 'the same command and --resume'
    words, kept = iter(args.words), []
    for word in words:
        if word.startswith('--res'):  # argparse accepts the beginning of an option
            following = next(words, '') if '=' not in word else ''
            kept += [following] if following.startswith('-') else []
        else:
            kept.append(word)
    return command_line('train', *kept, '--resume')

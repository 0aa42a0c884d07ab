"""Hooks that show the progress of a job, and its results."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from math import nan
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmhatnet.cli.overview import counted, relative
from mmhatnet.cli.screen import Screen
from mmhatnet_cli.calls import command_line

OF_SIZE = ('_s', '_m', '_l', '_s@1000', '_m@1000', '_l@1000')
MOST_METRICS, MOST_EPOCHS = 8, 50

Lines = Callable[[Runner], Iterable[tuple[str, str]]]


class _ProgressHook(Hook):
    """What the progress of training and of testing have in common.

    Args:
        screen (Screen): The screen.
        lines (Callable): Returns the lines of the overview, with their labels.
    """

    priority = 'VERY_LOW'  # after MMEngine's hooks, and before those that may validate first

    def __init__(self, screen: Screen, lines: Lines) -> None:
        self.screen = screen
        self.lines = lines

    def begin(self, runner: Runner) -> None:
        """Shows the overview, and the warnings before it."""
        self.began = time.monotonic()
        for label, text in self.lines(runner):
            self.screen.show(label, text)
        if self.screen.log_file:
            self.screen.show('log', _with_warnings(self.screen))
        self.screen.show_held()


class TrainingProgress(_ProgressHook):
    """Shows an overview, a line for each epoch or validation, and a summary.

    Of more epochs than MOST_EPOCHS, those that are validated are shown.
    """

    _finished = ''  # what the next line begins with

    def before_train(self, runner: Runner) -> None:
        self.begin(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        if runner.val_loop and runner.max_epochs > MOST_EPOCHS and loop.val_interval > 1:
            self._finished = ''
        self._show_epoch()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        loop, loss = runner.train_loop, _latest(runner, 'train/loss', 1)
        if isinstance(loop, EpochBasedTrainLoop):
            name, done, total = _epoch(runner), batch_idx + 1, len(loop.dataloader)
        else:
            name, done, total = 'training', runner.iter + 1, loop.max_iters
        left = runner.message_hub.runtime_info.get('eta')
        words = [f'{done:,} of {total:,}', loss]
        words += [f'{timedelta(seconds=int(left))} left'] if left is not None else []
        self.screen.advance(name, done, total, '  '.join(filter(None, words)))

    def after_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            loss = _latest(runner, 'train/loss', len(runner.train_dataloader))
            self._finished = f'{_epoch(runner)}  {loss}'.rstrip()

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        total = len(runner.val_dataloader)
        self.screen.advance('validation', batch_idx + 1, total, f'{batch_idx + 1:,} of {total:,}')

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if not self._finished and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            loop = runner.train_loop
            self._finished = f'iteration {loop.iter:,} of {loop.max_iters:,}'
        numbers = _numbers(metrics or {})
        shown = {
            name: text for name, text in numbers.items() if text and not name.endswith(OF_SIZE)
        }
        words = [f'{name} {text}' for name, text in list(shown.items())[:MOST_METRICS]]
        if more := len(shown) - len(words):
            words.append(f'and {more:,} more in the log')
        self._finished = '  '.join([self._finished or 'validation', *words])
        self._show_epoch()

    def after_train(self, runner: Runner) -> None:
        self._show_epoch()
        loop, show = runner.train_loop, self.screen.show
        took = timedelta(seconds=int(time.monotonic() - self.began))
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        done = counted(loop.epoch, 'epoch') if by_epoch else counted(loop.iter, 'iteration')
        early = ', stopped early by a hook: see the log' if loop.stop_training else ''
        show('done', f'{done} in {took}{early}')
        best, last = _checkpoints(runner)
        for metric, path in best.items():
            show('best', f'{relative(path)} ({metric})')
        if last:
            show('last', relative(last))
        if self.screen.log_file:
            show('log', _with_warnings(self.screen))
        if checkpoint := next(iter(best.values()), last):
            config = Path(runner.work_dir, Path(runner.cfg.filename or 'CONFIG').name)
            show('next', command_line('test', relative(config), relative(checkpoint)))

    def _show_epoch(self) -> None:
        if self._finished:
            self.screen.show('', self._finished)
            self._finished = ''


class TestProgress(_ProgressHook):
    """Shows an overview, and the metrics at the end."""

    def before_test(self, runner: Runner) -> None:
        self.begin(runner)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        total = len(runner.test_dataloader)
        self.screen.advance('test', batch_idx + 1, total, f'{batch_idx + 1:,} of {total:,}')

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        numbers = _numbers(metrics or {})
        width = max(map(len, numbers), default=0)
        lines = [
            f'{name:{width}}  {text or "-1: there is no object " + _size(name)}'
            for name, text in numbers.items()
        ]
        if lines:
            self.screen.show('result', '\n'.join(lines))


def _checkpoints(runner: Runner) -> tuple[dict[str, str], str | None]:
    """Returns the best checkpoints by their metric and its value, and the last one."""
    hub, best = runner.message_hub.runtime_info, {}
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    metrics = getattr(hook, 'key_indicators', [])
    for metric in metrics:
        end = f'_{metric}' if metrics[1:] else ''
        if path := hub.get(f'best_ckpt{end}'):
            best[f'{metric} {hub.get(f"best_score{end}", nan):.4g}'] = path
    return best, hub.get('last_ckpt')


def _numbers(metrics: Mapping[str, object]) -> dict[str, str]:
    """Returns metrics as text; '' for those of COCO that there are no objects for."""
    return {
        name: '' if value == -1 and 'coco' in name else f'{value:.4g}'
        for name, value in metrics.items()
        if isinstance(value, Real)
    }


def _size(name: str) -> str:
    sizes = dict(
        zip(OF_SIZE, ('below 32 x 32 pixels', 'of medium size', 'above 96 x 96 pixels') * 2)
    )
    return next((text for end, text in sizes.items() if name.endswith(end)), 'to compare with')


def _epoch(runner: Runner) -> str:
    return f'epoch {runner.epoch + 1:,} of {runner.max_epochs:,}'


def _latest(runner: Runner, scalar: str, window: int) -> str:
    history = runner.message_hub.log_scalars.get(scalar)
    return f'loss {history.mean(window):.4g}' if history and history.data[0].size else ''


def _with_warnings(screen: Screen) -> str:
    hidden = f', with {counted(screen.hidden, "more warning")}' if screen.hidden else ''
    return f'{relative(screen.log_file or "")}{hidden}'

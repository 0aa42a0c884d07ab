"""Puts a report together and writes it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.hooks import LoggerHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmhatnet.report.curves import curves
from mmhatnet.report.page import render
from mmhatnet.report.parts import Section, Table, reason_of
from mmhatnet.report.settings import length_of, settings

if TYPE_CHECKING:
    from mmhatnet.report.hook import ReportHook


def write_report(
    hook: 'ReportHook', runner: Runner, path: Path, train: bool, started: float
) -> Path:
    """Writes the report of a job that has finished.

    Args:
        hook (ReportHook): What was kept of the last validation, or of the test.
        runner (Runner): The runner of the job.
        path (Path): The file.
        train (bool): Whether the job is a training.
        started (float): When it started, in seconds.

    Returns:
        Path: The file.
    """
    what = 'Training' if train else 'Test'
    name = Path(runner.cfg.filename or 'config').stem
    minutes = (time.time() - started) / 60
    taken = f'{minutes:.1f} minutes' if minutes < 90 else f'{minutes / 60:.1f} hours'
    loops = dict(train=runner.train_loop, val=runner.val_loop) if train else {}
    loops |= {} if train else dict(test=runner.test_loop)
    sections = [_part('Results', lambda: _measured(hook, runner, train))]
    if train:
        loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
        by_epoch = all(hook.log_metric_by_epoch for hook in loggers)
        folder, last = Path(runner.work_dir), runner.timestamp
        sections.append(_part('Training', lambda: curves(folder, last, by_epoch)))
    if hook.failure:
        sections[0].notes.append(f'The predictions could not be kept ({hook.failure}).')
    elif hook.collector is not None:
        sections[0].notes += [hook.note] * bool(hook.note)
        sections.append(_part('Predictions', hook.collector.section))
    tested = None if train else str(runner._load_from)
    sections.append(_part('Settings', lambda: settings(runner, loops, tested)))
    text = render(
        f'{what}: {name}',
        f'{time.strftime("%Y-%m-%d %H:%M")}; this run took {taken}',
        sections,
        runner.cfg.pretty_text,
    )
    partial = path.with_name(f'.{path.name}.partial')
    try:
        partial.write_text(text, encoding='utf-8')
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _part(title: str, make: Callable[[], Section]) -> Section:
    """Makes a part of the report. If that fails, the others are still of use."""
    try:
        return make()
    except Exception as error:
        return Section(title, notes=[f'This part could not be made ({reason_of(error)}).'])


def _measured(hook: 'ReportHook', runner: Runner, train: bool) -> Section:
    """Says what was measured on which data."""
    section = Section('Results')
    if not hook.metrics:
        section.notes.append(
            'This run had no validation, so there are no metrics.'
            if train
            else 'The test has no metrics.'
        )
        return section
    loop = runner.val_loop if train else runner.test_loop
    images = length_of(loop)
    if not train:
        section.notes.append(f'{runner._load_from}, measured on {images} of the test data.')
    else:
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        done = hook.measured['epoch' if by_epoch else 'iter']
        when = f'{"epoch" if by_epoch else "iteration"} {done:,}'
        section.notes.append(
            f'Measured by the last validation, after {when}, on {images} of the validation data. '
            'The best checkpoint may be an earlier one.'
        )
    found = ((key, _number(value)) for key, value in hook.metrics.items())
    values = [[str(key), value] for key, value in found if value is not None]
    section.tables.append(
        Table(
            'Metrics as logged',
            ['metric', 'value'],
            [[key, None if value == -1 else value] for key, value in values],
            'A dash means that there is nothing to measure, such as no object of this size.'
            if any(value == -1 for _, value in values)
            else '',
        )
    )
    return section


def _number(value: Any) -> float | None:
    """Returns a metric as a number, or None if it is none, such as a text or an array."""
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return None

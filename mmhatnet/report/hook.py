"""Writes the report when a training or a test has finished."""

import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.dist import collect_results, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop

from mmhatnet.errors import printable
from mmhatnet.report.parts import reason_of

NAME = 'report.html'
# The metrics from which predictions are taken, and the classes that keep them.
COLLECTORS = dict(
    CocoMetric='detection.DetectionCollector',
    IoUMetric='segmentation.SegmentationCollector',
    Accuracy='classification.ClassificationCollector',
    SingleLabelMetric='classification.ClassificationCollector',
)


class ReportHook(Hook):
    """Keeps the predictions of the last validation or of the test, and writes ``report.html``.

    The model predicts nothing for the report alone. Whatever goes wrong with the report is told in
    one line, and the job goes on.

    Attributes:
        path (Path | None): The report, once it is written.
        collector (Collector | None): The predictions, if one knows the metric.
        failure (str): Why they could not be kept.
        note (str): Of which data they are.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.path: Path | None = None
        self.collector: Any = None
        self.metrics: dict[str, float] = {}
        self.measured: dict[str, int] = {}
        self.failure = ''
        self.note = ''
        self._started = time.time()

    def before_train(self, runner: Runner) -> None:
        """Notes when the training starts."""
        self._started = time.time()

    def before_val_epoch(self, runner: Runner) -> None:
        """Forgets the predictions of the validation before."""
        self._start(runner.val_loop)

    def before_test_epoch(self, runner: Runner) -> None:
        """Notes when the test starts."""
        self._started = time.time()
        self._start(runner.test_loop)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keeps the predictions of a batch."""
        self._add(outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keeps the predictions of a batch."""
        self._add(outputs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keeps the metrics."""
        self.metrics = dict(metrics or {})
        self.measured = dict(epoch=runner.epoch, iter=runner.iter)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keeps the metrics."""
        self.metrics = dict(metrics or {})

    def after_train(self, runner: Runner) -> None:
        """Writes the report to the work folder."""
        self._write(runner, Path(runner.work_dir), train=True)

    def after_test(self, runner: Runner) -> None:
        """Writes the report to the folder of the logs of the test."""
        self._write(runner, Path(runner.log_dir), train=False)

    def _start(self, loop: BaseLoop) -> None:
        self.collector, self.failure, self.note = None, '', ''
        try:
            metrics, size = loop.evaluator.metrics, len(loop.dataloader.dataset)
            if names := getattr(loop.evaluator, 'dataset_prefixes', None):
                # Each dataset of a ConcatDataset has a metric of its own.
                metrics, size = metrics[:1], loop.dataloader.dataset.cumulative_sizes[0]
                self.note = f'All that follows is measured on the first dataset, {names[0]}.'
            for metric in metrics:
                for base in type(metric).__mro__:
                    if self.collector is None and base.__name__ in COLLECTORS:
                        module, _, name = COLLECTORS[base.__name__].partition('.')
                        found = getattr(import_module(f'mmhatnet.report.{module}'), name)
                        self.collector = found(metric, size)
        except Exception as error:
            self._fail(error)

    def _add(self, samples: Sequence[Any]) -> None:
        if self.collector is not None:
            try:
                self.collector.add_batch(samples)
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.collector, self.failure = None, reason_of(error)

    def _write(self, runner: Runner, folder: Path, train: bool) -> None:
        try:
            # All processes take part, also one in which something has failed.
            state = self.failure or (self.collector.state() if self.collector else None)
            states = collect_results([state], get_world_size(), 'cpu')
            if is_main_process():
                self.failure = next((state for state in states if isinstance(state, str)), '')
                if self.collector is not None and not self.failure:
                    self.collector.merge(states)
                from mmhatnet.report.writing import write_report  # which imports Matplotlib

                self.path = write_report(self, runner, folder / NAME, train, self._started)
                _say(f'report   {_shown(self.path)}')  # a line like those of the screen
        except Exception as error:  # nothing may fail a job that has finished
            what, file = 'training' if train else 'test', folder / NAME
            _say(f'The {what} has finished, but {file} could not be written ({reason_of(error)}).')


def _shown(path: Path) -> Path:
    try:
        return path.relative_to(Path.cwd())
    except (OSError, ValueError):  # the folder is gone, or the file is not below it
        return path


def _say(line: str) -> None:
    """Prints a line, also where the output cannot show all its letters."""
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    print(printable(line).encode(encoding, 'backslashreplace').decode(encoding))

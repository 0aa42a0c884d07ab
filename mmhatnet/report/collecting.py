"""Keeps the predictions of a validation or a test for its report, in bounded memory."""

import heapq
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.evaluator import BaseMetric

from mmhatnet.report.parts import Section

EXAMPLES = 6  # in each gallery


class Collector(ABC):
    """Keeps the predictions of one validation or test.

    Args:
        metric (BaseMetric): The metric that measures it.
        size (int): The number of images.
    """

    def __init__(self, metric: BaseMetric, size: int) -> None:
        self.metric = metric
        self.size = size
        meta = metric.dataset_meta or {}
        # Of several datasets, the first is measured.
        self.meta: dict[str, Any] = meta[0] if isinstance(meta, (list, tuple)) else meta
        self.classes = [str(name) for name in self.meta.get('classes') or []]
        self.seen = 0
        self.chosen = self.choose(EXAMPLES)

    def choose(self, count: int) -> set[int]:
        """Chooses images by chance, the same ones in each process and each time."""
        return set(random.Random(0).sample(range(self.size), min(count, self.size)))

    def add_batch(self, samples: Sequence[Any]) -> None:
        """Adds the predictions of a batch, which the metric has processed.

        The images are dealt out to the processes in turn. As in ``collect_results``, those beyond
        the number of images are left out: they fill up the last batches, or MMPretrain's EMAHook
        predicts all images once more with the other parameters.

        Args:
            samples (Sequence[BaseDataElement]): The data samples with predictions.
        """
        for sample in samples:
            position = self.seen * get_world_size() + get_rank()
            self.seen += 1
            if position < self.size:
                self.add(position, sample)

    @abstractmethod
    def add(self, position: int, sample: Any) -> None:
        """Adds the prediction of an image, of which the position in the data is given."""

    @abstractmethod
    def state(self) -> Any:
        """Returns what this process has kept, for another process."""

    @abstractmethod
    def merge(self, states: Sequence[Any]) -> None:
        """Takes over what all processes have kept."""

    @abstractmethod
    def section(self) -> Section:
        """Returns the part of the report on what has been measured."""


class Worst:
    """Keeps the examples with the lowest scores, at most as many as a gallery shows."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Any]] = []

    def wants(self, score: float) -> bool:
        """Returns whether an example with this score would be kept."""
        return len(self._heap) < EXAMPLES or score < -self._heap[0][0]

    def add(self, score: float, position: int, example: Any) -> None:
        """Adds an example. Positions differ."""
        entry = (-score, -position, example)
        (heapq.heappush if len(self._heap) < EXAMPLES else heapq.heappushpop)(self._heap, entry)

    def examples(self) -> list[tuple[float, int, Any]]:
        """Returns the score, the position and the example of each, the lowest score first."""
        return sorted(
            ((-score, -position, example) for score, position, example in self._heap),
            key=lambda entry: entry[:2],
        )

    def merge(self, others: Iterable[list[tuple[float, int, Any]]]) -> None:
        """Takes over the examples of all processes."""
        self._heap = []
        for examples in others:
            for score, position, example in examples:
                self.add(score, position, example)

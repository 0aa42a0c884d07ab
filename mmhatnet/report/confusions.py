"""How often a true class is predicted as another."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Sums(NamedTuple):
    """Counts of each class, (classes,)."""

    right: np.ndarray
    true: np.ndarray
    predicted: np.ndarray


class Confusions:
    """Counts pairs of a true and a predicted class.

    Pairs that do not occur need no memory. A matrix of 20,000 classes would need 3 GB.
    """

    def __init__(self) -> None:
        self.pairs: Counter[tuple[int, int]] = Counter()

    @property
    def total(self) -> int:
        """The number of all pairs."""
        return self.pairs.total()

    @property
    def classes(self) -> int:
        """One more than the highest class."""
        return max((max(pair) for pair in self.pairs), default=-1) + 1

    def add(self, true: Sequence[int], predicted: Sequence[int], numbers: Sequence[int]) -> None:
        """Adds pairs, each as often as its number says."""
        for *pair, number in zip(true, predicted, numbers):
            self.pairs[tuple(pair)] += number

    def merge(self, others: Iterable['Confusions']) -> None:
        """Takes over the counts of all processes."""
        pairs: Counter[tuple[int, int]] = Counter()
        for other in others:
            pairs.update(other.pairs)
        self.pairs = pairs

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the true class, the predicted class and the number of each pair."""
        entries = [(*pair, number) for pair, number in self.pairs.items()]
        true, predicted, numbers = np.array(entries, np.int64).reshape(-1, 3).T
        return true, predicted, numbers

    def sums(self, count: int) -> Sums:
        """Returns how often each of so many classes is right, true and predicted."""
        return sums(*self.arrays(), count)

    def matrix(self, count: int) -> np.ndarray:
        """Returns the counts (true class, predicted class)."""
        true, predicted, numbers = self.arrays()
        matrix = np.zeros((count, count), np.int64)
        matrix[true, predicted] = numbers
        return matrix

    def mistakes(self, most: int) -> list[tuple[int, int, int]]:
        """Returns the most frequent mistakes: true class, predicted class and number."""
        wrong = [(-n, true, predicted) for (true, predicted), n in self.pairs.items() if n]
        wrong = sorted(entry for entry in wrong if entry[1] != entry[2])
        return [(true, predicted, -n) for n, true, predicted in wrong[:most]]


def sums(true: np.ndarray, predicted: np.ndarray, numbers: np.ndarray, count: int) -> Sums:
    """Returns how often each of so many classes is right, true and predicted, from pairs."""
    right = np.where(true == predicted, numbers, 0)
    of_pairs = ((true, right), (true, numbers), (predicted, numbers))
    return Sums(*(np.bincount(c, weights, count).astype(np.int64) for c, weights in of_pairs))

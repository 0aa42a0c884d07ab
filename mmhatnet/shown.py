"""Limits how many detections are drawn into an image, and says what is left out."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MOST_SHOWN = 30  # more boxes than that hide the image


def best_of(sample: Any, number: int) -> Any:
    """Returns a prediction with its best detections alone, in their order.

    Args:
        sample (DetDataSample): The prediction. It is not modified.
        number (int): The number of detections to keep.
    """
    found = sample.pred_instances
    if len(found) <= number:
        return sample
    best = found.scores.argsort(descending=True, stable=True)[:number].sort().values
    sample = copy.copy(sample)
    sample.pred_instances = found[best]
    return sample


def highest_score(sample: Any) -> float | None:
    """Returns the highest score of the detections of an image, or None if there are none."""
    scores = sample.pred_instances.scores
    return float(scores.max()) if len(scores) else None


@dataclass
class Tally:
    """Counts the detections of all images.

    Attributes:
        images (int): The number of images.
        found (int): The number of detections above the threshold.
        crowded (int): The number of images with more detections than are drawn.
        left_out (int): The number of detections that are not drawn.
        highest (float | None): The highest score, also below the threshold; None without
            detections.
    """

    images: int = 0
    found: int = 0
    crowded: int = 0
    left_out: int = 0
    highest: float | None = None

    def add(self, found: int, highest: float | None, most: int) -> None:
        """Counts an image.

        Args:
            found (int): The number of detections above the threshold.
            highest (float | None): The highest score of all detections.
            most (int): The number of detections that are drawn at most.
        """
        left_out = max(found - most, 0)
        self.merge([Tally(1, found, int(left_out > 0), left_out, highest)])

    def merge(self, others: Iterable['Tally']) -> 'Tally':
        """Adds what others have counted, and returns itself."""
        for other in others:
            self.images += other.images
            self.found += other.found
            self.crowded += other.crowded
            self.left_out += other.left_out
            scores = [score for score in (self.highest, other.highest) if score is not None]
            self.highest = max(scores, default=None)
        return self

    def nothing_found(self, threshold: str) -> str:
        """Returns a line if no detection is above the threshold, or else an empty text.

        Args:
            threshold (str): The threshold, with the name of its setting.
        """
        if self.found or not self.images:
            return ''
        if self.highest is None:
            return (
                'The model returns no detection for any image: all scores are below the score_thr '
                'of its test_cfg. Train longer.'
            )
        return (
            f'No detection has a score above {threshold}: the highest is {self.highest:.4f}. '
            'Train longer, or lower the threshold.'
        )

    def too_many(self, most: int) -> str:
        """Returns a line if not all detections are drawn, or else an empty text.

        Args:
            most (int): The number of detections that are drawn at most.
        """
        if not self.left_out:
            return ''
        return (
            f'Only the {most} best detections of an image are drawn: {self.left_out:,} more, in '
            f'{self.crowded:,} of {self.images:,} images, are not.'
        )

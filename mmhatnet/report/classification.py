"""The part of a report on a classifier."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmpretrain.evaluation import ConfusionMatrix

from mmhatnet.report.collecting import Collector, Worst
from mmhatnet.report.drawing import confusion_chart, read, table_of_mistakes, view
from mmhatnet.report.parts import Example, Gallery, Section, Table, lowest_first, readable


class ClassificationCollector(Collector):
    """Counts what a classifier confuses, and keeps its most confident mistakes."""

    def __init__(self, metric: BaseMetric, size: int) -> None:
        super().__init__(metric, size)
        self.matrix = np.zeros((0, 0), np.int64)
        self.mistakes = Worst()
        self.random: dict[int, tuple] = {}

    def add(self, position: int, sample: Any) -> None:
        """Adds the prediction of an image."""
        if 'gt_label' not in sample or len(sample.gt_label) != 1:
            return  # no truth, or several labels
        scores, truth = sample.get('pred_score'), int(sample.gt_label[0])
        label = int(sample.pred_label[0] if scores is None else scores.argmax())
        count = max(len(self.classes), 0 if scores is None else len(scores), truth + 1, label + 1)
        if count > len(self.matrix):
            grown = np.zeros((count, count), np.int64)
            grown[: len(self.matrix), : len(self.matrix)] = self.matrix
            self.matrix = grown
        self.matrix += ConfusionMatrix.calculate([label], [truth], num_classes=count).numpy()
        score = 1.0 if scores is None else float(scores[label])
        of_truth = 0.0 if scores is None else float(scores[truth])
        example = (str(sample.get('img_path', '')), truth, label, score, of_truth)
        if position in self.chosen:
            self.random[position] = example
        if truth != label and self.mistakes.wants(-score):
            self.mistakes.add(-score, position, example)

    def state(self) -> Any:
        return self.matrix, self.mistakes.examples(), self.random

    def merge(self, states: Sequence[Any]) -> None:
        matrices, mistakes, chosen = zip(*states)
        count = max(map(len, matrices))
        self.matrix = np.zeros((count, count), np.int64)
        for matrix in matrices:
            self.matrix[: len(matrix), : len(matrix)] += matrix
        self.mistakes.merge(mistakes)
        self.random = {key: value for part in chosen for key, value in part.items()}

    def section(self) -> Section:
        section, matrix = Section('Classes'), self.matrix
        if not matrix.sum():
            section.notes.append(
                'There is no confusion matrix: no image has exactly one true class.'
            )
            return section
        names = [*self.classes, *(f'class {i}' for i in range(len(self.classes), len(matrix)))]
        right, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        with np.errstate(invalid='ignore', divide='ignore'):
            recall, precision = right / true, right / predicted
            f1 = 2 * right / (true + predicted)
        section.figures = [
            ('accuracy', f'{right.sum() / matrix.sum():.1%}'),
            ('mean recall of the classes', f'{np.nanmean(recall):.1%}'),
            ('images', f'{matrix.sum():,}'),
        ]
        section.charts.append(
            confusion_chart(matrix, names, f'{matrix.sum():,} images, by the highest score.')
        )
        section.tables = [
            Table(
                'Classes',
                ['class', 'images', 'recall', 'precision', 'F1'],
                lowest_first(
                    [
                        [name, int(count), *map(float, values)]
                        for name, count, *values in zip(names, true, recall, precision, f1)
                    ],
                    2,
                ),
                'The lowest recall comes first. Recall is the share of the images of a class that '
                'are predicted as it, which some call the accuracy of the class. Precision is the '
                'share of right ones among those predicted as it.',
            ),
            table_of_mistakes(matrix, names, 'images'),
        ]
        section.galleries = [
            Gallery(
                'The most confident mistakes',
                [self._example(example, names) for _, _, example in self.mistakes.examples()],
            ),
            Gallery(
                'Typical images',
                [self._example(self.random[key], names) for key in sorted(self.random)],
                'They are chosen by chance.',
            ),
        ]
        return section

    def _example(self, example: tuple, names: list[str]) -> Example:
        path, truth, label, score, of_truth = example
        loaded = read(path, 420)
        note = f'✓ {names[truth]}, score {readable(score, 2)}'
        if truth != label:
            note = (
                f'✗ predicted {names[label]}, score {readable(score, 2)}; it is {names[truth]}, '
                f'score {readable(of_truth, 2)}'
            )
        return Example(path, note, [('image', view(*loaded))] if loaded else [])

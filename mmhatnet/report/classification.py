"""The part of a report on a classifier."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmhatnet.report.collecting import Collector, Worst
from mmhatnet.report.confusions import Confusions
from mmhatnet.report.drawing import add_confusions, read, view
from mmhatnet.report.parts import Example, Gallery, Section, Table, lowest_first, readable


class ClassificationCollector(Collector):
    """Counts what a classifier confuses, and keeps its most confident mistakes."""

    def __init__(self, metric: BaseMetric, size: int) -> None:
        super().__init__(metric, size)
        self.confusions = Confusions()
        self.mistakes = Worst()
        self.random: dict[int, tuple] = {}

    def add(self, position: int, sample: Any) -> None:
        """Adds the prediction of an image."""
        if 'gt_label' not in sample or len(sample.gt_label) != 1:
            return  # no truth, or several labels
        scores, truth = sample.get('pred_score'), int(sample.gt_label[0])
        label = int(sample.pred_label[0] if scores is None else scores.argmax())
        self.confusions.add([truth], [label], [1])
        score = 1.0 if scores is None else float(scores[label])
        of_truth = 0.0 if scores is None else float(scores[truth])
        example = (str(sample.get('img_path', '')), truth, label, score, of_truth)
        if position in self.chosen:
            self.random[position] = example
        if truth != label and self.mistakes.wants(-score):
            self.mistakes.add(-score, position, example)

    def state(self) -> Any:
        return self.confusions, self.mistakes.examples(), self.random

    def merge(self, states: Sequence[Any]) -> None:
        confusions, mistakes, chosen = zip(*states)
        self.confusions.merge(confusions)
        self.mistakes.merge(mistakes)
        self.random = {key: value for part in chosen for key, value in part.items()}

    def section(self) -> Section:
        section, total = Section('Classes'), self.confusions.total
        if not total:
            section.notes.append(
                'There is no confusion matrix: no image has exactly one true class.'
            )
            return section
        count = max(len(self.classes), self.confusions.classes)
        names = [*self.classes, *(f'class {i}' for i in range(len(self.classes), count))]
        right, true, predicted = self.confusions.sums(count)
        with np.errstate(invalid='ignore', divide='ignore'):
            recall, precision = right / true, right / predicted
            f1 = 2 * right / (true + predicted)
        section.figures = [
            ('accuracy', f'{right.sum() / total:.1%}'),
            ('mean recall of the classes', f'{np.nanmean(recall):.1%}'),
            ('images', f'{total:,}'),
        ]
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
        ]
        note = f'{total:,} images, by the highest score.'
        add_confusions(section, self.confusions, names, note)
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

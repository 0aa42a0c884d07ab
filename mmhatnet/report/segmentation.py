"""The part of a report on a segmentor."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from mmhatnet.report.collecting import Collector, Worst
from mmhatnet.report.confusions import Confusions, sums
from mmhatnet.report.drawing import add_confusions, colors_of, css, read, view
from mmhatnet.report.parts import Example, Gallery, Section, Table, lowest_first

SIDE = 420  # pixels, of the label maps that are kept
NAMED = 10  # classes in the legend of an image
IGNORED = -1
DENSE = 1000  # classes whose pairs are counted all at once, also those that do not occur


class SegmentationCollector(Collector):
    """Counts which classes the pixels are taken for, and keeps the worst images."""

    def __init__(self, metric: BaseMetric, size: int) -> None:
        super().__init__(metric, size)
        count = len(self.classes)
        self.confusions = Confusions()
        # Pixels whose true class is none of the model's. The metric counts them as predicted.
        self.outside = np.zeros(count, np.int64)
        self.images = 0
        self.worst = Worst()
        self.random: dict[int, tuple] = {}

    def add(self, position: int, sample: Any) -> None:
        """Adds the prediction of an image."""
        if 'gt_sem_seg' not in sample or self.metric.format_only:
            return
        predicted = sample.pred_sem_seg.data.squeeze(0).long()
        truth = sample.gt_sem_seg.data.squeeze(0).to(predicted)
        count = len(self.classes)
        valid = truth != self.metric.ignore_index
        inside = valid & (truth >= 0) & (truth < count)
        pairs = count * truth[inside] + predicted[inside]
        if count <= DENSE:
            numbers = torch.bincount(pairs)
            pairs = numbers.nonzero()[:, 0]
            numbers = numbers[pairs]
        else:
            pairs, numbers = pairs.unique(return_counts=True)
        pairs, numbers = pairs.cpu().numpy(), numbers.cpu().numpy()
        pairs = (pairs // count, pairs % count)
        self.confusions.add(*(part.tolist() for part in (*pairs, numbers)))
        self.outside += torch.bincount(predicted[valid & ~inside], minlength=count).cpu().numpy()
        self.images += 1
        right, true, found = sums(*pairs, numbers, count)
        present = true > 0
        # An image in which nothing counts is neither good nor bad.
        iou = right[present] / (true + found - right)[present]
        score = float(iou.mean()) if present.any() else 1.0
        wanted = self.worst.wants(score) and present.any()
        if not wanted and position not in self.chosen:
            return
        step = -(-max(truth.shape) // SIDE)
        kept = [labels[::step, ::step].cpu().numpy().astype(np.int16)
                for labels in (truth.where(inside, IGNORED), predicted)]  # fmt: skip
        example = (str(sample.get('img_path', '')), score, *kept)
        if wanted:
            self.worst.add(score, position, example)
        if position in self.chosen:
            self.random[position] = example

    def state(self) -> Any:
        return self.confusions, self.outside, self.images, self.worst.examples(), self.random

    def merge(self, states: Sequence[Any]) -> None:
        confusions, outside, images, worst, chosen = zip(*states)
        self.confusions.merge(confusions)
        self.outside, self.images = sum(outside), sum(images)
        self.worst.merge(worst)
        self.random = {key: value for part in chosen for key, value in part.items()}

    def section(self) -> Section:
        section, names = Section('Classes'), self.classes
        if not self.confusions.total:
            section.notes.append('There is no confusion matrix: no pixel has a true class.')
            return section
        right, true, predicted = self.confusions.sums(len(names))
        predicted = predicted + self.outside
        found = self.metric.total_area_to_metrics(
            *map(torch.from_numpy, (right.copy(), true + predicted - right, predicted, true))
        )
        with np.errstate(invalid='ignore', divide='ignore'):
            precision = right / predicted
        section.figures = [
            ('mIoU', f'{100 * np.nanmean(found["IoU"]):.2f}'),
            ('mean accuracy', f'{100 * np.nanmean(found["Acc"]):.2f}'),
            ('accuracy of all pixels', f'{100 * found["aAcc"]:.2f}'),
        ]
        section.tables = [
            Table(
                'Classes',
                ['class', 'IoU', 'accuracy', 'precision', 'share of the pixels'],
                lowest_first(
                    [
                        [name, *map(float, values), f'{share:.2%}']
                        for name, *values, share in zip(
                            *(names, found['IoU'], found['Acc'], precision, true / true.sum())
                        )
                    ],
                    1,
                ),
                'The lowest IoU comes first. Accuracy is the share of the pixels of a class that '
                'are predicted as it, its recall. Precision is the share of right ones among the '
                'pixels predicted as it.',
            ),
        ]
        note = f'Pixels of {self.images:,} images.'
        add_confusions(section, self.confusions, names, note)
        colors = colors_of(len(names), self.meta.get('palette'))
        section.galleries = [
            Gallery(
                'The worst images',
                [self._example(example, colors) for _, _, example in self.worst.examples()],
                'They have the lowest mean IoU of the classes that are in the image.',
            ),
            Gallery(
                'Typical images',
                [self._example(self.random[key], colors) for key in sorted(self.random)],
                'They are chosen by chance.',
            ),
        ]
        return section

    def _example(self, example: tuple, colors: np.ndarray) -> Example:
        path, score, truth, predicted = example
        loaded = read(path, SIDE)
        note = f'mean IoU {score:.2f}'
        if loaded is None:
            return Example(path, note, [])
        image, size = loaded
        views = [
            (name, view(_overlaid(image, labels, colors), size))
            for name, labels in (('truth', truth), ('prediction', predicted))
        ]
        shown, counts = np.unique([*truth.flat, *predicted.flat], return_counts=True)
        order = [i for i in shown[np.argsort(-counts)] if i != IGNORED]
        legend = [(css(colors[i]), self.classes[i]) for i in order[:NAMED]]
        if len(order) > NAMED:
            note += f'; the legend names {NAMED} of {len(order)} classes'
        return Example(path, note, views, legend)


def _overlaid(image: np.ndarray, labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Colors an image (H, W, 3) by label maps, which may be of another size."""
    labels = mmcv.imresize(labels, image.shape[1::-1], interpolation='nearest')
    painted = (0.4 * image + 0.6 * colors[labels]).astype(np.uint8)
    return np.where((labels == IGNORED)[..., None], image, painted)

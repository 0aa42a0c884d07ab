"""The part of a report on a detector."""

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.patches import Rectangle
from mmengine.evaluator import BaseMetric
from pycocotools import mask as coco_masks
from rich.console import Console
from rich.progress import track

from mmhatnet.report.collecting import EXAMPLES, Collector
from mmhatnet.report.confusions import Confusions
from mmhatnet.report.drawing import add_confusions, chart, colors_of, read, view
from mmhatnet.report.matching import (
    Data,
    Detections,
    Evaluation,
    Objects,
    Settings,
    boxes_of,
    confusions,
    count,
    evaluate,
)
from mmhatnet.report.parts import (
    DASH,
    Chart,
    Example,
    Gallery,
    Section,
    Table,
    lowest_first,
    shortened,
)
from mmhatnet.shown import MOST_SHOWN

MOST_IMAGES = 10_000  # whose predictions are kept
MOST_LINES = 100  # of classes in a chart
SCORE = 0.3  # the threshold where no detection is right, as that of `mmhatnet predict`
SIZES = [0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, np.inf]
TITLES = dict(bbox='boxes', segm='masks')
NOTHING = '(nothing)'
RIGHT, WRONG = '#1a9641', '#d7191c'
COLORS = 'Green are objects that are found and detections that are right, red are the others.'


class DetectionCollector(Collector):
    """Keeps the detections as MMDetection's ``CocoMetric`` encodes them."""

    def __init__(self, metric: BaseMetric, size: int) -> None:
        super().__init__(metric, size)
        self.kept = self.choose(MOST_IMAGES) if size > MOST_IMAGES else range(size)
        self.typical = {*sorted(self.kept)[:EXAMPLES]} if size > MOST_IMAGES else self.chosen
        self.results: list[tuple[int, str, dict]] = []

    def add(self, position: int, sample: Any) -> None:
        """Adds the detections of an image."""
        if position in self.kept and not self.metric.format_only:
            # Its masks are encoded already, which takes long.
            result = self.metric.results[self.seen - 1][1]
            if result['img_id'] != sample.img_id:
                raise ValueError(f'{type(self.metric).__name__} keeps another image here')
            self.results.append((position, str(sample.get('img_path', '')), result))

    def state(self) -> Any:
        return self.results

    def merge(self, states: Sequence[Any]) -> None:
        self.results = sorted((entry for part in states for entry in part), key=lambda e: e[0])

    def section(self) -> Section:
        section = Section('Objects')
        kinds = [kind for kind in self.metric.metrics if kind in TITLES]
        truth = getattr(self.metric, '_coco_api', None)
        if not self.results or not kinds or not getattr(truth, 'imgToAnns', None):
            section.notes.append(
                'There is nothing to compare with: no object is annotated, or '
                f'{type(self.metric).__name__} does not measure boxes or masks as COCO does.'
            )
            return section
        images = self._images()
        if len(self.results) < self.size:
            section.notes.append(
                f'All that follows is measured on {len(self.results):,} of {self.size:,} images, '
                'which are chosen by chance. The metrics above are those of all images.'
            )
        elif len(images) > self.size:
            section.notes.append(
                f'The annotation file has {len(images):,} images, of which {self.size:,} '
                'were predicted. As for the metrics above, objects of the others are missed.'
            )
        ious = np.asarray(self.metric.iou_thrs, float).reshape(-1)
        settings = Settings(list(self.metric.cat_ids), ious, max(self.metric.proposal_nums))
        data = Data(truth, images, self._by_image(), settings)
        evaluations = {kind: evaluate(data, kind, partial(_shown, TITLES[kind])) for kind in kinds}
        names = {category: str(truth.cats[category]['name']) for category in settings.classes}
        _add_evaluations(section, evaluations, names)
        kind, evaluation = next(iter(evaluations.items()))
        threshold = _add_threshold(section, evaluation, TITLES[kind])
        section.charts.append(_size_chart(evaluation.objects, threshold))

        found = Confusions()
        numbers = {category: i for i, category in enumerate(settings.classes)}
        labels = [*names.values(), NOTHING]
        for true, predicted in confusions(data, kind, threshold):
            place = numbers.get(true, len(numbers)), numbers.get(predicted, len(numbers))
            found.pairs[place] += 1
        note = (
            f'Scores from {threshold:.2f} and {TITLES[kind]} with an IoU from 0.5, whatever their '
            f'class. The column {NOTHING} has objects that are missed, the row has detections '
            'where no object is.'
        )
        add_confusions(section, found, labels, note, NOTHING)
        drawer = _Drawer(data, evaluation, threshold, masks='segm' in kinds)
        section.galleries = self._galleries(drawer)
        return section

    def _images(self) -> list:
        """Returns the ids of the images that are measured, in ascending order."""
        if len(self.results) < self.size:
            return sorted({result['img_id'] for _, _, result in self.results})
        return sorted({*self.metric.img_ids})

    def _by_image(self) -> dict[Any, dict]:
        """Returns the detections by the id of the image, which several datasets may share."""
        found: dict[Any, dict] = {}
        for _, _, result in self.results:
            before = found.get(result['img_id'])
            if before is not None:
                result = {key: _joined(before[key], result[key]) for key in result}
            found[result['img_id']] = result
        return found

    def _galleries(self, drawer: '_Drawer') -> list[Gallery]:
        places = {image: place for place, image in enumerate(drawer.data.images)}
        place = [places[result['img_id']] for _, _, result in self.results]
        right, wrong, missed = (counts[place] for counts in drawer.counts())
        mistakes = wrong + missed
        f1 = 2 * right / np.maximum(2 * right + mistakes, 1)
        worst = [i for i in np.lexsort((-mistakes, f1)) if mistakes[i]][:EXAMPLES]
        chosen = [i for i, (position, *_) in enumerate(self.results) if position in self.typical]
        return [
            Gallery(title, [drawer.example(self.results[i][1], place[i]) for i in shown], note)
            for title, shown, note in (
                (
                    *('The worst images', worst),
                    f'They have the lowest F1 score and the most mistakes. {COLORS}',
                ),
                ('Typical images', chosen, f'They are chosen by chance. {COLORS}'),
            )
        ]


def _joined(first: Any, second: Any) -> Any:
    """Joins the detections of an image that was predicted twice."""
    if isinstance(first, np.ndarray):
        return np.concatenate([first, second])
    return first + second if isinstance(first, list) else second


def _shown(what: str, images: Sequence) -> Iterable:
    """Shows on a terminal how many images are done."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return images
    return track(images, f'Report on {what}', console=console, transient=True)


def _mean(values: np.ndarray) -> float:
    """Returns the mean of what could be measured, or NaN."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else float('nan')


def _add_evaluations(
    section: Section, evaluations: dict[str, Evaluation], names: dict[int, str]
) -> None:
    """Adds precision and recall, and a table of the classes."""
    first = next(iter(evaluations.values()))
    classes = [names[category] for category in first.classes]
    numbers = count(first.objects.classes, first.classes)
    columns: dict[str, list] = {'class': classes, 'objects': numbers}
    at = first.settings.shown
    iou = f'{first.settings.ious[at]:.2g}'
    for kind, evaluation in evaluations.items():
        precision, recall = evaluation.precision, evaluation.recall[at]
        title, of = f'AP of {TITLES[kind]}', f'{TITLES[kind]}: '
        section.figures += [
            (title, f'{_mean(precision):.3f}'),
            (f'{title} at IoU {iou}', f'{_mean(precision[at]):.3f}'),
        ]
        columns[f'{of}AP'] = [_mean(precision[:, :, i]) for i in range(len(classes))]
        columns[f'{of}AP at IoU {iou}'] = [_mean(precision[at, :, i]) for i in range(len(classes))]
        columns[f'{of}recall'] = [float(value) if value > -1 else None for value in recall]
        section.charts.append(_precision_chart(kind, evaluation, classes))
    absent = sum(not number for number in numbers)
    note = f'The lowest AP at IoU {iou} comes first. Recall is at IoU {iou} and any score.'
    if absent:
        note += (
            f' Of {absent} classes no object is annotated: a dash means that nothing can be '
            'measured.'
        )
    section.tables.append(
        Table(
            'Classes', [*columns], lowest_first([list(r) for r in zip(*columns.values())], 3), note
        )
    )


def _precision_chart(kind: str, evaluation: Evaluation, classes: list[str]) -> Chart:
    """Draws precision over recall."""
    ious, recalls, precision = evaluation.settings.ious, evaluation.recalls, evaluation.precision
    at = evaluation.settings.shown
    measured = [i for i in range(len(classes)) if (precision[at, :, i] > -1).any()]
    lines = measured[:: -(-len(measured) // MOST_LINES)] if measured else []

    def draw(ax: Axes) -> None:
        few = len(measured) <= 8
        for color, i in zip(colors_of(len(lines)) / 255, lines):
            label, color = (shortened(classes[i], 16), color) if few else (None, '0.75')
            ax.plot(recalls, precision[at, :, i], color=color, linewidth=0.9, label=label)
        if measured:
            all_ious = precision[:, :, measured].mean((0, 2))
            mean = precision[at][:, measured].mean(1)
            ax.plot(recalls, mean, 'k', linewidth=2, label='mean')
            if len(ious) > 1:
                ax.plot(recalls, all_ious, 'k--', linewidth=1.3, label='mean, all IoUs')
            ax.legend()
        ax.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))

    note = f'Lines are at IoU {ious[at]:.2g}'
    if ious[0] < ious[-1]:
        note += f', the dashed one is the mean from {ious[0]:.2g} to {ious[-1]:.2g}'
    note += '.'
    if len(measured) > 8:
        of = f'{len(lines)} of {len(measured):,} ' if len(lines) < len(measured) else ''
        note += f' Gray lines are {of}classes.'
    return chart(f'Precision and recall of {TITLES[kind]}', draw, note)


def _add_threshold(section: Section, evaluation: Evaluation, name: str) -> float:
    """Adds precision and recall by score, and returns the threshold with the best F1 score."""
    found = evaluation.detections
    order = np.argsort(-found.scores, kind='stable')
    scores, right = found.scores[order], np.cumsum(found.right[order])
    number = np.arange(1, len(scores) + 1)
    objects = max(len(evaluation.objects.found), 1)
    precision, recall, f1 = right / number, right / objects, 2 * right / (number + objects)
    if not right.size or not right[-1]:
        section.notes.append(
            f'No detection is right at IoU 0.5. Where a threshold is needed, it is {SCORE}.'
        )
        return SCORE
    # Detections of the same score pass the threshold together.
    last = np.append(scores[1:] != scores[:-1], True)
    scores, precision, recall, f1 = (values[last] for values in (scores, precision, recall, f1))
    best = int(f1.argmax())

    def draw(ax: Axes) -> None:
        step = max(len(scores) // 400, 1)
        for values, label in ((precision, 'precision'), (recall, 'recall'), (f1, 'F1')):
            ax.plot(scores[::step], values[::step], label=label, linewidth=1.4)
        ax.axvline(scores[best], color='0.4', linestyle=':')
        ax.set(xlabel='score', xlim=(0, 1), ylim=(0, 1.02))
        ax.legend()

    # Rounded down, so that the detection itself passes.
    threshold = max(np.floor(scores[best] * 100) / 100, 0.01)
    section.figures.append(('best score threshold', f'{threshold:.2f}'))
    section.charts.append(
        chart(
            *(f'Precision and recall of {name} by score', draw),
            f'All classes together, at IoU 0.5. F1 is best at {scores[best]:.2f}, with a precision '
            f'of {precision[best]:.2f} and a recall of {recall[best]:.2f}. It follows from these '
            'very images.',
        )
    )
    return float(threshold)


def _size_chart(objects: Objects, threshold: float) -> Chart:
    """Draws the recall of objects by their size."""
    groups = np.digitize(np.sqrt(objects.areas), SIZES) - 1
    shown = range(groups.min(), groups.max() + 1) if len(groups) else range(0)

    def draw(ax: Axes) -> None:
        labels = []
        for x, group in enumerate(shown):
            found = objects.found[groups == group]
            end = SIZES[group + 1]
            span = f'{SIZES[group]}{DASH}' + (f'{end:.0f}' if end < np.inf else '')
            labels.append(f'{span}\n{len(found):,}')
            if len(found):
                ax.bar(x, (found >= 0).mean(), width=0.8, color='#c6dbef')
                ax.bar(x, (found >= threshold).mean(), width=0.8, color='#3182bd')
        ax.bar(0, 0, color='#c6dbef', label='any score')
        ax.bar(0, 0, color='#3182bd', label=f'score from {threshold:.2f}')
        small = dict(fontsize=8 if len(shown) <= 7 else 6)
        ax.set_xticks(range(len(shown)), labels, **small)
        ax.set(xlabel='size and number of objects', ylabel='recall', ylim=(0, 1.02))
        ax.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=2, frameon=False)

    return chart(
        *('Recall by the size of objects', draw),
        'The size is the square root of the area, in pixels of the image as it is stored. Found '
        'means an IoU from 0.5.',
    )


class _Drawer:
    """Draws the truth and the detections of an image."""

    def __init__(self, data: Data, evaluation: Evaluation, threshold: float, masks: bool) -> None:
        self.data, self.threshold, self.masks = data, threshold, masks
        self.names = {
            category: _drawable(number, str(data.truth.cats[category]['name']))
            for number, category in enumerate(data.settings.classes)
        }
        self.objects = evaluation.objects
        confident = evaluation.detections.scores >= threshold
        self.detections = Detections(*(values[confident] for values in evaluation.detections))

    def counts(self) -> list[np.ndarray]:
        """Returns how many detections are right and wrong and how many objects are missed."""
        right, missed = self.detections.right, self.objects.found < self.threshold
        return [
            np.bincount(images, minlength=len(self.data.images))
            for images in (
                self.detections.images[right],
                self.detections.images[~right],
                self.objects.images[missed],
            )
        ]

    def example(self, path: str, place: int) -> Example:
        """Draws an image."""
        image = self.data.images[place]
        annotations = self.data.truth.imgToAnns.get(image, [])
        objects = [
            (annotations[at], score >= self.threshold)
            for _, at, _, _, score in _rows(self.objects, place)
        ]
        detections = [
            (self._annotation(self.data.results[image], at, category, score), right)
            for _, at, category, score, right in _rows(self.detections, place)
        ]
        found, right = (sum(flag for _, flag in shown) for shown in (objects, detections))
        note = f'objects found: {found} of {len(objects)}; detections right: {right} of '
        note += f'{len(detections)}'
        if len(detections) > MOST_SHOWN:
            note += f', of which the {MOST_SHOWN} with the highest scores are shown'
        loaded = read(path)
        if loaded is None:
            return Example(path, note, [])
        pixels, size = loaded
        views = (('truth', objects), ('prediction', detections[:MOST_SHOWN]))
        return Example(
            *(path, note),
            [
                (name, view(self._masked(pixels, shown), size, self._boxes(shown)))
                for name, shown in views
            ],
        )

    def _annotation(self, result: dict, place: int, category: int, score: float) -> dict:
        """Returns a detection as an annotation of COCO."""
        found = dict(bbox=boxes_of(result)[place], category_id=category, score=score)
        return found | (dict(segmentation=result['masks'][place]) if self.masks else {})

    def _masked(self, image: np.ndarray, shown: list[tuple[dict, bool]]) -> np.ndarray:
        """Colors the masks in an image, if masks are measured."""
        image = image.copy()
        for annotation, right in shown if self.masks else []:
            mask = annotation.get('segmentation')
            if not mask:
                continue
            if 'score' not in annotation:
                mask = self.data.truth.annToRLE(annotation)
            mask = coco_masks.decode(mask)
            mask = mmcv.imresize(mask, image.shape[1::-1], interpolation='nearest')
            color = np.array([int((RIGHT if right else WRONG)[i : i + 2], 16) for i in (1, 3, 5)])
            image[mask > 0] = (0.7 * image[mask > 0] + 0.3 * color).astype(np.uint8)
        return image

    def _boxes(self, shown: list[tuple[dict, bool]]):
        def draw(ax: Axes) -> None:
            for annotation, right in shown:
                x, y, width, height = annotation['bbox']
                color = RIGHT if right else WRONG
                ax.add_patch(
                    Rectangle((x, y), width, height, fill=False, color=color, linewidth=1.4)
                )
                text = self.names[annotation['category_id']]
                if 'score' in annotation:
                    text += f' {annotation["score"]:.2f}'
                ax.text(
                    *(max(x, 0), max(y, 0), text),
                    fontsize=7,
                    color='white',
                    va='top',
                    clip_on=True,
                    bbox=dict(facecolor=color, alpha=0.75, linewidth=0, pad=0.8),
                )

        return draw


def _rows(of_all: Detections | Objects, place: int) -> list[tuple]:
    """Returns the rows of one image."""
    start, end = np.searchsorted(of_all.images, [place, place + 1])
    return list(zip(*(values[start:end].tolist() for values in of_all)))


def _drawable(number: int, name: str) -> str:
    """Returns the name of a class if Matplotlib's font has all its letters, or else its number."""
    font = get_font(fontManager.findfont(FontProperties()))
    name = shortened(name, 16)
    return name if all(font.get_char_index(ord(letter)) for letter in name) else f'class {number}'

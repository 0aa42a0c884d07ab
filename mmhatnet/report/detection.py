"""The part of a report on a detector, from the arrays of pycocotools."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.patches import Rectangle
from mmengine.evaluator import BaseMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmhatnet.report.collecting import EXAMPLES, Collector
from mmhatnet.report.drawing import (
    chart,
    colors_of,
    confusion_chart,
    read,
    table_of_mistakes,
    view,
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

MOST_IMAGES = 10_000  # whose predictions are kept
MOST_BOXES = 30  # in one view
SCORE = 0.3  # the threshold where no detection is right, as that of `mmhatnet predict`
SIZES = [0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, np.inf]
TITLES = dict(bbox='boxes', segm='masks')
NOTHING = '(nothing)'
RIGHT, WRONG = '#1a9641', '#d7191c'
COLORS = 'Green are objects that are found and detections that are right, red are the others.'


class Matches(NamedTuple):
    """How detections and objects fit together, at one IoU.

    Attributes:
        places (dict[int, int]): The place of each image in the evaluation, by its id.
        scores (np.ndarray): The score of each detection.
        right (np.ndarray): Whether it is matched to an object of its class.
        images (np.ndarray): The place of the image of each detection.
        areas (np.ndarray): The area of each object.
        found (np.ndarray): The score of the detection that is matched to it, or -1.
        of (np.ndarray): The place of the image of each object.
        ids (set[int]): The detections that are right.
        objects (dict[int, float]): ``found`` by the id of the object.
    """

    places: dict[int, int]
    scores: np.ndarray
    right: np.ndarray
    images: np.ndarray
    areas: np.ndarray
    found: np.ndarray
    of: np.ndarray
    ids: set[int]
    objects: dict[int, float]


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
            self.results.append((position, str(sample.get('img_path', '')), result))

    def state(self) -> Any:
        return self.results

    def merge(self, states: Sequence[Any]) -> None:
        self.results = sorted((entry for part in states for entry in part), key=lambda e: e[0])

    def section(self) -> Section:
        section = Section('Objects')
        kinds = [kind for kind in self.metric.metrics if kind in TITLES]
        truth = self.metric._coco_api
        if not self.results or truth is None or not truth.anns or not kinds:
            section.notes.append('There is nothing to compare with: no object is annotated.')
            return section
        if len(self.results) < self.size:
            section.notes.append(
                f'All that follows is measured on {len(self.results):,} of {self.size:,} images, '
                'which are chosen by chance. The metrics above are those of all images.'
            )
        elif len(self._images()) > self.size:
            section.notes.append(
                f'The annotation file has {len(self._images()):,} images, of which {self.size:,} '
                'were predicted. As for the metrics above, objects of the others are missed.'
            )
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
            detections = self._detections(truth, kinds)
            evaluations = {kind: self._evaluate(truth, detections[kind], kind) for kind in kinds}
            _add_evaluations(section, evaluations)
            matches = _matches(evaluations[kinds[0]], truth, detections[kinds[0]])
            threshold = _add_threshold(section, matches, TITLES[kinds[0]])
            section.charts.append(_size_chart(matches, threshold))
            matrix = self._confusions(truth, detections[kinds[0]], kinds[0], threshold)
        names = [*(str(truth.cats[category]['name']) for category in self.metric.cat_ids), NOTHING]
        section.charts.append(
            confusion_chart(
                *(matrix, names),
                f'Scores from {threshold:.2f} and {TITLES[kinds[0]]} with an IoU from 0.5, '
                f'whatever their class. The column {NOTHING} has objects that are missed, the row '
                'has detections where no object is.',
            )
        )
        section.tables.append(table_of_mistakes(matrix, names, 'number', NOTHING))
        section.galleries = self._galleries(truth, detections, matches, threshold)
        return section

    def _images(self) -> list[int]:
        """Returns the ids of the images that are measured."""
        if len(self.results) < self.size:
            return [result['img_id'] for _, _, result in self.results]
        return list(self.metric.img_ids)

    def _detections(self, truth: COCO, kinds: list[str]) -> dict[str, COCO]:
        """Returns the detections by the type of their metric, with the same ids for each."""
        with TemporaryDirectory() as folder:
            files = self.metric.results2json([r for _, _, r in self.results], f'{folder}/results')
            loaded = {kind: json.loads(Path(files[kind]).read_text()) for kind in kinds}
        if 'segm' in loaded:
            for entry in loaded['segm']:
                del entry['bbox']  # as the metric does: the area is that of the mask
        return {kind: _as_coco(truth, entries) for kind, entries in loaded.items()}

    def _evaluate(self, truth: COCO, detections: COCO, kind: str) -> COCOeval:
        evaluation = COCOeval(truth, detections, kind)
        evaluation.params.catIds = self.metric.cat_ids
        evaluation.params.imgIds = self._images()
        evaluation.params.maxDets = list(self.metric.proposal_nums)
        evaluation.params.iouThrs = np.asarray(self.metric.iou_thrs).reshape(-1)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation

    def _confusions(self, truth: COCO, detections: COCO, kind: str, threshold: float) -> np.ndarray:
        """Counts the pairs of classes (true, predicted), of which the last is the background.

        Unlike the analysis tool of MMDetection, it counts each object and each detection once.
        """
        numbers = {category: i for i, category in enumerate(self.metric.cat_ids)}
        background = len(numbers)
        matrix = np.zeros((background + 1, background + 1), np.int64)
        everything = detections.dataset['annotations']
        # Copies, because pycocotools numbers them anew.
        confident = [dict(entry) for entry in everything if entry['score'] >= threshold]
        evaluation = COCOeval(truth, _as_coco(truth, confident), kind)
        evaluation.params.useCats = 0
        evaluation.params.imgIds = self._images()
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.maxDets = [max(self.metric.proposal_nums)]
        evaluation.evaluate()
        for found in filter(None, evaluation.evalImgs):
            for detection, match, ignored in zip(
                found['dtIds'], found['dtMatches'][0], found['dtIgnore'][0]
            ):
                predicted = numbers[evaluation.cocoDt.anns[detection]['category_id']]
                category = truth.anns[int(match)]['category_id'] if match else None
                if not ignored:
                    matrix[numbers.get(category, background), predicted] += 1
            for item, match, ignored in zip(
                found['gtIds'], found['gtMatches'][0], found['gtIgnore']
            ):
                category = truth.anns[item]['category_id']
                if not match and not ignored and category in numbers:
                    matrix[numbers[category], background] += 1
        return matrix

    def _galleries(
        self, truth: COCO, detections: dict[str, COCO], matches: Matches, threshold: float
    ) -> list[Gallery]:
        names = {
            category: _drawable(number, str(truth.cats[category]['name']))
            for number, category in enumerate(self.metric.cat_ids)
        }
        drawer = _Drawer(names, dict(truth=truth, **detections), matches, threshold)
        place = [matches.places[result['img_id']] for _, _, result in self.results]
        confident = matches.scores >= threshold
        right, wrong, missed = (
            np.bincount(images, minlength=len(matches.places))[place]
            for images in (
                matches.images[confident & matches.right],
                matches.images[confident & ~matches.right],
                matches.of[matches.found < threshold],
            )
        )
        mistakes = wrong + missed
        f1 = 2 * right / np.maximum(2 * right + mistakes, 1)
        worst = [i for i in np.lexsort((-mistakes, f1)) if mistakes[i]][:EXAMPLES]
        chosen = [i for i, (position, *_) in enumerate(self.results) if position in self.typical]
        return [
            Gallery(title, [drawer.example(*self.results[i][1:]) for i in places], note)
            for title, places, note in (
                (
                    *('The worst images', worst),
                    f'They have the lowest F1 score and the most mistakes. {COLORS}',
                ),
                ('Typical images', chosen, f'They are chosen by chance. {COLORS}'),
            )
        ]


def _as_coco(truth: COCO, results: list[dict]) -> COCO:
    """Returns results as pycocotools has them. It cannot load an empty list itself."""
    if results:
        return truth.loadRes(results)
    empty = COCO()
    empty.dataset = {**truth.dataset, 'annotations': []}
    empty.createIndex()
    return empty


def _place_of(values: np.ndarray, value: float) -> int:
    """Returns where a value is in an array, or 0 if it is not."""
    return int(np.isclose(values, value).argmax())


def _mean(values: np.ndarray) -> float:
    """Returns the mean of what pycocotools could measure, or NaN."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else float('nan')


def _matches(evaluation: COCOeval, truth: COCO, detections: COCO) -> Matches:
    """Reads which detections pycocotools has matched to which objects."""
    params = evaluation.params
    at = _place_of(params.iouThrs, 0.5)
    places = {image: i for i, image in enumerate(params.imgIds)}
    scores, right, images, areas, found, of = [], [], [], [], [], []
    ids, objects = set(), {}
    for entry in evaluation.evalImgs:
        # The first range of areas has all objects.
        if entry is None or entry['aRng'] != params.areaRng[0]:
            continue
        place = places[entry['image_id']]
        for i, detection in enumerate(entry['dtIds']):
            if entry['dtIgnore'][at, i]:
                continue  # it lies in a crowd
            scores.append(entry['dtScores'][i])
            right.append(entry['dtMatches'][at, i] > 0)
            images.append(place)
            if right[-1]:
                ids.add(detection)
        for i, item in enumerate(entry['gtIds']):
            if entry['gtIgnore'][i]:
                continue
            match = entry['gtMatches'][at, i]
            areas.append(truth.anns[item]['area'])
            found.append(detections.anns[int(match)]['score'] if match else -1.0)
            of.append(place)
            objects[item] = found[-1]
    return Matches(
        places,
        *(np.array(scores, float), np.array(right, bool), np.array(images, int)),
        *(np.array(areas, float), np.array(found, float), np.array(of, int)),
        *(ids, objects),
    )


def _names(evaluation: COCOeval) -> list[str]:
    """Returns the names of the classes in the order of pycocotools, by their ids."""
    return [str(evaluation.cocoGt.cats[id_]['name']) for id_ in evaluation.params.catIds]


def _add_evaluations(section: Section, evaluations: dict[str, COCOeval]) -> None:
    """Adds what pycocotools has measured: precision and recall, and a table of the classes."""
    classes = _names(next(iter(evaluations.values())))
    columns: dict[str, list] = {'class': classes}
    for kind, evaluation in evaluations.items():
        params, precision = evaluation.params, evaluation.eval['precision']  # (T, R, K, A, M)
        at = _place_of(params.iouThrs, 0.5)
        iou = f'{params.iouThrs[at]:.2g}'
        precision, recall = precision[..., 0, -1], evaluation.eval['recall'][at, :, 0, -1]
        title = f'AP of {TITLES[kind]}'
        section.figures += [
            (title, f'{_mean(precision):.3f}'),
            (f'{title} at IoU {iou}', f'{_mean(precision[at]):.3f}'),
        ]
        if len(columns) == 1:
            numbers = dict.fromkeys(params.catIds, 0)
            for entry in filter(None, evaluation.evalImgs):
                if entry['aRng'] == params.areaRng[0]:
                    ignored = np.asarray(entry['gtIgnore'], bool)
                    numbers[entry['category_id']] += int(np.sum(~ignored))
            columns['objects'] = list(numbers.values())
        of = f'{TITLES[kind]}: '
        columns[f'{of}AP'] = [_mean(precision[:, :, i]) for i in range(len(classes))]
        columns[f'{of}AP at IoU {iou}'] = [_mean(precision[at, :, i]) for i in range(len(classes))]
        columns[f'{of}recall'] = [float(value) if value > -1 else None for value in recall]
        section.charts.append(_precision_chart(kind, evaluation, classes))
    absent = [name for name, number in zip(classes, columns['objects']) if not number]
    note = f'The lowest AP at IoU {iou} comes first. Recall is at IoU {iou} and any score.'
    if absent:
        note += (
            f' Of {len(absent)} classes no object is annotated: a dash means that nothing can be '
            'measured.'
        )
    section.tables.append(
        Table(
            'Classes', [*columns], lowest_first([list(r) for r in zip(*columns.values())], 3), note
        )
    )


def _precision_chart(kind: str, evaluation: COCOeval, classes: list[str]) -> Chart:
    """Draws precision over recall."""
    params, precision = evaluation.params, evaluation.eval['precision'][..., 0, -1]
    at = _place_of(params.iouThrs, 0.5)
    measured = [i for i in range(len(classes)) if (precision[at, :, i] > -1).any()]

    def draw(ax: Axes) -> None:
        few = len(measured) <= 8
        for color, i in zip(colors_of(len(measured)) / 255, measured):
            label, color = (shortened(classes[i], 16), color) if few else (None, '0.75')
            ax.plot(params.recThrs, precision[at, :, i], color=color, linewidth=0.9, label=label)
        if measured:
            all_ious = precision[:, :, measured].mean((0, 2))
            mean = precision[at][:, measured].mean(1)
            ax.plot(params.recThrs, mean, 'k', linewidth=2, label='mean')
            if len(params.iouThrs) > 1:
                ax.plot(params.recThrs, all_ious, 'k--', linewidth=1.3, label='mean, all IoUs')
            ax.legend()
        ax.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))

    first, last = params.iouThrs[0], params.iouThrs[-1]
    note = f'Lines are at IoU {params.iouThrs[at]:.2g}'
    note += f', the dashed one is the mean from {first:.2g} to {last:.2g}.' if first < last else '.'
    if len(measured) > 8:
        note += ' Gray lines are classes.'
    return chart(f'Precision and recall of {TITLES[kind]}', draw, note)


def _add_threshold(section: Section, matches: Matches, name: str) -> float:
    """Adds precision and recall by score, and returns the threshold with the best F1 score."""
    order = np.argsort(-matches.scores, kind='stable')
    scores, right = matches.scores[order], np.cumsum(matches.right[order])
    count = np.arange(1, len(scores) + 1)
    objects = max(len(matches.found), 1)
    precision, recall, f1 = right / count, right / objects, 2 * right / (count + objects)
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


def _size_chart(matches: Matches, threshold: float) -> Chart:
    """Draws the recall of objects by their size."""
    groups = np.digitize(np.sqrt(matches.areas), SIZES) - 1
    shown = range(groups.min(), groups.max() + 1) if len(groups) else range(0)

    def draw(ax: Axes) -> None:
        labels = []
        for x, group in enumerate(shown):
            found = matches.found[groups == group]
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

    def __init__(
        self, names: dict[int, str], coco: dict[str, COCO], matches: Matches, threshold: float
    ) -> None:
        self.names, self.coco, self.matches, self.threshold = names, coco, matches, threshold

    def example(self, path: str, result: dict) -> Example:
        """Draws an image."""
        objects = [
            a
            for a in self.coco['truth'].imgToAnns[result['img_id']]
            if a['id'] in self.matches.objects
        ]
        detections = [
            a
            for a in (self.coco.get('bbox') or self.coco['segm']).imgToAnns[result['img_id']]
            if a['score'] >= self.threshold and a['category_id'] in self.names
        ]
        detections.sort(key=lambda a: -a['score'])
        found = sum(self.matches.objects[a['id']] >= self.threshold for a in objects)
        right = sum(a['id'] in self.matches.ids for a in detections)
        note = f'objects found: {found} of {len(objects)}; detections right: {right} of '
        note += f'{len(detections)}'
        if len(detections) > MOST_BOXES:
            note += f', of which the {MOST_BOXES} with the highest scores are shown'
        loaded = read(path)
        if loaded is None:
            return Example(path, note, [])
        image, size = loaded
        views = [
            ('truth', [(a, self.matches.objects[a['id']] >= self.threshold) for a in objects]),
            ('prediction', [(a, a['id'] in self.matches.ids) for a in detections[:MOST_BOXES]]),
        ]
        return Example(
            *(path, note),
            [
                (name, view(*self._masked(image, size, shown), self._boxes(shown)))
                for name, shown in views
            ],
        )

    def _masked(
        self, image: np.ndarray, size: tuple[int, int], shown: list[tuple[dict, bool]]
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Colors the masks in an image, if masks are measured."""
        image = image.copy()
        for annotation, right in shown if 'segm' in self.coco else []:
            coco = self.coco['segm' if 'score' in annotation else 'truth']
            annotation = coco.anns[annotation['id']]
            if not annotation.get('segmentation'):
                continue
            mask = mmcv.imresize(
                coco.annToMask(annotation), image.shape[1::-1], interpolation='nearest'
            )
            color = np.array([int((RIGHT if right else WRONG)[i : i + 2], 16) for i in (1, 3, 5)])
            image[mask > 0] = (0.7 * image[mask > 0] + 0.3 * color).astype(np.uint8)
        return image, size

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


def _drawable(number: int, name: str) -> str:
    """Returns the name of a class if Matplotlib's font has all its letters, or else its number."""
    font = get_font(fontManager.findfont(FontProperties()))
    name = shortened(name, 16)
    return name if all(font.get_char_index(ord(letter)) for letter in name) else f'class {number}'

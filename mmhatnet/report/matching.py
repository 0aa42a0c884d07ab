"""Matches detections with objects, and measures them, as pycocotools does.

pycocotools goes through all pairs of an image in Python, once for each IoU, for each of four ranges
of areas. A report shows one of these ranges. Here, one step does all IoUs, and only detections that
overlap an object of their class take one.
"""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

AREAS = Params('bbox').areaRng[0]  # from the smallest to the largest


class Settings(NamedTuple):
    """How a metric measures.

    Attributes:
        classes (list[int]): The ids of the classes, by label.
        ious (np.ndarray): The IoUs (T,).
        most (int): How many detections of an image and a class count.
    """

    classes: list[int]
    ious: np.ndarray
    most: int

    @property
    def shown(self) -> int:
        """The place of the IoU of which a report shows most: 0.5, or the first."""
        return int(np.isclose(self.ious, 0.5).argmax())


class Data(NamedTuple):
    """What is compared.

    Attributes:
        truth (COCO): The objects.
        images (list): The ids of the images, in ascending order.
        results (dict[Any, dict]): The detections of images by their ids, as MMDetection's
            ``CocoMetric`` encodes them.
        settings (Settings): How they are measured.
    """

    truth: COCO
    images: list
    results: dict[Any, dict]
    settings: Settings


class Detections(NamedTuple):
    """Detections, those of each image together, by descending score. None lies in a crowd.

    Attributes:
        images (np.ndarray): The place of the image of each (D,).
        places (np.ndarray): The place of each among those of its image (D,).
        classes (np.ndarray): The id of the class (D,).
        scores (np.ndarray): The score (D,).
        right (np.ndarray): Whether it is matched to an object of its class, at the IoU shown (D,).
    """

    images: np.ndarray
    places: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    right: np.ndarray


class Objects(NamedTuple):
    """Objects that can be found. Crowds are not among them.

    Attributes:
        images (np.ndarray): The place of the image of each (G,).
        places (np.ndarray): The place of each among those of its image (G,).
        classes (np.ndarray): The id of the class (G,).
        areas (np.ndarray): The area in pixels (G,).
        found (np.ndarray): The score of the detection that is matched to it, or -1 (G,).
    """

    images: np.ndarray
    places: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    found: np.ndarray


class Evaluation(NamedTuple):
    """What is measured of boxes or masks. Values are -1 where there is no object.

    Attributes:
        settings (Settings): How it is measured.
        classes (list[int]): The ids of the classes, in ascending order.
        recalls (np.ndarray): The recalls (R,) of ``precision``.
        precision (np.ndarray): The precision (T, R, K).
        recall (np.ndarray): The recall (T, K), at any score.
        detections (Detections): The detections.
        objects (Objects): The objects.
    """

    settings: Settings
    classes: list[int]
    recalls: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    detections: Detections
    objects: Objects


class _Side(NamedTuple):
    """The objects of an image, or its detections."""

    places: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    shapes: np.ndarray | list[dict]  # boxes [x, y, width, height], or RLEs
    crowd: np.ndarray
    named: np.ndarray  # false for an object with the id 0, to which pycocotools matches nothing

    def chosen(self, indices: np.ndarray) -> '_Side':
        if isinstance(self.shapes, list):
            shapes = [self.shapes[index] for index in indices]
        else:
            shapes = self.shapes[indices]
        others = (part[indices] for part in (*self[:4], *self[5:]))
        places, classes, scores, areas, crowd, named = others
        return _Side(places, classes, scores, areas, shapes, crowd, named)

    @property
    def outside(self) -> np.ndarray:
        """Whether the area is out of the range that counts."""
        return (self.areas < AREAS[0]) | (self.areas > AREAS[1])

    @property
    def ignored(self) -> np.ndarray:
        return self.crowd | self.outside


def boxes_of(result: dict) -> np.ndarray:
    """Returns the boxes of detections (D, 4), left, top, width and height."""
    boxes = np.asarray(result['bboxes'], float).reshape(-1, 4)
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def _detections_of(result: dict | None, kind: str, settings: Settings) -> _Side:
    if result is None:
        result = dict(bboxes=[], labels=[], scores=[], masks=[])
    of_masks = kind == 'segm'
    scores = result.get('mask_scores', result['scores']) if of_masks else result['scores']
    classes = np.asarray(settings.classes)[np.asarray(result['labels'], int)]
    boxes = boxes_of(result)
    shapes = list(result['masks']) if of_masks else boxes
    areas = coco_masks.area(shapes) if of_masks and shapes else boxes[:, 2] * boxes[:, 3]
    no, yes = np.zeros(len(classes), bool), np.ones(len(classes), bool)
    places = np.arange(len(classes))
    side = _Side(places, classes, np.asarray(scores, float), areas, shapes, no, yes)
    return side.chosen(np.lexsort((classes, -side.scores)))


def _objects_of(truth: COCO, image: object, kind: str) -> _Side:
    annotations = truth.imgToAnns.get(image, [])
    if kind == 'segm':
        shapes = [truth.annToRLE(annotation) for annotation in annotations]
    else:
        shapes = np.array([a['bbox'] for a in annotations], float).reshape(-1, 4)
    crowd = np.array([bool(a.get('iscrowd')) for a in annotations], bool)
    return _Side(
        np.arange(len(annotations)),
        np.array([a['category_id'] for a in annotations], int),
        np.zeros(len(annotations)),
        np.array([a['area'] for a in annotations], float),
        *(shapes, crowd, np.array([a['id'] != 0 for a in annotations], bool)),
    )


def _ious(found: _Side, objects: _Side) -> np.ndarray:
    """Returns the IoU of each detection with each object (D, G); with a crowd, its share of it."""
    if not len(found.shapes) or not len(objects.shapes):
        return np.zeros((len(found.shapes), len(objects.shapes)))
    return np.asarray(coco_masks.iou(found.shapes, objects.shapes, objects.crowd.tolist()))


def match(
    ious: np.ndarray, least: np.ndarray, crowd: np.ndarray, ignored: np.ndarray
) -> np.ndarray:
    """Matches the detections of an image with its objects, one after the other.

    Args:
        ious (np.ndarray): The IoU of each detection with each object (D, G), by descending score,
            and -1 for pairs that must not match.
        least (np.ndarray): The IoUs that a match needs (T,).
        crowd (np.ndarray): Which objects match several detections (G,).
        ignored (np.ndarray): Which objects match only what fits no other (G,).

    Returns:
        np.ndarray: The place of the object of each detection (T, D), or -1.
    """
    least = np.minimum(least, 1 - 1e-10)[:, None]
    matches = np.full((len(least), len(ious)), -1)
    free = np.ones((len(least), len(crowd)), bool)
    steps = np.arange(len(least))
    for detection in np.flatnonzero((ious >= least.min()).any(1)):
        fits = (ious[detection] >= least) & (free | crowd)
        counts = fits & ~ignored
        fits = np.where(counts.any(1, keepdims=True), counts, fits)
        # Of equal ones, the last.
        best = len(crowd) - 1 - np.where(fits, ious[detection], -1)[:, ::-1].argmax(1)
        hit = fits[steps, best]
        matches[hit, detection] = best[hit]
        free[steps[hit], best[hit]] = False
    return matches


def evaluate(data: Data, kind: str, track: Callable[[Sequence], Iterable] = iter) -> Evaluation:
    """Measures detections.

    Args:
        data (Data): The detections and objects.
        kind (str): 'bbox' or 'segm'.
        track (Callable): Yields the images, and may show how many are done.

    Returns:
        Evaluation: The same figures as of pycocotools.
    """
    truth, images, results, settings = data
    at, known = settings.shown, np.unique(settings.classes)
    kept_detections, kept_objects, matched = [], [], []
    for place, image in enumerate(track(images)):
        there = _objects_of(truth, image, kind)
        found = _detections_of(results.get(image), kind, settings)
        if len(found.classes) > settings.most:
            found = found.chosen(_first_of_each(found.classes, settings.most))
        ious = _ious(found, there)
        ious[found.classes[:, None] != there.classes] = -1
        matches = match(ious, settings.ious, there.crowd, there.ignored)  # (T, D)
        right = np.append(there.named, False)[matches]
        ignored = np.append(there.ignored, False)[matches] | (~right & found.outside)
        matched.append((found.classes, found.scores, right, ignored))

        kept = ~ignored[at]
        here = np.full(kept.sum(), place)
        kept_detections.append((here, *(part[kept] for part in (*found[:3], right[at]))))
        scores = np.full(len(there.classes), -1.0)
        hit = matches[at] >= 0
        scores[matches[at][hit]] = found.scores[hit]
        kept = ~there.ignored & np.isin(there.classes, known)
        here = np.full(kept.sum(), place)
        parts = (there.places, there.classes, there.areas, scores)
        kept_objects.append((here, *(part[kept] for part in parts)))
    detections = Detections(*map(np.concatenate, zip(*kept_detections)))
    objects = Objects(*map(np.concatenate, zip(*kept_objects)))
    joined = [np.concatenate(parts, axis=-1) for parts in zip(*matched)]
    numbers = count(objects.classes, known)
    figures = _accumulate(kind, settings.ious, known, joined, numbers)
    return Evaluation(settings, known.tolist(), *figures, detections, objects)


def _first_of_each(classes: np.ndarray, most: int) -> np.ndarray:
    """Returns the indices of the first detections of each class, at most so many of each."""
    parts = [np.flatnonzero(classes == one)[:most] for one in np.unique(classes)]
    return np.sort(np.concatenate(parts))


def _accumulate(
    kind: str,
    ious: np.ndarray,
    known: np.ndarray,
    matched: Sequence[np.ndarray],
    numbers: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lets pycocotools compute precision and recall, from all images at once."""
    classes, scores, right, ignored = matched
    order = np.argsort(classes, kind='stable')
    starts, ends = (np.searchsorted(classes[order], known, side) for side in ('left', 'right'))
    evaluation = COCOeval(iouType=kind)
    params = evaluation.params
    params.catIds, params.imgIds, params.iouThrs = known.tolist(), [0], ious
    params.areaRng, params.maxDets = params.areaRng[:1], [len(order) + 1]
    evaluation._paramsEval = params
    evaluation.evalImgs = [
        dict(
            dtScores=scores[mine],
            dtMatches=right[:, mine],
            dtIgnore=ignored[:, mine],
            gtIgnore=np.zeros(number),
        )
        for mine, number in zip((order[a:b] for a, b in zip(starts, ends)), numbers)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        evaluation.accumulate()
    found = evaluation.eval
    return params.recThrs, found['precision'][..., 0, 0], found['recall'][..., 0, 0]


def count(classes: np.ndarray, known: Sequence[int]) -> list[int]:
    """Returns how often each of the known classes occurs."""
    names, numbers = np.unique(classes, return_counts=True)
    found = dict(zip(names.tolist(), numbers.tolist()))
    return [found.get(int(one), 0) for one in known]


def confusions(data: Data, kind: str, threshold: float) -> Iterator[tuple[int | None, int | None]]:
    """Matches detections with objects of any class, at an IoU of 0.5.

    Unlike the analysis tool of MMDetection, it counts each object and each detection once.

    Args:
        data (Data): The detections and objects.
        kind (str): 'bbox' or 'segm'.
        threshold (float): The lowest score.

    Yields:
        tuple[int | None, int | None]: The ids of the true and the predicted class. None is what is
        not there, or missed.
    """
    truth, images, results, settings = data
    known = set(settings.classes)
    for image in images:
        there = _objects_of(truth, image, kind)
        found = _detections_of(results.get(image), kind, settings)
        found = found.chosen(np.flatnonzero(found.scores >= threshold)[: settings.most])
        ignored = there.ignored
        (matches,) = match(_ious(found, there), np.array([0.5]), there.crowd, ignored)
        for predicted, place, outside in zip(found.classes.tolist(), matches, found.outside):
            if place < 0:
                if not outside:
                    yield None, predicted
            elif not ignored[place]:
                category = int(there.classes[place])
                yield (category if category in known else None), predicted
        for place in np.setdiff1d(np.flatnonzero(~ignored), matches):
            if (category := int(there.classes[place])) in known:
                yield category, None

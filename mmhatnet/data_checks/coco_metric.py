"""Checks of CocoMetric: what it and pycocotools silently do with their input.

pycocotools checks nothing. It computes mAP from 100 detections of each image and class, replaces an
annotation's own ``ignore`` by ``iscrowd``, leaves out areas that are negative or above 1e10, takes
the annotation id 0 for no match, and sorts the ids of images and categories with NumPy.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from mmengine.config import Config

from mmhatnet.config_walk import dicts_of, type_name
from mmhatnet.data_checks.coco_file import CocoFile, Objects, is_number, lacking
from mmhatnet.data_checks.report import Job, preview

# What CocoMetric reports beside the figures of classes.
ITEMS = [f'mAP{size}' for size in ('', '_50', '_75', '_s', '_m', '_l')]
RECALLS = ['AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']
# The detections of each image and class from which mAP is computed, whatever is set.
COUNTED = 100
LARGEST_AREA = 1e10


def kinds_of(metric: dict) -> list[str]:
    """Returns what a CocoMetric evaluates, such as bbox and segm."""
    given = metric.get('metric', 'bbox')
    return [given] if isinstance(given, str) else list(given)


def check_settings(job: Job, where: str, metric: dict) -> None:
    """Checks the settings of a CocoMetric."""
    refuse, note = job.report.errors.append, job.report.notes.append
    # The metric proposal_fast does without pycocotools.
    kinds = [kind for kind in kinds_of(metric) if kind != 'proposal_fast']
    averaged = [kind for kind in kinds if kind != 'proposal']
    numbers = metric.get('proposal_nums', (100, 300, 1000))
    items, thresholds = metric.get('metric_items'), metric.get('iou_thrs')
    if not kinds:
        return
    three = isinstance(numbers, Sequence) and len(numbers) == 3
    if not three or (averaged and COUNTED not in numbers):
        refuse(
            f'{where}.proposal_nums={numbers}: pycocotools needs three numbers, and computes mAP '
            f'from {COUNTED} detections of an image and class, whose mAP would be -1 without that '
            'number: set three of which one is 100, such as (100, 300, 1000).'
        )
    elif sorted(numbers) != [100, 300, 1000] and (
        'AR@' in str(items) or (not items and 'proposal' in kinds)
    ):
        note(
            f'{where}.proposal_nums={numbers}: AR@100, AR@300 and AR@1000 keep their names, and '
            f'are those of {preview(sorted(numbers))} detections.'
        )
    if items is not None and (isinstance(items, str) or not {*items} <= {*ITEMS, *RECALLS}):
        refuse(
            f'{where}.metric_items={items!r} has to be a list of names among '
            f'{preview([*ITEMS, *RECALLS], 20)}.'
        )
    if thresholds is not None:
        refuse(
            f'{where}.iou_thrs={thresholds}: in a list, pycocotools does not find the thresholds '
            'of mAP_50 and mAP_75, and fails at the end of the test or gives -1: leave it out.'
        )
    if three and averaged:
        _check_faster(job, where, metric, max(numbers))
    if metric.get('classwise') and len(averaged) > 1:
        note(
            f'{where}: with classwise=True, logs and save_best have CLASS_precision of '
            f'{averaged[-1]} alone, as that of {preview(averaged[:-1])} has the same name; the '
            "tables show both. Two evaluators keep both, one with metric='bbox', prefix='bbox', "
            "one with metric='segm', prefix='segm'."
        )


def _check_faster(job: Job, where: str, metric: dict, most: int) -> None:
    """Notes that the mAP of FasterCocoMetric may be another than CocoMetric's."""
    finds_more = any(limit > COUNTED for _, limit in _limits(job.cfg))
    if type_name(metric) == 'FasterCocoMetric' and most > COUNTED and finds_more:
        job.report.notes.append(
            f'{where}: FasterCocoMetric computes mAP from {most:,} detections of an image and '
            f'class, and CocoMetric from {COUNTED}, so that its mAP is another where the model '
            f'finds more than {COUNTED}: set proposal_nums=(1, 10, {COUNTED}) for the mAP of '
            'CocoMetric.'
        )


def check_names(job: Job, metrics: Sequence[tuple[str, dict]]) -> None:
    """Refuses evaluators whose figures have the same names, which MMEngine refuses at the end."""
    names = Counter(
        (metric.get('prefix') or 'coco', kind) for _, metric in metrics for kind in kinds_of(metric)
    )
    if twice := [name for name, number in names.items() if number > 1]:
        job.report.errors.append(
            f'{job.split}_evaluator: several give the same figures {"/".join(twice[0])}: set a '
            'prefix of its own in each.'
        )


def check_answers(job: Job, file: CocoFile, metric: dict) -> None:
    """Checks what pycocotools needs of the ground truth."""
    named = {c['id'] for c in file.categories if c['name'] in job.dataset.metainfo['classes']}
    answers = [a for a in file.annotations if a['category_id'] in named]
    without = (a for a in answers if a.get('iscrowd') not in (0, 1))
    for fault in lacking(file, 'annotations', 'iscrowd', without):
        job.refuse(f'{file.path}: {fault}')
    ids = [a['id'] for a in answers]
    if wrong := [i for i in ids if not (is_number(i) or str(i).isdecimal()) or float(i) == 0]:
        job.refuse(
            f'{file.path} has an annotation with id {wrong[0]!r}, but pycocotools needs numbers, '
            'and takes 0 for no match, so that AP would be too low: number annotations from 1, or '
            'let `mmhatnet new-config --data FOLDER` do it'
        )
    if wrong := [a for a in answers if not 0 <= a['area'] <= LARGEST_AREA]:
        job.refuse(
            f'{file.path}: {len(wrong):,} of {len(answers):,} annotations (ids '
            f'{preview(a["id"] for a in wrong)}) have an area such as {wrong[0]["area"]:g}, and '
            f'pycocotools leaves out what is not between 0 and {LARGEST_AREA:g} square pixels: '
            'correct them'
        )
    if marked := [a for a in answers if a.get('ignore') and not a.get('iscrowd')]:
        job.note(
            f'{file.path}: {len(marked):,} of {len(answers):,} objects (annotation ids '
            f'{preview(a["id"] for a in marked)}) are marked "ignore", of which pycocotools takes '
            'no notice, so that they count as missed: set "iscrowd" to 1 instead'
        )
    for name in ('images', 'categories'):
        own = {entry['id'] for entry in getattr(file, name)}
        if own and own != set(np.unique(list(own)).tolist()):
            job.refuse(
                f'{file.path}: NumPy, with which pycocotools sorts them, changes ids of "{name}": '
                'number them anew'
            )
    order = [c['id'] for c in file.categories if c['id'] in named]
    for setting in ('classwise', 'sort_categories'):
        if metric.get(setting) and order != sorted(order):
            job.refuse(
                f'{file.path}: with {setting}=True of the evaluator, classes would get the '
                f'figures of others, as categories are not in the order of their ids '
                f'({preview(order)}): number them anew, or set {setting}=False'
            )
    if not any(not a.get('iscrowd') for a in answers):
        job.note(f'{file.path} has no objects of the classes to compare with: AP will be -1')


def check_room(job: Job, file: CocoFile, metric: dict, objects: Objects) -> None:
    """Notes how far AP is limited by the number of detections that are made and counted."""
    counted = np.array([not a.get('iscrowd') for a in file.annotations], bool)
    counted &= (objects.label >= 0) & (objects.image >= 0)
    image, label = objects.image[counted], objects.label[counted]
    if not len(image) or not {'bbox', 'segm'} & {*kinds_of(metric)}:
        return
    (where, kind), number = np.unique(np.stack([image, label]), axis=1, return_counts=True)
    images, most_ap = len(file.images), partial(_most_ap, where, kind, number)
    if (most := most_ap(COUNTED, np.inf)) < 0.9995:
        job.note(
            f'{file.path}: {len(np.unique(where[number > COUNTED])):,} of {images:,} images have '
            f'more than {COUNTED} objects of a class (most: {number.max():,}), and mAP counts '
            f'{COUNTED} detections of an image and class, so that it cannot exceed {most:.3f}; '
            'mAP_50 and mAP_75 count as many as the largest of proposal_nums'
        )
    in_image = np.bincount(where, number).astype(int)
    for setting, limit in _limits(job.cfg):
        if (most := most_ap(np.inf, limit)) < 0.9995:
            job.note(
                f'{file.path}: {(in_image > limit).sum():,} of {images:,} images have more than '
                f'{limit} objects (most: {in_image.max():,}), and the model finds no more, as '
                f'{setting}={limit}, so that no AP can exceed {most:.3f}: set it to '
                f'{in_image.max()} or more'
            )


def _limits(cfg: Config) -> Iterator[tuple[str, int]]:
    """Yields the settings that limit the detections of an image."""
    for path, part in dicts_of(cfg.get('model'), 'model'):
        for key in ('max_per_img', 'max_per_image', 'num_queries'):
            value = part.get(key)
            # Proposals are no detections yet.
            tested = key == 'num_queries' or ('test_cfg' in path and 'rpn' not in path)
            if tested and isinstance(value, int) and value > 0:
                yield f'{path}.{key}', value


def _most_ap(
    image: np.ndarray, label: np.ndarray, number: np.ndarray, of_class: float, of_image: float
) -> float:
    """Returns the AP of a perfect model that finds only some objects.

    Args:
        image (np.ndarray): The images, (pairs,), with
        label (np.ndarray): a class of which there are objects, (pairs,), and
        number (np.ndarray): how many, (pairs,).
        of_class (float): How many objects it finds of an image and class.
        of_image (float): How many objects it finds of an image.
    """
    total = np.bincount(label, number)
    # It spends its detections on the rarest classes, of which each adds most to the mean.
    order = np.lexsort((total[label], image))
    image, label = image[order], label[order]
    found = np.minimum(number[order], of_class)
    before = np.cumsum(found) - found
    before -= before[np.searchsorted(image, image)]
    found = np.clip(of_image - before, 0, found)
    recall = np.bincount(label, found)[total > 0] / total[total > 0]
    # pycocotools averages the precision at the recalls 0, 0.01, ..., 1.
    return float(((100 * recall + 1) / 101).mean())

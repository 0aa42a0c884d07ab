"""Annotation files in COCO format, as MMDetection reads them."""

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from mmdet.datasets import CocoDataset

from mmhatnet.data_checks.images import LONGEST_SIDE, MORE_PIXELS, most_pixels
from mmhatnet.data_checks.report import Report, preview

# What a field holds, as error messages say it.
NUMBER, BOX, TEXT, ID = 'a finite number', 'four finite numbers', 'a text', 'a number or a text'
FIELDS = dict(
    images=dict(id=ID, file_name=TEXT, width=NUMBER, height=NUMBER),
    categories=dict(id=ID, name=TEXT),
    annotations=dict(id=ID, image_id=ID, category_id=ID, bbox=BOX, area=NUMBER),
)
HINTS = dict(area='fill in width * height of each box', iscrowd='fill in 0 or 1')


@dataclass
class CocoFile:
    """An annotation file, as pycocotools reads it."""

    path: str
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]


def read_coco(path: str, report: Report) -> CocoFile:
    """Reads and validates an annotation file, and notes annotations without image or category.

    Raises:
        ValueError: If it is missing, not in COCO format, or its ids are invalid.
    """
    if not os.path.isfile(path):
        raise ValueError(f'there is no annotation file {path!r}')
    # Otherwise Python's garbage collector scans millions of new objects repeatedly.
    gc.disable()
    try:
        with report.busy(f'Reading {path}'), open(path) as file:
            content = json.load(file)
    except RecursionError:
        raise ValueError(f'{path} is nested too deep to be read: export it again') from None
    except ValueError as error:
        raise ValueError(f'{path} is not JSON ({error})') from None
    finally:
        gc.enable()
    if not _is_coco(content):
        raise ValueError(
            f'{path} is not in COCO format, which is a dict with lists of dicts "images", '
            '"annotations" and "categories": export it again'
        )
    coco = CocoFile(path, **{name: content.get(name, []) for name in FIELDS})
    # Later checks rely on those before.
    checks = _faults_of_fields(coco), _faults_of_ids(coco, report), _faults_of_sizes(coco)
    if faults := next(filter(None, map(list, checks)), None):
        raise ValueError(f'{path}: {"; ".join(faults)}')
    return coco


def _is_coco(content: object) -> bool:
    if not isinstance(content, dict):
        return False
    # Files of test sets may have no annotations.
    lists = content.get('images'), content.get('categories'), content.get('annotations', [])
    return all(isinstance(e, list) and all(isinstance(one, dict) for one in e) for e in lists)


def _faults_of_fields(file: CocoFile) -> Iterator[str]:
    for name, fields in FIELDS.items():
        entries = getattr(file, name)
        for field, wanted in fields.items():
            yield from lacking(file, name, field, (e for e in entries if field not in e))
            if bad := [e for e in entries if field in e and not _is(e[field], wanted)]:
                yield (
                    f'"{field}" of {len(bad):,} {name} is not {wanted}, as '
                    f'{short(bad[0][field])} of id {short(bad[0].get("id"))}: export it again'
                )


def short(value: object) -> str:
    """Returns a value of a JSON file, cut off where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f'{text[:100]}...'


def is_number(value: object) -> bool:
    """Returns whether a value of a JSON file is a number that a float can hold, except infinity."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is(value: object, wanted: str) -> bool:
    if wanted is BOX:
        return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))
    if wanted is ID and (value is None or isinstance(value, str)):
        return True
    return isinstance(value, str) if wanted is TEXT else is_number(value)


def lacking(file: CocoFile, name: str, field: str, entries: Iterable[dict]) -> Iterator[str]:
    """Yields an error message if entries lack a field."""
    if ids := [entry.get('id') for entry in entries]:
        yield (
            f'{len(ids):,} of {len(getattr(file, name)):,} {name} (ids {preview(ids)}) lack '
            f'"{field}", which MMDetection needs: {HINTS.get(field, "export them again")}'
        )


def _faults_of_ids(file: CocoFile, report: Report) -> Iterator[str]:
    for name in FIELDS:
        seen = Counter(entry['id'] for entry in getattr(file, name))
        if twice := [i for i, number in seen.items() if number > 1]:
            yield (
                f'ids of "{name}" occur more than once ({preview(twice)}), of which MMDetection '
                'keeps one: number them anew'
            )
        kinds = {isinstance(i, str) + 2 * (i is None): i for i in seen}
        # The metric sorts those of images and categories.
        if name != 'annotations' and len(kinds) > 1:
            values = ' and '.join(map(short, kinds.values()))
            yield f'ids of "{name}" are of several types, as {values}: number them anew'
    for field, name in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in getattr(file, name)}
        used = Counter(a[field] for a in file.annotations)
        unknown = [i for i in used if i not in known]
        twins = {str(i): i for i in known} if unknown else {}
        if other := [i for i in unknown if str(i) in twins]:
            yield (
                f'"{field}" of annotations is {json.dumps(other[0])}, while the id in "{name}" is '
                f'{json.dumps(twins[str(other[0])])}, so that MMDetection finds no object: write '
                'both as numbers'
            )
        elif unknown:
            report.notes.append(
                f'{file.path}: {sum(used[i] for i in unknown):,} of {len(file.annotations):,} '
                f'annotations are left out, as "{name}" has no id {preview(unknown)}.'
            )


def _faults_of_sizes(file: CocoFile) -> Iterator[str]:
    most = most_pixels()
    large = [
        image
        for image in file.images
        if max(image['width'], image['height']) > LONGEST_SIDE
        or image['width'] * image['height'] > most
    ]
    if large:
        image = large[0]
        yield (
            f'the size of {len(large):,} of {len(file.images):,} images (ids '
            f'{preview(one["id"] for one in large)}), {image["width"]} x {image["height"]}, is '
            f'more than OpenCV reads, {LONGEST_SIDE:,} a side and {most:,} pixels: correct it, or '
            f'{MORE_PIXELS}'
        )


class Objects:
    """The annotations of a file as arrays, and which of them a dataset keeps.

    Attributes:
        sizes (np.ndarray): Width and height of the images, (images, 2).
        image (np.ndarray): Index of each object's image, -1 if there is none.
        room (np.ndarray): Width and height of each object's image, (objects, 2).
        label (np.ndarray): Each object's class, -1 if it is of none.
        low, high (np.ndarray): Left and top, right and bottom of the boxes, (objects, 2).
        named (np.ndarray): Whether an object is of a class, and not marked as to ignore.
        used (np.ndarray): Whether CocoDataset keeps it.
        kept (np.ndarray): The indices of the images that CocoDataset keeps.
    """

    def __init__(self, file: CocoFile, dataset: CocoDataset) -> None:
        self.ids = [annotation['id'] for annotation in file.annotations]
        annotations, classes = file.annotations, list(dataset.metainfo['classes'])
        images = {image['id']: i for i, image in enumerate(file.images)}
        known = [category for category in file.categories if category['name'] in classes]
        labels = {category['id']: classes.index(category['name']) for category in known}
        sizes = [(image['width'], image['height']) for image in file.images]
        self.sizes = np.array(sizes, float).reshape(-1, 2)
        self.image = np.array([images.get(a['image_id'], -1) for a in annotations], int)
        self.label = np.array([labels.get(a['category_id'], -1) for a in annotations], int)
        self.room = np.append(self.sizes, [[0, 0]], axis=0)[self.image]
        box = np.array([a['bbox'] for a in annotations], float).reshape(-1, 4)
        self.low, self.high = box[:, :2], box[:, :2] + box[:, 2:]
        area = np.array([a['area'] for a in annotations], float)
        ignored = np.array([bool(a.get('ignore')) for a in annotations], bool)
        self.named = (self.label >= 0) & (self.image >= 0) & ~ignored
        # The conditions of CocoDataset.parse_data_info.
        inside = (np.minimum(self.high, self.room) > np.maximum(self.low, 0)).all(1)
        self.used = self.named & inside & (area > 0) & (box[:, 2:] >= 1).all(1)
        self.kept = self._kept_images(dataset)

    def preview(self, found: Sequence[int]) -> str:
        """Returns the number and the first ids of the objects found."""
        ids = preview(self.ids[i] for i in found)
        return f'{len(found):,} of {self.named.sum():,} objects (annotation ids {ids})'

    def _kept_images(self, dataset: CocoDataset) -> np.ndarray:
        """Applies CocoDataset.filter_data and the setting `indices`."""
        kept = np.ones(len(self.sizes), bool)
        if dataset.filter_cfg and not dataset.test_mode:
            kept = self.sizes.min(1) >= dataset.filter_cfg.get('min_size', 0)
            if dataset.filter_cfg.get('filter_empty_gt', False):
                kept &= np.isin(np.arange(len(kept)), self.image[self.label >= 0])
        indices = dataset._indices
        if not isinstance(indices, (list, tuple)):
            indices = slice(indices) if (indices or 0) >= 0 else slice(indices, None)
        return np.flatnonzero(kept)[indices]

"""Predictions of detectors in COCO format, with the ids of annotations."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmhatnet.errors import DataError

AMBIGUOUS = object()


class Numbered:
    """Numbers images and categories from 1.

    Args:
        classes (list[str]): The names of the categories.
    """

    def __init__(self, classes: list[str]) -> None:
        self.categories = [dict(id=number, name=name) for number, name in enumerate(classes, 1)]
        self.rest = dict(categories=self.categories, annotations=[])
        self.count = 0

    def image_of(self, path: str, height: int, width: int) -> dict:
        """Returns the entry of the next image."""
        self.count += 1
        return dict(id=self.count, file_name=path, height=height, width=width)


class Annotated:
    """Takes images and categories from annotations.

    Args:
        ann_file (str): The COCO annotations.
        classes (list[str]): The names of the categories.

    Attributes:
        categories (list[dict]): The categories, in the order of the classes.
        rest (dict): All of the annotations but the images.

    Raises:
        DataError: If the file cannot be read, or has no such category.
    """

    def __init__(self, ann_file: str, classes: list[str]) -> None:
        self.ann_file = ann_file
        try:
            content = json.loads(Path(ann_file).read_text())
            images, self.by_tail = content.pop('images'), {}
            for image in images:
                for tail in _tails(image['file_name']):
                    self.by_tail[tail] = AMBIGUOUS if tail in self.by_tail else image
            categories = {category['name']: category for category in content['categories']}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f'--ann-file {ann_file} cannot be read as COCO: {error!r}.') from error
        self._require('category', [name for name in classes if name not in categories])
        self.categories = [categories[name] for name in classes]
        self.rest = {**content, 'categories': self.categories}

    def require(self, paths: Iterable[str]) -> None:
        """Checks that each image has an entry of its own.

        Raises:
            DataError: If not.
        """
        found = {path: self._find(path) for path in paths}
        self._require('image', [path for path, image in found.items() if image is None])
        seen = {}
        for path, image in found.items():
            if image is AMBIGUOUS:
                self._refuse(f'has several images that {path} may be')
            if (other := seen.setdefault(id(image), path)) != path:
                self._refuse(f'has one image, {image["file_name"]}, for {other} and {path}')

    def image_of(self, path: str, height: int, width: int) -> dict:
        """Returns the entry of an image."""
        image = self._find(path)
        if image is None or image is AMBIGUOUS:  # a frame of a video
            self._require('image', [path])
        return image

    def _find(self, path: str) -> dict | object | None:
        """Returns the image whose path has the longest common end, AMBIGUOUS, or None."""
        return next((self.by_tail[tail] for tail in _tails(path) if tail in self.by_tail), None)

    def _require(self, entry: str, missing: list[str]) -> None:
        if missing:
            number = f' ({len(missing)} are missing)' if len(missing) > 1 else ''
            self._refuse(f'has no {entry} {missing[0]}{number}')

    def _refuse(self, reason: str) -> None:
        raise DataError(
            f'--ann-file {self.ann_file} {reason}: name the annotations of these images, or omit '
            'the option.'
        )


def _tails(path: str) -> Iterator[str]:
    """Yields the ends of a path, such as 'a/b/c', 'b/c' and 'c'."""
    parts = [part for part in path.split('/') if part not in ('', '.')]
    return ('/'.join(parts[start:]) for start in range(len(parts)))


def detections(sample: object) -> list[dict]:
    """Returns the detections of one image in COCO format, with labels instead of ids."""
    from mmdet.structures.mask import encode_mask_results

    found = sample.pred_instances.numpy()
    results = [
        dict(label=label, score=score, bbox=[left, top, right - left, bottom - top])
        for label, score, (left, top, right, bottom) in zip(
            found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist()
        )
    ]
    for result, mask in zip(results, encode_mask_results(found.get('masks', ()))):
        result['segmentation'] = dict(size=mask['size'], counts=mask['counts'].decode())
    return results


def with_ids(results: Iterable[dict], image: dict, categories: list[dict]) -> Iterator[dict]:
    """Yields detections with the ids of their image and categories."""
    for result in results:
        category = categories[result.pop('label')]
        yield dict(image_id=image['id'], category_id=category['id'], **result)

"""Predicts the images of the demo, and keeps what the page shows of them."""

import json
import secrets
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from PIL import Image

from mmhatnet.data_checks.images import has_more_pixels
from mmhatnet.errors import ImageError, printable
from mmhatnet.inference import ImageLoader, LoadedImage, predict_loaded
from mmhatnet.prediction.coco import Numbered, with_ids
from mmhatnet.prediction.loading import Failed
from mmhatnet.prediction.outputs import Outputs
from mmhatnet.report.drawing import colors_of, css

# Masks have the size of the image: a hundred of them take as many bytes times a hundred.
MOST_PIXELS = 2**26
# The longer side of what the page shows, in pixels, and the most boxes and classes of one image.
SIDE, MOST_BOXES, MOST_CLASSES = 1280, 100, 10
# The longer side of the canvas of outlines, and how OpenCV finds these: with their holes.
CANVAS, HOW_TO_FOLLOW = 640, (cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
# Predictions that are kept for the threshold and the downloads.
KEPT = 64


class Box(NamedTuple):
    """A detection, as the page shows it.

    Attributes:
        name (str): The class.
        score (float): The score.
        color (str): The color of the class, as in CSS.
        dark (bool): Whether text on this color needs to be white.
        place (tuple[float, float, float, float]): Left, top, width and height in percent.
        pixels (tuple[int, int, int, int]): The same in pixels of the image.
        outline (str): The mask, as the path of an SVG, or ''.
    """

    name: str
    score: float
    color: str
    dark: bool
    place: tuple[float, float, float, float]
    pixels: tuple[int, int, int, int]
    outline: str


@dataclass(frozen=True)
class Prediction:
    """What is kept of a prediction.

    Attributes:
        name (str): The name of the image.
        size (tuple[int, int]): Its height and width in pixels.
        results (list[dict]): The results that ``mmhatnet predict`` writes, of any score.
        preview (bytes): The image as a JPEG file of at most 1280 x 1280 pixels.
        seconds (float): How long the prediction took.
    """

    name: str
    size: tuple[int, int]
    results: list[dict]
    preview: bytes
    seconds: float

    def files(self, threshold: float) -> dict[str, bytes]:
        """Returns the files that can be downloaded, by their names.

        Args:
            threshold (float): The minimum score of boxes.
        """
        return {'predictions.json': as_json(self.results)}

    def images(self) -> dict[str, bytes]:
        """Returns the images that the page shows, by their names."""
        return {'preview.jpg': self.preview}


@dataclass(frozen=True)
class Detections(Prediction):
    """The prediction of a detector.

    Attributes:
        classes (Sequence[str]): The names of the classes.
        boxes (list[Box]): All detections, in the order of the results.
        canvas (tuple[int, int]): The width and height in which the outlines are given.
    """

    classes: Sequence[str]
    boxes: list[Box]
    canvas: tuple[int, int]

    def files(self, threshold: float) -> dict[str, bytes]:
        numbered = Numbered(list(self.classes))
        image = numbered.image_of(self.name, *self.size)
        above = (dict(result) for result in self.results if result['score'] > threshold)
        return {
            'predictions.json': as_json(list(with_ids(above, image, numbered.categories))),
            'images.json': as_json(dict(images=[image], **numbered.rest)),
        }

    def above(self, threshold: float) -> list[Box]:
        """Returns the detections with a score above a threshold, the highest first."""
        return sorted((b for b in self.boxes if b.score > threshold), key=lambda b: -b.score)


@dataclass(frozen=True)
class LabelMap(Prediction):
    """The prediction of a segmentor.

    Attributes:
        label_map (bytes): The class of each pixel, as a PNG file.
        overlay (bytes): The same in colors and of the size of the preview.
        legend (list[tuple[str, str, float]]): The color, the name and the share of the pixels of
            each class in the image, the most frequent one first.
    """

    label_map: bytes
    overlay: bytes
    legend: list[tuple[str, str, float]]

    def files(self, threshold: float) -> dict[str, bytes]:
        return super().files(threshold) | {'label_map.png': self.label_map}

    def images(self) -> dict[str, bytes]:
        return super().images() | {'overlay.png': self.overlay}


@dataclass(frozen=True)
class Classes(Prediction):
    """The prediction of a classifier.

    Attributes:
        ranking (list[tuple[str, float]]): The classes with the highest scores.
    """

    ranking: list[tuple[str, float]]


class Predictor:
    """Predicts images one after another, whichever thread asks, and keeps the last ones.

    Args:
        inferencer (object): The result of ``build_inferencer``.
        scope (str): The config's ``default_scope``.
        folder (Path): A folder for files of a moment.
    """

    def __init__(self, inferencer: object, scope: str, folder: Path) -> None:
        self.inferencer, self.scope, self.folder = inferencer, scope, folder
        self.load, self.lock = ImageLoader(inferencer), threading.Lock()
        self.kept: OrderedDict[str, Prediction] = OrderedDict()
        meta = getattr(getattr(inferencer, 'visualizer', None), 'dataset_meta', None) or {}
        self.colors = colors_of(len(inferencer.classes or ()), meta.get('palette'))

    def __getitem__(self, key: str | None) -> Prediction | None:
        """Returns a prediction, or None if it is no longer kept."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
            return self.kept.get(key)

    def predict(self, path: str, name: str) -> str:
        """Predicts an image.

        Args:
            path (str): The file.
            name (str): What the user calls it.

        Returns:
            str: The key of the prediction, which nobody can guess.

        Raises:
            ImageError: If it cannot be predicted.
        """
        name = printable(name)
        with self.lock:
            try:
                prediction = self._predict(path, name)
            except ImageError as error:
                raise ImageError(f'{name} {Failed.because_of(error, path).reason}') from error
            key = secrets.token_urlsafe()
            self.kept[key] = prediction
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)
        return key

    def _predict(self, path: str, name: str) -> Prediction:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            is_large = has_more_pixels(path, MOST_PIXELS)
        if is_large:
            raise ImageError(
                f'has more pixels than the {MOST_PIXELS:,} that this page takes: make it smaller, '
                'or use mmhatnet predict'
            )
        started = time.perf_counter()
        image = self.load(path)
        try:
            sample = predict_loaded(self.inferencer, [image])[0].cpu()
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            raise ImageError('needs more memory than there is: make it smaller') from error
        image = image._replace(path=name)
        results, label_map = self._results(image, sample)
        shown = self._shown(image.pixels)
        common = (name, image.size, results, _encoded('.jpg', shown))
        seconds = time.perf_counter() - started
        if self.scope == 'mmdet':
            height, width = image.size
            canvas = mmcv.rescale_size((width, height), (CANVAS, CANVAS))
            boxes = self._boxes(image, results, sample, canvas)
            return Detections(*common, seconds, self.inferencer.classes, boxes, canvas)
        if self.scope == 'mmseg':
            return LabelMap(*common, seconds, *self._colored(sample, shown, results, label_map))
        scores = sample.pred_score
        best = scores.argsort(descending=True)[:MOST_CLASSES].tolist()
        names = self.inferencer.classes or [f'class {i}' for i in range(len(scores))]
        return Classes(*common, seconds, [(names[i], float(scores[i])) for i in best])

    def _results(self, image: LoadedImage, sample: object) -> tuple[list[dict], bytes]:
        """Returns the results that ``mmhatnet predict`` writes, and the label map of a segmentor.

        Raises:
            ImageError: If they are not finite.
        """
        with TemporaryDirectory(dir=self.folder) as folder:
            place = Path(folder)
            outputs = Outputs(self.inferencer, self.scope, place, place / 'new', -1, False, 0)
            results = outputs.results(image, 'label_map', sample)
            file = place / 'labels' / 'label_map.png'
            label_map = file.read_bytes() if file.exists() else b''
        for result in results:
            if 'label_map' in result:
                result['label_map'] = file.name
        try:
            as_json(results)
        except ValueError as error:
            raise ImageError('has predictions that are not finite') from error
        return results, label_map

    @staticmethod
    def _shown(pixels: np.ndarray) -> np.ndarray:
        return mmcv.imrescale(pixels, (SIDE, SIDE)) if max(pixels.shape[:2]) > SIDE else pixels

    def _boxes(
        self, image: LoadedImage, results: list[dict], sample: object, canvas: tuple[int, int]
    ) -> list[Box]:
        height, width = image.size
        masks = sample.pred_instances.get('masks')
        boxes = []
        for number, result in enumerate(results):
            color = self.colors[result['label']]
            left, top, wide, high = result['bbox']
            share = (100 * left / width, 100 * top / height, 100 * wide / width)
            boxes.append(
                Box(
                    *(self.inferencer.classes[result['label']], result['score'], css(color)),
                    bool(color @ (0.299, 0.587, 0.114) < 140),
                    (*share, 100 * high / height),
                    tuple(round(value) for value in result['bbox']),
                    '' if masks is None else _outline(np.asarray(masks[number]), canvas),
                )
            )
        return boxes

    def _colored(
        self, sample: object, shown: np.ndarray, results: list[dict], label_map: bytes
    ) -> tuple[bytes, bytes, list[tuple[str, str, float]]]:
        labels = sample.pred_sem_seg.data[0].numpy().astype(np.uint16)
        small = mmcv.imresize(labels, shown.shape[1::-1], interpolation='nearest')
        (result,) = results
        colors = dict(zip(self.inferencer.classes, map(css, self.colors)))
        legend = [
            (colors[name], name, count / labels.size)
            for name, count in sorted(result['pixels'].items(), key=lambda item: -item[1])
        ]
        return label_map, _encoded('.png', self.colors[small][..., ::-1]), legend


def as_json(content: object) -> bytes:
    """Returns the content of a JSON file.

    Raises:
        ValueError: If a number is not finite.
    """
    return json.dumps(content, allow_nan=False).encode()


def _encoded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def _outline(mask: np.ndarray, canvas: tuple[int, int]) -> str:
    """Returns a mask as the path of an SVG. Those of small images are smoothed."""
    scale = canvas[0] / mask.shape[1]
    large = mmcv.imresize(mask.astype(np.uint8) * 255, canvas)
    if scale > 1:
        large = cv2.GaussianBlur(large, (0, 0), scale / 2)
    contours, _ = cv2.findContours((large > 127).astype(np.uint8), *HOW_TO_FOLLOW)
    lines = (cv2.approxPolyDP(contour, 0.7, True)[:, 0] for contour in contours)
    return ''.join(
        'M' + 'L'.join(f'{x} {y}' for x, y in line.tolist()) + 'Z'
        for line in lines
        if len(line) > 2
    )

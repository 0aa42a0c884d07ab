"""Compares the detections of a file with those of the model it was exported from."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmhatnet.config_walk import build_unread
from mmhatnet.errors import ExportError
from mmhatnet.export.detected import FileDetector
from mmhatnet.inference import ImageLoader, LoadedImage, predict_loaded
from mmhatnet.synthetic_data import draw_coco

CHECKED = 4  # images, unless the user names others


class Tolerance(NamedTuple):
    """By how much two detections of one object may differ.

    Attributes:
        box (float): In pixels of the image, for each corner.
        score (float): As a difference.
        mask (float): As the share of the mask's pixels; below 20 pixels any difference passes.
        others (float): The share of detections that may have no counterpart, because a near-tie
            turned out otherwise.
    """

    box: float
    score: float
    mask: float
    others: float


# Files differ by rounding, about 1e-3 px. OpenCV may resize a little differently on other CPUs.
DETECTIONS = Tolerance(0.5, 0.01, 0.02, 0.05)
# Of a file with 8-bit weights, which is to be evaluated.
QUANTIZED = Tolerance(10, 0.2, 0.3, 0.3)
FEW_PIXELS = 20  # of a mask


class Agreement(NamedTuple):
    """How the detections of a file agree with those of the model.

    Attributes:
        images (int): How many images were compared.
        origin (str): Where they are from.
        pairs (int): How many detections have a counterpart.
        others (int): How many have none.
        near (int): How many more have none, because their scores are near the lowest that is kept.
        box (float): The largest difference of a corner, in pixels.
        score (float): The largest difference of a score.
        mask (int): The most pixels in which two masks differ.
    """

    images: int
    origin: str
    pairs: int
    others: int
    near: int
    box: float
    score: float
    mask: int | None

    def __str__(self) -> str:
        images = f'{self.images} images {self.origin}'.rstrip()
        if not self.pairs + self.others:
            nothing = f'no detection in {images}' + (
                f' but {self.near} whose scores are near the lowest that is kept' * bool(self.near)
            )
            return f'{nothing}, so nothing else was compared: name images with objects by --images'
        text = f'{self.pairs} detections in {images} agree with PyTorch'
        if self.pairs:
            text += f': boxes within {self.box:.1e} px, scores within {self.score:.1e}'
        if self.pairs and self.mask is not None:
            text += f', masks within {self.mask} px'
        if self.near:
            text += f'; {self.near} with scores near the lowest that is kept have no counterpart'
        if self.others:
            text += f'; {self.others} others have no counterpart'
        return text


class Examples:
    """Images with what a model predicts for them, alone and in a batch.

    Args:
        inferencer (object): The inferencer of the model.
        dataset (ConfigDict): The settings of its test dataset.
        names (Sequence[str]): Images of the user. If there are none, a few of the dataset are used,
            or synthetic ones where it cannot be read.

    Attributes:
        origin (str): Where the images are from.

    Raises:
        ExportError: If the test pipeline makes several images of one.
        ImageError: If an image cannot be read.
    """

    def __init__(self, inferencer: object, dataset: ConfigDict, names: Sequence[str] = ()) -> None:
        load = ImageLoader(inferencer)
        self.origin = ''
        if not names and (names := _names_in(dataset)):
            self.origin = 'of the test data'
        images = [load(name) for name in names]
        if not images:
            self.origin = 'that are synthetic'
            images = [load(f'synthetic image {i}', drawn_image(i)) for i in range(CHECKED)]
        if isinstance(images[0].data.get('inputs'), list):
            raise ExportError(
                'The test pipeline makes several images of one, as test-time augmentation does, '
                'and a file detects in one: leave that step out of test_dataloader.'
            )

        def predict(image: LoadedImage) -> InstanceData:
            return predict_loaded(inferencer, [image])[0].pred_instances.cpu()

        predicted = [predict(image) for image in images]
        # A batch without detections would say nothing about batches.
        most = max(range(len(images)), key=lambda index: len(predicted[index]))
        chosen = images[most]
        mirror_image = np.ascontiguousarray(chosen.pixels[:, ::-1])
        mirrored = load(f'{chosen.path}, mirrored', mirror_image)
        self.batches = [*([image] for image in images), [chosen, mirrored]]
        self.predicted = [*([one] for one in predicted), [predicted[most], predict(mirrored)]]

    def compare(
        self, detector: FileDetector, settings: dict, tolerance: Tolerance = DETECTIONS
    ) -> Agreement:
        """Compares what a file detects.

        Args:
            detector (FileDetector): The file.
            settings (dict): Of the model, ``score_thr`` and ``max_per_img``.
            tolerance (Tolerance): What may differ.

        Raises:
            ExportError: If more differs.
        """
        pairs, near, others = [], 0, []
        # Lower than the threshold where a factor, such as a centerness, multiplies scores after it.
        scores = [one.scores for predicted in self.predicted for one in predicted]
        floor = min([settings['score_thr'], *torch.cat(scores).tolist()]) - tolerance.score
        for images, predicted in zip(self.batches, self.predicted):
            for image, actual, expected in zip(images, detector(images), predicted):
                paired = _paired(actual, expected, tolerance)
                pairs += [_difference(actual[i], expected[j]) for i, j in paired]
                if len(actual) > settings['max_per_img'] > 0:
                    raise ExportError(
                        f'The exported file is wrong: it finds {len(actual)} objects in '
                        f'{image.path}, and max_per_img is {settings["max_per_img"]}. '
                        'The file is not kept.'
                    )
                for found, other, matched, name in zip(
                    (actual, expected),
                    (expected, actual),
                    zip(*paired) if paired else ((), ()),
                    ('file', 'PyTorch'),
                ):
                    # The other one may have dropped what it scores a little lower.
                    lowest = _lowest(other, settings) + tolerance.score
                    for index in {*range(len(found))} - {*matched}:
                        if floor <= found.scores[index] < lowest:
                            near += 1
                        else:
                            others.append(_describe(found[index], name, image))
        total = len(pairs) + len(others)
        if len(others) > tolerance.others * total:
            raise ExportError(
                f'The exported file is wrong: {len(others)} of {total} detections differ from '
                f'those of PyTorch by more than {tolerance.box} px or {tolerance.score} of the '
                f'score, such as {others[0]}. The file is not kept.'
            )
        box, score, mask = (max(values) for values in zip(*pairs)) if pairs else (0.0, 0.0, 0)
        has_masks = 'masks' in detector.outputs
        return Agreement(
            *(sum(map(len, self.batches)), self.origin, len(pairs), len(others), near),
            *(box, score, mask if has_masks else None),
        )


def _names_in(dataset: ConfigDict) -> list[str]:
    """Returns a few images of a dataset, or none if it cannot be read."""
    try:
        data = build_unread(dataset)
        data.full_init()
        chosen = np.unique(np.linspace(0, len(data) - 1, CHECKED).astype(int))
        names = [data.get_data_info(index)['img_path'] for index in chosen]
    except Exception:  # Datasets raise many errors where their files are missing.
        return []
    return names if all(map(os.path.isfile, names)) else []


def drawn_image(index: int) -> np.ndarray:
    """Draws a scene with objects (H, W, 3), in BGR."""
    image, _ = draw_coco(np.random.default_rng(index), index)
    return np.ascontiguousarray(np.asarray(image)[..., ::-1])


def _lowest(found: InstanceData, settings: dict) -> float:
    """Returns the score below which detections are dropped."""
    full = 0 < settings['max_per_img'] <= len(found)
    return max(settings['score_thr'], found.scores.min().item() if full else 0)


def _paired(
    actual: InstanceData, expected: InstanceData, tolerance: Tolerance
) -> list[tuple[int, int]]:
    """Returns the indices of detections that agree, the nearest first."""
    boxes = torch.cdist(actual.bboxes.double(), expected.bboxes.double(), p=float('inf'))
    scores = (actual.scores[:, None] - expected.scores).abs()
    agree = (boxes <= tolerance.box) & (scores <= tolerance.score)
    agree &= actual.labels[:, None] == expected.labels
    candidates = agree.nonzero()
    nearness = boxes[agree] / tolerance.box + scores[agree] / tolerance.score
    pairs: dict[int, int] = {}
    for i, j in candidates[nearness.argsort()].tolist():
        if (
            i not in pairs
            and j not in pairs.values()
            and _same_mask(actual[i], expected[j], tolerance)
        ):
            pairs[i] = j
    return [*pairs.items()]


def _same_mask(actual: InstanceData, expected: InstanceData, tolerance: Tolerance) -> bool:
    if 'masks' not in expected:
        return True
    different = (actual.masks != expected.masks).sum()
    return bool(different <= max(FEW_PIXELS, tolerance.mask * expected.masks.sum()))


def _difference(actual: InstanceData, expected: InstanceData) -> tuple[float, float, int]:
    box = (actual.bboxes - expected.bboxes).abs().max().item()
    score = (actual.scores - expected.scores).abs().item()
    has_mask = 'masks' in expected
    return box, score, int((actual.masks != expected.masks).sum()) if has_mask else 0


def _describe(found: InstanceData, name: str, image: LoadedImage) -> str:
    corners = ', '.join(f'{corner:.1f}' for corner in found.bboxes[0].tolist())
    return (
        f'class {found.labels.item()} with score {found.scores.item():.4f} at ({corners}) in '
        f'{image.path}, which only {"the file" if name == "file" else name} finds'
    )

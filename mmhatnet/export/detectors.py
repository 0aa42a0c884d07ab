"""Detectors as modules that take pixels and return boxes, scores, labels and masks."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmhatnet.export.coverage import require_covered, stages_of
from mmhatnet.export.pixels import TakesPixels
from mmhatnet.export.queries import detect_with_queries
from mmhatnet.export.regions import pool_regions
from mmhatnet.export.suppression import Found, suppress


class Detections(TakesPixels):
    """A detector of mmdetection as a module that can be exported for images of any size.

    It calls the network, the generators of priors and the coders of boxes of mmdetection, and
    restates the steps between, which depend on the numbers of boxes. All images of a batch have one
    size. The boxes of all are in one tensor, by image and descending score.

    Args:
        model (nn.Module): A detector, with its weights.

    Attributes:
        outputs (list[str]): The names of the outputs: ``boxes`` (D, 4), corners in pixels of the
            given images; ``scores`` (D,); ``labels`` (D,); ``image_indices`` (D,); with a mask head
            ``masks`` (D, height, width), probabilities in a grid over the box.

    Raises:
        ExportError: If the detector, one of its parts or a setting does not predict by the steps
            that are restated.
    """

    def __init__(self, model: nn.Module) -> None:
        require_covered(model)
        super().__init__(model)
        self.model = model
        self.outputs = ['boxes', 'scores', 'labels', 'image_indices']
        if getattr(model, 'with_mask', False):
            self.outputs.append('masks')

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps images (N, C, H, W) to the ``outputs``."""
        size = images.shape[2:]
        features = self.model.extract_feat(self._padded(self.normalize(images)))
        if hasattr(self.model, 'forward_transformer'):
            return tuple(detect_with_queries(self.model, features, size))
        if not hasattr(self.model, 'roi_head'):
            return tuple(_dense(self.model.bbox_head, features, size))
        proposals = _dense(self.model.rpn_head, features, size)
        head = self.model.roi_head
        found = _classified(head, features, proposals, size)
        if not head.with_mask:
            return tuple(found)
        return *found, _masks(head, features, found)

    def _padded(self, x: Tensor) -> Tensor:
        preprocessor = self.model.data_preprocessor
        divisor = preprocessor.pad_size_divisor
        height, width = ((side + divisor - 1) // divisor * divisor for side in x.shape[2:])
        padding = (0, width - x.shape[3], 0, height - x.shape[2])
        return F.pad(x, padding, value=preprocessor.pad_value)


def _dense(head: nn.Module, features: Sequence[Tensor], size: Sequence[int]) -> Found:
    """Detects in all positions of features, as ``predict`` of a dense head.

    Args:
        head (nn.Module): The head.
        features (Sequence[Tensor]): Of each level, (N, C, height, width).
        size (Sequence[int]): Height and width of the images, to which boxes are clipped.
    """
    from mmdet.models import RPNHead
    from mmdet.structures.bbox import get_box_tensor

    settings = head.test_cfg
    # Proposals have no lowest score, and those of one level suppress each other.
    of_proposals = isinstance(head, RPNHead)
    threshold = -1 if of_proposals else settings.get('score_thr', 0)
    cls_scores, bbox_preds, factors = (*head(features), None)[:3]
    sizes = [scores.shape[2:] for scores in cls_scores]
    levels = []
    for level, priors in enumerate(_grid_priors(head.prior_generator, sizes, cls_scores[0])):
        scores = _by_position(cls_scores[level], head.cls_out_channels)
        scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(dim=-1)[..., :-1]
        classes = scores.shape[2]
        deltas = _by_position(bbox_preds[level], head.bbox_coder.encode_size)
        scores = scores.flatten(1)
        scores, best = scores.topk(torch.sym_min(settings['nms_pre'], scores.shape[1]))
        labels, best = best % classes, best // classes
        if factors is None:
            factor = torch.ones_like(scores)
        else:
            factor = _by_position(factors[level], 1)[..., 0].sigmoid().gather(1, best)
        deltas = deltas.gather(1, best[..., None].expand(-1, -1, deltas.shape[2]))
        groups = torch.full_like(labels, level) if of_proposals else labels
        levels.append((scores, factor, groups, deltas, get_box_tensor(priors)[best]))
    scores, factor, groups, deltas, priors = (torch.cat(parts, dim=1) for parts in zip(*levels))
    boxes = head.bbox_coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1), max_shape=size)
    boxes = get_box_tensor(boxes).view(*deltas.shape[:2], 4)
    kept = scores > threshold
    smallest = settings.get('min_bbox_size', -1)
    if smallest >= 0:
        kept = kept & ((boxes[..., 2:] - boxes[..., :2]) > smallest).all(dim=-1)
    images, index = kept.nonzero().unbind(dim=1)
    scores = scores * factor
    found = Found(boxes[images, index], scores[images, index], groups[images, index], images)
    found = suppress(found, cls_scores[0].shape[0], settings)
    return found._replace(labels=torch.zeros_like(found.labels)) if of_proposals else found


def _by_position(x: Tensor, channels: int) -> Tensor:
    """Reshapes predictions (N, priors * channels, H, W) to (N, H * W * priors, channels)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels)


def _grid_priors(generator: Any, sizes: list[Sequence[int]], like: Tensor) -> list[Tensor]:
    """Returns the boxes or points of each level."""
    from mmdet.models.task_modules.prior_generators import MlvlPointGenerator

    if isinstance(generator, MlvlPointGenerator):
        generator = copy.copy(generator)
        vars(generator)['_meshgrid'] = _meshgrid
    return generator.grid_priors(sizes, dtype=like.dtype, device=like.device)


def _meshgrid(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Does what mmdetection's function does, whose ``len`` would fix the size in a graph."""
    return x.repeat(y.shape[0]), y[:, None].repeat(1, x.shape[0]).flatten()


def _classified(
    head: nn.Module, features: Sequence[Tensor], proposals: Found, size: Sequence[int]
) -> Found:
    """Classifies and refines proposals, as ``predict_bbox`` of a RoI head."""
    from mmdet.structures.bbox import get_box_tensor

    rois, logits = proposals.rois, []
    stages = stages_of(head, 'bbox')
    for stage, (extractor, box_head) in enumerate(stages, start=1):
        scores, deltas = box_head(_of_regions(head, extractor, features, rois))
        logits.append(scores)
        if stage < len(stages):
            labels = scores[:, :-1].argmax(dim=1)
            boxes = box_head.regress_by_class(rois[:, 1:], labels, deltas, dict(img_shape=size))
            rois = torch.cat([rois[:, :1], get_box_tensor(boxes)], dim=1)
    scores = (sum(logits) / len(stages)).softmax(dim=-1)[:-1, :-1]
    classes = 1 if box_head.reg_class_agnostic else box_head.num_classes
    priors = rois[:, None, 1:].expand(-1, classes, -1).flatten(0, 1)
    deltas = deltas.reshape(-1, box_head.bbox_coder.encode_size)
    boxes = get_box_tensor(box_head.bbox_coder.decode(priors, deltas, max_shape=size))
    boxes = boxes.view(-1, classes, 4).expand(-1, box_head.num_classes, -1)
    regions, labels = (scores > head.test_cfg['score_thr']).nonzero().unbind(dim=1)
    found = Found(
        boxes[regions, labels], scores[regions, labels], labels, proposals.images[regions]
    )
    return suppress(found, features[0].shape[0], head.test_cfg)


def _of_regions(
    head: nn.Module, extractor: nn.Module, features: Sequence[Tensor], rois: Tensor
) -> Tensor:
    pooled = pool_regions(extractor, features, rois)
    return head.shared_head(pooled) if head.with_shared_head else pooled


def _masks(head: nn.Module, features: Sequence[Tensor], found: Found) -> Tensor:
    """Returns the probabilities of each box's class (D, height, width)."""
    rois, stages = found.rois, stages_of(head, 'mask')
    masks = [
        mask_head(_of_regions(head, extractor, features, rois)).sigmoid()
        for extractor, mask_head in stages
    ]
    mean = (sum(masks) / len(masks))[:-1]
    if stages[-1][1].class_agnostic:
        return mean[:, 0]
    return mean[torch.arange(found.labels.shape[0], device=mean.device), found.labels]

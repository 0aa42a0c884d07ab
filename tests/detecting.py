"""Small detectors with random weights, and what differs between their outputs and predictions."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from synthetic import standard_normal, synthetic_image
from torch import Tensor, nn

import mmhatnet.openmmlab.setup  # noqa: F401  as the configs do

# Configs of mmdetection, whose ResNet-50 the tests replace by a small ResNet.
CONFIGS = {
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'ATSS': 'atss/atss_r50_fpn_1x_coco.py',
    'RPN': 'rpn/rpn_r50_fpn_1x_coco.py',
    'Faster R-CNN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'Mask R-CNN': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'Cascade R-CNN': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'Cascade Mask R-CNN': 'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
}
# Batch, height and width. Strides divide the sides of two.
SIZES = [(1, 128, 160), (2, 65, 97), (3, 161, 243), (4, 96, 224), (1, 320, 352)]
MEAN = (120, 110, 100)  # an image of this color has features of zero
NARROW = dict(
    in_channels=32,
    feat_channels=32,
    out_channels=32,
    conv_out_channels=32,
    fc_out_channels=64,
)
# Heads whose norm has 32 groups unless a config says otherwise. With 32 channels, a level of one
# position would have one value per group, which PyTorch refuses.
WITH_GROUP_NORM = ('FCOSHead', 'ATSSHead')


def settings_of(config: str, **changes) -> ConfigDict:
    """Returns the model of one of mmdetection's configs, small and for five classes.

    Args:
        config (str): The path of the config in mmdetection's folder.
        changes: Settings to merge into those of the model.
    """
    settings = Config.fromstring(f"_base_ = 'mmdet::{config}'", '.py').model
    changed = Config(dict(model=_narrowed(settings.to_dict())))
    backbone = dict(depth=18, base_channels=16, init_cfg=None)
    neck = dict(in_channels=[16, 32, 64, 128])
    preprocessor = dict(mean=list(MEAN))
    common = dict(backbone=backbone, neck=neck, data_preprocessor=preprocessor)
    changed.merge_from_dict(dict(model=common))
    changed.merge_from_dict(dict(model=changes))
    return changed.model


def _narrowed(node):
    if isinstance(node, dict):
        narrow = {key: _narrowed(value) for key, value in node.items()}
        narrow.update((key, NARROW[key]) for key in NARROW if isinstance(node.get(key), int))
        if node.get('type') in WITH_GROUP_NORM:
            narrow['norm_cfg'] = dict(type='GN', num_groups=8)
        return narrow | (dict(num_classes=5) if node.get('num_classes', 1) > 1 else {})
    return [_narrowed(value) for value in node] if isinstance(node, (list, tuple)) else node


def detector(settings: dict, gain: float = 1.0) -> nn.Module:
    """Builds a detector. Its weights depend on their names alone, and its biases are zero."""
    from mmdet.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmdet'):
        __import__('mmdet.models')
        model = MODELS.build(settings).eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            values = standard_normal(name, tuple(weight.shape)).float()
            weight.data = values * gain / math.sqrt(weight[0].numel())
        elif name.endswith('bias'):
            weight.data.zero_()
    return model


def drawn_images(batch: int, height: int, width: int, contrast: float = 60) -> Tensor:
    """Returns whole pixels (N, 3, height, width). Without contrast, they have the color MEAN."""
    noise = contrast * synthetic_image(batch, 3, height, width)
    return (noise + torch.tensor(MEAN)[:, None, None]).clamp(0, 255).round()


@torch.no_grad()
def predictions(model: nn.Module, images: Tensor) -> list:
    """Returns what ``test_step`` predicts for images in the order of colors of the network."""
    from mmdet.structures import DetDataSample

    if model.data_preprocessor._channel_conversion:
        images = images.flip(1)
    shape = tuple(images.shape[2:])
    samples = [
        DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
        for _ in images
    ]
    data = dict(inputs=[image.byte() for image in images], data_samples=samples)
    return [sample.pred_instances for sample in model.test_step(data)]


@contextmanager
def ties_in_order() -> Iterator[None]:
    """Lets the first of equal scores win, as in exported files. PyTorch may choose any."""
    original = {name: getattr(Tensor, name) for name in ('sort', 'topk')}

    def sort(self: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
        return original['sort'](self, dim=dim, descending=descending, stable=True)

    def topk(self: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, order = sort(self, descending=True)
        return values[..., :count], order[..., :count]

    Tensor.sort, Tensor.topk = sort, topk
    try:
        yield
    finally:
        for name, function in original.items():
            setattr(Tensor, name, function)


class Difference(NamedTuple):
    """The largest differences of boxes in pixels and of scores, and how many others there are."""

    boxes: float = 0.0
    scores: float = 0.0
    counts: int = 0
    labels: int = 0
    pixels: int = 0  # of masks
    total: int = 0  # boxes that were predicted

    def __or__(self, other: 'Difference') -> 'Difference':
        worst = map(max, self[:2], other[:2])
        return Difference(*worst, *map(sum, zip(self[2:], other[2:])))


def difference(outputs: dict[str, Tensor], expected: list) -> Difference:
    """Compares the outputs of a batch with predictions for its images."""
    order = outputs['image_indices']
    assert all(len(values) == len(order) for values in outputs.values())
    assert (order.diff() >= 0).all() and not (order >= len(expected)).any()
    result = Difference()
    for index, one in enumerate(expected):
        result |= _of_image({k: v[order == index] for k, v in outputs.items()}, one)
    return result


def _of_image(found: dict[str, Tensor], expected) -> Difference:
    total = len(expected)
    if len(found['boxes']) != total or not total:
        return Difference(counts=abs(len(found['boxes']) - total), total=total)
    assert (found['scores'].diff() <= 0).all()
    # Rounding may change the order of nearly equal scores. Boxes without an area may be repeated.
    far = (expected.bboxes[:, None] - found['boxes']).abs().amax(dim=2)
    far = far + 1000 * (expected.labels[:, None] != found['labels'])
    far = far + 100 * (expected.scores[:, None] - found['scores']).abs()
    match = far.argmin(dim=1)
    rows = torch.cat([expected.bboxes, expected.scores[:, None], expected.labels[:, None]], dim=1)
    labels = int((found['labels'][match] != expected.labels).sum())
    labels += max(len(rows.unique(dim=0)) - len(match.unique()), 0)
    boxes = (found['boxes'][match] - expected.bboxes).abs().max().item()
    scores = (found['scores'][match] - expected.scores).abs().max().item()
    pixels = 0
    for index, mask in zip(match, expected.masks if 'masks' in found else ()):
        pixels += int((pasted(found['masks'][index], found['boxes'][index], mask) != mask).sum())
    return Difference(boxes, scores, 0, labels, pixels, total)


def pasted(mask: Tensor, box: Tensor, like: Tensor) -> Tensor:
    """Returns the pixels of a mask as mmdetection does on a CPU, around the box alone."""
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    values, place = _do_paste_mask(mask[None, None], box[None], *like.shape)
    pixels = torch.zeros_like(like)
    pixels[place] = values[0] >= 0.5
    return pixels


def compared(run, names: list[str], model: nn.Module, batches: list[Tensor]) -> Iterator:
    """Yields the difference between a function's outputs and the predictions for each batch."""
    for images in batches:
        with ties_in_order():
            found, expected = dict(zip(names, run(images))), predictions(model, images)
        yield difference(found, expected)

"""Detectors as modules, ONNX files and exported programs give what mmdetection predicts."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detecting import (
    CONFIGS,
    SIZES,
    Difference,
    compared,
    detector,
    drawn_images,
    predictions,
    settings_of,
)
from experiments import rest_slow
from mmcv.ops import batched_nms
from torch import Tensor

from mmhatnet.export import Detections, ExportError
from mmhatnet.export.suppression import Found, suppress

# With one level above the traced size, and few nodes.
TWO_LEVELS = dict(
    backbone=dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1)),
    neck=dict(in_channels=[16, 32], num_outs=2),
)


def assert_same(run: Callable, module: Detections, batches: list[Tensor], **tolerance) -> None:
    """Checks outputs for each batch, and that there were many boxes."""
    found = Difference()
    for result in compared(run, module.outputs, module.model, batches):
        assert not result.counts and not result.labels, result
        assert result.boxes <= tolerance['boxes'] and result.scores <= tolerance['scores'], result
        assert result.pixels <= tolerance['pixels'] * max(result.total, 1), result
        found |= result
    assert found.total > 100


def assert_exact(module: Detections, batches: list[Tensor]) -> None:
    with torch.no_grad():
        assert_same(module, module, batches, boxes=1e-4, scores=1e-6, pixels=0)


@pytest.mark.parametrize('name', CONFIGS)
def test_boxes_scores_labels_and_masks_of_batches(name: str) -> None:
    model = detector(settings_of(CONFIGS[name]))
    names = ['boxes', 'scores', 'labels', 'image_indices']
    module = Detections(model)
    assert module.outputs == names + (['masks'] if 'Mask' in name else [])
    assert_exact(module, [drawn_images(*size) for size in SIZES])


@pytest.mark.parametrize('name', CONFIGS)
@torch.no_grad()
def test_no_box_and_one_box(name: str) -> None:
    model = detector(settings_of(CONFIGS[name]))
    head = getattr(model, 'roi_head', None) or model.bbox_head
    module, images = Detections(model), drawn_images(2, 65, 97)
    head.test_cfg.max_per_img = 1
    (result,) = compared(module, module.outputs, model, [images])
    assert result.total == 2 and result[:5] == (0, 0, 0, 0, 0)
    head.test_cfg.update(score_thr=1.0, min_bbox_size=1000 if name == 'RPN' else 0)
    (result,) = compared(module, module.outputs, model, [images])
    assert result.total == 0 and not result.counts
    shapes = [tuple(output.shape) for output in module(images)]
    assert shapes == [(0, 4), (0,), (0,), (0,), (0, 28, 28)][: len(shapes)]


@torch.no_grad()
def test_an_image_without_proposals() -> None:
    """No proposal has sides above the limit, and mmdetection's RoI head gets none."""
    model = detector(settings_of(CONFIGS['Mask R-CNN']))
    model.rpn_head.test_cfg.min_bbox_size = 1000
    module, images = Detections(model), drawn_images(2, 65, 97)
    assert not any(len(one) for one in predictions(model, images))
    assert [len(output) for output in module(images)] == [0] * 5


@torch.no_grad()
def test_each_image_of_a_batch_is_as_alone() -> None:
    """Some images have no boxes, some have few and some as many as are kept."""
    module = Detections(detector(blank_without_boxes('Mask R-CNN'), gain=1.1))
    contrasts = (0, 16, 6, 0, 9, 12)
    batch = torch.cat([drawn_images(1, 96, 128, contrast) for contrast in contrasts])
    expected = predictions(module.model, batch)
    counts = [len(one) for one in expected]
    assert 0 in counts[1:] and max(counts) == 100 and {*range(1, 10)} & {*counts}, counts
    assert_exact(module, [batch, *batch.split(1), batch[:1].repeat(3, 1, 1, 1)])


@pytest.mark.parametrize('classes', [1, 80])
def test_suppression_is_mmcvs_for_each_image(classes: int) -> None:
    """With the coordinates and classes of COCO, for which offsets take many digits."""
    draw, counts = np.random.RandomState(classes), (900, 1, 0, 1500, 700)
    images = torch.from_numpy(np.repeat(np.arange(5), counts))
    sides = draw.uniform(5, 400, (len(images), 2))
    corners = draw.uniform(0, 1, sides.shape) * ((1333, 800) - sides)
    boxes = torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float()
    scores = torch.from_numpy(draw.permutation(len(images)) / len(images)).float()
    labels = torch.from_numpy(draw.randint(0, classes, len(images)))
    settings = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=300)
    found = suppress(Found(boxes, scores, labels, images), len(counts), settings)
    assert found.images.unique().tolist() == [0, 1, 3, 4]
    for index in (0, 1, 3, 4):
        own, kept = images == index, found.images == index
        dets, order = batched_nms(boxes[own], scores[own], labels[own], settings['nms'])
        expected = torch.cat([dets, labels[own][order, None]], dim=1)[:300]
        actual = torch.cat([found.boxes, found.scores[:, None], found.labels[:, None]], dim=1)
        assert torch.equal(actual[kept], expected)


def blank_without_boxes(name: str, **changes) -> dict:
    """Settings with which an image of the color MEAN has no box."""
    if name in ('RetinaNet', 'FCOS', 'ATSS'):
        return settings_of(CONFIGS[name], test_cfg=dict(score_thr=0.5), **changes)
    return settings_of(CONFIGS[name], test_cfg=dict(rcnn=dict(score_thr=0.3)), **changes)


VARIANTS = {
    'class-agnostic boxes': (
        'Mask R-CNN',
        dict(roi_head=dict(bbox_head=dict(reg_class_agnostic=True))),
    ),
    'class-agnostic masks': (
        'Mask R-CNN',
        dict(roi_head=dict(mask_head=dict(class_agnostic=True))),
    ),
    'class-agnostic NMS': (
        'Faster R-CNN',
        dict(test_cfg=dict(rcnn=dict(nms=dict(class_agnostic=True)))),
    ),
    'split NMS': (
        'RetinaNet',
        dict(test_cfg=dict(nms=dict(split_thr=100))),
    ),
    'boxes beyond the image': (
        'RetinaNet',
        dict(bbox_head=dict(bbox_coder=dict(clip_border=False))),
    ),
    'softmax': (
        'RetinaNet',
        dict(
            bbox_head=dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, _delete_=True))
        ),
    ),
    'padding': ('FCOS', dict(data_preprocessor=dict(pad_size_divisor=64, pad_value=3))),
    'no normalization': ('ATSS', dict(data_preprocessor=dict(mean=None, std=None))),
    'one level for regions': (
        'Faster R-CNN',
        dict(roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[8]))),
    ),
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_settings_that_change_the_steps(variant: str) -> None:
    name, changes = VARIANTS[variant]
    module = Detections(detector(settings_of(CONFIGS[name], **changes)))
    assert_exact(module, [drawn_images(*size) for size in SIZES[:3]])


def exported(module: Detections, file: Path, file_format: str) -> Callable:
    """Writes a file and returns a function that runs it."""
    images = drawn_images(2, 224, 288)
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(module, (images,), dynamic_shapes=(any_size,))
    if file_format == 'pt2':
        torch.export.save(program, file)
        return torch.export.load(file).module()
    import onnx
    import onnxruntime

    torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=['images'],
        output_names=module.outputs,
    ).save(file)
    written = onnx.load(file)
    assert [entry.domain for entry in written.opset_import] == ['']
    assert {node.domain for node in written.graph.node} == {''} and not written.functions
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    return lambda x: map(torch.from_numpy, session.run(None, {'images': x.numpy()}))


@pytest.mark.parametrize('file_format', rest_slow(['onnx', 'pt2'], 'onnx'))
# The boxes of an untrained RPN that clipping leaves 0 or 4e-6 px wide differ by rounding.
@pytest.mark.parametrize('name', rest_slow([n for n in CONFIGS if n != 'RPN'], 'Mask R-CNN'))
def test_files_at_sizes_that_were_not_traced(name: str, file_format: str, tmp_path: Path) -> None:
    strides = {} if 'R-CNN' not in name else TWO_LEVELS
    settings = blank_without_boxes(name, **strides)
    if strides:
        for part in ('rpn_head', 'roi_head'):
            narrow_to_two_levels(settings[part])
    module = Detections(detector(settings)).eval()
    run = exported(module, tmp_path / f'detector.{file_format}', file_format)
    blank, faint = (drawn_images(1, 64, 96, contrast) for contrast in (0, 4))
    batches = [drawn_images(*size) for size in SIZES]
    batches += [blank, faint, torch.cat([blank, drawn_images(2, 64, 96), blank])]
    if file_format == 'pt2' and not strides:
        # Guards of the file refuse smaller images, on whose last level there is one position.
        batches = [images for images in batches if min(images.shape[2:]) > 128]
    with torch.no_grad():
        assert_same(run, module, batches, boxes=5e-3, scores=1e-4, pixels=1)


def narrow_to_two_levels(head: dict) -> None:
    strides = [4, 8]
    if 'anchor_generator' in head:
        head['anchor_generator']['strides'] = strides
    for task in ('bbox', 'mask'):
        if extractor := head.get(f'{task}_roi_extractor'):
            extractor['featmap_strides'] = strides
            extractor['finest_scale'] = 16


REFUSED = {
    'gfl/gfl_r50_fpn_1x_coco.py': 'GFLHead overrides _predict_by_feat_single of BaseDenseHead',
    'tood/tood_r50_fpn_1x_coco.py': 'TOODHead overrides _predict_by_feat_single of BaseDenseHead',
    'detr/detr_r50_8xb2-150e_coco.py': 'DETR has its own pre_transformer, other than that of De',
    'htc/htc_r50_fpn_1x_coco.py': 'HybridTaskCascadeRoIHead overrides predict of CascadeRoIHead',
    'double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py': 'DoubleHeadRoIHead overrides _bbox_forward',
    'groie/mask-rcnn_r50_fpn_groie_1x_coco.py': 'GenericRoIExtractor has its own forward',
    'ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py': 'MaskScoringRoIHead overrides predict_mask',
    'seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py': 'SeesawLoss of .* sets',
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py': 'CascadeRPNHead',
    'ssd/ssd300_coco.py': 'SSDHead has no loss_cls, without which mmdetection fails to predict',
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py': 'PanopticFPN overrides predict',
}


@pytest.mark.parametrize('config', REFUSED)
def test_other_detectors_are_refused_with_their_class_and_method(config: str) -> None:
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    settings = Config.fromstring(f"_base_ = 'mmdet::{config}'", '.py').model
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        model = MODELS.build(settings)
    with pytest.raises(ExportError, match=f'^{REFUSED[config]}.*--part neck'):
        Detections(model)


@pytest.mark.parametrize('method', ['loss_by_feat', 'predict_by_feat'])
def test_a_users_head_may_change_what_is_not_restated(method: str) -> None:
    model = detector(settings_of(CONFIGS['RetinaNet']))
    head = type(model.bbox_head)
    model.bbox_head.__class__ = type('MyHead', (head,), {method: lambda self: None})
    if method == 'loss_by_feat':
        assert Detections(model).outputs == ['boxes', 'scores', 'labels', 'image_indices']
        return
    with pytest.raises(ExportError, match='^MyHead overrides predict_by_feat of BaseDenseHead'):
        Detections(model)


SETTINGS = {
    "test_cfg of RetinaHead has nms.type 'soft_nms'": dict(
        test_cfg=dict(nms=dict(type='soft_nms'))
    ),
    'test_cfg of RetinaHead has an nms.max_num': dict(test_cfg=dict(nms=dict(max_num=7))),
    'test_cfg of RetinaHead has no positive max_per_img': dict(test_cfg=dict(max_per_img=-1)),
    'test_cfg of RetinaHead has no positive nms_pre': dict(test_cfg=dict(nms_pre=-1)),
    'min_bbox_size of RetinaHead': dict(test_cfg=dict(min_bbox_size=3)),
}


@pytest.mark.parametrize('message', SETTINGS)
def test_other_settings_are_refused(message: str) -> None:
    with pytest.raises(ExportError, match=f'^{re.escape(message)}'):
        Detections(detector(settings_of(CONFIGS['RetinaNet'], **SETTINGS[message])))


def test_masks_without_a_threshold_are_refused() -> None:
    """Mmdetection then gives gray levels for visualizations."""
    changes = dict(test_cfg=dict(rcnn=dict(mask_thr_binary=-1)))
    settings = settings_of(CONFIGS['Mask R-CNN'], **changes)
    with pytest.raises(ExportError, match='^test_cfg of StandardRoIHead has a negative mask_thr'):
        Detections(detector(settings))


def test_max_pooling_of_regions_is_refused() -> None:
    layer = dict(roi_layer=dict(pool_mode='max'))
    settings = settings_of(CONFIGS['Faster R-CNN'], roi_head=dict(bbox_roi_extractor=layer))
    with pytest.raises(ExportError, match="^pool_mode of RoIAlign is 'max'"):
        Detections(detector(settings))

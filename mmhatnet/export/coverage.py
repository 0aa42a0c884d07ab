"""Which detectors can be exported whole: those whose methods are the ones that are restated."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from mmhatnet.errors import ExportError

ADVICE = 'Export the network below it with --part neck or --part backbone.'
SUPPRESSION = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}


def require_covered(model: nn.Module) -> None:
    """Checks that ``Detections`` computes what a detector predicts.

    Raises:
        ExportError: If not. The message names the class and the method or setting.
    """
    for reason in _reasons(model):
        raise ExportError(f'{reason}, so the export would be wrong. {ADVICE}')


def _reasons(model: nn.Module) -> Iterator[str]:
    from mmdet import models as mmdet
    from mmdet.models.detectors.base import BaseDetector
    from mmdet.models.roi_heads.bbox_heads.bbox_head import BBoxHead
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead

    two_stages = isinstance(model, mmdet.TwoStageDetector)
    transformer = isinstance(model, mmdet.DetectionTransformer)
    base = mmdet.TwoStageDetector if two_stages else mmdet.SingleStageDetector
    yield from _overridden(model, mmdet.DetectionTransformer if transformer else base, 'predict')
    yield from _overridden(model, BaseDetector, 'forward', 'add_pred_to_datasample')
    yield from _overridden(model.data_preprocessor, mmdet.DetDataPreprocessor, 'forward')
    if transformer:
        yield from _of_transformer(model)
        return
    if not two_stages:
        yield from _of_dense_head(model.bbox_head, final=True)
        return
    if not (model.with_rpn and model.with_roi_head):
        yield f'{type(model).__name__} has no head for proposals or none for regions'
        return
    yield from _of_dense_head(model.rpn_head, final=False)
    head = model.roi_head
    cascade = isinstance(head, mmdet.CascadeRoIHead)
    base = mmdet.CascadeRoIHead if cascade else mmdet.StandardRoIHead
    methods = ['predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward']
    yield from _overridden(head, base, *methods, *(['_refine_roi'] if cascade else []))
    for extractor, box_head in stages_of(head, 'bbox'):
        yield from _of_extractor(extractor)
        yield from _overridden(
            box_head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single', 'regress_by_class'
        )
        yield from _of_loss(box_head)
        if not (box_head.with_cls and box_head.with_reg):
            yield f'{type(box_head).__name__} has no classes or no boxes'
    yield from _of_settings(head, head.test_cfg)
    if head.with_mask:
        if head.test_cfg['mask_thr_binary'] < 0:
            yield f'test_cfg of {type(head).__name__} has a negative mask_thr_binary'
        for extractor, mask_head in stages_of(head, 'mask'):
            yield from _of_extractor(extractor)
            yield from _overridden(
                mask_head, FCNMaskHead, 'predict_by_feat', '_predict_by_feat_single'
            )


def _of_transformer(model: nn.Module) -> Iterator[str]:
    from mmcv.ops import MultiScaleDeformableAttention
    from mmdet import models as mmdet
    from mmdet.models.layers import DeformableDetrTransformerEncoder

    yield from _overridden(
        model, mmdet.DeformableDETR, 'pre_transformer', 'gen_encoder_output_proposals'
    )
    base = mmdet.DINO if isinstance(model, mmdet.DINO) else mmdet.DeformableDETR
    yield from _overridden(model, base, 'forward_transformer', 'pre_decoder', 'forward_decoder')
    yield from _overridden(
        model.encoder, DeformableDetrTransformerEncoder, 'forward', 'get_encoder_reference_points'
    )
    for module in model.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            yield from _overridden(module, MultiScaleDeformableAttention, 'forward')
    yield from _overridden(
        model.bbox_head,
        mmdet.DeformableDETRHead,
        *('predict', 'predict_by_feat', '_predict_by_feat_single'),
    )
    yield from _of_loss(model.bbox_head)
    if model.data_preprocessor.pad_size_divisor > 1:
        yield f'{type(model).__name__} masks the padding that pad_size_divisor asks for'


def stages_of(head: nn.Module, task: str) -> list[tuple[nn.Module, nn.Module]]:
    """Returns the extractor and the head of each stage for 'bbox' or 'mask'."""
    extractor, task_head = getattr(head, f'{task}_roi_extractor'), getattr(head, f'{task}_head')
    if isinstance(task_head, nn.ModuleList):
        return list(zip(extractor, task_head))
    return [(extractor, task_head)]


def _overridden(part: nn.Module, base: type, *methods: str) -> Iterator[str]:
    for method in methods:
        if getattr(type(part), method, None) is not getattr(base, method):
            name = f'{type(part).__name__} overrides {method}'
            if not isinstance(part, base):
                name = f'{type(part).__name__} has its own {method}, other than that'
            yield f'{name} of {base.__name__}'


def _of_dense_head(head: nn.Module, final: bool) -> Iterator[str]:
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.dense_heads.rpn_head import RPNHead

    yield from _overridden(head, BaseDenseHead, 'predict', 'predict_by_feat')
    base = RPNHead if isinstance(head, RPNHead) else BaseDenseHead
    yield from _overridden(head, base, '_predict_by_feat_single', '_bbox_post_process')
    yield from _of_loss(head)
    yield from _of_settings(head, head.test_cfg)
    if head.test_cfg.get('nms_pre', 0) <= 0:
        yield f'test_cfg of {type(head).__name__} has no positive nms_pre'
    if final and head.test_cfg.get('min_bbox_size', 0) > 0:
        yield f'min_bbox_size of {type(head).__name__} counts pixels of the image before resizing'


def _of_extractor(extractor: nn.Module) -> Iterator[str]:
    from mmcv.ops import RoIAlign
    from mmdet.models import SingleRoIExtractor

    yield from _overridden(extractor, SingleRoIExtractor, 'forward')
    for layer in extractor.roi_layers:
        yield from _overridden(layer, RoIAlign, 'forward')
        if getattr(layer, 'pool_mode', 'avg') != 'avg':
            yield f"pool_mode of {type(layer).__name__} is '{layer.pool_mode}'"


def _of_loss(head: nn.Module) -> Iterator[str]:
    """Yields a reason if the loss decides how scores are computed, as Seesaw loss does."""
    loss = getattr(head, 'loss_cls', None)
    if loss is None:
        yield f'{type(head).__name__} has no loss_cls, without which mmdetection fails to predict'
    for setting in ('custom_cls_channels', 'custom_activation'):
        if getattr(loss, setting, False):
            yield f'{type(loss).__name__} of {type(head).__name__} sets {setting}'
            return


def _of_settings(head: nn.Module, settings: Any) -> Iterator[str]:
    name = f'test_cfg of {type(head).__name__}'
    nms = settings.get('nms') or {}
    if nms.get('type') != 'nms':
        yield f"{name} has nms.type '{nms.get('type')}', and only 'nms' is exported"
    elif unknown := sorted({*nms} - SUPPRESSION) or sorted({'iou_threshold'} - {*nms}):
        yield f'{name} has {"an" if unknown[0] in nms else "no"} nms.{unknown[0]}'
    if settings.get('max_per_img', 0) <= 0:
        yield f'{name} has no positive max_per_img'

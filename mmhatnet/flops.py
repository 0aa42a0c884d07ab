"""Counts of parameters and FLOPs. A FLOP is one multiply-add, as in the papers."""

import copy

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

DEFAULT_SHAPES = dict(mmdet=(800, 1280), mmseg=(512, 512), mmpretrain=(224, 224))
aten = torch.ops.aten
LAYERS = (aten.convolution, aten.mm, aten.addmm)
# PyTorch's counter knows only the attention kernels of GPUs.
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda *args, **_: sdpa_flop_count(*args[:3])
}


def count_flops(cfg: Config, shape: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    """Counts the parameters of a model and the FLOPs of a prediction for one image.

    Args:
        cfg (Config): The config of the model.
        shape (tuple[int, int]): Height and width of the image.

    Returns:
        dict[str, tuple[int, int, int]]: For 'backbone' and the whole 'model' the number of
        parameters, the multiply-adds of layers, and those between activations.
    """
    init_default_scope(cfg.default_scope)
    settings = copy.deepcopy(cfg.model)
    # No overlap reaches 2 and no score is below 0, so only the limits on the number of boxes apply.
    limits = settings.get('test_cfg') or {}
    limits.get('rpn', {}).update(nms=dict(type='nms', iou_threshold=2), min_bbox_size=-1)
    limits.get('rcnn', {}).update(nms=dict(type='nms', iou_threshold=2), score_thr=-1)
    model = MODELS.build(settings).eval()
    sizes = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0))
    batch = dict(inputs=[torch.zeros(3, *shape, dtype=torch.uint8)])
    if cfg.default_scope != 'mmpretrain':
        batch['data_samples'] = [BaseDataElement(metainfo=sizes)]
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with torch.no_grad(), counter:
        model.test_step(batch)
    result, name = {}, type(model).__name__
    for part, key in ('backbone', f'{name}.backbone'), ('model', name):
        flops = counter.get_flop_counts()[key]
        # The counter counts a multiply-add as two operations.
        layers = sum(flops.get(operator, 0) for operator in LAYERS) // 2
        module = model if key == name else model.backbone
        parameters = sum(parameter.numel() for parameter in module.parameters())
        result[part] = parameters, layers, sum(flops.values()) // 2 - layers
    return result

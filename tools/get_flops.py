"""Counts the parameters and FLOPs of a config's model and of its backbone.

A FLOP here is one multiply-add, as in the papers. Those of convolutions and linear layers are
counted, and apart from them the products between activations, the two of an attention, which
published figures often leave out. Nothing else is: no normalisation, softmax, resizing, sampling of
RoIAlign, NMS, nor the additions of biases, which HAT-Net's published figures contain (17 M of the
large variant's 11.5 G). Two-stage detectors are counted with as many proposals and detections as
they at most keep: how many NMS leaves depends on the image.
"""

import argparse
import copy

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmhatnet import cli

DEFAULT_SHAPES = dict(mmdet=(800, 1280), mmseg=(512, 512), mmpretrain=(224, 224))
aten = torch.ops.aten
LAYERS = (aten.convolution, aten.mm, aten.addmm)
# PyTorch's counter knows the attention kernels of GPUs only.
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda *args, **_: sdpa_flop_count(*args[:3])
}


def count(cfg: Config, shape: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    """Counts a prediction for one image, (height, width), by 'backbone' and whole 'model': the
    parameters, the multiply-adds with them, and those between activations."""
    init_default_scope(cfg.default_scope)
    settings = copy.deepcopy(cfg.model)
    # No overlap is 2, no score less than 0: what is left depends on the limits alone.
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
        # The counter takes a multiply-add for two operations.
        layers = sum(flops.get(operator, 0) for operator in LAYERS) // 2
        module = model if key == name else model.backbone
        parameters = sum(parameter.numel() for parameter in module.parameters())
        result[part] = parameters, layers, sum(flops.values()) // 2 - layers
    return result


@cli.exit_on_error()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='the config of the job')
    parser.add_argument('--shape', nargs=2, type=int, help='height and width of the image')
    cli.add_settings_option(parser)
    args = parser.parse_args()
    cfg = cli.load_config(args)
    shape = tuple(args.shape or DEFAULT_SHAPES[cfg.default_scope])
    if min(shape) < 1:
        parser.error(f'--shape {shape[0]} {shape[1]} must be two positive numbers')
    table = Table(f'{shape[0]}x{shape[1]}', 'parameters', 'GFLOPs: layers', 'attention', 'together')
    for part, (parameters, layers, attention) in count(cfg, shape).items():
        flops = [f'{value / 1e9:.3f}' for value in (layers, attention, layers + attention)]
        table.add_row(part, f'{parameters / 1e6:.2f} M', *flops)
    Console().print(table)


if __name__ == '__main__':
    main()

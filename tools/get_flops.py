"""Counts the parameters and FLOPs of a config's model and of its backbone.

A FLOP here is one multiply-add, as in the papers. PyTorch's counter sees convolutions and matrix
products, with weights and between activations; the latter (the two products of an attention) are
shown apart, because published figures often leave them out. What it does not see is not counted:
normalisation, activation functions, softmax, pooling, resizing, the sampling of RoIAlign and
deformable attention, NMS, and the additions of biases, which HAT-Net's published figures contain
(17 M of the large variant's 11.5 G). Two-stage detectors are counted with as many proposals and
detections as they at most keep, 1000 and 100, because how many NMS leaves depends on the image.
"""

import argparse
import copy
from typing import NamedTuple

import torch
from mmengine.config import Config, DictAction
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmhatnet import cli

# Height and width; mmdet's get_flops and the ImageNet and ADE20K recipes have the same.
DEFAULT_SHAPES = dict(mmdet=(800, 1280), mmseg=(512, 512), mmpretrain=(224, 224))
aten = torch.ops.aten
LAYERS = (aten.convolution, aten._convolution, aten.mm, aten.addmm)
# PyTorch's counter knows the attention kernels of GPUs only.
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *args, **kwargs: (
        sdpa_flop_count(query, key, value)
    )
}


class Complexity(NamedTuple):
    """Of one module for one image.

    Attributes:
        parameters (int): Their number.
        layers (int): Multiply-adds of convolutions and linear layers.
        attention (int): Multiply-adds of products between activations.
    """

    parameters: int
    layers: int
    attention: int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='the config of the job')
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        metavar=('H', 'W'),
        help='size of the image, one number for a square; default: 800 1280 for detection, 512 '
        'for segmentation, 224 for classification',
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='as in tools/train.py')
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)
    args = parser.parse_args()
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'--shape {args.shape} must be one or two positive numbers')
    return args


def build_model(cfg: Config) -> nn.Module:
    """Builds the model of a config in evaluation mode, with random weights."""
    init_default_scope(cfg.default_scope)
    model = copy.deepcopy(cfg.model)
    test_cfg = model.get('test_cfg') or {}
    # No overlap is 2, no score less than 0: what is left depends on the limits alone.
    test_cfg.get('rpn', {}).update(nms=dict(type='nms', iou_threshold=2), min_bbox_size=-1)
    test_cfg.get('rcnn', {}).update(nms=dict(type='nms', iou_threshold=2), score_thr=-1)
    return revert_sync_batchnorm(MODELS.build(model)).eval()


def count(cfg: Config, shape: tuple[int, int]) -> dict[str, Complexity]:
    """Counts a prediction for one image, (height, width), by 'backbone' and whole 'model'."""
    model = build_model(cfg)
    batch = dict(inputs=[torch.zeros(3, *shape, dtype=torch.uint8)])
    if cfg.default_scope != 'mmpretrain':
        sizes = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0))
        batch['data_samples'] = [BaseDataElement(metainfo=sizes)]
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with torch.no_grad():
        inputs = model.data_preprocessor(batch)
        with counter:
            model(**inputs, mode='predict')

    counts = counter.get_flop_counts()
    name = type(model).__name__
    return {
        'backbone': _complexity(model.backbone, counts[f'{name}.backbone']),
        'model': _complexity(model, counts[name]),
    }


def _complexity(module: nn.Module, flops: dict) -> Complexity:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    layers = sum(n for operator, n in flops.items() if operator in LAYERS)
    # The counter takes a multiply-add for two operations.
    return Complexity(parameters, layers // 2, (sum(flops.values()) - layers) // 2)


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args)
    shape = args.shape or DEFAULT_SHAPES[cfg.default_scope]
    height, width = shape[0], shape[-1]
    console = Console()
    with console.status(f'One image of {height}x{width} through {args.config}'):
        result = count(cfg, (height, width))

    table = Table(title=f'{args.config} with an image of {height}x{width}', title_justify='left')
    table.add_column()
    for column in ('parameters', 'GFLOPs of layers', 'of attention', 'together'):
        table.add_column(column, justify='right')
    for name, (parameters, layers, attention) in result.items():
        flops = [f'{value / 1e9:.2f}' for value in (layers, attention, layers + attention)]
        table.add_row(name, f'{parameters / 1e6:.2f} M', *flops)
    console.print(table)
    console.print('1 GFLOP: 1e9 multiply-adds; what is and what is not counted: see --help')


if __name__ == '__main__':
    main()

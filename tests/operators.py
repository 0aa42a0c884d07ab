"""Runs mmcv's operators on random inputs, with any implementation of `mmcv._ext`.

`tests/data/make_mmcv_operators.py` stores the results of the compiled operators for other tests.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import mmcv.ops
import numpy as np
import torch
from torch import Tensor

from mmhatnet.openmmlab.operators import SOURCE

STORED = Path(__file__).with_name('data') / 'mmcv_operators.npz'
SEED = 0  # of the stored results
METHODS = ('naive', 'linear', 'gaussian')
Draw = np.random.RandomState  # gives the same numbers with any version of NumPy


def load(path: Path, name: str = 'loaded') -> ModuleType:
    """Loads an implementation from its file. mmcv keeps the one that it has found."""
    spec = spec_from_file_location(f'{name}._ext', path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OURS = load(SOURCE, 'ours')


def find_compiled(folder: Path) -> ModuleType | None:
    """Loads the compiled operators in a folder of mmcv, if there are any."""
    files = (file for suffix in EXTENSION_SUFFIXES for file in folder.glob(f'_ext*{suffix}'))
    file = next(files, None)
    return file and load(file, 'compiled')


@contextmanager
def use(ext: ModuleType) -> Iterator[None]:
    """Makes all of mmcv's operators call one implementation."""
    modules = [
        module
        for name, module in sys.modules.items()
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module')
    ]
    originals = [module.ext_module for module in modules]
    try:
        for module in modules:
            module.ext_module = ext
        yield
    finally:
        for module, original in zip(modules, originals):
            module.ext_module = original


def normal(draw: Draw, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(draw.standard_normal(shape)).to(dtype)


def boxes(draw: Draw, count: int, size: float = 100.0) -> Tensor:
    corners, sides = draw.uniform(0, size, (count, 2)), draw.uniform(1, size / 3, (count, 2))
    return torch.from_numpy(np.concatenate([corners, corners + sides], 1)).float()


def scored_boxes(draw: Draw, count: int = 60, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Returns boxes and scores. With ties, many are equal and overlaps are at thresholds."""
    found, scores = boxes(draw, count), torch.from_numpy(draw.uniform(0, 1, count)).float()
    return ((found / 8).round() * 8, (scores * 10).round() / 10) if ties else (found, scores)


def rois(draw: Draw, count: int = 7, images: int = 2) -> Tensor:
    image = torch.from_numpy(draw.randint(0, images, (count, 1))).float()
    return torch.cat([image, boxes(draw, count)], 1)


def with_gradients(draw: Draw, function: Callable[..., Tensor], *inputs: Any) -> list[Tensor]:
    """Returns the output and, for a random gradient of it, the gradients of the input tensors.

    Regions of interest have no gradient and are left out.
    """
    learned = [tensor.requires_grad_() for tensor in inputs if isinstance(tensor, Tensor)]
    output = function(*inputs)
    grad = normal(draw, *output.shape, dtype=output.dtype)
    grads = torch.autograd.grad(output, learned, grad, allow_unused=True)
    return [output.detach(), *(grad for grad in grads if grad is not None)]


def nms_cases(draw: Draw, ties: bool = False) -> list[Tensor]:
    found, scores = scored_boxes(draw, ties=ties)
    results = []
    for threshold in (0.3, 0.5, 0.7):
        results += mmcv.ops.nms(found, scores, threshold)
        results += mmcv.ops.nms(found, scores, threshold, offset=1)
        results += mmcv.ops.nms(found, scores, threshold, score_threshold=0.4, max_num=5)
        results += mmcv.ops.nms_match(torch.cat([found, scores[:, None]], 1), threshold)
    return results


def batched_nms_cases(draw: Draw, ties: bool = False) -> list[Tensor]:
    found, scores = scored_boxes(draw, 90, ties)
    classes = torch.from_numpy(draw.randint(0, 5, 90))
    results = []
    for settings in (dict(), dict(split_thr=20, max_num=9), dict(class_agnostic=True)):
        settings.update(type='nms', iou_threshold=0.5)
        results += mmcv.ops.batched_nms(found, scores, classes, settings)
    return results


def soft_nms_cases(draw: Draw, ties: bool = False) -> list[Tensor]:
    found, scores = scored_boxes(draw, ties=ties)
    results = []
    for method in METHODS:
        for min_score in (1e-3, 0.2):
            results += mmcv.ops.soft_nms(found, scores, min_score=min_score, method=method)
            results += mmcv.ops.soft_nms(found, scores, 0.5, 0.4, min_score, method, offset=1)
    return results


def bbox_overlaps_cases(draw: Draw, ties: bool = False) -> list[Tensor]:
    first, second = scored_boxes(draw, 8, ties)[0], scored_boxes(draw, 8, ties)[0]
    return [
        mmcv.ops.bbox_overlaps(first, second, mode, aligned, offset)
        for mode in ('iou', 'iof')
        for aligned in (False, True)
        for offset in (0, 1)
    ]


def roi_align_cases(draw: Draw, pool_mode: str = 'avg', ties: bool = False) -> list[Tensor]:
    features, regions = normal(draw, 2, 2, 11, 13), rois(draw)
    results = []
    for scale, ratio in ((0.125, 0), (0.25, 2), (0.1, 1)):
        for aligned in (True, False):
            layer = mmcv.ops.RoIAlign((3, 4), scale, ratio, pool_mode, aligned)
            results += with_gradients(draw, layer, features, regions)
    return results


def deform_conv_cases(draw: Draw, modulated: bool = False, ties: bool = False) -> list[Tensor]:
    """Covers zero offsets, as at the start of training, and offsets at and between pixels."""
    results = []
    for offsets in ('zero', 'integer', 'any'):
        for groups, offset_groups, stride, dilation in ((1, 1, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2)):
            x, weight = normal(draw, 2, 2, 4, 5), normal(draw, 4, 2 // groups, 3, 3)
            height, width = (4 - 1) // stride + 1, (5 - 1) // stride + 1
            offset = normal(draw, 2, 18 * offset_groups, height, width) * 2
            offset = dict(zero=offset * 0, integer=offset.round(), any=offset)[offsets]
            settings = (stride, dilation, dilation, groups, offset_groups)
            if modulated:
                mask = normal(draw, 2, 9 * offset_groups, height, width).sigmoid()
                for bias in (normal(draw, 4), None):
                    tensors = (x, offset, mask, weight, bias, *settings)
                    results += with_gradients(draw, mmcv.ops.modulated_deform_conv2d, *tensors)
            else:
                tensors = (x, offset, weight, *settings)
                results += with_gradients(draw, mmcv.ops.deform_conv2d, *tensors)
    return results


def psa_mask_cases(draw: Draw, ties: bool = False) -> list[Tensor]:
    results = []
    for psa_type in ('collect', 'distribute'):
        for size, mask in (((4, 5), (7, 9)), ((5, 4), (3, 3)), ((3, 4), (5, 3))):
            masks = normal(draw, 2, mask[0] * mask[1], *size)
            results += with_gradients(draw, mmcv.ops.PSAMask(psa_type, mask), masks)
    return results


def max_roi_align_cases(draw: Draw, ties: bool = False) -> list[Tensor]:
    return roi_align_cases(draw, 'max')


def modulated_deform_conv_cases(draw: Draw, ties: bool = False) -> list[Tensor]:
    return deform_conv_cases(draw, modulated=True)


# The largest deviation from the compiled operators on one machine, relative to the largest value.
CASES: dict[Callable[..., list[Tensor]], float] = {
    nms_cases: 0,
    batched_nms_cases: 0,
    soft_nms_cases: 2e-7,  # one rounding of the exponential function
    bbox_overlaps_cases: 0,
    roi_align_cases: 0,
    max_roi_align_cases: 4e-6,  # its sample positions are rounded differently
    deform_conv_cases: 2e-6,
    modulated_deform_conv_cases: 2e-6,
    psa_mask_cases: 0,
}


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Compares tensors: integers exactly, others with a tolerance relative to the largest value."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        largest = other.abs().nan_to_num().max().item() if other.numel() else 0
        atol = tolerance * largest if other.is_floating_point() else 0
        torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True)

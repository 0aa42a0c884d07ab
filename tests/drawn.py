"""Weights and images that a formula draws, as for the golden features, and published key names."""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

from mmhatnet.backbones.hatnet_literal import LiteralHATNet


def draw(name: str, shape: tuple) -> Tensor:
    """Standard normal numbers that depend on the name alone."""
    seed = zlib.crc32(name.encode()) & 0xFFFFFFFF
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def drawn_image(*shape: int) -> Tensor:
    return draw(f'input:{"x".join(map(str, shape))}', shape).float()


def published_shapes(arch: str | dict, num_classes: int = 1000, in_channels: int = 3) -> dict:
    """The tensors of a published checkpoint, without values."""
    with torch.device('meta'):
        return LiteralHATNet(arch, num_classes, in_channels).state_dict()


def drawn_checkpoint(arch: str | dict, num_classes: int = 1000, in_channels: int = 3) -> dict:
    """A state dict with published keys whose weights a formula draws from these keys."""
    weights = {}
    for name, meta in published_shapes(arch, num_classes, in_channels).items():
        values = draw(name, tuple(meta.shape))
        if name.endswith('.bias'):
            values = 0.1 * values
        elif values.ndim == 1:
            values = 1 + 0.1 * values
        else:
            values = values / math.sqrt(math.prod(values.shape[1:]))
        weights[name] = values.float()
    return weights

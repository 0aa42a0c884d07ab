"""Synthetic images and weights, from the formula of the golden features.

``tests/data/README.md`` states the formula.
"""

import math
import re
import zlib

import numpy as np
import torch
from torch import Tensor

from mmhatnet.backbones.hatnet_reference import ReferenceHATNet

# Layers of STViT, GLNet and OmniNet whose weights are reduced, so that no block outweighs the
# residual stream: depthwise convolutions and the last layers of MLPs.
DAMPED = re.compile(
    r'\.(pos_embed\.conv|mlp2\.conv\.conv|mlp2\.fc2|pos_conv|feature_conv\.1|mlp\.[123])\.weight$'
    r'|/Dense_1/kernel$'
)

# Of OmniNet: linear layers to heads, whose kernels are (inputs, heads, channels of a head).
OF_HEADS = re.compile(r'/(query|key|value)/kernel$')
# Of the simple feature pyramid: transposed convolutions, whose first axis are the inputs.
TRANSPOSED = re.compile(r'^simfp_(2\.[03]|3\.0)\.weight$')


def standard_normal(name: str, shape: tuple) -> Tensor:
    """Returns standard normal numbers that depend on the name alone."""
    seed = zlib.crc32(name.encode()) & 0xFFFFFFFF
    return torch.from_numpy(np.asarray(np.random.RandomState(seed).standard_normal(shape)))


def synthetic_image(*shape: int) -> Tensor:
    return standard_normal(f'input:{"x".join(map(str, shape))}', shape).float()


def synthetic_value(name: str, shape: tuple) -> Tensor:
    """Returns the value of a tensor from its published name, by the first rule that applies."""
    if name.endswith('num_batches_tracked'):
        return torch.tensor(0)
    if name.endswith('fold.weights'):  # a constant of STViT
        return torch.eye(9).view(9, 1, 3, 3)
    values = standard_normal(name, shape)
    if name.endswith('running_var'):
        values = 1 + 0.1 * values.abs()
    elif name.endswith('slot_scale'):  # at its initial value the grouping would have little effect
        values = 8 + values
    elif name.endswith(('init_slots', 'pos_embedding', 'cls')):
        values = (1 if name.endswith('init_slots') else 0.5) * values
    elif name.endswith(('gamma', 'gamma_1', 'gamma_2')):
        values = 1 + 0.1 * values
    elif name.endswith(('bias', 'running_mean')):
        values = 0.1 * values
    elif values.ndim == 1:
        values = 1 + 0.1 * values
    else:
        values = values / math.sqrt(num_inputs(name, shape))
        if DAMPED.search(name):
            values = 0.3 * values
    return values.float()


def num_inputs(name: str, shape: tuple) -> int:
    """Returns the number of inputs of a layer, from the name and shape of its weight."""
    if name.endswith('kernel'):  # in the layouts of JAX
        return shape[0] if OF_HEADS.search(name) else math.prod(shape[:-1])
    return shape[0] if TRANSPOSED.search(name) else math.prod(shape[1:])


def published_shapes(arch: str | dict, num_classes: int = 1000, in_channels: int = 3) -> dict:
    """Returns the tensors of a published checkpoint on the meta device."""
    with torch.device('meta'):
        return ReferenceHATNet(arch, num_classes, in_channels).state_dict()


def synthetic_checkpoint(arch: str | dict, num_classes: int = 1000, in_channels: int = 3) -> dict:
    """Returns a state dict with published keys and synthetic weights."""
    shapes = published_shapes(arch, num_classes, in_channels)
    return {name: synthetic_value(name, tuple(meta.shape)) for name, meta in shapes.items()}

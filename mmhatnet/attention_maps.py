"""Attention weights of a position, which fused attention does not return."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmhatnet.backbones.hatnet import HierarchicalAttention, PlainAttention


class AttentionMap(NamedTuple):
    """The weights of one position.

    Attributes:
        weights (Tensor): (heads, h, w). The weights of each head add up to 1.
        top (int): The first row, in positions of the feature map.
        left (int): The first column.
        cell (int): Height and width of a cell in positions; cells at the edge may be smaller.
    """

    weights: Tensor
    top: int = 0
    left: int = 0
    cell: int = 1


@torch.no_grad()
def attention_maps(
    attn: HierarchicalAttention | PlainAttention, x: Tensor, row: int, column: int
) -> dict[str, AttentionMap]:
    """Computes the attention weights of one position.

    Args:
        attn (HierarchicalAttention | PlainAttention): The attention of a block.
        x (Tensor): Its input (1, C, H, W), as ``recorded_inputs`` gives it.
        row (int): Row of the position, less than H.
        column (int): Column of the position, less than W.

    Returns:
        dict[str, AttentionMap]: 'local', over the position's window, and 'global', over the pooled
        positions. Plain attention has 'global' alone, over all positions.
    """
    normed = attn.norm(x)[0].permute(1, 2, 0)
    if isinstance(attn, PlainAttention):
        q, k, _ = attn.qkv(normed).chunk(3, dim=-1)
        return {'global': AttentionMap(_weights(q[row, column], k, attn.head_dim))}
    top, left = (index // attn.window * attn.window for index in (row, column))
    window = normed[top : top + attn.window, left : left + attn.window]
    q, k, _ = attn.qkv(window).chunk(3, dim=-1)
    local = _weights(q[row - top, column - left], k, attn.head_dim)
    y = attn.global_norm(attn.add_local_attention(x))
    pooled = attn.pooled_norm(F.avg_pool2d(y, attn.pooling, ceil_mode=True))
    k, _ = attn.pooled_kv(pooled[0].permute(1, 2, 0)).chunk(2, dim=-1)
    over_pooled = _weights(attn.global_q(y[0, :, row, column]), k, attn.head_dim)
    return {
        'local': AttentionMap(local, top, left),
        'global': AttentionMap(over_pooled, cell=attn.pooling),
    }


def _weights(q: Tensor, k: Tensor, head_dim: int) -> Tensor:
    """Returns the softmax of a query (C,) over keys (h, w, C) in float32: (heads, h, w)."""
    q, k = (t.float().unflatten(-1, (-1, head_dim)) for t in (q, k))
    scores = torch.einsum('nd,hwnd->nhw', q, k) / math.sqrt(head_dim)
    return scores.flatten(1).softmax(dim=-1).view(scores.shape)


@contextmanager
def recorded_inputs(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Records the inputs of modules in the last forward pass inside this context."""
    inputs = {}

    def record(module: nn.Module, args: tuple) -> None:
        inputs[module] = args[0].detach()

    hooks = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()

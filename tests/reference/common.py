"""Operations that several reference implementations share, written out from their definitions."""

import math

import torch
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head softmax attention of (n, L, c) queries over (n, M, c) keys and values."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def adaptive_pool(x: Tensor, rows: int, columns: int) -> Tensor:
    """Averages (n, c, h, w) over a grid whose cells overlap where they do not divide the map."""

    def cells(size: int, number: int) -> list[slice]:
        return [slice(i * size // number, -(-(i + 1) * size // number)) for i in range(number)]

    means = [
        torch.stack([x[:, :, y, z].mean(dim=(2, 3)) for z in cells(x.shape[3], columns)], dim=2)
        for y in cells(x.shape[2], rows)
    ]
    return torch.stack(means, dim=2)


def to_tokens(x: Tensor) -> Tensor:
    """(n, c, h, w) to (n, h * w, c), row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(n, h * w, c) to (n, c, h, w), with the height and width of another map."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def depthwise(channels: int, kernel_size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each position of (n, c, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

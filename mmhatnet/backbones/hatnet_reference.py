"""The reference implementation of HAT-Net, from the paper's text and with the published key names.

It is not optimized. Tests compare with it, and it is the baseline of ``mmhatnet benchmark``.
``import mmhatnet`` does not import it. Attention matrices are complete, tokens change between
layouts as in the published formulation, and incomplete windows at the edge are computed one by one.
It runs in any floating-point precision.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmhatnet.backbones.hatnet import HATNet


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels, eps=1e-6)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return weights @ v


class Attention(nn.Module):
    def __init__(self, channels, head_dim, window, pooling):
        super().__init__()
        self.head_dim, self.window, self.pooling = head_dim, window, pooling
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        if window:
            self.grid_norm = group_norm(channels)
            self.q = nn.Conv2d(channels, channels, 1)
            self.ds_norm = group_norm(channels)
            self.kv = nn.Conv2d(channels, 2 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        self.proj_norm = group_norm(channels)

    def heads(self, x):
        """(n, c, h, w) to (n, heads, h * w, head_dim)."""
        n, c, h, w = x.shape
        return x.reshape(n, c // self.head_dim, self.head_dim, h * w).transpose(2, 3)

    def attend(self, qkv):
        n, c, h, w = qkv.shape
        q, k, v = (self.heads(part) for part in qkv.chunk(3, dim=1))
        return attention(q, k, v).transpose(2, 3).reshape(n, c // 3, h, w)

    def local(self, qkv):
        n, c, h, w = qkv.shape
        size = self.window
        if h % size == 0 and w % size == 0:
            tiles = qkv.reshape(n, c, h // size, size, w // size, size)
            tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, size, size)
            out = self.attend(tiles).reshape(n, h // size, w // size, c // 3, size, size)
            return out.permute(0, 3, 1, 4, 2, 5).reshape(n, c // 3, h, w)
        out = qkv.new_empty(n, c // 3, h, w)
        for top in range(0, h, size):
            for left in range(0, w, size):
                tile = np.s_[..., top : top + size, left : left + size]
                out[tile] = self.attend(qkv[tile])
        return out

    def pool(self, y):
        size = self.pooling
        if y.shape[2] % size == 0 and y.shape[3] % size == 0:
            return F.avg_pool2d(y, size)
        rows = [
            torch.stack(
                [
                    y[:, :, top : top + size, left : left + size].mean(dim=(2, 3))
                    for left in range(0, y.shape[3], size)
                ],
                dim=-1,
            )
            for top in range(0, y.shape[2], size)
        ]
        return torch.stack(rows, dim=-2)

    def forward(self, x):
        n, c, h, w = x.shape
        qkv = self.qkv(self.norm(x))
        if not self.window:
            return self.proj(self.attend(qkv))
        y = self.grid_norm(x + self.local(qkv))
        q = self.heads(self.q(y))
        k, v = (self.heads(part) for part in self.kv(self.ds_norm(self.pool(y))).chunk(2, dim=1))
        out = attention(q, k, v).transpose(2, 3).reshape(n, c, h, w)
        return self.proj(out + y)


class InvertedResidual(nn.Module):
    def __init__(self, channels, ratio, kernel_size):
        super().__init__()
        hidden = channels * ratio
        self.conv1 = nn.Sequential(
            group_norm(channels), nn.Conv2d(channels, hidden, 1, bias=False), nn.SiLU()
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(
                hidden, hidden, kernel_size, padding=kernel_size // 2, groups=hidden, bias=False
            ),
            nn.SiLU(),
        )
        self.conv3 = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), group_norm(channels))

    def forward(self, x):
        return self.conv3(self.conv2(self.conv1(x)))


class Block(nn.Module):
    def __init__(self, attn, conv):
        super().__init__()
        self.attn, self.conv = attn, conv

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.conv(x)


class Downsample(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = group_norm(out_channels)

    def forward(self, x):
        return self.norm(self.conv(x))


@MODELS.register_module()
class ReferenceHATNet(nn.Module):
    """The whole network: (N, C, H, W) to the features, and logits if there are classes.

    Args:
        arch (str | dict): As in ``HATNet``.
        num_classes (int): Number of classes; 0 for no head. Defaults to 0.
        in_channels (int): Channels of the input. Defaults to 3.
        out_indices (Sequence[int]): The stages whose features are returned, in this order.
            Defaults to (0, 1, 2, 3).
    """

    def __init__(
        self,
        arch: str | dict,
        num_classes: int = 0,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__()
        self.out_indices = out_indices
        settings = HATNet.resolve_arch(arch)
        dims = settings['embed_dims']
        self.patch_embed = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, stride=2, padding=1),
            group_norm(16),
            nn.SiLU(),
            nn.Conv2d(16, dims[0], 3, stride=2, padding=1),
        )
        self.ds2, self.ds3, self.ds4 = (Downsample(dims[i], dims[i + 1]) for i in range(3))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                Block(
                    Attention(
                        dims[stage],
                        settings['head_dim'],
                        settings['windows'][stage],
                        settings['poolings'][stage],
                    ),
                    InvertedResidual(
                        dims[stage], settings['mlp_ratios'][stage], settings['kernel_sizes'][stage]
                    ),
                )
                for _ in range(settings['depths'][stage])
            )
            for stage in range(4)
        )
        self.classifier = None
        if num_classes:
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(dims[3], num_classes))

    def forward(self, x):
        features = []
        for reduce, blocks in zip((self.patch_embed, self.ds2, self.ds3, self.ds4), self.blocks):
            x = reduce(x)
            for block in blocks:
                x = block(x)
            features.append(x)
        features = tuple(features[index] for index in self.out_indices)
        if self.classifier is None:
            return features
        return features, self.classifier(x.mean(dim=(2, 3)))

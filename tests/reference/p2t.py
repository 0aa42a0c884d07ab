"""P2T, written from docs/networks/p2t.md with the published key names. Nothing is made fast."""

import torch
import torch.nn.functional as F
from reference.common import (
    ChannelNorm,
    adaptive_pool,
    attend,
    depthwise,
    to_map,
    to_tokens,
)
from torch import nn

HEADS = (1, 2, 5, 8)
RATIOS = ((12, 16, 20, 24), (6, 8, 10, 12), (3, 4, 5, 6), (1, 2, 3, 4))
EXPANSIONS = (8, 8, 4, 4)
VARIANTS = {
    'tiny': dict(dims=(48, 96, 240, 384), depths=(2, 2, 6, 3)),
    'small': dict(dims=(64, 128, 320, 512), depths=(2, 2, 9, 3)),
    'base': dict(dims=(64, 128, 320, 512), depths=(3, 4, 18, 3)),
    'large': dict(dims=(64, 128, 320, 640), depths=(3, 8, 27, 3)),
}


class PatchEmbed(nn.Module):
    def __init__(self, in_channels, channels, kernel_size, stride):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2)
        self.norm = ChannelNorm(channels, eps=1e-5)

    def forward(self, x):
        return self.norm(self.proj(x))


class Attention(nn.Module):
    def __init__(self, channels, heads, ratios):
        super().__init__()
        self.heads, self.ratios = heads, ratios
        self.q = nn.Sequential(nn.Linear(channels, channels))
        self.kv = nn.Sequential(nn.Linear(channels, 2 * channels))
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.proj = nn.Linear(channels, channels)

    def forward(self, y, convs):
        cells = []
        for ratio, conv in zip(self.ratios, convs):
            rows, columns = (max(round(side / ratio), 1) for side in y.shape[2:])
            pooled = adaptive_pool(y, rows, columns)
            cells.append(to_tokens(pooled + conv(pooled)))
        k, v = self.kv(self.norm(torch.cat(cells, dim=1))).chunk(2, dim=2)
        return to_map(self.proj(attend(self.q(to_tokens(y)), k, v, self.heads)), y)


class MLP(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.conv = depthwise(hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        return self.fc2(F.hardswish(self.conv(F.hardswish(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, channels, stage):
        super().__init__()
        self.norm1 = ChannelNorm(channels, eps=1e-6)
        self.attn = Attention(channels, HEADS[stage], RATIOS[stage])
        self.norm2 = ChannelNorm(channels, eps=1e-6)
        self.mlp = MLP(channels, EXPANSIONS[stage] * channels)

    def forward(self, x, convs):
        x = x + self.attn(self.norm1(x), convs)
        return x + self.mlp(self.norm2(x))


class P2T(nn.Module):
    """(n, 3, h, w) to the four features and the logits of 1000 classes."""

    def __init__(self, dims, depths):
        super().__init__()
        before = (3, *dims)
        for stage, channels in enumerate(dims):
            kernel_size, stride = (3, 2) if stage else (7, 4)
            embed = PatchEmbed(before[stage], channels, kernel_size, stride)
            self.add_module(f'patch_embed{stage + 1}', embed)
            convs = (depthwise(channels) for _ in RATIOS[stage])
            self.add_module(f'd_convs{stage + 1}', nn.ModuleList(convs))
            blocks = (Block(channels, stage) for _ in range(depths[stage]))
            self.add_module(f'block{stage + 1}', nn.ModuleList(blocks))
        self.head = nn.Linear(dims[3], 1000)

    def forward(self, x):
        features = []
        for stage in range(1, 5):
            x = self.get_submodule(f'patch_embed{stage}')(x)
            for block in self.get_submodule(f'block{stage}'):
                x = block(x, self.get_submodule(f'd_convs{stage}'))
            features.append(x)
        return features, self.head(x.mean(dim=(2, 3)))


def build(variant):
    return P2T(**VARIANTS[variant])

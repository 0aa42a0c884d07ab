"""STViT, written from docs/networks/stvit.md with the published key names. Nothing is made fast.

Every position is compared with every super token; those outside its 3 x 3 cells are masked out.
"""

import math

import torch
import torch.nn.functional as F
from reference.common import ChannelNorm, attend, depthwise, to_map, to_tokens
from torch import nn

CELLS = (8, 4, 1, 1)
SCALED = (False, False, True, True)
VARIANTS = {
    'small': dict(
        dims=(64, 128, 320, 512), heads=(1, 2, 5, 8), depths=(3, 5, 9, 3), layer_scale=False
    ),
    'base': dict(
        dims=(96, 192, 384, 512), heads=(2, 3, 6, 8), depths=(4, 6, 14, 6), layer_scale=True
    ),
    'large': dict(
        dims=(96, 192, 448, 640), heads=(2, 3, 7, 10), depths=(4, 7, 19, 8), layer_scale=True
    ),
}


class Attention(nn.Module):
    """Over all positions of a map. The channels of q, k and v lie head by head."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        qkv = to_tokens(self.qkv(x)).unflatten(2, (self.heads, 3, -1))
        q, k, v = (t.flatten(2) for t in qkv.unbind(3))
        return self.proj(to_map(attend(q, k, v, self.heads), x))


class Neighbors(nn.Module):
    """Constants of a published checkpoint: nine kernels that each pick one of 3 x 3 cells."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.eye(9).view(9, 1, 3, 3), requires_grad=False)


class SuperTokenAttention(nn.Module):
    constant_association = True  # in the backward pass

    def __init__(self, channels, heads, cell):
        super().__init__()
        self.cell = cell
        self.unfold, self.fold = Neighbors(), Neighbors()
        self.stoken_refine = Attention(channels, heads)

    def forward(self, x):
        if self.cell == 1:
            return self.stoken_refine(x)
        height, width = x.shape[2:]
        size = self.cell
        x = F.pad(x, (0, -width % size, 0, -height % size))
        positions = to_tokens(x)
        start = F.avg_pool2d(x, size)
        q = self.associate(positions, to_tokens(start), x)
        if self.constant_association:
            q = q.detach()
        total = q.sum(dim=1).unsqueeze(2)
        tokens = q.transpose(1, 2) @ positions / (total + 1e-12)
        tokens = to_tokens(self.stoken_refine(to_map(tokens, start)))
        return to_map(q @ tokens, x)[:, :, :height, :width]

    def associate(self, positions, tokens, x):
        """Returns the weights of P positions for S super tokens, (n, P, S)."""
        rows, columns = (side // self.cell for side in x.shape[2:])
        cell_rows, cell_columns = torch.arange(rows), torch.arange(columns)
        row, column = (
            torch.arange(side).div(self.cell, rounding_mode='floor') for side in x.shape[2:]
        )
        near_rows = (row[:, None] - cell_rows).abs() <= 1
        near_columns = (column[:, None] - cell_columns).abs() <= 1
        near = near_rows[:, None, :, None] & near_columns[None, :, None, :]
        near = near.flatten(2).flatten(0, 1)
        logits = positions @ tokens.transpose(1, 2) / math.sqrt(x.shape[1])
        weights = logits.exp() * near
        # A neighbor outside the grid is a super token of zeros, with the logit 0.
        outside = 9 - near.sum(dim=1, keepdim=True)
        return weights / (weights.sum(dim=2, keepdim=True) + outside)


class Wrapped(nn.Module):
    """Gives a layer the additional level that it has in published names."""

    def __init__(self, **layer):
        super().__init__()
        ((name, module),) = layer.items()
        self.add_module(name, module)

    def forward(self, x):
        (layer,) = self.children()
        return layer(x)


class MLP(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.conv = Wrapped(conv=depthwise(4 * channels))
        self.fc2 = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x):
        y = F.gelu(self.fc1(x))
        return self.fc2(y + self.conv(y))


class Block(nn.Module):
    def __init__(self, channels, heads, cell, layer_scale):
        super().__init__()
        self.pos_embed = Wrapped(conv=depthwise(channels))
        self.norm1 = Wrapped(norm=ChannelNorm(channels, eps=1e-6))
        self.attn = SuperTokenAttention(channels, heads, cell)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp2 = MLP(channels)
        self.gamma_1 = self.gamma_2 = 1
        if layer_scale:
            self.gamma_1, self.gamma_2 = (
                nn.Parameter(torch.full((1, channels, 1, 1), 1e-6)) for _ in range(2)
            )

    def forward(self, x):
        x = x + self.pos_embed(x)
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp2(self.norm2(x))


class Downsample(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.proj = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x):
        return self.proj(x)


class Stem(nn.Module):
    def __init__(self, channels):
        super().__init__()
        dims = (3, channels // 2, channels // 2, channels, channels)
        layers = []
        for number, stride in enumerate((2, 1, 2, 1)):
            layers += [nn.Conv2d(dims[number], dims[number + 1], 3, stride, padding=1)]
            layers += [nn.GELU(), nn.BatchNorm2d(dims[number + 1])]
        self.proj = nn.Sequential(*layers)

    def forward(self, x):
        return self.proj(x)


class Stage(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class STViT(nn.Module):
    """(n, 3, h, w) to the four features and the logits of 1000 classes."""

    def __init__(self, dims, heads, depths, layer_scale):
        super().__init__()
        self.patch_embed = Stem(dims[0])
        self.layers = nn.ModuleList()
        for stage, channels in enumerate(dims):
            scaled = layer_scale and SCALED[stage]
            blocks = [
                Block(channels, heads[stage], CELLS[stage], scaled) for _ in range(depths[stage])
            ]
            downsample = Downsample(channels, dims[stage + 1]) if stage < 3 else None
            self.layers.append(Stage(blocks, downsample))
        self.proj = nn.Conv2d(dims[3], 1024, 1)
        self.norm = nn.BatchNorm2d(1024)
        self.head = nn.Linear(1024, 1000)

    def forward(self, x):
        features = []
        x = self.patch_embed(x)
        for stage in self.layers:
            for block in stage.blocks:
                x = block(x)
            features.append(x)
            if stage.downsample:
                x = stage.downsample(x)
        return features, self.head(F.silu(self.norm(self.proj(x))).mean(dim=(2, 3)))


def build(variant):
    return STViT(**VARIANTS[variant])

"""The Shunted Transformer, written from docs/networks/shunted.md with the published key names.

Nothing is made fast.
"""

import torch
import torch.nn.functional as F
from reference.common import ChannelNorm, attend, depthwise, to_map, to_tokens
from torch import nn

DIMS = (64, 128, 256, 512)
HEAD_DIM = 32
EXPANSIONS = (8, 8, 4, 4)
AGGREGATIONS = ((8, 4), (4, 2), (2, 1), None)
VARIANTS = {
    'tiny': dict(depths=(1, 2, 4, 1), stem_convs=0),
    'small': dict(depths=(2, 4, 12, 1), stem_convs=1),
    'base': dict(depths=(3, 4, 24, 2), stem_convs=2),
}


class PatchConv(nn.Conv2d):
    """Drops the rows and columns that fill no patch; fills a map smaller than one patch."""

    def forward(self, x):
        bottom, right = (max(k - side, 0) for k, side in zip(self.kernel_size, x.shape[2:]))
        return super().forward(F.pad(x, (0, right, 0, bottom)))


class Stem(nn.Module):
    def __init__(self, channels, convs):
        super().__init__()
        layers = [nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)]
        for _ in range(convs):
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), PatchConv(channels, channels, 2, stride=2)]
        self.conv = nn.Sequential(*layers)
        self.norm = ChannelNorm(channels, eps=1e-5)

    def forward(self, x):
        return self.norm(self.conv(x))


class PatchEmbed(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.norm = ChannelNorm(channels, eps=1e-5)

    def forward(self, x):
        return self.norm(self.proj(x))


class ShuntedAttention(nn.Module):
    """Stages 1 to 3: each half of the heads attends to an aggregation of its own."""

    def __init__(self, channels, sizes):
        super().__init__()
        self.heads = channels // HEAD_DIM // 2
        self.q = nn.Linear(channels, channels)
        for half, size in enumerate(sizes, start=1):
            self.add_module(f'sr{half}', PatchConv(channels, channels, size, stride=size))
            self.add_module(f'norm{half}', ChannelNorm(channels, eps=1e-5))
            self.add_module(f'kv{half}', nn.Linear(channels, channels))
            self.add_module(f'local_conv{half}', depthwise(channels // 2))
        self.proj = nn.Linear(channels, channels)

    def forward(self, y):
        outputs = []
        for half, q in enumerate(self.q(to_tokens(y)).chunk(2, dim=2), start=1):
            norm, reduce = self.get_submodule(f'norm{half}'), self.get_submodule(f'sr{half}')
            z = F.gelu(norm(reduce(y)))
            k, v = self.get_submodule(f'kv{half}')(to_tokens(z)).chunk(2, dim=2)
            values = to_map(v, z)
            v = to_tokens(values + self.get_submodule(f'local_conv{half}')(values))
            outputs.append(attend(q, k, v, self.heads))
        return to_map(self.proj(torch.cat(outputs, dim=2)), y)


class PlainAttention(nn.Module):
    """Stage 4: the depthwise convolution of the values is added to the result of attention."""

    def __init__(self, channels):
        super().__init__()
        self.heads = channels // HEAD_DIM
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.local_conv = depthwise(channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, y):
        tokens = to_tokens(y)
        k, v = self.kv(tokens).chunk(2, dim=2)
        out = attend(self.q(tokens), k, v, self.heads) + to_tokens(self.local_conv(to_map(v, y)))
        return to_map(self.proj(out), y)


class DepthwiseConv(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.dwconv = depthwise(channels)

    def forward(self, x):
        return self.dwconv(x)


class MLP(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x):
        u = to_map(self.fc1(to_tokens(x)), x)
        return to_map(self.fc2(to_tokens(F.gelu(u + self.dwconv(u)))), x)


class Block(nn.Module):
    def __init__(self, stage):
        super().__init__()
        channels, sizes = DIMS[stage], AGGREGATIONS[stage]
        self.norm1 = ChannelNorm(channels, eps=1e-6)
        self.attn = ShuntedAttention(channels, sizes) if sizes else PlainAttention(channels)
        self.norm2 = ChannelNorm(channels, eps=1e-6)
        self.mlp = MLP(channels, EXPANSIONS[stage] * channels)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ShuntedTransformer(nn.Module):
    """(n, 3, h, w) to the four features and the logits of 1000 classes."""

    def __init__(self, depths, stem_convs):
        super().__init__()
        for stage, channels in enumerate(DIMS):
            embed = PatchEmbed(DIMS[stage - 1], channels) if stage else Stem(channels, stem_convs)
            self.add_module(f'patch_embed{stage + 1}', embed)
            blocks = (Block(stage) for _ in range(depths[stage]))
            self.add_module(f'block{stage + 1}', nn.ModuleList(blocks))
            self.add_module(f'norm{stage + 1}', ChannelNorm(channels, eps=1e-6))
        self.head = nn.Linear(DIMS[3], 1000)

    def forward(self, x):
        features = []
        for stage in range(1, 5):
            x = self.get_submodule(f'patch_embed{stage}')(x)
            for block in self.get_submodule(f'block{stage}'):
                x = block(x)
            x = self.get_submodule(f'norm{stage}')(x)
            features.append(x)
        return features, self.head(x.mean(dim=(2, 3)))


def build(variant):
    return ShuntedTransformer(**VARIANTS[variant])

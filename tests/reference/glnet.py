"""GLNet, written from docs/networks/glnet.md with the published key names. Nothing is made fast."""

import torch
import torch.nn.functional as F
from reference.common import ChannelNorm, adaptive_pool, depthwise, to_map, to_tokens
from torch import nn

HEAD_DIM = 32
SLOT_ROWS = 8
LARGE = dict(depths=(4, 4, 18, 4), mixers=('slots', 'slots', 'alternating', 'map'))
SMALL = dict(depths=(2, 2, 6, 2), mixers=('slots', 'slots', 'slots', 'tokens'), overlapped=False)
VARIANTS = {
    '4g': dict(LARGE, dims=(64, 128, 256, 512)),
    '9g': dict(LARGE, dims=(96, 192, 384, 768)),
    '16g': dict(LARGE, dims=(128, 256, 512, 1024), layer_scale=True),
    '4g_tklb': dict(LARGE, dims=(64, 128, 256, 512), token_labels=True),
    '9g_tklb': dict(LARGE, dims=(96, 192, 384, 768), token_labels=True),
    'stl': dict(SMALL, dims=(96, 192, 384, 768)),
    'stl_paramslot': dict(SMALL, dims=(96, 192, 384, 768), learned_slots=True),
}


def attention(channels):
    """PyTorch's has the published names: in_proj_weight, in_proj_bias, out_proj."""
    return nn.MultiheadAttention(channels, channels // HEAD_DIM, batch_first=True)


class ResidualConv(nn.Module):
    def __init__(self, channels):
        super().__init__()
        conv = depthwise(channels)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x):
        return x + F.conv2d(x, self.weight, self.bias, padding=1, groups=x.shape[1])


class LayerScale(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, 1e-4))

    def forward(self, x):
        return x * self.gamma.view(1, -1, 1, 1)


class Block(nn.Module):
    def __init__(self, channels, mixer, overlapped, layer_scale, learned_slots):
        super().__init__()
        self.mixer = mixer
        self.pos_conv = ResidualConv(channels) if overlapped else nn.Identity()
        self.norm1 = ChannelNorm(channels, eps=1e-6)
        if mixer == 'slots':
            self.slot_scale = nn.Parameter(torch.tensor(channels**-0.5))
            self.init_slots = None
            if learned_slots:
                self.init_slots = nn.Parameter(torch.empty(1, SLOT_ROWS**2, channels))
            self.relation_mha = attention(channels)
            self.feature_conv = nn.Sequential(
                nn.Conv2d(channels, channels, 1),
                depthwise(channels, 5),
                nn.Conv2d(channels, channels, 1),
            )
        else:
            self.mha_op = attention(channels)
        self.norm2 = ChannelNorm(channels, eps=1e-6)
        hidden = (3 if overlapped else 4) * channels
        expand, project = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        conv = ResidualConv(hidden) if overlapped else nn.Identity()
        if mixer == 'tokens':
            self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU())
            self.mlp.append(nn.Linear(hidden, channels))
        else:
            self.mlp = nn.Sequential(expand, conv, nn.GELU(), project)
        self.ls1 = self.ls2 = nn.Identity()
        if layer_scale:
            self.ls1 = LayerScale(*((1, channels, 1, 1) if mixer == 'slots' else (channels,)))
            self.ls2 = LayerScale(1, channels, 1, 1)

    def forward(self, x):
        block_input = x
        x = self.pos_conv(x)
        z = self.norm1(x)
        if self.mixer == 'slots':
            out = self.mix_slots(block_input, z) + self.feature_conv(z)
        else:
            tokens = to_tokens(z)
            out = to_map(self.mha_op(tokens, tokens, tokens)[0], z)
        x = x + self.ls1(out)
        z = self.norm2(x)
        out = to_map(self.mlp(to_tokens(z)), z) if self.mixer == 'tokens' else self.mlp(z)
        return x + self.ls2(out)

    def mix_slots(self, block_input, z):
        start = self.init_slots
        if start is None:
            start = to_tokens(adaptive_pool(block_input, SLOT_ROWS, SLOT_ROWS))
        positions = to_tokens(z)
        start, directions = (
            t / torch.linalg.vector_norm(t, dim=2, keepdim=True).clamp(min=1e-12)
            for t in (start, positions)
        )
        logits = self.slot_scale * (start @ directions.transpose(1, 2))
        slots = logits.softmax(dim=2) @ positions
        slots = self.relation_mha(slots, slots, slots)[0]
        return to_map(logits.softmax(dim=1).transpose(1, 2) @ slots, z)


class PatchConv(nn.Conv2d):
    """Fills the last row and column of patches with zeros."""

    def forward(self, x):
        bottom, right = (-side % k for side, k in zip(x.shape[2:], self.kernel_size))
        return super().forward(F.pad(x, (0, right, 0, bottom)))


def stem(channels, overlapped):
    if not overlapped:
        return nn.Sequential(PatchConv(3, channels, 4, stride=4), nn.BatchNorm2d(channels))
    half = channels // 2
    first = nn.Conv2d(3, half, 3, stride=2, padding=1)
    second = nn.Conv2d(half, channels, 3, stride=2, padding=1)
    # Published names begin with 1.
    return nn.Sequential(
        nn.Identity(), first, nn.BatchNorm2d(half), nn.GELU(), second, nn.BatchNorm2d(channels)
    )


def downsample(in_channels, channels, overlapped):
    if not overlapped:
        conv = PatchConv(in_channels, channels, 2, stride=2)
        return nn.Sequential(nn.BatchNorm2d(in_channels), conv)
    conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class Stage(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class GLNet(nn.Module):
    """(n, 3, h, w) to the four features and the logits of 1000 classes."""

    def __init__(
        self,
        dims,
        depths,
        mixers,
        overlapped=True,
        layer_scale=False,
        learned_slots=False,
        token_labels=False,
    ):
        super().__init__()
        self.downsample_layers = nn.ModuleList([stem(dims[0], overlapped)])
        self.stages = nn.ModuleList()
        for index, channels in enumerate(dims):
            if index:
                self.downsample_layers.append(downsample(dims[index - 1], channels, overlapped))
            blocks = []
            for number in range(depths[index]):
                mixer = mixers[index]
                if mixer == 'alternating':
                    mixer = ('slots', 'map')[number % 2]
                blocks.append(Block(channels, mixer, overlapped, layer_scale, learned_slots))
            self.stages.append(Stage(blocks))
        self.norm = nn.BatchNorm2d(dims[3])
        self.head = nn.Linear(dims[3], 1000)
        self.tklb_aux_head = nn.Linear(dims[3], 1000) if token_labels else None

    def forward(self, x):
        features = []
        for reduce, stage in zip(self.downsample_layers, self.stages):
            x = reduce(x)
            for block in stage.blocks:
                x = block(x)
            features.append(x)
        positions = to_tokens(self.norm(x))
        logits = self.head(positions.mean(dim=1))
        if self.tklb_aux_head is not None:
            logits = logits + self.tklb_aux_head(positions).amax(dim=1) / 2
        return features, logits


def build(variant):
    return GLNet(**VARIANTS[variant])

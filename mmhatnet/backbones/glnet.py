"""The GLNet backbone: convolutions for the neighborhood, attention among a few slots for the rest.

Zhu et al., "Revisiting the Integration of Convolution and Attention for Vision Backbone", NeurIPS
2024, arXiv 2411.14429. Published code and weights: https://github.com/rayleizhu/GLMix.

The file reads from the pieces of a block to the network.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmhatnet.backbones.base import Backbone, Stage
from mmhatnet.backbones.layers import (
    CeilPatchConv,
    DropPath,
    LayerNorm2d,
    adaptive_means,
    conv,
    depthwise_conv,
    layer_scale,
    multi_head_attention,
    pointwise,
)
from mmhatnet.checkpoints.keys import Published


def linear(in_channels: int, out_channels: int) -> nn.Linear:
    """A linear layer of the published code. Its 1x1 convolutions keep PyTorch's initialization."""
    module = nn.Linear(in_channels, out_channels)
    nn.init.trunc_normal_(module.weight, std=0.02)
    nn.init.zeros_(module.bias)
    return module


class Attention(nn.Module):
    """Multi-head self-attention: (N, L, C) to (N, L, C)."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = linear(channels, 3 * channels)
        nn.init.xavier_uniform_(self.qkv.weight)
        self.proj = linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(multi_head_attention(q, k, v, self.head_dim))


class GlobalAttention(Attention):
    """Attention among all positions."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """(N, C, H, W) to (N, C, H, W). ``x``, the input of ``SlotMixing``, is not used."""
        out = super().forward(z.permute(0, 2, 3, 1).flatten(1, 2))
        return out.unflatten(1, z.shape[2:]).permute(0, 3, 1, 2)


class SlotMixing(nn.Module):
    """GLMix (paper, section 3): attention among slots, and convolutions beside it.

    The initial slots are means over a grid, or parameters. Positions are assigned to slots by their
    cosine similarity. The slots attend to each other and are distributed over the positions again.
    Memory is at most ``num_slots`` numbers for each position, at any image size.
    """

    def __init__(self, channels: int, head_dim: int, num_slots: int, learned_slots: bool) -> None:
        super().__init__()
        self.side = math.isqrt(num_slots)
        self.slots = None
        if learned_slots:
            self.slots = nn.Parameter(torch.empty(1, num_slots, channels))
            nn.init.normal_(self.slots, std=0.02)
        self.temperature = nn.Parameter(torch.full((1,), channels**-0.5))
        self.among_slots = Attention(channels, head_dim)
        self.conv_in = nn.Linear(channels, channels)
        self.depthwise = depthwise_conv(channels, 5)
        self.conv_out = nn.Linear(channels, channels)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W).

        Args:
            z (Tensor): The normalized input of the block.
            x (Tensor): The input of the block, of which the initial slots are made.
        """
        if self.slots is None:
            slots = adaptive_means(x, (self.side, self.side)).flatten(2).transpose(1, 2)
        else:
            slots = self.slots
        positions = z.permute(0, 2, 3, 1).flatten(1, 2)
        # In 16 bits cosines would be coarse, and the weight of one position among many would be 0.
        with torch.autocast(z.device.type, enabled=False):
            precise = torch.promote_types(z.dtype, torch.float32)
            positions = positions.to(precise)
            directions = self.temperature * F.normalize(slots.to(precise), dim=-1, eps=1e-12)
            lengths = torch.linalg.vector_norm(positions, dim=-1).clamp(min=1e-12)
            logits = directions @ positions.mT / lengths.unsqueeze(1)
            slots = logits.softmax(dim=-1) @ positions
            spreading = logits.softmax(dim=-2)
        slots = self.among_slots(slots.to(z.dtype))
        out = spreading.to(slots.dtype).mT @ slots
        local = pointwise(self.conv_out, self.depthwise(pointwise(self.conv_in, z)))
        return out.unflatten(1, z.shape[2:]).permute(0, 3, 1, 2) + local


class MLP(nn.Module):
    """Expansion, optionally a depthwise convolution with a residual, and projection."""

    def __init__(self, channels: int, ratio: int, depthwise: bool, layer: Callable) -> None:
        super().__init__()
        hidden = channels * ratio
        self.expand = layer(channels, hidden)
        self.depthwise = depthwise_conv(hidden, 3) if depthwise else None
        self.project = layer(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = pointwise(self.expand, x)
        if self.depthwise is not None:
            x = x + self.depthwise(x)
        return pointwise(self.project, F.gelu(x))


class Block(nn.Module):
    """Attention and MLP, each with a residual connection: (N, C, H, W) to (N, C, H, W)."""

    def __init__(
        self,
        channels: int,
        attn: nn.Module,
        mlp: nn.Module,
        depthwise: bool,
        scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.position = depthwise_conv(channels, 3) if depthwise else None
        self.norm1 = LayerNorm2d(channels, eps=1e-6)
        self.attn = attn
        self.norm2 = LayerNorm2d(channels, eps=1e-6)
        self.mlp = mlp
        self.scale1 = layer_scale(channels, scale)
        self.scale2 = layer_scale(channels, scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        placed = x if self.position is None else x + self.position(x)
        mixed = self.attn(self.norm1(placed), x)
        x = placed + self.drop_path(self.scale1(mixed))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class Stem(nn.Sequential):
    """(N, C_in, H, W) to (N, C, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, in_channels: int, channels: int, overlapped: bool) -> None:
        if overlapped:
            half = channels // 2
            super().__init__(
                nn.Identity(),  # so that the layers have their published numbers
                conv(in_channels, half, 3, stride=2),
                nn.BatchNorm2d(half),
                nn.GELU(),
                conv(half, channels, 3, stride=2),
                nn.BatchNorm2d(channels),
            )
        else:
            super().__init__(CeilPatchConv(in_channels, channels, 4), nn.BatchNorm2d(channels))


class Downsample(nn.Sequential):
    """Between two stages: (N, C_in, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, channels: int, overlapped: bool) -> None:
        if overlapped:
            super().__init__(conv(in_channels, channels, 3, stride=2), nn.BatchNorm2d(channels))
        else:
            super().__init__(nn.BatchNorm2d(in_channels), CeilPatchConv(in_channels, channels, 2))


@MODELS.register_module()
class GLNet(Backbone):
    """GLNet as a backbone with one feature per stage, of strides 4, 8, 16 and 32.

    It takes any input size: a feature of stride s has ceil(H / s) x ceil(W / s) positions. The
    published code of 'stl' and 'stl_paramslot' drops rows and columns that do not fill a patch,
    which are padded with zeros here. Where patches divide the size, both compute the same.

    ``Backbone`` documents the other arguments and the attributes.

    Args:
        arch (str | dict): '4g', '9g', '16g', 'stl' (patches that do not overlap, as Swin's),
            'stl_paramslot' (the same with learned slots), '4g_tklb', '9g_tklb' (the networks of
            '4g' and '9g', trained with token labeling), or a dict of settings: for each stage
            ``embed_dims`` (channels), ``depths`` (blocks), ``mixers`` ('slots', 'map' for attention
            among all positions, or 'alternating', which starts with slots) and ``mlp_ratios``;
            ``overlapped`` (convolutions between stages), ``depthwise`` (3x3 convolutions before
            attention and in MLPs), ``layer_scale`` (initial value, or None for none),
            ``learned_slots``, ``num_slots`` (a square number) and ``head_dim`` (channels per
            head). Only the first two have no default.
        drop_path_rate (float): On ImageNet the authors train with 0.15 ('4g'), 0.3 ('9g'), 0.4
            ('16g') and 0.1 (the others). Defaults to 0.
        norm_eval (bool): Only the layers between stages have batch norms. Defaults to False.
        with_cp (bool): Whether to recompute each block in the backward pass, which saves memory for
            time. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to None: the authors' initialization.

    Published checkpoints load as they are. So do the backbone's weights in a checkpoint of a whole
    model, nested or with a prefix. The authors report the accuracy of '16g' for the averaged
    weights under ``model_ema``. Where a file has both, those under ``model`` are loaded.

    Raises:
        ValueError: If an argument or an input is impossible, or a checkpoint is of another network.
    """

    ARCHS = {
        '4g': dict(embed_dims=(64, 128, 256, 512), depths=(4, 4, 18, 4)),
        '9g': dict(embed_dims=(96, 192, 384, 768), depths=(4, 4, 18, 4)),
        '16g': dict(embed_dims=(128, 256, 512, 1024), depths=(4, 4, 18, 4), layer_scale=1e-4),
        'stl': dict(
            embed_dims=(96, 192, 384, 768),
            depths=(2, 2, 6, 2),
            mixers=('slots', 'slots', 'slots', 'map'),
            overlapped=False,
            mlp_ratios=(4, 4, 4, 4),
            depthwise=False,
        ),
    }
    ARCHS['stl_paramslot'] = dict(ARCHS['stl'], learned_slots=True)
    ARCHS['4g_tklb'], ARCHS['9g_tklb'] = ARCHS['4g'], ARCHS['9g']
    ARCH_DEFAULTS = dict(
        mixers=('slots', 'slots', 'alternating', 'map'),
        overlapped=True,
        mlp_ratios=(3, 3, 3, 3),
        depthwise=True,
        layer_scale=None,
        learned_slots=False,
        num_slots=64,
        head_dim=32,
    )
    CHECKPOINT = Published(
        network='GLNet',
        keys=r'(downsample_layers\.\d|stages\.\d+\.blocks\.\d+)\.',
        renamings=[
            (r'^downsample_layers\.0\.', r'stem.'),
            (r'^downsample_layers\.', r'stages.'),
            (r'^(stages\.\d+)\.([01]\.)', r'\1.downsample.\2'),
            (r'\.pos_conv\.', r'.position.'),
            (r'\.slot_scale$', r'.attn.temperature'),
            (r'\.init_slots$', r'.attn.slots'),
            (r'\.feature_conv\.0\.', r'.attn.conv_in.'),
            (r'\.feature_conv\.1\.', r'.attn.depthwise.'),
            (r'\.feature_conv\.2\.', r'.attn.conv_out.'),
            (r'\.relation_mha\.', r'.attn.among_slots.'),
            (r'\.mha_op\.', r'.attn.'),
            (r'\.in_proj_', r'.qkv.'),
            (r'\.out_proj\.', r'.proj.'),
            (r'\.mlp\.0\.', r'.mlp.expand.'),
            (r'\.mlp\.1\.', r'.mlp.depthwise.'),
            (r'\.mlp\.[23]\.', r'.mlp.project.'),
            (r'\.ls([12])\.gamma$', r'.scale\1.gamma'),
        ],
        head=[
            (r'^norm\.', 'head.norm.'),
            (r'^head\.', 'head.fc.'),
            (r'^tklb_aux_head\.', 'head.dense_fc.'),
        ],
    )

    def __init__(
        self,
        arch: str | dict = '4g',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            arch, in_channels, out_indices, drop_path_rate, frozen_stages, init_cfg, norm_eval
        )
        settings = self.settings
        overlapped, depthwise = settings['overlapped'], settings['depthwise']

        def block(stage: int, index: int, drop_path: float) -> Block:
            channels, head_dim = self.embed_dims[stage], settings['head_dim']
            mixer = settings['mixers'][stage]
            attn: nn.Module
            if mixer == 'slots' or (mixer == 'alternating' and index % 2 == 0):
                num_slots, learned = settings['num_slots'], settings['learned_slots']
                attn = SlotMixing(channels, head_dim, num_slots, learned)
            else:
                attn = GlobalAttention(channels, head_dim)
            layer = linear if mixer == 'map' and not overlapped else nn.Linear
            mlp = MLP(channels, settings['mlp_ratios'][stage], depthwise, layer)
            return Block(channels, attn, mlp, depthwise, settings['layer_scale'], drop_path)

        self._build(
            Stem(in_channels, self.embed_dims[0], overlapped),
            partial(Downsample, overlapped=overlapped),
            block,
            partial(Stage, with_cp=with_cp),
        )

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict[str, Any]:
        """Returns the complete settings of a named or custom architecture.

        Raises:
            ValueError: As for every backbone, and if a mixer is unknown or the number of slots is
                not a square number.
        """
        settings = super().resolve_arch(arch)
        num_slots = settings['num_slots']
        if not set(settings['mixers']) <= {'slots', 'map', 'alternating'}:
            raise ValueError(f"mixers={settings['mixers']} must be 'slots', 'map' or 'alternating'")
        if num_slots < 1 or math.isqrt(num_slots) ** 2 != num_slots:
            raise ValueError(f'num_slots={num_slots} must be a square number, as 64 is')
        return settings

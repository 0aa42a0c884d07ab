"""The Shunted Transformer: the heads of one layer attend to tokens of two scales.

Ren et al., "Shunted Self-Attention via Multi-Scale Token Aggregation", CVPR 2022, arXiv 2111.15193.
Published code: https://github.com/OliverRensu/Shunted-Transformer. Where the paper's figures and
that code differ, this is what the code computes, because the weights are the code's.

The file reads from the pieces of a block to the network. Inside the network a feature is
(N, H, W, C), in which all linear layers and norms are computed; convolutions see the same memory
as (N, C, H, W) in the channels-last format.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import normal_init, update_init_info
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmhatnet.backbones.base import Backbone
from mmhatnet.backbones.layers import DropPath, convolve, depthwise_conv, multi_head_attention
from mmhatnet.checkpoints.keys import Published


class PatchConv2d(nn.Conv2d):
    """Convolution of disjoint patches, of (N, C_in, H, W).

    The number of patches rounds down: rows and columns that are left at the bottom and right are in
    none. A map that is smaller than the kernel is filled with zeros there, so that there is always
    one patch; the published code fails on it, below 31 pixels a side.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__(in_channels, out_channels, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, max(H // size, 1), max(W // size, 1))."""
        height, width = self.kernel_size
        if x.shape[2] < height or x.shape[3] < width:
            bottom, right = max(height - x.shape[2], 0), max(width - x.shape[3], 0)
            x = F.pad(x, (0, right, 0, bottom))
        return super().forward(x)


class Stem(nn.Module):
    """(N, C_in, H, W) to (N, H', W', C), with H' = max(floor(ceil(H / 2) / 2), 1).

    The paper's Figure 4 shows another one. The number of 3x3 convolutions grows with the variant,
    and the last convolution rounds down, so that a side is not always ceil(H / 4).
    """

    def __init__(self, in_channels: int, channels: int, num_convs: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)]
        for _ in range(num_convs):
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), PatchConv2d(channels, channels, 2)]
        self.convs = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convs(x).permute(0, 2, 3, 1).contiguous())


class Downsample(nn.Module):
    """Between two stages: (N, H, W, C_in) to (N, ceil(H / 2), ceil(W / 2), C_out)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(self.conv, x))


class Aggregation(nn.Module):
    """Keys and values for half of the heads, from patches of positions."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.conv = PatchConv2d(channels, channels, size)
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.kv = nn.Linear(channels, channels)
        self.depthwise = depthwise_conv(channels // 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) to twice (N, patches, C / 2)."""
        tokens = F.gelu(self.norm(convolve(self.conv, x)))
        k, v = self.kv(tokens).chunk(2, dim=-1)
        v = v + convolve(self.depthwise, v)
        return k.flatten(1, 2), v.flatten(1, 2)


def check_heads(channels: int, groups: int, head_dim: int) -> None:
    """Raises a ValueError if the channels are no groups of whole heads."""
    if channels % (groups * head_dim):
        raise ValueError(f'embed_dims={channels} must be a multiple of {groups} x {head_dim=}')


class ShuntedAttention(nn.Module):
    """Attention whose first half of heads sees large patches and whose second half small ones."""

    def __init__(self, channels: int, head_dim: int, sizes: tuple[int, int]) -> None:
        super().__init__()
        check_heads(channels, 2, head_dim)
        self.head_dim = head_dim
        self.q = nn.Linear(channels, channels)
        self.coarse, self.fine = (Aggregation(channels, size) for size in sizes)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        first, second = self.q(x).flatten(1, 2).chunk(2, dim=-1)
        first = multi_head_attention(first, *self.coarse(x), self.head_dim)
        second = multi_head_attention(second, *self.fine(x), self.head_dim)
        return self.proj(torch.cat([first, second], dim=-1).view(x.shape))


class PlainAttention(nn.Module):
    """Attention of all positions to all, as in the last stage.

    The depthwise convolution of the values is not added to them, as it is in the other stages, but
    to what attention makes of them. The published weights are trained so; by the authors' word it
    hardly matters.
    """

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        check_heads(channels, 1, head_dim)
        self.head_dim = head_dim
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.depthwise = depthwise_conv(channels, 3)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        k, v = self.kv(x).chunk(2, dim=-1)
        q, keys, values = (t.flatten(1, 2) for t in (self.q(x), k, v))
        out = multi_head_attention(q, keys, values, self.head_dim).view(x.shape)
        return self.proj(out + convolve(self.depthwise, v))


class MLP(nn.Module):
    """Expansion, depthwise convolution beside it, projection: (N, H, W, C) to (N, H, W, C)."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, channels * ratio)
        self.depthwise = depthwise_conv(channels * ratio, 3)
        self.project = nn.Linear(channels * ratio, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        return self.project(F.gelu(x + convolve(self.depthwise, x)))


class Block(nn.Module):
    """Attention and MLP, each with a residual connection: (N, H, W, C) to (N, H, W, C)."""

    def __init__(self, channels: int, attn: nn.Module, ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLP(channels, ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Blocks of one resolution, after a downsampling in all stages but the first, and a norm."""

    def __init__(self, downsample: nn.Module, blocks: list[Block], norm: nn.Module, with_cp: bool):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)


@WEIGHT_INITIALIZERS.register_module()
class FanOutNormal:
    """Normal weights of variance 2 / (kernel area * outputs / groups) and no biases.

    MMEngine's Kaiming initialisation takes a depthwise convolution for a full one.
    """

    def __call__(self, module: nn.Module) -> None:
        for conv in module.modules():
            if isinstance(conv, nn.Conv2d):
                fan_out = math.prod(conv.kernel_size) * conv.out_channels // conv.groups
                normal_init(conv, std=math.sqrt(2 / fan_out))
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info='FanOutNormal')


@MODELS.register_module()
class ShuntedTransformer(Backbone):
    """The Shunted Transformer as a backbone with one feature per stage.

    Strides are 4, 8, 16 and 32, at any input size, but a side of the first feature is
    floor(ceil(H / 2) / 2), and of each further one half of that before, rounded up.

    Arguments that are not listed here, and the attributes, are those of ``Backbone``.

    Args:
        arch (str | dict): 'tiny', 'small', 'base', or a dict of settings: ``depths`` (blocks of
            each stage) and ``stem_convs`` (3x3 convolutions in the stem), and optionally for each
            stage ``embed_dims`` (channels), ``mlp_ratios`` and ``aggregations`` (sides of the
            patches of the first and second half of the heads, or None for a stage that attends to
            positions); and ``head_dim`` (channels per head).
        drop_path_rate (float): On ImageNet the authors train with 0.1, 0.2 and 0.3. Defaults to 0.
        norm_eval (bool): Batch norms are in the stem alone. Defaults to False.
        with_cp (bool): Whether to recompute each block's activations in the backward pass, which
            saves memory for time. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to the authors' initialisation: truncated
            normal linear weights with std 0.02, normal convolutions.

    A published checkpoint loads as it is, and so does the backbone's part of one of a whole model,
    nested or with a prefix.

    Raises:
        ValueError: If an argument or an input is impossible, or a checkpoint of another network.
    """

    ARCHS = {
        'tiny': dict(depths=(1, 2, 4, 1), stem_convs=0),
        'small': dict(depths=(2, 4, 12, 1), stem_convs=1),
        'base': dict(depths=(3, 4, 24, 2), stem_convs=2),
    }
    ARCH_DEFAULTS = dict(
        embed_dims=(64, 128, 256, 512),
        head_dim=32,
        mlp_ratios=(8, 8, 4, 4),
        aggregations=((8, 4), (4, 2), (2, 1), None),
    )
    CHECKPOINT = Published(
        network='Shunted Transformer',
        keys=r'(patch_embed\d|block\d\.\d+|norm\d)\.',
        renamings=[
            (r'^patch_embed1\.conv\.', r'stem.convs.'),
            (r'^patch_embed1\.', r'stem.'),
            *((rf'^patch_embed{s + 1}\.proj\.', f'stages.{s}.downsample.conv.') for s in (1, 2, 3)),
            *((rf'^patch_embed{s + 1}\.', f'stages.{s}.downsample.') for s in (1, 2, 3)),
            *((rf'^block{s + 1}\.', f'stages.{s}.blocks.') for s in range(4)),
            *((rf'^norm{s + 1}\.', f'stages.{s}.norm.') for s in range(4)),
            (r'\.attn\.(sr|norm|kv|local_conv)1\.', r'.attn.coarse.\1.'),
            (r'\.attn\.(sr|norm|kv|local_conv)2\.', r'.attn.fine.\1.'),
            (r'\.sr\.', r'.conv.'),
            (r'\.local_conv\.', r'.depthwise.'),
            (r'\.mlp\.fc1\.', r'.mlp.expand.'),
            (r'\.mlp\.dwconv\.dwconv\.', r'.mlp.depthwise.'),
            (r'\.mlp\.fc2\.', r'.mlp.project.'),
        ],
    )

    def __init__(
        self,
        arch: str | dict = 'small',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = [
                dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
                dict(type='FanOutNormal'),
                dict(type='Constant', layer=['LayerNorm', '_BatchNorm'], val=1.0, bias=0.0),
            ]
        settings = self.resolve_arch(arch)
        super().__init__(
            *(settings, in_channels, out_indices, drop_path_rate, frozen_stages, norm_eval),
            init_cfg=init_cfg,
        )
        dims, head_dim = self.embed_dims, settings['head_dim']
        # One rate for each block, for both of its branches. It arrives from a config as it is, as
        # `clip_grad` of an optim_wrapper does, which the authors use for the base variant alone.
        drop_path_rates = iter(self.drop_path_rates)
        self.stem = Stem(in_channels, dims[0], settings['stem_convs'])
        self.stages = nn.ModuleList()
        for index in range(max(self.out_indices) + 1):
            channels, sizes = dims[index], settings['aggregations'][index]
            blocks = []
            for _ in range(settings['depths'][index]):
                if sizes is None:
                    attn = PlainAttention(channels, head_dim)
                else:
                    attn = ShuntedAttention(channels, head_dim, sizes)
                ratio = settings['mlp_ratios'][index]
                blocks.append(Block(channels, attn, ratio, next(drop_path_rates)))
            downsample = Downsample(dims[index - 1], channels) if index else nn.Identity()
            norm = nn.LayerNorm(channels, eps=1e-6)
            self.stages.append(Stage(downsample, blocks, norm, with_cp))
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the features of images of any size, (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: A contiguous feature (N, out_channels[i], H', W') for each of
            ``out_indices``, after the norm that ends its stage.
        """
        self.check_input(x)
        features = {}
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                features[index] = x.permute(0, 3, 1, 2).contiguous()
        return tuple(features[index] for index in self.out_indices)

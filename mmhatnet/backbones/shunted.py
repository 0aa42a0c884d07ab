"""The Shunted Transformer: the heads of one layer attend to tokens of two scales.

Ren et al., "Shunted Self-Attention via Multi-Scale Token Aggregation", CVPR 2022, arXiv 2111.15193.
Published code: https://github.com/OliverRensu/Shunted-Transformer. Where the paper's figures and
that code differ, this is what the code computes, because the weights belong to the code.

The file reads from the pieces of a block to the network.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import normal_init, update_init_info
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS
from torch import Tensor, nn

from mmhatnet.backbones.base import Backbone, Stage
from mmhatnet.backbones.layers import (
    Conv2d,
    Downsample,
    DropPath,
    LayerNorm2d,
    conv,
    depthwise_conv,
    multi_head_attention,
    pointwise,
)
from mmhatnet.checkpoints.keys import Published


class FloorPatchConv(Conv2d):
    """Convolution of the whole patches of an image, side by side.

    It ignores the rows and columns that are left at the bottom and right. An input smaller than the
    kernel is padded with zeros there to one patch. The published code fails on it, that is on
    images below 31 pixels a side.
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
    """(N, C_in, H, W) to (N, C, H', W'), with H' = max(floor(ceil(H / 2) / 2), 1).

    It differs from the paper's Figure 4: the number of 3x3 convolutions grows with the variant, and
    the last convolution rounds down, so that a side is not always ceil(H / 4).
    """

    def __init__(self, in_channels: int, channels: int, num_convs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(in_channels, channels, 7, stride=2, bias=False)]
        for _ in range(num_convs):
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [conv(channels, channels, 3, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), FloorPatchConv(channels, channels, 2)]
        self.convs = nn.Sequential(*layers)
        self.norm = LayerNorm2d(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convs(x))


class Aggregation(nn.Module):
    """Keys and values for half of the heads, from patches of positions."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.conv = FloorPatchConv(channels, channels, size)
        self.norm = LayerNorm2d(channels, eps=1e-5)
        self.kv = nn.Linear(channels, channels)
        self.depthwise = depthwise_conv(channels // 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) to keys and values, (N, patches, C / 2) each."""
        tokens = F.gelu(self.norm(self.conv(x)).permute(0, 2, 3, 1))
        k, v = self.kv(tokens).chunk(2, dim=-1)
        v = v + self.depthwise(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return k.flatten(1, 2), v.flatten(1, 2)


class ShuntedAttention(nn.Module):
    """Attention in which half of the heads see large patches, the other half small ones."""

    def __init__(self, channels: int, head_dim: int, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q = nn.Linear(channels, channels)
        self.coarse, self.fine = (Aggregation(channels, size) for size in sizes)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        normed = x.permute(0, 2, 3, 1)
        first, second = self.q(normed).flatten(1, 2).chunk(2, dim=-1)
        coarse_k, coarse_v = self.coarse(x)
        fine_k, fine_v = self.fine(x)
        first = multi_head_attention(first, coarse_k, coarse_v, self.head_dim)
        second = multi_head_attention(second, fine_k, fine_v, self.head_dim)
        out = torch.cat([first, second], dim=-1).view(normed.shape)
        return self.proj(out).permute(0, 3, 1, 2)


class PlainAttention(nn.Module):
    """Attention among all positions, as in the last stage.

    The depthwise convolution of the values is added to the output of attention, and not to the
    values as in the other stages. The published weights were trained this way. The authors say that
    it hardly matters.
    """

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.depthwise = depthwise_conv(channels, 3)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = x.permute(0, 2, 3, 1)
        k, v = self.kv(x).chunk(2, dim=-1)
        q, keys, values = (t.flatten(1, 2) for t in (self.q(x), k, v))
        out = multi_head_attention(q, keys, values, self.head_dim).view(x.shape)
        out = out.permute(0, 3, 1, 2) + self.depthwise(v.permute(0, 3, 1, 2))
        return pointwise(self.proj, out)


class MLP(nn.Module):
    """Expansion, depthwise convolution with a residual, projection: (N, C, H, W) to the same."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, channels * ratio)
        self.depthwise = depthwise_conv(channels * ratio, 3)
        self.project = nn.Linear(channels * ratio, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = pointwise(self.expand, x)
        x = (x + self.depthwise(x)).permute(0, 2, 3, 1)
        # A CPU computes GELU fastest in the default memory format.
        return self.project(F.gelu(x)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Attention and MLP, each with a residual connection: (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, channels: int, attn: nn.Module, ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels, eps=1e-6)
        self.attn = attn
        self.norm2 = LayerNorm2d(channels, eps=1e-6)
        self.mlp = MLP(channels, ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class NormedStage(Stage):
    """A stage that ends with a norm."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block], with_cp: bool) -> None:
        super().__init__(downsample, blocks, with_cp)
        self.norm = LayerNorm2d(blocks[0].norm1.normalized_shape[0], eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


@WEIGHT_INITIALIZERS.register_module()
class FanOutNormal:
    """Normal weights of variance 2 / (kernel area * outputs / groups) and no biases.

    MMEngine's Kaiming initialization ignores the groups of a convolution.
    """

    def __call__(self, module: nn.Module) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
                normal_init(layer, std=math.sqrt(2 / fan_out))
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info='FanOutNormal')


@MODELS.register_module()
class ShuntedTransformer(Backbone):
    """The Shunted Transformer as a backbone with one feature per stage.

    Strides are 4, 8, 16 and 32, at any input size. But the height of the first feature is
    floor(ceil(H / 2) / 2), and that of each further one is half of the height before, rounded up.

    ``Backbone`` documents the other arguments and the attributes.

    Args:
        arch (str | dict): 'tiny', 'small', 'base', or a dict of settings: ``depths`` (blocks of
            each stage) and ``stem_convs`` (3x3 convolutions in the stem), and optionally for each
            stage ``embed_dims`` (channels), ``mlp_ratios`` and ``aggregations`` (sides of the
            patches of the first and second half of the heads, or None for a stage that attends to
            positions); and ``head_dim`` (channels per head).
        drop_path_rate (float): On ImageNet the authors train with 0.1, 0.2 and 0.3. Defaults to 0.
        norm_eval (bool): Only the stem has batch norms. Defaults to False.
        with_cp (bool): Whether to recompute each block's activations in the backward pass, which
            saves memory for time. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to the authors' initialization: truncated
            normal linear weights with std 0.02, normal convolutions with the fan-out's variance.

    Published checkpoints load as they are. So do the backbone's weights in a checkpoint of a whole
    model, nested or with a prefix.

    Raises:
        ValueError: If an argument or an input is impossible, or a checkpoint is of another network.
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
        super().__init__(
            arch, in_channels, out_indices, drop_path_rate, frozen_stages, init_cfg, norm_eval
        )
        dims, head_dim = self.embed_dims, self.settings['head_dim']
        aggregations, mlp_ratios = self.settings['aggregations'], self.settings['mlp_ratios']

        def block(stage: int, index: int, drop_path: float) -> Block:
            channels, sizes = dims[stage], aggregations[stage]
            attn: nn.Module
            if sizes is None:
                attn = PlainAttention(channels, head_dim)
            else:
                attn = ShuntedAttention(channels, head_dim, sizes)
            return Block(channels, attn, mlp_ratios[stage], drop_path)

        self._build(
            Stem(in_channels, dims[0], self.settings['stem_convs']),
            lambda before, channels: Downsample(before, channels, LayerNorm2d(channels)),
            block,
            partial(NormedStage, with_cp=with_cp),
        )

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict[str, Any]:
        """Returns the complete settings of a named or custom architecture.

        Raises:
            ValueError: As for every backbone, and if a stage with aggregations does not have an
                even number of heads.
        """
        settings = super().resolve_arch(arch)
        head_dim = settings['head_dim']
        for channels, sizes in zip(settings['embed_dims'], settings['aggregations']):
            if sizes is not None and channels % (2 * head_dim):
                raise ValueError(
                    f'embed_dims={channels} must be a multiple of 2 x {head_dim=}, because the '
                    'heads of a stage with aggregations have two sizes of patches'
                )
        return settings

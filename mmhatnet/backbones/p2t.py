"""The P2T backbone: a vision transformer that attends to a pyramid of pooled features.

Wu et al., "P2T: Pyramid Pooling Transformer for Scene Understanding", IEEE TPAMI 45(11),
12760-12771 (2023), arXiv 2106.12011. Published code and weights: https://github.com/yuhuan-wu/P2T,
for non-commercial use.

The file reads from the pieces of a block to the network.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmhatnet.backbones.base import Backbone, Stage
from mmhatnet.backbones.layers import (
    Downsample,
    DropPath,
    LayerNorm2d,
    adaptive_means,
    depthwise_conv,
    multi_head_attention,
    pointwise,
)
from mmhatnet.checkpoints.keys import Published


class Projection(nn.Linear):
    """A linear layer of the attention. Those of the MLP are initialized as convolutions."""


def pooled_size(size: int, ratio: int) -> int:
    """Rounds half to even. The published code fails where the result is 0; here it is 1."""
    doubled = 2 * size + ratio
    rounded_up = doubled // (2 * ratio)
    is_half = 1 - torch.sym_min(doubled % (2 * ratio), 1)
    return torch.sym_max(rounded_up - is_half * (rounded_up % 2), 1)


class PoolingAttention(nn.Module):
    """P-MHSA (paper, section 3.2): every position attends to those of all pooled features."""

    def __init__(self, channels: int, num_heads: int, ratios: Sequence[int]) -> None:
        super().__init__()
        self.head_dim = channels // num_heads
        self.ratios = ratios
        self.q = Projection(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.kv = Projection(channels, 2 * channels)
        self.proj = Projection(channels, channels)

    def forward(self, x: Tensor, positions: nn.ModuleList) -> Tensor:
        """(N, C, H, W) and a depthwise convolution for each ratio to (N, C, H, W)."""
        pooled = self.norm(self.pyramid(x, positions))
        k, v = self.kv(pooled).chunk(2, dim=-1)
        x = x.permute(0, 2, 3, 1)
        out = multi_head_attention(self.q(x).flatten(1, 2), k, v, self.head_dim)
        return self.proj(out.view(x.shape)).permute(0, 3, 1, 2)

    def pyramid(self, x: Tensor, positions: nn.ModuleList) -> Tensor:
        """(N, C, H, W) to the positions of all pooled features, row by row, (N, L, C).

        Pooling regions overlap where their number does not divide a side.
        """
        height, width = x.shape[2:]
        levels = []
        for ratio, conv in zip(self.ratios, positions):
            size = pooled_size(height, ratio), pooled_size(width, ratio)
            pooled = adaptive_means(x, size)
            levels.append((pooled + conv(pooled)).flatten(2))
        return torch.cat(levels, dim=2).transpose(1, 2)


class MLP(nn.Module):
    """The inverted residual: expansion, depthwise convolution, projection."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = channels * ratio
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = depthwise_conv(hidden, 3)
        self.project = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = F.hardswish(pointwise(self.expand, x))
        x = F.hardswish(self.depthwise(x))
        return pointwise(self.project, x)


class Block(nn.Module):
    """Attention and MLP, each with a residual connection."""

    def __init__(self, attn: nn.Module, mlp: nn.Module, channels: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels, eps=1e-6)
        self.attn = attn
        self.norm2 = LayerNorm2d(channels, eps=1e-6)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, positions: nn.ModuleList) -> Tensor:
        """(N, C, H, W) and the convolutions of the attention to (N, C, H, W)."""
        x = x + self.drop_path(self.attn(self.norm1(x), positions))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PoolingStage(Stage):
    """A stage whose blocks share the convolutions of the pooled features.

    They are the network's only positional encoding.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], with_cp: bool) -> None:
        super().__init__(downsample, blocks, with_cp)
        attn = next(m for m in blocks[0].modules() if isinstance(m, PoolingAttention))
        channels = attn.q.in_features
        # The order of parameters, which optimizer states depend on: positions before blocks.
        del self.blocks
        self.positions = nn.ModuleList(depthwise_conv(channels, 3) for _ in attn.ratios)
        self.blocks = nn.ModuleList(blocks)

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        return block(x, self.positions)


@MODELS.register_module()
class P2T(Backbone):
    """P2T as a backbone with one feature per stage, of strides 4, 8, 16 and 32.

    It takes any input size: a feature of stride s has ceil(H / s) x ceil(W / s) positions. It
    computes the same as the published code, which needs at least 65 pixels a side.

    ``Backbone`` documents the other arguments and the attributes.

    Args:
        arch (str | dict): 'tiny', 'small', 'base', 'large', or a dict of settings: for each stage
            ``embed_dims`` (channels), ``num_heads``, ``depths`` (blocks), and optionally
            ``mlp_ratios`` and ``pool_ratios`` (how many times smaller each pooled feature is).
        with_cp (bool): Whether to recompute each block's activations in the backward pass, which
            saves memory for time. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to the authors' initialization: truncated
            normal weights with std 0.02 in the attention's linear layers, PyTorch's default in
            layers that are convolutions in the published code.

    Published checkpoints load as they are. So do the backbone's weights in a checkpoint of a whole
    model, nested or with a prefix.

    Raises:
        ValueError: If an argument or an input is impossible, or a checkpoint is of another network.
    """

    # Paper, table 1, and the published code, where `small` has 9 blocks in stage 3.
    ARCHS = {
        'tiny': dict(embed_dims=(48, 96, 240, 384), num_heads=(1, 2, 5, 8), depths=(2, 2, 6, 3)),
        'small': dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), depths=(2, 2, 9, 3)),
        'base': dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), depths=(3, 4, 18, 3)),
        'large': dict(embed_dims=(64, 128, 320, 640), num_heads=(1, 2, 5, 8), depths=(3, 8, 27, 3)),
    }
    ARCH_DEFAULTS = dict(
        mlp_ratios=(8, 8, 4, 4),
        pool_ratios=((12, 16, 20, 24), (6, 8, 10, 12), (3, 4, 5, 6), (1, 2, 3, 4)),
    )
    CHECKPOINT = Published(
        network='P2T',
        keys=r'(patch_embed|d_convs|block)[1-4]\.',
        renamings=[
            (r'^patch_embed1\.', r'stem.'),
            *((rf'^patch_embed{t}\.', rf'stages.{t - 1}.downsample.') for t in (2, 3, 4)),
            *((rf'^d_convs{t}\.', rf'stages.{t - 1}.positions.') for t in (1, 2, 3, 4)),
            *((rf'^block{t}\.', rf'stages.{t - 1}.blocks.') for t in (1, 2, 3, 4)),
            (r'^(stem|stages\.\d\.downsample)\.proj\.', r'\1.conv.'),
            (r'\.attn\.(q|kv)\.0\.', r'.attn.\1.'),
            (r'\.mlp\.fc1\.', r'.mlp.expand.'),
            (r'\.mlp\.conv\.', r'.mlp.depthwise.'),
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
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = [
                dict(type='TruncNormal', layer='Projection', std=0.02, bias=0.0),
                dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
            ]
        super().__init__(arch, in_channels, out_indices, drop_path_rate, frozen_stages, init_cfg)
        dims, num_heads = self.embed_dims, self.settings['num_heads']
        ratios, mlp_ratios = self.settings['pool_ratios'], self.settings['mlp_ratios']

        def block(stage: int, index: int, drop_path: float) -> Block:
            attn = PoolingAttention(dims[stage], num_heads[stage], ratios[stage])
            return Block(attn, MLP(dims[stage], mlp_ratios[stage]), dims[stage], drop_path)

        self._build(
            Downsample(in_channels, dims[0], LayerNorm2d(dims[0]), kernel_size=7, stride=4),
            lambda before, channels: Downsample(before, channels, LayerNorm2d(channels)),
            block,
            partial(PoolingStage, with_cp=with_cp),
        )

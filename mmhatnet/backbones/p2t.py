"""The P2T backbone: a vision transformer that attends to a pyramid of pooled maps.

Wu et al., "P2T: Pyramid Pooling Transformer for Scene Understanding", IEEE TPAMI 45(11),
12760-12771 (2023), arXiv 2106.12011. Published code and weights: https://github.com/yuhuan-wu/P2T,
for non-commercial use.

The file reads from the pieces of a block to the network. Inside the network every feature is
(N, H, W, C), which a convolution sees as channels-last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmhatnet.backbones.base import Backbone
from mmhatnet.backbones.layers import DropPath, convolve, depthwise_conv, multi_head_attention
from mmhatnet.checkpoints.keys import Published


class PatchEmbed(nn.Module):
    """Convolution with a stride and a norm: (N, H, W, C_in) to (N, H / stride, W / stride, C_out).

    Sizes are rounded up.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(self.conv, x))


class Projection(nn.Linear):
    """A linear layer of the attention. Those of the MLP start as convolutions, as published."""


def pooled_size(size: int, ratio: int) -> int:
    """Halves go to the even number. The published code fails where this is 0; here it is 1."""
    return torch.sym_max(round(size / ratio), 1)


class PoolingAttention(nn.Module):
    """P-MHSA (paper, section 3.2): every position attends to the cells of all pooled maps."""

    def __init__(self, channels: int, num_heads: int, ratios: Sequence[int]) -> None:
        super().__init__()
        self.head_dim = channels // num_heads
        self.ratios = ratios
        self.q = Projection(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.kv = Projection(channels, 2 * channels)
        self.proj = Projection(channels, channels)

    def forward(self, x: Tensor, positions: nn.ModuleList) -> Tensor:
        """(N, H, W, C), and a depthwise convolution for each ratio, to (N, H, W, C)."""
        cells = self.norm(self.pyramid(x, positions))
        k, v = self.kv(cells).chunk(2, dim=-1)
        out = multi_head_attention(self.q(x).flatten(1, 2), k, v, self.head_dim)
        return self.proj(out.view(x.shape))

    def pyramid(self, x: Tensor, positions: nn.ModuleList) -> Tensor:
        """(N, H, W, C) to the cells of all maps, one row after the other, (N, L, C).

        Cells overlap where their number does not divide a side.
        """
        height, width = x.shape[1:3]
        x = x.permute(0, 3, 1, 2)
        cells = []
        for ratio, conv in zip(self.ratios, positions):
            size = pooled_size(height, ratio), pooled_size(width, ratio)
            pooled = F.adaptive_avg_pool2d(x, size)
            cells.append((pooled + conv(pooled)).flatten(2))
        return torch.cat(cells, dim=2).transpose(1, 2)


class InvertedResidual(nn.Module):
    """The MLP of a block: expansion, depthwise convolution, projection."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = channels * ratio
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = depthwise_conv(hidden, 3)
        self.project = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        x = F.hardswish(self.expand(x))
        x = F.hardswish(convolve(self.depthwise, x))
        return self.project(x)


class Block(nn.Module):
    """Attention and MLP, each with a residual connection."""

    def __init__(self, attn: nn.Module, mlp: nn.Module, channels: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, positions: nn.ModuleList) -> Tensor:
        """(N, H, W, C), and the convolutions of the attention, to (N, H, W, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), positions))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Blocks of one resolution, after a downsampling in all stages but the first.

    The convolutions on the pooled maps, the only positional encoding, are the same in all blocks.
    """

    def __init__(
        self, downsample: nn.Module, blocks: Sequence[Block], channels: int, with_cp: bool
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.positions = nn.ModuleList(depthwise_conv(channels, 3) for _ in blocks[0].attn.ratios)
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, self.positions, use_reentrant=False)
            else:
                x = block(x, self.positions)
        return x


@MODELS.register_module()
class P2T(Backbone):
    """P2T as a backbone with one feature per stage, of strides 4, 8, 16 and 32.

    For any input size: a feature of stride s has ceil(H / s) x ceil(W / s) positions. It is the
    function of the published code, which needs 65 pixels a side.

    Arguments that are not listed here, and the attributes, are those of ``Backbone``.

    Args:
        arch (str | dict): 'tiny', 'small', 'base', 'large', or a dict of settings: for each stage
            ``embed_dims`` (channels), ``num_heads``, ``depths`` (blocks), and optionally
            ``mlp_ratios`` and ``pool_ratios`` (several: how many times smaller each pooled map is).
        with_cp (bool): Whether to recompute each block's activations in the backward pass, which
            saves memory for time. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to the authors' initialisation: truncated
            normal weights with std 0.02 in the attention's linear layers, and PyTorch's own in what
            is a convolution there.

    A published checkpoint loads as it is, and so does the backbone's part of one of a whole model,
    nested or with a prefix.

    Raises:
        ValueError: If an argument or an input is impossible, or a checkpoint of another network.
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
        settings = self.resolve_arch(arch)
        super().__init__(
            *(settings, in_channels, out_indices, drop_path_rate, frozen_stages),
            norm_eval=False,
            init_cfg=init_cfg,
        )
        self.stem = PatchEmbed(in_channels, self.embed_dims[0], kernel_size=7, stride=4)
        self.stages = nn.ModuleList()
        rates = iter(self.drop_path_rates)
        for index in range(max(self.out_indices) + 1):
            channels = self.embed_dims[index]
            blocks = [
                Block(
                    PoolingAttention(
                        channels, settings['num_heads'][index], settings['pool_ratios'][index]
                    ),
                    InvertedResidual(channels, settings['mlp_ratios'][index]),
                    channels,
                    next(rates),
                )
                for _ in range(settings['depths'][index])
            ]
            downsample = (
                PatchEmbed(self.embed_dims[index - 1], channels, kernel_size=3, stride=2)
                if index
                else nn.Identity()
            )
            self.stages.append(Stage(downsample, blocks, channels, with_cp))
        self._freeze_stages()

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict:
        """Returns the complete settings of a named or custom architecture.

        Raises:
            ValueError: As for every backbone, and if the heads do not divide a stage's channels.
        """
        settings = super().resolve_arch(arch)
        for channels, heads in zip(settings['embed_dims'], settings['num_heads']):
            if channels % heads:
                raise ValueError(f'{channels} channels cannot be divided into {heads} heads')
        return settings

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the features of images of any size, (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: A contiguous feature (N, out_channels[i], ceil(H / s), ceil(W / s)) for
            each of ``out_indices``, with s = out_strides[i].
        """
        self.check_input(x)
        x = self.stem(x.permute(0, 2, 3, 1))
        features = {}
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                features[index] = x.permute(0, 3, 1, 2).contiguous()
        return tuple(features[index] for index in self.out_indices)

"""The STViT backbone: attention between super tokens, weighted means of nearby positions.

Huang et al., "Vision Transformer with Super Token Sampling", CVPR 2023, arXiv 2211.11167.
Published code: https://github.com/hhb072/STViT.

The file reads from the pieces of a block to the network.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmhatnet.backbones.base import Backbone, Stage
from mmhatnet.backbones.layers import (
    Downsample,
    DropPath,
    LayerNorm2d,
    conv,
    depthwise_conv,
    layer_scale,
    pointwise,
)
from mmhatnet.checkpoints.keys import Published

NEIGHBORS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]


def shift(x: Tensor, down: int, right: int) -> Tensor:
    """Moves a grid (N, h, w, C) by at most one cell and fills the gap with zeros."""
    return F.pad(x, (0, 0, right, -right, down, -down))


def gather_neighbors(tokens: Tensor) -> Tensor:
    """(N, h, w, C) to the 3 x 3 cells around each, (N, h, w, 9, C), zero outside the grid."""
    return torch.stack([shift(tokens, -down, -right) for down, right in NEIGHBORS], dim=3)


def scatter_to_neighbors(values: Tensor) -> Tensor:
    """Adds the values of each cell to the 3 x 3 cells around it: (N, h, w, 9, C) to (N, h, w, C).

    The inverse direction of ``gather_neighbors``.
    """
    pairs = zip(values.unbind(3), NEIGHBORS)
    total: Tensor = sum(shift(value, down, right) for value, (down, right) in pairs)  # type: ignore
    return total


def to_cells(x: Tensor, size: int) -> Tensor:
    """(N, H, W, C) to cells of size x size positions, row by row, (N, h, w, size * size, C).

    Cells are counted from the top-left corner and filled with zeros at the bottom and right.
    """
    _, height, width, _ = x.shape
    h, w = (height + size - 1) // size, (width + size - 1) // size
    x = F.pad(x, (0, 0, 0, w * size - width, 0, h * size - height))
    return x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3).flatten(3, 4)


def from_cells(cells: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of ``to_cells`` for a feature of height x width positions."""
    x = cells.unflatten(3, (size, size)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if isinstance(height, torch.SymInt):
        # Whether a slice is contiguous depends on the size, so an export would specialize on it.
        return F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1]))
    return x[:, :height, :width]


class Association(nn.Module):
    """The weights of each position for the nine super tokens around it, the paper's Q.

    It has no parameters. It is a module so that users can read the weights with a forward hook.
    """

    def forward(self, cells: Tensor) -> Tensor:
        """(N, h, w, P, C), with the P positions of each cell, to weights (N, h, w, P, 9).

        A neighbor outside the grid counts as a super token of zeros.
        """
        tokens = gather_neighbors(cells.mean(dim=3) / cells.shape[-1] ** 0.5)
        return (cells @ tokens.transpose(3, 4)).softmax(dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention over all positions."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        # As published, channels are ordered by head first: q, k and v of one, then of the next.
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (self.num_heads, 3, -1))
        q, k, v = qkv.transpose(1, 2).unbind(3)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class SuperTokenAttention(Attention):
    """Attention between super tokens, one for each cell."""

    def __init__(self, channels: int, num_heads: int, cell: int) -> None:
        super().__init__(channels, num_heads)
        self.cell = cell
        self.association = Association()

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        # In 16 bits sums over cells are too coarse, and 1e-12 is 0.
        with torch.autocast(x.device.type, enabled=False):
            cells = to_cells(x.to(torch.promote_types(x.dtype, torch.float32)), self.cell)
            # As in the published code, no gradient flows through the association.
            weights = self.association(cells.detach())
            total = scatter_to_neighbors(weights.sum(dim=3).unsqueeze(-1))
            tokens = scatter_to_neighbors(weights.transpose(3, 4) @ cells) / (total + 1e-12)
        tokens = super().forward(tokens.to(x.dtype))
        with torch.autocast(x.device.type, enabled=False):
            cells = weights @ gather_neighbors(tokens.to(weights.dtype))
            return from_cells(cells, self.cell, *x.shape[1:3]).to(x.dtype)


class MLP(nn.Module):
    """Expansion, depthwise convolution with a residual, projection: (N, C, H, W) to the same."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, channels * ratio)
        self.depthwise = depthwise_conv(channels * ratio, 3)
        self.project = nn.Linear(channels * ratio, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(pointwise(self.expand, x))
        return pointwise(self.project, x + self.depthwise(x))


class Block(nn.Module):
    """Position, attention and MLP, each with a residual: (N, C, H, W) to (N, C, H, W)."""

    def __init__(
        self,
        channels: int,
        attn: nn.Module,
        ratio: int,
        scale: float | None,
        drop_path: float,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.position = depthwise_conv(channels, 3)
        self.norm1 = LayerNorm2d(channels, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = MLP(channels, ratio)
        self.scale1 = layer_scale(channels, scale)
        self.scale2 = layer_scale(channels, scale)
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        x = x + self.run(self.attention_branch, x)
        # Recomputing the batch norm would update its running statistics twice.
        return x + self.run(self.mlp_branch, self.norm2(x))

    def run(self, branch: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return checkpoint(branch, x, use_reentrant=False)
        return branch(x)

    def attention_branch(self, x: Tensor) -> Tensor:
        return self.drop_path(self.scale1(pointwise(self.attn, self.norm1(x))))

    def mlp_branch(self, x: Tensor) -> Tensor:
        return self.drop_path(self.scale2(self.mlp(x)))


class Stem(nn.Sequential):
    """Four convolutions: (N, C_in, H, W) to (N, C, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, in_channels: int, channels: int) -> None:
        layers: list[nn.Module] = []
        half = channels // 2
        for out_channels, stride in ((half, 2), (half, 1), (channels, 2), (channels, 1)):
            layers += [conv(in_channels, out_channels, 3, stride=stride)]
            layers += [nn.GELU(), nn.BatchNorm2d(out_channels)]
            in_channels = out_channels
        super().__init__(*layers)


@MODELS.register_module()
class STViT(Backbone):
    """STViT as a backbone with one feature per stage, of strides 4, 8, 16 and 32.

    It takes any input size: a feature of stride s has ceil(H / s) x ceil(W / s) positions. With a
    forward hook on ``stages[0].blocks[0].attn.association``, users can read which positions a super
    token stands for.

    ``Backbone`` documents the other arguments and the attributes.

    Args:
        arch (str | dict): 'small', 'base', 'large', or a dict of settings, each with a value for
            each stage: ``embed_dims`` (channels), ``num_heads``, ``depths`` (blocks), and
            optionally ``cells`` (positions along a side of a super token's cell; 1: attention
            between positions), ``mlp_ratios`` and ``layer_scales`` (initial value, or None).
        drop_path_rate (float): On ImageNet the authors train with 0.1, 0.4 and 0.4, 'large' with
            0.6 at the end. Defaults to 0.
        norm_eval (bool): Every block has a batch norm. With few images per GPU, fix its
            statistics with True, or synchronize them. Defaults to False.
        with_cp (bool): Whether to recompute the activations of each attention and MLP in the
            backward pass, which saves memory for time. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to None: PyTorch's default initialization,
            as in the published code. It is the same for a linear layer and a 1x1 convolution.

    Published checkpoints load as they are. So do the backbone's weights in a checkpoint of a whole
    model, nested or with a prefix.

    Raises:
        ValueError: If an argument or an input is impossible, or a checkpoint is of another network.
    """

    ARCHS = {
        'small': dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), depths=(3, 5, 9, 3)),
        'base': dict(
            embed_dims=(96, 192, 384, 512),
            num_heads=(2, 3, 6, 8),
            depths=(4, 6, 14, 6),
            layer_scales=(None, None, 1e-6, 1e-6),
        ),
        'large': dict(
            embed_dims=(96, 192, 448, 640),
            num_heads=(2, 3, 7, 10),
            depths=(4, 7, 19, 8),
            layer_scales=(None, None, 1e-6, 1e-6),
        ),
    }
    ARCH_DEFAULTS = dict(
        cells=(8, 4, 1, 1), mlp_ratios=(4, 4, 4, 4), layer_scales=(None, None, None, None)
    )
    CHECKPOINT = Published(
        network='STViT',
        keys=r'(patch_embed\.proj\.\d+|layers\.\d+\.(blocks\.\d+|downsample))\.',
        renamings=[
            (r'^patch_embed\.proj\.', r'stem.'),
            *((rf'^layers\.{s}\.downsample\.', f'stages.{s + 1}.downsample.') for s in range(3)),
            (r'\.downsample\.proj\.0\.', r'.downsample.conv.'),
            (r'\.downsample\.proj\.1\.', r'.downsample.norm.'),
            (r'^layers\.', r'stages.'),
            (r'\.pos_embed\.conv\.', r'.position.'),
            (r'\.norm1\.norm\.', r'.norm1.'),
            (r'\.attn\.stoken_refine\.', r'.attn.'),
            (r'\.mlp2\.fc1\.', r'.mlp.expand.'),
            (r'\.mlp2\.conv\.conv\.', r'.mlp.depthwise.'),
            (r'\.mlp2\.fc2\.', r'.mlp.project.'),
            (r'\.gamma_([12])$', r'.scale\1.gamma'),
        ],
        unused=r'\.attn\.(un)?fold\.weights$',
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
        super().__init__(
            arch, in_channels, out_indices, drop_path_rate, frozen_stages, init_cfg, norm_eval
        )
        dims, num_heads = self.embed_dims, self.settings['num_heads']
        cells, mlp_ratios = self.settings['cells'], self.settings['mlp_ratios']
        scales = self.settings['layer_scales']

        def block(stage: int, index: int, drop_path: float) -> Block:
            channels = dims[stage]
            if cells[stage] > 1:
                attn: Attention = SuperTokenAttention(channels, num_heads[stage], cells[stage])
            else:
                attn = Attention(channels, num_heads[stage])
            return Block(channels, attn, mlp_ratios[stage], scales[stage], drop_path, with_cp)

        self._build(
            Stem(in_channels, dims[0]),
            lambda before, channels: Downsample(before, channels, nn.BatchNorm2d(channels)),
            block,
            partial(Stage, with_cp=False),  # blocks recompute their branches
        )

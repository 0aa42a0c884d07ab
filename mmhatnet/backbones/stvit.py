"""STViT: attention between super tokens, each a weighted mean of the positions around it.

Huang et al., "Vision Transformer with Super Token Sampling", CVPR 2023, arXiv 2211.11167.
Published code: https://github.com/hhb072/STViT.

The file reads from the pieces of a block to the network. Features are (N, C, H, W) in the
channels-last memory format, in which attention sees the same memory as (N, H, W, C).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmhatnet.backbones.base import Backbone
from mmhatnet.backbones.layers import DropPath, LayerScale, depthwise_conv, pointwise
from mmhatnet.checkpoints.keys import Published

NEIGHBOURS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]


def shift(x: Tensor, down: int, right: int) -> Tensor:
    """Moves the content of a grid (N, h, w, C) by at most one cell, with zeros behind it."""
    return F.pad(x, (0, 0, right, -right, down, -down))


def gather_neighbours(tokens: Tensor) -> Tensor:
    """(N, h, w, C) to the 3 x 3 cells around each, zero outside the grid: (N, h, w, 9, C)."""
    return torch.stack([shift(tokens, -down, -right) for down, right in NEIGHBOURS], dim=3)


def scatter_to_neighbours(parts: Tensor) -> Tensor:
    """Sums what each cell gives the 3 x 3 around it: (N, h, w, 9, C) to (N, h, w, C)."""
    given = zip(parts.unbind(3), NEIGHBOURS)
    return sum(shift(part, down, right) for part, (down, right) in given)


def to_cells(x: Tensor, size: int) -> Tensor:
    """(N, H, W, C) to cells of size x size positions, row by row, (N, h, w, size * size, C).

    Cells are counted from the top-left corner and filled with zeros at the bottom and right.
    """
    _, height, width, _ = x.shape
    h, w = (height + size - 1) // size, (width + size - 1) // size
    x = F.pad(x, (0, 0, 0, w * size - width, 0, h * size - height))
    return x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3).flatten(3, 4)


def from_cells(cells: Tensor, size: int, height: int, width: int) -> Tensor:
    """Undoes ``to_cells``, for a map of height x width positions."""
    x = cells.unflatten(3, (size, size)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if isinstance(height, torch.SymInt):
        # Whether a slice is contiguous depends on the size, to which it would bind an export.
        return F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1]))
    return x[:, :height, :width]


class Association(nn.Module):
    """How much each position belongs to the nine super tokens around it, the paper's Q.

    It has no weights. It is a module so that a forward hook sees what users ask for.
    """

    def forward(self, cells: Tensor) -> Tensor:
        """(N, h, w, P, C), P positions of each cell, to weights (N, h, w, P, 9), row by row.

        A neighbour outside the grid is a super token of zeros, whose weight is one of the nine.
        """
        tokens = gather_neighbours(cells.mean(dim=3) / cells.shape[-1] ** 0.5)
        return (cells @ tokens.transpose(3, 4)).softmax(dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention over all positions: (N, H, W, C) to (N, H, W, C)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f'embed_dims={channels} cannot be divided into {heads} heads')
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        # The channels of the published layer are those of q, k and v of a head, and then the next.
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (self.heads, 3, -1))
        q, k, v = qkv.transpose(1, 2).unbind(3)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class SuperTokenAttention(Attention):
    """Attention between super tokens, one to a cell: (N, H, W, C) to (N, H, W, C)."""

    def __init__(self, channels: int, heads: int, cell: int) -> None:
        super().__init__(channels, heads)
        self.cell = cell
        self.association = Association()

    def forward(self, x: Tensor) -> Tensor:
        # In 16 bit sums over cells are too coarse, and the 1e-12 is 0.
        with torch.autocast(x.device.type, enabled=False):
            cells = to_cells(x.to(torch.promote_types(x.dtype, torch.float32)), self.cell)
            # Constants in the backward pass: gradients reach x through the sum of positions alone.
            # Learning the association as well would be another network than the published one.
            weights = self.association(cells.detach())
            total = scatter_to_neighbours(weights.sum(dim=3).unsqueeze(-1))
            tokens = scatter_to_neighbours(weights.transpose(3, 4) @ cells) / (total + 1e-12)
        tokens = super().forward(tokens.to(x.dtype))
        with torch.autocast(x.device.type, enabled=False):
            cells = weights @ gather_neighbours(tokens.to(weights.dtype))
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
        layer_scale: float | None,
        drop_path: float,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.position = depthwise_conv(channels, 3)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = MLP(channels, ratio)
        scaled = layer_scale is not None
        self.scale1 = LayerScale(channels, layer_scale) if scaled else nn.Identity()
        self.scale2 = LayerScale(channels, layer_scale) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        x = x + self.run(self.attention_branch, x)
        # Batch norm is not recomputed: its running statistics would count each batch twice.
        return x + self.run(self.mlp_branch, self.norm2(x))

    def run(self, branch: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return checkpoint(branch, x, use_reentrant=False)
        return branch(x)

    def attention_branch(self, x: Tensor) -> Tensor:
        out = self.attn(self.norm1(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.drop_path(self.scale1(out))

    def mlp_branch(self, x: Tensor) -> Tensor:
        return self.drop_path(self.scale2(self.mlp(x)))


class Stem(nn.Sequential):
    """Four convolutions: (N, C_in, H, W) to (N, C, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, in_channels: int, channels: int) -> None:
        layers = []
        half = channels // 2
        for out_channels, stride in ((half, 2), (half, 1), (channels, 2), (channels, 1)):
            layers += [nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)]
            layers += [nn.GELU(), nn.BatchNorm2d(out_channels)]
            in_channels = out_channels
        super().__init__(*layers)


class Downsample(nn.Module):
    """Between two stages: (N, C_in, H, W) to (N, C_out, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Stage(nn.Module):
    """Blocks of one resolution, after a downsampling in all stages but the first."""

    def __init__(self, downsample: nn.Module, blocks: list[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


@MODELS.register_module()
class STViT(Backbone):
    """STViT as a backbone with one feature per stage, of strides 4, 8, 16 and 32.

    At any input size a feature of stride s has ceil(H / s) x ceil(W / s) positions. A forward hook
    on ``stages[0].blocks[0].attn.association`` sees what super tokens stand for.

    Arguments that are not listed here, and the attributes, are those of ``Backbone``.

    Args:
        arch (str | dict): 'small', 'base', 'large', or a dict of settings, each with a value for
            each stage: ``embed_dims`` (channels), ``heads``, ``depths`` (blocks), and optionally
            ``cells`` (positions along a side of a super token's cell; 1: attention between
            positions), ``mlp_ratios`` and ``layer_scales`` (initial value, or None for none).
        drop_path_rate (float): On ImageNet the authors train with 0.1, 0.4 and 0.4, 'large' with
            0.6 at the end. Defaults to 0.
        norm_eval (bool): Every block has a batch norm: with few images per GPU its statistics
            should stay fixed, or be synchronised. Defaults to False.
        with_cp (bool): Whether to recompute what is inside each block's attention and MLP in the
            backward pass, which saves memory for time. Defaults to False.
        init_cfg (dict | list[dict], optional): Defaults to None: all layers start as PyTorch starts
            them, as the authors' do, whose 1x1 convolutions start as linear layers here.

    A published checkpoint loads as it is, and so does the backbone's part of one of a whole model,
    nested or with a prefix.

    Raises:
        ValueError: If an argument or an input is impossible, or a checkpoint of another network.
    """

    ARCHS = {
        'small': dict(embed_dims=(64, 128, 320, 512), heads=(1, 2, 5, 8), depths=(3, 5, 9, 3)),
        'base': dict(
            embed_dims=(96, 192, 384, 512),
            heads=(2, 3, 6, 8),
            depths=(4, 6, 14, 6),
            layer_scales=(None, None, 1e-6, 1e-6),
        ),
        'large': dict(
            embed_dims=(96, 192, 448, 640),
            heads=(2, 3, 7, 10),
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
        settings = self.resolve_arch(arch)
        super().__init__(
            *(settings, in_channels, out_indices, drop_path_rate, frozen_stages, norm_eval),
            init_cfg=init_cfg,
        )
        drop_path_rates = iter(self.drop_path_rates)
        self.stem = Stem(in_channels, self.embed_dims[0])
        self.stages = nn.ModuleList()
        for index in range(max(self.out_indices) + 1):
            channels, heads = self.embed_dims[index], settings['heads'][index]
            ratio, scale = settings['mlp_ratios'][index], settings['layer_scales'][index]
            cell = settings['cells'][index]
            blocks = []
            for _ in range(settings['depths'][index]):
                if cell > 1:
                    attn = SuperTokenAttention(channels, heads, cell)
                else:
                    attn = Attention(channels, heads)
                blocks.append(Block(channels, attn, ratio, scale, next(drop_path_rates), with_cp))
            before = self.embed_dims[index - 1]
            downsample = Downsample(before, channels) if index else nn.Identity()
            self.stages.append(Stage(downsample, blocks))
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the features of images of any size, (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: A contiguous feature (N, out_channels[i], ceil(H / s), ceil(W / s)) for
            each of ``out_indices``, with s = out_strides[i].
        """
        self.check_input(x)
        features = {}
        # Channels-last, in words that function transforms understand.
        x = self.stem(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                features[index] = x.contiguous()
        return tuple(features[index] for index in self.out_indices)

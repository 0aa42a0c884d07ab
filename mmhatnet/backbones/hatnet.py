"""The HAT-Net backbone: a vision transformer with hierarchical attention.

Liu et al., "Vision Transformers with Hierarchical Attention", Machine Intelligence Research 21,
670-683 (2024), arXiv 2106.03180. Published code and weights: https://github.com/yun-liu/HAT-Net.

The file reads from the pieces of a block to the network. Other libraries hook, wrap, replace and
trace the modules. Two rules keep their results right: a module's weights are used only by calling
it, and its output is not overwritten while anything can observe it (``memory.py``).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmhatnet.backbones import memory
from mmhatnet.backbones.base import Backbone, Stage, check_rate
from mmhatnet.backbones.image_norm import ImageNorm
from mmhatnet.backbones.layers import (
    Downsample,
    DropPath,
    convolve,
    depthwise_conv,
    multi_head_attention,
    pointwise,
)
from mmhatnet.checkpoints.keys import Published


class Stem(nn.Module):
    """Two convolutions with stride 2: (N, C_in, H, W) to (N, C, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 3, 2, 1)
        self.norm = ImageNorm(mid_channels)
        self.conv2 = nn.Conv2d(mid_channels, out_channels, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.conv2, F.silu(self.norm(convolve(self.conv1, x))))


class PlainAttention(nn.Module):
    """Multi-head self-attention over all positions, as in the last stage."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = ImageNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        normed = self.norm(x).permute(0, 2, 3, 1)
        q, k, v = self.qkv(normed).flatten(1, 2).chunk(3, dim=-1)
        out = multi_head_attention(q, k, v, self.head_dim)
        return self.proj(out.view(normed.shape)).permute(0, 3, 1, 2)


def window_runs(size: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Cuts ``size`` positions into windows: yields (start, number of windows, their length).

    The first run is of whole windows; the second is the smaller one that is left at the end.
    """
    whole = size // window
    if whole:
        yield 0, whole, window
    if size % window:
        yield whole * window, 1, size % window


def concatenate(tensors: list[Tensor], dim: int) -> Tensor:
    """``torch.cat`` without a copy of a single tensor."""
    return torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]


# Before 2.8 PyTorch's compiler cannot tell what it knows about a size.
COMPILER_KNOWS_SIZES = torch.__version__ >= '2.8'


def remainders_are_known(sizes: Sequence[int], divisor: int) -> bool:
    """Whether code may depend on the remainders of these sizes.

    It may not in a graph for all sizes, such as tracers record and compilers make of dynamic sizes.
    Such a graph would be wrong for other remainders, or its symbolic sizes would grow from block to
    block until the compiler does not finish.
    """
    if not torch.compiler.is_compiling():
        return not torch.jit.is_tracing()
    if torch.compiler.is_dynamo_compiling() and not COMPILER_KNOWS_SIZES:
        return False
    # Imports SymPy.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    for size in sizes:
        is_zero, is_not = size % divisor == 0, size % divisor != 0
        if not statically_known_true(is_zero) and not statically_known_true(is_not):
            return False
    return True


def missing_to_multiple(size: int, divisor: int) -> int:
    """The difference between ``size`` and the next multiple of the divisor."""
    # PyTorch simplifies symbolic sizes in this form, but not -size % divisor.
    return (size + divisor - 1) // divisor * divisor - size


class HierarchicalAttention(nn.Module):
    """H-MHSA (paper, section 3.2): attention in windows, then to pooled positions.

    Windows start at the top-left corner. If the window does not divide the size, those at the right
    and bottom edge are smaller, so that no position attends to padding. Pooling rounds up. A pooled
    position at the edge is the mean of the positions that it covers.
    """

    def __init__(self, channels: int, head_dim: int, window: int, pooling: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.window = window
        self.pooling = pooling
        self.norm = ImageNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.global_norm = ImageNorm(channels)
        self.global_q = nn.Linear(channels, channels)
        self.pooled_norm = ImageNorm(channels)
        self.pooled_kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        y = self.global_norm(self.add_local_attention(x))
        return pointwise(self.proj, y + self.global_attention(y))

    def add_local_attention(self, x: Tensor) -> Tensor:
        x, normed = x.permute(0, 2, 3, 1), self.norm(x).permute(0, 2, 3, 1)
        known = remainders_are_known(x.shape[1:3], self.window)
        add = self.add_in_cut_windows if known else self.add_in_padded_windows
        return add(x, normed).permute(0, 3, 1, 2)

    def add_in_cut_windows(self, x: Tensor, normed: Tensor) -> Tensor:
        # Windows of one size form a batch. There are at most four: the whole windows, those at the
        # right edge, at the bottom edge and in the corner.
        bands = []
        for top, rows, height in window_runs(x.shape[1], self.window):
            vertical = slice(top, top + rows * height)
            regions = []
            for left, columns, width in window_runs(x.shape[2], self.window):
                region = (slice(None), vertical, slice(left, left + columns * width))
                regions.append(self.add_in_windows(x[region], normed[region], height, width))
            bands.append(concatenate(regions, dim=2))
        return concatenate(bands, dim=1)

    def add_in_padded_windows(self, x: Tensor, normed: Tensor) -> Tensor:
        # The same result by the same operations for any size. It could replace the method above,
        # but a CPU takes up to 9 % longer, and a GPU has no flash attention with a mask.
        bottom, right = (missing_to_multiple(size, self.window) for size in x.shape[1:3])
        inside = torch.ones_like(x[..., :1], dtype=torch.bool)
        padded = (F.pad(t, (0, 0, 0, right, 0, bottom)) for t in (x, normed, inside))
        x, normed, inside = padded
        out = self.add_in_windows(x, normed, self.window, self.window, inside)
        return F.pad(out, (0, 0, 0, -right, 0, -bottom))

    def add_in_windows(
        self, x: Tensor, normed: Tensor, height: int, width: int, inside: Tensor | None = None
    ) -> Tensor:
        """(N, H, W, C) to (N, H, W, C), where the window divides H and W.

        ``inside`` (N, H, W, 1) is true for positions to attend to. None means all.
        """

        def cut(t: Tensor) -> Tensor:
            return t.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3)

        def tokens(windows: Tensor) -> Tensor:
            return windows.flatten(3, 4).flatten(0, 2)

        windows = cut(normed)
        q, k, v = self.qkv(tokens(windows)).chunk(3, dim=-1)
        mask = None if inside is None else tokens(cut(inside)).transpose(1, 2).unsqueeze(1)
        out = multi_head_attention(q, k, v, self.head_dim, mask).view(windows.shape)
        # The sum also restores the layout of an image, which saves a copy.
        return (cut(x).transpose(2, 3) + out.transpose(2, 3)).flatten(3, 4).flatten(1, 2)

    def global_attention(self, y: Tensor) -> Tensor:
        pooled = self.pooled_norm(self.pool(y))
        k, v = self.pooled_kv(pooled.permute(0, 2, 3, 1)).flatten(1, 2).chunk(2, dim=-1)
        y = y.permute(0, 2, 3, 1)
        out = multi_head_attention(self.global_q(y).flatten(1, 2), k, v, self.head_dim)
        return out.view(y.shape).permute(0, 3, 1, 2)

    def pool(self, y: Tensor) -> Tensor:
        """(N, C, H, W) to means, (N, C, ceil(H / pooling), ceil(W / pooling))."""
        if remainders_are_known(y.shape[2:], self.pooling):
            return F.avg_pool2d(y, self.pooling, ceil_mode=True)
        bottom, right = (missing_to_multiple(size, self.pooling) for size in y.shape[2:])
        means, inside = (
            F.avg_pool2d(F.pad(t, (0, right, 0, bottom)), self.pooling)
            for t in (y, torch.ones_like(y[:, :1]))
        )
        return means / inside


class MLP(nn.Module):
    """The inverted residual: expansion, depthwise convolution, projection.

    Its hidden layer is 4 to 8 times as large as any other feature of the network.
    """

    def __init__(
        self, channels: int, ratio: int, kernel_size: int, recompute: bool | None = None
    ) -> None:
        super().__init__()
        hidden = channels * ratio
        self.recompute = recompute
        self.norm = ImageNorm(channels)
        self.expand = nn.Linear(channels, hidden, bias=False)
        self.depthwise = depthwise_conv(hidden, kernel_size, bias=False)
        self.project = nn.Linear(hidden, channels, bias=False)
        self.out_norm = ImageNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        x = self.norm(x)
        # Test the device first: on others nothing depends on the rest. Test the size last:
        # otherwise Dynamo guards on it and recompiles.
        on_cpu = x.device.type == 'cpu' and memory.unobserved(self, x, KNOWN_LAYERS)
        margin = memory.row_margin(self.depthwise) if on_cpu else None
        chunked = margin is not None and self.hidden_bytes(x) > memory.CHUNK_BYTES
        recompute = chunked if self.recompute is None else self.recompute
        run: Callable[[Tensor], Tensor] = self.run_hidden
        if not torch.is_grad_enabled():
            run = partial(self.run_hidden, in_place=on_cpu)
        elif recompute:
            # Layers of other libraries may draw random numbers. Those of this file draw none.
            run = partial(
                checkpoint, self.run_hidden, use_reentrant=False, preserve_rng_state=not on_cpu
            )
        else:
            chunked = False  # autograd would keep every chunk
        if chunked and margin is not None:
            x = memory.in_chunks(run, x, self.hidden_bytes(x), margin)
        else:
            x = run(x)
        return self.out_norm(x)

    def hidden_bytes(self, x: Tensor) -> int:
        """The size of the hidden layer."""
        return x[:, 0].numel() * self.depthwise.out_channels * x.element_size()

    def run_hidden(self, x: Tensor, in_place: bool = False) -> Tensor:
        x = F.silu(pointwise(self.expand, x), in_place)
        x = self.depthwise(x)
        x = F.silu(x, in_place)
        return pointwise(self.project, x)


class Block(nn.Module):
    """Attention and MLP, each with a residual connection: (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, attn: nn.Module, mlp: nn.Module, drop: float, drop_path: float) -> None:
        super().__init__()
        self.attn = attn
        self.mlp = mlp
        self.drop = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        # A branch returns a tensor of its own, unless somebody has replaced it.
        in_place = (
            x.device.type == 'cpu'
            and not torch.is_grad_enabled()
            and memory.unobserved(self, x, KNOWN_LAYERS)
        )
        x = memory.add(self.drop_path(self.drop(self.attn(x))), x, in_place)
        return memory.add(self.drop_path(self.drop(self.mlp(x))), x, in_place)


KNOWN_LAYERS = frozenset(
    {
        PlainAttention,
        HierarchicalAttention,
        MLP,
        DropPath,
        ImageNorm,
        nn.Conv2d,
        nn.Dropout,
        nn.Linear,
    }
)


@MODELS.register_module()
class HATNet(Backbone):
    """HAT-Net as a backbone with one feature per stage, of strides 4, 8, 16 and 32.

    It works in any detector, segmentor or classifier of MMDetection, MMSegmentation and MMPretrain,
    at any input size: a feature of stride s has ceil(H / s) x ceil(W / s) positions. Where every
    window divides its stage, it computes the same as the published code.

    Args:
        arch (str | dict): 'tiny', 'small', 'medium', 'large', or a dict of settings: for each
            stage ``embed_dims`` (channels), ``depths`` (blocks), and optionally ``kernel_sizes``
            (depthwise), ``mlp_ratios``, ``windows`` and ``poolings`` (both None for a stage with
            plain attention); and ``head_dim`` (channels per head).
        in_channels (int): Channels of the input. Defaults to 3.
        out_indices (Sequence[int]): The stages whose features are returned, in this order.
            Stages after the last one of them are not built: they would be parameters without a
            gradient, on which distributed training fails. Defaults to (0, 1, 2, 3).
        drop_rate (float): Dropout on the outputs of attention and MLP. Defaults to 0.
        drop_path_rate (float): Stochastic depth of the last block of the architecture. It grows
            linearly from 0 at the first one. Defaults to 0.
        frozen_stages (int): -1 freezes nothing, 0 the stem, n the stem and the first n stages:
            their parameters get no gradients and they stay in evaluation mode. Defaults to -1.
        with_cp (bool): Whether to recompute each block's activations in the backward pass, which
            saves memory for time. Defaults to False.
        recompute_mlp (bool, optional): Whether to recompute the hidden layers of the MLPs in the
            backward pass. They take most of the memory in training. Defaults to None, which means
            on a CPU, where the hidden layer is large and nothing observes the MLP. There it is also
            faster. On a GPU it saves memory and costs time.
        init_cfg (dict | list[dict], optional): Initialization, as MMEngine defines it. Defaults to
            truncated normal weights with std 0.02.

    Attributes:
        embed_dims (tuple[int]): Channels of all stages of the architecture.
        out_channels (tuple[int]): Channels of the returned features.
        out_strides (tuple[int]): Their strides in pixels.

    Published checkpoints load as they are. So do the backbone's weights in a checkpoint of a whole
    model, nested or with a prefix. The ``proj_norm`` tensors of the published network are skipped,
    because the published code never uses their output.

    Raises:
        ValueError: If an argument is impossible, or a checkpoint is of another architecture.

    Examples:
        >>> import torch
        >>> from mmhatnet import HATNet
        >>> model = HATNet(arch='tiny').eval()
        >>> for feature in model(torch.rand(1, 3, 200, 300)):
        ...     print(tuple(feature.shape))
        (1, 48, 50, 75)
        (1, 96, 25, 38)
        (1, 240, 13, 19)
        (1, 384, 7, 10)
    """

    # Paper, table 1.
    ARCHS = {
        'tiny': dict(embed_dims=(48, 96, 240, 384), head_dim=48, depths=(2, 2, 6, 3)),
        'small': dict(embed_dims=(64, 128, 320, 512), head_dim=64, depths=(2, 3, 8, 3)),
        'medium': dict(
            embed_dims=(64, 128, 320, 512),
            head_dim=64,
            depths=(3, 6, 18, 3),
            kernel_sizes=(5, 3, 5, 3),
        ),
        'large': dict(embed_dims=(64, 128, 320, 640), head_dim=64, depths=(3, 8, 27, 3)),
    }
    ARCH_DEFAULTS = dict(
        kernel_sizes=(3, 3, 3, 3),
        mlp_ratios=(8, 8, 4, 4),
        windows=(8, 7, 7, None),
        poolings=(8, 4, 2, None),
    )
    CHECKPOINT = Published(
        network='HAT-Net',
        keys=r'(patch_embed\.\d|ds[234]|blocks\.\d+\.\d+)\.',
        renamings=[
            (r'^patch_embed\.0\.', r'stem.conv1.'),
            (r'^patch_embed\.1\.', r'stem.norm.'),
            (r'^patch_embed\.3\.', r'stem.conv2.'),
            (r'^ds2\.', r'stages.1.downsample.'),
            (r'^ds3\.', r'stages.2.downsample.'),
            (r'^ds4\.', r'stages.3.downsample.'),
            (r'^blocks\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.'),
            (r'\.attn\.grid_norm\.', r'.attn.global_norm.'),
            (r'\.attn\.q\.', r'.attn.global_q.'),
            (r'\.attn\.ds_norm\.', r'.attn.pooled_norm.'),
            (r'\.attn\.kv\.', r'.attn.pooled_kv.'),
            (r'\.conv\.conv1\.0\.', r'.mlp.norm.'),
            (r'\.conv\.conv1\.1\.', r'.mlp.expand.'),
            (r'\.conv\.conv2\.0\.', r'.mlp.depthwise.'),
            (r'\.conv\.conv3\.0\.', r'.mlp.project.'),
            (r'\.conv\.conv3\.1\.', r'.mlp.out_norm.'),
        ],
        unused=r'\.attn\.proj_norm\.',
        head=[(r'^classifier\.1\.', 'head.fc.')],
    )

    def __init__(
        self,
        arch: str | dict = 'small',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        recompute_mlp: bool | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = [
                dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0),
                dict(type='Constant', layer='GroupNorm', val=1.0, bias=0.0),
            ]
        super().__init__(arch, in_channels, out_indices, drop_path_rate, frozen_stages, init_cfg)
        check_rate('drop_rate', drop_rate)
        settings = self.settings

        def block(stage: int, index: int, drop_path: float) -> Block:
            channels, head_dim = self.embed_dims[stage], settings['head_dim']
            window, pooling = settings['windows'][stage], settings['poolings'][stage]
            attn: nn.Module
            if window is None:
                attn = PlainAttention(channels, head_dim)
            else:
                attn = HierarchicalAttention(channels, head_dim, window, pooling)
            ratio, kernel_size = settings['mlp_ratios'][stage], settings['kernel_sizes'][stage]
            mlp = MLP(channels, ratio, kernel_size, recompute_mlp)
            return Block(attn, mlp, drop_rate, drop_path)

        self._build(
            Stem(in_channels, self.embed_dims[0]),
            lambda before, channels: Downsample(before, channels, ImageNorm(channels)),
            block,
            partial(Stage, with_cp=with_cp),
        )

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict[str, Any]:
        """Returns the complete settings of a named or custom architecture.

        Raises:
            ValueError: As for every backbone, and if one of a stage's window and pooling is None
                and the other is not.
        """
        settings = super().resolve_arch(arch)
        half_given = [
            stage
            for stage in range(len(settings['depths']))
            if (settings['windows'][stage] is None) != (settings['poolings'][stage] is None)
        ]
        if half_given:
            raise ValueError(
                f'stages {half_given}: windows and poolings must both be None, or neither'
            )
        return settings

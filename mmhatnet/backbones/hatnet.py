"""The HAT-Net backbone: a vision transformer with hierarchical attention.

Liu et al., "Vision Transformers with Hierarchical Attention", Machine Intelligence Research 21,
670-683 (2024), arXiv 2106.03180. Published code and weights: https://github.com/yun-liu/HAT-Net.

The file reads from the pieces of a block to the network. Inside the network every feature is
(N, C, H, W) in the channels-last memory format, in which convolutions are fastest and a linear
layer is a 1x1 convolution without a copy.

Other libraries hook, wrap, replace and trace the modules. Two rules keep what they do right: the
weights of a module are used by calling it and in no other way, and what a module has returned is
not changed afterwards, except in a forward pass of which ``nothing_notices`` says that it makes no
difference.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all_modules
from torch.utils.checkpoint import checkpoint

from mmhatnet.backbones.base import Backbone, check_rate
from mmhatnet.backbones.layers import (
    DropPath,
    conv,
    depthwise_conv,
    multi_head_attention,
    pointwise,
)
from mmhatnet.checkpoints.keys import Published

# Where larger tensors come from fresh memory, which the system has to clear page by page, a CPU
# waits for that longer than for the arithmetic: glibc gives out memory again up to about this size.
HIDDEN_BYTES = 16 * 10**6


class ImageNorm(nn.GroupNorm):
    """Group normalisation with one group: statistics over all values of one image."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        # Behind frozen layers. On a CPU, PyTorch's backward pass of the channels-last kernel writes
        # the gradient of its input where none was asked for, and the process dies.
        learns = self.weight.requires_grad or self.bias.requires_grad
        if learns and not x.requires_grad and torch.is_grad_enabled():
            x = x.contiguous()
        return super().forward(x)


class Stem(nn.Module):
    """Two convolutions with stride 2: (N, C_in, H, W) to (N, C, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int = 16) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, mid_channels, 3, stride=2)
        self.norm = ImageNorm(mid_channels)
        self.conv2 = conv(mid_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm(self.conv1(x))))


class Downsample(nn.Module):
    """Between two stages: (N, C_in, H, W) to (N, C_out, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, 3, stride=2)
        self.norm = ImageNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


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


COMPILER_KNOWS_SIZES = torch.__version__ >= '2.8'


def concatenate(tensors: list[Tensor], dim: int) -> Tensor:
    """Spares the copy that ``torch.cat`` makes of a single tensor."""
    return torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]


def remainders_are_known(sizes: Sequence[int], divisor: int) -> bool:
    """Whether there can be code for the remainders of these sizes alone.

    Not in a graph for all sizes, as tracers record it, and compilers and exporters where sizes are
    dynamic. What depends on a remainder there makes a graph that is wrong for other sizes, or
    terms of sizes that grow from block to block, until no compiler gets to the end of them.
    """
    if not torch.compiler.is_compiling():
        return not torch.jit.is_tracing()
    # Before 2.8 PyTorch's compiler cannot ask for it: windows are whole then, as for any size.
    if torch.compiler.is_dynamo_compiling() and not COMPILER_KNOWS_SIZES:
        return False
    # Imports SymPy.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    for size in sizes:
        is_zero, is_not = size % divisor == 0, size % divisor != 0
        if not statically_known_true(is_zero) and not statically_known_true(is_not):
            return False
    return True


def lacking(size: int, divisor: int) -> int:
    """What ``size`` lacks to the next multiple."""
    # PyTorch simplifies the sizes of what is padded in this form, and not that of -size % divisor.
    return (size + divisor - 1) // divisor * divisor - size


class HierarchicalAttention(nn.Module):
    """H-MHSA (paper, section 3.2): attention in windows, then of every position over pooled ones.

    Windows are laid from the top-left corner. Those at the right and bottom edge are smaller when
    the window does not divide the size, so no padding is ever attended to. Pooling rounds up, and
    a cell at the edge is the mean of the positions that it covers.
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
        # Windows of one size are one batch: at most four calls, for the whole windows, the right
        # edge, the bottom edge and the corner.
        bands = []
        for top, rows, height in window_runs(x.shape[1], self.window):
            vertical = slice(top, top + rows * height)
            parts = []
            for left, columns, width in window_runs(x.shape[2], self.window):
                region = (slice(None), vertical, slice(left, left + columns * width))
                parts.append(self.add_in_windows(x[region], normed[region], height, width))
            bands.append(concatenate(parts, dim=2))
        return concatenate(bands, dim=1)

    def add_in_padded_windows(self, x: Tensor, normed: Tensor) -> Tensor:
        # The same, of the same operations at any size.
        bottom, right = (lacking(size, self.window) for size in x.shape[1:3])
        inside = torch.ones_like(x[..., :1], dtype=torch.bool)
        padded = (F.pad(t, (0, 0, 0, right, 0, bottom)) for t in (x, normed, inside))
        x, normed, inside = padded
        out = self.add_in_windows(x, normed, self.window, self.window, inside)
        return F.pad(out, (0, 0, 0, -right, 0, -bottom))

    def add_in_windows(
        self, x: Tensor, normed: Tensor, height: int, width: int, inside: Tensor | None = None
    ) -> Tensor:
        """(N, H, W, C), which windows of one size divide, to (N, H, W, C).

        Keys are attended to where ``inside`` (N, H, W, 1) is true, or all of them.
        """

        def cut(t: Tensor) -> Tensor:
            return t.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3)

        def tokens(windows: Tensor) -> Tensor:
            return windows.flatten(3, 4).flatten(0, 2)

        windows = cut(normed)
        q, k, v = self.qkv(tokens(windows)).chunk(3, dim=-1)
        mask = None if inside is None else tokens(cut(inside)).transpose(1, 2).unsqueeze(1)
        out = multi_head_attention(q, k, v, self.head_dim, mask).view(windows.shape)
        # The addition also lays the windows out as an image, which saves a copy.
        return (cut(x).transpose(2, 3) + out.transpose(2, 3)).flatten(3, 4).flatten(1, 2)

    def global_attention(self, y: Tensor) -> Tensor:
        pooled = self.pooled_norm(self.pool(y))
        k, v = self.pooled_kv(pooled.permute(0, 2, 3, 1)).flatten(1, 2).chunk(2, dim=-1)
        y = y.permute(0, 2, 3, 1)
        out = multi_head_attention(self.global_q(y).flatten(1, 2), k, v, self.head_dim)
        return out.view(y.shape).permute(0, 3, 1, 2)

    def pool(self, y: Tensor) -> Tensor:
        """(N, C, H, W) to the means of cells, (N, C, ceil(H / pooling), ceil(W / pooling))."""
        if remainders_are_known(y.shape[2:], self.pooling):
            return F.avg_pool2d(y, self.pooling, ceil_mode=True)
        bottom, right = (lacking(size, self.pooling) for size in y.shape[2:])
        means, inside = (
            F.avg_pool2d(F.pad(t, (0, right, 0, bottom)), self.pooling)
            for t in (y, torch.ones_like(y[:, :1]))
        )
        return means / inside


class InvertedResidual(nn.Module):
    """The MLP of a block: expansion, depthwise convolution, projection.

    Its hidden layer is 4 to 8 times as large as anything else in the network. A CPU computes it a
    few images or rows at a time, in memory that stays in its cache.
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

    def forward(self, x: Tensor, unnoticed: bool = False) -> Tensor:
        """(N, C, H, W) to (N, C, H, W), in parts where nothing notices how often a layer runs."""
        x = self.norm(x)
        row_bytes = x.shape[3] * self.depthwise.out_channels * x.element_size()
        # In this order: a compiler would make a graph for each answer to what it sees compared.
        in_parts = (
            unnoticed and x.device.type == 'cpu' and row_bytes * x.shape[2] * len(x) > HIDDEN_BYTES
        )
        recompute = in_parts if self.recompute is None else self.recompute
        through_hidden = self.through_hidden
        if not torch.is_grad_enabled():
            through_hidden = partial(through_hidden, in_place=unnoticed)
        elif recompute:
            # What others have put inside may draw random numbers; our own layers draw none.
            through_hidden = partial(
                *(checkpoint, through_hidden),
                use_reentrant=False,
                preserve_rng_state=not unnoticed,
            )
        else:
            in_parts = False  # all parts would be kept
        if in_parts:
            return self.out_norm(self.by_parts(through_hidden, x, row_bytes))
        return self.out_norm(through_hidden(x))

    def through_hidden(self, x: Tensor, in_place: bool = False) -> Tensor:
        x = F.silu(pointwise(self.expand, x), in_place)
        x = F.silu(self.depthwise(x), in_place)
        return pointwise(self.project, x)

    def by_parts(self, function: Callable, x: Tensor, row_bytes: int) -> Tensor:
        """Applies a function to whole images, or where one is too large, to rows of it.

        The depthwise convolution sees the rows next to a part as well, which are cut off after it.
        """
        height, beside = x.shape[2], self.depthwise.padding[0]
        images = HIDDEN_BYTES // (height * row_bytes)
        if images:
            return torch.cat([function(part) for part in x.split(images)])
        if len(x) > 1:
            return torch.cat([self.by_parts(function, image, row_bytes) for image in x.split(1)])
        rows = max(HIDDEN_BYTES // row_bytes - 2 * beside, 8 * beside, 1)
        parts = []
        for top in range(0, height, rows):
            first = max(top - beside, 0)
            part = function(x[:, :, first : top + rows + beside])
            parts.append(part[:, :, top - first : top - first + rows])
        return torch.cat(parts, dim=2)


class Block(nn.Module):
    """Attention and MLP, each with a residual connection: (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, attn: nn.Module, mlp: nn.Module, drop: float, drop_path: float) -> None:
        super().__init__()
        self.attn = attn
        self.mlp = mlp
        self.drop = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, **unnoticed: bool) -> Tensor:
        # `unnoticed=True` or nothing: what others put in a module's place takes x alone.
        in_place = bool(unnoticed) and not torch.is_grad_enabled()
        x = add(self.drop_path(self.drop(self.attn(x))), x, in_place)
        return add(self.drop_path(self.drop(self.mlp(x, **unnoticed))), x, in_place)


def add(branch: Tensor, x: Tensor, in_place: bool) -> Tensor:
    """``branch + x``. Where autocast has mixed dtypes, the sum takes the more precise one."""
    return branch.add_(x) if in_place and branch.dtype == x.dtype else branch + x


class Stage(nn.Module):
    """Blocks of one resolution, after a downsampling in all stages but the first."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block], with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor, **unnoticed: bool) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, use_reentrant=False, **unnoticed)
            else:
                x = block(x, **unnoticed)
        return x


MODULES = {
    *(Stem, Downsample, PlainAttention, HierarchicalAttention, InvertedResidual, DropPath),
    *(Block, Stage, nn.Conv2d, nn.Linear, ImageNorm, nn.Dropout, nn.Identity, nn.ModuleList),
}
HOOKS = [f'_{part}_hooks' for part in ('forward_pre', 'forward', 'backward_pre', 'backward')]


def nothing_notices(model: nn.Module, x: Tensor) -> bool:
    """Whether parts and sums in place make no difference to anything but time and memory.

    They do where a tracer, a function transform or a mode of PyTorch records operations, and where
    a module inside the model has a hook, has been replaced, wrapped or compiled, or has a
    ``forward`` or weights of another kind.
    """
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        # PyTorch has no public names for these two.
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(getattr(hooks_of_all_modules, f'_global{kind}') for kind in HOOKS)
        or type(x) is not Tensor
    ):
        return False
    return all(
        type(module) in MODULES
        and 'forward' not in vars(module)
        and module._compiled_call_impl is None
        and not any(getattr(module, kind) for kind in HOOKS)
        and all(type(p) is nn.Parameter for p in module._parameters.values() if p is not None)
        for child in model.children()
        for module in child.modules()
    )


@MODELS.register_module()
class HATNet(Backbone):
    """HAT-Net as a backbone with one feature per stage, of strides 4, 8, 16 and 32.

    A drop-in for any detector, segmentor or classifier of MMDetection, MMSegmentation and
    MMPretrain, at any input size: a feature of stride s has ceil(H / s) x ceil(W / s) positions.
    Where every window divides its stage it is the function of the published code.

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
        drop_path_rate (float): Stochastic depth of the last block of the architecture; it grows
            linearly from 0 at the first one. Defaults to 0.
        frozen_stages (int): -1 freezes nothing, 0 the stem, n the stem and the first n stages:
            their parameters get no gradients and they stay in evaluation mode. Defaults to -1.
        with_cp (bool): Whether to recompute each block's activations in the backward pass, which
            saves memory for time. Defaults to False.
        recompute_mlp (bool, optional): Whether to recompute the hidden layers of the MLPs in the
            backward pass. They are most of what training keeps. Defaults to None: on a CPU, where
            the hidden layer is large and nothing watches the modules, recomputing is faster as
            well and is done; on a GPU memory has its price in time, so it is yours to choose.
        init_cfg (dict | list[dict], optional): Initialisation, as MMEngine defines it. Defaults to
            truncated normal weights with std 0.02.

    Attributes:
        embed_dims (tuple[int]): Channels of all stages of the architecture.
        out_channels (tuple[int]): Channels of the returned features.
        out_strides (tuple[int]): Their strides in pixels.

    A published checkpoint loads as it is, and so does the backbone's part of one of a whole model,
    nested or with a prefix. The ``proj_norm`` tensors of the published network, whose output is
    used nowhere, have no counterpart here and are skipped.

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
        settings = self.resolve_arch(arch)
        super().__init__(
            *(settings, in_channels, out_indices, drop_path_rate, frozen_stages),
            norm_eval=False,
            init_cfg=init_cfg,
        )
        check_rate('drop_rate', drop_rate)
        self.stem = Stem(in_channels, self.embed_dims[0])
        self.stages = nn.ModuleList()
        for index in range(max(self.out_indices) + 1):
            channels = self.embed_dims[index]
            first_block = sum(settings['depths'][:index])
            blocks = [
                Block(
                    self._build_attention(settings, index),
                    InvertedResidual(
                        channels,
                        settings['mlp_ratios'][index],
                        settings['kernel_sizes'][index],
                        recompute_mlp,
                    ),
                    drop_rate,
                    self.drop_path_rates[first_block + block],
                )
                for block in range(settings['depths'][index])
            ]
            downsample = (
                Downsample(self.embed_dims[index - 1], channels) if index else nn.Identity()
            )
            self.stages.append(Stage(downsample, blocks, with_cp))
        self._freeze_stages()

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict:
        """Returns the complete settings of a named or custom architecture.

        Raises:
            ValueError: As for every backbone, and if a head does not divide a stage's channels, or
                one of a stage's window and pooling is None and the other is not.
        """
        settings = super().resolve_arch(arch)
        head_dim = settings['head_dim']
        indivisible = [dim for dim in settings['embed_dims'] if dim % head_dim]
        if indivisible:
            raise ValueError(f'embed_dims {indivisible} cannot be divided by head_dim={head_dim}')
        half_given = [
            stage
            for stage in range(len(settings['depths']))
            if (settings['windows'][stage] is None) != (settings['poolings'][stage] is None)
        ]
        if half_given:
            raise ValueError(
                f'stages {half_given}: windows and poolings are None together or not at all'
            )
        return settings

    @staticmethod
    def _build_attention(settings: dict, stage: int) -> nn.Module:
        channels, head_dim = settings['embed_dims'][stage], settings['head_dim']
        window, pooling = settings['windows'][stage], settings['poolings'][stage]
        if window is None:
            return PlainAttention(channels, head_dim)
        return HierarchicalAttention(channels, head_dim, window, pooling)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the features of an image batch.

        Args:
            x (Tensor): Images of any size, (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: A feature (N, out_channels[i], ceil(H / s), ceil(W / s)) for each of
            ``out_indices``, with s = out_strides[i]. They are contiguous, as those of other
            backbones are, because not every operator minds the strides of its input: mmcv's
            RoIAlign reads channels-last features as if they were contiguous.

        Raises:
            ValueError: If the input has another number of dimensions or channels.
        """
        self.check_input(x)
        unnoticed = dict(unnoticed=True) if nothing_notices(self, x) else {}
        features = {}
        # Channels-last, in words that function transforms understand.
        x = self.stem(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for index, stage in enumerate(self.stages):
            x = stage(x, **unnoticed)
            if index in self.out_indices:
                features[index] = x.contiguous()
        return tuple(features[index] for index in self.out_indices)

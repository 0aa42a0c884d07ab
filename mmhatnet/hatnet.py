"""The HAT-Net backbone: a vision transformer with hierarchical attention.

Liu et al., "Vision Transformers with Hierarchical Attention", Machine Intelligence Research 21,
670-683 (2024), arXiv 2106.03180. Published code and weights: https://github.com/yun-liu/HAT-Net.

The file reads from the pieces of a block to the network. Inside the network
every feature is (N, H, W, C): a linear layer is then a 1x1 convolution without a copy, and a
permutation gives convolutions the channels-last memory format that they are fastest in.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmhatnet.archs import resolve_arch
from mmhatnet.checkpoint import check_architecture, load_weights_only, to_native_keys

# Where larger tensors come from fresh memory, which the system has to clear page by page, a CPU
# waits for that longer than for the arithmetic: glibc gives out memory again up to about this size.
HIDDEN_BYTES = 16 * 10**6


class ImageNorm(nn.GroupNorm):
    """Group normalisation with one group: statistics over all values of one image."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SpatialConv2d(nn.Conv2d):
    """Convolution with "same" padding, or half the size rounded up with stride 2."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **kwargs) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C_in) to (N, ceil(H / stride), ceil(W / stride), C_out)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops the whole branch of some images of a batch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to (N, ...)."""
        if self.rate == 0 or not self.training:
            return x
        keep = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class Stem(nn.Module):
    """Two convolutions with stride 2: (N, H, W, C_in) to (N, ceil(H / 4), ceil(W / 4), C)."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int = 16) -> None:
        super().__init__()
        self.conv1 = SpatialConv2d(in_channels, mid_channels, 3, stride=2)
        self.norm = ImageNorm(mid_channels)
        self.conv2 = SpatialConv2d(mid_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm(self.conv1(x))))


class Downsample(nn.Module):
    """Between two stages: (N, H, W, C_in) to (N, ceil(H / 2), ceil(W / 2), C_out)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = SpatialConv2d(in_channels, out_channels, 3, stride=2)
        self.norm = ImageNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def multi_head_attention(q: Tensor, k: Tensor, v: Tensor, head_dim: int) -> Tensor:
    """Softmax attention of (B, L, C) queries over (B, M, C) keys and values.

    Heads are consecutive runs of ``head_dim`` channels. Returns (B, L, C).
    """
    q, k, v = (t.unflatten(-1, (-1, head_dim)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class PlainAttention(nn.Module):
    """Multi-head self-attention over all positions, as in the last stage."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = ImageNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        q, k, v = self.qkv(self.norm(x)).flatten(1, 2).chunk(3, dim=-1)
        out = multi_head_attention(q, k, v, self.head_dim)
        return self.proj(out.view(x.shape))


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
    """Spares the copy that ``torch.cat`` makes of a single tensor."""
    return torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]


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
        """(N, H, W, C) to (N, H, W, C)."""
        y = self.global_norm(self.add_local_attention(x))
        return self.proj(y + self.global_attention(y))

    def add_local_attention(self, x: Tensor) -> Tensor:
        # Windows of one size are one batch: at most four calls, for the whole windows, the right
        # edge, the bottom edge and the corner.
        normed = self.norm(x)
        bands = []
        for top, rows, height in window_runs(x.shape[1], self.window):
            vertical = slice(top, top + rows * height)
            parts = []
            for left, columns, width in window_runs(x.shape[2], self.window):
                region = (slice(None), vertical, slice(left, left + columns * width))
                parts.append(self.add_in_windows(x[region], normed[region], height, width))
            bands.append(concatenate(parts, dim=2))
        return concatenate(bands, dim=1)

    def add_in_windows(self, x: Tensor, normed: Tensor, height: int, width: int) -> Tensor:
        x, normed = (t.unflatten(2, (-1, width)).unflatten(1, (-1, height)) for t in (x, normed))
        windows = normed.transpose(2, 3)
        tokens = windows.reshape(-1, height * width, x.shape[-1])
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        out = multi_head_attention(q, k, v, self.head_dim).view(windows.shape)
        # The addition also lays the windows out as an image, which saves a copy.
        return (x + out.transpose(2, 3)).flatten(3, 4).flatten(1, 2)

    def global_attention(self, y: Tensor) -> Tensor:
        pooled = F.avg_pool2d(y.permute(0, 3, 1, 2), self.pooling, ceil_mode=True)
        pooled = self.pooled_norm(pooled.permute(0, 2, 3, 1))
        q = self.global_q(y).flatten(1, 2)
        k, v = self.pooled_kv(pooled).flatten(1, 2).chunk(2, dim=-1)
        return multi_head_attention(q, k, v, self.head_dim).view(y.shape)


def hidden_channels_at_once(x: Tensor) -> int:
    """How many channels of the MLP's hidden layer a CPU computes at a time for an (N, H, W, C) x.

    A multiple of 16, below which matrix products and depthwise convolutions lose speed.
    """
    bytes_per_channel = x.shape[:3].numel() * x.element_size()
    return max(16, HIDDEN_BYTES // bytes_per_channel // 16 * 16)


class InvertedResidual(nn.Module):
    """The MLP of a block: expansion, depthwise convolution, projection.

    The hidden layer is 4 to 8 times as large as anything else in the network, so that it is never
    kept: the backward pass computes it again. No hidden channel depends on another one, so a CPU
    computes a few of them at a time, in memory that stays in its cache.
    """

    def __init__(self, channels: int, ratio: int, kernel_size: int) -> None:
        super().__init__()
        hidden = channels * ratio
        self.norm = ImageNorm(channels)
        self.expand = nn.Linear(channels, hidden, bias=False)
        self.depthwise = SpatialConv2d(hidden, hidden, kernel_size, groups=hidden, bias=False)
        self.project = nn.Linear(hidden, channels, bias=False)
        self.out_norm = ImageNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H, W, C)."""
        x = self.norm(x)
        size = self.expand.out_features
        # A GPU takes large kernels better, and a compiler has its own ways to stay in the cache.
        if x.device.type == 'cpu' and not torch.compiler.is_compiling():
            size = min(size, hidden_channels_at_once(x))
        out = None
        for weights in zip(
            self.expand.weight.split(size),
            self.depthwise.weight.split(size),
            self.project.weight.split(size, dim=1),
        ):
            if torch.is_grad_enabled():
                part = checkpoint(
                    through_hidden, x, *weights, use_reentrant=False, preserve_rng_state=False
                )
            else:
                part = through_hidden(x, *weights)
            out = part if out is None else out.add_(part)
        return self.out_norm(out)


def through_hidden(x: Tensor, expand: Tensor, depthwise: Tensor, project: Tensor) -> Tensor:
    """What some hidden channels, whose weights are given, contribute to the projection of x."""
    inplace = not torch.is_grad_enabled()
    x = F.silu(F.linear(x, expand), inplace).permute(0, 3, 1, 2)
    x = F.conv2d(x, depthwise, padding=depthwise.shape[-1] // 2, groups=len(depthwise))
    return F.linear(F.silu(x.permute(0, 2, 3, 1), inplace), project)


def add_residual(branch: Tensor, x: Tensor) -> Tensor:
    """``branch + x``, in place, since nothing else needs the branch.

    Where autocast has mixed dtypes, the sum takes the more precise one instead.
    """
    return branch.add_(x) if branch.dtype == x.dtype else branch + x


class Block(nn.Module):
    """Attention and MLP, each with a residual connection: (N, H, W, C) to (N, H, W, C)."""

    def __init__(self, attn: nn.Module, mlp: nn.Module, drop: float, drop_path: float) -> None:
        super().__init__()
        self.attn = attn
        self.mlp = mlp
        self.drop = nn.Dropout(drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = add_residual(self.drop_path(self.drop(self.attn(x))), x)
        return add_residual(self.drop_path(self.drop(self.mlp(x))), x)


class Stage(nn.Module):
    """Blocks of one resolution, after a downsampling in all stages but the first."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block], with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and x.requires_grad:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


@MODELS.register_module()
class HATNet(BaseModule):
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
        init_cfg (dict | list[dict], optional): Initialisation, as MMEngine defines it. Defaults to
            truncated normal weights with std 0.02.

    Attributes:
        embed_dims (tuple[int]): Channels of all stages of the architecture.
        out_channels (tuple[int]): Channels of the returned features.
        out_strides (tuple[int]): Their strides in pixels.

    A published checkpoint loads as it is, bare or nested under ``model`` or ``state_dict``. Its
    ``proj_norm`` tensors, whose output is used nowhere, have no counterpart here and are skipped.

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

    def __init__(
        self,
        arch: str | dict = 'small',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = [
                dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0),
                dict(type='Constant', layer='GroupNorm', val=1.0, bias=0.0),
            ]
        super().__init__(init_cfg)
        settings = resolve_arch(arch)
        self.embed_dims = settings['embed_dims']
        num_stages = len(self.embed_dims)
        stages = range(num_stages)
        if (
            not isinstance(out_indices, Sequence)
            or not out_indices
            or not set(out_indices) <= set(stages)
        ):
            raise ValueError(f'out_indices={out_indices} must name stages of 0 to {num_stages - 1}')
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(f'frozen_stages={frozen_stages} must be from -1 to {num_stages}')
        for name, rate in dict(drop_rate=drop_rate, drop_path_rate=drop_path_rate).items():
            if not 0 <= rate < 1:
                raise ValueError(f'{name}={rate} must be at least 0 and less than 1')
        self.in_channels = in_channels
        self.out_indices = tuple(out_indices)
        self.out_channels = tuple(self.embed_dims[index] for index in self.out_indices)
        self.out_strides = tuple(4 * 2**index for index in self.out_indices)
        self.frozen_stages = frozen_stages

        drop_path_rates = torch.linspace(0, drop_path_rate, sum(settings['depths'])).tolist()
        self.stem = Stem(in_channels, self.embed_dims[0])
        self.stages = nn.ModuleList()
        for index in range(max(self.out_indices) + 1):
            channels = self.embed_dims[index]
            first_block = sum(settings['depths'][:index])
            blocks = [
                Block(
                    self._build_attention(settings, index),
                    InvertedResidual(
                        channels, settings['mlp_ratios'][index], settings['kernel_sizes'][index]
                    ),
                    drop_rate,
                    drop_path_rates[first_block + block],
                )
                for block in range(settings['depths'][index])
            ]
            downsample = (
                Downsample(self.embed_dims[index - 1], channels) if index else nn.Identity()
            )
            self.stages.append(Stage(downsample, blocks, with_cp))
        self._freeze_stages()

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
            ``out_indices``, with s = out_strides[i], in the channels-last memory format.

        Raises:
            ValueError: If the input has another number of dimensions or channels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'HATNet takes images (N, {self.in_channels}, H, W), not {tuple(x.shape)}'
            )
        features = []
        x = self.stem(x.permute(0, 2, 3, 1))
        for stage in self.stages:
            x = stage(x)
            features.append(x.permute(0, 3, 1, 2))
        return tuple(features[index] for index in self.out_indices)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Tells the layer of a parameter, for layer-wise decay of the learning rate.

        Args:
            param_name (str): Name of a parameter of the model that holds the backbone.
            prefix (str): What the names of the backbone's parameters start with there.

        Returns:
            tuple[int, int]: The layer and the number of layers. The stem is layer 0, each block is
            one, with the downsampling that follows it, and the rest of the model is the last one.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        module, *path = param_name.removeprefix(prefix).split('.')
        if module == 'stem':
            return 0, num_layers
        stage, part, index = int(path[0]), path[1], path[2]
        block = int(index) + 1 if part == 'blocks' else 0
        return sum(depths[:stage]) + block, num_layers

    def train(self, mode: bool = True) -> 'HATNet':
        """Sets the training mode, in which the frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages >= 0:
            for module in (self.stem, *self.stages[: self.frozen_stages]):
                module.eval()
                module.requires_grad_(False)

    def init_weights(self) -> None:
        """Initialises as ``init_cfg`` says. A checkpoint is read without executing its content."""
        with load_weights_only():
            super().init_weights()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        to_native_keys(state_dict, prefix)
        check_architecture(state_dict, prefix, self.state_dict())
        super()._load_from_state_dict(state_dict, prefix, *args)

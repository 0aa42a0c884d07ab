"""Layers that more than one network uses.

Inside every network a feature is (N, C, H, W) in the channels-last memory format. Convolutions are
fastest in it, and (N, H, W, C) is a view, so that a linear layer needs no copy.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolve(layer: nn.Conv2d, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Applies a convolution with a stride, which is right in 16 bits on a CPU at any width.

    oneDNN, which PyTorch calls there, has two faults that depend on the width. Zeros to the right
    of the input avoid both (docs/upstream).

    - With a stride, a single output column or the gradient of the weight can be uninitialized.
      Two columns are right.
    - Without padding, several columns of few channels count as one column of many, whose weights
      are not where oneDNN reads them. It does not do so if their number is odd.

    Args:
        layer (nn.Conv2d): The convolution.
        x (Tensor): (N, C_in, H, W).
        call (Callable, optional): What computes it. Defaults to None, for the layer itself.

    Returns:
        Tensor: (N, C_out, H', W').
    """
    call = layer if call is None else call
    if x.device.type != 'cpu' or computing_dtype(x).itemsize != 2:
        return call(x)
    width, stride, padding = x.shape[3], layer.stride[1], int(layer.padding[1])
    reach = layer.dilation[1] * (layer.kernel_size[1] - 1) + 1 - 2 * padding
    needed = max(width, reach + stride) if stride > 1 else width
    if padding == 0 and layer.in_channels < 32 < layer.in_channels * layer.kernel_size[1]:
        needed = needed // 2 * 2 + 1
    elif needed == width:
        return call(x)
    out = call(F.pad(x, (0, needed - width)))
    return to_channels_last(out[..., : (width - reach) // stride + 1])


class Conv2d(nn.Conv2d):
    """A convolution that calls ``convolve``, for containers that call their layers."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        return convolve(self, x, super().forward)


class CeilPatchConv(Conv2d):
    """Convolution of patches side by side, padded with zeros at the right and bottom."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__(in_channels, out_channels, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, ceil(H / size), ceil(W / size))."""
        (bottom, right), (height, width) = self.stride, x.shape[2:]
        return super().forward(F.pad(x, (0, -width % right, 0, -height % bottom)))


def computing_dtype(x: Tensor) -> torch.dtype:
    """The type in which a layer computes that autocast covers."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, **kwargs: Any
) -> nn.Conv2d:
    """Convolution that keeps the size, or halves it and rounds up with ``stride=2``."""
    layer = nn.Conv2d if stride == 1 else Conv2d
    padding = kernel_size // 2
    return layer(in_channels, out_channels, kernel_size, stride, padding, **kwargs)


def depthwise_conv(channels: int, kernel_size: int, **kwargs: Any) -> nn.Conv2d:
    """Convolution of each channel by itself.

    The weight (C, 1, k, k) has the strides that its gradient gets from channels-last features. The
    default strides are as contiguous, since there is one input channel, but DDP would copy each
    gradient.
    """
    module = conv(channels, channels, kernel_size, groups=channels, **kwargs)
    weight = torch.empty_like(module.weight, memory_format=torch.channels_last)
    module.weight = nn.Parameter(weight.copy_(module.weight.detach()))
    return module


def to_channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) to the same in the channels-last memory format."""
    # Function transforms such as vmap do not support `x.contiguous(memory_format=...)`.
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def adaptive_means(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.adaptive_avg_pool2d``: (N, C, H, W) to means (N, C, *size).

    In a graph for all sizes PyTorch fixes the largest number of positions that a mean covers. There
    means are products with two matrices.
    """
    if not any(isinstance(side, torch.SymInt) for side in (*x.shape[2:], *size)):
        return F.adaptive_avg_pool2d(x, size)
    rows, columns = (_averaging(*sides, like=x) for sides in zip(x.shape[2:], size))
    return rows @ x @ columns.mT


def _averaging(before: int, after: int, like: Tensor) -> Tensor:
    """Returns the weights (after, before) of positions in means."""
    index = torch.arange(after, device=like.device)[:, None]
    start, end = index * before // after, ((index + 1) * before + after - 1) // after
    position = torch.arange(before, device=like.device)
    inside = (position >= start) & (position < end)
    return inside.to(like.dtype) / (end - start)


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a layer over the channels: (N, C_in, H, W) to (N, C_out, H, W)."""
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization over the channels of each position."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Convolution with a stride and a norm: (N, C_in, H, W) to (N, C_out, H', W').

    H' is H / stride and W' is W / stride, rounded up.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: nn.Module,
        kernel_size: int = 3,
        stride: int = 2,
    ) -> None:
        super().__init__()
        # A plain one, because tools that count operations know layers by their exact type.
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(self.conv, x))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops the branch of whole images at random."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) to (N, ...)."""
        if self.rate == 0 or not self.training:
            return x
        mask = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * mask.div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class LayerScale(nn.Module):
    """A learned factor for each channel of (N, C, H, W)."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1, channels, 1, 1), value))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return x * self.gamma


def layer_scale(channels: int, value: float | None) -> nn.Module:
    """A ``LayerScale`` with this initial value, or for None a module that does nothing."""
    return nn.Identity() if value is None else LayerScale(channels, value)


def multi_head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    head_dim: int,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention.

    Args:
        q (Tensor): Queries (B, L, C).
        k (Tensor): Keys (B, M, C).
        v (Tensor): Values (B, M, C).
        head_dim (int): The number of channels of a head. A head has consecutive channels.
        mask (Tensor, optional): (B, 1, 1, M), true for the keys to attend to. Defaults to None,
            which means all.
        dropout (float): Probability of dropping a weight. Defaults to 0.

    Returns:
        Tensor: (B, L, C).
    """
    q, k, v = (t.unflatten(-1, (-1, head_dim)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2)

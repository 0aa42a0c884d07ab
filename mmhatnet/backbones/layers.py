"""Layers that more than one network uses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, kernel_size: int, **kwargs) -> nn.Conv2d:
    """Convolution with "same" padding, or half the size rounded up with stride 2."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, **kwargs)


def depthwise_conv(channels: int, kernel_size: int, **kwargs) -> nn.Conv2d:
    """Convolution of each channel by itself.

    The weight (C, 1, k, k) has the strides that its gradient gets from channels-last features.
    With one input channel the usual strides are as contiguous, but DDP would copy each gradient.
    """
    module = conv(channels, channels, kernel_size, groups=channels, **kwargs)
    weight = torch.empty_like(module.weight, memory_format=torch.channels_last)
    module.weight = nn.Parameter(weight.copy_(module.weight.detach()))
    return module


def pointwise(linear: nn.Module, x: Tensor) -> Tensor:
    """A linear layer over the channels: (N, C_in, H, W) to (N, C_out, H, W)."""
    return linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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


def multi_head_attention(
    q: Tensor, k: Tensor, v: Tensor, head_dim: int, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention of (B, L, C) queries over (B, M, C) keys and values.

    Heads are consecutive runs of ``head_dim`` channels. ``mask`` (B, 1, 1, M) is true where a key
    is attended to. Returns (B, L, C).
    """
    q, k, v = (t.unflatten(-1, (-1, head_dim)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution of (N, H, W, C), which it sees as channels-last, to (N, H', W', C')."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LayerScale(nn.Module):
    """A learned factor for each channel of (N, C, H, W)."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1, channels, 1, 1), value))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return x * self.gamma

"""Layers that more than one network uses."""

import torch.nn.functional as F
from torch import Tensor, nn


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

"""Group normalization with one group, the norm of HAT-Net."""

from typing import Any

import torch
from torch import Tensor, nn


class ImageNorm(nn.GroupNorm):
    """Group normalization with one group: statistics over all values of one image."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if x.device.type == 'cuda':
            return normalize_images(x, self.weight, self.bias, self.eps)
        # Behind frozen layers. On a CPU, PyTorch's backward pass for channels-last inputs writes
        # the gradient of the input even if none is required, and crashes.
        learns = self.weight.requires_grad or self.bias.requires_grad
        if learns and not x.requires_grad and torch.is_grad_enabled():
            x = x.contiguous()
        return super().forward(x)


def normalize_images(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Computes ``F.group_norm`` for one group in a way that suits a GPU.

    PyTorch's CUDA kernel gives each group to one thread block, so that two images occupy two
    multiprocessors, and it copies channels-last inputs and outputs. Here the reduction is split
    among all blocks, and the result has the layout of the input.

    Args:
        x (Tensor): (N, C, H, W) of any floating type. Statistics are computed in at least float32.
        weight (Tensor): (C,).
        bias (Tensor): (C,).
        eps (float): Added to the variance.

    Returns:
        Tensor: (N, C, H, W), under autocast in float32, as that of ``F.group_norm``.
    """
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.promote_types(x.dtype, torch.float32) if autocast else x.dtype
    if torch.compiler.is_compiling():  # The compiler fuses the operations of both passes.
        return _normalize(x, weight, bias, *_statistics(x, eps)).to(dtype)
    out: Tensor = _NormalizeImages.apply(x, weight, bias, eps, dtype)[0]
    return out


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) to the means and the inverse standard deviations (N, 1, 1, 1)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(x, (1, 2, 3), correction=0, keepdim=True)
    return mean, (variance + eps).rsqrt()


def _normalize(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_std: Tensor
) -> Tensor:
    scale = inverse_std * weight.view(-1, 1, 1)
    return torch.addcmul(bias.view(-1, 1, 1) - mean * scale, x, scale)


class _NormalizeImages(torch.autograd.Function):
    """Keeps only the input, in its own type, and needs few passes over it for the gradients.

    Autograd would keep, write and read several more tensors of that size.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        statistics = _statistics(x, eps)
        return _normalize(x, weight, bias, *statistics).to(dtype), *statistics

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.eps, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])
        ctx.bias_dtype = bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        if torch.is_grad_enabled():  # Second derivatives also go through the statistics.
            mean, inverse_std = _statistics(x, ctx.eps)
        grad = grad.to(mean.dtype)
        # Sums (N, C, 1, 1) over the positions of the gradients of output and normalized output.
        sums = grad.sum((2, 3), keepdim=True)
        products = inverse_std * ((grad * x).sum((2, 3), keepdim=True) - mean * sums)
        grad_x = None
        if ctx.needs_input_grad[0]:
            scale = inverse_std * weight.view(-1, 1, 1)
            size = x[0].numel()
            along = -inverse_std * (products * scale).sum(1, keepdim=True) / size
            shift = -(sums * scale).sum(1, keepdim=True) / size - mean * along
            grad_x = torch.addcmul(torch.addcmul(shift, x, along), grad, scale).to(x.dtype)
        grad_weight = products.sum((0, 2, 3)).to(weight.dtype)
        return grad_x, grad_weight, sums.sum((0, 2, 3)).to(ctx.bias_dtype), None, None

"""The norm for GPUs computes what PyTorch's group normalization does. It is checked on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmhatnet.backbones.image_norm import normalize_images

SHAPES = [(2, 16, 9, 13), (1, 48, 1, 1), (3, 8, 32, 5)]


def draw(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """An image whose mean is five standard deviations from 0, a weight, a bias and a gradient."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    x = (2 * normal(*shape) + 10).contiguous(memory_format=torch.channels_last)
    tensors = x, 1 + normal(shape[1]), normal(shape[1])
    return *(t.to(dtype).requires_grad_() for t in tensors), normal(*shape).to(dtype)


def expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 1, weight, bias, 1e-6)


def actual(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return normalize_images(x, weight, bias, 1e-6)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_float64_is_exact(shape: tuple[int, ...]) -> None:
    *inputs, grad = draw(shape, torch.float64)
    out = actual(*inputs)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected(*inputs), rtol=0, atol=1e-12)
    gradients = (torch.autograd.grad(f(*inputs), inputs, grad) for f in (actual, expected))
    for value, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-11)


def test_second_derivatives() -> None:
    *inputs, _ = draw((2, 3, 2, 3), torch.float64)
    inputs = [t.detach().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(actual, inputs)
    assert torch.autograd.gradgradcheck(actual, inputs)


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_bfloat16_rounds_like_pytorch(shape: tuple[int, ...], autocast: bool) -> None:
    """It is at most as far from float64 as PyTorch's, and of the same type."""
    *inputs, grad = draw(shape, torch.bfloat16)
    if autocast:
        weights = [t.detach().float().requires_grad_() for t in inputs[1:]]
        inputs = [inputs[0], *weights]
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    exact = expected(*exact_inputs)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, grad.double())
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = actual(*inputs)
    reference = expected(inputs[0].float(), *inputs[1:]) if autocast else expected(*inputs)
    assert out.dtype == reference.dtype
    results = []
    for result in (out, reference):
        gradients = torch.autograd.grad(result, inputs, grad.to(result.dtype), retain_graph=True)
        assert [g.dtype for g in gradients] == [t.dtype for t in inputs]
        results.append([result, *gradients])
    for own, theirs, right in zip(*results, [exact, *exact_gradients], strict=True):
        scale = right.abs().max()
        error, allowed = ((t.double() - right).abs().max() / scale for t in (own, theirs))
        assert error <= 1.5 * allowed + 1e-6


def test_large_offsets_stay_accurate_in_float32() -> None:
    """A thousand standard deviations from 0 the variance still has five digits."""
    x = (torch.randn(1, 8, 64, 64) + 1000).requires_grad_()
    weight, bias = torch.ones(8), torch.zeros(8)
    out = actual(x, weight, bias)
    assert (out - expected(x.double(), weight.double(), bias.double())).abs().max() < 1e-3


@pytest.mark.parametrize('needed', [(0,), (1, 2), (0, 1), (2,)], ids=str)
def test_only_what_learns_gets_a_gradient(needed: tuple[int, ...]) -> None:
    *inputs, grad = draw((2, 4, 5, 6), torch.float64)
    inputs = [t.detach().requires_grad_(index in needed) for index, t in enumerate(inputs)]
    actual(*inputs).backward(grad)
    assert [t.grad is not None for t in inputs] == [index in needed for index in range(3)]


def test_function_transforms() -> None:
    *inputs, _ = draw((2, 4, 5, 6), torch.float64)
    x, weight, bias = (t.detach() for t in inputs)
    each = torch.vmap(lambda image: actual(image[None], weight, bias)[0])(x)
    torch.testing.assert_close(each, expected(x, weight, bias))
    gradients = torch.func.grad(lambda t: actual(t, weight, bias).cos().sum())(x)
    reference = torch.func.grad(lambda t: expected(t, weight, bias).cos().sum())(x)
    torch.testing.assert_close(gradients, reference)


def test_compiled() -> None:
    *inputs, grad = draw((2, 16, 9, 13), torch.float64)
    results = []
    for function in (torch.compile(actual, backend='aot_eager', fullgraph=True), expected):
        out = function(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, grad)])
    for value, reference in zip(*results, strict=True):
        torch.testing.assert_close(value, reference)

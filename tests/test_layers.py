"""Convolutions with a stride are right in 16 bits on a CPU, at any width.

oneDNN has faults that depend on the CPU. Those of AVX-512 with bfloat16 make the comparisons fail.
Those of AMX have the same condition, so the tests of shapes fail on any CPU.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from experiments import rest_slow
from networks import NETWORKS, Network
from synthetic import synthetic_image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmhatnet.backbones.layers import Conv2d

# Kernel, stride and padding of the convolutions with a stride in the networks.
STRIDED = [(3, 2, 1), (7, 2, 3), (7, 4, 3), (2, 2, 0), (4, 4, 0), (8, 8, 0), (16, 16, 0)]
HALF = [torch.bfloat16, torch.float16]


class Convolutions(TorchDispatchMode):
    """Records the shapes and strides of all convolutions and of their gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.dtype, int, int, int, int]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket
        if name in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
            backward = name is torch.ops.aten.convolution_backward
            x, weight = args[backward : 2 + backward]
            stride, padding = args[3 + backward][1], args[4 + backward][1]
            columns = (x.shape[3] + 2 * padding - weight.shape[3]) // stride + 1
            self.found.append((x.dtype, weight.shape[1], weight.shape[3], stride, columns))
        return function(*args, **kwargs or {})


def convolutions(model: nn.Module, image: Tensor, dtype: torch.dtype | None) -> list[tuple]:
    """Returns what a forward and a backward pass compute, of convolutions with a stride."""
    with Convolutions() as recorded:
        with torch.autocast('cpu', dtype, enabled=dtype is not None):
            features = model(image)
        sum(f.float().square().mean() for f in features).backward()
    return [found for found in recorded.found if found[3] > 1]


@pytest.fixture(params=NETWORKS)
def network(request) -> Network:
    return NETWORKS[request.param]


@pytest.mark.parametrize('dtype', HALF)
def test_no_convolution_has_a_single_column(network: Network, dtype: torch.dtype) -> None:
    model = network.build()
    for width in (1, 8, 20, 32):
        image = synthetic_image(2, 3, 70, width)
        found = convolutions(model, image, dtype)
        assert {kind for kind, *_ in found} == {dtype}
        assert min(columns for *_, columns in found) > 1
        # Only in 16 bits.
        columns = min(columns for *_, columns in convolutions(model, image, None))
        assert columns == math.ceil(width / max(network.strides))


def test_wide_inputs_get_no_zeros(network: Network) -> None:
    """The published variants have convolutions of patches with 32 channels and more."""
    with torch.device('meta'):
        published = network.network(next(iter(network.parameters)))
    for layer in published.modules():
        if isinstance(layer, nn.Conv2d) and layer.stride[1] > 1:
            channels, size = layer.in_channels, layer.kernel_size[1]
            # OmniNet's patches are the exception: one column of zeros is a 16th of a patch.
            assert layer.padding[1] or not channels < 32 < channels * size or size == 16
    model, image = network.build(), synthetic_image(1, 3, 70, 260)
    in_16_bits = [shape for _, *shape in convolutions(model, image, torch.bfloat16)]
    assert in_16_bits == [shape for _, *shape in convolutions(model, image, None)]


@pytest.mark.parametrize('width', rest_slow(range(1, 41), 1, 3, 8, 16, 20, 32))
def test_narrow_images_in_bfloat16_are_near(network: Network, width: int) -> None:
    image = synthetic_image(2, 3, 200, width)  # AMX serves features of more than 4 positions
    model = network.build()
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            features = model(image)
        sum((f.float() * f.detach().float().cos()).mean() for f in features).backward()
        gradients = {
            name: layer.weight.grad
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Conv2d)
        }
        results.append([*enumerate(features), *gradients.items()])
        assert all(p.grad.isfinite().all() for p in model.parameters())
    for (name, expected), (_, actual) in zip(*results):
        assert actual.isfinite().all(), name
        assert (actual - expected).norm() < 0.1 * expected.norm(), name


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('shape', STRIDED, ids=str)
def test_results_and_gradients_in_16_bits(
    shape: tuple[int, int, int], memory_format: torch.memory_format
) -> None:
    kernel, stride, padding = shape
    torch.manual_seed(0)
    for channels in (8, 16, 24, 64):
        layer = Conv2d(channels, 16, kernel, stride, padding).bfloat16()
        for width in range(max(1, kernel - 2 * padding), 2 * kernel + 2):
            image = torch.randn(2, channels, kernel + 5, width).bfloat16()
            layer.zero_grad()
            x = image.to(memory_format=memory_format).requires_grad_()
            out = layer(x)
            exact = [t.detach().double().requires_grad_() for t in (image, *layer.parameters())]
            expected = F.conv2d(*exact, stride=stride, padding=padding)
            direction = torch.randn_like(expected)
            out.backward(direction.bfloat16())
            expected.backward(direction.bfloat16().double())
            assert out.dtype == torch.bfloat16 and out.shape == expected.shape
            actual = (out, x.grad, *(p.grad for p in layer.parameters()))
            for ours, right in zip(actual, (expected, *(t.grad for t in exact))):
                assert (ours - right).abs().max() < 0.02 * right.abs().max(), (channels, width)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_other_types_are_left_to_pytorch(dtype: torch.dtype) -> None:
    for channels, (kernel, stride, padding) in [(c, shape) for c in (16, 64) for shape in STRIDED]:
        layer = Conv2d(channels, 16, kernel, stride, padding).to(dtype)
        x = torch.randn(2, channels, 17, 16, dtype=dtype)
        expected = F.conv2d(x, layer.weight, layer.bias, stride, padding)
        assert torch.equal(layer(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(3, 2, 1), (8, 8, 0)], ids=str)
def test_compiled_and_exported_layers_are_right(shape: tuple[int, int, int]) -> None:
    kernel, stride, padding = shape
    layer = Conv2d(16, 8, kernel, stride, padding).bfloat16()
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    for width in (kernel, kernel + stride, 40):
        image = torch.randn(2, 16, 20, width).bfloat16()
        assert torch.equal(compiled(image), layer(image))
    size = {axis: torch.export.Dim.DYNAMIC for axis in (2, 3)}
    exported = torch.export.export(layer, (image,), dynamic_shapes=(size,)).module()
    for width in (33, 50):
        image = torch.randn(2, 16, 20, width).bfloat16()
        assert torch.equal(exported(image), layer(image))

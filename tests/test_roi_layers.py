"""mmcv's RoI operators read features and gradients of any memory format."""

import mmcv.ops
import pytest
import torch
import torchvision
from torch import Tensor

from mmhatnet.openmmlab.patches import apply_patches

apply_patches()

BOXES = torch.tensor([[0, 1.0, 2, 30, 20], [1, 5, 5, 20, 30.5], [1, 0, 0, 39, 31]])
ROTATED = torch.tensor([[0, 15.0, 12, 20, 10, 0.3], [1, 20, 16, 30, 20, -0.7]])
LAYERS = {
    'RoIAlign': (mmcv.ops.RoIAlign((5, 7), spatial_scale=0.5, sampling_ratio=2), BOXES),
    'RoIAlignRotated': (mmcv.ops.RoIAlignRotated((5, 7), 0.5, sampling_ratio=2), ROTATED),
}


def forward_and_backward(layer, rois: Tensor, memory_format: torch.memory_format) -> list[Tensor]:
    torch.manual_seed(0)
    features = torch.randn(2, 8, 32, 40).contiguous(memory_format=memory_format).requires_grad_()
    out = layer(features, rois)
    weights = torch.randn(out.shape).contiguous(memory_format=memory_format)
    out.backward(weights)
    return [out.detach(), features.grad]


@pytest.mark.parametrize('name', LAYERS)
def test_channels_last_gives_the_same(name: str) -> None:
    layer, rois = LAYERS[name]
    try:
        expected = forward_and_backward(layer, rois, torch.contiguous_format)
    except NotImplementedError as error:
        pytest.skip(str(error))
    actual = forward_and_backward(layer, rois, torch.channels_last)
    torch.testing.assert_close(actual, expected)


def test_modulated_convolution_in_channels_last() -> None:
    torch.manual_seed(0)
    x, offset = torch.randn(2, 4, 6, 7), torch.randn(2, 18, 6, 7)
    mask, weight = torch.rand(2, 9, 6, 7), torch.randn(4, 4, 3, 3)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        tensors = [t.clone(memory_format=memory_format) for t in (x, offset, mask, weight)]
        tensors = [tensor.requires_grad_() for tensor in tensors]
        output = mmcv.ops.modulated_deform_conv2d(*tensors, None, 1, 1)
        grad = torch.arange(float(output.numel())).view(output.shape)
        results.append([output, *torch.autograd.grad(output, tensors, grad)])
    torch.testing.assert_close(*results)


def test_roi_align_agrees_with_torchvision() -> None:
    def of_torchvision(features: Tensor, rois: Tensor) -> Tensor:
        return torchvision.ops.roi_align(features, rois, (5, 7), 0.5, 2, aligned=True)

    layer, rois = LAYERS['RoIAlign']
    actual = forward_and_backward(layer, rois, torch.channels_last)
    expected = forward_and_backward(of_torchvision, rois, torch.contiguous_format)
    torch.testing.assert_close(actual, expected)


def test_rois_of_other_strides() -> None:
    layer, rois = LAYERS['RoIAlign']
    expected = forward_and_backward(layer, rois, torch.contiguous_format)
    actual = forward_and_backward(layer, rois.t().contiguous().t(), torch.contiguous_format)
    torch.testing.assert_close(actual, expected)

"""Tests of the Shunted Transformer alone: maps smaller than a kernel, and halves of heads."""

import pytest
import torch
from networks import NETWORKS
from synthetic import standard_normal

from mmhatnet.backbones.shunted import FloorPatchConv


@pytest.mark.parametrize('size', [2, 4])
@pytest.mark.parametrize('sides', [(1, 1), (1, 9), (7, 3), (11, 8)])
@torch.no_grad()
def test_patches_are_whole_or_filled_with_zeros(size: int, sides: tuple[int, int]) -> None:
    """Computes them position by position. The golden features have no inputs below 24 pixels."""
    conv, (height, width) = FloorPatchConv(3, 5, size).double(), sides
    x = standard_normal('patches', (1, 3, height, width))
    rows, columns = max(height // size, 1), max(width // size, 1)
    expected = conv.bias.view(1, 5, 1, 1).repeat(1, 1, rows, columns)
    for y in range(min(height, rows * size)):
        for z in range(min(width, columns * size)):
            part = conv.weight[:, :, y % size, z % size] @ x[0, :, y, z]
            expected[0, :, y // size, z // size] += part
    torch.testing.assert_close(conv(x), expected)


def test_heads_that_do_not_fit_are_named() -> None:
    network = NETWORKS['shunted']
    with pytest.raises(ValueError, match='embed_dims=16 must be a multiple of 2 x head_dim=16'):
        network.network(dict(network.small, embed_dims=(16, 16, 32, 32), head_dim=16))
    with pytest.raises(ValueError, match='embed_dims=20 cannot be divided by head_dim=8'):
        network.network(dict(network.small, embed_dims=(16, 16, 32, 20)))

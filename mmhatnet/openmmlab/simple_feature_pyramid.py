"""ViTDet's neck, which makes a pyramid of the one feature of a plain vision transformer.

MMDetection has it in a project folder, which is not installed.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmhatnet.backbones.layers import LayerNorm2d

NUM_LEVELS = 4  # of strides 4, 8, 16 and 32


class NormedConv(nn.Conv2d):
    """A convolution that keeps the size, without bias, and layer normalization."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        self.norm = LayerNorm2d(out_channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H, W)."""
        return self.norm(super().forward(x))


def up(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    """Doubles height and width."""
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """The simple feature pyramid of ViTDet (Li et al., arXiv 2203.16527).

    It makes each level of the one feature by itself, of stride 16: by transposed convolutions, as
    it is, or by pooling. It takes any plain vision transformer and any size.

    Args:
        in_channels (int): Channels of the backbone's feature, a multiple of 4.
        out_channels (int): Channels of all levels. Defaults to 256.
        start_level (int): The first level, of 0 (stride 4) to 3 (stride 32). Defaults to 0.
        num_outs (int): The number of levels. Those after stride 32 take every second position of
            the one before. Defaults to 4.
        init_cfg (dict | list[dict], optional): Initialization, as MMEngine defines it. Defaults to
            None: PyTorch's.

    The names of the weights are those of ViTDet's published code.

    Raises:
        ValueError: If an argument or an input is impossible.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        start_level: int = 0,
        num_outs: int = NUM_LEVELS,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not isinstance(in_channels, int) or in_channels < 1 or in_channels % 4:
            raise ValueError(
                f'in_channels={in_channels} must be a multiple of 4: the channels of the one '
                'feature of the backbone'
            )
        if start_level not in range(NUM_LEVELS):
            raise ValueError(f'start_level={start_level} must be from 0 to {NUM_LEVELS - 1}')
        if not isinstance(num_outs, int) or num_outs < 1:
            raise ValueError(f'num_outs={num_outs} must be a positive whole number')
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_outs = num_outs
        half, quarter = in_channels // 2, in_channels // 4
        starts: list[tuple[list[nn.Module], int]] = [
            (
                [
                    up(in_channels, half),
                    LayerNorm2d(half, eps=1e-6),
                    nn.GELU(),
                    up(half, quarter),
                ],
                quarter,
            ),
            ([up(in_channels, half)], half),
            ([], in_channels),
            ([nn.MaxPool2d(2, ceil_mode=True)], in_channels),
        ]
        self.levels = range(start_level, min(start_level + num_outs, NUM_LEVELS))
        for level in self.levels:
            start, channels = starts[level]
            convs = NormedConv(channels, out_channels, 1), NormedConv(out_channels, out_channels, 3)
            self.add_module(self.name(level), nn.Sequential(*start, *convs))

    @staticmethod
    def name(level: int) -> str:
        return f'simfp_{level + 2}'  # the binary logarithm of its stride

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Makes the levels.

        Args:
            inputs (Sequence[Tensor]): The one feature of the backbone, (N, in_channels, h, w), of
                stride 16.

        Returns:
            tuple[Tensor]: ``num_outs`` contiguous levels (N, out_channels, h', w'), the finest one
            first. That of stride 32 has ceil(h / 2) x ceil(w / 2) positions.

        Raises:
            ValueError: If there are several features, or one of another shape.
        """
        shapes = [tuple(feature.shape) for feature in inputs]
        if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != self.in_channels:
            raise ValueError(
                f'SimpleFeaturePyramid takes one feature (N, {self.in_channels}, h, w), not '
                f"{shapes}: set the backbone's out_indices, and in_channels of the neck"
            )
        levels = [getattr(self, self.name(level))(inputs[0]).contiguous() for level in self.levels]
        while len(levels) < self.num_outs:
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)

"""The base class of the networks: stages, arguments, freezing and checkpoints.

A network supplies a stem, a downsampling and the blocks of its stages.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmhatnet.backbones.layers import to_channels_last
from mmhatnet.checkpoints.keys import (
    Published,
    check_architecture,
    lift_backbone,
    to_native_keys,
)
from mmhatnet.errors import CheckpointError


class Stage(nn.Module):
    """Blocks of one resolution, after a downsampling in all stages but the first.

    Args:
        downsample (nn.Module): What comes before the blocks.
        blocks (Sequence[nn.Module]): Modules that map (N, C, H, W) to (N, C, H, W).
        with_cp (bool): Whether to recompute each block in the backward pass.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Features of the stage before, or of the stem, to (N, C, H, W)."""
        x = self.downsample(x)
        for block in self.blocks:
            x = self.call(block, x)
        return x

    def call(self, block: nn.Module, x: Tensor) -> Tensor:
        """Runs a block, and arranges that the backward pass recomputes it if that is wanted."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self.run_block, block, x, use_reentrant=False)
        return self.run_block(block, x)

    def run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        """Calls a block. A subclass passes on what the blocks of the stage share."""
        return block(x)


class Backbone(BaseModule):
    """A backbone with one feature per stage.

    A subclass calls ``_build`` at the end of its ``__init__``.

    Args:
        arch (str | dict): The name of a variant, or a dict of settings as in ``ARCHS``.
        in_channels (int): Channels of the input.
        out_indices (Sequence[int]): The stages whose features are returned, in this order. Stages
            after the last one of them are not built: they would be parameters without a gradient,
            on which distributed training fails.
        drop_path_rate (float): Stochastic depth of the last block of the architecture. It grows
            linearly from 0 at the first one.
        frozen_stages (int): -1 freezes nothing, 0 the stem, n the stem and the first n stages:
            their parameters get no gradients and they stay in evaluation mode.
        init_cfg (dict | list[dict], optional): Initialization, as MMEngine defines it.
        norm_eval (bool): Whether batch normalization keeps its running statistics in training.
            Defaults to False.
        depths (Sequence[int], optional): The number of blocks of each stage. Defaults to None,
            which means those of the architecture.

    Attributes:
        ARCHS (dict[str, dict]): The settings of each variant. A tuple has a value for each stage.
            ``embed_dims`` (channels) and ``depths`` (blocks) are required, but for a network that
            passes ``depths``, whose stages may have the same channels.
        ARCH_DEFAULTS (dict): Settings that a variant need not name.
        CHECKPOINT (Published): The names of the tensors in published checkpoints.
        published (Published): The same for this instance.
        settings (dict): The settings of this instance.
        embed_dims (tuple[int]): Channels of all stages of the architecture.
        depths (tuple[int]): Their numbers of blocks.
        out_channels (tuple[int]): Channels of the returned features.
        out_strides (tuple[int]): Their strides in pixels.

    Raises:
        ValueError: If an argument is impossible.
    """

    ARCHS: ClassVar[dict[str, dict[str, Any]]]
    ARCH_DEFAULTS: ClassVar[dict[str, Any]] = {}
    CHECKPOINT: ClassVar[Published]

    stem: nn.Module
    stages: nn.ModuleList
    _loaded: int | None

    def __init__(
        self,
        arch: str | dict,
        in_channels: int,
        out_indices: Sequence[int],
        drop_path_rate: float,
        frozen_stages: int,
        init_cfg: dict | list[dict] | None,
        norm_eval: bool = False,
        depths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.published = self.CHECKPOINT
        self.settings = self.resolve_arch(arch)
        dims = self.settings['embed_dims']
        self.depths = tuple(self.settings['depths'] if depths is None else depths)
        self.embed_dims = dims if isinstance(dims, tuple) else (dims,) * len(self.depths)
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
        check_rate('drop_path_rate', drop_path_rate)
        self.in_channels = in_channels
        self.out_indices = tuple(out_indices)
        self.out_channels = tuple(self.embed_dims[index] for index in self.out_indices)
        self.out_strides = tuple(4 * 2**index for index in self.out_indices)
        self.drop_path_rate = drop_path_rate
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

    def _build(
        self,
        stem: nn.Module,
        downsample: Callable[[int, int], nn.Module],
        block: Callable[[int, int, float], nn.Module],
        stage: Callable[[nn.Module, list[nn.Module]], nn.Module],
    ) -> None:
        """Builds the stem and the stages that are needed, and freezes what is to stay.

        Args:
            stem (nn.Module): (N, in_channels, H, W) to the input of the first stage.
            downsample (Callable): Makes what is between two stages from their channels.
            block (Callable): Makes a block from its stage, its index in it and its drop path rate.
            stage (Callable): Makes a stage from its downsampling and its blocks.
        """
        self.stem = stem
        self.stages = nn.ModuleList()
        dims, depths = self.embed_dims, self.depths
        rates = torch.linspace(0, self.drop_path_rate, sum(depths), device='cpu').tolist()
        for index in range(max(self.out_indices) + 1):
            # In this order, in which earlier versions drew their initial weights.
            blocks = [block(index, i, rates.pop(0)) for i in range(depths[index])]
            before = downsample(dims[index - 1], dims[index]) if index else nn.Identity()
            self.stages.append(stage(before, blocks))
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the features of a batch of images.

        Args:
            x (Tensor): Images of any size, (N, in_channels, H, W).

        Returns:
            tuple[Tensor]: A feature (N, out_channels[i], H', W') for each of ``out_indices``. H' is
            H / out_strides[i] and W' is W / out_strides[i], rounded up where the network does not
            say otherwise. Features are contiguous, as those of other backbones, because not every
            operator supports channels-last inputs: mmcv's compiled RoIAlign reads them wrongly.

        Raises:
            ValueError: If the input has another number of dimensions or channels.
        """
        self.check_input(x)
        features = {}
        x = to_channels_last(self.stem(x))
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                features[index] = x.contiguous()
        return tuple(features[index] for index in self.out_indices)

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict[str, Any]:
        """Returns the complete settings of a named or custom architecture.

        Raises:
            ValueError: If the name or a setting is unknown or missing, if the settings of the
                stages differ in number, or if the heads do not divide a stage's channels.
        """
        if isinstance(arch, str):
            if arch not in cls.ARCHS:
                raise ValueError(
                    f'arch={arch!r} is not a {cls.CHECKPOINT.network} variant: '
                    f'choose one of {list(cls.ARCHS)}'
                )
            arch = cls.ARCHS[arch]
        example = {**cls.ARCH_DEFAULTS, **next(iter(cls.ARCHS.values()))}
        settings = {**cls.ARCH_DEFAULTS, **arch}
        unknown = [key for key in settings if key not in example]
        missing = [key for key in example if key not in settings]
        if unknown or missing:
            raise ValueError(
                f'arch={arch!r}: unknown settings {unknown}, missing settings {missing}; '
                f'a custom architecture has the settings {list(example)}'
            )
        per_stage = [key for key, value in example.items() if isinstance(value, tuple)]
        settings |= {key: tuple(settings[key]) for key in per_stage}
        lengths = {key: len(settings[key]) for key in per_stage}
        if len(set(lengths.values())) > 1:
            raise ValueError(f'arch={arch!r}: the numbers of stages differ: {lengths}')
        dims = settings['embed_dims']
        for stage, channels in enumerate(dims if isinstance(dims, tuple) else (dims,)):
            key = 'head_dim' if 'head_dim' in settings else 'num_heads'
            divisor = settings[key] if key == 'head_dim' else settings[key][stage]
            if channels % divisor:
                raise ValueError(f'embed_dims={channels} cannot be divided by {key}={divisor}')
        return settings

    def check_input(self, x: Tensor) -> None:
        """Raises a ValueError if the input has another number of dimensions or channels."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} takes images (N, {self.in_channels}, H, W), '
                f'not {tuple(x.shape)}'
            )

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Returns the layer of a parameter, for layer-wise decay of the learning rate.

        Args:
            param_name (str): Name of a parameter of the model that holds the backbone.
            prefix (str): What the names of the backbone's parameters start with there.

        Returns:
            tuple[int, int]: The layer and the number of layers. The stem is layer 0, each block is
            one, with the downsampling that follows it, and the rest of the model is the last one.
            What the blocks of a stage share belongs to the first of them, a norm after them to the
            last.
        """
        depths = self.depths[: len(self.stages)]
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        module, *path = param_name.removeprefix(prefix).split('.')
        if module == 'stem':
            return 0, num_layers
        stage, part, index = int(path[0]), path[1], path[2]
        if part == 'blocks':
            block = int(index) + 1
        else:
            block = dict(downsample=0, norm=depths[stage]).get(part, 1)
        return sum(depths[:stage]) + block, num_layers

    def train(self, mode: bool = True) -> 'Backbone':
        """Sets the training mode, in which the frozen stages stay in evaluation mode.

        With ``norm_eval``, all batch normalization does so, too.
        """
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages >= 0:
            for module in (self.stem, *self.stages[: self.frozen_stages]):
                module.eval()
                module.requires_grad_(False)

    def init_weights(self) -> None:
        """Initializes as ``init_cfg`` says. A checkpoint is read without executing its content.

        Raises:
            CheckpointError: If the checkpoint cannot be used, or no tensor of it is the backbone's.
        """
        self._loaded = None
        try:
            with _load_weights_only():
                super().init_weights()
        except AssertionError as error:  # MMEngine's, about the prefix that init_cfg names
            raise CheckpointError(
                f'{self.init_cfg}: {error}; leave the prefix out, and the backbone is found.'
            ) from error
        if self._loaded is not None:
            print_log(self.require_loaded(), logger='current')

    def require_loaded(self) -> str:
        """Tells how much of the checkpoint that ``init_cfg`` names was the backbone's.

        Raises:
            CheckpointError: If nothing was.
        """
        found = f'{self._loaded} of {len(self.state_dict())} tensors of the backbone are in'
        if not self._loaded:
            raise CheckpointError(
                f'{found} the checkpoint of {self.init_cfg}: name one of a '
                f'{self.CHECKPOINT.network}, whose prefix is found without being named, or start '
                'from random weights with init_cfg=None.'
            )
        return f'{found} the checkpoint of {self.init_cfg}'

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        if not prefix:
            lift_backbone(state_dict, self.published)
        expected = self.state_dict()
        to_native_keys(state_dict, self.published, expected, prefix)
        self._loaded = sum(prefix + name in state_dict for name in expected)
        if self._loaded:
            check_architecture(state_dict, prefix, type(self), expected)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _load_weights_only() -> AbstractContextManager[None]:
    try:
        from mmhatnet.checkpoints.safe_loader import load_weights_only
    except ModuleNotFoundError as error:
        if error.name != 'cv2':
            raise
        return nullcontext()  # without OpenCV MMEngine cannot read a checkpoint either
    return load_weights_only()


def check_rate(name: str, rate: float) -> None:
    """Raises a ValueError if a drop rate is impossible."""
    if not 0 <= rate < 1:
        raise ValueError(f'{name}={rate} must be at least 0 and less than 1')

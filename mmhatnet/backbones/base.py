"""What the networks share and what computes nothing: arguments, freezing and checkpoints.

Each network has its modules and its ``forward`` in its own file.
"""

from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mmhatnet.checkpoints.keys import (
    Published,
    check_architecture,
    lift_backbone,
    to_native_keys,
)
from mmhatnet.checkpoints.safe_loader import load_weights_only
from mmhatnet.errors import CheckpointError


class Backbone(BaseModule):
    """A backbone whose subclass builds ``self.stem`` and ``self.stages``.

    A stage has ``blocks`` and whatever is between it and the one before inside ``downsample``.
    Stages after the last one of ``out_indices`` are not built: they would be parameters without a
    gradient, on which distributed training fails. The subclass ends with ``_freeze_stages()``.

    Args:
        settings (dict): What ``resolve_arch`` returns.
        in_channels (int): Channels of the input.
        out_indices (Sequence[int]): The stages whose features are returned, in this order.
        drop_path_rate (float): Stochastic depth of the last block of the architecture.
        frozen_stages (int): -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        norm_eval (bool): Whether batch normalisation keeps its running statistics in training.
        init_cfg (dict | list[dict], optional): Initialisation, as MMEngine defines it.

    Attributes:
        ARCHS (dict[str, dict]): Settings of each variant, those of a stage as a tuple. They have
            ``embed_dims`` (channels) and ``depths`` (blocks) at least.
        ARCH_DEFAULTS (dict): Settings that a variant need not name.
        CHECKPOINT (Published): The names of published checkpoints.
        embed_dims (tuple[int]): Channels of all stages of the architecture.
        out_channels (tuple[int]): Channels of the returned features.
        out_strides (tuple[int]): Their strides in pixels.
        drop_path_rates (list[float]): A rate for each block of the architecture, from 0.

    Raises:
        ValueError: If an argument is impossible.
    """

    ARCHS: dict[str, dict]
    ARCH_DEFAULTS: dict = {}
    CHECKPOINT: Published

    def __init__(
        self,
        settings: dict,
        in_channels: int,
        out_indices: Sequence[int],
        drop_path_rate: float,
        frozen_stages: int,
        norm_eval: bool,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        super().__init__(init_cfg)
        self.embed_dims = settings['embed_dims']
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
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        total_depth = sum(settings['depths'])
        self.drop_path_rates = torch.linspace(0, drop_path_rate, total_depth, device='cpu').tolist()

    @classmethod
    def resolve_arch(cls, arch: str | dict) -> dict:
        """Returns the complete settings of a named or custom architecture.

        Raises:
            ValueError: If the name or a setting is unknown or missing, or if the settings of the
                stages differ in number.
        """
        if isinstance(arch, str):
            if arch not in cls.ARCHS:
                raise ValueError(
                    f'arch={arch!r} is not a {cls.CHECKPOINT.network} variant: '
                    f'choose one of {list(cls.ARCHS)}'
                )
            return {**cls.ARCH_DEFAULTS, **cls.ARCHS[arch]}

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
        if len(set(lengths.values())) != 1:
            raise ValueError(f'arch={arch!r}: the numbers of stages differ: {lengths}')
        return settings

    def check_input(self, x: Tensor) -> None:
        """Raises a ValueError if the input has another number of dimensions or channels."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} takes images (N, {self.in_channels}, H, W), '
                f'not {tuple(x.shape)}'
            )

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Tells the layer of a parameter, for layer-wise decay of the learning rate.

        Args:
            param_name (str): Name of a parameter of the model that holds the backbone.
            prefix (str): What the names of the backbone's parameters start with there.

        Returns:
            tuple[int, int]: The layer and the number of layers. The stem is layer 0, each block is
            one, with the downsampling that follows it, and the rest of the model is the last one.
            What the blocks of a stage share belongs to the first of them, a norm after them to the
            last.
        """
        depths = [len(stage.blocks) for stage in self.stages]
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

        So does all batch normalisation where ``norm_eval`` asks for it.
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
        """Initialises as ``init_cfg`` says. A checkpoint is read without executing its content.

        Raises:
            CheckpointError: If the checkpoint cannot be used, or no tensor of it is the backbone's.
        """
        self._loaded = None
        try:
            with load_weights_only():
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

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if not prefix:
            lift_backbone(state_dict, self.CHECKPOINT)
        expected = self.state_dict()
        to_native_keys(state_dict, self.CHECKPOINT, expected, prefix)
        self._loaded = sum(prefix + name in state_dict for name in expected)
        if self._loaded:
            check_architecture(state_dict, prefix, type(self), expected)
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_rate(name: str, rate: float) -> None:
    """Raises a ValueError if a rate of dropping is impossible."""
    if not 0 <= rate < 1:
        raise ValueError(f'{name}={rate} must be at least 0 and less than 1')

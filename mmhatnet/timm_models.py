"""HAT-Net for timm. Importing this module registers ``hatnet_tiny`` to ``hatnet_large``.

timm does not discover the models of other packages, so import this module before you create one.
``import mmhatnet`` alone does not import timm.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from mmengine.model import trunc_normal_init
from timm.layers import ClassifierHead, get_device_dtype
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mmhatnet.backbones.hatnet import HATNet
from mmhatnet.checkpoints.keys import lift_backbone, to_native_keys

__all__ = ['HATNetClassifier']
RELEASE = 'https://github.com/yun-liu/HAT-Net/releases/download/v2.0'


class HATNetClassifier(nn.Module):
    """A HATNet with timm's classifier and timm's interface.

    Args:
        arch (str | dict): The variant, as HATNet takes it.
        num_classes (int): Number of classes, or 0 for no classifier. Defaults to 1000.
        in_chans (int): Channels of the input. Defaults to 3.
        global_pool (str): timm's name of the pooling before the classifier. '' is for models
            without a classifier: they return the feature (N, C, H, W). Defaults to 'avg'.
        drop_rate (float): Dropout before the classifier. The paper's code trains with 0.2.
            Defaults to 0, as in all of timm's models.
        proj_drop_rate (float): Dropout on the outputs of attention and MLP. Defaults to 0.
        drop_path_rate (float): Stochastic depth of the last block. Defaults to 0.
        device (torch.device | str, optional): The device of the parameters.
        dtype (torch.dtype, optional): Their dtype.

    Attributes:
        num_classes (int): Number of classes, 0 without a classifier.
        num_features (int): Channels of the last feature.
        head_hidden_size (int): Channels after the pooling.
        feature_info (list[dict]): Channels, stride and module of the feature of each stage.

    Raises:
        ValueError: If an argument is impossible.
    """

    def __init__(
        self,
        arch: str | dict = 'small',
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        with nullcontext() if device is None else torch.device(device):
            self.backbone = HATNet(
                arch, in_chans, drop_rate=proj_drop_rate, drop_path_rate=drop_path_rate
            )
            self.num_features = self.backbone.out_channels[-1]
            self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.feature_info = [
            dict(num_chs=channels, reduction=stride, module=f'backbone.stages.{stage}')
            for stage, (channels, stride) in enumerate(
                zip(self.backbone.out_channels, self.backbone.out_strides)
            )
        ]
        self.apply(initialize)
        self.to(dtype=dtype)

    @property
    def head_hidden_size(self) -> int:
        return self.head.num_features

    def no_weight_decay(self) -> set[str]:
        """Returns no names: timm itself exempts biases and norms, and there is nothing else."""
        return set()

    def group_matcher(self, coarse: bool = False):
        """Groups parameters by the layers of ``HATNet.get_layer_depth``, or by stages if coarse."""

        def layer(name: str) -> int:
            return self.backbone.get_layer_depth(name, 'backbone.')[0]

        def stage(name: str) -> int:
            part, *path = name.removeprefix('backbone.').split('.')
            order = dict(stem=-1, head=len(self.backbone.stages))
            return order[part] if part in order else int(path[0])

        return stage if coarse else layer

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.backbone.stages:
            stage.with_cp = enable

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier and, if ``global_pool`` is given, the pooling before it."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, **get_device_dtype(self))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Computes the features of some stages.

        Args:
            x (Tensor): Images (N, in_chans, H, W).
            indices (int | Sequence[int], optional): Stages, where negative ones count from the
                end, or the number of last stages. Defaults to all.
            norm (bool): Has no effect, because no normalization follows the stages.
            stop_early (bool): Whether the first result is the feature of the last stage of
                ``indices`` instead of the network's. The stages after it are computed all the same,
                unless ``prune_intermediate_layers`` has removed them.
            output_fmt (str): 'NCHW'.
            intermediates_only (bool): Whether to return the second result alone.

        Returns:
            The last feature, and the list of the features of ``indices``.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f'output_fmt={output_fmt!r}: the features of HAT-Net are NCHW')
        features = self.backbone(x)
        taken, last = feature_take_indices(len(features), indices)
        intermediates = [features[stage] for stage in taken]
        if intermediates_only:
            return intermediates
        return features[last if stop_early else -1], intermediates

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes the stages after the last one of ``indices``, and the classifier.

        Args:
            indices (int | Sequence[int]): As in ``forward_intermediates``.
            prune_norm (bool): Has no effect, because no normalization follows the stages.
            prune_head (bool): Whether to remove the classifier even if no stage is removed.

        Returns:
            list[int]: The stages of ``indices``, counted from the first one.
        """
        taken, last = feature_take_indices(len(self.backbone.stages), indices)
        stages = last + 1
        if stages < len(self.backbone.stages):
            prune_head = True
            self.backbone.stages = self.backbone.stages[:stages]
            for name in ('out_indices', 'out_channels', 'out_strides'):
                setattr(self.backbone, name, getattr(self.backbone, name)[:stages])
            self.num_features = self.head.in_features = self.backbone.out_channels[-1]
        if prune_head:
            self.reset_classifier(0, '')
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to the last feature (N, num_features, H / 32, W / 32)."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature to (N, num_classes), or (N, head_hidden_size) for ``pre_logits``.

        Raises:
            ValueError: If there are classes, but no pooling.
        """
        if self.num_classes and not pre_logits and not self.head.global_pool.pool_type:
            raise ValueError(
                f"global_pool='' does not pool the feature for num_classes={self.num_classes}: "
                f"call reset_classifier({self.num_classes}, 'avg')"
            )
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) to (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def initialize(module: nn.Module) -> None:
    """Initializes as HATNet's default ``init_cfg`` does, without its log line per parameter."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_init(module, std=0.02)


def checkpoint_filter_fn(state_dict: dict, model: HATNetClassifier) -> dict:
    """Renames the tensors of a published checkpoint, or of the classifier for MMPretrain."""
    weights = dict(state_dict)
    lift_backbone(weights, HATNet.CHECKPOINT)
    to_native_keys(weights, HATNet.CHECKPOINT, model.backbone.state_dict())
    head = {'classifier.1.': 'head.fc.', 'head.fc.': 'head.fc.'}
    named = {}
    for name, tensor in weights.items():
        prefix = next((prefix for prefix in head if name.startswith(prefix)), '')
        named[head.get(prefix, 'backbone.') + name.removeprefix(prefix)] = tensor
    return named


def create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_model_with_cfg(
        HATNetClassifier,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(feature_cls='getter', out_indices=(0, 1, 2, 3)),
        **dict(dict(arch=variant.removeprefix('hatnet_')), **kwargs),
    )


default_cfgs = generate_default_cfgs(
    {
        f'hatnet_{arch}.in1k': dict(
            url=f'{RELEASE}/HAT-Net_{arch.title()}.pth',
            pool_size=(7, 7),
            first_conv='backbone.stem.conv1',
            classifier='head.fc',
            origin_url='https://github.com/yun-liu/HAT-Net',
            paper_name='Vision Transformers with Hierarchical Attention',
            paper_ids='arXiv:2106.03180',
        )
        for arch in ('tiny', 'small', 'medium', 'large')
    }
)


@register_model
def hatnet_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    return create('hatnet_tiny', pretrained, **kwargs)


@register_model
def hatnet_small(pretrained: bool = False, **kwargs) -> nn.Module:
    return create('hatnet_small', pretrained, **kwargs)


@register_model
def hatnet_medium(pretrained: bool = False, **kwargs) -> nn.Module:
    return create('hatnet_medium', pretrained, **kwargs)


@register_model
def hatnet_large(pretrained: bool = False, **kwargs) -> nn.Module:
    return create('hatnet_large', pretrained, **kwargs)

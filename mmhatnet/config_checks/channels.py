"""Compares the channels of a backbone with those of its images, neck and head."""

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS

from mmhatnet.backbones.base import Backbone
from mmhatnet.config_checks.settings import PACKAGES
from mmhatnet.config_walk import class_of, datasets_of
from mmhatnet.errors import ConfigError


def require_channels(cfg: Config, *splits: str) -> None:
    """Compares the backbone's channels with those of the images and of the neck or head.

    Raises:
        ConfigError: If they differ.
    """
    backbone = cfg.model.get('backbone') or {}
    network = class_of(MODELS, backbone)
    if not (network and issubclass(network, Backbone)):
        return
    try:
        with torch.device('meta'):
            built = network(**{key: value for key, value in backbone.items() if key != 'type'})
    except (TypeError, ValueError):
        return  # the backbone's own error message follows when it is built
    _require_features(cfg, built)
    _require_image_channels(cfg, built.in_channels, *splits)


def _require_features(cfg: Config, built: Backbone) -> None:
    neck, head = (cfg.model.get(part) or {} for part in ('neck', 'head'))
    dims, features = built.embed_dims, [*built.out_channels]
    if isinstance(neck.get('in_channels'), int):  # such a neck takes the last feature
        features = features[-1]
    for part, expected, given in (
        ('neck', neck.get('in_channels'), features),
        ('head', neck.get('type') == 'GlobalAveragePooling' and head.get('in_channels'), dims[-1]),
    ):
        if expected and type(expected) is type(given) and expected != given:
            raise ConfigError(
                f'{cfg.filename}: model.{part}.in_channels is {expected}, but model.backbone gives '
                f'{given}; set it to that, or inherit the config of this variant.'
            )


def _require_image_channels(cfg: Config, channels: int, *splits: str) -> None:
    others = []
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    mean = preprocessor.get('mean') or ()
    if len(mean) not in (0, 1, channels):
        others.append(f'data_preprocessor.mean has {len(mean)} values')
    for split in splits:
        for dataset in datasets_of(cfg, split):
            load, *rest = dataset.get('pipeline') or [{}]
            loaded = dict(color=3, grayscale=1).get(load.get('color_type', 'color'), channels)
            if load.get('type') != 'LoadImageFromFile' or loaded == channels:
                continue
            classes = (class_of(TRANSFORMS, transform) for transform in rest)
            packages = {getattr(cls, '__module__', '').partition('.')[0] for cls in classes}
            # A user's own transform may change the number of channels.
            if packages <= {*PACKAGES}:
                others.append(f"the {split} pipeline's LoadImageFromFile gives {loaded}")
    if others:
        raise ConfigError(
            f'{cfg.filename}: model.backbone.in_channels is {channels}, but {others[0]}; set '
            "in_channels, and mean and std of data_preprocessor, to the images' number of "
            "channels, and color_type where they are loaded to 'color' (3), 'grayscale' (1) or "
            "'unchanged' (what the files have)."
        )

"""Checks of a config before anything is built, and one-line messages of constructor errors."""

import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, Registry, init_default_scope

from mmhatnet.backbones.base import Backbone
from mmhatnet.config_walk import class_of, datasets_of
from mmhatnet.errors import ConfigError

# All frameworks have these registries. MMEngine warns about those that a framework lacks.
REGISTRIES = [
    'MODELS',
    'DATASETS',
    'TRANSFORMS',
    'METRICS',
    'HOOKS',
    'LOOPS',
    'OPTIMIZERS',
    'DATA_SAMPLERS',
]
PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmhatnet')
BUILD_ERRORS = (AssertionError, KeyError, TypeError, ValueError)
NO_SETTING = (
    '{} has no setting {!r}: it is misspelt, or inherited from a dict of another type; then add '
    '_delete_=True to the dict'
)


def parameters_of(settings: dict) -> set[str] | None:
    """Returns the parameters of the class of a dict, or None if they are unknown."""
    registries = (getattr(mmengine.registry, name) for name in REGISTRIES)
    classes = {class_of(registry, settings) for registry in registries} - {None}
    if len(classes) != 1:
        return None
    parameters = inspect.signature(classes.pop()).parameters
    # It is not known where **kwargs go.
    certain = all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    return set(parameters) if certain else None


def require_complete(cfg: Config, *splits: str) -> None:
    """Checks that a config has the settings that training ('train', 'val') or testing needs.

    Raises:
        ConfigError: If something is missing.
    """
    if not isinstance(cfg.get('model'), dict):
        raise ConfigError(
            f'{cfg.filename} has no model: inherit a config of this package, as in '
            "_base_ = __import__('mmhatnet').config_path('maskrcnn_hatnet.py')"
        )
    for split in splits:
        last = 'optim_wrapper' if split == 'train' else f'{split}_evaluator'
        parts = [f'{split}_dataloader', f'{split}_cfg', last]
        missing = [part for part in parts if cfg.get(part) is None]
        if missing and (split != 'val' or missing != parts):
            raise ConfigError(
                f'{cfg.filename} has no {missing[0]}, and {split} needs {", ".join(parts)}; '
                'to train without validation, leave out all settings of val.'
            )


def require_known_settings(cfg: Config) -> None:
    """Checks that the classes of a model's main modules have the settings in the config.

    Raises:
        ConfigError: If one does not.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    parts = [('model', cfg.model)]
    for where, part in parts:
        known = parameters_of(part)
        for key, value in part.items():
            if known is not None and key not in {*known, 'type', '_scope_'}:
                raise ConfigError(
                    f'{cfg.filename}: {where}: {NO_SETTING.format(part["type"], key)}.'
                )
            if key in ('backbone', 'neck', 'data_preprocessor') or key.endswith('head'):
                several = value if isinstance(value, (list, tuple)) else [value]
                parts += [(f'{where}.{key}', one) for one in several if isinstance(one, dict)]


@contextmanager
def build_errors_as_messages(cfg: Config) -> Iterator[None]:
    """Turns constructor errors into one-line messages.

    This applies to errors of OpenMMLab's packages and this one. Others keep their traceback.

    Raises:
        ConfigError: If a dict of the config cannot be built.
    """
    with _recorded_build_errors() as failed:
        try:
            yield
        except BUILD_ERRORS as error:
            what = failed.get(error)
            message = ' '.join(str(error.args[0] if error.args else '').split()).rstrip('.')
            # Python 3.13 continues with a suggestion.
            unknown = re.search(
                r"(\w+)\.__init__\(\) got an unexpected keyword \w+ '(\w+)'", message
            )
            missing = re.search(r'\w+\.__init__\(\) missing .*', message)
            nowhere = re.search(r'(\S+) is not in the (\S+) registry', message)
            if unknown and what:
                reason = NO_SETTING.format(*unknown.groups())
            elif nowhere and what:
                reason = (
                    f'there is no {nowhere[1]} in {nowhere[2]}; import your own with custom_imports'
                )
            elif what and message and (missing or isinstance(error, (AssertionError, ValueError))):
                reason = f'{what}: {message}'
            else:
                raise
            raise ConfigError(f'{cfg.filename}: {reason}.') from error


@contextmanager
def _recorded_build_errors() -> Iterator[dict[Exception, str | None]]:
    """Records errors of ``Registry.build`` and the innermost type that was being built.

    The type is None if code of other packages is involved in the error.
    """
    failed, build = {}, Registry.build

    def recording_build(registry: Registry, settings: dict, *args: object, **kwargs: object):
        try:
            return build(registry, settings, *args, **kwargs)
        except BUILD_ERRORS as error:
            if isinstance(settings, dict) and error not in failed:
                frames = traceback.walk_tb(error.__traceback__)
                modules = {frame.f_globals['__name__'].partition('.')[0] for frame, _ in frames}
                failed.clear()  # an earlier error was caught
                failed[error] = str(settings.get('type')) if modules <= {*PACKAGES} else None
            raise

    Registry.build = recording_build
    try:
        yield failed
    finally:
        Registry.build = build


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

"""Checks whether the settings that a job needs are there, and known to their classes."""

import inspect
from collections.abc import Iterator

import mmengine
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmhatnet.config_checks.unread import require_read
from mmhatnet.config_walk import class_of
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
            hint = '; to train without validation, set all of them to None' * (split == 'val')
            raise ConfigError(
                f'{cfg.filename} has no {missing[0]}, and {split} needs {", ".join(parts)}{hint}.'
            )


def require_known_settings(cfg: Config, *splits: str) -> None:
    """Checks that the settings of a config are read.

    Those are the settings at its top, and those of the model's main modules.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'. A prediction, with none, reads the test pipeline.

    Raises:
        ConfigError: If nothing reads one, or a class does not know it.
    """
    require_read(cfg, *(splits or ('test',)))
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


def hooks_of(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yields the dicts of the hooks of a config with their paths."""
    hooks = {f'default_hooks.{key}': hook for key, hook in (cfg.get('default_hooks') or {}).items()}
    hooks |= {f'custom_hooks.{i}': hook for i, hook in enumerate(cfg.get('custom_hooks') or [])}
    yield from ((where, hook) for where, hook in hooks.items() if isinstance(hook, dict))

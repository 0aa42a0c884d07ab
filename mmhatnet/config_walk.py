"""Finds the dicts of a config, their classes and its datasets."""

from collections.abc import Iterator

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, Registry


def type_name(settings: dict) -> str:
    """Returns the name of the type in a dict, without the scope before it."""
    name = settings.get('type', '')
    return name.split('.')[-1] if isinstance(name, str) else getattr(name, '__name__', str(name))


def class_of(registry: Registry, settings: dict) -> type | None:
    """Returns the class that a dict is built into, or None if it is unknown."""
    found = settings.get('type')
    if isinstance(found, str):
        with registry.switch_scope_and_registry(settings.get('_scope_')) as scoped:
            found = scoped.get(found)
    return found if isinstance(found, type) else None


def dicts_of(settings: object, path: str = '') -> Iterator[tuple[str, dict]]:
    """Yields all dicts inside of settings with their paths, outer ones first."""
    if isinstance(settings, dict):
        yield path, settings
        for key, value in settings.items():
            yield from dicts_of(value, f'{path}.{key}')
    elif isinstance(settings, (list, tuple)):
        for i, value in enumerate(settings):
            yield from dicts_of(value, f'{path}[{i}]')


def datasets_of(cfg: Config, split: str) -> Iterator[ConfigDict]:
    """Yields the settings of a split's datasets that read files, without their wrappers."""
    yield from _inner_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset'))


def _inner_datasets(settings: ConfigDict | None) -> Iterator[ConfigDict]:
    if not isinstance(settings, dict):
        return
    if 'dataset' in settings:
        yield from _inner_datasets(settings['dataset'])
    elif 'datasets' in settings:
        for wrapped in settings['datasets']:
            yield from _inner_datasets(wrapped)
    else:
        yield settings


def build_unread(settings: ConfigDict) -> BaseDataset:
    """Builds a dataset that has read nothing yet."""
    return DATASETS.build({**settings, 'pipeline': [], 'lazy_init': True})

"""Reading a user's config and options, and saying in one sentence what is wrong with them."""

import inspect
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import mmengine.config.config
from mmengine.config import Config, DictAction
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIMIZERS,
    TRANSFORMS,
    Registry,
    init_default_scope,
)
from mmengine.runner import FlexibleRunner, Runner

from mmhatnet.backbones.archs import resolve_arch
from mmhatnet.preflight import inner_datasets

REGISTRIES = (MODELS, DATASETS, TRANSFORMS, METRICS, HOOKS, LOOPS, OPTIMIZERS, DATA_SAMPLERS)
CHECKPOINTS = ('.pth', '.pt', '.ckpt', '.safetensors')
CHANNELS = (
    '{}: model.backbone.in_channels is {}, but {}; set in_channels, and mean and std of '
    "data_preprocessor, to the pictures' number of channels, and color_type where they are loaded "
    "to 'color' (3), 'grayscale' (1) or 'unchanged' (what the files have)."
)
# What tools read at the top of a config, beside the arguments of the runners.
TOP_LEVEL = {
    *inspect.signature(Runner).parameters,
    *inspect.signature(FlexibleRunner).parameters,
    *('find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'tta_model', 'tta_pipeline'),
}


class SettingsAction(DictAction):
    """Parses ``--cfg-options``, and refuses what is none."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for word in values:
            key, equals, value = word.partition('=')
            if not equals and Path(word).suffix in ('.py', '.json', '.yaml', '.yml', *CHECKPOINTS):
                _refuse(word, f'files come before {option_string}, and settings are key=value')
            if not equals or not all(key.split('.')):
                _refuse(word, 'settings are key=value, with no white space around the sign')
            if re.match(r'[\'"]*(dict\(|\{\s*[\'"])', value):
                _refuse(word, f'a dict is given by its keys, as in {key}.KEY=VALUE')
            try:
                self._parse_iterable(value)
            except (AssertionError, RecursionError):
                _refuse(word, f'the brackets do not pair up; a list is {key}="[a,b]"')
        super().__call__(parser, namespace, values, option_string)


def _refuse(option: str, reason: str) -> None:
    raise SystemExit(f'--cfg-options {option}: {reason}.')


def read_config(path: str) -> Config:
    """Reads a config.

    Raises:
        SystemExit: If there is none, or it or one that it inherits cannot be read, with the file
            and the line.
    """
    suffix = Path(path).suffix
    if suffix in CHECKPOINTS:
        raise SystemExit(f'{path} is a checkpoint: the config comes first, as in CONFIG {path}.')
    if Path(path).is_dir():
        raise SystemExit(f'{path} is a folder: name the config in it.')
    if not Path(path).is_file():
        raise SystemExit(f'There is no config {path}: ours are in configs/.')
    if suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise SystemExit(f'{path} is no config: configs are .py, .json or .yaml files.')
    module = mmengine.config.config
    module.open = _open_without_mark
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is code, which may raise anything
        *above, file, line = _place(error, path)
        reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
        if above and not Path(file).is_file():
            file, reason = above[-1], f'it inherits {os.path.normpath(file)}, which is not there'
        elif isinstance(error, SyntaxError):
            line, reason = error.lineno or line, f'syntax error: {error.msg}'
        place = f'{file}, line {line}' if line else file
        raise SystemExit(f'The config cannot be read: {place}: {reason.rstrip(".")}.') from error
    finally:
        del module.open


def _open_without_mark(file, mode: str = 'r', **settings):
    """Takes the place of open where MMEngine reads configs, which Windows begins with a mark."""
    if mode == 'r' and settings.get('encoding') == 'utf-8':
        settings['encoding'] = 'utf-8-sig'
    return open(file, mode, **settings)


def _place(error: Exception, path: str) -> list:
    """The files that were being read when an error came up, and the line of the last one's code."""
    files, line = [path], None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ('_file2dict', '_parse_lazy_import'):
            files, line = [*files, frame.f_locals['filename']], None
        elif frame.f_code.co_filename in (files[-1], os.path.abspath(files[-1])):
            line = number
    # The first one is read as an absolute path, and named as the user names it.
    return [path, *files[2:], line]


def merge_options(cfg: Config, options: Mapping[str, object]) -> None:
    """Overrides settings of a config.

    Raises:
        SystemExit: If one has no place in the config, or its class does not know it.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    replaced = {key.removesuffix('._delete_') for key in options if key.endswith('._delete_')}
    for key, value in options.items():
        if not any(f'{key}.'.startswith(f'{other}.') for other in replaced):
            _require_place(cfg, key, value)
    try:
        cfg.merge_from_dict(dict(options))
    except (AttributeError, KeyError, TypeError) as error:
        _refuse(' '.join(options), f'they do not fit {cfg.filename}: {error}')


def _require_place(cfg: Config, key: str, value: object) -> None:
    """Refuses an option that has no place in the config, or another kind of value."""
    node, parts = cfg._cfg_dict, key.split('.')
    for depth, part in enumerate(parts):
        where, last = '.'.join(parts[:depth]), depth == len(parts) - 1
        if isinstance(node, dict):
            if part not in node:
                return _require_known(node, key, depth)
            node = node[part]
        elif isinstance(node, list) and node and isinstance(node[0], dict):
            if not (part.isdigit() and int(part) < len(node)):
                _refuse(key, f'{where} is a list, with the places {where}.0 to {len(node) - 1}')
            node = node[int(part)]
        elif isinstance(node, (list, tuple)):
            _refuse(key, f'{where} is {node}; give all of it, as in {where}="[a,b]"')
        else:
            _refuse(
                key,
                f'{where} is {node!r} in {cfg.filename} and has no settings of its own; to put a '
                f'dict there, add {where}._delete_=True and {where}.type=TYPE',
            )
        if last and isinstance(value, str) and not isinstance(node, str):
            if value.lower() in ('none', 'null') and (node is None or isinstance(node, dict)):
                _refuse(f'{key}={value}', 'nothing is written None')
            if isinstance(node, dict) and 'type' in node:
                _refuse(f'{key}={value}', f'it is a dict; its type is {key}.type, or give None')
    pair = isinstance(value, list) and [type(number) for number in value] == [int, int]
    if isinstance(node, float) and pair:
        numbers = ','.join(map(str, value))
        _refuse(
            f'{key}={numbers}', f'it is one number, {node}; decimals have a point, and a pair is ()'
        )


def _require_known(node: dict, key: str, depth: int) -> None:
    """Refuses a new setting that is another one misspelt, or says so where that is not sure."""
    known = _parameters(node) if depth else TOP_LEVEL
    meant = key.split('.')
    name = meant[depth]
    if known is not None and name in known:
        return
    similar = get_close_matches(name, {*map(str, node), *(known or ())}, n=1, cutoff=0.8)
    if not similar or similar[0].rstrip('0123456789') == name.rstrip('0123456789'):
        return
    meant[depth] = similar[0]
    if known is not None:
        _refuse(key, f'there is no setting {name!r}; perhaps {".".join(meant)} is meant')
    print(
        f'--cfg-options {key}: {name!r} is new in the config; perhaps {".".join(meant)} is meant.'
    )


def _parameters(settings: dict) -> set[str] | None:
    """What the class of a dict takes, or None where that is not known for sure."""
    kinds = (_find_class(registry, settings) for registry in REGISTRIES)
    kind = next((kind for kind in kinds if kind), None)
    parameters = inspect.signature(kind).parameters if kind else {}
    # What one passes on by **kwargs need not go to the class that it inherits from.
    certain = kind and all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    return set(parameters) if certain else None


def _find_class(registry: Registry, settings: dict) -> type | None:
    name = settings.get('type')
    if not isinstance(name, str):
        return name if inspect.isclass(name) else None
    with registry.switch_scope_and_registry(settings.get('_scope_')) as scoped:
        kind = scoped.get(name)
    return kind if inspect.isclass(kind) else None


def require_complete(cfg: Config, *splits: str) -> None:
    """Checks that a config has what training ('train', 'val') or testing ('test') needs.

    Raises:
        SystemExit: If something is missing.
    """
    if not isinstance(cfg.get('model'), dict):
        raise SystemExit(
            f'{cfg.filename} has no model; a config inherits one of ours, as in '
            "_base_ = __import__('mmhatnet').config_path('maskrcnn_hatnet.py')"
        )
    for split in splits:
        parts = [f'{split}_dataloader', f'{split}_cfg', f'{split}_evaluator']
        if split == 'train':
            parts[2] = 'optim_wrapper'
        missing = [part for part in parts if not cfg.get(part) and cfg.get(part) != {}]
        if split == 'val' and len(missing) == len(parts):
            continue
        if missing:
            raise SystemExit(
                f'{cfg.filename} has no {missing[0]}, and {split} needs {", ".join(parts)}'
                + ('; to train without validation, all three are None' * (split == 'val'))
                + '.'
            )


def require_known_settings(cfg: Config) -> None:
    """Checks that the classes of a model's large parts take the settings that a config gives them.

    Raises:
        SystemExit: If one does not.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    parts = [('model', cfg.model)]
    for name, part in parts:
        known = _parameters(part)
        for key, value in part.items():
            if known is not None and key not in {*known, 'type', '_scope_'}:
                raise SystemExit(f'{cfg.filename}: {_unknown(part["type"], name, key, known)}.')
            if key in ('backbone', 'neck', 'data_preprocessor') or key.endswith('head'):
                several = value if isinstance(value, (list, tuple)) else [value]
                parts += [(f'{name}.{key}', one) for one in several if isinstance(one, dict)]


def _unknown(kind: str, part: str, key: str, known: Iterable[str]) -> str:
    similar = get_close_matches(key, known, n=1, cutoff=0.8)
    return f'{kind} has no setting {key!r} ({part}.{key}); ' + (
        f'perhaps {similar[0]} is meant'
        if similar
        else 'a dict that changes an inherited type takes _delete_=True, so that it inherits no '
        'other setting'
    )


def require_channels(cfg: Config, *splits: str) -> None:
    """Checks HAT-Net's channels against those of the pictures and of what uses its features.

    Raises:
        SystemExit: If they differ.
    """
    backbone = cfg.model.get('backbone') or {}
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if backbone.get('type') != 'HATNet':
        return
    try:
        dims = resolve_arch(backbone.get('arch', 'small'))['embed_dims']
        features = [dims[i] for i in backbone.get('out_indices', range(len(dims)))]
    except (IndexError, TypeError, ValueError):
        return  # the backbone itself says what is wrong
    neck, head = cfg.model.get('neck') or {}, cfg.model.get('head') or {}
    for part, expected, given in (
        ('neck', neck.get('in_channels'), features),
        ('head', neck.get('type') == 'GlobalAveragePooling' and head.get('in_channels'), dims[-1]),
    ):
        if expected and type(expected) is type(given) and expected != given:
            raise SystemExit(
                f'{cfg.filename}: model.{part}.in_channels is {expected}, but model.backbone gives '
                f'{given}; set it to that, or inherit the config of this variant.'
            )
    channels, mean = backbone.get('in_channels', 3), preprocessor.get('mean') or ()
    if len(mean) not in (0, 1, channels):
        given = f'data_preprocessor.mean has {len(mean)} values'
        raise SystemExit(CHANNELS.format(cfg.filename, channels, given))
    for split in splits:
        for dataset in inner_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            loader, *others = dataset.get('pipeline') or [{}]
            loaded = dict(color=3, grayscale=1).get(loader.get('color_type', 'color'), channels)
            if loader.get('type') == 'LoadImageFromFile' and loaded != channels:
                if all(_is_of_openmmlab(transform) for transform in others):
                    given = f"the {split} pipeline's LoadImageFromFile gives {loaded}"
                    raise SystemExit(CHANNELS.format(cfg.filename, channels, given))


def _is_of_openmmlab(transform: dict) -> bool:
    """Whether it leaves the number of channels alone, as all transforms of these packages do."""
    kind = _find_class(TRANSFORMS, transform)
    return getattr(kind, '__module__', '').split('.')[0] in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain')


@contextmanager
def wrong_settings_in_a_sentence(cfg: Config) -> Iterator[None]:
    """Turns what a class says to settings that it does not know into a sentence."""
    try:
        yield
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        building = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        message = str(error.args[0] if error.args else error)
        unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword .* '(\w+)'", message)
        missing = re.search(r'(\w+)\.__init__\(\) missing .*', message)
        nowhere = re.search(r'(\S+) is not in the (\S+) registry', message)
        if not building & {'build_from_cfg', 'build_dataloader'}:
            raise
        if unknown:
            reason = (
                f'{unknown[1]} has no setting {unknown[2]!r}; a dict that changes an inherited '
                'type takes _delete_=True, so that nothing else is inherited'
            )
        elif nowhere:
            reason = (
                f'there is no {nowhere[1]} in {nowhere[2]}; a class of your own is imported by '
                'custom_imports'
            )
        elif missing or (
            isinstance(error, (AssertionError, ValueError)) and 'build_model' in building
        ):
            reason = ' '.join(message.split())
        else:
            raise
        raise SystemExit(f'{cfg.filename}: {reason}.') from error

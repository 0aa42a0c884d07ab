"""Reading a user's config, and saying in one sentence what is wrong with it."""

import inspect
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope

from mmhatnet.backbones.base import Backbone
from mmhatnet.openmmlab.patches import apply_patches
from mmhatnet.openmmlab.versions import require_supported
from mmhatnet.preflight import datasets_of
from mmhatnet.preflight.pictures import class_of

# Others are not in all projects, and MMEngine warns of it.
REGISTRIES = 'MODELS DATASETS TRANSFORMS METRICS HOOKS LOOPS OPTIMIZERS DATA_SAMPLERS'.split()
PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmhatnet')
CONFIGS = ('.py', '.json', '.yaml', '.yml')
CHECKPOINTS = ('.pth', '.pt', '.ckpt', '.safetensors')
NO_SETTING = (
    '{} has no setting {!r}: it is misspelt, or inherited by a dict that changes the type, which '
    '_delete_=True in this dict prevents'
)


def read_config(path: str) -> Config:
    """Reads a config.

    Raises:
        SystemExit: If there is none, or it or one that it inherits cannot be read, with the file
            and the line.
    """
    suffix = Path(path).suffix
    if suffix in CHECKPOINTS:
        raise SystemExit(f'{path} is a checkpoint: the config comes first, as in CONFIG {path}.')
    if not Path(path).exists():
        raise SystemExit(f'There is no config {path}: ours are in configs/.')
    if Path(path).is_dir() or suffix not in CONFIGS:
        kind = 'a folder' if Path(path).is_dir() else 'no config'
        raise SystemExit(f'{path} is {kind}: name a {", ".join(CONFIGS)} file.')
    apply_patches()
    module = mmengine.config.config
    module.open = _open_without_mark
    try:
        cfg = Config.fromfile(path)
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
    try:
        require_supported(cfg.get('default_scope'))
    except ImportError as error:
        raise SystemExit(f'{path}: {error}') from error
    return cfg


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


def parameters_of(settings: dict) -> set[str] | None:
    """What the class of a dict takes, or None where that is not known for sure."""
    registries = (getattr(mmengine.registry, name) for name in REGISTRIES)
    kinds = {class_of(registry, settings) for registry in registries} - {None}
    if len(kinds) != 1:
        return None
    parameters = inspect.signature(kinds.pop()).parameters
    # What one passes on by **kwargs need not go to the class that it inherits from.
    certain = all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
    return set(parameters) if certain else None


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
        last = 'optim_wrapper' if split == 'train' else f'{split}_evaluator'
        parts = [f'{split}_dataloader', f'{split}_cfg', last]
        missing = [part for part in parts if cfg.get(part) is None]
        if missing and (split != 'val' or missing != parts):
            raise SystemExit(
                f'{cfg.filename} has no {missing[0]}, and {split} needs {", ".join(parts)}; '
                'only a training without validation leaves out all those of val.'
            )


def require_known_settings(cfg: Config) -> None:
    """Checks that the classes of a model's large parts take the settings that a config gives them.

    Raises:
        SystemExit: If one does not.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    parts = [('model', cfg.model)]
    for where, part in parts:
        known = parameters_of(part)
        for key, value in part.items():
            if known is not None and key not in {*known, 'type', '_scope_'}:
                raise SystemExit(
                    f'{cfg.filename}: {where}: {NO_SETTING.format(part["type"], key)}.'
                )
            if key in ('backbone', 'neck', 'data_preprocessor') or key.endswith('head'):
                several = value if isinstance(value, (list, tuple)) else [value]
                parts += [(f'{where}.{key}', one) for one in several if isinstance(one, dict)]


@contextmanager
def wrong_settings_in_a_sentence(cfg: Config) -> Iterator[None]:
    """Turns what a class says to the settings that it is built from into a sentence.

    Only classes of OpenMMLab and of this package are meant. An error inside one of the user's own
    keeps its traceback.
    """
    try:
        yield
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        message = ' '.join(str(error.args[0] if error.args else '').split()).rstrip('.')
        # Python 3.13 goes on with what may be meant.
        unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword \w+ '(\w+)'", message)
        missing = re.search(r'\w+\.__init__\(\) missing .*', message)
        nowhere = re.search(r'(\S+) is not in the (\S+) registry', message)
        kind = _being_built(error)
        if unknown and kind:
            reason = NO_SETTING.format(*unknown.groups())
        elif nowhere and kind:
            reason = f'there is no {nowhere[1]} in {nowhere[2]}; custom_imports import your own'
        elif kind and message and (missing or isinstance(error, (AssertionError, ValueError))):
            reason = f'{kind}: {message}'
        else:
            raise
        raise SystemExit(f'{cfg.filename}: {reason}.') from error


def _being_built(error: Exception) -> str | None:
    """The type of what was being built, unless the error is from code of other packages."""
    kind, packages = None, set()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        packages.add(frame.f_globals['__name__'].partition('.')[0])
        if frame.f_code.co_name == 'build_from_cfg':
            kind, packages = str(frame.f_locals['cfg'].get('type')), set()
    return kind if packages <= {*PACKAGES} else None


def require_channels(cfg: Config, *splits: str) -> None:
    """Checks the backbone's channels against those of the pictures and of what uses its features.

    Raises:
        SystemExit: If they differ.
    """
    backbone, neck, head = (cfg.model.get(part) or {} for part in ('backbone', 'neck', 'head'))
    network = class_of(MODELS, backbone)
    if not (network and issubclass(network, Backbone)):
        return
    try:
        with torch.device('meta'):
            built = network(**{key: value for key, value in backbone.items() if key != 'type'})
    except (TypeError, ValueError):
        return  # the backbone itself says what is wrong
    dims, features = built.embed_dims, [*built.out_channels]
    for part, expected, given in (
        ('neck', neck.get('in_channels'), features),
        ('head', neck.get('type') == 'GlobalAveragePooling' and head.get('in_channels'), dims[-1]),
    ):
        if expected and type(expected) is type(given) and expected != given:
            raise SystemExit(
                f'{cfg.filename}: model.{part}.in_channels is {expected}, but model.backbone gives '
                f'{given}; set it to that, or inherit the config of this variant.'
            )
    channels, others = built.in_channels, []
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
            kinds = [class_of(TRANSFORMS, transform) for transform in rest]
            # A transform of the user's own may change the number of channels.
            if {getattr(kind, '__module__', '').partition('.')[0] for kind in kinds} <= {*PACKAGES}:
                others.append(f"the {split} pipeline's LoadImageFromFile gives {loaded}")
    if others:
        raise SystemExit(
            f'{cfg.filename}: model.backbone.in_channels is {channels}, but {others[0]}; set '
            "in_channels, and mean and std of data_preprocessor, to the pictures' number of "
            "channels, and color_type where they are loaded to 'color' (3), 'grayscale' (1) or "
            "'unchanged' (what the files have)."
        )

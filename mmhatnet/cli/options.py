"""What --cfg-options may set."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from mmhatnet.cli.configs import CHECKPOINTS, CONFIGS, import_also, imports_of
from mmhatnet.config_checks import (
    PACKAGES,
    loader_of,
    parameters_of,
    successor_of,
    top_level_of,
    users_of,
)
from mmhatnet.errors import ConfigError


def parse_settings(words: Sequence[str]) -> dict[str, object]:
    """Returns the settings that the words after --cfg-options give, as MMEngine reads them.

    Raises:
        ConfigError: If one is malformed.
    """
    settings = {}
    for word in words:
        key, equals, value = word.partition('=')
        if not equals and Path(word).suffix in (*CONFIGS, *CHECKPOINTS):
            _refuse(word, 'files come before --cfg-options, and settings are key=value')
        if not equals or not all(key.split('.')):
            _refuse(word, 'settings are key=value, with no white space around the sign')
        if re.match(r'[\'"]*(dict\(|\{\s*[\'"])', value):
            _refuse(word, f'a dict is given by its keys, as in {key}.KEY=VALUE')
        try:
            settings[key] = DictAction._parse_iterable(value)
        except (AssertionError, RecursionError):
            _refuse(word, f'the brackets do not pair up; a list is {key}="[a,b]"')
    return settings


def _refuse(option: str, reason: str) -> NoReturn:
    raise ConfigError(f'--cfg-options {option}: {reason}.')


def merge_options(cfg: Config, options: Mapping[str, object]) -> None:
    """Overrides settings of a config with options.

    Raises:
        ConfigError: If an option has no place in the config, or its class has no such setting.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    replaced = {key.removesuffix('._delete_') for key in options if key.endswith('._delete_')}
    for key, value in options.items():
        _require_reader(cfg, key)
        if not any(f'{key}.'.startswith(f'{other}.') for other in replaced):
            _require_place(cfg, key, value)
    imports = dict(cfg.get('custom_imports') or {})
    try:
        cfg.merge_from_dict(dict(options))
    except (AttributeError, KeyError, TypeError) as error:
        _refuse(' '.join(options), f'they do not fit {cfg.filename}: {error}')
    if (cfg.get('custom_imports') or {}) != imports:
        import_also(cfg, imports)


def _require_reader(cfg: Config, key: str) -> None:
    """Refuses an option that nothing reads."""
    top, _, rest = key.partition('.')
    known = top_level_of(cfg)
    if top in known:
        return
    if top in cfg:
        users = users_of(cfg, cfg[top]) if isinstance(cfg[top], (dict, list, tuple)) else []
        if not users and (loader := loader_of(top)):
            users = [f'{loader}.dataset.pipeline']
        meant = ' or '.join(f'{user}.{rest}'.rstrip('.') for user in users[:3])
        hint = successor_of(key) or meant or 'the settings that are made of it'
        _refuse(key, f'nothing reads {top}, a variable of {cfg.filename}; set {hint}')
    if successor := successor_of(key):
        _refuse(key, f'it is now {successor}')
    similar = get_close_matches(top, known, n=1, cutoff=0.6)
    meant = f'perhaps {".".join([*similar, *rest.split(".")]).rstrip(".")} is meant'
    own = [module for module in imports_of(cfg) if module.partition('.')[0] not in PACKAGES]
    if own and not get_close_matches(top, known, n=1, cutoff=0.8):
        return  # code of the user may read it
    _refuse(key, f'nothing reads {top}' + (f'; {meant}' if similar else ''))


def _require_place(cfg: Config, key: str, value: object) -> None:
    """Refuses an option that has no place in the config, or a value of the wrong type."""
    node, parts = cfg._cfg_dict, key.split('.')
    for depth, part in enumerate(parts):
        where = '.'.join(parts[:depth])
        if isinstance(node, dict) and part not in node:
            return _require_known(node, parts, depth)
        if isinstance(node, dict):
            node = node[part]
        elif not isinstance(node, list) or not node or not isinstance(node[0], dict):
            give = f'give all of it, as in {where}="[a,b]"'
            if not isinstance(node, (list, tuple)):
                give = f'to put a dict there, add {where}._delete_=True and {where}.type=TYPE'
            _refuse(key, f'{where} is {node!r} in {cfg.filename} and has no settings; {give}')
        elif part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            _refuse(key, f'{where} is a list, with the places {where}.0 to {len(node) - 1}')
    _require_value(key, node, value)


def _require_value(key: str, node: object, value: object) -> None:
    """Refuses a value that cannot take the place of another one."""
    if isinstance(value, str) and (node is None or isinstance(node, dict)):
        if value.lower() in ('none', 'null'):
            _refuse(f'{key}={value}', 'nothing is written None')
        if node and 'type' in node:
            _refuse(f'{key}={value}', f'it is a dict; its type is {key}.type, or give None')
    pair = isinstance(value, list) and [type(number) for number in value] == [int, int]
    if pair and isinstance(node, float):
        reason = f'it is one number, {node}, and not {value}; decimals have a point, a pair is ()'
        _refuse(key, reason)


def _require_known(node: dict, parts: list[str], depth: int) -> None:
    """Refuses a new setting that looks misspelt, or warns where that is uncertain."""
    key, name = '.'.join(parts), parts[depth]
    if depth == 0:  # a runner or a tool reads it
        return
    known = parameters_of(node)
    similar = get_close_matches(name, {*map(str, node), *(known or ())}, n=1, cutoff=0.8)
    if name in (known or ()) or not similar:
        return
    if similar[0].rstrip('0123456789') == name.rstrip('0123456789'):
        return  # such as stage1 and stage2
    meant = '.'.join([*parts[:depth], similar[0], *parts[depth + 1 :]])
    if known is not None:
        _refuse(key, f'there is no setting {name!r}; perhaps {meant} is meant')
    print(f'--cfg-options {key}: {name!r} is new in the config; perhaps {meant} is meant.')

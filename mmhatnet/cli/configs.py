"""Reads a user's config. Errors name the file and the line."""

import functools
import operator
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

import mmengine
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from mmhatnet.errors import ConfigError
from mmhatnet.openmmlab.config_inheritance import PREFIX, config_folder, config_path
from mmhatnet.openmmlab.patches import apply_patches
from mmhatnet.openmmlab.versions import require_supported

CONFIGS = ('.py', '.json', '.yaml', '.yml')
CHECKPOINTS = ('.pth', '.pt', '.ckpt', '.safetensors')
# MMEngine's functions that read a config file, and call themselves for each file it inherits.
PARSERS = ('_file2dict', '_parse_lazy_import')


def find_config(name: str) -> str:
    """Returns the path of a config.

    Args:
        name (str): Its path, or ``mmhatnet::`` and its path below ``configs/`` of this package.

    Raises:
        ConfigError: If this package has no such config.
    """
    if not name.startswith(PREFIX):
        return name
    try:
        return config_path(name.removeprefix(PREFIX))
    except FileNotFoundError:
        raise ConfigError(f'There is no config {name}{_meant(name)}.') from None


def _meant(name: str) -> str:
    """Returns what a message about a config that is missing says next."""
    folder = config_folder()
    known = [path.relative_to(folder).as_posix() for path in folder.rglob('*.py')]
    given = name.removeprefix(PREFIX).rpartition('configs/')[2].removeprefix('./')
    if similar := get_close_matches(given, known, n=1, cutoff=0.8):
        return f': this package has {PREFIX}{similar[0]}'
    return f': name a file, or one of this package, such as {PREFIX}maskrcnn_hatnet.py'


def read_config(path: str) -> Config:
    """Reads a config.

    Args:
        path (str): What ``find_config`` knows.

    Raises:
        ConfigError: If there is none, or it or one that it inherits cannot be read, with the file
            and the line.
    """
    path = find_config(path)
    suffix = Path(path).suffix
    if suffix in CHECKPOINTS:
        raise ConfigError(f'{path} is a checkpoint: the config comes first, as in CONFIG {path}.')
    if not Path(path).exists():
        raise ConfigError(f'There is no config {path}{_meant(path)}.')
    if Path(path).is_dir() or suffix not in CONFIGS:
        what = 'a folder' if Path(path).is_dir() else 'no config'
        raise ConfigError(f'{path} is {what}: name a {", ".join(CONFIGS)} file.')
    apply_patches()
    try:
        with _errors_with_files() as named:
            cfg = Config.fromfile(path)
        _import_all(cfg, named)
    except Exception as error:  # a config is code, which may raise anything
        raise ConfigError(f'The config cannot be read: {_reason(error, path)}.') from error
    try:
        require_supported(cfg.get('default_scope'))
    except ImportError as error:
        raise ConfigError(f'{path}: {error}') from error
    return cfg


def import_also(cfg: Config, replaced: Mapping) -> None:
    """Imports what options have set in ``custom_imports``, and keeps what the config named.

    Args:
        cfg (Config): The config, which is changed.
        replaced (Mapping): Its ``custom_imports`` before.

    Raises:
        ConfigError: If there is no such module.
    """
    try:
        import_modules_from_strings(**cfg.custom_imports)
    except Exception as error:  # a module may raise anything
        raise ConfigError(
            f'--cfg-options custom_imports: {error}; a module is found in the folders of the '
            'environment variable PYTHONPATH.'
        ) from error
    _import_all(cfg, [dict(replaced), cfg.custom_imports])


def imports_of(cfg: Config) -> list[str]:
    """Returns the modules that a config imports."""
    return _listed(cfg.get('custom_imports') or {})


def _listed(settings: Mapping) -> list[str]:
    imports = settings.get('imports') or []
    return [imports] if isinstance(imports, str) else list(imports)


def expand_home(cfg: Config) -> None:
    """Replaces ~ at the start of paths by the home folder, as shells do in arguments.

    Nothing but a path starts with ~/.

    Args:
        cfg (Config): The config, which is changed.
    """
    for key, value in list(cfg.items()):
        if (expanded := _expanded(value)) is not value:
            cfg[key] = expanded


def _expanded(value: object) -> object:
    """Returns settings with whole paths. Those without ~ stay the same objects."""
    if isinstance(value, str):
        return os.path.expanduser(value) if re.match(r'~[/\\]', value) else value
    if isinstance(value, dict):
        for key, inner in list(dict.items(value)):  # MMEngine's own would import what it names
            if (expanded := _expanded(inner)) is not inner:
                value[key] = expanded
    elif isinstance(value, list):
        value[:] = map(_expanded, value)
    elif type(value) is tuple:
        items = tuple(map(_expanded, value))
        return value if all(map(operator.is_, items, value)) else items
    return value


class _FileError(Exception):
    """An error in a config file, which is its cause.

    Attributes:
        files (list[str]): The file, after those that inherit it.
    """

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.files = [file]


def _import_all(cfg: Config, named: list[dict]) -> None:
    """Imports what a config and those that it inherits name in ``custom_imports``.

    MMEngine imports only the last list, which replaces those before it. One that was replaced need
    not be there any more.
    """
    names: dict[str, None] = {}
    for settings in named:
        for name in _listed(settings):
            with suppress(ImportError):
                import_modules_from_strings(name)
                names[name] = None
    if names:
        # The config that is written needs them, too.
        cfg.custom_imports = dict(cfg.get('custom_imports') or {}, imports=list(names))


@contextmanager
def _errors_with_files() -> Iterator[list[dict]]:
    """Makes MMEngine name the file of an error, and skip the byte order mark of Windows.

    Yields:
        list[dict]: The ``custom_imports`` of the files, inherited ones first.
    """
    module, parsers = mmengine.config.config, {name: Config.__dict__[name] for name in PARSERS}
    named: list[dict] = []
    module.open = _open_without_mark
    for name, parser in parsers.items():
        setattr(Config, name, staticmethod(_with_file(parser.__func__, named)))
    try:
        yield named
    finally:
        del module.open
        for name, parser in parsers.items():
            setattr(Config, name, parser)


def _with_file(parse: Callable, named: list[dict]) -> Callable:
    @functools.wraps(parse)
    def parse_file(filename: str, *args: object, **settings: object) -> tuple:
        _, home, rest = filename.partition('/~/')  # MMEngine joins _base_ to the file's folder
        if home and not Path(filename).exists():
            filename = os.path.expanduser(f'~/{rest}')
        try:
            result = parse(filename, *args, **settings)
            named.append(dict(result[0].get('custom_imports') or {}))
            return result
        except _FileError as error:
            error.files.insert(0, filename)
            raise
        except Exception as error:
            raise _FileError(filename) from error

    return parse_file


def _open_without_mark(file, mode: str = 'r', **settings):
    """Takes the place of ``open`` in MMEngine's module of configs."""
    if mode == 'r' and settings.get('encoding') == 'utf-8':
        settings['encoding'] = 'utf-8-sig'
    return open(file, mode, **settings)


def _reason(error: Exception, path: str) -> str:
    """Returns the file, the line and the message of an error."""
    above, file = [], path
    if isinstance(error, _FileError):
        # MMEngine makes the first path absolute; the message names it as the user does.
        *above, file = [path, *error.files[1:]]
        error = error.__cause__
    if above and not Path(file).is_file():
        inheriting, missing = map(os.path.normpath, (above[-1], file))
        return f'{inheriting}: it inherits {missing}, which is not there'
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in (file, os.path.abspath(file))]
    line = lines[-1] if lines else None
    reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
    if isinstance(error, SyntaxError):
        line, reason = error.lineno or line, f'syntax error: {error.msg}'
    place = os.path.normpath(file) + (f', line {line}' if line else '')
    return f'{place}: {reason.rstrip(".")}'

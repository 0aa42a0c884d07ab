"""One-line messages of constructor errors."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.registry import Registry

from mmhatnet.config_checks.settings import NO_SETTING, PACKAGES
from mmhatnet.config_walk import type_name
from mmhatnet.errors import ConfigError, MMHATNetError

BUILD_ERRORS = (AssertionError, ImportError, KeyError, TypeError, ValueError)


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
            if isinstance(error, MMHATNetError) and what:
                reason = message
            elif isinstance(error, ImportError) and message and _is_raised_by_packages(error):
                reason = f'{what}: {message}' if what else message
            elif unknown and what:
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


def _is_raised_by_packages(error: ImportError) -> bool:
    """Returns whether a package asks for another one, and not code of the user."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_globals.get('__name__', '').partition('.')[0] for frame in frames]
    return [name for name in modules if name != 'importlib'][-1] in (*PACKAGES, 'torch')


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
                failed[error] = type_name(settings) if modules <= {*PACKAGES} else None
            raise

    Registry.build = recording_build
    try:
        yield failed
    finally:
        Registry.build = build

"""Makes ``_base_ = 'mmhatnet::...'`` and ``_base_ = 'mmseg::...'`` work in any config.

MMEngine looks up the configs of other packages in a fixed table of distributions. mmhatnet is not
in it, and mmseg is there under its original name only, not under OneDL's. Besides, MMEngine lets
what it finds as ``'X::...'`` be built in the registries of X, and mmhatnet has none: its configs
name the modules of mmdet, mmseg or mmpretrain, whichever their ``default_scope`` says.
"""

from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

PACKAGE = Path(__file__).resolve().parents[1]
PREFIX = 'mmhatnet::'
_get_cfg_path = Config._get_cfg_path


def config_path(name: str) -> str:
    """Returns the path of one of mmhatnet's configs, wherever the package is installed.

    It serves configs that are read by tools which have not imported mmhatnet before.

    Args:
        name (str): The path below ``configs/``.

    Raises:
        FileNotFoundError: If there is no such config.

    Examples:
        >>> _base_ = __import__('mmhatnet').config_path('maskrcnn_hatnet.py')
    """
    # The second one is beside the package in a checkout that is used without installation.
    folders = [PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs']
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    path = folder / name
    if not path.is_file() and path.parent.name == 'toy':
        # Projects inherit these by the names that they had before `mim` had to tell them apart.
        path = path.with_stem(f'{path.stem}_toy')
    if not path.is_file():
        raise FileNotFoundError(f'mmhatnet has no config {name!r} in {folder}.')
    return str(path)


def register_config_packages() -> None:
    """Teaches MMEngine where the configs of mmhatnet and mmseg are."""
    if find_spec('mmseg'):
        MODULE2PACKAGE['mmseg'] = 'mmseg'  # a module is found whatever its distribution is called
    Config._get_cfg_path = staticmethod(_get_base_path_and_scope)


def _get_base_path_and_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """Takes the place of ``Config._get_cfg_path``."""
    if cfg_path.startswith(PREFIX):
        return config_path(cfg_path.removeprefix(PREFIX)), None
    return _get_cfg_path(cfg_path, filename)

"""Where the configs of this package are, and how MMEngine finds them.

MMEngine looks up the configs of other packages in a fixed table of distributions, which does not
have mmhatnet (https://github.com/open-mmlab/mmengine/issues/1410) and has mmseg under the name of
the original distribution only, not OneDL's. Besides, MMEngine builds what it finds as ``'X::...'``
in the registries of X. mmhatnet has none: its configs name modules of mmdet, mmseg or mmpretrain,
according to their ``default_scope``.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

PACKAGE = Path(__file__).resolve().parents[1]
PREFIX = 'mmhatnet::'
# Names that projects inherit from before the configs got OpenMMLab's names.
EARLIER_NAMES = {
    'dino_hatnet_12e.py': 'hatnet/dino-4scale_hatnet-s_8xb2-12e_coco.py',
    'imagenet_hatnet_tiny.py': 'hatnet/hatnet-tiny_8xb128_in1k.py',
}


def config_folder() -> Path:
    """Returns the folder of mmhatnet's configs."""
    # The second one is beside the package in a checkout that is used without installation.
    folders = [PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs']
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def config_path(name: str) -> str:
    """Returns the path of one of mmhatnet's configs, wherever the package is installed.

    It needs no patch of MMEngine, so a config that inherits by it can be read by any tool.

    Args:
        name (str): The path below ``configs/``.

    Raises:
        FileNotFoundError: If there is no such config.

    Examples:
        >>> _base_ = __import__('mmhatnet').config_path('maskrcnn_hatnet.py')
    """
    folder = config_folder()
    path = folder / EARLIER_NAMES.get(name, name)
    if not path.is_file() and path.parent.name == 'toy':
        # Projects inherit these configs by their earlier names, which lack the suffix.
        path = path.with_stem(f'{path.stem}_toy')
    if not path.is_file() or not Path(os.path.normpath(path)).is_relative_to(folder):
        raise FileNotFoundError(f'mmhatnet has no config {name!r} in {folder}.')
    return str(path)


def register_config_packages() -> None:
    """Makes ``_base_ = 'mmhatnet::...'`` and ``_base_ = 'mmseg::...'`` work in any config."""
    if find_spec('mmseg'):
        MODULE2PACKAGE['mmseg'] = 'mmseg'  # MMEngine accepts the name of the module as well
    if Config._get_cfg_path.__module__ != __name__:
        Config._get_cfg_path = staticmethod(_finding_mmhatnet(Config._get_cfg_path))


def _finding_mmhatnet(original: Callable) -> Callable:
    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            return config_path(cfg_path.removeprefix(PREFIX)), None
        return original(cfg_path, filename)

    return get_cfg_path

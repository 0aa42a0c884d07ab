"""The one function that changes other packages in the running process."""

import functools

from mmhatnet.openmmlab.config_inheritance import register_config_packages
from mmhatnet.openmmlab.operators import provide
from mmhatnet.openmmlab.roi_layers import accept_any_memory_format
from mmhatnet.openmmlab.versions import warn_of_versions


@functools.cache
def apply_patches() -> None:
    """Corrects mmcv and MMEngine in this process. Further calls do nothing.

    ``import mmhatnet`` does not call it. The command-line tools and ``build_inferencer`` do, and so
    does the module ``mmhatnet.openmmlab.setup``, which configs name in ``custom_imports``:

    - mmcv's RoI operators and modulated deformable convolution read inputs of any memory format.
    - mmcv finds operators that need no compiler where it has no others.
    - ``_base_ = 'mmhatnet::...'`` works, and ``'mmseg::...'`` works with OneDL's packages.
    - Unsupported versions of the OpenMMLab packages are named in a warning.

    Packages that are not installed, or cannot be imported, are skipped. ``docs/upstream/`` says
    which upstream fix would make each correction unnecessary. Other processes are not affected:
    spawned workers of a data loader find operators only if ``python -m mmhatnet.install_ops`` has
    installed them.

    Examples:
        >>> from mmhatnet.openmmlab.patches import apply_patches
        >>> apply_patches()
        >>> cfg = Config.fromfile('config.py')  # with _base_ = 'mmhatnet::maskrcnn_hatnet.py'
    """
    warn_of_versions()
    register_config_packages()
    provide()
    accept_any_memory_format()

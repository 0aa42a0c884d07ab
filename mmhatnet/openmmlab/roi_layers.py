"""Makes mmcv's RoI operators and modulated deformable convolution right for any memory format.

They read their inputs as if these were contiguous and raise no error for others, so that a whole
model that was converted to channels-last trains and predicts on garbage
(https://github.com/open-mmlab/mmcv/issues/2203). Non-maximum suppression and MMDetection's focal
loss make their inputs contiguous, and deformable attention refuses other inputs.
``docs/upstream/roi_align.md`` has the same correction as a patch for mmcv.
"""

import functools
import warnings
from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from mmhatnet.openmmlab.versions import MMCV, install_command

FUNCTIONS = {
    'modulated_deform_conv': 'ModulatedDeformConv2dFunction',
    'roi_align': 'RoIAlignFunction',
    'roi_align_rotated': 'RoIAlignRotatedFunction',
    'riroi_align_rotated': 'RiRoIAlignRotatedFunction',
    'roi_pool': 'RoIPoolFunction',
    'deform_roi_pool': 'DeformRoIPoolFunction',
}
MARK = 'accepts_any_memory_format'


def accept_any_memory_format() -> None:
    """Makes the operators copy inputs and gradients that are not contiguous.

    It does nothing where mmcv's operators cannot be imported, because their error appears where
    they are used. It warns of functions that this mmcv does not have.
    """
    try:
        ops = import_module('mmcv.ops')
    except Exception:
        return
    missing = []
    for module, name in FUNCTIONS.items():
        try:
            function = getattr(import_module(f'{ops.__name__}.{module}'), name)
        except (ImportError, AttributeError):
            missing.append(f'{module}.{name}')
            continue
        for method in ('forward', 'backward'):
            original = getattr(function, method)
            if not hasattr(original, MARK):
                setattr(function, method, staticmethod(_with_contiguous(original)))
    if missing:
        warnings.warn(
            f'mmcv.ops has no {", ".join(missing)}. If it has the operators under other names, '
            'they may read channels-last features wrongly: keep models that use them contiguous, '
            f'or install a supported version, `{install_command(MMCV)}`.',
            stacklevel=2,
        )


def _with_contiguous(method: Callable) -> Callable:
    @functools.wraps(method)
    def wrapped(ctx, *args):
        return method(ctx, *(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args))

    setattr(wrapped, MARK, True)
    return wrapped

"""Makes mmcv's RoI operators and modulated deformable convolution right for any memory format.

They read their inputs as if these were contiguous, and say nothing where they are not: a whole
model that was converted to channels-last trains and predicts on garbage
(https://github.com/open-mmlab/mmcv/issues/2203). Non-maximum suppression and the focal loss of
MMDetection make their inputs contiguous, and deformable attention refuses others.
"""

import functools
import sys
from collections.abc import Callable

from torch import Tensor

FUNCTIONS = {
    'modulated_deform_conv': 'ModulatedDeformConv2dFunction',
    'roi_align': 'RoIAlignFunction',
    'roi_align_rotated': 'RoIAlignRotatedFunction',
    'riroi_align_rotated': 'RiRoIAlignRotatedFunction',
    'roi_pool': 'RoIPoolFunction',
    'prroi_pool': 'PrRoIPoolFunction',
    'deform_roi_pool': 'DeformRoIPoolFunction',
}


def accept_any_memory_format() -> None:
    """Has the operators copy inputs and gradients that are not contiguous.

    Without mmcv's compiled operators there is nothing to do.
    """
    try:
        import mmcv.ops  # noqa: F401
    except Exception:  # whatever is wrong with them is said where they are used
        return
    for module, name in FUNCTIONS.items():
        function = getattr(sys.modules[f'mmcv.ops.{module}'], name)
        for method in ('forward', 'backward'):
            setattr(function, method, staticmethod(_with_contiguous(getattr(function, method))))


def _with_contiguous(method: Callable) -> Callable:
    @functools.wraps(method)
    def wrapped(ctx, *args):
        return method(ctx, *(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args))

    return wrapped

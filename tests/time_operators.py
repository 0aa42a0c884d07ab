"""Times our operators and mmcv's compiled ones in turns, for the table of docs/operators.md.

If the installed mmcv has no compiled operators, COMPILED_MMCV names a folder of mmcv that has them.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import mmcv
import torch
from operators import OURS, Draw, boxes, find_compiled, normal, use
from torch import Tensor

ROUNDS = 7


def trained(function: Callable[..., Tensor], *inputs) -> Callable[[], None]:
    """Returns a function for a call and its backward pass."""
    for tensor in inputs:
        if isinstance(tensor, Tensor) and tensor.dim() > 2:
            tensor.requires_grad_()
    return lambda: function(*inputs).sum().backward()


def workloads() -> dict[str, Callable]:
    """Returns calls with the numbers of boxes and sizes of features of an image of 800x1333."""
    draw = Draw(0)
    found = boxes(draw, 1000, 800)
    scores = torch.from_numpy(draw.uniform(size=1000)).float()
    many, many_scores = boxes(draw, 4000, 1200), torch.from_numpy(draw.uniform(size=4000)).float()
    classes = torch.from_numpy(draw.randint(0, 80, 4000))
    regions = torch.cat([torch.zeros(512, 1), boxes(draw, 512, 800)], 1)
    features = normal(draw, 1, 256, 100, 168)
    align = mmcv.ops.RoIAlign(7, 0.125, 0)
    x, weight = normal(draw, 1, 128, 50, 84), normal(draw, 128, 128, 3, 3)
    offset, mask = normal(draw, 1, 18, 50, 84), normal(draw, 1, 9, 50, 84).sigmoid()
    masks = normal(draw, 1, 59 * 59, 30, 30)
    batched = dict(type='nms', iou_threshold=0.7)
    return {
        'NMS, 1,000 boxes': lambda: mmcv.ops.nms(found, scores, 0.5),
        'NMS, offset 1': lambda: mmcv.ops.nms(found, scores, 0.5, offset=1),
        'Batched NMS, 4,000 boxes': lambda: mmcv.ops.batched_nms(
            many, many_scores, classes, batched
        ),
        'Soft-NMS, 1,000 boxes': lambda: mmcv.ops.soft_nms(found, scores),
        'NMS match': lambda: mmcv.ops.nms_match(torch.cat([found, scores[:, None]], 1), 0.5),
        'RoIAlign, 512 regions': lambda: align(features, regions),
        'RoIAlign, forward and backward': trained(align, features.clone(), regions),
        'Deformable convolution, forward and backward': trained(
            mmcv.ops.deform_conv2d, x.clone(), offset.clone(), weight.clone(), 1, 1
        ),
        'Modulated, forward and backward': trained(
            mmcv.ops.modulated_deform_conv2d, x, offset, mask, weight, None, 1, 1
        ),
        'PSAMask, 59x59': lambda: mmcv.ops.PSAMask('collect', (59, 59))(masks),
    }


def main() -> None:
    folder = Path(os.environ.get('COMPILED_MMCV') or Path(mmcv.__file__).parent)
    compiled = find_compiled(folder)
    if compiled is None:
        raise SystemExit(f'{folder} has no compiled operators: name another with COMPILED_MMCV=.')
    print('| | Compiled, ms | These, ms |\n|---|---|---|')
    for name, work in workloads().items():
        seconds: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for ext in (compiled, OURS):
                with use(ext):
                    start = time.perf_counter()
                    work()
                    seconds.setdefault(ext.__name__, []).append(time.perf_counter() - start)
        times = (f'{1000 * median(row[1:]):.3g}' for row in seconds.values())  # the first warms up
        print(f'| {name} | {" | ".join(times)} |', flush=True)


if __name__ == '__main__':
    main()

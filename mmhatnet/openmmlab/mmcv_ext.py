"""The operators of ``mmcv._ext`` without a compiler, from torchvision, PyTorch and NumPy.

mmcv's Python code calls a compiled module, ``mmcv._ext``. Where mmcv was installed without it, a
copy of this file takes its place, which ``python -m mmhatnet.install_ops`` puts into mmcv's folder.
It therefore imports nothing of mmhatnet. The operators have the names, arguments and results of the
compiled ones; ``docs/operators.md`` says how exact and how fast they are. All other names of
``mmcv._ext`` can be imported, and raise an error with the command that compiles mmcv when called.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import torchvision
    from torchvision.ops import deform_conv2d
    from torchvision.ops import nms as torchvision_nms
except (ImportError, RuntimeError) as error:
    # OneDL's MMDetection hides an ImportError, because it takes it for missing operators.
    raise RuntimeError(
        "mmcv's operators need torchvision, in the version that was published with torch "
        f'{torch.__version__}: {error}.'
    ) from error

SMALLEST_FLOAT = torch.finfo(torch.float32).tiny  # FLT_MIN of the kernels
OUTSIDE = -2  # a position outside of the image
REGIONS = 64  # in a chunk, whose samples are all kept in memory


def __getattr__(name: str) -> Callable:
    """Returns a function that raises an error, in place of an operator that needs compiled code."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f"mmcv's operator {name!r} needs mmcv with compiled operators, and this one has none: "
            f'`{_compile_command()}` compiles them, which takes minutes and a C++ compiler.'
        )

    missing.__name__ = missing.__qualname__ = name
    return missing


def _compile_command() -> str:
    """Returns the command that compiles the installed mmcv against the installed PyTorch."""
    for name in ('onedl-mmcv', 'mmcv', 'mmcv-lite'):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        remove = 'pip uninstall -y mmcv-lite; ' if name == 'mmcv-lite' else ''
        return (
            f'pip install "setuptools<82" wheel ninja packaging psutil; {remove}MMCV_WITH_OPS=1 '
            'pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall '
            f'--no-binary=:all: {name.removesuffix("-lite")}=={version}'
        )
    return 'MMCV_WITH_OPS=1 pip install --no-build-isolation mmcv'


def get_compiler_version() -> str:
    """Returns the origin of the operators, where mmcv expects the name of its compiler."""
    return f'none, operators of torchvision {torchvision.__version__}'


def get_compiling_cuda_version() -> str:
    """Returns the CUDA version of PyTorch, whose kernels run on a GPU."""
    return torch.version.cuda or 'not available'


def _computable(tensor: Tensor) -> Tensor:
    """Converts half precision where torchvision has no kernel for it to float32."""
    native = tensor.dtype in (torch.float32, torch.float64)
    native |= tensor.dtype == torch.float16 and tensor.is_cuda
    return tensor if native else tensor.float()


def _promoted(tensor: Tensor) -> Tensor:
    """Converts half precision to float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# ---------------------------------------------------------------------------------------------
# Boxes


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Returns the indices of the boxes (N, 4) that are kept, in descending order of score."""
    # The compiled operator does not sort stably. torchvision does, so it keeps this order.
    order = scores.sort(dim=0, descending=True)[1]
    if not offset:
        # Rounded like the argument of the compiled operator, which decides ties.
        threshold = float(np.float32(iou_threshold))
        boxes = _computable(boxes[order])
        return order[torchvision_nms(boxes, scores[order].to(boxes.dtype), threshold)]
    kept = [first for first, _ in _greedy_groups(boxes, order, iou_threshold, offset, np.greater)]
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups boxes with scores (N, 5): a kept box, then the boxes that it suppresses."""
    order = dets[:, 4].sort(dim=0, descending=True)[1]
    groups = _greedy_groups(dets[:, :4], order, iou_threshold, 0, np.greater_equal)
    return [[first, *suppressed] for first, suppressed in groups]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS on a CPU: fills rows of ``dets`` (N, 5) and returns the indices of the kept boxes.

    Equal scores keep the order of the compiled operator, which moves the best box to the front and
    fills the place of a discarded box with the last one.
    """
    if not boxes.is_floating_point():
        raise TypeError(f'Soft-NMS takes boxes of floating-point numbers, not of {boxes.dtype}.')
    count = len(boxes)
    x1, y1, x2, y2 = boxes.detach().float().numpy().T
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    table = np.stack([x1, y1, x2, y2, scores.detach().float().numpy(), areas])
    indices = np.arange(count)
    threshold, sigma, min_score = np.float32([iou_threshold, sigma, min_score])
    place = 0
    while place < count:
        best = int(table[4, place:count].argmax())
        if best and np.isnan(table[4, place + best]):  # a score that is not a number is not chosen,
            best = int(np.nanargmax(table[4, place:count]))  # unless it is the first
        best += place
        table[:, [place, best]] = table[:, [best, place]]
        indices[[place, best]] = indices[[best, place]]
        rest = table[:, place + 1 : count]
        overlaps = _overlaps(table[:, place : place + 1], rest, offset)
        if method == 2:
            # In double precision: rounded, it equals the result of the C library.
            decay = np.exp((-(overlaps * overlaps) / sigma).astype(np.float64))
            rest[4] *= decay.astype(np.float32)
        else:
            weights = 1 - overlaps if method == 1 else 0
            rest[4] *= np.where(overlaps >= threshold, weights, 1).astype(np.float32)
        place += 1
        kept = ~(rest[4] < min_score)
        if not kept.all():
            end = place + int(kept.sum())
            holes = place + (~kept[: end - place]).nonzero()[0]
            fillers = end + kept[end - place :].nonzero()[0][::-1]
            table[:, holes] = table[:, fillers]
            indices[holes] = indices[fillers]
            count = end
    dets[:count] = torch.from_numpy(table[:5, :count].T)
    return torch.from_numpy(indices[:count])


def _greedy_groups(
    boxes: Tensor, order: Tensor, threshold: float, offset: int, suppresses: np.ufunc
) -> list[tuple[int, list[int]]]:
    """Returns the kept boxes in the given order, each with the later boxes that it suppresses."""
    x1, y1, x2, y2 = boxes.detach().cpu().float().numpy().T
    table = np.stack([x1, y1, x2, y2, x1, (x2 - x1 + offset) * (y2 - y1 + offset)])
    rest = order.cpu().numpy()
    groups = []
    while len(rest):
        first, rest = rest[:1], rest[1:]
        overlaps = _overlaps(table[:, first], table[:, rest], offset)
        suppressed = suppresses(overlaps, np.float32(threshold))
        groups.append((int(first[0]), rest[suppressed].tolist()))
        rest = rest[~suppressed]
    return groups


def _overlaps(one: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """IoU of columns (x1, y1, x2, y2, _, area), with the kernels' order of operations."""
    width = np.minimum(one[2], others[2]) - np.maximum(one[0], others[0]) + offset
    height = np.minimum(one[3], others[3]) - np.maximum(one[1], others[1]) + offset
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(divide='ignore', invalid='ignore'):
        return shared / (one[5] + others[5] - shared)


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Fills ``ious`` with the IoU (mode 0), or the share of the first box (mode 1)."""
    if not aligned:
        bboxes1 = bboxes1[:, None]
    first, last = torch.max(bboxes1, bboxes2)[..., :2], torch.min(bboxes1, bboxes2)[..., 2:]
    sides = (last - first + offset).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    total = _areas(bboxes1, offset)
    if mode == 0:
        total = total + _areas(bboxes2, offset) - shared
    ious.copy_(shared / total)


def _areas(boxes: Tensor, offset: int) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2] + offset
    return sides[..., 0] * sides[..., 1]


# ---------------------------------------------------------------------------------------------
# Regions of interest


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills ``output`` (R, C, aligned_height, aligned_width) with pooled features."""
    input, rois = _computable(input), _regions(rois, aligned)
    size = (aligned_height, aligned_width)
    if pool_mode == 1:
        args = (spatial_scale, *size, sampling_ratio, aligned)
        output.copy_(torch.ops.torchvision.roi_align(input, rois, *args))
        return
    argmax_y.fill_(OUTSIDE)
    argmax_x.fill_(OUTSIDE)
    for chosen, y, x in _samples(rois, size, spatial_scale, sampling_ratio, aligned):
        values = _interpolated(input, rois[chosen], y, x)
        best, index = values.flatten(4).max(dim=4, keepdim=True)
        output[chosen] = best[..., 0].to(output.dtype)
        for argmax, places in ((argmax_y, y), (argmax_x, x)):
            places = places.expand_as(values).flatten(4).gather(4, index)
            argmax[chosen] = places[..., 0].to(argmax.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds the gradient of the features to ``grad_input`` (N, C, H, W)."""
    grad, rois = _computable(grad_output), _regions(rois, aligned)
    size = (aligned_height, aligned_width)
    # torchvision's kernel refuses to run on a GPU if algorithms have to be deterministic.
    repeatable = torch.are_deterministic_algorithms_enabled() and _on_gpu(grad)
    if pool_mode == 1 and not repeatable:
        args = (spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned)
        grad_input += torch.ops.torchvision._roi_align_backward(grad, rois, *args)
        return

    def add(chosen: Tensor, y: Tensor, x: Tensor) -> None:
        with torch.enable_grad():
            features = torch.zeros_like(grad_input, dtype=grad.dtype, requires_grad=True)
            values = _interpolated(features, rois[chosen], y, x)
            pooled = values.flatten(4).mean(dim=4) if values.dim() > 4 else values
        grad_input.add_(torch.autograd.grad(pooled, features, grad[chosen])[0])

    if pool_mode == 1:
        for chosen, y, x in _samples(rois, size, spatial_scale, sampling_ratio, aligned):
            add(chosen, y, x)
    else:
        add(torch.arange(len(rois), device=rois.device), argmax_y.to(grad), argmax_x.to(grad))


def deform_roi_pool_forward(
    input: Tensor, rois: Tensor, offset: Tensor, output: Tensor, **settings: float
) -> None:
    """Fills ``output`` with means over bins, which ``offset`` (R, 2, height, width) moves."""
    output.copy_(_deform_roi_pool(input, offset, rois, **settings))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    **settings: float,
) -> None:
    """Fills the gradients of the features and the offsets."""
    function = partial(_deform_roi_pool, rois=rois, **settings)
    if len(rois):
        _fill_gradients(function, (input, offset), grad_output, (grad_input, grad_offset))


def _deform_roi_pool(
    input: Tensor,
    offset: Tensor,
    rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """``offset`` holds fractions of a region's sides, x before y, or is empty."""
    size = (pooled_height, pooled_width)
    output = input.new_zeros(len(rois), input.shape[1], *size)
    for chosen, y, x in _samples(rois, size, spatial_scale, sampling_ratio, aligned=True):
        if offset.numel():
            sides = gamma * spatial_scale * (rois[chosen, 3:] - rois[chosen, 1:3])
            across, down = (offset[chosen] * sides[:, :, None, None]).unbind(dim=1)
            y, x = y + down[:, None, :, :, None, None], x + across[:, None, :, :, None, None]
        values = _interpolated(input, rois[chosen], y, x)
        output = output.index_copy(0, chosen, values.mean(dim=(4, 5)))
    return output


def _regions(rois: Tensor, aligned: bool) -> Tensor:
    """Returns regions (R, 5) that torchvision's kernels accept: negative sizes become empty."""
    rois = _computable(rois)
    if not _on_gpu(rois) and not rois.isfinite().all():
        raise ValueError('Regions of interest hold values that are not finite.')
    if aligned:
        rois = torch.cat([rois[:, :3], torch.maximum(rois[:, 3:], rois[:, 1:3])], dim=1)
    return rois


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type != 'cpu'


def _samples(
    rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the positions of samples, in chunks of regions that have equally many of them.

    The positions are y (R, 1, height, 1, samples, 1) and x (R, 1, 1, width, 1, samples). Empty
    regions have none.
    """
    starts = rois[:, [2, 1]] * scale - (0.5 if aligned else 0)
    sides = rois[:, [4, 3]] * scale - (0.5 if aligned else 0) - starts
    bins = (sides if aligned else sides.clamp(min=1)) / rois.new_tensor(size)
    counts = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil()
    for count in counts[(counts > 0).all(dim=1)].unique(dim=0):
        for chosen in (counts == count).all(dim=1).nonzero()[:, 0].split(REGIONS):
            positions = []
            for axis in (0, 1):
                place = torch.arange(size[axis], device=rois.device)[:, None]
                step = torch.arange(int(count[axis]), device=rois.device) + 0.5
                one_bin = bins[chosen, axis, None, None]
                position = starts[chosen, axis, None, None] + place * one_bin
                positions.append(position + step * one_bin / count[axis])
            yield (
                chosen,
                positions[0][:, None, :, None, :, None],
                positions[1][:, None, None, :, None],
            )


def _interpolated(features: Tensor, rois: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear features at positions (R, 1 or C, ...), 0 more than a pixel outside."""
    height, width = features.shape[2:]
    outside = (y < -1) | (y > height) | (x < -1) | (x > width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = y - top, x - left
    image = rois[:, 0].long().view(-1, *[1] * (y.dim() - 1))
    channel = torch.arange(features.shape[1], device=rois.device).view(-1, *[1] * (y.dim() - 2))
    values = (1 - down) * (1 - across) * features[image, channel, top, left]
    values = values + (1 - down) * across * features[image, channel, top, right]
    values = values + down * (1 - across) * features[image, channel, bottom, left]
    values = values + down * across * features[image, channel, bottom, right]
    return values.masked_fill(outside, 0)


# ---------------------------------------------------------------------------------------------
# Deformable convolutions


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **settings: int,
) -> None:
    """Fills ``output`` with a deformable convolution. Buffers and ``im2col_step`` are unused."""
    stride, padding, dilation = _geometry(settings)
    tensors = map(_computable, (input, offset, weight))
    output.copy_(deform_conv2d(*tensors, None, stride, padding, dilation))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """Fills the gradients of input and offset, and keeps that of the weight for later."""
    grads = _deform_conv_backward(gradOutput, input, weight, offset, None, settings)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])
    columns.pending = (gradOutput, grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **settings: int,
) -> None:
    """Adds ``scale`` times the gradient of the weight to ``gradWeight``."""
    # mmcv has called the function above with the same buffer, if the input needs a gradient.
    source, grad = columns.__dict__.pop('pending', (None, None))
    if source is not gradOutput:
        # This gradient does not depend on the weight itself.
        grads = _deform_conv_backward(gradOutput, input, gradWeight, offset, None, settings)
        grad = grads[1]
    gradWeight.add_(grad, alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **settings: int,
) -> None:
    """Fills ``output`` with a deformable convolution whose samples are weighted by ``mask``."""
    stride, padding, dilation = _geometry(settings)
    tensors = map(_computable, (input, offset, weight))
    bias = _computable(bias) if with_bias else None
    mask = _computable(mask)
    output.copy_(deform_conv2d(*tensors, bias, stride, padding, dilation, mask))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **settings: int,
) -> None:
    """Fills the gradients of all inputs, and of the bias if there is one."""
    grads = _deform_conv_backward(grad_output, input, weight, offset, mask, settings)
    results = [grad_input, grad_weight, grad_offset, grad_mask, grad_bias]
    for result, grad in zip(results if with_bias else results[:-1], grads):
        result.copy_(grad)


def _geometry(settings: dict[str, int]) -> list[tuple[int, int]]:
    """Returns (y, x) of stride, padding and dilation, under the names of either operator."""
    names = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW')
    if 'stride_h' in settings:
        names = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w')
    values = [settings[name] for name in names]
    return [(values[i], values[i + 1]) for i in (0, 2, 4)]


def _deform_conv_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    settings: dict[str, int],
) -> tuple[Tensor, ...]:
    """Returns the gradients of input, weight, offset, mask and bias."""
    geometry = _geometry(settings)
    grad, input, weight, offset = map(_computable, (grad, input, weight, offset))
    grad_input, grad_weight, grad_offset, grad_mask, grad_bias = (
        torch.ops.torchvision._deform_conv2d_backward(
            grad,
            input,
            weight,
            offset,
            input.new_zeros(len(input), 1) if mask is None else _computable(mask),
            input.new_zeros(len(weight)),
            *(value for pair in geometry for value in pair),
            settings['group'],
            settings['deformable_group'],
            mask is not None,
        )
    )
    inside = _sampled_inside(offset, input.shape[2:], weight.shape[2:], geometry)
    grad_offset = grad_offset.masked_fill(~inside, 0)
    return grad_input, grad_weight, grad_offset, grad_mask, grad_bias


def _sampled_inside(
    offset: Tensor,
    size: tuple[int, int],
    kernel: tuple[int, int],
    geometry: list[tuple[int, int]],
) -> Tensor:
    """Returns whether samples lie less than a pixel outside of the image, shaped like ``offset``.

    The derivative jumps at exactly -1: mmcv takes the one of outside, which is zero, torchvision
    the one of inside. Padding puts samples there while offsets are zero, as they are when training
    starts.
    """
    positions = offset.unflatten(1, (-1, *kernel, 2))
    inside = torch.ones_like(positions[:, :, :, :, 0], dtype=torch.bool)
    for axis, (stride, padding, dilation) in enumerate(zip(*geometry)):
        taps = torch.arange(kernel[axis], device=offset.device) * dilation - padding
        starts = torch.arange(offset.shape[2 + axis], device=offset.device) * stride
        taps = taps[:, None, None, None] if axis == 0 else taps[:, None, None]
        starts = starts[:, None] if axis == 0 else starts
        position = positions[:, :, :, :, axis] + (taps + starts)
        inside &= (position > -1) & (position < size[axis])
    return inside.unsqueeze(4).expand_as(positions).flatten(1, 4)


# ---------------------------------------------------------------------------------------------
# Focal losses


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``output`` (N, C) with losses. A target of C is the background."""
    p, positive = _promoted(input).sigmoid(), _is_target(input, target)
    loss = torch.where(
        positive, -alpha * (1 - p) ** gamma * _log(p), (alpha - 1) * p**gamma * _log(1 - p)
    )
    output.copy_(loss * _class_weight(weight, target)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``grad_input`` (N, C) with the derivatives of the losses."""
    p, positive = _promoted(input).sigmoid(), _is_target(input, target)
    grad = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * (1 - p - gamma * p * _log(p)),
        (alpha - 1) * p**gamma * (gamma * (1 - p) * _log(1 - p) - p),
    )
    grad_input.copy_(grad * _class_weight(weight, target)[:, None])


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fills ``output`` (N,) with losses, which are zero where a target is negative."""
    p = _promoted(softmax.gather(1, target.clamp(min=0)[:, None])[:, 0])
    loss = -alpha * (1 - p) ** gamma * _log(p)
    output.copy_(torch.where(target >= 0, loss, 0) * _class_weight(weight, target))


def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Fills ``grad_input`` (N, C) with the derivatives of the losses before the softmax."""
    p = _promoted(softmax.gather(1, target.clamp(min=0)[:, None])[:, 0])
    grad = alpha * (gamma * (1 - p) ** (gamma - 1) * p * _log(p) - (1 - p) ** gamma)
    buff.copy_(torch.where(target >= 0, grad, 0) * _class_weight(weight, target))
    grad_input.copy_(buff[:, None] * (_is_target(softmax, target).to(softmax) - softmax))


def _is_target(scores: Tensor, target: Tensor) -> Tensor:
    if target.numel() and target.max() > scores.shape[1]:
        raise ValueError(f'{target.max()} is no target: there are {scores.shape[1]} classes.')
    return target[:, None] == torch.arange(scores.shape[1], device=scores.device)


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=SMALLEST_FLOAT).log()


def _class_weight(weight: Tensor, target: Tensor) -> Tensor:
    """Returns the weight of each target's class. An empty tensor stands for no weights."""
    return weight[target] if weight.numel() else weight.new_ones(1)


# ---------------------------------------------------------------------------------------------
# Attention and reassembly


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention by mmcv's own PyTorch code for CPUs."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    shapes = value_spatial_shapes.tolist()
    return multi_scale_deformable_attn_pytorch(value, shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Fills the gradients of values, sampling locations and attention weights."""

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        levels = (value_spatial_shapes, value_level_start_index)
        return ms_deform_attn_forward(value, *levels, locations, weights, im2col_step)

    inputs = (value, sampling_locations, attention_weights)
    _fill_gradients(attend, inputs, grad_output, (grad_value, grad_sampling_loc, grad_attn_weight))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    **settings: int,
) -> None:
    """Fills ``output`` (N, C, S*H, S*W) with features that the masks reassemble."""
    output.copy_(_carafe(features, masks, **settings))
    rfeatures.copy_(features)  # mmcv saves this buffer for the backward pass


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, **settings: int) -> None:
    """Does the same as ``carafe_forward``, without buffers."""
    output.copy_(_carafe(features, masks, **settings))


def carafe_backward(
    top_grad: Tensor, features: Tensor, masks: Tensor, *results: Tensor, **settings: int
) -> None:
    """Fills the gradients of features and masks, the last two of ``results``."""
    _fill_gradients(partial(_carafe, **settings), (features, masks), top_grad, results[-2:])


carafe_naive_backward = carafe_backward


def _carafe(
    features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    height, width = features.shape[2:]
    padded = F.pad(features, (kernel_size // 2,) * 4)
    masks = masks.unflatten(1, (group_size, kernel_size * kernel_size))
    output = torch.zeros((), device=features.device)
    for tap in range(kernel_size * kernel_size):
        down, across = divmod(tap, kernel_size)
        seen = padded[:, :, down : down + height, across : across + width]
        seen = seen.repeat_interleave(scale_factor, 2).repeat_interleave(scale_factor, 3)
        output = output + seen.unflatten(1, (group_size, -1)) * masks[:, :, tap, None]
    return output.flatten(1, 2)


def _fill_gradients(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    grad_output: Tensor,
    results: tuple[Tensor, ...],
) -> None:
    """Recomputes ``function`` and fills ``results`` with the gradients of its inputs."""
    with torch.enable_grad():
        inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        output = function(*inputs)
    grads = torch.autograd.grad(output, inputs, grad_output, allow_unused=True)
    for result, grad in zip(results, grads):
        if grad is not None:
            result.copy_(grad)


def psamask_forward(input: Tensor, output: Tensor, psa_type: int, num_: int, **sizes: int) -> None:
    """Fills ``output`` (N, H*W, H, W) from the masks of all positions (N, h_mask*w_mask, H, W).

    A channel holds the values of all masks for one position (type 0), or the mask of one position
    (type 1). Values outside of the map are dropped, and positions outside of a mask are zero.
    """
    index, inside = _psa_index(input, **sizes)
    values = input.gather(1, index.expand(num_, -1, -1, -1)).masked_fill(~inside, 0)
    output.copy_(_swapped(values) if psa_type == 1 else values)


def psamask_backward(
    grad_output: Tensor, grad_input: Tensor, psa_type: int, num_: int, **sizes: int
) -> None:
    """Adds the gradient of the masks to ``grad_input`` (N, h_mask*w_mask, H, W)."""
    index, inside = _psa_index(grad_input, **sizes)
    grad = _swapped(grad_output) if psa_type == 1 else grad_output
    grad = grad.masked_fill(~inside, 0)
    grad_input.scatter_add_(1, index.expand(num_, -1, -1, -1), grad)


def _psa_index(
    masks: Tensor,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> tuple[Tensor, Tensor]:
    """Returns the index of each position (H*W) in each mask (H, W), and whether it is inside."""
    y = torch.arange(h_feature, device=masks.device)
    x = torch.arange(w_feature, device=masks.device)
    down = (y[:, None] - y + half_h_mask)[:, None, :, None]
    across = (x[:, None] - x + half_w_mask)[None, :, None, :]
    inside = (down >= 0) & (down < h_mask) & (across >= 0) & (across < w_mask)
    index = (down * w_mask + across) * inside
    return index.flatten(0, 1), inside.flatten(0, 1)


def _swapped(values: Tensor) -> Tensor:
    return values.flatten(2).mT.reshape(values.shape)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fills ``col`` (C * kernel_h * kernel_w, M) with a convolution's inputs at M positions."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    down = torch.arange(kernel_h, device=im.device)[:, None, None] + mask_h_idx
    across = torch.arange(kernel_w, device=im.device)[:, None] + mask_w_idx
    col.copy_(padded[:, down, across].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Writes the results ``col`` (C, M) to M positions of ``im`` (1, C, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col


# ---------------------------------------------------------------------------------------------
# Batch normalisation across processes, of maps (N, C, H * W)


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Fills ``mean`` (C,) with the mean of this process."""
    mean.copy_(input.float().mean(dim=(0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Fills ``var`` (C,) with the variance of this process, around the mean of all."""
    var.copy_((input.float() - mean[:, None]).square().mean(dim=(0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float,
    group_size: int,
) -> None:
    """Fills ``norm``, ``std`` and ``output``, and updates the running mean and variance."""
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
    running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Fills the gradients of weight and bias (C,) of this process."""
    grad_weight.copy_((grad_output.float() * norm).sum(dim=(0, 2)))
    grad_bias.copy_(grad_output.float().sum(dim=(0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Fills ``grad_input``. The gradients of weight and bias are means over the processes."""
    shared = (grad_weight[:, None] * norm + grad_bias[:, None]) / (norm.shape[0] * norm.shape[2])
    grad_input.copy_(weight[:, None] * (grad_output.float() - shared) / std[:, None])

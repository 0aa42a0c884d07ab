"""Puts the resizing of a test pipeline into an ONNX file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmhatnet.errors import ExportError

# Images on which a pipeline shows what its steps do: of odd sides, as small and as large as photos.
# A step that is random shows it in several tries.
PROBED = [(61, 90)] * 8 + [(1601, 2403)]

# As MMCV computes sizes, in the float64 of Python: other precisions round some sizes differently.
KEPT_RATIO = """
    limits = Constant <value = double[2] {{{longest}, {shortest}}}> ()
    longest = ReduceMax (sides)
    shortest = ReduceMin (sides)
    extremes = Concat <axis = 0> (longest, shortest)
    extreme_lengths = Cast <to = 11> (extremes)
    scales = Div (limits, extreme_lengths)
    scale = ReduceMin (scales)
    exact = Mul (lengths, scale)
    above = Add (exact, half)
    size = Cast <to = 7> (above)"""
FIXED = """
    size = Constant <value = int64[2] {{{height}, {width}}}> ()"""
RESIZE = """
<ir_version: 10, opset_import: ["" : 20]>
resize (float[batch, channels, image_height, image_width] images)
    => (float[batch, channels, height, width] resized, float[4] pixels_per_pixel)
{{
    half = Constant <value = double[1] {{0.5}}> ()
    sides = Shape <start = 2> (images)
    lengths = Cast <to = 11> (sides){size}
    new_lengths = Cast <to = 11> (size)
    ratios = Div (lengths, new_lengths)
    order = Constant <value = int64[4] {{1, 0, 1, 0}}> ()
    of_corners = Gather (ratios, order)
    pixels_per_pixel = Cast <to = 1> (of_corners){interpolation}
}}
"""
FLOATS = """
    others = Shape <end = 2> (images)
    sizes = Concat <axis = 0> (others, size)
    resized = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">
        (images, , , sizes)"""
# OpenCV resizes 8-bit images in integers: weights are 11 bits, the sum of a row loses 4 bits, the
# products of the columns 16 bits and the result is rounded from 2 bits. To the operator Resize, one
# of eight pixels would differ by one level.
NEIGHBORS = """
    {axis}_index = Constant <value = int64 {{{index}}}> ()
    {axis}_count = Gather (size, {axis}_index)
    {axis}_range = Range (zero, {axis}_count, one)
    {axis}_numbers = Cast <to = 11> ({axis}_range)
    {axis}_centers = Add ({axis}_numbers, half)
    {axis}_step = Gather (steps, {axis}_index)
    {axis}_scaled = Mul ({axis}_centers, {axis}_step)
    {axis}_exact = Sub ({axis}_scaled, half)
    {axis}_position = Cast <to = 1> ({axis}_exact)
    {axis}_floor = Floor ({axis}_position)
    {axis}_share = Sub ({axis}_position, {axis}_floor)
    {axis}_rest = Sub (whole, {axis}_share)
    {axis}_weight_of_first = Mul ({axis}_rest, weights)
    {axis}_weight_of_second = Mul ({axis}_share, weights)
    {axis}_rounded_first = Round ({axis}_weight_of_first)
    {axis}_rounded_second = Round ({axis}_weight_of_second)
    {axis}_of_first = Cast <to = 6> ({axis}_rounded_first)
    {axis}_of_second = Cast <to = 6> ({axis}_rounded_second)
    {axis}_before = Cast <to = 7> ({axis}_floor)
    {axis}_after = Add ({axis}_before, one)
    {axis}_last = Gather (last, {axis}_index)
    {axis}_first = Clip ({axis}_before, zero, {axis}_last)
    {axis}_second = Clip ({axis}_after, zero, {axis}_last)"""
INTEGERS = f"""
    zero = Constant <value = int64 {{0}}> ()
    one = Constant <value = int64 {{1}}> ()
    last = Sub (sides, one)
    whole = Constant <value = float[1] {{1.0}}> ()
    weights = Constant <value = float[1] {{2048.0}}> ()
    inverse = Div (new_lengths, lengths)
    steps = Reciprocal (inverse){NEIGHBORS.format(axis='y', index=0)}
    {NEIGHBORS.format(axis='x', index=1)}
    levels = Cast <to = 6> (images)
    left = Gather <axis = 3> (levels, x_first)
    right = Gather <axis = 3> (levels, x_second)
    weighted_left = Mul (left, x_of_first)
    weighted_right = Mul (right, x_of_second)
    row = Add (weighted_left, weighted_right)
    bits_4 = Constant <value = int32[1] {{16}}> ()
    bits_16 = Constant <value = int32[1] {{65536}}> ()
    bits_2 = Constant <value = int32[1] {{4}}> ()
    half_of_bits_2 = Constant <value = int32[1] {{2}}> ()
    rows = Div (row, bits_4)
    top = Gather <axis = 2> (rows, y_first)
    bottom = Gather <axis = 2> (rows, y_second)
    to_column = Constant <value = int64[1] {{1}}> ()
    column_of_first = Unsqueeze (y_of_first, to_column)
    column_of_second = Unsqueeze (y_of_second, to_column)
    weighted_top = Mul (top, column_of_first)
    weighted_bottom = Mul (bottom, column_of_second)
    short_top = Div (weighted_top, bits_16)
    short_bottom = Div (weighted_bottom, bits_16)
    sum = Add (short_top, short_bottom)
    raised = Add (sum, half_of_bits_2)
    result = Div (raised, bits_2)
    resized = Cast <to = 1> (result)"""


class Resizing(NamedTuple):
    """How a test pipeline resizes an image.

    Attributes:
        scale (tuple[int, int]): The width and height, or with ``keep_ratio`` the limits of both
            sides, in any order.
        keep_ratio (bool): Whether the image keeps its aspect ratio.
        integers (bool): Whether pixels have 8 bits, before and afterwards.
    """

    scale: tuple[int, int]
    keep_ratio: bool
    integers: bool


def find_resizing(steps: Sequence) -> Resizing | None:
    """Asks the steps of a test pipeline how they resize images, on synthetic images.

    Args:
        steps (Sequence): The transforms. They take arrays (H, W, 3).

    Returns:
        Resizing | None: None if the pixels stay as they are.

    Raises:
        ExportError: If a step changes pixels in another way.
    """
    found: dict[int, Resizing] = {}
    for shape in PROBED:
        data = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        before: np.ndarray | None = None
        for index, step in enumerate(steps):
            try:
                data = step(data)
            except Exception as error:  # steps raise many errors
                _refuse(step, f'fails for an image of {shape[0]}x{shape[1]} pixels ({error!r})')
            image = data.get('img') if isinstance(data, dict) else None
            if image is None:
                if not (isinstance(data, dict) and 'inputs' in data):
                    _refuse(step, 'gives several images')
                break
            if before is not None and not np.array_equal(image, before):
                found[index] = _resizing_of(step, before.dtype == np.uint8)
            before = image.copy()  # Steps may write into the array.
    if len(found) > 1:
        _refuse(steps[max(found)], 'is the second one that resizes')
    return next(iter(found.values()), None)


def _resizing_of(step: object, integers: bool) -> Resizing:
    from mmcv.transforms import Resize as MMCVResize
    from mmdet.datasets.transforms import Resize

    if type(step) not in (Resize, MMCVResize):
        _refuse(step, 'changes pixels, and is not a Resize')
    if step.backend != 'cv2' or step.interpolation != 'bilinear':
        _refuse(step, 'resizes otherwise than with backend="cv2" and interpolation="bilinear"')
    if step.scale is None:
        _refuse(step, 'has a scale_factor and no scale')
    return Resizing(tuple(step.scale), step.keep_ratio, integers)


def _refuse(step: object, reason: str) -> None:
    raise ExportError(
        f'The test pipeline cannot be put into a file: {step!r} {reason}. Do without it, or leave '
        'resizing to the user of the file with --no-resize.'
    )


def add_resizing(file: str | Path, resizing: Resizing) -> None:
    """Adds resizing before the network of an ONNX file, and moves its boxes back after it.

    The sizes are computed by the nodes that are added. PyTorch's exporter never sees them: a size
    that it cannot relate to its inputs would be unknown in the whole network.

    Args:
        file (str | Path): The file, with an input 'images' (N, C, H, W) and an output 'boxes' in
            pixels of it.
        resizing (Resizing): What the test pipeline does.
    """
    import onnx_ir as ir

    model = ir.load(file)
    graph = model.graph
    first, last = max(resizing.scale), min(resizing.scale)
    width, height = resizing.scale
    size = KEPT_RATIO.format(longest=float(first), shortest=float(last))
    if not resizing.keep_ratio:
        size = FIXED.format(height=height, width=width)
    text = RESIZE.format(size=size, interpolation=INTEGERS if resizing.integers else FLOATS)
    before = ir.from_onnx_text(text).graph
    (images,), (resized, ratio) = before.inputs, before.outputs
    nodes = list(before)
    before.outputs.clear()
    before.inputs.clear()
    before.remove(nodes)
    for node in nodes:  # Names must be unique in the graph.
        (value,) = node.outputs
        node.name = value.name = f'resize.{value.name}'

    (network_images,) = graph.inputs
    network_images.name = 'network.images'
    resized.shape = network_images.shape
    ir.convenience.replace_all_uses_with(network_images, resized)
    graph.inputs[0] = images
    graph.insert_before(graph[0], nodes)

    position = [value.name for value in graph.outputs].index('boxes')
    boxes = graph.outputs[position]
    boxes.name = 'network.boxes'
    scaled = ir.node('Mul', [boxes, ratio], name='resize.boxes')
    graph.append(scaled)
    (output,) = scaled.outputs
    output.name, output.type, output.shape = 'boxes', boxes.type, boxes.shape
    graph.outputs[position] = output
    model.metadata_props['resize'] = json.dumps(resizing._asdict())
    ir.save(model, file)

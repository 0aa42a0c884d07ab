"""Masks of annotation files in COCO format, as pycocotools decodes them.

pycocotools itself checks little. A coordinate that is not finite or far away crashes the process
without a message, as does a size that needs more memory than there is. Runs that do not fill the
image leave pixels of random values.
"""

import math
from collections.abc import Sequence

import numpy as np

from mmhatnet.data_checks.coco_file import short

# Tools leave coordinates slightly outside of images, and boxes of hidden parts may be longer than
# the image. A coordinate is far outside if its distance is more than this many longer sides.
FAR = 10
# pycocotools needs about 40 bytes for each pixel of an outline.
LONGEST_OUTLINE = 10**7
NO_MASK, NO_POLYGON = 'no mask', 'no polygon of three points or more'


def fault_of_mask(
    mask: object, height: float, width: float, judged: bool = False
) -> tuple[str, str] | None:
    """Returns what is wrong with the mask of an object.

    Args:
        mask (object): The field "segmentation".
        height (float): The height of its image in pixels.
        width (float): The width of its image in pixels.
        judged (bool): Whether pycocotools itself reads it, without MMDetection's loading.

    Returns:
        tuple[str, str] | None: The fault, as what the object has, and the value that is wrong, or
        an empty text; or None if nothing is wrong.
    """
    if not mask:
        return NO_MASK, ''
    if min(height, width) < 1:
        return 'a mask, but no size of their image', f'{width:g} x {height:g}'
    if isinstance(mask, list) and all(isinstance(polygon, list) for polygon in mask):
        return _fault_of_polygons(mask, height, width, judged)
    counts = mask.get('counts') if isinstance(mask, dict) else None
    if not isinstance(counts, (list, str)) or not isinstance(mask.get('size'), list):
        return 'a mask that is neither a list of polygons nor RLE', short(mask)
    return _fault_of_runs(mask, height, width)


def _fault_of_runs(mask: dict, height: float, width: float) -> tuple[str, str] | None:
    counts, size = mask['counts'], mask['size']
    runs = _decompress(counts) if isinstance(counts, str) else _whole_numbers(counts)
    if runs is None:
        return 'an RLE mask whose counts are no runs of pixels', short(counts)
    pixels = sum(runs.tolist())
    if size == [height, width] and pixels == height * width:
        return None
    fault = 'an RLE mask whose size, [height, width], or counts are not those of its image'
    return fault, f'size {size} and {pixels:,} pixels for {width:g} x {height:g}'


def _fault_of_polygons(
    polygons: list[list], height: float, width: float, judged: bool
) -> tuple[str, str] | None:
    side = max(height, width)
    low, high, outline = -FAR * side, (FAR + 1) * side, 0.0
    for polygon in polygons:
        if not polygon:
            continue
        try:
            # The minimum of a list with NaN may be any number.
            near = math.isfinite(sum(polygon)) and low <= min(polygon) and max(polygon) <= high
        except TypeError:
            return 'a polygon that is not a list of numbers', short(polygon)
        except OverflowError:  # of an integer that no float can hold
            near = False
        if not near:
            far = next(value for value in polygon if not low <= value <= high)
            return (
                'a polygon with a coordinate that is not finite or far outside of its image',
                short(far),
            )
        outline += len(polygon) * (max(polygon) - min(polygon))
    if outline > LONGEST_OUTLINE and (length := sum(map(_length, polygons))) > LONGEST_OUTLINE:
        return 'polygons whose outline is too long to decode', f'{length:,.0f} pixels'
    if not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons):
        return NO_POLYGON, ''
    if judged and len(polygons[0]) < 5:
        return 'a first polygon of fewer than three points', short(polygons[0])
    return None


def _length(polygon: list[float]) -> float:
    """Returns the number of pixels along a closed outline."""
    points = np.array(polygon[: len(polygon) // 2 * 2], float).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1, initial=0).sum())


def _whole_numbers(counts: Sequence) -> np.ndarray | None:
    """Returns runs that are not negative, or None."""
    try:
        runs = np.asarray(counts)
    except ValueError:  # nested lists
        return None
    if runs.ndim != 1 or runs.dtype.kind not in 'iuf' or not (runs >= 0).all():
        return None
    return runs if (runs == np.floor(runs)).all() else None


def _decompress(text: str) -> np.ndarray | None:
    """Returns the runs of a compressed RLE, or None if it is none.

    Each character holds five bits of a number, the lowest first, and whether more follow. Beginning
    with the fourth, a number is the difference from the one before the last.
    """
    codes = np.frombuffer(text.encode('latin-1', 'replace'), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > 7:  # runs have 32 bits
        return None
    places = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << places, starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers if (numbers >= 0).all() else None

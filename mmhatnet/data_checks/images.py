"""Checks of files and images that all frameworks share."""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from threading import Lock

from mmcv import imfrombytes, rescale_size
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from PIL import ExifTags, Image, UnidentifiedImageError

from mmhatnet.config_walk import build_unread, datasets_of, dicts_of, type_name
from mmhatnet.data_checks.report import Job, preview

# The number of files of each dataset that are read by default.
SAMPLE = 200
# OpenCV's limits of a side and of all pixels, and how to lift the latter.
LONGEST_SIDE = 2**20
MORE_PIXELS = (
    'cut the image into tiles, or set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS to more'
)
# Larger images are decoded one after another, as each needs six bytes per pixel for a moment.
LARGE, MOST_THREADS = 2**26, 16
NOT_ARGUMENTS = ('type', '_scope_')  # in the settings of a transform
# The quotient of the sides from which on resizing may fail, and the pixels after it.
NARROW, MOST_RESIZED = 100, 2**28


def most_pixels() -> int:
    """Returns how many pixels an image may have that OpenCV reads."""
    setting = os.environ.get('OPENCV_IO_MAX_IMAGE_PIXELS') or '1024MB'
    number, unit = re.fullmatch(r'(\d+)(.*)', setting).groups()
    return int(number) * dict(KB=2**10, MB=2**20).get(unit.upper(), 1)


def files_below(folder: str) -> Iterator[str]:
    """Yields the paths of the files below a folder, in sorted order.

    Links to folders are followed, and each real folder is read once, so that folders that link to
    themselves or to each other come to an end. A file in such a folder has its path without links,
    if there is one. Whatever is no folder counts as a file, broken links as well.
    """
    found, seen, queue = [], set(), [folder]
    # Links wait until the folders beside them are read.
    for top in queue:
        for at, folders, names in os.walk(top):
            if (real := os.path.realpath(at)) in seen:
                folders.clear()
                continue
            seen.add(real)
            found += [os.path.join(at, name) for name in names]
            paths = [os.path.join(at, name) for name in sorted(folders)]
            queue += [path for path in paths if os.path.islink(path)]
    yield from sorted(found)


def link_to_itself(folder: str) -> str | None:
    """Returns a link below a folder that leads to a folder around it, if there is one."""
    seen, above = set(), {}
    for at, folders, _ in os.walk(folder, followlinks=True):
        real, around = os.path.realpath(at), above.get(os.path.dirname(at), frozenset())
        if real in around:
            while not os.path.islink(at):  # it may lead to the folder around it as well
                at = os.path.dirname(at)
            return at
        if real in seen:
            folders.clear()
        seen.add(real)
        # Without the slash at the end that the folder itself may have.
        above[os.path.dirname(os.path.join(at, ''))] = around | {real}
    return None


def refuse_circle(job: Job, folder: str) -> bool:
    """Refuses a folder that links into itself, which frameworks follow without end."""
    if link := link_to_itself(folder):
        job.refuse(
            f'{link} is a link to {os.path.realpath(link)}, which it is in, so that files there '
            'are read again and again; remove the link'
        )
    return bool(link)


def is_local(path: str, backend: dict | None) -> bool:
    return '://' not in path and (backend or {}).get('backend', 'local') == 'local'


def datasets_of_training(cfg: Config) -> list[BaseDataset]:
    """Builds the datasets of the training split lazily; returns none if one cannot be built."""
    try:
        return [build_unread(settings) for settings in datasets_of(cfg, 'train')]
    except Exception:  # the check of the training split reports it
        return []


def check_number(
    job: Job, setting: str, number: int, classes: Sequence[str], sure: bool = True
) -> None:
    """Compares a head's number of classes with the classes of the data."""
    text = f'{setting} is {number}, but the data have {len(classes)} classes ({preview(classes)})'
    if number < len(classes):
        texts = job.report.errors if sure else job.report.notes
        texts.append(f'{text}: set it to {len(classes)}, or name only the classes meant.')
    elif number > len(classes):
        job.report.notes.append(f'{text}: the others learn nothing, which is allowed.')


def paths_exist(job: Job, paths: Mapping[str, str | None]) -> bool:
    """Returns whether the paths of settings exist, and refuses the first that does not."""
    for setting, path in paths.items():
        # An empty setting is not used; None means that the config lacks it.
        if path is None or (path and not os.path.exists(path)):
            job.refuse(f'there is no {path or setting}; correct {setting}, or data_root before it')
            return False
    return True


def refuse_missing(
    job: Job, paths: Sequence[str], what: str, hint: Callable[[str], str]
) -> set[str]:
    """Refuses files that are missing or empty, with a hint, and returns them."""
    missing = [path for path in paths if not (os.path.isfile(path) and os.path.getsize(path))]
    if missing:
        text = (
            f'{len(missing):,} of {len(paths):,} {what} are missing or empty, {preview(missing, 3)}'
        )
        job.refuse(f'{text}: {hint(missing[0])}')
    return set(missing)


def read_sample(
    job: Job, paths: Sequence[str], what: str, read: Callable, every: bool = False
) -> dict[str, object]:
    """Applies `read` to a sample of files, and refuses those that it cannot read."""
    if not (every or job.every) and len(paths) > SAMPLE:
        paths = [paths[i * len(paths) // SAMPLE] for i in range(SAMPLE)]

    alone = Lock()

    def attempt(path: str) -> object:
        try:
            with alone if has_more_pixels(path, LARGE) else nullcontext():
                return read(path)
        except Exception as error:  # each image library has errors of its own
            return error

    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as threads:
        doing = f'Reading {what} of {job.split}'
        found = job.report.track(threads.map(attempt, paths), len(paths), doing)
        found = dict(zip(paths, found))
    bad = [
        f'{path} {why_unreadable(path, one)}'
        for path, one in found.items()
        if isinstance(one, Exception)
    ]
    if bad:
        job.refuse(
            f'{len(bad):,} of {len(found):,} {what} that were read cannot be: {preview(bad, 3)}; '
            'replace them, or take them out of the data'
        )
    return {path: one for path, one in found.items() if not isinstance(one, Exception)}


def has_more_pixels(path: str, number: int) -> bool:
    """Returns whether the header of an image states more pixels than a number."""
    try:
        with Image.open(path) as image:
            return image.width * image.height > number
    except Image.DecompressionBombError:
        return True
    except Exception:  # loaders may know more formats
        return False


def loader_of(job: Job) -> LoadImageFromFile | None:
    """Builds the step that loads images, or returns None if there is no standard one."""
    steps = job.settings.get('pipeline') or ()
    step = next((step for step in steps if type_name(step) == 'LoadImageFromFile'), None)
    try:
        return LoadImageFromFile(**{k: v for k, v in step.items() if k not in NOT_ARGUMENTS})
    except Exception:  # building the pipeline reports wrong arguments best
        return None


def read_images(job: Job, paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Returns the (height, width) of a sample of images by path, as the pipeline loads them."""
    load = loader_of(job)
    if load is None:
        job.note('no image is read, because its pipeline has no standard LoadImageFromFile')
        return {}
    found = read_sample(
        job, paths, 'images', lambda path: (load(dict(img_path=path)) or {}).get('img_shape')
    )
    return {path: size for path, size in found.items() if size}


def shown_as(
    image: Image.Image, flag: str = 'color', backend: str = 'cv2'
) -> tuple[tuple[int, int], int]:
    """Returns how mmcv loads an image, from its header alone.

    Args:
        image (Image.Image): The opened image.
        flag (str): As ``color_type`` of LoadImageFromFile.
        backend (str): As its ``imdecode_backend``.

    Returns:
        tuple[tuple[int, int], int]: The width and height, and the EXIF orientation by which the
        stored image is turned or mirrored, from 2 to 8; or 1.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF data, which loaders ignore
        orientation = 1
    if orientation not in range(2, 9):
        return image.size, 1
    by_mmcv, by_pillow = _turns(image.format, flag, backend)
    swapped = orientation > 4 and by_mmcv != by_pillow
    return image.size[::-1] if swapped else image.size, orientation if by_mmcv else 1


def exif_orientation(path: str, flag: str = 'color', backend: str = 'cv2') -> int:
    """Returns the EXIF orientation by which mmcv turns or mirrors an image file, as shown_as."""
    try:
        with Image.open(path) as image:
            return shown_as(image, flag, backend)[1]
    except Exception:  # loaders may know more formats
        return 1


@cache
def _turns(form: str, flag: str, backend: str) -> tuple[bool, bool]:
    """Returns whether mmcv turns images of a format, and Pillow their size, by trying it."""
    stored, exif, content = (16, 8), Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.new('RGB', stored).save(content, 'JPEG' if form == 'MPO' else form, exif=exif)
    try:
        loaded = imfrombytes(content.getvalue(), flag, backend=backend)
    except Exception:  # it does not know the format
        loaded = None
    with Image.open(content) as image:
        by_pillow = image.size != stored
    return loaded is not None and loaded.shape[:2] == stored, by_pillow


def why_unreadable(path: str, error: Exception | None = None) -> str:
    """Returns why a file cannot be read as an image.

    Args:
        path (str): The file.
        error (Exception, optional): The error of the image's loader, if it is known.

    Returns:
        str: The reason, which completes a sentence that begins with the file.
    """
    if not os.path.isfile(path):
        return 'is not a file, or a link to none'
    try:
        with open(path, 'rb') as file:
            head = file.read(64)
        if not head:
            return 'is empty'
        if head.startswith(b'version https://git-lfs'):
            return 'is a pointer of Git LFS ("git lfs pull" fetches the file itself)'
        return _why_not_decoded(path, error)
    except UnidentifiedImageError:
        return 'is not an image'
    except Exception as failure:  # each format has errors of its own
        return f'is damaged or cut off ({failure})'


def _why_not_decoded(path: str, error: Exception | None) -> str:
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Before it is decoded.
            if reason := _why_too_large(width * height, max(image.size), error):
                return reason
            image.load()
    except Image.DecompressionBombError as bomb:
        pixels = int(re.search(r'\d+', str(bomb)).group())
        damaged = f'has {pixels:,} pixels, and is damaged, cut off or too large for the memory'
        return _why_too_large(pixels, 0, error) or damaged
    return f'is {image.format} of {width:,} x {height:,} pixels, which its loader cannot read'


def _why_too_large(pixels: int, side: int, error: Exception | None) -> str | None:
    """Returns why a sound image of this size cannot be read, or None if it can."""
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * Image.MAX_IMAGE_PIXELS
        return (
            f'has {pixels:,} pixels, more than the {most:,} that Pillow reads: set '
            "imdecode_backend='cv2' where it is loaded, or cut the image into tiles"
        )
    if isinstance(error, MemoryError) or 'Insufficient memory' in str(error):
        return f'has {pixels:,} pixels, for which the memory is too small: cut the image into tiles'
    if pixels > (most := most_pixels()):
        return f'has {pixels:,} pixels, more than the {most:,} that OpenCV reads: {MORE_PIXELS}'
    if side > LONGEST_SIDE:
        return (
            f'has a side of {side:,} pixels, more than the {LONGEST_SIDE:,} that OpenCV reads: cut '
            'the image into tiles'
        )
    return None


def fault_of_shape(steps: Sequence[dict] | None, height: int, width: int) -> str | None:
    """Returns what becomes of an image that is too narrow for a pipeline.

    Args:
        steps (Sequence[dict] | None): The settings of the pipeline.
        height (int): The height of the image in pixels.
        width (int): Its width in pixels.

    Returns:
        str | None: The fault, as what the steps do; or None if they can resize the image.
    """
    if max(height, width) < NARROW * min(height, width):
        return None
    # Steps of other kinds, such as padding, may change the shape before.
    first = next((step for step in steps or () if 'Load' not in type_name(step)), None)
    for _, step in dicts_of(first):
        for w, h in _resized(step, height, width):
            if min(w, h) < 1 or w * h > MOST_RESIZED:
                return f'{type_name(step)} resizes {width:,} x {height:,} pixels to {w:,} x {h:,}'
    return None


def _resized(step: dict, height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yields the smallest (width, height) that a step of a pipeline resizes an image to."""
    name, scales = type_name(step), step.get('scales') or step.get('scale')
    if name == 'ResizeEdge' and isinstance(scales, int):
        edges = dict(short=min(height, width), long=max(height, width), width=width, height=height)
        factor = scales / edges[step.get('edge', 'short')]
        yield int(width * factor), int(height * factor)
    elif 'Resize' in name and step.get('keep_ratio') and isinstance(scales, (list, tuple)):
        least = min(step.get('ratio_range') or [1])
        for scale in scales if isinstance(scales[0], (list, tuple)) else [scales]:
            yield rescale_size((width, height), tuple(least * edge for edge in scale))


def refuse_narrow(job: Job, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuses images whose (height, width) the pipeline cannot resize."""
    steps = job.settings.get('pipeline')
    faults = {path: fault_of_shape(steps, *size) for path, size in sizes.items()}
    if found := [path for path, fault in faults.items() if fault]:
        job.refuse(
            f'{len(found):,} of {len(sizes):,} images are too narrow, as {found[0]}, which '
            f'{faults[found[0]]}; remove them, cut them, or pad them'
        )


def size_rows(sizes: Sequence[tuple[int, int]]) -> dict[str, str]:
    """Returns the table rows of the smallest, median and largest (height, width)."""
    ordered = [f'{w} x {h}' for h, w in sorted(sizes, key=lambda size: size[0] * size[1])] or ['-']
    places = dict(smallest=0, median=len(ordered) // 2, largest=-1)
    return {f'{name} image': ordered[place] for name, place in places.items()}

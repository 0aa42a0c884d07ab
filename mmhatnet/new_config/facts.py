"""What recipes follow from: the figures of a data folder, the device, and the weights at hand."""

import math
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from mmhatnet.data_formats.contents import LabeledImage, LabeledObject
from mmhatnet.data_formats.files import IMAGES
from mmhatnet.new_config.recipe import Device, Facts, Quantiles

SAMPLE = 300  # the images that are opened for their size


def gather_facts(found: dict, root: Path, arch: str) -> Facts:
    """Returns the figures of a data folder.

    Args:
        found (dict): What ``read_layout`` finds in it.
        root (Path): The folder.
        arch (str): The variant of HAT-Net.
    """
    named = dict(job=found['job'], classes=len(found['classes']), arch=arch)
    if 'conversion' in found:
        splits = found['conversion'].splits
        images = [image for image in splits['train'] if image.objects]  # others are left out
        shares = [
            _side(thing, image) / max(image.width, image.height)
            for image in images
            for thing in image.objects
            if not thing.ignored
        ]
        sizes = [(image.width, image.height) for image in images]
        numbers = dict(images=len(images), validation=len(splits['val']), objects=len(shares))
        share = _quantiles(shares) if any(shares) else None
        return Facts(**named, **numbers, share=share, **_sizes(sizes))
    parts = found.get('images') or found['parts']
    files, others = (_files(root / parts[s], found.get('suffixes')) for s in ('train', 'val'))
    sizes = list(_opened(files))
    return Facts(**named, images=max(1, len(files)), validation=len(others), **_sizes(sizes))


def _side(thing: LabeledObject, image: LabeledImage) -> float:
    """Returns the side of an object in pixels, of the part that is in the image."""
    left, top, width, height = thing.box
    within = (
        min(start + length, end) - max(start, 0)
        for start, length, end in ((left, width, image.width), (top, height, image.height))
    )
    return math.sqrt(math.prod(max(0.0, length) for length in within))


def _files(folder: Path, suffixes: tuple[str, str] | None) -> list[Path]:
    """Returns the images below a folder, in segmentation those that end as its config says."""
    paths = sorted(folder.rglob('*'))
    if suffixes:
        return [path for path in paths if path.name.endswith(suffixes[0])]
    return [path for path in paths if path.suffix.lower() in IMAGES]


def _opened(files: Sequence[Path]) -> Iterable[tuple[int, int]]:
    """Yields the sizes of a sample of images. The data check names those that cannot be read."""
    for path in random.Random(0).sample(files, min(SAMPLE, len(files))):
        try:
            with Image.open(path) as image:
                yield image.size
        except Exception:  # each image library has errors of its own
            continue


def _sizes(sizes: Sequence[tuple[int, int]]) -> dict:
    sizes = sizes or [(224, 224)]
    shorter, longer = np.sort(np.asarray(sizes), axis=1).T
    return dict(
        longer=_quantiles(longer), shorter=_quantiles(shorter), narrowest=int(shorter.min())
    )


def _quantiles(values: Sequence[float]) -> Quantiles:
    # Not 0: an object may be thinner than the numbers of its file say.
    return Quantiles(*(max(1e-6, float(v)) for v in np.quantile(values, (0.1, 0.5, 0.9))))


def this_device() -> Device:
    """Returns what trains here: the first GPU, or the CPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    memory = 0.0
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return Device(cores=cores or 1, memory=memory)


def weights_at_hand(url: str) -> tuple[Path | None, str]:
    """Looks for published weights, and downloads nothing.

    Args:
        url (str): Their address.

    Returns:
        tuple[Path | None, str]: The file in checkpoints/ that a config has to name, if any; and
        where the training gets the weights from, as a line of text.
    """
    name = Path(urlsplit(url).path).name
    own, cached = Path('checkpoints', name), Path(torch.hub.get_dir(), 'checkpoints', name)
    if own.is_file():
        return own.resolve(), f'The training starts from the published weights in {own}.'
    if cached.is_file():
        return None, f'The training starts from the published weights in {cached}.'
    return None, (
        f'The training downloads the published weights once, from {url}. Without a network, put '
        'the file into checkpoints/ and write the config again.'
    )

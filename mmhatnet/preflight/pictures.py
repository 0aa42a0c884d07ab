"""What the checks of segmentation and classification share."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image

from mmhatnet.preflight import inner_datasets
from mmhatnet.preflight.report import Report

SAMPLE = 200
SECONDS = 20
ENDINGS = ('.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def kind(part: dict) -> str:
    """The name of the type that a part of a config asks for, without the scope before it."""
    name = part['type']
    return name.split('.')[-1] if isinstance(name, str) else name.__name__


def datasets_of_training(cfg: Config) -> list[BaseDataset]:
    """The training split's datasets, built lazily; none where one cannot be built."""
    try:
        return [
            DATASETS.build({**settings, 'pipeline': [], 'lazy_init': True})
            for settings in inner_datasets((cfg.get('train_dataloader') or {}).get('dataset'))
        ]
    except Exception:  # Said where the training split itself is looked at.
        return []


def missing_of(paths: Sequence[str]) -> list[str]:
    """The files that are not there, or empty."""

    def size(path: str) -> int:
        try:
            return os.path.getsize(path)
        except OSError:
            return 0

    return [path for path in paths if not size(path)]


def spread(items: Sequence, every: bool) -> list:
    """All items, or a sample of them that is spread evenly."""
    if every or len(items) <= SAMPLE:
        return list(items)
    return [items[i * len(items) // SAMPLE] for i in range(SAMPLE)]


def look_at(items: Sequence, look: Callable, every: bool, report: Report) -> Iterator:
    """Yields look(item) of the items in turn, of fewer of them where a sample takes too long."""
    end, batch = time.monotonic() + SECONDS, 16
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = (
            one
            for start in range(0, len(items), batch)
            if every or time.monotonic() < end
            for one in threads.map(look, items[start : start + batch])
        )
        yield from report.track(found, len(items), 'Reading pictures and masks')


def picture_loader(pipeline: Sequence[dict] | None) -> LoadImageFromFile | None:
    """The transform by which a pipeline reads a picture, None where it is not the usual one."""
    for step in pipeline or ():
        if kind(step) == 'LoadImageFromFile':
            try:
                return LoadImageFromFile(**{k: v for k, v in step.items() if k != 'type'})
            except Exception:  # Said best when the pipeline is built.
                return None
    return None


def trouble_of(path: str) -> str:
    """Says why a file cannot be read as a picture."""
    try:
        with open(path, 'rb') as file:
            start = file.read(64)
        if not start:
            return 'it is empty'
        if start.startswith(b'version https://git-lfs'):
            return 'it is a pointer of Git LFS, "git lfs pull" fetches the file itself'
        with Image.open(path) as picture:
            picture.load()
    except Exception as error:
        return str(error).replace(f' {path!r}', '')
    return 'its loader does not know this kind of picture'


def some(names: Sequence, most: int = 4) -> str:
    """The first few names, and how many more there are."""
    shown = ', '.join(str(name) for name in names[:most])
    return shown + (f' and {len(names) - most:,} more' if len(names) > most else '')


def size_rows(sizes: Sequence[tuple[int, int]]) -> dict[str, str | int]:
    """The rows of a table that tell sizes (height, width)."""
    ordered = [f'{w} x {h}' for h, w in sorted(sizes, key=lambda size: size[0] * size[1])] or ['-']
    places = (0, len(ordered) // 2, -1)
    names = ('smallest', 'median', 'largest')
    rows = {name: ordered[place] for name, place in zip(names, places, strict=True)}
    return {'pictures read': len(sizes), **rows}


def text_instead_of_names(where: str, classes: str) -> str:
    return (
        f'{where}: metainfo.classes is the text {classes!r}, of which each letter would be a '
        f"class; write a tuple, ('{classes}',) with its comma."
    )

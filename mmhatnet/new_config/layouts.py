"""The layouts of data folders, and what a folder in one of them holds."""

import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mmhatnet.data_formats import Conversion, read_folder
from mmhatnet.data_formats.files import folders, relative, split_of
from mmhatnet.errors import DataError

# Names of the folders of images and of masks.
FOLDERS = ('images', 'img_dir', 'imgs', 'img'), ('annotations', 'ann_dir', 'masks', 'labels')
SAMPLE = 300  # the images and masks that are read for their suffixes and labels


def splits(root: Path, inside: Path, paths: Iterable[Path], hint: str) -> dict[str, str]:
    """Returns the paths of the training and validation splits, relative to the root."""
    found = {split_of(path.relative_to(inside)): path for path in paths}
    if 'test' in found:
        found.setdefault('val', found['test'])
    for split in ('train', 'val'):
        if split not in found:
            given = ' and '.join(str(path) for path in found.values() if path != inside)
            raise DataError(
                f'{inside} has no {split} split, only {given or "other files"}: {hint}.'
            )
    return {split: found[split].relative_to(root).as_posix() for split in ('train', 'val')}


def detection(root: Path, job: str | None, **_: object) -> dict | None:
    """Recognizes annotations of objects, which become COCO's where they are in another format."""
    if (found := read_folder(root)) is None:
        return None
    folder, findings = found
    masks = None if job is None else job == 'maskrcnn'
    conversion = Conversion(root, folder, findings, masks)
    return dict(
        job='maskrcnn' if conversion.masks else 'retinanet',
        classes=tuple(folder.classes),
        files={split: relative(path, root) for split, path in conversion.files.items()},
        places={
            split: f'{relative(path, root)}/'.removeprefix('./')
            for split, path in conversion.places.items()
        },
        conversion=conversion,
    )


def segmentation(root: Path, names: list[str] | None, **_: object) -> dict | None:
    """Recognizes folders of images and masks. The names of the labels may be given."""
    there = [[root / name for name in others if (root / name).is_dir()] for others in FOLDERS]
    if not all(there) or not any(there[1][0].rglob('*.png')):
        return None
    hint = 'move a fifth of the images, and their masks, to folders named val'
    images, masks = (splits(root, path, folders(path, 1), hint) for path, *_ in there)
    files = sorted((root / images['train']).rglob('*.*'))
    maps = sorted((root / masks['train']).rglob('*.png'))
    suffixes = Counter(
        (image.suffix, mask.name.removeprefix(image.stem))
        for image in files[:SAMPLE]
        for mask in maps[:SAMPLE]
        if re.match(re.escape(image.stem) + '[^0-9A-Za-z]', mask.name)
    )
    if not suffixes:
        raise DataError(f'{there[1][0]} has no masks named as the images in {there[0][0]}.')
    sample = random.Random(0).sample(maps, min(SAMPLE, len(maps)))
    labels = set().union(*(np.unique(np.asarray(Image.open(mask))).tolist() for mask in sample))
    highest = max(labels - {255}, default=0)
    listed = root / 'classes.txt'
    if names is None and listed.is_file():
        names = listed.read_text().strip().splitlines()
    classes = tuple(names or (f'class_{label}' for label in range(highest + 1)))
    reduce = highest == len(classes)  # as in ADE20K, where label 0 is no class
    [(suffixes, _)] = suffixes.most_common(1)
    return dict(
        job='semfpn',
        classes=classes,
        first='no class' if reduce else classes[0],
        reduce=reduce,
        suffixes=suffixes,
        images=images,
        masks=masks,
    )


def classification(root: Path, **_: object) -> dict | None:
    """Recognizes a folder of images for each class."""
    places = folders(root, 1)
    train = next((path for path in places if split_of(path.relative_to(root)) == 'train'), None)
    classes = train and tuple(path.name for path in folders(train, 1)[1:])
    if not classes:
        return None
    hint = 'to validate, move a fifth of the images of each class to val/CLASS'
    parts = splits(root, root, places, hint)
    if len(classes) < 2:
        raise DataError(f'{train} has images of {classes[0]} alone: add a folder of another class.')
    return dict(
        job='imagenet',
        classes=classes,
        parts=parts,
        topk=(1, 5) if len(classes) > 5 else (1,),
    )


LAYOUTS = {
    segmentation: ('semfpn',),
    detection: ('maskrcnn', 'retinanet'),
    classification: ('imagenet',),
}


def read_layout(root: Path, job: str | None, **options: object) -> dict[str, object]:
    """Recognizes the layout of a folder.

    Args:
        root (Path): The folder.
        job (str, optional): One of 'maskrcnn', 'retinanet', 'semfpn' and 'imagenet', which it is
            for; None for the one that fits best.
        **options (object): ``names`` (list[str] | None), the names of the labels in masks, in their
            order.

    Returns:
        dict[str, object]: The job, the classes, and what else the job's config says of the data.

    Raises:
        DataError: If it is in none of the layouts, or a part is missing.
    """
    if not root.is_dir():
        raise DataError(f'There is no folder {root}: name the one that the data are in.')
    for layout, jobs in LAYOUTS.items():
        if job in (None, *jobs) and (found := layout(root, job=job, **options)):
            return {**found, 'job': job or found['job']}
    raise DataError(
        f'{root} has none of the layouts{f" of --job {job}" if job else ""}: annotations of '
        'COCO (.json with images, annotations and categories), YOLO (data.yaml), Pascal VOC (.xml) '
        'or LabelMe (.json with shapes), images/train with .png masks in annotations/train, or '
        'images in train/CLASS.'
    )

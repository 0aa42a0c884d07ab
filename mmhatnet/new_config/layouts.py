"""The layouts of data folders, and what a folder in one of them holds."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mmhatnet.errors import DataError

SPLITS = dict(train='train', training='train', val='val', valid='val', validation='val')
SPLITS.update(test='test', testing='test')
# Names of the folders of images and of masks.
FOLDERS = ('images', 'img_dir', 'imgs', 'img'), ('annotations', 'ann_dir', 'masks', 'labels')
SAMPLE = 300  # the images and masks that are read for their suffixes and labels


def folders(root: Path, depth: int) -> list[Path]:
    paths = sorted(root.iterdir()) if depth else ()
    inner = [path for path in paths if path.is_dir() and path.name[0] not in '._']
    return [root, *(below for path in inner for below in folders(path, depth - 1))]


def split_of(path: Path) -> str | None:
    """Returns the split that a path names, by its last word that names one."""
    words = re.findall('[a-z]+', path.as_posix().lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


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


@cache
def coco_content(path: Path) -> dict | None:
    """Returns the content of an annotation file, or None for another file."""
    try:
        content = json.loads(path.read_text(encoding='utf-8-sig'))
        return content if {'images', 'annotations', 'categories'} <= {*content} else None
    except (TypeError, ValueError, RecursionError):
        return None


def divide(file: Path) -> Iterator[Path]:
    """Writes annotation files of four fifths and of one fifth of the images."""
    content = coco_content(file)
    images = random.Random(0).sample(content['images'], len(content['images']))
    fifth = max(1, len(images) // 5)
    paths = [file.with_name(f'{file.stem}_{split}.json') for split in ('train', 'val')]
    if there := [path for path in paths if path.exists()]:
        raise DataError(f'--split would write over {there[0]}: move that away, or rename {file}.')
    for path, part in zip(paths, (images[fifth:], images[:fifth])):
        ids = {image['id'] for image in part}
        things = [thing for thing in content['annotations'] if thing['image_id'] in ids]
        path.write_text(json.dumps({**content, 'images': part, 'annotations': things}))
        yield path


def image_folder(root: Path, file: Path) -> str:
    """Returns the folder, relative to the root, that file names in annotations refer to."""
    names = [str(image.get('file_name')) for image in coco_content(file)['images'][:20]]
    places = [file.parent, *folders(root, 2)]
    for place in sorted(places, key=lambda place: split_of(place) != split_of(file)):
        if any((place / name).is_file() for name in names):
            return f'{place.relative_to(root).as_posix()}/'.removeprefix('./')
    raise DataError(f'{file} names images such as {names[:1]}: put them somewhere in {root}.')


def detection(root: Path, split: bool, **_: object) -> dict | None:
    """Recognizes annotation files in COCO format, a single one of which may be divided."""
    paths = [path for folder in folders(root, 2) for path in sorted(folder.glob('*.json'))]
    # COCO has files of other tasks as well. Those of instances come last and replace them.
    paths = [*filter(coco_content, sorted(paths, key=lambda path: 'instances' in path.name))]
    if not paths:
        return None
    paths = divide(*paths) if len(paths) == 1 and split else paths
    hint = '--split divides a single file, and several are named such as train.json and val.json'
    files = splits(root, root, paths, hint)
    content = coco_content(root / files['train'])
    categories, things = content['categories'], content['annotations']
    # Roboflow also lists the project itself, as a supercategory.
    used = {thing['category_id'] for thing in things}
    parents = {category.get('supercategory') for category in categories} - {None}
    classes = tuple(c['name'] for c in categories if c['id'] in used or c['name'] not in parents)
    masked = all(thing.get('segmentation') for thing in things)
    job = 'maskrcnn' if masked else 'retinanet'
    places = {split: image_folder(root, root / file) for split, file in files.items()}
    return dict(job=job, classes=classes, files=files, places=places)


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
    return dict(
        job='imagenet',
        classes=classes,
        parts=splits(root, root, places, hint),
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
            order; and ``split`` (bool), whether to divide a single annotation file.

    Returns:
        dict[str, object]: The job, the classes, and what else the job's config says of the data.

    Raises:
        DataError: If it is in none of the layouts, or a part is missing.
    """
    if not root.is_dir():
        raise DataError(f'There is no folder {root}: name the one that the data are in.')
    for layout, jobs in LAYOUTS.items():
        if job in (None, *jobs) and (found := layout(root, **options)):
            return {**found, 'job': job or found['job']}
    raise DataError(
        f'{root} has none of the layouts{f" of --job {job}" if job else ""}: annotations in '
        "COCO's .json, images/train with .png masks in annotations/train, or images in "
        'train/CLASS.'
    )

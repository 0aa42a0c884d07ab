"""The layouts of folders that people have their data in, and what such a folder holds."""

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
# Where images and their masks are.
FOLDERS = ('images', 'img_dir', 'imgs', 'img'), ('annotations', 'ann_dir', 'masks', 'labels')
LOOKED_AT = 300  # images and masks, for their suffixes and labels


def folders(root: Path, depth: int) -> list[Path]:
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] not in '._']
    return [root] + sum((folders(path, depth - 1) for path in inner), []) if depth else [root]


def split_of(path: Path) -> str | None:
    """The split that the last word in a path that names one names."""
    words = re.findall('[a-z]+', path.as_posix().lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


def splits(root: Path, inside: Path, paths: Iterable[Path], way_out: str) -> dict[str, str]:
    """The paths to train on and to validate on, relative to the root."""
    found = {split_of(path.relative_to(inside)): path for path in paths}
    if 'test' in found:
        found.setdefault('val', found['test'])
    for split in ('train', 'val'):
        if split not in found:
            given = ' and '.join(str(path) for path in found.values() if path != inside)
            raise DataError(
                f'{inside} has no {split} split, only {given or "other files"}: {way_out}.'
            )
    return {split: found[split].relative_to(root).as_posix() for split in ('train', 'val')}


@cache
def coco_content(path: Path) -> dict | None:
    """What an annotation file holds, or None for another file."""
    try:
        content = json.loads(path.read_text(encoding='utf-8-sig'))
        return content if {'images', 'annotations', 'categories'} <= {*content} else None
    except (TypeError, ValueError):
        return None


def divide(file: Path) -> Iterator[Path]:
    """Writes annotation files for four fifths of the images and for one, beside that of all."""
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
    """The folder that the names in an annotation file start from, relative to the root."""
    names = [str(image.get('file_name')) for image in coco_content(file)['images'][:20]]
    places = [file.parent, *folders(root, 2)]
    for place in sorted(places, key=lambda place: split_of(place) != split_of(file)):
        if any((place / name).is_file() for name in names):
            return f'{place.relative_to(root).as_posix()}/'.removeprefix('./')
    raise DataError(f'{file} names images such as {names[:1]}: put them somewhere in {root}.')


def detection(root: Path, split: bool, **_: object) -> dict | None:
    """Files of COCO's format, one of which may be divided."""
    paths = [path for folder in folders(root, 2) for path in sorted(folder.glob('*.json'))]
    # COCO has files of other tasks beside those of instances, which are read last and stay.
    paths = [*filter(coco_content, sorted(paths, key=lambda path: 'instances' in path.name))]
    if not paths:
        return None
    paths = divide(*paths) if len(paths) == 1 and split else paths
    way_out = '--split divides a single file, and several are named such as train.json and val.json'
    files = splits(root, root, paths, way_out)
    content = coco_content(root / files['train'])
    categories, things = content['categories'], content['annotations']
    # Roboflow lists the project itself as well, as the category of all categories.
    used = {thing['category_id'] for thing in things}
    parents = {category.get('supercategory') for category in categories} - {None}
    classes = tuple(c['name'] for c in categories if c['id'] in used or c['name'] not in parents)
    masked = all(thing.get('segmentation') for thing in things)
    job = 'maskrcnn' if masked else 'retinanet'
    places = {split: image_folder(root, root / file) for split, file in files.items()}
    return dict(job=job, classes=classes, files=files, places=places)


def segmentation(root: Path, names: list[str] | None, **_: object) -> dict | None:
    """Folders of images and of masks, the names of whose labels may be given."""
    there = [[root / name for name in others if (root / name).is_dir()] for others in FOLDERS]
    if not all(there) or not any(there[1][0].rglob('*.png')):
        return None
    way_out = 'move a fifth of the images, and their masks, to folders named val'
    images, masks = (splits(root, path, folders(path, 1), way_out) for path, *_ in there)
    files = sorted((root / images['train']).rglob('*.*'))
    maps = sorted((root / masks['train']).rglob('*.png'))
    suffixes = Counter(
        (image.suffix, mask.name.removeprefix(image.stem))
        for image in files[:LOOKED_AT]
        for mask in maps[:LOOKED_AT]
        if re.match(re.escape(image.stem) + '[^0-9A-Za-z]', mask.name)
    )
    if not suffixes:
        raise DataError(f'{there[1][0]} has no masks named as the images in {there[0][0]}.')
    sample = random.Random(0).sample(maps, min(LOOKED_AT, len(maps)))
    labels = set().union(*(np.unique(np.asarray(Image.open(mask))).tolist() for mask in sample))
    highest = max(labels - {255}, default=0)
    listed = root / 'classes.txt'
    if names is None and listed.is_file():
        names = listed.read_text().strip().splitlines()
    classes = tuple(names or (f'class_{label}' for label in range(highest + 1)))
    reduce = highest == len(classes)  # as in ADE20K, where label 0 is what belongs to no class
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
    """A folder of images for each class."""
    places = folders(root, 1)
    train = next((path for path in places if split_of(path.relative_to(root)) == 'train'), None)
    classes = train and tuple(path.name for path in folders(train, 1)[1:])
    if not classes:
        return None
    way_out = 'to validate, move a fifth of the images of each class to val/CLASS'
    return dict(
        job='imagenet',
        classes=classes,
        parts=splits(root, root, places, way_out),
        topk=(1, 5) if len(classes) > 5 else (1,),
    )


LAYOUTS = {
    segmentation: ('semfpn',),
    detection: ('maskrcnn', 'retinanet'),
    classification: ('imagenet',),
}


def read_layout(root: Path, job: str | None, **wishes: object) -> dict[str, object]:
    """Finds out what a folder holds.

    Args:
        root (Path): The folder.
        job (str, optional): One of 'maskrcnn', 'retinanet', 'semfpn' and 'imagenet', which it is
            for; None for the one that fits best.
        **wishes (object): names (list[str] | None), those of the labels of masks in their order,
            and split (bool), whether a single file of annotations is to be divided into two.

    Returns:
        dict[str, object]: The job, the classes, and what else the job's config says of the data.

    Raises:
        DataError: If it is in none of the layouts, or a part is missing.
    """
    if not root.is_dir():
        raise DataError(f'There is no folder {root}: name the one that the data are in.')
    for layout, jobs in LAYOUTS.items():
        if job in (None, *jobs) and (found := layout(root, **wishes)):
            return {**found, 'job': job or found['job']}
    raise DataError(
        f'{root} has none of the layouts{f" of --job {job}" if job else ""}: annotations in '
        "COCO's .json, images/train with .png masks in annotations/train, or images in "
        'train/CLASS.'
    )

"""Writes the config that trains on a folder of your own, which it looks at.

    python tools/new_config.py --data FOLDER        # then: python tools/train.py config.py

The folder holds COCO annotations (as Roboflow, CVAT and Label Studio export them, too), or pictures
and masks (images/train and annotations/train, or the names of ADE20K and MMSegmentation), or a
folder of pictures for each class in train/ and val/.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image
from yapf.yapflib.yapf_api import FormatCode

from mmhatnet import config_path

SPLITS = dict(train='train|training', val='val|valid|validation', test='test|testing')
PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
# Where pictures and their masks are.
FOLDERS = (
    ('images', 'img_dir', 'imgs', 'img'),
    ('annotations', 'ann_dir', 'masks', 'labels'),
)
LOOKED_AT = 300  # masks, for the labels in them


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, required=True, help='the folder of the data')
    parser.add_argument('--job', choices=['maskrcnn', 'retinanet', 'semfpn', 'imagenet'])
    parser.add_argument('--arch', choices=['tiny', 'small', 'medium', 'large'], default='tiny')
    parser.add_argument('--out', type=Path, default='config.py', help='the config to write')
    parser.add_argument('--classes', nargs='+', help='the names of the labels of masks, in order')
    parser.add_argument(
        '--split',
        action='store_true',
        help='divide COCO annotations without a validation split: write two files beside them, '
        'NAME_train.json and NAME_val.json, the latter with a fifth of the pictures',
    )
    return parser.parse_args()


def split_of(path: Path) -> str | None:
    """The split that the last word in a path that names one names."""
    for word in reversed(re.findall('[a-z]+', path.as_posix().lower())):
        for split, words in SPLITS.items():
            if re.fullmatch(words, word):
                return split
    return None


def folders(root: Path, depth: int) -> Iterator[Path]:
    yield root
    for path in sorted(root.iterdir()) if depth else ():
        if path.is_dir() and path.name[0] not in '._':
            yield from folders(path, depth - 1)


def splits_in(folder: Path, root: Path) -> dict[str, str]:
    """The folders of splits in a folder, relative to the root. What is there to test validates."""
    found = {split_of(path.relative_to(folder)): path for path in folders(folder, 1)}
    found = {key: path.relative_to(root).as_posix() for key, path in found.items() if key}
    return {**found, **({'val': found['test']} if 'test' in found and 'val' not in found else {})}


def read_coco(root: Path) -> dict[str, tuple[Path, dict]]:
    """The annotation file of each split, and what is in it."""
    found = {}
    paths = [path for folder in folders(root, 2) for path in sorted(folder.glob('*.json'))]
    # COCO has files of other tasks beside those of instances, which are read last and stay.
    for path in sorted(paths, key=lambda path: 'instances' in path.name):
        try:
            content = json.loads(path.read_text(encoding='utf-8-sig'))
        except ValueError:
            continue
        if isinstance(content, dict) and {'images', 'annotations', 'categories'} <= {*content}:
            split = split_of(path.relative_to(root)) or 'all'
            if split == 'all' in found:
                raise SystemExit(
                    f'{found[split][0]} and {path} are named after no split: rename them, such as '
                    'train.json and val.json.'
                )
            found[split] = path, content
    return found


def divide(file: Path, content: dict) -> dict[str, tuple[Path, dict]]:
    """Writes annotation files for four fifths of the pictures and for one, beside that of all."""
    images = random.Random(0).sample(content['images'], len(content['images']))
    fifth, files = max(1, len(images) // 5), {}
    for split, part in dict(train=images[fifth:], val=images[:fifth]).items():
        path, ids = file.with_name(f'{file.stem}_{split}.json'), {image['id'] for image in part}
        if path.exists():
            raise SystemExit(f'--split does not write over {path}, which exists.')
        things = [thing for thing in content['annotations'] if thing['image_id'] in ids]
        files[split] = path, dict(content, images=part, annotations=things)
    for path, part in files.values():
        path.write_text(json.dumps(part))
    return files


def picture_folder(root: Path, file: Path, content: dict) -> str:
    """The folder that the names in an annotation file start from, relative to the root."""
    names = [str(image.get('file_name')) for image in content['images'][:20]]
    found = {
        place: (sum((place / name).is_file() for name in names), split_of(place) == split_of(file))
        for place in (file.parent, *folders(root, 2))
    }
    best = max(found, key=found.get)
    if not found[best][0]:
        raise SystemExit(
            f'{file} names pictures such as {names[:1]}, which are in no folder of {root}: put '
            'them there under these names.'
        )
    return '' if best == root else f'{best.relative_to(root).as_posix()}/'


def detection(args: argparse.Namespace, files: dict[str, tuple[Path, dict]]) -> tuple[str, str]:
    root, given = args.data, ' and '.join(str(path) for path, _ in files.values())
    places = {split: picture_folder(root, *file) for split, file in files.items()}
    if len(files) == 1 and args.split:
        (place,), (file,) = places.values(), files.values()
        files = divide(*file)
        places = dict.fromkeys(files, place)
    if 'train' not in files or len(files) == 1:
        raise SystemExit(
            f'{root} has no split to train on and another one to validate on, only {given}: '
            '--split divides a single file, with a fifth of its pictures to validate on.'
        )
    for wanted, instead in (('val', 'test'), ('test', 'val')):
        if wanted not in files:
            files[wanted], places[wanted] = files[instead], places[instead]
    things = [thing for _, content in files.values() for thing in content['annotations']]
    categories, used = files['train'][1]['categories'], {thing['category_id'] for thing in things}
    # Roboflow lists the project itself as well, as the category of all categories.
    parents = {category.get('supercategory') for category in categories} - {None}
    classes = tuple(c['name'] for c in categories if c['id'] in used or c['name'] not in parents)
    masked = all(thing.get('segmentation') for thing in things)
    job = args.job or ('maskrcnn' if masked else 'retinanet')
    if job == 'maskrcnn' and not masked:
        raise SystemExit(f'Objects in {given} have no masks: boxes alone train --job retinanet.')
    heads = 'dict(bbox_head=number, mask_head=number)' if job == 'maskrcnn' else 'number'
    head = 'roi_head' if job == 'maskrcnn' else 'bbox_head'
    lines = [
        f'classes = {classes!r}',
        'number = dict(num_classes=len(classes))',
        f'model = dict({head}={heads})\n',
        f'data_root = {f"{root.as_posix()}/"!r}',
        'dataset = dict(data_root=data_root, metainfo=dict(classes=classes))',
    ]
    for split in SPLITS:
        file = files[split][0].relative_to(root).as_posix()
        prefix = f'ann_file={file!r}, data_prefix=dict(img={places[split]!r})'
        lines.append(f'{split}_dataloader = dict(dataset=dict(**dataset, {prefix}))')
        if split != 'train':
            lines.append(f'{split}_evaluator = dict(ann_file=data_root + {file!r})')
    return job, '\n'.join(lines)


def segmentation(args: argparse.Namespace, images: Path, masks: Path) -> tuple[str, str]:
    root, parts = args.data, [splits_in(folder, args.data) for folder in (images, masks)]
    lines = []
    for split, pipeline in dict(train='train_pipeline', val='test_pipeline').items():
        if not all(split in part for part in parts):
            raise SystemExit(
                f'{images} and {masks} have no folders of a {split} split: to validate, move a '
                'fifth of the pictures, and their masks, to folders named val.'
            )
        prefix = 'img_path={!r}, seg_map_path={!r}'.format(*(part[split] for part in parts))
        settings = f'**dataset, data_prefix=dict({prefix}), pipeline={pipeline}'
        lines.append(f'{split}_dataloader = dict(dataset=dict({settings}))')
    maps = sorted((root / parts[1]['train']).rglob('*.png'))
    suffixes = [
        (picture.suffix, mask.name.removeprefix(picture.stem))
        for picture in sorted((root / parts[0]['train']).rglob('*'))[:LOOKED_AT]
        for mask in maps[:LOOKED_AT]
        if picture.suffix.lower() in PICTURES
        and re.match(re.escape(picture.stem) + r'[^0-9A-Za-z]', mask.name)
    ]
    if not suffixes:
        raise SystemExit(f'{masks} has no .png masks named as the pictures in {images}.')
    sample = random.Random(0).sample(maps, min(LOOKED_AT, len(maps)))
    labels = set().union(*(np.unique(np.asarray(Image.open(mask))).tolist() for mask in sample))
    highest, names = max(labels - {255}, default=0), args.classes
    for file in (root / name for name in ('classes.txt', 'labels.txt')):
        if names is None and file.is_file():
            names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    names = names or [f'class_{label}' for label in range(highest + 1)]
    # As in ADE20K, where label 0 is what belongs to no class.
    reduce = highest == len(names)
    if highest > len(names) or len(names) < 2:
        raise SystemExit(
            f'The masks in {masks} have labels up to {highest} (255 aside), and {len(names)} '
            f'classes are named, {" ".join(names)}: name those of all labels from 0 on, two at '
            'least, with --classes or in classes.txt.'
        )
    suffix, map_suffix = Counter(suffixes).most_common(1)[0][0]
    return 'semfpn', '\n'.join(
        [
            f'classes = {tuple(names)!r}',
            'model = dict(decode_head=dict(num_classes=len(classes)))\n',
            f'# Label 0 of the masks is {"no class" if reduce else names[0]}, and 255 is ignored.',
            f'reduce_zero_label = {reduce}',
            'dataset = dict(',
            "    type='BaseSegDataset',",
            f'    data_root={root.as_posix()!r},',
            '    metainfo=dict(classes=classes),',
            f'    img_suffix={suffix!r},',
            f'    seg_map_suffix={map_suffix!r},',
            '    reduce_zero_label=reduce_zero_label,',
            ')',
            'train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline',
            'for transform in (*train_pipeline, *test_pipeline):',
            "    if transform.type == 'LoadAnnotations':",
            '        transform.reduce_zero_label = reduce_zero_label',
            'del transform',
            *lines,
            'test_dataloader = val_dataloader',
        ]
    )


def classification(args: argparse.Namespace, parts: dict[str, str]) -> tuple[str, str]:
    classes = sorted(path.name for path in (args.data / parts['train']).iterdir() if path.is_dir())
    if 'val' not in parts:
        raise SystemExit(
            f'{args.data} has no folder val: to validate, move a fifth of the pictures of each '
            'class to val/CLASS.'
        )
    hatnet = Config.fromfile(config_path('_base_/hatnet.py')).hatnet
    weights = hatnet[args.arch].init_cfg.checkpoint
    loaders = [
        f'{split}_dataloader = dict('
        f'dataset=dict(**dataset, split={split!r}, data_prefix={parts[split]!r}){sampler})'
        # The recipe's sampler repeats pictures, and takes them in rounds of 256.
        for split, sampler in dict(train=', sampler=sampler', val='').items()
    ]
    return 'imagenet', '\n'.join(
        [
            f'classes = {tuple(classes)!r}',
            'data_preprocessor = dict(num_classes=len(classes))',
            'model = dict(',
            f"    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint={weights!r})),",
            '    head=dict(num_classes=len(classes)),',
            ')\n',
            f'dataset = dict(data_root={args.data.as_posix()!r}, metainfo=dict(classes=classes))',
            "sampler = dict(_delete_=True, type='DefaultSampler', shuffle=True)",
            *loaders,
            'test_dataloader = val_dataloader',
            f'val_evaluator = dict(topk={(1, 5) if len(classes) > 5 else (1,)})',
            'test_evaluator = val_evaluator',
        ]
    )


def look_at(args: argparse.Namespace) -> tuple[str, str]:
    """The job that a folder is for, and the part of the config that is about its data."""
    root, wanted = args.data, args.job
    if not root.is_dir():
        raise SystemExit(f'--data {root}: there is no such folder.')
    there = [[root / name for name in names if (root / name).is_dir()] for names in FOLDERS]
    if wanted in (None, 'semfpn') and all(there) and any(there[1][0].rglob('*.png')):
        return segmentation(args, there[0][0], there[1][0])
    if wanted in (None, 'maskrcnn', 'retinanet') and (files := read_coco(root)):
        return detection(args, files)
    parts = splits_in(root, root)
    if wanted in (None, 'imagenet') and 'train' in parts:
        if any(path.is_dir() for path in (root / parts['train']).iterdir()):
            return classification(args, parts)
    raise SystemExit(
        f'{root} has none of the layouts{f" of --job {wanted}" if wanted else ""}: annotations in '
        "COCO's .json, images/train with .png masks in annotations/train, or pictures in "
        'train/CLASS.'
    )


def main() -> None:
    args = parse_args()
    if args.out.exists():
        raise SystemExit(f'{args.out} exists already: name another file with --out.')
    job, text = look_at(args)
    name = f'{job}_hatnet{"" if args.arch == "small" else f"_{args.arch}"}.py'
    base = Config.fromfile(config_path(name))
    rate, batch = base.optim_wrapper.optimizer.lr, base.train_dataloader.batch_size
    base_batch = base.auto_scale_lr.base_batch_size
    args.out.parent.mkdir(parents=True, exist_ok=True)
    text = (
        f"_base_ = __import__('mmhatnet').config_path({name!r})\n\n{text}\n\n"
        f'# The inherited rate, {rate:g}, is for batches of {base_batch}. One GPU has batches of '
        f'{batch}, and the rate is\n# in proportion; with more GPUs, add --auto-scale-lr.\n'
        f'optim_wrapper = dict(optimizer=dict(lr={rate:g} * {batch} / {base_batch}))\n'
        f'auto_scale_lr = dict(base_batch_size={batch})\n'
    )
    style = dict(based_on_style='pep8', column_limit=100)
    args.out.write_text(FormatCode(text, style_config=style)[0], encoding='utf-8')
    print(f'{args.out} trains {job} on {args.data}: python tools/train.py {args.out}')


if __name__ == '__main__':
    main()

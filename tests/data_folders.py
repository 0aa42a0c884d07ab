"""Writes the same annotations as data folders of many formats.

The origin is in COCO format: polygons with two decimals, so that a conversion can be compared to
the hundredth of a pixel. Names of images have spaces, letters of several scripts and upper-case
suffixes; one image is turned by its EXIF orientation, and one has no objects.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image

CLASSES = ('big car', 'kite', 'unused')
NAMES = dict(
    train=('plain.jpg', 'with space.JPG', 'bäume ☂.png', 'turned.jpeg', 'empty.jpg', 'last.bmp'),
    val=('one.jpg', 'two.v2.PNG'),
)
WIDTH, HEIGHT = 160, 128
Origin = dict[str, dict]


def make_origin(whole: bool = False) -> Origin:
    """Returns COCO's content by split. Coordinates may be whole numbers, for boxes of pixels."""
    rng, origin, number = random.Random(0), {}, 0
    for split, names in NAMES.items():
        content = dict(images=[], annotations=[])
        content['categories'] = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
        for index, name in enumerate(names, 1):
            image = dict(id=index, file_name=name, width=WIDTH, height=HEIGHT)
            content['images'].append(image)
            for _ in range(0 if name == 'empty.jpg' else 3):
                number += 1
                thing = dict(id=number, image_id=index, category_id=rng.randint(1, 2), iscrowd=0)
                content['annotations'].append({**thing, **outline(rng, whole)})
        origin[split] = content
    return origin


def outline(rng: random.Random, whole: bool) -> dict:
    """Returns a star of many points around a random center, with its box and area."""
    digits = None if whole else 2
    x, y, radius = rng.uniform(30, 130), rng.uniform(30, 98), rng.uniform(8, 28)
    angles = sorted(rng.uniform(0, 2 * np.pi) for _ in range(rng.randint(5, 40)))
    corners = [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles]
    points = [round(float(value), digits) for corner in corners for value in corner]
    return dict(segmentation=[points], **box_and_area([points]))


def box_and_area(polygons: list[list[float]]) -> dict:
    xs, ys = (np.concatenate([polygon[start::2] for polygon in polygons]) for start in (0, 1))
    low, high = (float(xs.min()), float(ys.min())), (float(xs.max()), float(ys.max()))
    area = 0
    for polygon in polygons:
        x, y = np.reshape(polygon, (-1, 2)).T
        area += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return dict(bbox=[*low, high[0] - low[0], high[1] - low[1]], area=area)


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    turned = path.stem == 'turned'
    size = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)
    image, exif = Image.effect_noise(size, 60).convert('RGB'), Image.Exif()
    if turned:
        exif[0x112] = 6  # a quarter clockwise
    image.save(path, exif=exif)


def each(origin: Origin, folder: Callable[[str], Path]):
    """Writes the images of each split into a folder, and yields each with its annotations."""
    for split, content in origin.items():
        for image in content['images']:
            path = folder(split) / image['file_name']
            save_image(path)
            things = [a for a in content['annotations'] if a['image_id'] == image['id']]
            yield split, path, things


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding='utf-8')


def coco(root: Path, origin: Origin, file: str, images: str, start: str = '') -> None:
    """Writes annotation files and images, at paths with {} for the split."""
    list(each(origin, lambda split: root / images.format(split)))
    for split, content in origin.items():
        named = [dict(i, file_name=start + i['file_name']) for i in content['images']]
        write_json(root / file.format(split), {**content, 'images': named})


def roboflow(root: Path, origin: Origin) -> None:
    """Writes COCO as Roboflow does: ids start at 0, and the project is an unused category."""
    shifted = {}
    for split, content in origin.items():
        parent = dict(id=0, name='project', supercategory='none')
        categories = [dict(c, supercategory='project') for c in content['categories']]
        annotations = [
            dict(a, id=index, image_id=a['image_id'] - 1)
            for index, a in enumerate(content['annotations'])
        ]
        images = [dict(image, id=image['id'] - 1) for image in content['images']]
        name = dict(train='train', val='valid')[split]
        shifted[name] = dict(
            images=images, annotations=annotations, categories=[parent, *categories]
        )
    coco(root, shifted, '{}/_annotations.coco.json', '{}')


def cvat(root: Path, origin: Origin) -> None:
    """Writes one COCO file beside a folder of images, as CVAT does."""
    coco(root, joined(origin), 'annotations/instances_default.json', 'images')


def label_studio(root: Path, origin: Origin) -> None:
    """Writes one COCO file as Label Studio does: paths of images, and ids that start at 0."""
    (content,) = joined(origin).values()
    content = json.loads(json.dumps(content))
    for part, keys in (('images', ['id']), ('categories', ['id']),
                       ('annotations', ['id', 'image_id', 'category_id'])):  # fmt: skip
        for entry in content[part]:
            entry.update({key: entry[key] - 1 for key in keys})
    coco(root, {'': content}, 'result.json', 'images', 'images/')


def joined(origin: Origin) -> Origin:
    """Returns all splits as one, with ids of its own."""
    images, annotations = [], []
    for content in origin.values():
        first = len(images)
        images += [dict(image, id=first + image['id']) for image in content['images']]
        annotations += [dict(a, image_id=first + a['image_id']) for a in content['annotations']]
    categories = origin['train']['categories']
    return {'': dict(images=images, annotations=annotations, categories=categories)}


def yolo(root: Path, origin: Origin, outlines: bool = True, **data: object) -> None:
    """Writes twin folders of images and labels. An image without objects has no label file."""
    for _, path, things in each(origin, lambda split: root / 'images' / split):
        lines = []
        for thing in things:
            x, y, w, h = thing['bbox']
            numbers = thing['segmentation'][0] if outlines else (x + w / 2, y + h / 2, w, h)
            scaled = [v / (HEIGHT if i % 2 else WIDTH) for i, v in enumerate(numbers)]
            lines.append(' '.join([str(thing['category_id'] - 1), *(f'{v:.6f}' for v in scaled)]))
        file = root / 'labels' / path.relative_to(root / 'images').with_suffix('.txt')
        file.parent.mkdir(parents=True, exist_ok=True)
        if lines:
            file.write_text('\n'.join(lines) + '\n')
    content = dict(train='images/train', val='images/val', nc=len(CLASSES), names=[*CLASSES])
    (root / 'data.yaml').write_text(yaml.safe_dump({**content, **data}, allow_unicode=True))


def voc(root: Path, origin: Origin, listed: bool = True) -> None:
    """Writes an XML file for each image, with boxes from the first to the last pixel, from 1."""
    for split, path, things in each(origin, lambda split: root / 'JPEGImages'):
        top = ElementTree.Element('annotation')
        add(top, filename=path.name)
        add(add(top, size=''), width=WIDTH, height=HEIGHT, depth=3)
        for thing in things:
            x, y, w, h = (int(v) for v in thing['bbox'])
            item = add(top, object='')
            difficult = thing.get('iscrowd', 0)
            add(item, name=CLASSES[thing['category_id'] - 1], truncated=0, difficult=difficult)
            add(add(item, bndbox=''), xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h)
        file = root / 'Annotations' / f'{path.stem}.xml'
        file.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(top).write(file, encoding='utf-8')
        if listed:
            names = root / 'ImageSets' / 'Main' / f'{split}.txt'
            names.parent.mkdir(parents=True, exist_ok=True)
            with names.open('a', encoding='utf-8') as lines:
                lines.write(f'{path.stem}\n')


def add(parent: ElementTree.Element, **values: object) -> ElementTree.Element:
    for name, value in values.items():
        child = ElementTree.SubElement(parent, name)
        child.text = str(value) or None
    return child


def labelme(root: Path, origin: Origin, divided: bool = True) -> None:
    """Writes a JSON file beside each image. Parts of an object have a common group."""
    for _, path, things in each(origin, lambda split: root / split if divided else root):
        shapes = []
        for group, thing in enumerate(things):
            label = CLASSES[thing['category_id'] - 1]
            many = len(thing['segmentation']) > 1
            for polygon in thing['segmentation']:
                points = np.reshape(polygon, (-1, 2)).tolist()
                shape = dict(label=label, points=points, shape_type='polygon', flags={})
                shapes.append(dict(shape, group_id=group if many else None))
        content = dict(version='5.4.1', flags={}, shapes=shapes, imagePath=path.name)
        content.update(imageData=None, imageHeight=HEIGHT, imageWidth=WIDTH)
        write_json(path.with_suffix('.json'), content)

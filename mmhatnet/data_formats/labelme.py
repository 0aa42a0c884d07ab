"""LabelMe: a JSON file for each image, with shapes in pixels."""

import base64
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from mmhatnet.data_formats.contents import (
    DataFolder,
    Findings,
    LabeledImage,
    LabeledObject,
    corners,
)
from mmhatnet.data_formats.files import Images, files_with, number, read_json, short, split_of

# How far a polygon may be from the circle that it stands for, in pixels.
SAGITTA, LARGEST = 0.005, 1e5
# Others, such as lines and points, have no area.
AREAS = ('polygon', 'rectangle', 'rotation', 'oriented_rectangle', 'circle', 'mask')


def read(root: Path, findings: Findings) -> DataFolder | None:
    """Reads a folder of JSON files, whose splits are folders."""
    paths = [path for path in files_with(root, '.json') if b'"shapes"' in path.read_bytes()]
    known, names, splits = Images(root) if paths else None, set(), {}
    found = 0
    for path in paths:
        content = read_json(path)
        if not isinstance(content, dict) or 'imagePath' not in content:
            continue
        found += 1
        split = split_of(path.parent.relative_to(root))
        shapes = content.get('shapes')
        if not isinstance(shapes, list) or not all(isinstance(s, dict) for s in shapes):
            findings.refuse(path, '"shapes" is no list of dicts: export it again')
        elif image := _open_image(path, content, known, split, findings):
            names.update(_read_shapes(image, path, shapes, findings))
            splits.setdefault(split, []).append(image)
    return DataFolder('LabelMe', sorted(names), splits) if found else None


def _open_image(
    path: Path, content: dict, known: Images, split: str | None, findings: Findings
) -> LabeledImage | None:
    name = content['imagePath'] if isinstance(content['imagePath'], str) else ''
    found = known.find(name, path.parent, split=split)
    found = found or known.find(path.stem, path.parent, split=split)
    if found is None:
        hint = '; its field imageData holds a copy' * bool(content.get('imageData'))
        findings.refuse(
            path,
            f'there is no image {short(name)} (or several): put it in {path.parent}, or remove '
            f'this file{hint}',
        )
        return None
    try:
        stated = [number(content.get(key) or 0) for key in ('imageWidth', 'imageHeight')]
    except ValueError:
        stated = None
    return findings.image(found, path, stated)


def _read_shapes(
    image: LabeledImage, path: Path, shapes: list[dict], findings: Findings
) -> set[str]:
    """Adds the objects of an image, of which shapes of a group are parts; returns their names."""
    objects: dict[object, list[tuple[str, list[float]]]] = {}
    names, places = {}, {}
    for index, shape in enumerate(shapes, 1):
        place, kind = f'{path}, shape {index}', shape.get('shape_type') or 'polygon'
        label, group = shape.get('label'), shape.get('group_id')
        if not isinstance(label, str) or not label.strip():
            findings.refuse(place, f'its label is {short(label)}: give it the name of its class')
            continue
        if kind not in AREAS:
            findings.drop(place, f'Shapes of type {short(kind)}, which have no area,')
            continue
        try:
            points = [(number(x), number(y)) for x, y in shape.get('points')]
            if kind == 'mask':
                names[index] = label.strip()
                rle, box, area = _mask(image, points, shape.get('mask'))
                if area:
                    image.objects.append(LabeledObject(names[index], box, area, rle))
                else:
                    findings.drop(place, 'Objects without an area')
                continue
            part = _outline(kind, points)
        except (TypeError, ValueError, OSError):
            what = ' and its mask' * (kind == 'mask')
            findings.refuse(
                place,
                f'its points {short(shape.get("points"))}{what} are no {kind}: draw it again',
            )
            continue
        alone = group is None or isinstance(group, (list, dict))
        key = index if alone else ('group', group, label)
        objects.setdefault(key, []).append((kind, part))
        names[key], places[key] = label.strip(), place
    for key, parts in objects.items():
        box = all(kind == 'rectangle' for kind, _ in parts)
        findings.add(image, places[key], names[key], [part for _, part in parts], box=box)
    return {*names.values()}


def _outline(kind: str, points: list[tuple[float, float]]) -> list[float]:
    """Returns the polygon of a shape."""
    xs, ys = zip(*points)
    if kind == 'rectangle':
        return corners(min(xs), min(ys), max(xs), max(ys))[0]
    if kind == 'circle':
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        count = max(16, math.ceil(math.pi / math.acos(1 - SAGITTA / min(max(radius, 1), LARGEST))))
        angles = [2 * math.pi * i / count for i in range(count)]
        circle = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
        return [value for point in circle for value in point]
    return [value for point in points for value in point]


def _mask(
    image: LabeledImage, points: list[tuple[float, float]], mask: object
) -> tuple[dict, list[float], float]:
    """Returns the RLE, box and area of an embedded PNG file at the first of two points."""
    from pycocotools import mask as masks

    (left, top), _ = points
    with Image.open(io.BytesIO(base64.b64decode(mask, validate=True))) as opened:
        if opened.width * opened.height > image.width * image.height or min(left, top) < 0:
            raise ValueError
        part = np.asarray(opened.convert('L')) > 0
    pixels = np.zeros((image.height, image.width), np.uint8, order='F')
    room = pixels[round(top) : round(top) + len(part), round(left) : round(left) + len(part[0])]
    room[:] = part[: room.shape[0], : room.shape[1]]
    rle = masks.encode(pixels)
    box, area = masks.toBbox(rle).tolist(), float(masks.area(rle))
    return dict(rle, counts=rle['counts'].decode()), box, area

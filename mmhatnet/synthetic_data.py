"""Three small synthetic datasets, in the folder layouts that OpenMMLab's datasets read."""

import colorsys
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle, pairwise, product
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from rich.progress import track

from mmhatnet.errors import DataError

# Increase the version when the same settings give other files, so that older data is replaced.
GENERATOR = dict(generator='tools/make_toy_data.py', version=3)
SCALE = 3  # Images are drawn this many times larger and averaged down, for smooth edges.
Rng = np.random.Generator
# Polygons (N, 2) and their colors (RGB in 0..1), each painted over the ones before. Painters return
# shapes of radius 1 around the origin, with x to the right and y down.
Shapes = list[tuple[np.ndarray, np.ndarray]]
WHITE, BLACK, BROWN = np.array([0.97] * 3), np.array([0.1] * 3), np.array([0.4, 0.26, 0.14])


def color(rng: Rng, hue: float, saturation: float, value: float) -> np.ndarray:
    """Samples a color near this one; the hue is in degrees."""
    h, s, v = rng.uniform(-1, 1, 3) * (0.02, 0.08, 0.08) + (hue / 360, saturation, value)
    return np.array(colorsys.hsv_to_rgb(h % 1, *np.clip((s, v), 0, 1)))


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def oval(x: float, y: float, across: float, down: float | None = None) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x + across * np.cos(angle), y + (down or across) * np.sin(angle)], 1)


def panels(half_width: np.ndarray, down: np.ndarray, hem: float, *paints: np.ndarray) -> Shapes:
    """Draws the vertical panels of a round object from half its width at several heights."""
    edges, shapes = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 8)), []
    for pair, paint in zip(pairwise(edges), cycle(paints)):
        left, right = (np.stack([edge * half_width, down], 1) for edge in pair)
        middle = [(sum(pair) / 2 * half_width[-1], hem)]
        shapes.append((np.concatenate([left, middle, right[::-1]]), paint))
    return shapes


def car(rng: Rng) -> Shapes:
    red, glass, way = color(rng, 2, 0.88, 0.8), color(rng, 205, 0.4, 0.4), rng.choice([-1, 1])
    body = [(-1, 0.3), (-0.98, 0), (-0.85, -0.42), (0.15, -0.42), (0.5, -0.04), (1, 0.05), (1, 0.3)]
    shapes = [(np.array(body), red), (box(-1, 0.22, 1, 0.3), red * 0.6)]
    for window in ((-0.82, -0.75, -0.4, -0.4), (-0.32, -0.32, 0.1, 0.38)):
        shapes += [(np.stack([window, (0, -0.34, -0.34, 0)], 1), glass)]
    for x in (-0.55, 0.55):
        shapes += [(oval(x, 0.3, 0.22), BLACK), (oval(x, 0.3, 0.1), WHITE * 0.75)]
    return [(points * (way, 1), paint) for points, paint in shapes]


def umbrella(rng: Rng) -> Shapes:
    angle, orange = np.linspace(0, np.pi / 2, 12), color(rng, 32, 0.9, 0.92)
    edges = ((-0.05, -0.95, 0.05, 0.95), (0, 0.85, 0.3, 0.95), (0.22, 0.75, 0.3, 0.95))
    canopy = (np.sin(angle), 0.1 - 0.92 * np.cos(angle), -0.02, orange, color(rng, 50, 0.6, 0.98))
    return [(box(*of_handle), BROWN) for of_handle in edges] + panels(*canopy)


def sports_ball(rng: Rng) -> Shapes:
    angle, green = np.linspace(-np.pi / 2, np.pi / 2, 24), color(rng, 130, 0.8, 0.6)
    return panels(np.cos(angle), np.sin(angle), 1, green, WHITE)


def kite(rng: Rng) -> Shapes:
    blue, cyan = color(rng, 222, 0.85, 0.8), color(rng, 190, 0.6, 0.95)
    corners = np.array([(0, -1), (0.66, -0.35), (0, 0.6), (-0.66, -0.35), (0, -1)])
    bows = product((-0.1, 0.1), (0.73, 0.93))
    tail = [(box(-0.03, 0.5, 0.03, 1), BLACK), *((oval(*bow, 0.1, 0.07), blue) for bow in bows)]
    sides = zip(pairwise(corners), cycle((blue, cyan)))
    return tail + [(np.array([*side, (0, -0.35)]), paint) for side, paint in sides]


def tree(rng: Rng) -> Shapes:
    green, trunk = color(rng, 130, 0.6, 0.36), (box(-0.08, 0.3, 0.08, 1), BROWN)
    crown = enumerate(((-0.3, 0.1), (0.3, 0.1), (-0.2, -0.4), (0.25, -0.35)))
    return [trunk, *((oval(x, y, 0.42), green * (0.9 + i / 8)) for i, (x, y) in crown)]


def building(rng: Rng) -> Shapes:
    wall, pane = color(rng, 18, 0.45, 0.7), rng.choice([0.25, 0.9]) * np.array([0.8, 0.95, 1])
    width, storeys = rng.uniform(0.45, 0.8), rng.integers(3, 6)
    door, roof = box(-0.1, 0.72, 0.1, 1), box(-width - 0.03, -1, width + 0.03, -0.9)
    panes = product((-0.65, -0.22, 0.22, 0.65), np.linspace(-0.75, 0.4, storeys))
    panes = [(box((x - 0.13) * width, y, (x + 0.13) * width, y + 0.2), pane) for x, y in panes]
    return [(box(-width, -1, width, 1), wall), (door, BROWN), (roof, wall * 0.55), *panes]


# The ids are those of the real datasets, where n02814533 is 'beach wagon'.
COCO = {3: car, 28: umbrella, 37: sports_ball, 38: kite}
IMAGENET = {'n02814533': car, 'n04254680': sports_ball, 'n04507155': umbrella}
ADE = {2: 'building', 3: 'sky', 5: 'tree', 7: 'road', 10: 'grass', 21: 'car'}
BUILDING, SKY, TREE, ROAD, GRASS, CAR = ADE


def placed(rng: Rng, shapes: Shapes, center: np.ndarray, radius: float, tilt: float = 0) -> Shapes:
    """Moves shapes to their place in an image, in pixels, tilted by up to `tilt` degrees."""
    turn = cv2.getRotationMatrix2D((0, 0), rng.uniform(-tilt, tilt), radius)[:, :2]
    return [(points @ turn + center, paint) for points, paint in shapes]


def fill(target: np.ndarray, shapes: Shapes, value: int | None = None) -> np.ndarray:
    for points, paint in shapes:
        corners = np.round(points * SCALE - 0.5).astype(np.int32)
        cv2.fillPoly(target, [corners], value or tuple(paint))
    return target


class Canvas:
    """An image under construction: `image` (H, W, 3), RGB in 0..1, and `labels` (H, W)."""

    def __init__(self, rng: Rng, size: np.ndarray, saturation: float, label: int = 0) -> None:
        self.rng, self.size = rng, (int(size[0]), int(size[1]))
        # In float64, so that rounding differences between processors do not reach 8 bits.
        share = np.linspace(0, 1, SCALE * size[1])[:, None, None]
        high, low = color(rng, 210, saturation, 0.88), color(rng, 30, 0.1, 0.95)
        self.image = np.repeat((1 - share) * high + share * low, SCALE * size[0], 1)
        self.labels = np.full(self.image.shape[:2], label, np.uint8)
        puffs = (oval(-9, 1, 9, 4), oval(0, -1, 11, 5), oval(9, 1, 9, 4), oval(0, 3, 13, 5))
        for place in size * rng.uniform((0, 0.04), (1, 0.25), (rng.integers(4), 2)):
            self.draw([(puff + place, WHITE) for puff in puffs], label)

    def draw(self, shapes: Shapes, label: int = 0, shadow: float = 0) -> None:
        """Draws shapes. With a shadow, given in pixels, they are lit from the upper left."""
        mask, reach = fill(np.zeros_like(self.labels), shapes, 1), int(shadow * SCALE)
        x, y, width, height = cv2.boundingRect(mask)
        inside, light = np.s_[y : y + height, x : x + width], 1
        if reach:
            left, top = max(x - reach, 0), max(y - reach, 0)
            around = np.s_[top : y + height + reach, left : x + width + reach]
            dark = cv2.blur(mask[around] * 1.0, (reach, reach), anchor=(reach - 1, reach - 1))
            self.image[around] *= 1 - 0.4 * dark[..., None]
            down, across = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
            light = 1.13 - 0.3 * np.hypot(across + 0.4, down + 0.5)
        self.labels[inside][mask[inside] > 0] = label
        fill(self.image, shapes)[inside] *= np.where(mask[inside], light, 1)[..., None]

    def ground(self, top: float, unevenness: float, paint: np.ndarray, label: int = 0) -> None:
        """Fills the image below a line of hills, given in fractions of the height."""
        (width, height), (starts, waves) = self.size, self.rng.uniform(3, 9, (2, 2))
        x = np.linspace(0, 1, 50)
        crest = top - unevenness * np.sin(starts + np.outer(x, waves)).mean(1)
        line = np.stack([x * width, crest * height], 1)
        self.draw([(np.concatenate([line, [(width, height), (0, height)]]), paint)], label)

    def scenery(self) -> None:
        """Draws hills or a beach, in dull colors."""
        if self.rng.random() < 0.5:
            for top in (0.45, 0.65, 0.85):
                self.ground(top, 0.12, color(self.rng, self.rng.uniform(50, 120), 0.25, 0.6))
        else:
            self.ground(self.rng.uniform(0.3, 0.5), 0, color(self.rng, 195, 0.25, 0.65))
            self.ground(self.rng.uniform(0.55, 0.7), 0.05, color(self.rng, 40, 0.22, 0.82))

    def finish(self) -> Image.Image:
        """Downsamples the image to its size and adds the noise of a camera."""
        image = cv2.resize(np.clip(self.image, 0, 1), self.size, interpolation=cv2.INTER_AREA)
        image = image * self.rng.uniform(0.88, 1.05) + self.rng.normal(0, 0.015, image.shape)
        return Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8))


def annotate(mask: np.ndarray, cover: np.ndarray, crowd: bool) -> dict | None:
    """Annotates the visible part of an object in COCO format.

    None if less than half is visible, or if the part has holes, which only RLE can describe.
    """
    visible = mask & ~cover
    pixels = np.asfortranarray(visible[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE])
    outlines, parents = cv2.findContours(visible, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if visible.sum() < mask.sum() / 2 or (not crowd and (parents[..., 3] >= 0).any()):
        return None
    if crowd:
        rle = mask_utils.encode(pixels)
        segmentation = {**rle, 'counts': rle['counts'].decode()}
    else:
        # An annotator would ignore slivers of less than two pixels.
        outlines = [line for line in outlines if cv2.contourArea(line) >= 2 * SCALE**2]
        outlines = [cv2.approxPolyDP(line, 0.8, True).ravel() for line in outlines]
        segmentation = [((line + 0.5) / SCALE).round(2).tolist() for line in outlines]
        rle = mask_utils.merge(mask_utils.frPyObjects(segmentation, *pixels.shape))
    area, bbox = float(mask_utils.area(rle)), mask_utils.toBbox(rle).tolist()
    return dict(segmentation=segmentation, area=area, bbox=bbox, iscrowd=int(crowd))


def draw_coco(rng: Rng, index: int) -> tuple[Image.Image, list[dict]]:
    """Draws an image. Of every twenty, the second has no objects and the third has a crowd."""
    size = 8 * rng.integers((18, 14), (23, 18))[:: rng.choice([1, -1], p=[0.7, 0.3])]
    canvas, crowd = Canvas(rng, size, 0.25), index % 20 == 2
    canvas.scenery()
    # One radius in six is small, one is large. Small objects come first and lie in front.
    count = 0 if index % 20 == 1 else 1 + rng.binomial(4, 0.45)
    radii = rng.choice([0.12, 0.22, 0.3, 0.36, 0.44, 0.6], count) * rng.uniform(0.8, 1.15, count)
    classes, things = rng.choice(list(COCO), count + crowd).tolist(), []
    while len(things) < len(classes):  # Start again if an object is not visible enough.
        things, cover = [], np.zeros_like(canvas.labels)
        for class_id, radius in zip(classes, np.append(np.sort(radii), 0.14) * min(size) / 2):
            shapes, is_crowd = [], len(things) == count
            for _ in range(20 if is_crowd else 1):
                anywhere = rng.uniform(0.7 * radius, size - 0.7 * radius)
                center = size * rng.normal(0.5, 0.1, 2) if is_crowd else anywhere
                shapes += placed(rng, COCO[class_id](rng), center, radius, 25)
            mask = fill(np.zeros_like(cover), shapes, 1)
            if (thing := annotate(mask, cover, is_crowd)) is None:
                break
            things.append((shapes, dict(thing, category_id=class_id)))
            cover |= mask
    for shapes, _ in reversed(things):
        canvas.draw(shapes, shadow=0.04 * min(size))
    return canvas.finish(), [thing for _, thing in things]


def draw_ade(rng: Rng, index: int) -> tuple[Image.Image, Image.Image]:
    """Draws a street and the map of its class ids."""
    size = width, height = np.array([8 * rng.integers(16, 21), 128])
    canvas, horizon = Canvas(rng, size, 0.55, SKY), rng.uniform(0.42, 0.52)

    def stand(painter, label: int, x: float, foot: float, tall: float) -> None:
        center, radius = (x * width, (foot - tall / 2) * height), tall * height / 2
        canvas.draw(placed(rng, painter(rng), center, radius), label, shadow=2)

    if rng.random() < 0.4:  # It belongs to no class and stays unlabeled.
        stand(kite, 0, rng.uniform(0.15, 0.85), 0.34, 0.3)
    canvas.ground(horizon, 0.08, color(rng, 85, 0.6, 0.7), GRASS)
    near, far = horizon + rng.uniform((0.42, 0.14), (0.48, 0.2))
    for x in np.arange(rng.uniform(0, 0.2), 1.1, rng.uniform(0.28, 0.45)):
        stand(building, BUILDING, x, far - 0.06, rng.uniform(0.28, 0.5))
    for x in rng.uniform(0, 1, rng.integers(1, 4)):
        stand(tree, TREE, x, far - 0.01, rng.uniform(0.28, 0.4))
    middle, kerb = (far + near) / 2, box(0, far, 1, far + 0.02)
    road = [(box(0, far, 1, near), color(rng, 220, 0.06, 0.4)), (kerb, WHITE * 0.75)]
    road += [(box(x, middle, x + 0.12, middle + 0.02), WHITE) for x in np.arange(0, 1, 0.2)]
    canvas.draw([(points * size, paint) for points, paint in road], ROAD)
    for lane, x in product((far + 0.2, near + 0.07), np.arange(rng.random(), 1, 0.5)):
        stand(car, CAR, (x + 2 * lane) % 1, lane, rng.uniform(0.34, 0.42))
    return canvas.finish(), Image.fromarray(canvas.labels[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE])


def draw_imagenet(rng: Rng, index: int, painter: Callable) -> tuple[Image.Image]:
    """Draws one object of a class in front of varied scenery."""
    size = 8 * rng.integers(8, 13, 2)
    canvas, radius = Canvas(rng, size, 0.25), rng.uniform(0.3, 0.5) * min(size)
    canvas.scenery()
    center = rng.uniform(0.9 * radius, size - 0.9 * radius)
    canvas.draw(placed(rng, painter(rng), center, radius, 25), shadow=0.15 * radius)
    return (canvas.finish(),)


def images(draw: Callable, part: str, seed: int, count: int, *args) -> Iterator[tuple]:
    for index in track(range(count), part):
        yield index, *draw(np.random.default_rng([seed, index, *part.encode()]), index, *args)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=92, subsampling=0)


# The names of the files that this module writes. Only these may be replaced.
NAMES = r'(coco|ade|imagenet)/.*(2017/\d{12}\.jpg|_\w+2017\.json|/ADE_\w+_\d{8}\....|_\d{4}\.JPEG)'


def contents(folder: Path) -> list[str]:
    paths = folder.rglob('*')
    return sorted(path.relative_to(folder).as_posix() for path in paths if not path.is_dir())


def digest(folder: Path) -> str:
    """Returns the SHA-256 of the names and bytes of all files."""
    names = [name for name in contents(folder) if name != 'toy.json']
    data = (name.encode() + (folder / name).read_bytes() for name in names)
    return hashlib.sha256(b''.join(data)).hexdigest()


def make_toy_data(folder: Path, seed: int, counts: dict[str, list[int]]) -> bool:
    """Writes the datasets, and replaces earlier ones.

    Args:
        folder (Path): The folder.
        seed (int): The seed of all random choices.
        counts (dict[str, list[int]]): The numbers of training and validation images for 'coco',
            'ade' and 'imagenet'. Those for 'imagenet' are per class.

    Returns:
        bool: False if the folder already holds the same data, undamaged.

    Raises:
        DataError: If the folder holds anything else.
    """
    stamp, settings = folder / 'toy.json', dict(GENERATOR, seed=seed, counts=counts)
    found, present = stamp.read_text() if stamp.is_file() else '', contents(folder)
    if ours := GENERATOR['generator'] in found:
        present.remove('toy.json')
    if foreign := [name for name in present if not (ours and re.fullmatch(NAMES, name))]:
        raise DataError(
            f"'{folder}' holds {foreign[0]}, which is not synthetic data; name another folder."
        )
    if json.dumps(dict(settings, sha256=digest(folder))) == found:
        return False
    for dataset in counts:  # Whole folders, because MMPretrain would take an empty one for a class.
        shutil.rmtree(folder / dataset, ignore_errors=True)
    (folder / 'coco' / 'annotations').mkdir(parents=True)
    # Without settings, so that an interrupted run is repeated.
    stamp.write_text(json.dumps(GENERATOR))
    _write_coco(folder, seed, counts['coco'])
    _write_ade(folder, seed, counts['ade'])
    _write_imagenet(folder, seed, counts['imagenet'])
    stamp.write_text(json.dumps(dict(settings, sha256=digest(folder))))
    return True


def _write_coco(folder: Path, seed: int, counts: list[int]) -> None:
    for split, first_id, count in zip(('train2017', 'val2017'), (1, 500_001), counts):
        categories = [dict(id=key, name=p.__name__.replace('_', ' ')) for key, p in COCO.items()]
        content = dict(images=[], annotations=[], categories=categories)
        for index, image, things in images(draw_coco, f'coco/{split}', seed, count):
            record = dict(id=first_id + index, file_name=f'{first_id + index:012d}.jpg')
            content['images'].append(dict(record, width=image.width, height=image.height))
            save(image, folder / 'coco' / split / record['file_name'])
            for thing in things:
                thing.update(id=len(content['annotations']) + 1, image_id=record['id'])
                content['annotations'].append(thing)
        (folder / 'coco/annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _write_ade(folder: Path, seed: int, counts: list[int]) -> None:
    ade = folder / 'ade' / 'ADEChallengeData2016'
    for split, short, count in zip(('training', 'validation'), ('train', 'val'), counts):
        for index, image, labels in images(draw_ade, f'ade/{split}', seed, count):
            name = f'ADE_{short}_{index + 1:08d}'
            save(image, ade / 'images' / split / f'{name}.jpg')
            save(labels, ade / 'annotations' / split / f'{name}.png')


def _write_imagenet(folder: Path, seed: int, counts: list[int]) -> None:
    for (split, count), wnid in product(zip(('train', 'val'), counts), IMAGENET):
        part = f'imagenet/{split}/{wnid}'
        for index, image in images(draw_imagenet, part, seed, count, IMAGENET[wnid]):
            save(image, folder / part / f'{wnid}_{split}_{index + 1:04d}.JPEG')

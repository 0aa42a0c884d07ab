"""COCO, as many tools export it: files that are used unchanged, and those that need repair."""

from collections import Counter
from pathlib import Path

from mmhatnet.data_formats.contents import (
    DataFolder,
    Findings,
    LabeledImage,
    LabeledObject,
    box_and_area,
    why_dropped,
)
from mmhatnet.data_formats.files import (
    Images,
    files_with,
    folders,
    number,
    read_json,
    short,
    split_of,
)
from mmhatnet.errors import DataError

PARTS = ('images', 'annotations', 'categories')
LARGEST = 2**31  # more than any side of an image
NUMBERED = 'ids of {} are numbered anew, as pycocotools needs whole numbers, each once{}'


def read(root: Path, findings: Findings) -> DataFolder | None:
    """Reads the annotation files of a folder, of which those of instances replace others."""
    if not (files := _find_files(root, findings)):
        return None
    classes = list(dict.fromkeys(name for file in files.values() for name in file.classes))
    for file in files.values():
        if file.classes != classes:
            file.repairs['categories are joined, as those of the splits differ'] = len(classes)
    images, splits, unchanged = Images(root), {}, {}
    for split, file in files.items():
        splits[split], place = file.read(root, split, images)
        findings.notes += [f'{file.path}: {text}: {n:,}.' for text, n in file.repairs.items()]
        unchanged[split] = file.path, place
    if any(file.repairs for file in files.values()):
        unchanged = {}
    return DataFolder('COCO', classes, splits, unchanged)


def _find_files(root: Path, findings: Findings) -> dict:
    """Returns the annotation files by split."""
    files: dict[str | None, _File] = {}
    paths = files_with(root, '.json', depth=2)
    for path in sorted(paths, key=lambda path: 'instances' in path.name):
        text = path.read_bytes()
        if not all(f'"{part}"'.encode() in text for part in PARTS):
            continue
        content = read_json(path)
        if isinstance(content, dict) and {*PARTS} <= {*content}:
            split = split_of(path.relative_to(root))
            if split is None and None in files:
                raise DataError(
                    f'{files[None].path} and {path} name no split: rename them to train.json and '
                    'val.json, or leave one of them there, which is then divided.'
                )
            if other := files.get(split):
                if 'instances' not in path.name or 'instances' in other.path.name:
                    raise DataError(
                        f'{other.path} and {path} are both of the split {split}: join them, or '
                        'move one of them away.'
                    )
                findings.notes.append(f'{other.path} is left out, as {path} replaces it.')
            files[split] = _File(path, content, findings)
    if len(files) > 1 and None in files:
        findings.notes.append(f'{files.pop(None).path} names no split, and is left out.')
    return files


def _key(value: object) -> str:
    """Returns an id as a text, in which numbers and texts of the same digits are equal."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)


class _File:
    """An annotation file.

    Attributes:
        path (Path): The file.
        classes (list[str]): The names of its classes.
        repairs (Counter): How often the file differs from what MMDetection and pycocotools need.
    """

    def __init__(self, path: Path, content: dict, findings: Findings) -> None:
        self.path, self._content, self._findings = path, content, findings
        self.repairs: Counter[str] = Counter()
        for part in PARTS:
            entries = content[part]
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
                raise DataError(f'{path}: "{part}" is no list of dicts: export it again.')
        self._names: dict[str, str] = {}
        self._check_ids('categories')
        self._check_ids('images')
        for category in content['categories']:
            name = category.get('name')
            if not isinstance(name, str) or not name.strip():
                raise DataError(f'{path}: the name of a category is {short(name)}: name it.')
            if self._names.setdefault(_key(category.get('id')), name) != name:
                raise DataError(
                    f'{path}: the categories {self._names[_key(category.get("id"))]!r} and '
                    f'{name!r} have the same id {category.get("id")}: correct one of them.'
                )
        used = {self._names.get(_key(a.get('category_id'))) for a in content['annotations']}
        # Roboflow also lists the project itself, as a supercategory.
        parents = {str(category.get('supercategory')) for category in content['categories']}
        names = list(dict.fromkeys(category['name'] for category in content['categories']))
        self.classes = [name for name in names if name in used or name not in parents]
        if twice := len(content['categories']) - len(names):
            self.repairs['categories have the name of another one, and are one with it'] = twice

    def _check_ids(self, part: str) -> None:
        ids = [entry.get('id') for entry in self._content[part]]
        wrong = [i for i in ids if type(i) is not int or i < 0]
        if part == 'annotations':
            wrong += [0] * ids.count(0)
        if wrong or len({*map(_key, ids)}) < len(ids):
            example = f', and not {short(wrong[0])}' if wrong else ''
            self.repairs[NUMBERED.format(part, example)] = len(ids)

    def read(self, root: Path, split: str | None, known: Images) -> tuple[list[LabeledImage], Path]:
        """Returns the images with their objects, and the folder that names of images start at."""
        images, place = self._read_images(root, split, known)
        raw = {_key(image.get('id')): image.get('id') for image in self._content['images']}
        self._check_ids('annotations')
        for index, entry in enumerate(self._content['annotations'], 1):
            key, name = _key(entry.get('image_id')), _key(entry.get('category_id'))
            if key not in raw or name not in self._names:
                self._drop(index, entry, 'Annotations without an image or a category in the file')
            elif key in images:
                if entry['image_id'] != raw[key]:
                    self.repairs['values of "image_id" are of another type than the ids'] += 1
                self._read_object(images[key], index, self._names[name], entry)
        return list({id(image): image for image in images.values()}.values()), place

    def _read_images(
        self, root: Path, split: str | None, known: Images
    ) -> tuple[dict[str, LabeledImage], Path]:
        entries, images, paths = self._content['images'], {}, {}
        names = [entry.get('file_name') for entry in entries]
        place = self._place(root, split, names)
        for entry, name in zip(entries, names):
            number_of = f'{self.path}, image with the id {short(entry.get("id"))}'
            key = _key(entry.get('id'))
            if not isinstance(name, str) or not name:
                self._findings.refuse(number_of, f'its "file_name" is {short(name)}: name the file')
                continue
            path = place / name
            if not _is_file(path):
                path = known.find(name, place, self.path.parent, split=split)
                self.repairs['images are elsewhere than "file_name" says'] += 1
            if path is None:
                self._findings.refuse(
                    number_of,
                    f'there is no {short(name)} in {root} (or several images of that name): put '
                    f'it there, or remove it from the file',
                )
            elif paths.setdefault(key, path) != path:
                self._findings.refuse(
                    number_of, f'{paths[key].name} has the same id: number the images anew'
                )
            elif key not in images and (image := self._open(path, number_of, entry)):
                images[key] = image
        return images, place

    def _place(self, root: Path, split: str | None, names: list) -> Path:
        """Returns the folder that most of the first names are in."""
        sample = [name for name in names[:20] if isinstance(name, str) and name]
        places = [self.path.parent, *folders(root, 2)]
        places.sort(key=lambda place: split_of(place.relative_to(root)) != split)
        return max(places, key=lambda place: sum(_is_file(place / name) for name in sample))

    def _open(self, path: Path, place: str, entry: dict) -> LabeledImage | None:
        size = [entry.get('width'), entry.get('height')]
        if all(type(side) is int and 0 < side < LARGEST for side in size):
            return LabeledImage(path, *size)
        self.repairs['images have no width or height, which those of the files replace'] += 1
        return self._findings.image(path, place)

    def _read_object(self, image: LabeledImage, index: int, name: str, entry: dict) -> None:
        try:
            outline = self._outline(entry.get('segmentation'))
            box = self._box(entry.get('bbox'), outline)
        except (TypeError, ValueError):
            reason = 'Annotations whose box or outline is not of finite numbers'
            self._drop(index, entry, reason)
            self.repairs['annotations have no usable box'] += 1
            return
        area = entry.get('area')
        if type(area) not in (int, float) or not 0 < area < LARGEST**2:
            drawn = isinstance(outline, list)
            area = box_and_area(outline)[1] if drawn else max(box[2], 0) * max(box[3], 0)
            self.repairs.update(['areas are filled in'] * (area > 0))
        if type(entry.get('iscrowd')) is not int or entry['iscrowd'] not in (0, 1):
            self.repairs['values of "iscrowd" are filled in'] += 1
        if reason := why_dropped(box, area, image):
            self._drop(index, entry, reason)
            self.repairs.update(['objects are far from their image'] * ('far' in reason))
            return
        marked = {str(entry.get(key) or 0).lower() for key in ('iscrowd', 'ignore')}
        ignored = not marked <= {'0', 'false'}
        image.objects.append(LabeledObject(name, box, area, outline, ignored))

    def _drop(self, index: int, entry: dict, reason: str) -> None:
        place = f'{self.path}, annotation {index} (id {short(entry.get("id"))})'
        self._findings.drop(place, reason)

    def _outline(self, given: object) -> list[list[float]] | dict | None:
        if isinstance(given, dict) or not given:
            return given or None
        if not isinstance(given, list):
            raise ValueError
        if not isinstance(given[0], list):
            self.repairs['outlines are no list of polygons'] += 1
            given = [given]
        parts = [[*map(number, part)] for part in given]
        sound = [part for part in parts if len(part) >= 6 and len(part) % 2 == 0]
        if sound != given:
            self.repairs['outlines have parts without three points, or numbers as text'] += 1
        return sound or None

    def _box(self, given: object, outline: object) -> list[float]:
        if not isinstance(given, list) or len(given) != 4:
            if not isinstance(outline, list):
                raise ValueError
            self.repairs['boxes are made of outlines'] += 1
            return box_and_area(outline)[0]
        if any(isinstance(value, str) for value in given):
            self.repairs['boxes have numbers as text'] += 1
        return [*map(number, given)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no path can have
        return False

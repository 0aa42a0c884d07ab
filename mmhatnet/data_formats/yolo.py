"""YOLO: a text file for each image, a line for each object, in fractions of the image."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmhatnet.data_formats.contents import DataFolder, Findings, LabeledImage, corners
from mmhatnet.data_formats.files import (
    IMAGES,
    files_with,
    folders,
    number,
    read_text,
    read_yaml,
    relative,
    short,
    split_of,
)
from mmhatnet.errors import DataError

DATA_YAML = re.compile(rb'^[\'"]?names[\'"]?\s*:', re.MULTILINE)
NAMES = ('classes.txt', 'obj.names')
# Rounding and outlines at the edge of an image leave it by less than this.
BEYOND = 0.01


def read(root: Path, findings: Findings) -> DataFolder | None:
    """Reads detection and segmentation data with data.yaml, or with a list of names."""
    paths = [p for top in folders(root, 1) for p in sorted(top.glob('*.y*ml')) if p.is_file()]
    paths = [path for path in paths if DATA_YAML.search(path.read_bytes())]
    paths.sort(key=lambda path: path.name not in ('data.yaml', 'data.yml'))
    if paths:
        content = read_yaml(paths[0])
        names = _names(content, paths[0])
        splits = _listed(content, paths[0], findings)
        if len(paths) > 1:
            findings.notes.append(f'{paths[0]} is read, and not {paths[1]}.')
    else:
        content = {}
        file = next(
            (p for top in folders(root, 1) for n in NAMES if (p := top / n).is_file()), None
        )
        images = files_with(root, *IMAGES) if file else []
        if not any(_label_file(image).is_file() for image in images):
            return None
        names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
        splits = {}
        for image in images:
            splits.setdefault(split_of(image.parent.relative_to(root)), []).append(image)
    _require_labels(root, splits, findings)
    read_images = {
        split: [
            image
            for path in paths
            if (image := _read_image(path, names, 'kpt_shape' in content, findings))
        ]
        for split, paths in splits.items()
    }
    return DataFolder('YOLO', names, read_images)


def _names(content: dict, path: Path) -> list[str]:
    given = content.get('names')
    if isinstance(given, dict):
        keys = sorted(given, key=lambda key: (len(key), key))
        if keys != [str(i) for i in range(len(keys))]:
            raise DataError(
                f'{path}: the numbers of "names" are {short(", ".join(keys))}: number them from 0 '
                f'to {len(keys) - 1}, as the labels do.'
            )
        given = [given[key] for key in keys]
    if not isinstance(given, list) or not given or not all(isinstance(n, str) for n in given):
        raise DataError(f'{path}: "names" is {short(given)}: list the classes, as [cat, dog].')
    if twice := [name for name, number_of in Counter(given).items() if number_of > 1]:
        raise DataError(f'{path}: "names" has {twice[0]!r} twice: give each class its own name.')
    return given


def _listed(content: dict, file: Path, findings: Findings) -> dict[str | None, list[Path]]:
    """Returns the images of each split that data.yaml names."""
    base, splits = content.get('path'), {}
    # The path may be that of another computer.
    bases = [file.parent / base, file.parent] if isinstance(base, str) else [file.parent]
    for key in ('train', 'val', 'valid', 'test'):
        given = content.get(key) or []
        entries = given if isinstance(given, list) else [given]
        if not entries:
            continue
        if not all(isinstance(entry, str) for entry in entries):
            raise DataError(f'{file}: "{key}" is {short(given)}: name folders or lists of images.')
        found = [_place(entry, bases) for entry in entries]
        if None in found and key == 'test':
            findings.notes.append(f'{file}: "test" names {short(given)}, which is not there.')
            continue
        if None in found:
            entry = entries[found.index(None)]
            raise DataError(
                f'{file}: "{key}" names {short(entry)}, which is neither below {file.parent} nor '
                f'below "path": correct it, relative to {file.parent}.'
            )
        images = [image for place in found for image in _images_at(place, bases, findings)]
        splits['val' if key == 'valid' else key] = list(dict.fromkeys(images))
    if not splits:
        raise DataError(f'{file} has no "train": name the folder of the images, as images/train.')
    return splits


def _place(entry: str, bases: list[Path]) -> Path | None:
    """Returns where an entry of data.yaml or of a list is."""
    entry = plain = entry.replace('\\', '/')
    # Roboflow writes ../train/images for train/images.
    while plain.startswith('../'):
        plain = plain.removeprefix('../')
    places = [base / name for name in (entry, plain) for base in bases]
    return next(filter(_exists, places), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no path can have
        return False


def _images_at(place: Path, bases: list[Path], findings: Findings) -> Iterator[Path]:
    """Yields the images in a folder, or those that a text file lists."""
    if place.is_dir():
        yield from files_with(place, *IMAGES)
        return
    if place.suffix.lower() in IMAGES:
        yield place
        return
    for line, text in enumerate(read_text(place).splitlines(), 1):
        name = text.strip()
        if not name:
            continue
        if path := _place(name, [place.parent, *bases]):
            yield path
        else:
            findings.refuse(
                f'{place}, line {line}',
                f'there is no image {short(name)}: name it relative to {place.parent}',
            )


def _label_file(image: Path) -> Path:
    """Returns where the labels of an image are: in the twin folder, or beside it."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == 'images':
            twin = Path(*parts[:i], 'labels', *parts[i + 1 :]).with_suffix('.txt')
            if twin.parent.is_dir():
                return twin
            break
    return image.with_suffix('.txt')


def _require_labels(root: Path, splits: dict, findings: Findings) -> None:
    images = [image for paths in splits.values() for image in paths]
    files = {_label_file(image) for image in images}
    without = sum(not file.is_file() for file in files)
    if images and without == len(files):
        raise DataError(
            f'None of {len(images):,} images, such as {images[0]}, has labels: put them in a '
            'folder labels beside the folder images, with the same names and .txt, or beside the '
            'images.'
        )
    if without:
        findings.notes.append(f'Images without a label file count as background: {without:,}.')
    # Beside images there may be texts of other kinds.
    places = {file.parent for file in files if 'labels' in file.parts}
    texts = {path for place in places if place.is_dir() for path in place.glob('*.txt')}
    for path in sorted(texts - files):
        if path.name not in NAMES:
            findings.drop(relative(path, root), 'Label files without an image')


def _read_image(
    path: Path, names: list[str], keypoints: bool, findings: Findings
) -> LabeledImage | None:
    file = _label_file(path)
    image = findings.image(path, file)
    if image is None or not file.is_file():
        return image
    for line, text in enumerate(read_text(file).splitlines(), 1):
        if words := text.split():
            place = f'{file}, line {line}'
            words = words[:5] if keypoints else words
            if fault := _read_line(image, place, words, names, findings):
                findings.refuse(place, fault)
    return image


def _read_line(
    image: LabeledImage, place: str, words: list[str], names: list[str], findings: Findings
) -> str | None:
    """Adds the object of a line, or returns what is wrong with the line."""
    try:
        index, *values = map(number, words)
    except ValueError:
        return f'{short(" ".join(words))} are not all finite numbers: correct it'
    if index != int(index) or not 0 <= index < len(names):
        last = len(names) - 1
        return f'the class is {words[0]}, and "names" has 0 to {last}: correct one of them'
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return (
            f'it has {len(values)} numbers after the class, but a box has 4 (center x, center y, '
            'width, height), and an outline 2 for each of three points or more: export it again'
        )
    if wrong := [value for value in values if not -BEYOND <= value <= 1 + BEYOND]:
        return (
            f'it has {wrong[0]:g}, but coordinates are fractions of the image from 0 to 1: divide '
            'x and widths by the width in pixels, y and heights by the height'
        )
    name, size = names[int(index)], (image.width, image.height)
    if len(values) == 4:
        x, y, w, h = (value * size[i % 2] for i, value in enumerate(values))
        box = corners(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        findings.add(image, place, name, box, box=True)
    else:
        outline = [value * size[i % 2] for i, value in enumerate(values)]
        findings.add(image, place, name, [outline])
    return None

"""Pascal VOC: an XML file for each image, with boxes in pixels."""

from dataclasses import dataclass
from pathlib import Path

from mmhatnet.data_formats.contents import DataFolder, Findings, LabeledImage, corners
from mmhatnet.data_formats.files import (
    Images,
    files_with,
    number,
    read_text,
    read_xml,
    short,
    split_of,
)

EDGES = ('xmin', 'ymin', 'xmax', 'ymax')


@dataclass
class _File:
    """An XML file: the name and size of its image, and the values of its objects."""

    path: Path
    name: str
    size: list[str | None]
    objects: list[dict[str, str]]


def read(root: Path, findings: Findings) -> DataFolder | None:
    """Reads a folder with Annotations, JPEGImages and ImageSets/Main, or XML beside images."""
    files = [file for path in files_with(root, '.xml') if (file := _read_file(path))]
    if not files:
        return None
    first = _first_pixel(files, findings)
    found, known, names, splits = {}, Images(root), set(), {}
    for file in files:
        split = split_of(file.path.parent.relative_to(root))
        image = _open_image(file, known, split, findings)
        for index, item in enumerate(file.objects, 1):
            place = f'{file.path}, object {index}'
            if fault := _read_object(image, place, item, first, findings):
                findings.refuse(place, fault)
            names.add(item['name'])
        if image:
            found[file.path] = image
            splits.setdefault(split, []).append(image)
    return DataFolder('Pascal VOC', sorted(names), _listed(root, found, findings) or splits)


def _read_file(path: Path) -> _File | None:
    # Without the zeros of UTF-16.
    if b'<annotation' not in path.read_bytes().replace(b'\0', b''):
        return None
    tree = read_xml(path)
    if tree.tag != 'annotation':
        return None
    fields = dict(name='name', difficult='difficult', **{e: f'bndbox/{e}' for e in EDGES})
    objects = [
        {key: (item.findtext(place) or '').strip() for key, place in fields.items()}
        for item in tree.iterfind('object')
    ]
    size = [tree.findtext(f'size/{side}') for side in ('width', 'height')]
    return _File(path, (tree.findtext('filename') or '').strip(), size, objects)


def _first_pixel(files: list[_File], findings: Findings) -> int:
    """Returns whether pixels are counted from 1, as VOC does, or boxes are edges from 0.

    Many tools write edges. These begin at 0 at the border of an image, or are no whole numbers.
    """
    starts, broken, total = [], 0, 0
    for item in (item for file in files for item in file.objects):
        try:
            values = [number(item[edge]) for edge in EDGES]
        except ValueError:
            continue
        total += 1
        broken += any(value % 1 for value in values)
        starts += values[:2]
    if 2 * broken > total or any(0 <= start < 1 for start in starts):
        findings.notes.append('Boxes begin at 0, so they are read as edges, not as pixels from 1.')
        return 0
    return 1


def _open_image(
    file: _File, known: Images, split: str | None, findings: Findings
) -> LabeledImage | None:
    path, name = file.path, file.name
    near = path.parent, path.parent.parent / 'JPEGImages', path.parent.parent / 'images'
    # Images are often renamed with their XML files, which still have the old name inside.
    names = [name, path.stem] if Path(name).stem == path.stem else [path.stem, name]
    found = next(filter(None, (known.find(text, *near, split=split) for text in names)), None)
    if found is None:
        findings.refuse(
            path,
            f'there is no image {short(name or path.stem)} (or several): put it in {near[1]}, or '
            'remove this file',
        )
        return None
    try:
        stated = [number(side or 0) for side in file.size]
    except ValueError:
        stated = None
    return findings.image(found, path, stated)


def _read_object(
    image: LabeledImage | None, place: str, item: dict[str, str], first: int, findings: Findings
) -> str | None:
    """Adds an object, or returns what is wrong with it."""
    if not item['name']:
        return 'it has no <name>: give it the name of its class'
    try:
        left, top, right, bottom = (number(item[edge]) for edge in EDGES)
    except ValueError:
        given = ', '.join(f'{edge} {short(item[edge]) or "missing"}' for edge in EDGES)
        return f'its <bndbox> is not four finite numbers ({given}): correct it'
    if image:
        low = left - first, top - first
        box = corners(*low, max(right, low[0]), max(bottom, low[1]))
        ignored = item['difficult'] not in ('', '0')
        findings.add(image, place, item['name'], box, box=True, ignored=ignored)
    return None


def _listed(root: Path, found: dict[Path, LabeledImage], findings: Findings) -> dict:
    """Returns the images of each split that ImageSets/Main lists."""
    splits: dict[str, list[LabeledImage]] = {}
    for file in files_with(root, '.txt'):
        # Other lists are of single classes.
        if file.parent.name != 'Main' or file.stem not in ('train', 'val', 'test', 'trainval'):
            continue
        top = file.parent.parent.parent
        images = {path.stem: image for path, image in found.items() if path.parent.parent == top}
        names = dict.fromkeys(filter(None, map(str.strip, read_text(file).splitlines())))
        if missing := [name for name in names if name not in images]:
            findings.notes.append(
                f'{file}: {len(missing):,} of {len(names):,} images have no XML file in '
                f'Annotations, and are left out, such as {short(missing[0])}.'
            )
        if there := [images[name] for name in names if name in images]:
            splits.setdefault(file.stem, []).extend(there)
    both = splits.pop('trainval', [])
    if both and 'train' not in splits:
        splits['train'] = both
    used = {id(image) for images in splits.values() for image in images}
    if splits and (left := [path for path, image in found.items() if id(image) not in used]):
        findings.notes.append(
            f'{len(left):,} XML files are in no list of ImageSets/Main, such as {left[0]}.'
        )
    return splits

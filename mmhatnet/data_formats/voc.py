"""Pascal VOC: an XML file for each image, with boxes in pixels."""

from pathlib import Path
from xml.etree.ElementTree import Element

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


def read(root: Path, findings: Findings) -> DataFolder | None:
    """Reads a folder with Annotations, JPEGImages and ImageSets/Main, or XML beside images."""
    trees = {}
    for path in files_with(root, '.xml'):
        # Without the zeros of UTF-16.
        if b'<annotation' in path.read_bytes().replace(b'\0', b''):
            tree = read_xml(path)
            if tree.tag == 'annotation':
                trees[path] = tree
    if not trees:
        return None
    first = _first_pixel(trees, findings)
    found, known, names = {}, Images(root), {}
    for path, tree in trees.items():
        split = split_of(path.parent.relative_to(root))
        if image := _open_image(path, tree, known, split, findings):
            found[path] = image
        for index, item in enumerate(tree.iterfind('object'), 1):
            place = f'{path}, object {index}'
            if (fault := _read_object(image, place, item, first, findings)) is None:
                names.setdefault(item.findtext('name').strip())
            else:
                findings.refuse(place, fault)
    splits = _listed(root, found, findings) or {}
    for path, image in {} if splits else found.items():
        splits.setdefault(split_of(path.parent.relative_to(root)), []).append(image)
    return DataFolder('Pascal VOC', sorted(names), splits)


def _first_pixel(trees: dict[Path, Element], findings: Findings) -> int:
    """Returns whether pixels are counted from 1, as VOC does, or boxes are edges from 0.

    Many tools write edges. These begin at 0 at the border of an image, or are no whole numbers.
    """
    starts, broken, total = [], 0, 0
    for tree in trees.values():
        for box in tree.iterfind('object/bndbox'):
            try:
                values = [number(box.findtext(edge)) for edge in EDGES]
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
    path: Path, tree: Element, known: Images, split: str | None, findings: Findings
) -> LabeledImage | None:
    name = (tree.findtext('filename') or '').strip()
    near = path.parent, path.parent.parent / 'JPEGImages', path.parent.parent / 'images'
    # Images are often renamed with their XML files, which still have the old name inside.
    own = Path(name).stem == path.stem
    found = None if own else known.find(path.stem, *near, split=split)
    found = found or known.find(name or path.stem, *near, split=split)
    if found is None:
        findings.refuse(
            path,
            f'there is no image {short(name or path.stem)} (or several): put it in {near[1]}, or '
            'remove this file',
        )
        return None
    try:
        stated = [number(tree.findtext(f'size/{side}') or 0) for side in ('width', 'height')]
    except ValueError:
        stated = None
    return findings.image(found, path, stated)


def _read_object(
    image: LabeledImage | None, place: str, item: Element, first: int, findings: Findings
) -> str | None:
    """Adds an object, or returns what is wrong with it."""
    if not (name := (item.findtext('name') or '').strip()):
        return 'it has no <name>: give it the name of its class'
    values = [item.findtext(f'bndbox/{edge}') for edge in EDGES]
    try:
        left, top, right, bottom = map(number, values)
    except ValueError:
        given = ', '.join(f'{edge} {short(v)}' for edge, v in zip(EDGES, values))
        return f'its <bndbox> is not four finite numbers ({given}): correct it'
    if image:
        low = left - first, top - first
        box = corners(*low, max(right, low[0]), max(bottom, low[1]))
        difficult = (item.findtext('difficult') or '').strip() not in ('', '0')
        findings.add(image, place, name, box, box=True, ignored=difficult)
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

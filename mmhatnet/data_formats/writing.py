"""Writes annotations in COCO format beside the data, with a report."""

import hashlib
import json
import os
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

from mmhatnet.data_formats.contents import DataFolder, Findings, LabeledImage, corners
from mmhatnet.data_formats.files import OURS, relative
from mmhatnet.errors import DataError, printable

WRITTEN = 'Written by mmhatnet new-config'
DIGITS = 3  # of a pixel


class Conversion:
    """The annotations of a folder as files in COCO format.

    Args:
        root (Path): The folder.
        folder (DataFolder): What it holds. Splits that are missing are made.
        findings (Findings): What is odd in it.
        masks (bool, optional): Whether objects need outlines. Defaults to what most of them have.

    Attributes:
        files (dict[str, Path]): The annotation files by split.
        places (dict[str, Path]): The folders that their names of images start at.
        masks (bool): Whether all objects have outlines.

    Raises:
        DataError: If there is nothing to train with.
    """

    def __init__(
        self, root: Path, folder: DataFolder, findings: Findings, masks: bool | None = None
    ) -> None:
        self._root, self._folder, self._findings = root, folder, findings
        files = dict(folder.files)
        self.splits = _with_validation(root, folder.splits, files, findings)
        _note_repeated(self.splits, findings)
        objects = [o for images in self.splits.values() for i in images for o in i.objects]
        outlined = sum(o.outline is not None for o in objects)
        trained = [thing for image in self.splits['train'] for thing in image.objects]
        if all(thing.ignored for thing in trained):
            if trained:
                findings.notes.append('All of them are marked as crowds or difficult.')
            why = ' '.join(findings.lines())
            raise DataError(f'{root}: the training images have no objects to train with. {why}')
        self.masks = 2 * outlined > len(objects) if masks is None else masks
        if self.masks and not outlined:
            raise DataError(
                f'{root}: the objects have boxes and no outlines, which --job maskrcnn needs: '
                'leave it out, or give --job retinanet.'
            )
        if self.masks and outlined < len(objects):
            self._outline_boxes(objects)
            files = {}
        elif outlined and not self.masks and masks is None:
            findings.notes.append(
                f'{len(objects) - outlined:,} of {len(objects):,} objects have no outline, so that '
                'the config trains a detector of boxes. --job maskrcnn takes boxes as outlines.'
            )
        self.made = not {'train', 'val'} <= {*files}
        self.places = dict.fromkeys(self.splits, root)
        self.files = {split: root / OURS / f'{split}.json' for split in self.splits}
        if not self.made:
            self.files = {split: file for split, (file, _) in files.items()}
            self.places = {split: place for split, (_, place) in files.items()}

    def _outline_boxes(self, objects: list) -> None:
        boxes = [thing for thing in objects if thing.outline is None]
        for thing in boxes:
            left, top, width, height = thing.box
            thing.outline = corners(left, top, left + width, top + height)
        self._findings.notes.append(
            f'{len(boxes):,} of {len(objects):,} objects have no outline, and their box is taken '
            'as one.'
        )

    def report(self) -> str:
        """Returns the numbers of images and objects, and what is odd, as lines of text."""
        splits, classes = self.splits, self._folder.classes
        rows = {'images': [len(images) for images in splits.values()]}
        rows['without objects'] = [
            sum(not image.objects for image in images) for images in splits.values()
        ]
        counts = [
            Counter(thing.name for image in images for thing in image.objects)
            for images in splits.values()
        ]
        rows |= {
            f'objects: {printable(name)}': [count[name] for count in counts] for name in classes
        }
        wide = max(map(len, rows))
        lines = [f'{self._folder.source} annotations in {self._root}']
        lines += [' ' * wide + ''.join(f'{split:>10}' for split in splits)]
        lines += [
            f'{name:{wide}}' + ''.join(f'{number:>10,}' for number in numbers)
            for name, numbers in rows.items()
        ]
        ignored = sum(o.ignored for images in splits.values() for i in images for o in i.objects)
        if ignored:
            lines.append(f'Objects marked as crowds or difficult are not judged: {ignored:,}.')
        return '\n'.join(lines + self._findings.lines())

    def validation_images(self) -> Path:
        """Returns the folder of the validation images, or one of them if others are in it."""
        paths = {split: [image.path for image in images] for split, images in self.splits.items()}
        # The folder of the first one, or one above it that has them all.
        for folder in paths['val'][0].parents:
            if any(folder in path.parents for path in paths['train']):
                break
            if all(folder in path.parents for path in paths['val']):
                return folder
        return paths['val'][0]

    def write(self) -> None:
        """Writes the files, unless the folder's own can be used or they are up to date.

        Raises:
            DataError: If a file is not of this package, or cannot be written.
        """
        if not self.made:
            return
        texts = {self.files[split]: self._as_json(split) for split in self.splits}
        report = self._root / OURS / 'report.txt'
        texts[report] = f'{WRITTEN}.\n{self.report()}\n'
        for path in texts:
            if os.path.lexists(path) and not _is_ours(path):
                raise DataError(
                    f'{path} would be replaced, and was changed or is of another program: move it '
                    'away.'
                )
        for path, text in texts.items():
            if not path.exists() or path.read_bytes() != text.encode():
                _write(path, text)

    def _as_json(self, split: str) -> str:
        numbers = {name: i for i, name in enumerate(self._folder.classes, 1)}
        content = dict(info=dict(description=f'{WRITTEN} from {self._folder.source} annotations'))
        content['categories'] = [dict(id=i, name=name) for name, i in numbers.items()]
        content['images'], content['annotations'] = [], []
        for index, image in enumerate(self.splits[split], 1):
            name = relative(image.path, self._root)
            size = dict(width=image.width, height=image.height)
            content['images'].append(dict(id=index, file_name=name, **size))
            for thing in image.objects:
                ids = dict(id=len(content['annotations']) + 1, image_id=index)
                entry = dict(**ids, category_id=numbers[thing.name], bbox=_rounded(thing.box))
                entry.update(area=_rounded(thing.area), iscrowd=int(thing.ignored))
                if self.masks:
                    entry['segmentation'] = _rounded(thing.outline)
                content['annotations'].append(entry)
        content['info']['sha256'] = _digest(content)
        return json.dumps(content)


def _with_validation(
    root: Path, splits: dict[str | None, list[LabeledImage]], files: dict, findings: Findings
) -> dict[str, list[LabeledImage]]:
    """Returns the images of 'train', 'val' and perhaps 'test'. Splits are made where none are."""
    splits = {split: images for split, images in splits.items() if images}
    rest = splits.pop(None, [])
    if rest and splits:
        findings.notes.append(
            f'Images in no split are left out: {len(rest):,}, such as {rest[0].path}.'
        )
    elif rest:
        splits['train'] = rest
    if not splits.get('train'):
        there = ' and '.join(map(str, splits)) or 'nothing'
        raise DataError(f'{root} has no train split, only {there}: name a folder or file train.')
    if 'val' not in splits and 'test' in splits:
        splits['val'] = splits.pop('test')
        files.update({'val': files.pop('test')} if 'test' in files else {})
        findings.notes.append('There is no val split, and test takes its place.')
    elif 'val' not in splits:
        files.clear()
        images = splits['train']
        if len(images) < 2:
            raise DataError(f'{root} has one image: add others, of which one is for validation.')
        splits['train'], splits['val'] = _divided(root, images)
        findings.notes.append(
            f'There is no val split: {len(splits["val"]):,} of {len(images):,} images are taken '
            'for it, always the same ones.'
        )
    return {split: splits[split] for split in ('train', 'val', 'test') if split in splits}


def _note_repeated(splits: dict[str, list[LabeledImage]], findings: Findings) -> None:
    places: dict[Path, list[str]] = {}
    for split, images in splits.items():
        for image in images:
            places.setdefault(image.path, []).append(split)
    if twice := [path for path, where in places.items() if len(where) > 1]:
        findings.notes.append(
            f'Images are there more than once: {len(twice):,}, such as {twice[0]} in '
            f'{" and ".join(places[twice[0]])}. AP says little where images were trained with.'
        )


def _divided(
    root: Path, images: list[LabeledImage]
) -> tuple[list[LabeledImage], list[LabeledImage]]:
    """Takes a fifth of the images for validation, with a fifth of those of each class."""
    # In an order of the names that has no pattern, and is the same in every run.
    order = sorted(images, key=lambda image: zlib.crc32(relative(image.path, root).encode()))
    of_class: dict[str, list[LabeledImage]] = {}
    for image in order:
        for name in sorted({thing.name for thing in image.objects}):
            of_class.setdefault(name, []).append(image)
    chosen: set[int] = set()
    # The rarest class first, as its images have others, too. The last entry fills up.
    for group in [*sorted(of_class.values(), key=len), order]:
        lacking = len(group) // 5 - sum(id(image) in chosen for image in group)
        others = [image for image in group if id(image) not in chosen]
        chosen |= {id(image) for image in others[: max(0, lacking)]}
    chosen = chosen or {id(order[0])}
    train = [image for image in images if id(image) not in chosen]
    return train, [image for image in images if id(image) in chosen]


def _rounded(value: object) -> object:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, DIGITS) if isinstance(value, (int, float)) else value


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_ours(path: Path) -> bool:
    """Returns whether a file was written by this package, and not changed since."""
    try:
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.txt':
            return text.startswith(WRITTEN)
        content = json.loads(text)
        return content['info'].pop('sha256') == _digest(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(text.encode())
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f'{path} cannot be written ({error.strerror}): free space, or make '
            f'{path.parent.parent} writable. Where it may not be, make a folder of links to what '
            'is in it.'
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()

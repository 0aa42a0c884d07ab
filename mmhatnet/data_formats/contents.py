"""What the formats have in common: images with objects, and what cannot be read of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mmhatnet.errors import DataError, printable

# Objects farther from their image than this many of its longer sides are mistakes.
FAR = 10
SHOWN = 5
# Where the point (x, y) of a stored image of w x h pixels is when it is shown, by its EXIF
# orientation. Those below 5 do not change the size, which thus does not tell whether annotations
# were made on the stored image.
TURNS = {
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (y, w - x),
}


@dataclass
class LabeledObject:
    """An object of an image. All lengths are in pixels.

    Attributes:
        name (str): Its class.
        box (list[float]): Left, top, width and height.
        area (float): The area of its outline, or of its box.
        outline (list[list[float]] | dict | None): Polygons [x, y, x, y, ...], or COCO's RLE.
        ignored (bool): Whether it neither counts as found nor as missed.
    """

    name: str
    box: list[float]
    area: float
    outline: list[list[float]] | dict | None = None
    ignored: bool = False


@dataclass
class LabeledImage:
    """An image as loaders show it, and its objects."""

    path: Path
    width: int
    height: int
    objects: list[LabeledObject] = field(default_factory=list)
    # The EXIF orientation by which points have to be turned.
    turn: int = 1


@dataclass
class DataFolder:
    """The annotations of a folder.

    Attributes:
        source (str): The name of their format.
        classes (list[str]): The names of the classes, in the order of their numbers.
        splits (dict[str | None, list[LabeledImage]]): The images of 'train', 'val' and 'test', or
            of None where the folder has no splits.
        files (dict[str, Path]): The annotation files by split, where these can be used unchanged.
    """

    source: str
    classes: list[str]
    splits: dict[str | None, list[LabeledImage]]
    files: dict[str, Path] = field(default_factory=dict)


class Findings:
    """What is found while a folder is read.

    Attributes:
        notes (list[str]): What a user should know.
        dropped (dict[str, list[str]]): The places of what is left out, by the reason.
        faults (list[str]): Why the folder cannot be used.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.dropped: dict[str, list[str]] = {}
        self.faults: list[str] = []

    def refuse(self, place: object, fault: str) -> None:
        self.faults.append(f'{place}: {fault}.')

    def drop(self, place: object, reason: str) -> None:
        self.dropped.setdefault(reason, []).append(str(place))

    def require_none(self) -> None:
        """Raises a DataError that lists the faults."""
        more = len(self.faults) - SHOWN
        if self.faults:
            further = [f'{more:,} more faults like these follow.'] if more > 0 else []
            raise DataError('\n'.join(map(printable, self.faults[:SHOWN] + further)))

    def lines(self) -> list[str]:
        """Returns the notes, and what was dropped."""
        dropped = [
            f'{reason} are left out: {len(places):,}, such as {"; ".join(places[:SHOWN])}.'
            for reason, places in self.dropped.items()
        ]
        return [*map(printable, [*dict.fromkeys(self.notes), *dropped])]

    def image(
        self, path: Path, place: object, stated: Sequence[float] | None = None
    ) -> LabeledImage | None:
        """Opens an image for its size.

        Args:
            path (Path): The image.
            place (object): The annotation file that names it.
            stated (Sequence[float], optional): The width and height on which it was annotated.

        Returns:
            LabeledImage | None: The image, or None if it cannot be used, which is a fault.
        """
        from mmhatnet.data_checks.images import shown_as, why_unreadable  # which import mmcv

        try:
            with Image.open(path) as opened:
                shown, turn = shown_as(opened)
        except Exception as error:  # each image library has errors of its own
            why = why_unreadable(str(path), error)
            self.refuse(path, f'it {why}: replace it, or remove it and its annotations')
            return None
        image = LabeledImage(path, *shown)
        if not stated or min(stated) < 1 or all(abs(a - b) <= 1 for a, b in zip(stated, shown)):
            return image
        if tuple(stated) == shown[::-1] and turn in TURNS:
            image.turn = turn
            self.notes.append(
                'Annotations of images such as '
                f'{path.name} were made without the EXIF orientation, and are turned with it.'
            )
        elif tuple(stated) == shown[::-1]:
            self.notes.append(
                f'Width and height are swapped in files such as {place}: those of the image hold.'
            )
        else:
            self.refuse(
                place,
                f'it was made for {stated[0]:g} x {stated[1]:g} pixels, and {path} has '
                f'{shown[0]} x {shown[1]}: use the image that was annotated, or scale the '
                'annotations',
            )
            return None
        return image

    def add(
        self, image: LabeledImage, place: object, name: str, parts: list[list[float]], **kept: bool
    ) -> None:
        """Adds an object to an image, or drops it.

        Args:
            image (LabeledImage): The image.
            place (object): Where the annotation stands.
            name (str): The class.
            parts (list[list[float]]): Polygons [x, y, x, y, ...] in pixels.
            **kept (bool): ``box``, whether only the box of the polygons is meant; and ``ignored``.
        """
        if not all(math.isfinite(value) for part in parts for value in part):
            self.drop(place, 'Objects with coordinates that are no finite numbers')
            return
        parts = [part for part in parts if len(part) >= 6]
        if not parts:
            self.drop(place, 'Outlines of fewer than three points')
            return
        if turn := TURNS.get(image.turn):
            parts = [
                [v for xy in _points(part) for v in turn(*xy, image.height, image.width)]
                for part in parts
            ]
        box, area = box_and_area(parts)
        if reason := why_dropped(box, area, image):
            self.drop(place, reason)
            return
        outline = None if kept.get('box') else parts
        area = box[2] * box[3] if kept.get('box') else area
        image.objects.append(LabeledObject(name, box, area, outline, kept.get('ignored', False)))


def why_dropped(box: Sequence[float], area: float, image: LabeledImage) -> str | None:
    """Returns which objects cannot be used as this one; or None if it can be."""
    left, top, width, height = box
    if min(width, height, area) <= 0:
        return 'Objects without an area'
    right, bottom, reach = left + width, top + height, FAR * max(image.width, image.height)
    if right <= 0 or bottom <= 0 or left >= image.width or top >= image.height:
        return 'Objects outside of their image'
    if min(left, top) < -reach or max(right - image.width, bottom - image.height) > reach:
        return 'Objects that reach far out of their image'
    return None


def box_and_area(parts: list[list[float]]) -> tuple[list[float], float]:
    """Returns the left, top, width and height of polygons, and the sum of their areas."""
    points = [point for part in parts for point in _points(part)]
    (left, right), (top, bottom) = ((min(of), max(of)) for of in zip(*points))
    area = 0.0
    for part in map(_points, parts):
        following = [*part[1:], part[0]]
        area += abs(sum(x * v - u * y for (x, y), (u, v) in zip(part, following))) / 2
    return [left, top, right - left, bottom - top], area


def corners(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    """Returns a rectangle as the only polygon of an object."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def _points(part: list[float]) -> list[tuple[float, float]]:
    return list(zip(part[::2], part[1::2]))

"""Merges the records of all processes into the files that users read."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mmhatnet.data_checks.report import preview
from mmhatnet.errors import DataError
from mmhatnet.prediction.coco import Annotated, Numbered, with_ids
from mmhatnet.prediction.files import complete_or_absent
from mmhatnet.prediction.records import Index, Records
from mmhatnet.shown import Tally


def ids_of(scope: str, ann_file: str | None, classes: list[str]) -> Annotated | Numbered | None:
    """Returns the ids of the images and categories of a detector."""
    if scope != 'mmdet':
        return None
    return Annotated(ann_file, classes) if ann_file else Numbered(classes)


class ListWriter:
    """Writes a list as JSON, item by item.

    Args:
        file (TextIO): The file.
    """

    def __init__(self, file: TextIO) -> None:
        self.file, self.before = file, '['

    def add(self, item: object) -> None:
        self.file.write(self.before + json.dumps(item))
        self.before = ', '

    def end(self) -> None:
        self.file.write('[]' if self.before == '[' else ']')


@contextmanager
def _json_file(path: Path, records: Records) -> Iterator[TextIO]:
    with (
        complete_or_absent(path, records.folder / path.stem) as partial,
        partial.open('w') as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


def merge(
    records: Records,
    index: Index,
    paths: Sequence[str],
    ids: Annotated | Numbered | None,
    out_dir: Path,
    max_drawn: int,
) -> Tally:
    """Writes ``predictions.json``, and ``images.json`` if there are ids.

    Args:
        records (Records): The records.
        index (Index): What they hold.
        paths (Sequence[str]): The images and videos, in order.
        ids (Annotated | Numbered, optional): The ids of a detector.
        out_dir (Path): The folder.
        max_drawn (int): The number of detections in a visualization at most.

    Returns:
        Tally: The number of predicted images and frames, and of their detections.

    Raises:
        DataError: If a file cannot be written, or the annotations lack a frame of a video.
    """
    tally = Tally()
    with _json_file(out_dir / 'predictions.json', records) as file:
        results = ListWriter(file)
        if ids is None:
            for record in index.read(paths):
                tally.images += 1
                for result in record['results']:
                    results.add(result)
        else:
            with _json_file(out_dir / 'images.json', records) as images_file:
                images_file.write('{"images": ')
                images = ListWriter(images_file)
                for record in index.read(paths):
                    image = ids.image_of(record['image'], *record['size'])
                    images.add(image)
                    tally.add(len(record['results']), record['highest'], max_drawn)
                    for result in with_ids(record['results'], image, ids.categories):
                        results.add(result)
                images.end()
                images_file.write(f', {json.dumps(ids.rest)[1:]}')
        results.end()
    return tally


def report_failed(records: Records, index: Index, paths: Sequence[str], out_dir: Path) -> None:
    """Writes ``failed.json`` if images failed, or else deletes it.

    Raises:
        DataError: If images failed.
    """
    failed = [
        dict(image=path, reason=index.failed.get(path, 'was not predicted'))
        for path in paths
        if path not in index.places
    ]
    file = out_dir / 'failed.json'
    if not failed:
        file.unlink(missing_ok=True)
        return
    with _json_file(file, records) as stream:
        json.dump(failed, stream, indent=2)
    reasons = preview([f'{one["image"]} {one["reason"]}' for one in failed], 3)
    raise DataError(
        f'{len(failed):,} of {len(paths):,} images cannot be predicted, {reasons} (all in {file}). '
        f'The results of the others are in {out_dir}. Repair these or remove them, and start the '
        'same command again: it predicts only what is left.'
    )

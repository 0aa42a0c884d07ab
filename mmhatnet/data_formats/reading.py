"""Reads a folder in the first format that it is in."""

from pathlib import Path

from mmhatnet.data_formats import coco, labelme, voc, yolo
from mmhatnet.data_formats.contents import DataFolder, Findings

FORMATS = (coco, yolo, voc, labelme)


def read_folder(root: Path) -> tuple[DataFolder, Findings] | None:
    """Reads the annotations of a folder.

    Args:
        root (Path): The folder.

    Returns:
        tuple[DataFolder, Findings] | None: What it holds, and what is odd in it; or None if it is
        in none of the formats.

    Raises:
        DataError: If the annotations cannot be used, with a line for each fault.
    """
    for form in FORMATS:
        findings = Findings()
        folder = form.read(root, findings)
        findings.require_none()
        if folder:
            return folder, findings
    return None

"""Writes the config for a folder of data, and the annotation files that it needs."""

import os
from dataclasses import dataclass
from pathlib import Path

from mmhatnet.errors import ConfigError, DataError
from mmhatnet.new_config.layouts import read_layout
from mmhatnet.new_config.templates import render_config


@dataclass
class NewConfig:
    """A config that was written.

    Attributes:
        job (str): What it trains.
        report (str): What the annotations hold and what is odd in them, as lines of text.
        images (Path): Images of the validation split, or one of them.
    """

    job: str
    report: str
    images: Path


def write_config(
    data: Path, out: Path, job: str | None, arch: str, names: list[str] | None
) -> NewConfig:
    """Writes a config that trains on a folder of data.

    Args:
        data (Path): The folder. Nothing in it changes, but annotation files may be added.
        out (Path): The config. It may be there already if its text would be the same.
        job (str, optional): What to train, or None for what fits best.
        arch (str): The variant of HAT-Net.
        names (list[str], optional): The names of the labels in masks.

    Raises:
        ConfigError: If there is another file, or it cannot be written.
        DataError: If the data cannot be used.
    """
    try:
        found = read_layout(data, job, names=names)
    except OSError as error:
        raise DataError(f'{error.filename} cannot be read ({error.strerror}).') from error
    text = render_config(found, data, arch)
    same = out.is_file() and out.read_bytes() == text.encode()
    if os.path.lexists(out) and not same:
        raise ConfigError(
            f'{out} exists already, and would be another one: name another file with --out.'
        )
    conversion = found.get('conversion')
    if conversion:
        conversion.write()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not same:
            out.write_bytes(text.encode())
    except OSError as error:
        raise ConfigError(
            f'{out} cannot be written ({error.strerror}): name another file with --out.'
        ) from error
    if conversion:
        return NewConfig(found['job'], conversion.report(), conversion.validation_images())
    return NewConfig(found['job'], '', data / (found.get('images') or found['parts'])['val'])

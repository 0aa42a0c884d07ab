"""Writes the config for a folder of data, and the annotation files that it needs."""

import os
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmhatnet.errors import ConfigError, DataError
from mmhatnet.new_config.facts import gather_facts, this_device, weights_at_hand
from mmhatnet.new_config.layouts import read_layout
from mmhatnet.new_config.recipe import Budget, plan
from mmhatnet.new_config.templates import published_weights, render_config


@dataclass
class NewConfig:
    """A config that was written.

    Attributes:
        job (str): What it trains.
        report (str): What the annotations hold and what is odd in them, as lines of text.
        images (Path): Images of the validation split, or one of them.
        recipe (list[str]): How it trains, in a few sentences.
    """

    job: str
    report: str
    images: Path
    recipe: list[str]


def write_config(  # noqa: PLR0913, PLR0917  an argument for each option
    data: Path,
    out: Path,
    job: str | None,
    arch: str,
    names: list[str] | None,
    hours: float | None = None,
) -> NewConfig:
    """Writes a config that trains on a folder of data.

    Args:
        data (Path): The folder. Nothing in it changes, but annotation files may be added.
        out (Path): The config. It may be there already if its text would be the same.
        job (str, optional): What to train, or None for what fits best.
        arch (str): The variant of HAT-Net.
        names (list[str], optional): The names of the labels in masks.
        hours (float, optional): The time that the training may take, for which a few iterations are
            measured. Defaults to None, for as long as the data are worth.

    Raises:
        ConfigError: If there is another file, its name is none of a config, or it cannot be
            written.
        DataError: If the data cannot be used.
    """
    if out.suffix != '.py':
        raise ConfigError(f'--out {out}: the name of a config ends with .py.')
    try:
        found = read_layout(data, job, names=names)
    except OSError as error:
        raise DataError(f'{error.filename} cannot be read ({error.strerror}).') from error
    facts, device = gather_facts(found, data, arch), this_device()
    own, weights = weights_at_hand(published_weights(arch))
    recipe = plan(facts, device)
    text = render_config(found, data, arch, recipe, own and str(own))
    _require_free(out, text, hours)
    if conversion := found.get('conversion'):
        conversion.write()
    if hours is not None:
        from mmhatnet.new_config.timing import seconds_per_iteration  # it takes seconds

        recipe = plan(
            facts, device, Budget(hours, seconds_per_iteration(Config.fromstring(text, '.py')))
        )
        text = render_config(found, data, arch, recipe, own and str(own))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.is_file():
            out.write_bytes(text.encode())
    except OSError as error:
        raise ConfigError(
            f'{out} cannot be written ({error.strerror}): name another file with --out.'
        ) from error
    how = [recipe.epochs.reason, recipe.image_size.reason, *recipe.notes, weights]
    if hours is None and not device.memory:
        how.append('Without a GPU this can take many hours: --hours 2 fits it into two.')
    if conversion:
        return NewConfig(found['job'], conversion.report(), conversion.validation_images(), how)
    return NewConfig(found['job'], '', data / (found.get('images') or found['parts'])['val'], how)


def _require_free(out: Path, text: str, hours: float | None) -> None:
    """Refuses to replace a file. One that is measured anew is never the same."""
    same = hours is None and out.is_file() and out.read_bytes() == text.encode()
    if os.path.lexists(out) and not same:
        raise ConfigError(
            f'{out} exists already, and would be another one: name another file with --out.'
        )

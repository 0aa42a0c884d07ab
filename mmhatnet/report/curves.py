"""The curves of a training: losses, learning rate and metrics."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from mmhatnet.report.drawing import chart
from mmhatnet.report.parts import Chart, Section, shortened

POINTS = 800  # of a curve; more would make the file large
OTHERS = {'data_time', 'time', 'step', 'epoch', 'iter', 'memory', 'lr', 'base_lr', 'loss'}
Records = list[dict[str, float]]


def runs_of(folder: Path, last: str) -> list[Path]:
    """Finds the log folders of a training, which has several if it was resumed.

    Args:
        folder (Path): The work folder.
        last (str): The name of the log folder of its last run.

    Returns:
        list[Path]: The log folders, the first run first.
    """
    found = sorted(
        path.parent.parent
        for path in folder.glob('*/vis_data/scalars.json')
        if path.parent.parent.name <= last
    )
    runs: list[Path] = []
    for run in reversed(found):
        if runs and not any(_is_of_training(record) for record in _read(run)):
            continue  # a test
        runs.insert(0, run)
        config = run / 'vis_data' / 'config.py'
        text = config.read_text(errors='replace') if config.is_file() else ''
        if not re.search(r'^resume = True$', text, re.MULTILINE):
            break
    return runs


def _read(run: Path) -> Iterator[dict[str, float]]:
    text = (run / 'vis_data' / 'scalars.json').read_text(errors='replace')
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # a run that was killed may leave half a line
            continue
        if isinstance(record, dict) and isinstance(record.get('step'), (int, float)):
            yield {key: value for key, value in record.items() if isinstance(value, (int, float))}


def _is_of_training(record: dict[str, float]) -> bool:
    return 'lr' in record


def read_scalars(runs: list[Path]) -> tuple[Records, Records]:
    """Reads what MMEngine has logged.

    Args:
        runs (list[Path]): The log folders of a training.

    Returns:
        tuple[Records, Records]: The records of training and those of validation. A run that
        resumed repeats what the run before did after its last checkpoint: the later one counts.
    """
    training: Records = []
    validation: Records = []
    for run in runs:
        records = list(_read(run))
        for kept, of_training in ((training, True), (validation, False)):
            new = [record for record in records if _is_of_training(record) is of_training]
            if new:
                kept[:] = [record for record in kept if record['step'] < new[0]['step']] + new
    return training, validation


def _series(records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(r['step'], r[key]) for r in records if key in r and np.isfinite(r[key])]
    points = points[:: max(len(points) // POINTS, 1)]
    steps, values = zip(*points) if points else ((), ())
    return np.array(steps), np.array(values)


def _line_chart(title: str, records: Records, keys: list[str], x: str, note: str = '') -> Chart:
    def draw(ax: Axes) -> None:
        lowest, highest = np.inf, 0.0
        for key in keys:
            steps, values = _series(records, key)
            main = key in ('loss', 'lr')
            ax.plot(
                *(steps, values),
                label=shortened(key, 28),
                linewidth=1.8 if main else 1.1,
                color='black' if main else None,
                marker='o' if len(steps) <= 30 else None,
                markersize=3,
            )
            if len(values):
                lowest, highest = min(lowest, values.min()), max(highest, values.max())
        if title == 'Losses' and 0 < 50 * lowest < highest:
            ax.set_yscale('log')
            # The default writes powers as formulas, which charts leave as they are.
            ax.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel(x)
        if len(keys) > 1:
            ax.legend()
        else:
            ax.set_ylabel(shortened(keys[0], 28))

    return chart(title, draw, note)


def curves(folder: Path, last: str, by_epoch: bool) -> Section:
    """Draws the curves of a training.

    Args:
        folder (Path): The work folder.
        last (str): The name of the log folder of its last run.
        by_epoch (bool): Whether validations are counted in epochs.

    Returns:
        Section: The curves.
    """
    runs = runs_of(folder, last)
    training, validation = read_scalars(runs)
    section = Section('Training')
    if len(runs) > 1:
        section.notes.append(
            f'The training was resumed: the curves join {len(runs)} runs, {runs[0].name} to '
            f'{runs[-1].name}.'
        )
    if not training:
        section.notes.append(
            'There are no curves: the training logged no losses to scalars.json. Either it was '
            'shorter than default_hooks.logger.interval, or the visualizer has no LocalVisBackend.'
        )
    seen = dict.fromkeys(key for record in training for key in record)
    losses = [key for key in seen if 'loss' in key and key != 'loss']
    if losses == ['loss'] or len(losses) == 1:
        losses = []  # the only one equals their sum
    if 'loss' in seen:
        broken = sum(not np.isfinite(record.get('loss', 0)) for record in training)
        note = f'{broken} values that are not finite are left out.' if broken else ''
        section.charts.append(_line_chart('Losses', training, ['loss', *losses], 'iteration', note))
    section.charts += [
        _line_chart(title, training, [key], 'iteration')
        for key, title in dict(lr='Learning rate', grad_norm='Norm of the gradient').items()
        if key in seen
    ]
    # COCO's metric is -1 where there is nothing to measure.
    found = dict.fromkeys(
        key
        for record in validation
        for key, value in record.items()
        if key not in OTHERS and value != -1
    )
    groups: dict[str, list[str]] = {}
    for key in found:
        groups.setdefault(key.split('_')[0] if len(found) > 8 else '', []).append(key)
    unit = 'epoch' if by_epoch else 'iteration'
    section.charts += [
        _line_chart(f'Validation: {name}' if name else 'Validation', validation, keys, unit)
        for name, keys in groups.items()
    ]
    return section

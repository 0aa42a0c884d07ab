"""Charts as SVG files and images as JPEG files, by Matplotlib."""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.fileio import get

from mmhatnet.report.confusions import Confusions
from mmhatnet.report.parts import Cell, Chart, Section, Table, shortened

# Text stays text, so that it is sharp and in a font of the reader's; '$' starts no formula.
STYLE = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'mmhatnet',
    'text.parse_math': False,
    'font.size': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.3,
    'legend.fontsize': 8,
    'legend.framealpha': 0.7,
}
CHART = (4.6, 3.2)  # inches
NO_METADATA = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
LABELLED = 32  # classes that have names at the axes of a confusion matrix
VALUES = 12  # classes that have values in its cells
MATRIX = 2000  # classes that have a confusion matrix at all
MISTAKES = 10  # in a table
VIEW = 4.2  # inches, at 100 pixels each


@contextmanager
def style() -> Iterator[None]:
    """Gives Matplotlib the settings of a report."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # Letters that Matplotlib's font lacks are in a font of the reader's.
        warnings.simplefilter('ignore')
        yield


def chart(
    title: str, draw: Callable[[Axes], object], note: str = '', size: tuple[float, float] = CHART
) -> Chart:
    """Draws a chart.

    Args:
        title (str): The title.
        draw (Callable): Draws into axes.
        note (str): What the chart shows. Defaults to ''.
        size (tuple[float, float]): The width and height in inches.

    Returns:
        Chart: The chart.
    """
    with style():
        figure = Figure(size, layout='constrained')
        draw(figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format='svg', metadata=NO_METADATA)
    return Chart(title, file.getvalue(), note)


def colors_of(count: int, palette: Sequence | None = None) -> np.ndarray:
    """Returns a color (R, G, B) from 0 to 255 for each class, (count, 3)."""
    given = [tuple(color) for color in palette] if isinstance(palette, (list, tuple)) else []
    if len(given) >= count:
        return np.array(given[:count], np.uint8).reshape(-1, 3)
    colormap = mpl.colormaps['tab10'] if count <= 10 else mpl.colormaps['hsv'].resampled(count + 1)
    return np.array([np.round(np.array(colormap(i)[:3]) * 255) for i in range(count)], np.uint8)


def css(color: Sequence[int]) -> str:
    """Returns a color as CSS writes it."""
    return '#{:02x}{:02x}{:02x}'.format(*(int(value) for value in color))


def add_confusions(
    section: Section,
    confusions: Confusions,
    names: Sequence[str],
    note: str,
    nothing: str | None = None,
) -> None:
    """Adds a confusion matrix and the most frequent mistakes.

    Args:
        section (Section): Where they are added.
        confusions (Confusions): The counts.
        names (Sequence[str]): The names of the classes.
        note (str): What is counted.
        nothing (str, optional): The last name if it stands for none of the classes.
    """
    if len(names) <= MATRIX:
        section.charts.append(_confusion_chart(confusions.matrix(len(names)), names, note))
    else:
        section.notes.append(
            f'There is no confusion matrix, which would have {len(names):,} rows. {note}'
        )
    true = confusions.sums(len(names)).true
    rows: list[list[Cell]] = []
    for row, column, number in confusions.mistakes(MISTAKES):
        is_class = nothing is None or row < len(names) - 1
        share = f'{number / true[row]:.1%}' if is_class else None
        rows.append([names[row], names[column], number, share])
    columns = ['true class', 'predicted class', 'number', 'share of the true class']
    section.tables.append(Table('Most frequent mistakes', columns, rows, texts=2))


def _confusion_chart(matrix: np.ndarray, names: Sequence[str], note: str) -> Chart:
    """Draws a confusion matrix (true class, predicted class), in shares of its rows."""
    count, sums = len(matrix), matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, sums, where=sums > 0, out=np.zeros(matrix.shape))

    def draw(ax: Axes) -> None:
        image = ax.imshow(shares, cmap='Blues', vmin=0, vmax=1, interpolation='nearest')
        ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.02).outline.set_visible(False)
        ax.grid(False)
        ax.set(xlabel='predicted', ylabel='true')
        if count <= LABELLED:
            labels = [shortened(name, 16) for name in names]
            ax.set_xticks(range(count), labels, rotation=90)
            ax.set_yticks(range(count), labels)
        if count <= VALUES:
            for row, column in zip(*np.nonzero(matrix)):
                share = shares[row, column]
                color = 'white' if share > 0.5 else 'black'
                text = f'{100 * share:.0f}' if share >= 0.005 else '<1'
                ax.text(column, row, text, ha='center', va='center', fontsize=7, color=color)

    side = CHART[0] * min(max(count / 16, 1), 2)
    shown = 'Colors are shares of the row' + (
        ', and values are percent. ' if count <= VALUES else '. '
    )
    return chart('Confusion matrix', draw, shown + note, (side, 0.95 * side))


def read(path: str, most: int = 840) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Reads an image.

    Args:
        path (str): The file, of any of MMEngine's storage backends.
        most (int): The longer side to which a larger image is scaled down.

    Returns:
        tuple[np.ndarray, tuple[int, int]] | None: The image (H, W, 3) in RGB and its original
        height and width, or None if it can no longer be read.
    """
    try:
        image = mmcv.imfrombytes(get(path), channel_order='rgb')
    except Exception:  # each storage and each image library has errors of its own
        return None
    if image is None:
        return None
    size = image.shape[:2]
    return (mmcv.imrescale(image, (most, most)) if max(size) > most else image), size


def view(
    image: np.ndarray, size: tuple[int, int], draw: Callable[[Axes], object] | None = None
) -> bytes:
    """Draws over an image.

    Args:
        image (np.ndarray): The image (H, W, 3) in RGB, possibly scaled down.
        size (tuple[int, int]): Its original height and width.
        draw (Callable, optional): Draws into axes in pixels of the original image.

    Returns:
        bytes: A JPEG file of at most 420 x 420 pixels.
    """
    height, width = size
    scale = VIEW / max(height, width)
    with style():
        figure = Figure((max(width * scale, 0.6), max(height * scale, 0.6)), dpi=100)
        ax = figure.add_axes((0, 0, 1, 1))
        ax.imshow(image, extent=(0, width, height, 0), aspect='auto')
        if draw:
            draw(ax)
        ax.axis('off')
        ax.set(xlim=(0, width), ylim=(height, 0))
        file = io.BytesIO()
        figure.savefig(file, format='jpeg', pil_kwargs=dict(quality=78))
    return file.getvalue()

"""What a report consists of, without a word about how it looks."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

DASH = '\N{EN DASH}'
Cell = str | int | float | None


class Table(NamedTuple):
    """A table. Texts are as they are in the data: the page escapes them.

    Attributes:
        title (str): The title.
        columns (list[str]): The names of the columns.
        rows (list[list[Cell]]): The rows. NaN and None mean that there is no such value.
        note (str): What the values are.
        texts (int): How many columns, from the left, are texts.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ''
    texts: int = 1


class Chart(NamedTuple):
    """A chart.

    Attributes:
        title (str): The title.
        svg (bytes): The image.
        note (str): What it shows.
    """

    title: str
    svg: bytes
    note: str = ''


class Example(NamedTuple):
    """An image of the data with what the model makes of it.

    Attributes:
        name (str): The file.
        note (str): What is right or wrong.
        views (list[tuple[str, bytes]]): The name and the JPEG of each view.
        legend (list[tuple[str, str]]): The colors, as in CSS, and what they mean.
    """

    name: str
    note: str
    views: list[tuple[str, bytes]]
    legend: list[tuple[str, str]] = []  # noqa: RUF012  a default of a NamedTuple is not changed


class Gallery(NamedTuple):
    """Images under one title."""

    title: str
    examples: list[Example]
    note: str = ''


@dataclass
class Section:
    """A part of the report.

    Attributes:
        title (str): The title.
        figures (list[tuple[str, str]]): The most important values, with their names.
        notes (list[str]): What holds for all of it.
    """

    title: str
    figures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)


def readable(value: Cell, digits: int = 3) -> str:
    """Returns a value as text. Without a value, it is a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return DASH
    if isinstance(value, float):
        return f'{value:.{digits}f}'
    return f'{value:,}' if isinstance(value, int) else value


def lowest_first(rows: list[list[Cell]], column: int) -> list[list[Cell]]:
    """Sorts rows by a column. Those without a value come last."""
    return sorted(
        rows,
        key=lambda row: float('inf') if readable(row[column]) == DASH else row[column],
    )


def printable(text: object) -> str:
    """Returns a text without characters that no page or image can hold."""
    return ''.join(
        c if c.isprintable() or c in '\n\t' else '\N{REPLACEMENT CHARACTER}' for c in str(text)
    )


def shortened(text: str, length: int = 22) -> str:
    """Returns a printable text of at most this length."""
    text = printable(text).replace('\n', ' ')
    return text if len(text) <= length else text[: length - 1] + '…'


def reason_of(error: Exception) -> str:
    """Returns an error in one line."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())

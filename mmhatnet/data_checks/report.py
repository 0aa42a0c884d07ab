"""The report of data checks."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from mmhatnet.errors import printable


@dataclass
class Report:
    """The result of data checks: errors refuse a job, notes warn, counts describe the data."""

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # Lines below the tables.
    facts: list[str] = field(default_factory=list)
    # By title, row and column: {'Objects': {'cat': {'train': 12, 'val': 3}}}.
    counts: dict[str, dict[str, dict[str, int | str]]] = field(default_factory=dict)
    # The ids of tested images by split, and where they are from.
    tested: dict[str, dict[object, str]] = field(default_factory=dict)
    # Where progress is shown; without it the check is silent.
    console: Console | None = None

    def count(self, title: str, column: str, values: dict[str, int | str]) -> None:
        """Adds a column, such as a split, to a table. Numbers of the same cell add up."""
        for row, value in values.items():
            columns = self.counts.setdefault(title, {}).setdefault(row, {})
            if column not in columns:
                columns[column] = value
            elif isinstance(value, int):
                columns[column] += value
            elif value not in columns[column].split('\n'):
                columns[column] += f'\n{value}'

    def track(self, items: Sequence | Iterable, total: int, doing: str) -> Iterator:
        """Yields the items, with a progress bar on terminals."""
        if self.console is None or not self.console.is_terminal:
            return iter(items)
        return track(items, doing, total, console=self.console, transient=True)

    def busy(self, doing: str) -> AbstractContextManager:
        """Shows a spinner while something of unknown length is done."""
        return self.console.status(doing) if self.console else nullcontext()

    def make_printable(self) -> None:
        """Escapes characters of names in files and folders that terminals cannot show."""
        for texts in (self.errors, self.notes, self.facts):
            texts[:] = map(printable, texts)

    def show(self, console: Console) -> None:
        """Prints tables, then notes, then errors."""
        for title, rows in self.counts.items():
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            lines = [[name, *(row.get(c, 0) for c in columns)] for name, row in rows.items()]
            full = [line for line in lines if any(line[1:])]
            if (empty := len(lines) - len(full)) > 3:
                lines = [*full, [f'{empty} others', *(0 for _ in columns)]]
            console.print(_table(title, ['', *columns], lines))
        for text in self.facts:
            console.print(escape(text), soft_wrap=True, highlight=False)
        for color, label, texts in (('yellow', 'odd', self.notes), ('red', 'wrong', self.errors)):
            for text in dict.fromkeys(texts):
                console.print(
                    f'[{color}]{label:5}[/]  {escape(text)}', soft_wrap=True, highlight=False
                )
        if not self.errors:
            console.print('[green]Nothing is wrong.[/]')


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence]) -> Table:
    """Returns a table with right-aligned numbers."""
    table = Table(title=title, title_justify='left')
    for column, name in enumerate(header):
        numbers = any(isinstance(row[column], (int, float)) for row in rows)
        table.add_column(name, justify='right' if numbers else 'left', overflow='fold')
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value) -> str:
    if isinstance(value, int):
        return f'{value:,}' if value else '[dim]0[/]'
    return '\n'.join(escape(printable(line)) for line in str(value).split('\n'))


@dataclass
class Job:
    """One dataset of a split, and the report of its checks.

    Attributes:
        cfg (Config): The config of the job.
        split (str): 'train', 'val' or 'test'.
        settings (ConfigDict): The settings of the dataset, without its wrappers.
        dataset (BaseDataset): The dataset, built without its pipeline and not read yet.
        report (Report): What was found.
        every (bool): Whether to read all images and masks instead of a sample of them.
    """

    cfg: Config
    split: str
    settings: ConfigDict
    dataset: BaseDataset
    report: Report
    every: bool

    @property
    def where(self) -> str:
        return f'{self.split}_dataloader.dataset'

    def refuse(self, text: str, sure: bool = True) -> None:
        """Adds an error, or a note where the fault is not certain."""
        (self.report.errors if sure else self.report.notes).append(f'{self.where}: {text}.')

    def note(self, text: str) -> None:
        self.refuse(text, sure=False)


def preview(values: Iterable, most: int = 5) -> str:
    """Returns the first few values, and the number of the others."""
    texts = [str(value) for value in values]
    # Longer than any path.
    values = [text if len(text) <= 4096 else f'{text[:4096]}...' for text in texts]
    more = f' and {len(values) - most:,} more' if len(values) > most else ''
    return ', '.join(values[:most]) + more

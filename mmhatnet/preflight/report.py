"""What a look at a job finds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass
class Report:
    """Errors refuse the job, notes are oddities that do not, tables say what is there."""

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence]) -> None:
        """Adds a table; numbers are aligned at the right."""
        table = Table(title=title, title_justify='left')
        for column, name in enumerate(header):
            numbers = all(isinstance(row[column], (int, float)) for row in rows)
            table.add_column(name, justify='right' if numbers else 'left')
        for row in rows:
            table.add_row(*(f'{c:,}' if isinstance(c, int) else escape(str(c)) for c in row))
        self.tables.append(table)

    def show(self, console: Console) -> None:
        for table in self.tables:
            console.print(table)
        for color, kind, texts in (('yellow', 'odd', self.notes), ('red', 'wrong', self.errors)):
            for text in texts:
                console.print(f'[{color}]{kind}[/]  {escape(text)}', soft_wrap=True)

"""What a job shows on the screen. All of it, and the rest, is in the log file."""

import inspect
import logging
import os
import re
import sys
import time
import warnings
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from mmengine._strategy import BaseStrategy
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from mmhatnet_cli.output import QUIET, is_by_package

if TYPE_CHECKING:
    from mmengine.runner import Runner as Base
else:
    Base = object

PROGRESS = re.compile(r'(Epoch|Iter)\((train\)|test\).* eta: )')  # lines of MMEngine's LoggerHook
NOISE = re.compile(
    'deprecated|The prefix is not set in metric class|mlflow server is running'
    '|Since `metrics` is an empty dict'
)
# MMDetection's error, and what it means.
EMPTY = 'The testing results of the whole dataset is empty.'
FOUND_NOTHING = (
    'the model returns no detection for any image, as all scores are below the score_thr of its '
    'test_cfg: there is no AP.'
)
TABLE = re.compile(r'^[+|]', re.MULTILINE)
LONG_LINE, MOST_ITEMS, MOST_LINES = 300, 3, 4
LABEL = 9  # the width of the first column
REFRESH = 0.25  # seconds between changes of the progress bar


class Screen:
    """Decides what is shown on the screen. Use it as a context manager around a job.

    MMEngine's logger writes to the log file as ever. On the screen are the lines that this class
    is given, warnings, the lines of progress of MMEngine's LoggerHook, and whatever code of the
    user prints or logs. Terminals show a progress bar instead of the lines of progress.

    Args:
        verbose (bool): Whether everything is shown. Defaults to False.
        first (bool): Whether this is the first process of its job. Others show errors and what
            code of the user prints. Defaults to True.
        tables (bool): Whether the tables of evaluators are shown. Defaults to False.

    Attributes:
        hidden (int): The number of warnings that were not shown.
        log_file (str | None): The log file, as soon as there is one.
    """

    def __init__(self, verbose: bool = False, first: bool = True, tables: bool = False) -> None:
        self.verbose = verbose
        self.first = first
        self.tables = tables
        self.hidden = 0
        self.log_file: str | None = None
        self._file: logging.Handler | None = None
        self._early: list[logging.LogRecord] = []  # there is no log file yet
        self._held: list[str] | None = []  # warnings before the overview; None after it
        self._process = os.getpid()
        self._bar: Progress | None = None
        self._refreshed = 0.0
        self._lost = False  # the terminal is gone

    def __enter__(self) -> 'Screen':
        self._stdout, self._showwarning = sys.stdout, warnings.showwarning
        if hasattr(sys.stdout, 'reconfigure'):  # names may have letters that it lacks
            sys.stdout.reconfigure(errors='backslashreplace')
        self._console = _Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False)
        sys.stdout = self._stream = _Stream(self, self._stdout)  # type: ignore[assignment]
        warnings.showwarning = self._receive_python_warning  # type: ignore[assignment]
        self.adopt(MMLogger.get_current_instance())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.pause()
        self.show_held()
        self._stream.end_line()
        sys.stdout, warnings.showwarning = self._stdout, self._showwarning

    @property
    def has_bar(self) -> bool:
        """Whether a progress bar takes the place of lines of progress."""
        shows = self._stdout.isatty() and not self._console.is_dumb_terminal
        return shows and not self.verbose and not self._lost

    def adopt(self, logger: MMLogger) -> None:
        """Takes the place of the handler with which a logger writes to the screen."""
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler):
                self._file, self.log_file = handler, handler.baseFilename
                for record in self._early:
                    handler.handle(record)
                self._early = []
            elif type(handler) is logging.StreamHandler:
                handler.setStream(self._stdout)
                if not self.first:
                    handler.setLevel(logging.ERROR)
                if not self.verbose or not logger.log_file:
                    own = _Handler(self, handler, bool(logger.log_file))
                    logger.handlers[logger.handlers.index(handler)] = own

    def show(self, label: str, text: str) -> None:
        """Shows lines with a label before them, or a line without one."""
        if self.first and label:
            self._print(label, text)
            self.record(f'{label:{LABEL}}{text}')
        elif self.first:
            self._write(Text(text))
            self.record(text)

    def show_held(self) -> None:
        """Shows the warnings so far. Later ones are shown at once."""
        held, self._held = self._held, None
        for text in held or ():
            self._print('warning', text)

    def advance(self, description: str, done: int, total: int, text: str) -> None:
        """Moves the progress bar of a terminal."""
        if not (self.first and self.has_bar) or time.monotonic() - self._refreshed < REFRESH:
            return
        self._refreshed = time.monotonic()
        try:
            if self._bar is None:
                self._bar = self._new_bar()
            task = self._bar.task_ids[0]
            self._bar.update(task, description=description, completed=done, total=total, t=text)
            self._bar.refresh()
        except OSError:
            self._lose_terminal()

    def _new_bar(self) -> Progress:
        # Without a thread of its own, it stands still under a debugger.
        bar = Progress(
            *(TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[t]}')),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        bar.add_task('', t='')
        bar.start()
        return bar

    def pause(self) -> None:
        """Removes the progress bar until it moves again."""
        if self._bar is not None and os.getpid() == self._process:
            try:
                self._bar.stop()
            except OSError:
                self._lose_terminal()
            self._bar = None

    def _lose_terminal(self) -> None:
        """Goes on without a progress bar."""
        self._bar, self._lost = None, True

    def record(self, text: str, level: int = logging.INFO) -> None:
        """Writes to the log file."""
        self.keep(logging.LogRecord('mmengine', level, __file__, 0, text, None, None))

    def keep(self, record: logging.LogRecord) -> None:
        """Writes a record to the log file, as soon as there is one."""
        if self._file:
            self._file.handle(record)
        elif self.first:
            self._early.append(record)

    def receive(self, record: logging.LogRecord, console: logging.Handler) -> None:
        """Shows a record of a logger, or does not.

        Args:
            record (logging.LogRecord): The record, which is kept already.
            console (logging.Handler): What would write it to the screen.
        """
        text = record.getMessage()
        if text == EMPTY and self.first and not self.verbose:
            self._print('warning', FOUND_NOTHING)
        elif self.verbose or record.levelno >= logging.ERROR:
            self.pause()
            console.handle(record)
        elif record.levelno == logging.WARNING and NOISE.search(text):
            self.hidden += 1
        elif record.levelno == logging.WARNING and self._held is not None:
            self._held.append(shortened(text))
        elif record.levelno == logging.WARNING:
            self._print('warning', shortened(text))
        elif self._shows(record, text):
            self._write(Text(text))

    def _shows(self, record: logging.LogRecord, text: str) -> bool:
        """Returns whether information is shown."""
        if PROGRESS.match(text):
            return not self.has_bar
        return bool(self.tables and TABLE.search(text)) or not _is_quiet(record.pathname)

    def _receive_python_warning(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *more
    ) -> None:
        self.record(warnings.formatwarning(message, category, filename, lineno), logging.WARNING)
        if self.verbose or not _is_quiet(filename):
            self.pause()
            self._showwarning(message, category, filename, lineno, *more)
        else:
            self.hidden += 1

    def _print(self, label: str, text: str) -> None:
        style = 'bold yellow' if label == 'warning' else 'bold'
        for line in text.splitlines():
            self._write(Text.assemble((f'{label:{LABEL}}', style), line))
            label = ''

    def _write(self, text: Text) -> None:
        self.pause()
        # A job goes on without a screen, as with the loggers of Python.
        with suppress(OSError, ValueError):
            self._console.print(text)


class _Console(Console):
    """A console that does not end the process when its pipe is closed."""

    def on_broken_pipe(self) -> None:
        raise  # the error again


class _Handler(logging.Handler):
    """Leaves it to a screen whether records are shown."""

    def __init__(self, screen: Screen, console: logging.Handler, logged: bool) -> None:
        super().__init__(console.level)
        self.filters = console.filters  # MMEngine's against repeated warnings
        self.screen = screen
        self.console = console
        self.logged = logged  # the logger writes to the log file itself

    @property
    def stream(self) -> TextIO:
        """What MMEngine's backend of MLflow asks every handler for."""
        return self.console.stream  # type: ignore[attr-defined]

    def emit(self, record: logging.LogRecord) -> None:
        if not self.logged:
            self.screen.keep(record)
        self.screen.receive(record, self.console)


class _Stream:
    """Takes the place of ``sys.stdout``: text of frameworks goes to the log file alone."""

    def __init__(self, screen: Screen, shown: TextIO) -> None:
        self._screen = screen
        self._shown = shown
        self._unfinished = ''

    def __getattr__(self, name: str) -> object:
        return getattr(self._shown, name)

    def write(self, text: str) -> int:
        if self._screen.verbose or not is_by_package(inspect.currentframe().f_back):
            self._screen.pause()
            self._shown.write(text)
        *lines, self._unfinished = (self._unfinished + text).split('\n')
        for line in lines:
            self._screen.record(line)
        return len(text)

    def end_line(self) -> None:
        """Writes the beginning of a line to the log file."""
        if self._unfinished:
            self._screen.record(self._unfinished)
            self._unfinished = ''


class ScreenRunner(Base):
    """What a runner needs to leave the screen to a ``Screen``. Mixed into the runner class.

    Attributes:
        screen (Screen | None): The screen; None for what MMEngine shows.
    """

    screen: Screen | None = None

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Builds the logger of a Runner."""
        logger = super().build_logger(*args, **kwargs)
        if self.screen:
            self.screen.adopt(logger)
        return logger

    def build_strategy(self, *args, **kwargs) -> BaseStrategy:
        """Builds the strategy of a FlexibleRunner, which has the logger."""
        strategy = super().build_strategy(*args, **kwargs)
        if self.screen:
            self.screen.adopt(strategy.logger)
        return strategy


def _is_quiet(file: str) -> bool:
    """Returns whether a file is of a package that writes to the log file alone."""
    return bool({*QUIET, 'mmhatnet'}.intersection(re.split(r'[\\/]', file)))


def shortened(text: str) -> str:
    """Returns the beginning of a message, with the first few items of long lists."""
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if len(line) > LONG_LINE:
            items = line.split(', ')
            if more := len(items[MOST_ITEMS:]):
                line = f'{", ".join(items[:MOST_ITEMS])} and {more:,} more'
            lines[number] = line if len(line) <= LONG_LINE else f'{line[:LONG_LINE]}...'
    if more := len(lines[MOST_LINES:]):
        lines[MOST_LINES:] = [f'and {more:,} more lines']
    shown = '\n'.join(lines)
    return shown if shown == text.strip() else f'{shown}\n(all of it is in the log file)'

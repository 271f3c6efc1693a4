"""What goes to a terminal or a pipe: messages, tables and JSON; paths as they were given; progress, and the log.

A terminal gets lines that fit its width. A pipe gets them whole: what reads there takes them apart.
"""

import glob
import json
import logging
import os
import re
import stat
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from skylevel.errors import PlanError
from skylevel.interrupts import stop_in_order
from skylevel.io.urls import is_remote, shown
from skylevel.memory import collect_as_usual

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

_TIME, _TIME_OF_DAY = "%Y-%m-%d %H:%M:%S", "%H:%M:%S"
# Between the columns of a table, and the least that a shortened one keeps.
_GAP, _LEAST = 2, 12
# Columns of a terminal that has room for all that a progress bar tells.
_WIDE = 72


class _Paths:
    """Paths as the user gave them: below a folder that was given relative, they are shown relative."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._known = re.compile("(?!)")

    def learn(self, inputs: Sequence[str], output: str) -> None:
        """Show paths from now on as these inputs, and this output, give them."""
        self._given = {}
        for folder in [*map(_folder_of, inputs), output]:
            if not is_remote(folder):
                given = f"{folder.rstrip('/')}/" if folder else ""
                for absolute in (os.path.realpath(folder), str(Path(folder).absolute())):
                    self._given[shown(f"{absolute.rstrip('/')}/")] = shown(given)
        longest_first = sorted(self._given, key=len, reverse=True)
        # Where a path begins: not in the middle of another one.
        self._known = re.compile(rf"(?<![^\s'\"(=:@])(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def as_given(self, text: str) -> str:
        """Return a text with the paths in it as they were given."""
        return self._known.sub(lambda found: self._given[found.group()], text)


def _folder_of(given: str) -> str:
    """Return the folder of an input: itself, or in which it is; of a pattern, that which is sure."""
    path = given.removeprefix("@")
    if is_remote(path) or Path(path).is_dir():
        return path
    while glob.has_magic(path):
        path = os.path.dirname(path)  # noqa: PTH120 (of "x" it is empty, as it was given, and no dot)
        if Path(path).is_dir():
            return path
    return os.path.dirname(path)  # noqa: PTH120


paths = _Paths()


def said(text: object) -> str:
    """Return a line as it is shown: nothing in it acts on a terminal, no URL gives itself away, paths as given."""
    return paths.as_given(shown(str(text)))


def say(text: object, *, to: Console = console, indent: int = 2) -> None:
    """Print a line; on a terminal it is wrapped between words, and indented where it goes on. Paths stay whole."""
    line = said(text)
    if to.is_terminal and cell_len(line) > to.width:
        words = line.lstrip()
        line = textwrap.fill(
            words, to.width, initial_indent=line.removesuffix(words), subsequent_indent=" " * indent,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    to.print(line, markup=False)


def print_facts(rows: Sequence[tuple[str, str]], width: int = 0) -> int:
    """Print names, and beside them what is said of each; return how wide the names' column is, at least `width`."""
    width = max(width, *(len(name) + _GAP for name, _ in rows))
    for name, text in rows:
        say(f"{name:{width}}{said(text)}", indent=width)
    return width


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table; on a terminal, the widest column is shortened to what there is room for."""
    table = [tuple(map(said, row)) for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    if console.is_terminal:
        widest = widths.index(max(widths))
        excess = sum(widths) + _GAP * (len(widths) - 1) - console.width
        widths[widest] = max(widths[widest] - max(excess, 0), min(_LEAST, widths[widest]))
    for row in table:
        cells = (_cell(cell, width) for cell, width in zip(row, widths, strict=True))
        console.print((" " * _GAP).join(cells).rstrip(), markup=False)


def _cell(text: str, width: int) -> str:
    """Return a text of a width: filled up, or without its middle, for names differ at their ends."""
    keep = len(text)
    while cell_len(text) > width:
        keep -= 1
        text = f"{text[: keep // 2 - 1]}...{text[len(text) - (keep - keep // 2 - 2) :]}"
    return text + " " * (width - cell_len(text))


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document as JSON, in ASCII; its texts are those that a terminal would show."""
    console.print(json.dumps(_plain(document), indent=2, allow_nan=False), markup=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {said(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        # JSON has no NaN.
        return value if value - value == 0 else None
    return said(value) if isinstance(value, str) else value


@contextmanager
def reporting(output: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Log lines to the terminal and to OUTPUT/skylevel.log, and show a progress bar on a terminal."""
    collect_as_usual()
    _silence_tracebacks()
    one_line = Column(no_wrap=True)
    elapsed = [TimeElapsedColumn(table_column=one_line)] if errors.width >= _WIDE else []
    bar = Progress(
        TextColumn("levelling"), BarColumn(bar_width=None), MofNCompleteColumn(table_column=one_line),
        TextColumn("{task.fields[failed]} failed"), *elapsed, _Pace(table_column=one_line),
        console=errors, transient=True, expand=True, disable=quiet or not errors.is_terminal,
    )  # fmt: skip
    task = bar.add_task("levelling", total=None, failed=0)
    with logging_to([terminal_handler(quiet), _Failures(bar), *_file_handlers(output)]), bar, stop_in_order():
        yield lambda count, total: bar.update(task, completed=count, total=total)


def _silence_tracebacks() -> None:
    """Let what becomes of a cluster be said in our own lines alone, not in the tracebacks that Dask logs."""
    import dask  # noqa: PLC0415 (for runs alone)

    names = "asyncio", "distributed", "distributed.client", "tornado.application"
    # Where it is imported later, it sets them by this.
    dask.config.set({"logging": dict.fromkeys(names, "critical")})
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Pace(ProgressColumn):
    """Exposures in a second, or in a minute, and how long the others will take at that."""

    def render(self, task: Task) -> Text:
        if not (task.completed and task.elapsed and task.total):
            return Text("-/min")
        speed = task.completed / task.elapsed
        left = timedelta(seconds=round((task.total - task.completed) / speed))
        return Text((f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.1f}/min") + f" {left} left")


@contextmanager
def logging_to(handlers: list[logging.Handler]) -> Iterator[None]:
    """Give the log's lines to these handlers."""
    logger = logging.getLogger("skylevel")
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def terminal_handler(quiet: bool = False) -> logging.Handler:
    """Return what prints the log's lines."""
    handler = _TerminalHandler(logging.CRITICAL if quiet else logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", _TIME_OF_DAY if errors.is_terminal else _TIME))
    return handler


class _TerminalHandler(logging.Handler):
    """Print log lines above the progress bar; the final table names what failed, once."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            say(self.format(record), to=errors, indent=10)


class _Failures(logging.Handler):
    """Count on the bar what failed: each is an error in the log."""

    def __init__(self, bar: Progress) -> None:
        super().__init__(logging.ERROR)
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 (that there is one is enough)
        (task,) = self._bar.tasks
        self._bar.update(task.id, failed=task.fields["failed"] + 1)


class _Line(logging.Formatter):
    """A line of the log, in which nothing from outside acts on a terminal, and no URL gives itself away."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class _LogFile(logging.FileHandler):
    """A log that ends where the disk is full: what is done and what failed is on the terminal and in the store."""

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=_own_file)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _own_file(path: str, flags: int) -> int:
    """Open a file that is none of another's: no link, pipe or device."""
    extra = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | extra, 0o666)
    except OSError as error:
        if Path(path).is_symlink():
            raise PlanError(f"{path}: is a link, and a log has none: remove it, and run again") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PlanError(f"{path}: is no file: remove it, and run again")
    return descriptor


def _file_handlers(output: str) -> list[logging.Handler]:
    if is_remote(output):
        return []
    Path(output).mkdir(parents=True, exist_ok=True)
    handler = _LogFile(Path(output, "skylevel.log"), encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_Line("%(asctime)s %(levelname)s %(message)s", _TIME))
    return [handler]

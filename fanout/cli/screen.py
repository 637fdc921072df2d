"""What is shown: tables on standard output; progress, warnings and errors on standard error.

Without a terminal there is no colour and no progress bar, and lines are 80 columns long, or as long
as COLUMNS says. Nowhere are they longer than 100: the eye loses the next one; nor is anything laid out
for fewer than 60, where columns would vanish. What does not fit is folded, never cut; lines have no spaces
at their ends.

A pipe that nobody reads any more (``| head``) is no error, and a closed standard output (``>&-``) is none: the rest goes nowhere, and the
command ends with the code that it would have had.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import sys
from typing import IO, TYPE_CHECKING, Any, cast

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from fanout.cli.exits import Refused, deafen, typed, visible
from fanout.sources import naming
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import RenderableType

COLUMNS, LEAST_COLUMNS, MOST_COLUMNS = 80, 60, 100
OUTPUT = "standard output"  # its name in errors
LISTED = 20  # of a long list, on a screen; --json has all
NOBODY = {errno.EPIPE, errno.EBADF}  # reads it any more, or ever did
_TRAILING = re.compile(r" +$", re.MULTILINE)


class _Pipe:
    """A stream that is no terminal.

    Args:
        stream: where lines go.
        result: whether a failure matters: what cannot be warned of changes no exit code.
    """

    def __init__(self, stream: Any, *, result: bool) -> None:
        self._stream, self._result = stream, result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Whole lines; spaces at their ends are left out."""
        with self._heard():
            self._stream.write(_TRAILING.sub("", text))
        return len(text)

    def flush(self) -> None:
        """What was written is with whoever reads it."""
        with self._heard():
            self._stream.flush()

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            with naming(OUTPUT):
                yield
        except OSError as error:
            deafen(self._stream)
            if self._result and error.errno not in NOBODY:
                raise


def out() -> Console:
    """Standard output."""
    return _console(sys.stdout, result=True)


def err() -> Console:
    """Standard error."""
    return _console(sys.stderr, result=False)


def _console(stream: Any, *, result: bool) -> Console:
    # Made anew each time: the stream may have been replaced, as tests do.
    file: Any = stream if stream.isatty() else _Pipe(stream, result=result)
    console = Console(file=file, highlight=False, soft_wrap=False)
    asked = console.is_terminal or os.environ.get("COLUMNS", "").isdecimal()
    console.width = max(LEAST_COLUMNS, min(console.width, MOST_COLUMNS)) if asked else COLUMNS
    return console


def emit(value: object) -> None:
    """Print one JSON object."""
    text = json.dumps(value, indent=2, ensure_ascii=True)
    click.echo(text, file=cast("IO[str]", _Pipe(sys.stdout, result=True)))


def warn(line: str) -> None:
    """A warning that must not be overlooked: standard error, loud."""
    err().print(f"[bold black on yellow] WARNING [/] {plain(line)}", soft_wrap=True)


def warn_each(what: str, lines: Sequence[str]) -> None:
    """A warning for each of a long list, but for its end."""
    for line in lines[:LISTED]:
        warn(f"{what}: {line}")
    if len(lines) > LISTED:
        warn(f"{what}: {len(lines) - LISTED:,} more; --json lists them.")


class Told(logging.Handler):
    """What the library warns of while a command runs, as the command's own warning; for ``with``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        why = record.exc_info[1] if record.exc_info else None
        warn(typed(f"{record.getMessage()}: {why!r}" if why else record.getMessage()))

    def __enter__(self) -> None:
        self.setLevel(logging.WARNING)
        logging.getLogger("fanout").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("fanout").removeHandler(self)


def say(line: str = "", *, whole: bool = False) -> None:
    """A paragraph of the result.

    Args:
        line: may hold markup.
        whole: never folded: a command to be copied, a path.
    """
    with naming(OUTPUT):
        out().print(line, soft_wrap=whole)


def show(shown: RenderableType) -> None:
    """A table, or anything else that rich can print."""
    with naming(OUTPUT):
        out().print(shown)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    right: Iterable[int] = (),
) -> RenderableType:
    """A plain table.

    Args:
        headings: of the columns.
        rows: texts, which may hold rich markup; names must come escaped.
        title: above it.
        right: numbers of the columns that hold numbers.
    """
    numbers = set(right)
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        made.add_column(
            heading,
            justify="right" if index in numbers else "left",
            no_wrap=index in numbers,
            overflow="fold",
        )
    for row in rows:
        made.add_row(*row)
    return Group(Text(title, style="bold"), made) if title else made


class _Rate(ProgressColumn):
    """Bytes per second in the units of everything else here."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{format_size(int(speed))}/s" if speed else "", style="progress.data.speed")


class Bar:
    """A running progress bar; every call is cheap and may come from the loop that does the work."""

    def __init__(self, bar: Progress, what: str, total: int | None) -> None:
        self._bar, self._task = bar, bar.add_task(what, total=total)

    def add(self, done: int) -> None:
        """So many bytes more."""
        self._bar.advance(self._task, done)

    def reach(self, done: int, total: int | None = None) -> None:
        """So many bytes altogether, of so many when that is known by now."""
        self._bar.update(self._task, completed=done, total=total)


@contextlib.contextmanager
def progress(what: str, total: int | None, *, quiet: bool = False) -> Iterator[Bar]:
    """A progress bar with rate and time left, on standard error; silent when that is no terminal.

    Args:
        what: is being done.
        total: bytes, when known.
        quiet: no bar at all.
    """
    console = err()
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        _Rate(),
        TimeRemainingColumn(compact=True),
    ]
    silent = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        yield Bar(bar, what, total)


def confirm(question: str, *, force: bool) -> None:
    """Ask before something is destroyed.

    Args:
        question: what would be destroyed, as a statement without a full stop.
        force: the operator has already said so.

    Raises:
        Refused: no terminal to ask at, or the answer is no.
    """
    if force:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Refused(question)
    try:
        agreed = click.confirm(f"{typed(question)}. Go on?", err=True)
    except click.Abort:  # Ctrl-C or the end of input instead of an answer
        click.echo(err=True)
        agreed = False
    if not agreed:
        raise Refused(question)


def heading(text: str) -> Rule:
    """A line that begins a chapter."""
    return Rule(f"[bold]{escape(text)}[/]", align="left", style="dim")


def count(number: int, what: str) -> str:
    """``1 object``, ``1,230 objects``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def plain(text: str) -> str:
    """Text from outside for a console: no markup, no control characters, no broken encoding."""
    return escape(visible(text))


def bullet(text: str) -> Table:
    """One item of a list, wrapped under itself."""
    made = Table.grid(padding=(0, 1))
    made.add_column(width=1)
    made.add_column(overflow="fold")
    made.add_row("•", plain(text))
    return made


def facts(title: str, rows: Iterable[tuple[str, str]]) -> RenderableType:
    """A short list of names and values.

    Args:
        title: above it; plain text.
        rows: name and value; values may hold markup.
    """
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True, min_width=12)
    made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*row)
    made.add_row("", "")
    return Group(Text(visible(title), style="bold", overflow="fold"), made)


@contextlib.contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """A line that says what runs now, on standard error; silent when that is no terminal."""
    console = err()
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("starting") as line:
        yield lambda text: line.update(plain(text))

"""Exit codes, and what an error means to an operator: one line, and the mend.

The codes are a promise to scripts; docs/cli.md has the same table.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import io
import json
import os
import re
import shlex
import sys
import traceback
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, NoReturn

import click

from fanout import errors

if TYPE_CHECKING:
    from collections.abc import Iterable


class Exit(enum.IntEnum):
    """How a command ended."""

    COMPLETE = 0
    UNEXPECTED = 1
    USAGE = 2
    DEGRADED = 3
    RETRY = 4
    FAILED = 5
    UNKNOWN = 6
    GAPS = 7
    NOT_FOUND = 8
    INTEGRITY = 9
    CONFIG = 10
    CATALOG = 11
    TARGET = 12
    REFUSED = 13
    UNSUITABLE = 14
    REGRESSION = 15
    INTERRUPTED = 130


class Refused(errors.FanoutError):
    """Something would have been destroyed, and nobody has said that this is meant.

    Args:
        message: what it is.
        mend: what to do about it; empty: the message says it.
    """

    def __init__(self, message: str, *, mend: str = "Say --force if that is meant.") -> None:
        self.mend = mend
        super().__init__(message)


class Unsuitable(errors.FanoutError):
    """This machine lacks what the command needs: space, a permission, a package."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to tell: the code, the line, and what mends it (may be empty)."""

    code: Exit
    line: str
    mend: str = ""


ROOM = (
    "Give the pool room: another volume in fanout.toml, then 'fanout init --add'; or a higher max_volumes where it makes "
    "its volumes itself."
)
_WHERE = "Say where it is: --config FILE, or FANOUT_CONFIG; README.md shows a small one."

# The first class that matches decides, so the special ones stand first.
_CLASSES: tuple[tuple[type[BaseException], Exit, str], ...] = (
    (errors.ConfigError, Exit.CONFIG, "Correct the file; docs/cli.md shows a complete one."),
    (
        errors.SourceNotRereadable,
        Exit.FAILED,
        "Let it be spooled with --spool SIZE, or say --once if a failure may be final.",
    ),
    (errors.SourceError, Exit.FAILED, ""),
    (errors.UnknownPool, Exit.CONFIG, ""),
    (
        errors.PoolFull,
        Exit.TARGET,
        ROOM,
    ),
    (errors.PoolUnavailable, Exit.TARGET, "'fanout query volume' says why."),
    (errors.PoolError, Exit.TARGET, ""),
    (
        errors.VolumeBusy,
        Exit.TARGET,
        "Wait for the other process to end, or stop it.",
    ),
    (errors.VolumeError, Exit.TARGET, ""),
    (
        errors.CatalogBusy,
        Exit.CATALOG,
        "Another process writes to this store. Queries and 'get' work beside it; wait for the rest.",
    ),
    (
        errors.CatalogVersion,
        Exit.CATALOG,
        "If it is damaged, 'fanout rebuild catalog --force' makes a new one from the volumes, and keeps this one.",
    ),
    (errors.CatalogError, Exit.CATALOG, ""),
    (
        errors.CommitUnknown,
        Exit.UNKNOWN,
        "Run the command again: opening the store decides, and tells.",
    ),
    (
        errors.TransactionRetry,
        Exit.RETRY,
        "Nothing of it is stored. Run the command again.",
    ),
    (errors.TransactionError, Exit.FAILED, "Nothing of it is stored."),
    (errors.ObjectNotFound, Exit.NOT_FOUND, "'fanout query object NODE' lists what there is."),
    (
        errors.IntegrityError,
        Exit.INTEGRITY,
        "Do not trust that copy; read it from another pool with --pool.",
    ),
    (errors.TargetError, Exit.TARGET, "'fanout doctor TARGET' says what it can do."),
    (Refused, Exit.REFUSED, ""),
    (Unsuitable, Exit.UNSUITABLE, ""),
    (errors.InterfaceError, Exit.USAGE, ""),
    (errors.FanoutError, Exit.FAILED, ""),
    (KeyboardInterrupt, Exit.INTERRUPTED, ""),
    (OSError, Exit.TARGET, ""),
)


# Their words hold names that clients have chosen.
_OF_OBJECTS = (errors.ObjectNotFound, errors.IntegrityError, errors.SourceError)


def judge(error: BaseException) -> Verdict:
    """What an error means to an operator."""
    if isinstance(error, KeyboardInterrupt):
        return Verdict(Exit.INTERRUPTED, "interrupted", _with_notes(error, ""))
    if isinstance(error, errors.TransactionFailed) and error.reason == "budget":
        # Every retry failed, but nothing says that a later one must.
        mend = "Nothing of it is stored. Run the command again."
        return Verdict(Exit.RETRY, _line(error), _with_notes(error, mend))
    if _is_no_thread(error.__cause__) or isinstance(error.__cause__, BlockingIOError):
        return Verdict(Exit.UNSUITABLE, _line(error), _with_notes(error, ""))  # says it itself
    if (
        isinstance(error, errors.ConfigError)
        and isinstance(error.__cause__, OSError)
        and not error.key
    ):
        return Verdict(Exit.CONFIG, _line(error), _with_notes(error, _WHERE))
    if isinstance(error, MemoryError) or _is_no_thread(error):
        line = f"this machine is short of memory or threads{f': {error}' if str(error) else ''}"
        return Verdict(
            Exit.UNSUITABLE, line, "Raise the limit (ulimit -v, ulimit -u), or end something."
        )
    for kind, code, mend in _CLASSES:
        if isinstance(error, kind):
            own = error.mend if isinstance(error, Refused) else mend
            return Verdict(code, _line(error), _with_notes(error, own))
    return Verdict(
        Exit.UNEXPECTED,
        f"unexpected {type(error).__name__}: {error}",
        "This is a mistake in fanout. FANOUT_DEBUG=1 shows where it happened.",
    )


def _with_notes(error: BaseException, mend: str) -> str:
    """The mend, with what the command added; of a file that is wrong the command knows better how to mend it."""
    notes: list[str] = getattr(error, "__notes__", [])
    if notes and isinstance(error, errors.ConfigError):
        return " ".join(notes)
    return " ".join(part for part in (mend, *notes) if part)


def _is_no_thread(error: BaseException | None) -> bool:
    """What Python says when the kernel gives it no thread has no class of its own."""
    return type(error) is RuntimeError and "start new thread" in str(error)


def _line(error: BaseException) -> str:
    """The error's own words, with those of the targets it came from."""
    if isinstance(error, OSError) and not isinstance(error, errors.FanoutError):
        place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{place}{error.strerror or error}".replace("\n", "\\n")
    line = _on_one_line(error)
    if isinstance(error.__cause__, BaseExceptionGroup):
        causes = [_on_one_line(cause) for cause in error.__cause__.exceptions]
        line += "".join(f"\n  {cause}" for cause in causes if cause not in line)
    return line


def _on_one_line(error: BaseException) -> str:
    """Its words; a path or a name in them may hold a line end, and a log takes what follows for another error."""
    return str(error).replace("\n", "\\n")


def room(reasons: Iterable[str]) -> str:
    """The mend, if one of the reasons for which something is not in a pool is that it is full; else nothing."""
    return typed(ROOM) if any(map(errors.PoolFull.explains, reasons)) else ""


# Options that many commands have, and how each is written.
_OF_COMMANDS = {"--config": "--config FILE", "-c": "-c FILE", "--json": "--json"}
_CITED = re.compile(
    r"\bfanout (?:init|put|get|delete|check|query [a-z]+|(?:backup|restore|audit) stgpool|backup catalog"
    r"|copy activedata|retire volume|rebuild catalog)\b(?! -c )"
)


def typed(text: str) -> str:
    """Advice as it is to be typed: commands name the configuration that this one was given, else they would work on another store.

    Not for text with the names of objects in it.
    """
    ctx = click.get_current_context(silent=True)
    state = ctx.find_root().obj if ctx else None
    if not isinstance(state, dict) or "config" not in state:
        return text
    config = shlex.quote(os.fspath(state["config"]))
    return _CITED.sub(lambda found: f"{found[0]} -c {config}", text)


def leave(ctx: click.Context, error: BaseException) -> NoReturn:
    """Tell what went wrong and end with the code for it.

    With ``--json`` standard output gets one object with the key ``error`` as well.
    """
    state = ctx.obj if isinstance(ctx.obj, dict) else {}
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        # Whoever read an object from our output has had enough. Nothing is left to tell, and nobody to tell it.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        ctx.exit(Exit.COMPLETE)
    verdict = judge(error)
    if not isinstance(error, _OF_OBJECTS):
        verdict = replace(verdict, line=typed(verdict.line))
    verdict = replace(verdict, mend=typed(verdict.mend))
    if state.get("debug"):
        traceback.print_exception(error, file=sys.stderr)
    if state.get("json"):
        _tell_json(type(error).__name__, verdict)
    complain(verdict.line, verdict.mend)
    try:
        sys.stdout.flush()
    except OSError:  # then it is what failed, and the interpreter must not find that out once more
        deafen(sys.stdout)
    ctx.exit(int(verdict.code))


def tell_usage(ctx: click.Context, error: click.UsageError) -> None:
    """With ``--json`` a wrong command line is an object as well; the words on standard error are click's."""
    if isinstance(ctx.obj, dict) and ctx.obj.get("json"):
        where = error.ctx.command_path if error.ctx else "fanout"
        mend = f"'{where} --help' shows what there is."
        _tell_json("UsageError", Verdict(Exit.USAGE, error.format_message(), mend))


def place_of_option(error: click.UsageError) -> click.UsageError:
    """What to say of a command's option that stands before the command's name."""
    if not (
        isinstance(error, click.NoSuchOption)
        and error.option_name in _OF_COMMANDS
        and error.ctx
        and isinstance(error.ctx.command, click.Group)
    ):
        return error
    stands = f"{error.option_name} stands behind the command, as in 'fanout query gap {_OF_COMMANDS[error.option_name]}'"
    return click.UsageError(stands, error.ctx)


def _tell_json(kind: str, verdict: Verdict) -> None:
    said = {
        "kind": kind,
        "message": verdict.line,
        "mend": verdict.mend,
        "exit_code": int(verdict.code),
    }
    try:
        click.echo(json.dumps({"ok": False, "error": said}, indent=2))
    except OSError:  # it may be standard output that failed
        deafen(sys.stdout)


def visible(text: str) -> str:
    """Text that any terminal takes: bytes that are no UTF-8 and control characters as escapes."""
    decodable = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in decodable
    )


def complain(line: str, mend: str = "") -> None:
    """Print an error on standard error: what happened, and what mends it."""
    lines = "\n".join(visible(part) for part in line.split("\n"))
    # As rich does for all else; None: click looks whether it is a terminal.
    colour = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None
    try:
        who = click.style("fanout:", fg="red", bold=True)
        click.echo(f"{who} {lines}", err=True, color=colour)
        if mend:
            click.echo(f"        {mend}", err=True)
    except OSError:  # the exit code says it, too
        deafen(sys.stderr)


class _Unheard(io.TextIOWrapper):
    """Text goes nowhere; bytes, which somebody wants to have, are refused."""

    def write(self, text: str) -> int:
        return len(text)


def stand_in() -> None:
    """Standard streams that are closed (``>&-``) refuse bytes, let text go nowhere, and keep their numbers.

    Otherwise the next file that is opened gets the number, and what is meant for a terminal lands on a volume.
    """
    if sys.stdin is None:
        lowest = os.open(os.devnull, os.O_WRONLY)
        sys.stdin = open(lowest, encoding="utf-8", closefd=False)  # noqa: SIM115
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            lowest = os.open(os.devnull, os.O_RDONLY)
            setattr(sys, name, _Unheard(open(lowest, "wb", closefd=False), encoding="utf-8"))  # noqa: SIM115


def deafen(stream: IO[str]) -> None:
    """It takes nothing any more: what is left in its buffer, and all that follows, goes nowhere.

    Some Pythons (3.11.2 of Debian 12) keep what could not be written, try again at their end, and exit with 120 then.
    """
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

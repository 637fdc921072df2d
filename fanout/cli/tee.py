"""``fanout tee``: one source to several files or devices, without pools."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fanout
from fanout.cli import screen
from fanout.cli.exits import Exit
from fanout.cli.params import SIZE, force_option, json_option
from fanout.engine.stream import MAX_TARGETS
from fanout.types import Phase
from fanout.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout._tee import TeeResult
    from fanout.types import Outcome


@click.command(short_help="One source to several files or devices, checksummed")
@click.argument("source", type=click.Path(allow_dash=True), metavar="SRC|-")
@click.argument(
    "targets", nargs=-1, required=True, type=click.Path(readable=False), metavar="TARGET..."
)
@click.option(
    "--size",
    type=SIZE,
    help="Length of standard input when it is known: files are allocated ahead, and less or more is an error.",
)
@force_option("Overwrite files and devices without asking.")
@json_option
@click.pass_context
def tee(
    ctx: click.Context,
    *,
    source: str,
    targets: tuple[str, ...],
    size: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Copy SRC (or standard input) to every TARGET at once, durably and checksummed.

    A TARGET is a file or a block device. Data is flushed before the command ends.
    A target that fails does not stop the others.

    Exit codes: 0 every target is complete; 3 some are; 5 none is.
    """
    _check(source, targets, force=force)
    if source == "-":
        total, reader = size, sys.stdin.buffer
    else:
        total, reader = Path(source).stat().st_size or None, source  # a device says 0
    with screen.progress("writing", total, quiet=as_json) as bar:
        result = fanout.tee(reader, list(targets), size=size, on_progress=bar.reach)
    if as_json:
        screen.emit(_plain(result))
    else:
        _show(result)
    if not result.ok:
        good = any(outcome.ok for outcome in result.outcomes.values())
        ctx.exit(Exit.DEGRADED if good else Exit.FAILED)


def _check(source: str, targets: Sequence[str], *, force: bool) -> None:
    """Refuse what is a mistake, ask about what destroys."""
    seen: dict[tuple[int, int], str] = {}
    if source != "-":
        status = Path(source).stat()
        if stat.S_ISDIR(status.st_mode):
            raise click.UsageError(f"{source} is a directory; tee copies one file or device")
        seen[_identity(status)] = source
    if len(targets) > MAX_TARGETS:
        raise click.UsageError(f"at most {MAX_TARGETS} targets, and these are {len(targets)}")
    if len(set(targets)) != len(targets):
        raise click.UsageError("a target is named twice")
    for path in targets:
        try:
            status = Path(path).stat()
        except FileNotFoundError:
            continue
        if not (stat.S_ISBLK(status.st_mode) or stat.S_ISREG(status.st_mode)):
            raise click.UsageError(
                f"{path} is neither a file nor a block device; name one, or a new file's path"
            )
        identity = _identity(status)
        if identity in seen:
            raise click.UsageError(f"{path} and {seen[identity]} are the same file or device")
        seen[identity] = path
        if stat.S_ISBLK(status.st_mode):
            question = f"{path} is a block device; what is on it will be lost"
        else:
            question = f"{path} exists ({format_size(status.st_size)}) and will be replaced"
        screen.confirm(question, force=force)


def _identity(status: os.stat_result) -> tuple[int, int]:
    """The same device or file under two names must be found out."""
    if stat.S_ISBLK(status.st_mode):
        return (-1, status.st_rdev)
    return (status.st_dev, status.st_ino)


def outcome_values(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain values for JSON."""
    return {
        "ok": outcome.ok,
        "code": outcome.code.name.lower(),
        "phase": outcome.phase.name.lower(),
        "offset": outcome.offset,
        "length": outcome.length,
        "done": outcome.done,
        "errno": outcome.errno,
        "class": outcome.cls.name.lower(),
        "attempts": outcome.attempts,
        "more": outcome.more,
        "text": str(outcome),
    }


def _plain(result: TeeResult) -> dict[str, Any]:
    return {
        "ok": result.ok,
        "bytes": result.bytes,
        "digest": result.digest,
        "seconds": round(result.seconds, 6),
        "targets": {
            os.fsdecode(path): outcome_values(outcome) for path, outcome in result.outcomes.items()
        },
    }


def _show(result: TeeResult) -> None:
    speed = format_size(int(result.bytes / result.seconds)) if result.seconds else "–"
    rows = []
    for path, outcome in result.outcomes.items():
        said = "[green]complete[/]" if outcome.ok else f"[red]{screen.plain(_fault(outcome))}[/]"
        rows.append((screen.plain(os.fsdecode(path)), said))
    screen.show(screen.table(("target", "outcome"), rows))
    if result.digest:
        screen.say(
            f"{format_size(result.bytes)} in {format_seconds(result.seconds)}, {speed}/s to each; "
            f"XXH3-128 {result.digest}"
        )
    bad = sum(not outcome.ok for outcome in result.outcomes.values())
    if bad:
        verb = "is" if bad == 1 else "are"
        screen.warn(f"{bad} of {screen.count(len(result.outcomes), 'target')} {verb} not complete.")


def _fault(outcome: Outcome) -> str:
    """What went wrong, in words."""
    if outcome.phase is Phase.OPEN and outcome.errno:
        symbol = errno.errorcode.get(outcome.errno, str(outcome.errno))
        return f"cannot be opened: {os.strerror(outcome.errno)} ({symbol})"
    return str(outcome)

"""``fanout check`` and ``fanout rebuild catalog``: whether all is as it was stored, and what to do when the catalog is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from fanout import config as configuration
from fanout.check import check_store
from fanout.cli import screen
from fanout.cli.exits import Exit, typed
from fanout.cli.params import config_option, force_option, json_option
from fanout.rebuild import rebuild_catalog
from fanout.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fanout.check import CheckReport, Problem
    from fanout.rebuild import RebuildReport


# ---- check -------------------------------------------------------------------------------------------


@click.command(short_help="Verify catalog, volumes and every byte; change nothing")
@click.option(
    "--no-data",
    is_flag=True,
    help="Catalog, directories, headers and footers alone: quick.",
)
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, *, no_data: bool, config: Path, as_json: bool) -> None:
    """Verify the whole store, and change nothing.

    The catalog against itself and against every volume's own directory; headers,
    footers, sums and digests of every copy; gaps against what the copies hold.
    Needs the store for itself: nobody may write meanwhile.

    Exit codes: 0 nothing is wrong; 9 something is.
    """
    with screen.progress("checking", None, quiet=as_json) as bar:
        report = check_store(config, data=not no_data, on_progress=bar.reach)
    if as_json:
        screen.emit(_check_values(report, data=not no_data))
    else:
        _show_check(report, data=not no_data)
    if not report.ok:
        ctx.exit(Exit.INTEGRITY)


def _check_values(report: CheckReport, *, data: bool) -> dict[str, Any]:
    return {
        "ok": report.ok,
        "data": data,
        "volumes": report.volumes,
        "aggregates": report.aggregates,
        "objects": report.objects,
        "spans": report.spans,
        "bytes": report.bytes,
        "problems": [_problem_values(problem) for problem in report.problems],
        "more_problems": report.more,
        "seconds": round(report.seconds, 6),
    }


def _problem_values(problem: Problem) -> dict[str, Any]:
    return {
        "pool": problem.pool or None,
        "path": problem.path or None,
        "offset": problem.offset,
        "object": os.fsdecode(problem.object) if problem.object else None,
        "what": problem.what,
        "mend": typed(problem.mend),
    }


def _show_check(report: CheckReport, *, data: bool) -> None:
    looked = (
        f"{screen.count(report.objects, 'object')} in {screen.count(report.spans, 'span')} on "
        f"{screen.count(report.volumes, 'volume')}"
    )
    read = f"{format_size(report.bytes)} read and compared" if data else "headers and footers only"
    screen.say(f"{looked}; {read} in {format_seconds(report.seconds)}.")
    for problem in report.problems[: screen.LISTED]:
        screen.say(f"[bold red]wrong:[/] {screen.plain(_line(problem))}")
        screen.say(f"  [dim]mend:[/] {screen.plain(typed(problem.mend))}", whole=True)
    found = len(report.problems) + report.more
    if found > screen.LISTED:
        screen.say(f"{screen.count(found - screen.LISTED, 'problem')} more; --json lists them.")
    if report.ok:
        screen.say("Nothing is wrong.")


def _line(problem: Problem) -> str:
    place = problem.path + ("" if problem.offset is None else f" at {problem.offset}")
    name = os.fsdecode(problem.object)
    return ": ".join(part for part in (problem.pool, place, name, problem.what) if part)


# ---- rebuild -----------------------------------------------------------------------------------------


@click.group(short_help="Make the catalog anew from the volumes")
def rebuild() -> None:
    """Make anew what was lost."""


@rebuild.command(short_help="Make the catalog anew from the volumes")
@force_option("Keep a catalog that is there under another name, and take its place.")
@click.option(
    "--take-retired",
    is_flag=True,
    help="Also take in volumes that were given up with 'fanout retire volume'.",
)
@config_option
@json_option
@click.pass_context
def catalog(
    ctx: click.Context, *, force: bool, take_retired: bool, config: Path, as_json: bool
) -> None:
    """Make the catalog anew, from what the volumes say of themselves.

    Reads every volume that fanout.toml names and writes to none of them. What no
    volume's directory names is listed as in doubt, and does not come back.
    A catalog that is there is never overwritten: with --force it is kept beside
    the new one. Needs the store for itself.

    A volume that was given up ('fanout retire volume') and is there again is left
    aside: it was not told what was deleted since. --take-retired takes it in, and
    such objects with it.

    Exit codes: 0 complete; 7 gaps, or spans in doubt; 9 objects are lost;
    12 a volume could not take part.
    """
    settings = configuration.load(config)
    path = settings.store.catalog
    if os.path.lexists(path):
        screen.confirm(f"{path} would be kept under another name and replaced", force=force)
        force = True
    with screen.progress("reading volumes", None, quiet=as_json) as bar:
        report = rebuild_catalog(
            settings, force=force, take_retired=take_retired, on_progress=bar.reach
        )
    if as_json:
        screen.emit(_rebuild_values(report))
    else:
        _show_rebuild(report)
    ctx.exit(int(_exit_of(report)))


def _exit_of(report: RebuildReport) -> Exit:
    if report.lost:
        return Exit.INTEGRITY
    if report.skipped:
        return Exit.TARGET
    return Exit.GAPS if report.gaps or report.in_doubt else Exit.COMPLETE


def _rebuild_values(report: RebuildReport) -> dict[str, Any]:
    return {
        "ok": _exit_of(report) is Exit.COMPLETE,
        "catalog": report.catalog,
        "kept": report.kept,
        "store": report.store.hex(),
        "csn": report.csn,
        "volumes": list(report.volumes),
        "skipped": [
            {"pool": one.pool, "path": one.path, "reason": one.reason} for one in report.skipped
        ],
        "retired": [
            {"pool": one.pool, "path": one.path, "reason": one.reason} for one in report.retired
        ],
        "transactions": report.transactions,
        "objects": report.objects,
        "bytes": report.bytes,
        "gaps": report.gaps,
        "in_doubt": [
            {
                "pool": one.pool,
                "path": one.path,
                "offset": one.offset,
                "used": one.used,
                "transaction": one.transaction.hex(),
                "attempt": one.attempt,
                "aggregate": one.aggregate.hex(),
                "names": [os.fsdecode(name) for name in one.names],
                "committed": one.committed,
            }
            for one in report.in_doubt
        ],
        "lost": [
            {
                "aggregate": one.aggregate.hex(),
                "node": one.node,
                "known": one.known,
                "reason": one.reason,
            }
            for one in report.lost
        ],
        "deduced": report.deduced,
        "notes": list(report.notes),
        "seconds": round(report.seconds, 6),
    }


def _show_rebuild(report: RebuildReport) -> None:
    screen.say(
        f"{screen.count(report.objects, 'object')} ({format_size(report.bytes)}) of "
        f"{screen.count(report.transactions, 'transaction')}, from "
        f"{screen.count(len(report.volumes), 'volume')} in {format_seconds(report.seconds)}."
    )
    screen.say(f"The catalog is {screen.plain(report.catalog)}", whole=True)
    if report.kept:
        screen.say(f"The one before is kept as {screen.plain(report.kept)}", whole=True)
    screen.warn_each(
        "took no part", [f"{one.pool}: {one.path}: {one.reason}" for one in report.skipped]
    )
    if report.skipped:
        screen.say(
            "Is one of these only away? Bring it back and say 'fanout rebuild catalog --force' again, "
            "before 'fanout init --add' makes a new one in its place."
        )
    screen.warn_each(
        "left aside", [f"{one.pool}: {one.path}: {one.reason}" for one in report.retired]
    )
    screen.warn_each(
        "lost", [f"{one.node}, {one.aggregate.hex()}: {one.reason}" for one in report.lost]
    )
    screen.warn_each(
        "in doubt", [_doubt(one.names, one.path, one.offset) for one in report.in_doubt]
    )
    screen.warn_each("note", report.notes)
    if report.deduced:
        screen.warn(
            f"The place of {screen.count(report.deduced, 'transaction')} in the order was deduced "
            "from the time."
        )
    if report.gaps:
        screen.warn(
            typed(
                f"{screen.count(report.gaps, 'gap')}; 'fanout query gap' names them and what closes them."
            )
        )


def _doubt(names: Sequence[bytes], path: str, offset: int) -> str:
    more = f" and {screen.count(len(names) - 1, 'object')} more" if len(names) > 1 else ""
    first = os.fsdecode(names[0]) if names else "no object"
    return f"{path} at {offset}: {first}{more}"

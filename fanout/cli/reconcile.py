"""``fanout backup stgpool``, ``copy activedata`` and ``restore stgpool``, which close gaps; ``fanout backup catalog``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import fanout
from fanout.cli import screen
from fanout.cli.exits import Exit, room, typed
from fanout.cli.params import config_option, force_option, json_option
from fanout.store import Store
from fanout.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.reconcile import ReconcileReport


@click.group(short_help="Copy to a copy pool what it lacks; copy the catalog")
def backup() -> None:
    """Copy to a copy pool what it lacks, or copy the catalog."""


@backup.command(short_help="Copy the catalog, also while the store is in use")
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
@force_option("Replace FILE if it exists.")
@config_option
@json_option
def catalog(*, target: Path, force: bool, config: Path, as_json: bool) -> None:
    """Copy the catalog to FILE, also while the store is in use.

    The copy is the catalog at one commit, verified, durable, and readable by its
    owner alone. In the place of a newer catalog it is refused: then 'fanout
    rebuild catalog --force' makes the newest one from the volumes.
    """
    if os.path.lexists(target):
        screen.confirm(f"{target} exists and would be replaced", force=force)
        force = True
    with screen.progress("copying", None, quiet=as_json) as bar:
        made = fanout.backup_catalog(config, target, force=force, on_progress=bar.reach)
    if as_json:
        screen.emit(
            {
                "ok": True,
                "path": made.path,
                "store": made.store.hex(),
                "csn": made.csn,
                "bytes": made.bytes,
            }
        )
    else:
        screen.say(
            f"{screen.plain(made.path)}: {format_size(made.bytes)}, up to commit {made.csn:,}.",
            whole=True,
        )


@backup.command(short_help="Copy to COPYPOOL what it lacks of PRIMARY")
@click.argument("primary")
@click.argument("copypool")
@click.option("--preview", is_flag=True, help="Say what would be copied, and copy nothing.")
@config_option
@json_option
@click.pass_context
def stgpool(
    ctx: click.Context, *, primary: str, copypool: str, preview: bool, config: Path, as_json: bool
) -> None:
    """Copy to COPYPOOL every object of PRIMARY that it lacks.

    Data is read from any pool that holds a good copy, and verified. What is
    there already is skipped. Begin with the top of a hierarchy of primaries.

    Exit codes: 0 nothing is missing any more; 7 something is.
    """
    _run(ctx, fanout.backup_stgpool, primary, copypool, config, preview=preview, as_json=as_json)


@click.group(short_help="Copy to an active-data pool what it lacks")
def copy() -> None:
    """Copy to an active-data pool what it lacks."""


@copy.command(short_help="Copy to ACTIVEPOOL the active versions of PRIMARY that it lacks")
@click.argument("primary")
@click.argument("activepool")
@click.option("--preview", is_flag=True, help="Say what would be copied, and copy nothing.")
@config_option
@json_option
@click.pass_context
def activedata(
    ctx: click.Context,
    *,
    primary: str,
    activepool: str,
    preview: bool,
    config: Path,
    as_json: bool,
) -> None:
    """Copy to ACTIVEPOOL the active versions of PRIMARY that it lacks.

    Only backup versions that no newer one has replaced, and only of nodes whose
    domain allows the pool.

    Exit codes: 0 nothing is missing any more; 7 something is.
    """
    _run(ctx, fanout.copy_activedata, primary, activepool, config, preview=preview, as_json=as_json)


@click.group(short_help="Copy back to a primary pool what it has lost")
def restore() -> None:
    """Copy back what was lost."""


@restore.command("stgpool", short_help="Copy back to PRIMARY what it has lost, from any good copy")
@click.argument("primary")
@click.option("--preview", is_flag=True, help="Say what would be copied, and copy nothing.")
@config_option
@json_option
@click.pass_context
def restore_stgpool(
    ctx: click.Context, *, primary: str, preview: bool, config: Path, as_json: bool
) -> None:
    """Copy back to PRIMARY every object that it has lost.

    That is what 'fanout audit stgpool PRIMARY --fix' found damaged, and what a
    volume held that was retired. Data is read from any pool that holds a good
    copy, and verified.

    Exit codes: 0 nothing is missing any more; 7 something is.
    """

    def work(store: Store, pool: str, _: str, **options: Any) -> ReconcileReport:
        return fanout.restore_stgpool(store, pool, **options)

    _run(ctx, work, primary, primary, config, preview=preview, as_json=as_json)


def _run(
    ctx: click.Context,
    work: Callable[..., ReconcileReport],
    primary: str,
    pool: str,
    config: Path,
    *,
    preview: bool,
    as_json: bool,
) -> None:
    with Store.open(config, read_only=preview) as store:
        primary, pool = store.pool_name(primary), store.configured_pool(pool).name
        with screen.progress("copying", None, quiet=as_json or preview) as bar:
            report = work(store, primary, pool, preview=preview, on_progress=bar.reach)
    left = bool(report.gaps_left or report.failed)
    if as_json:
        screen.emit(_values(report, primary, pool, preview=preview))
    else:
        _show(report, primary, pool, preview=preview)
    if left or (preview and report.copied_objects):
        ctx.exit(Exit.GAPS)


def _values(report: ReconcileReport, primary: str, pool: str, *, preview: bool) -> dict[str, Any]:
    return {
        "ok": not (report.gaps_left or report.failed),
        "primary": primary,
        "pool": pool,
        "preview": preview,
        "copied_objects": report.copied_objects,
        "copied_bytes": report.copied_bytes,
        "skipped_objects": report.skipped_objects,
        "gaps_closed": report.gaps_closed,
        "gaps_left": report.gaps_left,
        "failed": [{"name": _text(name), "reason": reason} for name, reason in report.failed],
        "seconds": round(report.seconds, 6),
    }


def _text(name: str | bytes) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else name


def _show(report: ReconcileReport, primary: str, pool: str, *, preview: bool) -> None:
    size = format_size(report.copied_bytes)
    there = f"{screen.count(report.skipped_objects, 'object')} there already"
    some = screen.count(report.copied_objects, "object")
    of = f" of {primary}" if primary != pool else ""
    if not (report.copied_objects or report.failed):
        screen.say(f"{pool} lacks nothing{of}; {there}.")
    elif preview:
        screen.say(f"{pool} lacks {some}{of} ({size}); {there}. Nothing was copied.")
    else:
        rate = format_size(int(report.copied_bytes / report.seconds)) if report.seconds else "–"
        screen.say(
            f"{some}{of} copied to {pool}, {size} in {format_seconds(report.seconds)} "
            f"({rate}/s); {there}."
        )
    for name, reason in report.failed[:20]:
        screen.warn(f"not copied: {_text(name)}: {reason}")
    if len(report.failed) > 20:
        screen.warn(f"{len(report.failed) - 20:,} more; --json lists them.")
    if mend := room(reason for _, reason in report.failed):
        screen.warn(mend)
    if report.gaps_left:
        left = f"{screen.count(report.gaps_left, 'gap')} left; 'fanout query gap' names them."
        screen.warn(typed(left))

"""``fanout delete``: versions of objects, from every pool."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from fanout.cli import screen
from fanout.cli.exits import Exit, typed
from fanout.cli.params import config_option, force_option, json_option
from fanout.store import Store
from fanout.types import ObjectKind
from fanout.units import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.deletion import DeleteReport


@click.command(short_help="Delete versions of objects from every pool")
@click.argument("node")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--version", type=int, help="This version of one object.  [default: the active one]")
@click.option("--all", "everything", is_flag=True, help="All versions.")
@click.option(
    "--keep",
    type=click.IntRange(0),
    metavar="N",
    help="All but the newest N versions of each object; without a NAME of all objects of NODE.",
)
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in ObjectKind]),
    default=ObjectKind.BACKUP.value,
    show_default=True,
    help="Of the objects.",
)
@click.option(
    "--unnamed",
    is_flag=True,
    help="All of NODE that a catalog made anew counts and cannot name; 'fanout check' says where.",
)
@click.option("--preview", is_flag=True, help="Say what would be deleted, and delete nothing.")
@force_option("Do not ask before going through all objects of a node.")
@config_option
@json_option
@click.pass_context
def delete(
    ctx: click.Context,
    *,
    node: str,
    names: tuple[str, ...],
    version: int | None,
    everything: bool,
    keep: int | None,
    kind: str,
    unnamed: bool,
    preview: bool,
    force: bool,
    config: Path,
    as_json: bool,
) -> None:
    """Delete versions of the objects NAME of NODE from every pool.

    Without --version, --all or --keep it is the active version of each; the newest
    of those that are left becomes active. An expiration is 'fanout delete NODE --keep N'.

    Objects that were stored together give their space back when all of them are
    deleted; on a volume that is away, when that has come back.

    Exit codes: 0 deleted; 8 there is nothing of a NAME, and nothing was deleted;
    12 some cannot be deleted before a volume that holds them has come back.
    """
    if sum((version is not None, everything, keep is not None)) > 1:
        raise click.UsageError("say one of --version, --all and --keep")
    if unnamed and (names or everything or (version, keep) != (None, None)):
        raise click.UsageError("--unnamed goes with no NAME, --version, --all or --keep")
    if not names and keep is None and not unnamed:
        raise click.UsageError("name the objects; --keep N goes through all that NODE has")
    which: dict[str, Any] = {"version": version, "keep": 0 if everything else keep}
    which |= {"kind": ObjectKind(kind), "unnamed": unnamed}
    wanted = [os.fsencode(name) for name in names] or None
    with Store.open(config, read_only=preview) as store:
        node = store.node_name(node)
        if wanted is None and not preview:
            count = store.delete(node, None, preview=True, **which).objects
            if count:
                screen.confirm(f"{screen.count(count, 'version')} of {node} go", force=force)
        report = store.delete(node, wanted, preview=preview, **which)
    if as_json:
        screen.emit(_values(report, node, preview=preview))
    else:
        _show(report, node, preview=preview)
    if report.postponed:
        ctx.exit(Exit.TARGET)


def _values(report: DeleteReport, node: str, *, preview: bool) -> dict[str, Any]:
    return {
        "ok": not report.postponed,
        "node": node,
        "preview": preview,
        "objects": report.objects,
        "bytes": report.object_bytes,
        "aggregates": report.aggregates,
        "freed_bytes": report.freed_bytes,
        "waiting_bytes": report.waiting_bytes,
        "postponed": [
            {"name": os.fsdecode(name), "reason": typed(reason)}
            for name, reason in report.postponed
        ],
        "seconds": round(report.seconds, 6),
    }


def _show(report: DeleteReport, node: str, *, preview: bool) -> None:
    some = f"{screen.count(report.objects, 'version')} of {node}"
    size = format_size(report.object_bytes)
    if preview:
        screen.say(f"{some} would be deleted ({size}). Nothing was deleted.")
    else:
        screen.say(f"{some} deleted ({size}); {format_size(report.freed_bytes)} are free again.")
    if report.waiting_bytes:
        screen.say(
            f"{format_size(report.waiting_bytes)} are free when volumes that are away have come back."
        )
    waiting = [f"{os.fsdecode(name)}: {typed(reason)}" for name, reason in report.postponed]
    screen.warn_each("not deleted", waiting)

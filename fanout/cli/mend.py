"""``fanout audit stgpool`` and ``fanout retire volume``: the commands that turn damage into gaps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from fanout import config as configuration
from fanout.audit import audit_stgpool
from fanout.cli import screen
from fanout.cli.exits import Exit, room, typed
from fanout.cli.params import config_option, force_option, json_option
from fanout.retire import retire_volume
from fanout.store import Store
from fanout.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fanout.audit import AuditReport
    from fanout.config import Config
    from fanout.retire import RetireReport

CLOSE = "'fanout query gap' names the commands that close the gaps"


@click.group(short_help="Read all that a pool holds; turn damage into gaps")
def audit() -> None:
    """Read all that a pool holds, and compare."""


@audit.command("stgpool", short_help="Read every object from POOL alone, and compare its digest")
@click.argument("pool")
@click.option("--fix", is_flag=True, help="What is damaged is no longer held, and becomes a gap.")
@config_option
@json_option
@click.pass_context
def audit_stgpool_command(
    ctx: click.Context, *, pool: str, fix: bool, config: Path, as_json: bool
) -> None:
    """Read every object that POOL holds, from POOL alone, and compare its digest.

    With --fix what is damaged becomes a gap, which a repair closes from another
    copy. What no pool has whole is put together from what all have of it, and
    written anew; where that cannot be, or where the medium of a last copy refuses
    to read it, it is kept, and named. What cannot be asked for now (a volume that
    is busy, not mounted, or gives nothing at all) is named, and nothing is said of it.

    Exit codes: 0 all is good, or is again; 7 damage is a gap now; 9 damage was
    found and left.
    """
    with (
        Store.open(config, read_only=not fix) as store,
        screen.progress("reading", None, quiet=as_json) as bar,
    ):
        pool = store.configured_pool(pool).name
        report = audit_stgpool(store, pool, fix=fix, on_progress=bar.reach)
    if as_json:
        screen.emit(_audit_values(report, pool, fix=fix))
    else:
        _show_audit(report, pool, fix=fix)
    if report.kept or (report.damaged and not fix):
        ctx.exit(Exit.INTEGRITY)
    if report.marked or report.unasked:
        ctx.exit(Exit.GAPS)


def _audit_values(report: AuditReport, pool: str, *, fix: bool) -> dict[str, Any]:
    return {
        "ok": len(report.damaged) == report.mended and not report.unasked,
        "pool": pool,
        "fix": fix,
        "objects": report.objects,
        "bytes": report.object_bytes,
        "damaged": _named(report.damaged),
        "unasked": _named(report.unasked),
        "marked": report.marked,
        "mended": report.mended,
        "kept": _named(report.kept),
        "seconds": round(report.seconds, 6),
    }


def _named(found: Sequence[tuple[bytes, str]]) -> list[dict[str, str]]:
    return [{"name": os.fsdecode(name), "reason": reason} for name, reason in found]


def _show_audit(report: AuditReport, pool: str, *, fix: bool) -> None:
    screen.say(
        f"{screen.count(report.objects, 'object')} of {pool}, {format_size(report.object_bytes)} "
        f"read and compared in {format_seconds(report.seconds)}."
    )
    told = {"damaged": report.damaged, "left as it is": report.kept, "not asked": report.unasked}
    for label, found in told.items():
        screen.warn_each(label, [f"{os.fsdecode(name)}: {reason}" for name, reason in found])
    if first := room(reason for _, reason in report.kept):
        screen.warn(first)
    if report.mended:
        mended = screen.count(report.mended, "object")
        screen.say(
            f"{mended} that no other pool has whole put together from what all have, and written anew in {pool}."
        )
    if report.marked:
        marked = screen.count(report.marked, "object")
        screen.say(
            f"{marked} of {pool} noted as missing; {screen.plain(typed(CLOSE))}.", whole=True
        )
    elif report.damaged and not fix:
        screen.say("Nothing was changed; --fix makes the damage gaps.")
    elif not (report.damaged or report.unasked):
        screen.say("Nothing is wrong.")


@click.group(short_help="Give a lost volume up; what it held becomes gaps")
def retire() -> None:
    """Give up what is lost."""


@retire.command("volume", short_help="Give the volume at PATH up; what it held becomes gaps")
@click.argument("path", type=click.Path())
@force_option("Give it up even if it can be opened and is well.")
@config_option
@json_option
@click.pass_context
def retire_volume_command(
    ctx: click.Context, *, path: str, force: bool, config: Path, as_json: bool
) -> None:
    """Give a lost volume up: what it held becomes gaps, and the catalog forgets it.

    The store must be closed. If PATH stays in fanout.toml, 'fanout init --add'
    makes a new volume there; then close the gaps. The other volumes note at the
    next opening that it was given up: 'fanout rebuild catalog' leaves it aside.

    Exit codes: 0 it held nothing; 7 what it held is a gap now; 9 some objects
    were nowhere else.
    """
    loaded = configuration.load(config)
    report = retire_volume(loaded, path, force=force)
    if as_json:
        screen.emit(_retire_values(report, path))
    else:
        _show_retired(report, path, loaded)
    if report.lost:
        ctx.exit(Exit.INTEGRITY)
    if report.objects:
        ctx.exit(Exit.GAPS)


def _retire_values(report: RetireReport, path: str) -> dict[str, Any]:
    return {
        "ok": not report.objects,
        "path": path,
        "pool": report.pool,
        "objects": report.objects,
        "bytes": report.object_bytes,
        "lost": [os.fsdecode(name) for name in report.lost],
    }


def _show_retired(report: RetireReport, path: str, config: Config) -> None:
    held = f"{screen.count(report.objects, 'object')}, {format_size(report.object_bytes)}"
    screen.say(f"{screen.plain(path)} of {report.pool} is given up; it held {held}.", whole=True)
    screen.warn_each("in no pool any more", [os.fsdecode(name) for name in report.lost])
    close = f"; {CLOSE}" if report.objects else ""
    advice = f"{_successor(config, report.pool, path)}{close}."
    screen.say(screen.plain(typed(advice)), whole=True)


def _successor(config: Config, pool: str, path: str) -> str:
    """Where the pool's next volume comes from."""
    if pool not in config.pools:
        return f"{pool} is not in fanout.toml any more, and gets no new volume"
    spec = config.pools[pool]
    if os.path.abspath(path) in {str(volume.path) for volume in spec.volumes}:
        return "'fanout init --add' makes a new volume there"
    if config.device_classes[spec.device_class].max_volumes:
        return f"{pool} makes its next volume itself"
    return f"Name another volume of {pool} in fanout.toml, and 'fanout init --add' makes it"

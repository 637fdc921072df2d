"""``fanout query``: what there is, and what is missing."""

from __future__ import annotations

import datetime
import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from fanout import config as configuration
from fanout.catalog import CatalogReader
from fanout.cli import screen
from fanout.cli.exits import Exit, room, typed
from fanout.cli.params import config_option, json_option
from fanout.cli.store import mend
from fanout.config import Access
from fanout.errors import ObjectNotFound
from fanout.pool import UNUSED
from fanout.store import Store
from fanout.types import PoolKind
from fanout.units import format_size, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fanout.catalog import GapEntry, ObjectEntry
    from fanout.pool import VolumeStatus

REASONS = 8  # of gaps, on one screen
NOT_USED = "is not used"  # configuration and catalog do not both know it


@click.group(short_help="Pools, volumes, catalog, objects, occupancy, gaps")
def query() -> None:
    """Ask the store. Works beside a running writer."""


def when(nanoseconds: int) -> str:
    """A time of the catalog for people and JSON: ISO 8601, UTC, whole seconds."""
    moment = datetime.datetime.fromtimestamp(nanoseconds // 10**9, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


# ---- stgpool ----------------------------------------------------------------------------------


@query.command(short_help="Pools: what they are, what they hold")
@click.argument("pool", required=False)
@config_option
@json_option
def stgpool(*, pool: str | None, config: Path, as_json: bool) -> None:
    """Show pools: kind, volumes, lists, what they hold and lack."""
    with Store.open(config, read_only=True) as store:
        rows = list(_pool_values(store, pool))
        away = _out_of_reach(store, pool)
        # What is not configured has no row.
        gone = {one.pool for one in store.query_gaps()} - store.config.pools.keys()
    if as_json:
        screen.emit({"pools": rows, "unreadable": away})
    else:
        _show_pools(rows)
    if gone and not pool:
        screen.warn(f"{', '.join(sorted(gone))}: not in {config} any more, and lacks objects")
    if gone or any(row["lacks_objects"] for row in rows):
        screen.warn(typed("'fanout query gap' says what is missing, why, and what closes it."))
    _warn_of(away)


def _show_pools(rows: list[dict[str, Any]]) -> None:
    shown = [
        (
            row["name"],
            row["type"],
            f"{row['volumes']}",
            f"{row['objects']:,}",
            format_size(row["bytes"]),
            _share(row["live_bytes"], row["size_bytes"]),
            f"[red]{row['lacks_objects']:,}[/]" if row["lacks_objects"] else "–",
        )
        for row in rows
    ]
    headings = ("pool", "type", "volumes", "objects", "bytes", "used", "lacks")
    screen.show(screen.table(headings, shown, right=(2, 3, 4, 5, 6)))
    for row in rows:
        lists = row["copy_pools"] + row["active_data_pools"]
        if lists:
            goes_on = "goes on without" if row["copy_continue"] else "stops with"
            screen.say(
                f"{row['name']} writes to {', '.join(lists)} as well, and {goes_on} a copy pool "
                "that fails."
            )
        if row["next"]:
            screen.say(f"What does not fit in {row['name']} goes to {row['next']}.")


def _pool_values(store: Store, only: str | None) -> Iterator[dict[str, Any]]:
    name = store.configured_pool(only).name if only else None
    for status in store.query_stgpools():
        if name not in {None, status.name}:
            continue
        pool = store.config.pools[status.name]
        yield {
            "name": status.name,
            "type": status.kind.value,
            "device_class": status.device_class,
            "access": status.access.value,
            "volumes": status.volumes,
            "size_bytes": status.size,
            "live_bytes": status.live,
            "objects": status.objects,
            "bytes": status.bytes,
            "lacks_objects": status.lacks_objects,
            "lacks_bytes": status.lacks_bytes,
            "next": pool.next,
            "max_size": pool.max_size,
            "copy_pools": list(pool.copy_pools),
            "active_data_pools": list(pool.active_data_pools),
            "copy_continue": pool.copy_continue,
            "on_slow": pool.on_slow.value,
            "verify": pool.verify.value,
        }


# ---- volume -----------------------------------------------------------------------------------


@query.command(short_help="Volumes: where they are and how full")
@click.option("--pool", help="Of this pool only.")
@config_option
@json_option
def volume(*, pool: str | None, config: Path, as_json: bool) -> None:
    """Show volumes: path, size, what is on them."""
    with Store.open(config, read_only=True) as store:
        name = store.pool_name(pool) if pool else None
        found = [one for one in store.query_volumes() if name in {None, one.pool}]
    if as_json:
        screen.emit({"volumes": [_volume_values(one) for one in found]})
        return
    shown = [
        (
            one.pool,
            format_size(one.size),
            _share(one.live, one.size),
            "well" if _readable(one) else f"[red]{one.state}[/]",
            screen.plain(one.path),
        )
        for one in found
    ]
    headings = ("pool", "size", "used", "state", "volume")
    screen.show(screen.table(headings, shown, right=(1, 2)))
    for one in found:
        if one.reason:
            screen.say(f"{screen.plain(one.path)}: {screen.plain(typed(one.reason))}", whole=True)


def _volume_values(one: VolumeStatus) -> dict[str, Any]:
    return {
        "path": one.path,
        "pool": one.pool,
        "volume": one.volume.hex(),
        "readable": _readable(one),
        "reason": typed(one.reason),
        "epoch": one.epoch,
        "size_bytes": one.size,
        "live_bytes": one.live,
    }


def _readable(one: VolumeStatus) -> bool:
    """Whether it opened. What a writer does with it meanwhile, only the writer knows."""
    return one.state in {"available", "full", "read-only"}


def _out_of_reach(store: Store, pool: str | None) -> list[dict[str, str]]:
    """Volumes that cannot be read, or not relied on, though nobody has said that this is meant: what they hold is no gap."""
    only = store.pool_name(pool) if pool else None
    away = {one.name for one in store.config.pools.values() if one.access is Access.UNAVAILABLE}
    return [
        {
            "pool": one.pool,
            "path": one.path,
            "what": _trouble(one),
            "reason": typed(one.reason),
        }
        for one in store.query_volumes()
        if only in {None, one.pool} and (one.reason or not _readable(one)) and one.pool not in away
    ]


def _trouble(one: VolumeStatus) -> str:
    if one.state == UNUSED:
        return NOT_USED
    return "is not current" if _readable(one) else "cannot be read"


def _warn_of(away: list[dict[str, str]]) -> None:
    for one in away:
        if one["what"] == NOT_USED:
            continue  # the opening has said so
        lost = typed(f"fanout retire volume {shlex.quote(one['path'])}")
        screen.warn(
            f"{one['pool']}: {one['path']} {one['what']}: {one['reason']} (If it is lost for good: {lost})"
        )


def _share(live: int, size: int) -> str:
    return f"{100 * live / size:.0f} %" if size else "–"


# ---- catalog ----------------------------------------------------------------------------------


@query.command(short_help="The catalog: how large it is, and the room that it has")
@config_option
@json_option
def catalog(*, config: Path, as_json: bool) -> None:
    """Show the catalog: size, log, ballast, free space beside it.

    The ballast is space that is given up when the catalog's file system is full,
    so that what is under way, and its gaps, can still be recorded.
    """
    path = configuration.load(config).store.catalog
    with CatalogReader(path) as reader:
        space, entry = reader.space(), reader.store()
    values = {
        "path": str(path),
        "store": entry.store.hex(),
        "csn": entry.csn,
        "objects": entry.objects,
        "bytes": space.catalog_bytes,
        "log_bytes": space.log_bytes,
        "ballast_bytes": space.ballast_bytes,
        "free_bytes": space.free_bytes,
    }
    if as_json:
        screen.emit(values)
        return
    rows = [
        ("commits", f"{entry.csn:,}, {screen.count(entry.objects, 'object')} so far"),
        ("size", f"{format_size(space.catalog_bytes)}, log {format_size(space.log_bytes)}"),
        ("ballast", format_size(space.ballast_bytes) if space.ballast_bytes else "[red]none[/]"),
        ("free", format_size(space.free_bytes)),
    ]
    screen.show(screen.facts(str(path), rows))
    if not space.ballast_bytes:
        screen.warn(
            "There is no ballast beside the catalog: a full disk could not record gaps. The next writer makes it where there is room."
        )


# ---- object -----------------------------------------------------------------------------------


@query.command("object", short_help="Objects of a node: versions, digests, pools")
@click.argument("node")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--pool", help="Only what this pool holds.")
@click.option("--all", "all_versions", is_flag=True, help="Also versions that were replaced.")
@config_option
@json_option
def objects(
    *,
    node: str,
    names: tuple[str, ...],
    pool: str | None,
    all_versions: bool,
    config: Path,
    as_json: bool,
) -> None:
    """Show objects of NODE; NAME is an object or a tree.

    Exit code 8 when a NAME stands for nothing.
    """
    with Store.open(config, read_only=True) as store:
        wanted = {
            "node": store.node_name(node),
            "pool": store.pool_name(pool) if pool else None,
        }
        entries = list(store.query_objects(active_only=not all_versions, **wanted))
        chosen = _matching(entries, names, node)
        holders = _holders(store, chosen)
    if as_json:
        screen.emit(
            {"node": wanted["node"], "objects": [_object_values(one, holders) for one in chosen]}
        )
        return
    groups: dict[str, list[ObjectEntry]] = {}
    for one in chosen:
        groups.setdefault(", ".join(holders[one.version]), []).append(one)
    for pools, members in groups.items():
        shown = [
            (
                format_size(one.length),
                when(one.at)[:16].replace("T", " "),
                screen.plain(os.fsdecode(one.name)) + ("" if one.active else " [dim](replaced)[/]"),
            )
            for one in members
        ]
        title = f"in {pools or 'no pool: lost'}"
        screen.show(
            screen.table(("bytes", "stored (UTC)", "object"), shown, title=title, right=(0, 1))
        )
    total = sum(one.length for one in chosen)
    screen.say(f"{screen.count(len(chosen), 'object')}, {format_size(total)}")


def _matching(entries: list[ObjectEntry], names: tuple[str, ...], node: str) -> list[ObjectEntry]:
    """Those with one of the names, or below it."""
    if not names:
        return entries
    chosen: dict[int, ObjectEntry] = {}
    for name in names:
        exact = os.fsencode(name)
        prefix = exact.rstrip(b"/") + b"/"
        fits = [one for one in entries if one.name == exact or one.name.startswith(prefix)]
        if not fits:
            raise ObjectNotFound(f"{node} has no object and no tree {quoted(exact)}")
        chosen.update({one.version: one for one in fits})
    return sorted(chosen.values(), key=lambda one: one.version)


def _holders(store: Store, entries: list[ObjectEntry]) -> dict[int, list[str]]:
    """Version to the pools that hold it, the primary first."""
    copies = {one.aggregate: store.catalog.copies(one.aggregate) for one in entries}
    return {
        one.version: [copy.pool for copy in copies[one.aggregate] if copy.holds(one.member)]
        for one in entries
    }


def _object_values(one: ObjectEntry, holders: dict[int, list[str]]) -> dict[str, Any]:
    return {
        "name": os.fsdecode(one.name),
        "version": one.version,
        "active": one.active,
        "kind": one.kind.value,
        "bytes": one.length,
        "digest": one.digest.hex(),
        "stored_at": when(one.at),
        "primary": one.primary,
        "pools": holders[one.version],
    }


# ---- occupancy --------------------------------------------------------------------------------


@query.command(short_help="How much each pool holds of each node")
@click.option("--node", help="Of this node only.")
@click.option("--pool", help="In this pool only.")
@config_option
@json_option
def occupancy(*, node: str | None, pool: str | None, config: Path, as_json: bool) -> None:
    """Show objects and bytes by node, kind and pool."""
    with Store.open(config, read_only=True) as store:
        rows = store.query_occupancy(node=node or None, pool=pool or None)
    if as_json:
        values = [{**row._asdict(), "kind": row.kind.value} for row in rows]
        screen.emit({"occupancy": values})
        return
    shown = [
        (row.node, row.kind.value, row.pool, f"{row.objects:,}", format_size(row.bytes))
        for row in rows
    ]
    headings = ("node", "kind", "pool", "objects", "bytes")
    screen.show(screen.table(headings, shown, right=(3, 4)))


# ---- gap --------------------------------------------------------------------------------------


@query.command(short_help="What is missing where, and what closes it")
@click.option("--pool", help="Missing in this pool only.")
@click.option("--primary", help="Of this primary only.")
@click.option("--node", help="Of this node only.")
@click.option("--names", is_flag=True, help="Name every object that is missing.")
@config_option
@json_option
@click.pass_context
def gap(
    ctx: click.Context,
    *,
    pool: str | None,
    primary: str | None,
    node: str | None,
    names: bool,
    config: Path,
    as_json: bool,
) -> None:
    """Show gaps: what a pool should hold and does not, since when, and why.

    A volume that cannot be read now, or is not used, is named; what it holds is no
    gap. The exit code is 11 when the catalog is older than a volume, 7 when there
    is a gap, 12 when there is none and a volume is named, else 0, so that a script
    need not look further.
    """
    with Store.open(config, read_only=True) as store:
        entries = store.query_gaps(pool=pool or None, primary=primary or None, node=node or None)
        kinds = {one.name: one.kind for one in store.catalog.pools()}
        rows = []
        for entry in entries:
            active = kinds.get(entry.pool) is PoolKind.ACTIVE_DATA
            row: dict[str, Any] = {
                "pool": entry.pool,
                "primary": entry.primary,
                "node": entry.node,
                "kind": entry.kind.value,
                "objects": entry.objects,
                "bytes": entry.bytes,
                "reason": entry.reason,
                "errno": entry.errno,
                "since": when(entry.since),
                "aggregate": entry.aggregate.hex(),
                "mend": _mend(store, entry, active=active),
            }
            if names:
                row["names"] = [
                    os.fsdecode(one.name)
                    for one in store.catalog.members(entry.aggregate)
                    if (entry.missing is None or one.member in entry.missing)
                    and (one.active or not active)
                ]
            rows.append(row)
        away, older = _out_of_reach(store, pool), store.older_than()
    if as_json:
        ok = not (rows or away or older)
        screen.emit({"ok": ok, "gaps": rows, "unreadable": away, "older_than": older})
    elif rows:
        _show_gaps(rows)
    elif older:
        screen.say("No gaps on record, but this is an old catalog.")
    elif away:
        screen.say("No gaps on record, and not every volume can be relied on.")
    else:
        screen.say("[green]No gaps.[/] Every pool holds what it should.")
    _warn_of(away)
    if older:
        ctx.exit(Exit.CATALOG)
    if rows:
        ctx.exit(Exit.GAPS)
    if away:
        ctx.exit(Exit.TARGET)


def _mend(store: Store, entry: GapEntry, *, active: bool) -> str:
    """What closes it: a command, which fills no pool that is not configured."""
    command = mend(entry.primary, entry.pool, active=active)
    if entry.pool in store.config.pools:
        return command
    again = f"write [pools.{entry.pool}] into {store.config.path} again, then: {command}"
    return f"{again}; else 'fanout rebuild catalog --force' forgets what {entry.pool} was to hold"


def _show_gaps(rows: list[dict[str, Any]]) -> None:
    """Added up: a pool that was away for a day lacks thousands of transactions, each with a gap of its own."""
    sums: dict[tuple[str, str, str], tuple[int, int]] = {}
    since: dict[tuple[str, str, str], str] = {}
    for row in rows:  # the oldest first
        key = row["pool"], row["primary"], row["node"]
        objects, size = sums.get(key, (0, 0))
        sums[key] = objects + row["objects"], size + row["bytes"]
        since.setdefault(key, row["since"][:16].replace("T", " "))
    shown = [
        (*map(screen.plain, key), f"{objects:,}", format_size(size), since[key])
        for key, (objects, size) in sums.items()
    ]
    headings = ("missing in", "of", "node", "objects", "bytes", "since (UTC)")
    screen.show(screen.table(headings, shown, right=(3, 4)))
    reasons = list({(row["pool"], row["reason"]): None for row in rows})
    for pool, reason in reasons[:REASONS]:
        screen.say(f"why: {pool}: {screen.plain(typed(reason))}")
    if len(reasons) > REASONS:
        screen.say(f"… and {len(reasons) - REASONS:,} later reasons; --json has all of them.")
    for row in rows:
        for name in row.get("names", ()):
            screen.say(f"{row['pool']} lacks {screen.plain(name)}", whole=True)
    if first := room(row["reason"] for row in rows):
        screen.say(f"first: {screen.plain(first)}", whole=True)
    for command in {row["mend"]: None for row in rows}:
        screen.say(f"close it: [bold]{screen.plain(command)}[/]", whole=True)

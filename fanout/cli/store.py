"""``fanout init``, ``put`` and ``get``: a store from the shell."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fanout import config as configuration
from fanout.catalog import CatalogReader
from fanout.cli import fetch, screen, trees
from fanout.cli.exits import Exit, Refused, room, typed
from fanout.cli.params import SIZE, config_option, force_option, json_option
from fanout.errors import SourceError, SourceNotRereadable
from fanout.making import volume_of_store
from fanout.sources import as_source, once, spooled
from fanout.store import Store, open_engine
from fanout.types import ObjectKind, PoolKind
from fanout.units import format_seconds, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fanout.config import Config
    from fanout.session import Session
    from fanout.sources import Source
    from fanout.types import Receipt

GROUP_OBJECTS = 1000
GROUP_BYTES = 1 << 30

# ---- init -------------------------------------------------------------------------------------


@click.command(short_help="Create the catalog and the volumes of fanout.toml")
@config_option
@click.option("--add", is_flag=True, help="Keep the store; make only pools and volumes it lacks.")
@click.option("--write-once", is_flag=True, help="Write all of it now: first use is then faster.")
@force_option("Destroy what is in the way: the catalog, files and devices.")
@json_option
def init(*, config: Path, add: bool, write_once: bool, force: bool, as_json: bool) -> None:
    """Create the catalog and the volumes that fanout.toml describes.

    Nothing else ever creates them: a store whose device is missing is not
    silently made anew. What exists already is asked about, or needs --force.

    With --add the store and its objects stay, and what fanout.toml has more
    is made and added.
    """
    loaded = configuration.load(config)
    if add:
        _extend(loaded, write_once=write_once, force=force, as_json=as_json)
        return
    in_the_way = _in_the_way(loaded)
    if in_the_way:
        shown = ", ".join(str(path) for path in in_the_way[:4])
        more = f" and {len(in_the_way) - 4} more" if len(in_the_way) > 4 else ""
        lost = f"everything in {shown}{more} will be lost"
        if loaded.store.catalog not in in_the_way:
            lost += "; if only the catalog is missing, 'fanout rebuild catalog' makes it anew"
        else:
            lost += "; 'fanout init --add' keeps it, and makes only what is new"
        screen.confirm(lost, force=force)
    with _writing(loaded, once=write_once) as on_written:
        Store.create(loaded, force=bool(in_the_way), write_once=write_once, on_written=on_written)
    volumes = dict.fromkeys(loaded.pools, 0)
    with CatalogReader(loaded.store.catalog) as catalog:
        for volume in catalog.volumes():
            volumes[volume.pool] += 1
    if as_json:
        screen.emit(
            {
                "ok": True,
                "catalog": str(loaded.store.catalog),
                "pools": {name: {"volumes": count} for name, count in volumes.items()},
                "destroyed": [str(path) for path in in_the_way],
            }
        )
        return
    screen.say(
        f"Created {screen.plain(str(loaded.store.catalog))} and "
        f"{screen.count(sum(volumes.values()), 'volume')} in {screen.count(len(volumes), 'pool')}."
    )


@contextlib.contextmanager
def _writing(loaded: Config, *, once: bool) -> Iterator[Callable[[int], None]]:
    """A bar for the bytes of new volumes; what a device holds is not known beforehand."""
    sizes = [volume.size for pool in loaded.pools.values() for volume in pool.volumes]
    total = sum(size for size in sizes if size is not None) if all(sizes) else None
    with screen.progress("writing the volumes once", total, quiet=not once) as bar:
        yield bar.add


def _extend(loaded: Config, *, write_once: bool, force: bool, as_json: bool) -> None:
    with CatalogReader(loaded.store.catalog) as catalog:
        known = {volume.path: volume for volume in catalog.volumes()}
        given_up = {volume.volume for volume in catalog.retired()}
        store = catalog.store_id
    new = [path for path in _volume_paths(loaded) if str(path) not in known and path.exists()]
    if new:
        lost = f"everything in {', '.join(map(str, new))} will be lost"
        with open_engine(loaded) as engine:
            found = {str(path): volume_of_store(engine, path, store) for path in new}
        ours = [path for path, block in found.items() if block and block.volume not in given_up]
        back = [path for path, block in found.items() if block and block.volume in given_up]
        if ours:
            lost += (
                f"; volumes of this store are {', '.join(ours)}: if they were moved, 'fanout rebuild catalog --force' takes "
                "them in instead"
            )
        if back:
            lost += (
                f"; volumes of this store that were given up are {', '.join(back)}: 'fanout rebuild catalog --force "
                "--take-retired' takes in what they hold instead"
            )
        screen.confirm(lost, force=force)
    with _writing(loaded, once=write_once) as on_written:
        made = Store.extend(loaded, force=bool(new), write_once=write_once, on_written=on_written)
    for pool in loaded.pools.values():
        for spec in pool.volumes:
            entry = known.get(str(spec.path))
            if entry and spec.size is not None and spec.size != entry.size:
                screen.warn(
                    f"{spec.path} of pool {pool.name} stays as large as it is, {format_size(entry.size)}: "
                    "for more room add another volume to the pool"
                )
    if as_json:
        added = [{"pool": volume.pool, "path": volume.path} for volume in made]
        screen.emit({"ok": True, "catalog": str(loaded.store.catalog), "added": added})
        return
    for volume in made:
        screen.say(f"Added {screen.plain(volume.path)} to {volume.pool}.", whole=True)
    if not made:
        screen.say("Nothing to add: the catalog knows every pool and volume of the file.")


def _volume_paths(loaded: Config) -> list[Path]:
    return [volume.path for pool in loaded.pools.values() for volume in pool.volumes]


def _in_the_way(loaded: Config) -> list[Path]:
    """What exists where something will be made; block devices always do."""
    return [path for path in (loaded.store.catalog, *_volume_paths(loaded)) if path.exists()]


# ---- put --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stored:
    """What a run of `put` has done so far."""

    objects: int = 0
    bytes: int = 0
    receipts: list[Receipt] = field(default_factory=list)
    removed: dict[str, str] = field(default_factory=dict)
    retries: int = 0

    @property
    def degraded(self) -> bool:
        return any(receipt.degraded for receipt in self.receipts)


@click.command(short_help="Store files, trees or standard input in every pool at once")
@click.argument("node")
@click.argument("paths", nargs=-1, required=True, metavar="PATH|-...")
@config_option
@click.option("--as", "name", metavar="NAME", help="Store under this name instead of the path.")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in ObjectKind]),
    default=ObjectKind.BACKUP.value,
    show_default=True,
    help="Only backups go to active-data pools.",
)
@click.option("--size", type=SIZE, help="Length of standard input, when it is known.")
@click.option(
    "--spool",
    type=SIZE,
    help="Keep up to SIZE of standard input in a temporary file: it can be sent again when a pool fails.",
)
@click.option(
    "--once",
    "only_once",
    is_flag=True,
    help="Read standard input only once: if a pool fails then, nothing is stored.",
)
@click.option(
    "--group",
    type=click.IntRange(1, 1_000_000),
    default=GROUP_OBJECTS,
    show_default=True,
    help="Objects in one transaction.",
)
@json_option
@click.pass_context
def put(
    ctx: click.Context,
    *,
    node: str,
    paths: tuple[str, ...],
    config: Path,
    name: str | None,
    kind: str,
    size: int | None,
    spool: int | None,
    only_once: bool,
    group: int,
    as_json: bool,
) -> None:
    """Store PATHs of NODE: files, whole trees, or - for standard input.

    A group of objects becomes visible in every pool together, or nowhere. When a
    pool fails, the group is sent again without it, and a gap is put on record.

    Exit codes: 0 in every pool that should hold it; 3 stored, but not
    everywhere, or a file could not be read; 4 not stored, try again; 5 not
    stored.
    """
    loaded = configuration.load(config)
    if "-" in paths:
        if len(paths) > 1 or not name:
            raise click.UsageError("standard input is stored alone, and needs --as NAME")
        found = trees.Found(
            [trees.Item(os.fsencode(name), _standard_input(size, spool, only_once), size or 0)]
        )
    else:
        if name is not None and len(paths) > 1:
            raise click.UsageError("--as NAME goes with one PATH")
        found = trees.walk(paths, name=name, own=trees.own_files(loaded))
    began = time.monotonic()
    stored = _Stored()
    with Store.open(loaded) as store, store.session(node, kind=ObjectKind(kind)) as session:
        with (
            _counting(stored),
            screen.progress("storing", found.bytes or None, quiet=as_json) as bar,
        ):
            for batch in trees.groups(found.items, objects=group, bytes_=GROUP_BYTES):
                _put_what_stays(session, batch, stored, bar, found)
        stored.removed = dict(session.removed)
        kinds = {name: pool.kind for name, pool in store.config.pools.items()}
    seconds = time.monotonic() - began
    if as_json:
        screen.emit(_put_values(node, stored, found, seconds))
    else:
        _show_put(stored, found, seconds, kinds)
    if stored.degraded or found.left_out:
        ctx.exit(Exit.DEGRADED)


def _standard_input(size: int | None, spool: int | None, only_once: bool) -> Source:
    reader = sys.stdin.buffer
    if spool is not None:
        return spooled(reader, limit_bytes=spool, length=size)
    if only_once:
        return once(reader, length=size)
    source = as_source(reader, length_hint=size, resend=False)
    if not source.rereadable:
        raise SourceNotRereadable("standard input cannot be read a second time if a pool fails")
    return source  # a file


@contextlib.contextmanager
def _counting(stored: _Stored) -> Iterator[None]:
    """An error in a later transaction says that the earlier ones stay."""
    try:
        yield
    except BaseException as error:
        if stored.objects:
            many = screen.count(stored.objects, "object")
            error.add_note(f"Stored before, and kept: {many} ({format_size(stored.bytes)}).")
        raise


def _put_what_stays(
    session: Session,
    batch: list[trees.Item],
    stored: _Stored,
    bar: screen.Bar,
    found: trees.Found,
) -> None:
    """A file of a tree that goes or changes meanwhile is left out like any other that cannot be read, and keeps no other from being stored."""
    while batch:
        try:
            return _put_group(session, batch, stored, bar)
        except (OSError, SourceError):
            gone = trees.changed(batch)
            if not gone:
                raise
        found.left_out += [(item.source.name, why) for item, why in gone]
        names = {item.name for item, _ in gone}
        batch = [item for item in batch if item.name not in names]
    return None


def _put_group(session: Session, batch: list[trees.Item], stored: _Stored, bar: screen.Bar) -> None:
    tries = 0
    for attempt in session.attempts():
        tries += 1
        bar.reach(stored.bytes)
        with attempt as transaction:
            for item in batch:
                transaction.put(item.name, trees.counted(item.source, bar.add))
    receipt = session.receipt
    assert receipt is not None, "a transaction that was not committed raises"
    stored.receipts.append(receipt)
    stored.retries += tries - 1
    stored.objects += len(receipt.objects)
    stored.bytes += receipt.bytes
    bar.reach(stored.bytes)


def gap_sums(receipts: Iterable[Receipt]) -> list[dict[str, Any]]:
    """The gaps of some receipts, added up by primary and pool."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for receipt in receipts:
        for gap in receipt.gaps:
            row = sums.setdefault(
                (gap.primary, gap.pool),
                {
                    "primary": gap.primary,
                    "pool": gap.pool,
                    "objects": 0,
                    "bytes": 0,
                    "reason": gap.reason,
                    "errno": gap.errno,
                },
            )
            row["objects"] += gap.objects
            row["bytes"] += gap.bytes
    return list(sums.values())


def _put_values(node: str, stored: _Stored, found: trees.Found, seconds: float) -> dict[str, Any]:
    return {
        "ok": not stored.degraded and not found.left_out,
        "degraded": stored.degraded,
        "node": node,
        "objects": stored.objects,
        "bytes": stored.bytes,
        "seconds": round(seconds, 6),
        "retries": stored.retries,
        "transactions": [
            {
                "transaction": receipt.transaction,
                "attempt": receipt.attempt,
                "csn": receipt.csn,
                "objects": len(receipt.objects),
                "bytes": receipt.bytes,
                "pools": sorted({pool for one in receipt.objects for pool in one.pools}),
                "degraded": receipt.degraded,
            }
            for receipt in stored.receipts
        ],
        "gaps": gap_sums(stored.receipts),
        "removed": stored.removed,
        "left_out": [{"path": path, "reason": reason} for path, reason in found.left_out],
        "skipped": found.skipped,
    }


def _show_put(
    stored: _Stored, found: trees.Found, seconds: float, kinds: Mapping[str, PoolKind]
) -> None:
    pools: dict[str, list[int]] = {}
    for receipt in stored.receipts:
        for one in receipt.objects:
            for pool in one.pools:
                held = pools.setdefault(pool, [0, 0])
                held[0] += 1
                held[1] += one.length
    rows = [(pool, f"{count:,}", format_size(size)) for pool, (count, size) in pools.items()]
    screen.show(screen.table(("pool", "objects", "bytes"), rows, right=(1, 2)))
    rate = format_size(int(stored.bytes / seconds)) if seconds else "–"
    retries = f", {stored.retries} sent again" if stored.retries else ""
    screen.say(
        f"{screen.count(stored.objects, 'object')}, {format_size(stored.bytes)} in {format_seconds(seconds)} "
        f"({rate}/s){retries}"
    )
    if found.skipped:
        kinds_of = found.skipped.items()
        what = " and ".join(screen.count(many, kind.removesuffix("s")) for kind, many in kinds_of)
        screen.say(f"Skipped, and not stored: {what}.")
    for path, reason in found.left_out[:10]:
        screen.warn(f"left out: {path}: {reason}")
    if len(found.left_out) > 10:
        screen.warn(f"… and {len(found.left_out) - 10:,} more are left out")
    for pool, reason in stored.removed.items():
        screen.warn(f"{pool} was left out for the rest of the session: {typed(reason)}")
    if first := room(stored.removed.values()):
        screen.warn(first)
    for gap in gap_sums(stored.receipts):
        active = kinds.get(gap["pool"]) is PoolKind.ACTIVE_DATA
        screen.warn(
            f"DEGRADED: {gap['pool']} lacks {screen.count(gap['objects'], 'object')} of {gap['primary']} "
            f"({format_size(gap['bytes'])}). The mend: {mend(gap['primary'], gap['pool'], active=active)}"
        )


def mend(primary: str, pool: str, *, active: bool) -> str:
    """The command that closes a gap; `active`: the pool is an active-data pool."""
    first, second = shlex.quote(primary), shlex.quote(pool)  # a name may hold &
    if primary == pool:
        return typed(f"fanout restore stgpool {first}")
    return typed(f"fanout {'copy activedata' if active else 'backup stgpool'} {first} {second}")


# ---- get --------------------------------------------------------------------------------------


@click.command(short_help="Read back, verified, from any pool that holds it")
@click.argument("node")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@config_option
@click.option(
    "--output", "-o", metavar="FILE|-", help="Write one object here; - is standard output."
)
@click.option(
    "--to",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="Write objects under this directory, by their names.",
)
@click.option("--pool", help="Read from this pool only.  [default: the best one that works]")
@click.option("--version", type=int, help="This version.  [default: the newest]")
@force_option("Replace files that exist.")
@json_option
@click.pass_context
def get(
    ctx: click.Context,
    *,
    node: str,
    names: tuple[str, ...],
    config: Path,
    output: str | None,
    to: Path,
    pool: str | None,
    version: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Read objects of NODE back, and verify their digests.

    NAME is an object, or a tree: everything whose name begins with NAME/. A file
    appears under its own name only when all of it was read and verified.

    Exit codes: 0 all of it; 8 no such object; 9 bytes differ from what was
    stored; 3 some of a tree could not be read.
    """
    if output == "-" and as_json:
        raise click.UsageError("--json and --output - both want standard output")
    if not all(names):
        raise click.UsageError("a NAME is empty; the whole of a node is 'fanout query object NODE'")
    with Store.open(config, read_only=True) as store:
        wanted = fetch.find(store, node, [os.fsencode(name) for name in names], version=version)
        if output is not None:
            if len(wanted) != 1:
                raise click.UsageError(f"--output takes one object, and these are {len(wanted)}")
            if output == "-":
                fetch.to_stream(store, wanted[0], sys.stdout.buffer, pool=pool)
                return
        plan = fetch.plan(wanted, to=to, output=output)
        existing = [goal.path for goal in plan if os.path.lexists(goal.path)]
        if existing and not force:
            more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
            raise Refused(f"{existing[0]}{more} exists and would be replaced")
        total = sum(goal.entry.length for goal in plan)
        with screen.progress("reading", total, quiet=as_json) as bar:
            done = fetch.run(store, plan, pool=pool, force=force, on_bytes=bar.add)
    if as_json:
        screen.emit(done.values())
    else:
        _show_get(done)
    if done.failed:
        ctx.exit(Exit.DEGRADED if done.written else done.failed[0].code)


def _show_get(done: fetch.Done) -> None:
    rate = format_size(int(done.bytes / done.seconds)) if done.seconds else "–"
    screen.say(
        f"{screen.count(len(done.written), 'object')}, {format_size(done.bytes)} in "
        f"{format_seconds(done.seconds)} ({rate}/s), every digest verified"
    )
    screen.warn_each("not read", [f"{one.name}: {one.reason}" for one in done.failed])

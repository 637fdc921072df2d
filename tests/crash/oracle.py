"""What must be true of a store after anything at all, asked by a fresh process that has waited for the locks.

    python -m tests.crash.oracle CONFIG JOURNAL [--flushed] [--repair] [--quick]     findings as JSON, one per line

| | what | how |
| --- | --- | --- |
| V1 | every byte of every copy is what the client sent | `os.pread`, python-xxhash, digests of the journal |
| V2 | what was refused, or never sent, is nowhere | journal against catalog and directories |
| V3 | what was acknowledged is there; the rest wholly or not at all; what was deleted together is gone together | journal against catalog |
| V4 | gaps = what the rules demand − what the pools hold | a model of the rules of its own, and the headers on the media |
| V5 | objects and gaps came from one commit; no directory knows more than the catalog | V3 and V4 after every crash; directories |
| V7 | no region belongs to two, none leaves the space | catalog and directories |
| V13 | pools that a receipt does not call removed hold the transaction; those that it does, do not | journal against catalog |
| V14 | SQLite finds nothing wrong; free + live = space, nothing is reserved after an opening | SQL; the product's allocator |
| V16 | the catalog rebuilt from the volumes is the catalog, or what lacks is listed as in doubt | rebuild beside it; compared by SQL |
| V17 | repairs close every gap, and a second run finds nothing | the product's repairs, then V1 to V16 again |

The stages are: as it lies there (V1–V5, V7, V13, V14) → rebuilt (V16) → opened and closed by the product (V14), looked at again, now
directories equal the catalog → rebuilt, now equal → repaired (V17), looked at and rebuilt again. Nothing of fanout is used to
look; the product is used to open, rebuild and repair.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import xxhash

from tests.crash.journal import Fate, Journal
from tests.crash.media import CatalogCopy, Rules, StoreOnMedia, scratch
from tests.faults import kernel
from tests.independent_reader import Bad

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from fanout.rebuild import RebuildReport
    from fanout.store import Store
    from tests.crash.journal import Sent, SentObject
    from tests.crash.media import Aggregate, Copy, Place

ROOT = Path(__file__).resolve().parents[2]
JUDGE_SECONDS = 120.0
COMMIT, DELETE = 1, 2  # op of a directory record


# ---- as it lies there ------------------------------------------------------------------------------


class Look:
    """One look at a store. `findings` grows; nothing else changes.

    Args:
        store: what lies there.
        journal: what was sent.
        opened: the product has opened and closed it since the crash, so the directories have caught up.
    """

    def __init__(self, store: StoreOnMedia, journal: Journal, *, opened: bool) -> None:
        self.store, self.journal, self.opened = store, journal, opened
        self.findings: list[str] = []

    def all(self) -> list[str]:
        """Every check."""
        catalog = self.store.catalog
        self.findings += [f"V14 catalog: {text}" for text in catalog.complaints]
        self.findings += [f"V1 {text}" for text in self.store.unreadable.values()]
        self._commits()
        for aggregate in catalog.aggregates.values():
            self._gaps(aggregate)
            for copy in aggregate.copies.values():
                self._bytes(aggregate, copy)
        self._regions()
        self._directories()
        return self.findings

    def _note(self, text: str) -> None:
        self.findings.append(text)

    # -- V2, V3, V13

    def _commits(self) -> None:
        catalog = self.store.catalog
        there: dict[bytes, list[Aggregate]] = {}
        for aggregate in catalog.aggregates.values():
            there.setdefault(aggregate.transaction, []).append(aggregate)
        gone = self._gone(
            {
                (one.transaction, m.name)
                for one in catalog.aggregates.values()
                for m in one.members.values()
            }
        )
        for transaction in there.keys() - self.journal.sent.keys():
            self._note(f"V2 {transaction.hex()}: is in the catalog, and nobody sent it")
        for transaction, sent in self.journal.sent.items():
            mine = there.get(transaction, [])
            if mine and sent.fate is Fate.REFUSED:
                self._note(f"V2 {transaction.hex()}: was refused, and is in the catalog")
            left = [item for item in sent.objects if (transaction, item.name) not in gone]
            if left and not mine and sent.fate is Fate.ACKNOWLEDGED:
                self._note(f"V3 {transaction.hex()}: was acknowledged, and is gone")
            if mine:
                self._whole(sent, left, mine)
                self._removed(sent, mine)

    def _gone(self, there: set[tuple[bytes, bytes]]) -> set[tuple[bytes, bytes]]:
        """What was deleted. A deletion that nobody was told of is done wholly or not at all."""
        gone: set[tuple[bytes, bytes]] = set()
        for number, erasure in self.journal.erasures.items():
            left = erasure.objects & there
            if erasure.done or not left:
                gone |= erasure.objects
            if left and (erasure.done or left != erasure.objects):
                self._note(
                    f"V3 deletion {number}: {len(left)} of {len(erasure.objects)} objects are there"
                )
        return gone

    def _whole(self, sent: Sent, left: list[SentObject], mine: list[Aggregate]) -> None:
        stored = Counter(
            (member.name, member.length, member.digest)
            for aggregate in mine
            for member in aggregate.members.values()
        )
        wanted = Counter((item.name, item.length, item.digest) for item in left)
        named = sent.transaction.hex()
        if stored != wanted:
            self._note(f"V3 {named}: {len(stored)} objects are there, {len(wanted)} were sent")
        if len({(one.node, one.kind, one.csn, one.attempt) for one in mine}) != 1:
            self._note(f"V3 {named}: its aggregates are not of one commit")
        if (mine[0].node, mine[0].kind) != (sent.node, sent.kind):
            self._note(f"V3 {named}: belongs to {mine[0].node} as {mine[0].kind}")
        if sent.fate is Fate.ACKNOWLEDGED and mine[0].csn != sent.csn:
            self._note(f"V3 {named}: commit {mine[0].csn}, the receipt says {sent.csn}")

    def _removed(self, sent: Sent, mine: list[Aggregate]) -> None:
        if sent.fate is not Fate.ACKNOWLEDGED:
            return
        demanded = set(self.store.rules.demanded(sent.node, sent.kind))
        for aggregate in mine:
            holders = aggregate.copies.keys()
            for pool in demanded - set(sent.removed) - holders - self.journal.audited:
                self._note(f"V13 {sent.transaction.hex()}: {pool} lacks it, the receipt says no")
            for pool in set() if sent.repaired else set(sent.removed) & holders:
                self._note(f"V13 {sent.transaction.hex()}: {pool} was removed, and holds it")

    # -- V4

    def _gaps(self, aggregate: Aggregate) -> None:
        rules, named = self.store.rules, f"aggregate {aggregate.uuid.hex()}"
        everything = aggregate.everything
        if aggregate.members.keys() != everything:
            self._note(f"V3 {named}: members {sorted(aggregate.members)} of {aggregate.objects}")
            return
        demanded = rules.demanded(aggregate.node, aggregate.kind)
        if set(aggregate.required) - {aggregate.primary} != set(demanded):
            self._note(f"V4 {named}: requires {aggregate.required}, the rules demand {demanded}")
        held = {pool: copy.members for pool, copy in aggregate.copies.items()}
        if aggregate.primary in self.journal.audited:  # as any other
            demanded = [aggregate.primary, *demanded]
        elif held.get(aggregate.primary) != everything:
            self._note(f"V4 {named}: its primary {aggregate.primary} does not hold all of it")
        for pool in {*demanded, *aggregate.gaps}:
            counted = everything
            if rules.is_active(pool):  # what is not active any more need not be there
                counted = frozenset(i for i, m in aggregate.members.items() if m.active)
            lacks = counted - held.get(pool, frozenset()) if pool in demanded else frozenset()
            noted = aggregate.gaps.get(pool, frozenset()) & counted
            if lacks != noted:
                self._note(
                    f"V4 {named}: {pool} lacks {sorted(lacks)}, the gap says {sorted(noted)}"
                )

    # -- V1

    def _bytes(self, aggregate: Aggregate, copy: Copy) -> None:
        data, covered = bytearray(aggregate.bytes), bytearray(aggregate.bytes)
        names: set[tuple[bytes, bytes]] = set()
        for place in copy.places:
            span = self._span(aggregate, copy, place)
            if span is None:
                continue
            start, piece = span["data_start"], span["data"]
            end = start + len(piece)
            if end > aggregate.bytes:
                self._note(self._at(place, "V1", "its data reach beyond the aggregate"))
                continue
            if covered.find(1, start, end) >= 0:
                self._note(self._at(place, "V1", "holds what another span of the copy holds"))
            data[start:end] = piece
            covered[start:end] = b"\1" * len(piece)
            names |= {(name, digest) for name, _, _, digest in span["fragments"] if digest}
        for index in copy.members:
            self._member(aggregate, copy, index, data, covered, names)

    def _member(
        self,
        aggregate: Aggregate,
        copy: Copy,
        index: int,
        data: bytearray,
        covered: bytearray,
        names: set[tuple[bytes, bytes]],
    ) -> None:
        member = aggregate.members.get(index)
        where = f"{copy.pool}: member {index} of {aggregate.uuid.hex()}"
        if member is None:
            self._note(f"V1 {where}: there is no such object")
            return
        end = member.start + member.length
        if end > len(covered) or covered.find(0, member.start, end) >= 0:
            self._note(f"V1 {where}: no span holds all of it")
        elif xxhash.xxh3_128_digest(bytes(data[member.start : end])) != member.digest:
            self._note(f"V1 {where}: its bytes are not those that were sent")
        elif (member.name, member.digest) not in names:
            self._note(f"V1 {where}: no footer names it")

    def _span(self, aggregate: Aggregate, copy: Copy, place: Place) -> dict[str, Any] | None:
        """Header, footer and data of a span, everything checked that the format page says."""
        volume = self.store.volumes.get(place.volume)
        if volume is None:
            return None
        spec = {"offset": place.offset, "used": place.used, "data_length": place.data_length}
        try:
            span = volume.span(spec)
        except (Bad, IndexError, ValueError) as error:
            self._note(self._at(place, "V1", f"{type(error).__name__}: {error}"))
            return None
        row = self.store.catalog.volumes[place.volume]
        facts = {
            "pool": (row["pool"], copy.pool),
            "transaction": (span["transaction"], aggregate.transaction),
            "aggregate": (span["aggregate"], aggregate.uuid),
            "number": (span["number"], place.number),
            "data_start": (span["data_start"], place.data_start),
        }
        for fact, (media, catalog) in facts.items():
            if media != catalog:
                self._note(self._at(place, "V1", f"{fact} is {media!r}, not {catalog!r}"))
        demanded = self.store.rules.demanded(aggregate.node, aggregate.kind)
        if span["required"] != [aggregate.primary, *demanded]:
            self._note(self._at(place, "V4", f"its header requires {span['required']}"))
        return span

    def _at(self, place: Place, code: str, what: str) -> str:
        return (
            f"{code} {self.store.catalog.volumes[place.volume]['path']} at {place.offset}: {what}"
        )

    # -- V7

    def _regions(self) -> None:
        regions: dict[bytes, list[tuple[int, int, str]]] = {}
        for one in self.store.catalog.aggregates.values():
            for copy in one.copies.values():
                for place in copy.places:
                    region = (place.offset, place.offset + place.length, one.uuid.hex())
                    regions.setdefault(place.volume, []).append(region)
        for uuid, offset, length, aggregate in self.store.catalog.dead_regions:
            regions.setdefault(uuid, []).append((offset, offset + length, aggregate.hex()))
        for uuid, volume in self.store.volumes.items():
            info, path = volume.info, self.store.catalog.volumes[uuid]["path"]
            before = info["granule"] + 2 * info["directory"]
            for start, end, owner in sorted(regions.get(uuid, [])):
                if start < before:
                    self._note(f"V7 {path} at {start}: overlaps what lies before ({owner})")
                before = max(before, end)
            if before > info["size"] - info["granule"]:
                self._note(f"V7 {path}: a region ends at {before}, behind the space")

    # -- V5: the evidence on the volumes

    def _directories(self) -> None:
        catalog = self.store.catalog
        for uuid, volume in self.store.volumes.items():
            path = catalog.volumes[uuid]["path"]
            self._epoch(uuid, volume.info, path)
            held = dict(self._held(uuid))
            for aggregate, record in volume.records.items():
                if record["op"] != COMMIT or (aggregate in catalog.dead and not self.opened):
                    continue
                if aggregate not in held or record["csn"] > held[aggregate][0]:
                    self._note(
                        f"V5 {path}: its directory knows commit {record['csn']} "
                        f"of {aggregate.hex()}, the catalog does not"
                    )
            if not self.opened:
                continue
            for aggregate, (csn, spans) in held.items():
                known = volume.records.get(aggregate, {"csn": 0, "spans": []})
                if (known["csn"], _spans_of(known)) != (csn, spans):
                    self._note(f"V5 {path}: its directory lacks commit {csn} of {aggregate.hex()}")
                counts = {span["objects"] for span in known["spans"]}
                if counts != {catalog.aggregates[aggregate].objects}:
                    self._note(
                        f"V5 {path}: its directory says that {aggregate.hex()} was stored with {counts} members"
                    )
                erased = {
                    n
                    for first, size in known.get("deleted", ())
                    for n in range(first, first + size)
                }
                if erased != catalog.aggregates[aggregate].erased:
                    self._note(
                        f"V5 {path}: its directory says that of {aggregate.hex()} {sorted(erased)} were deleted"
                    )

    def _epoch(self, uuid: bytes, info: dict[str, Any], path: str) -> None:
        known, provisional = self.store.catalog.volumes[uuid]["epoch"], info["state"] == 1
        if info["epoch"] != known and not (info["epoch"] == known + 1 and provisional):
            self._note(f"V5 {path}: epoch {info['epoch']}, the catalog says {known}")

    def _held(self, volume: bytes) -> Iterator[tuple[bytes, tuple[int, set[tuple[int, int]]]]]:
        """Aggregate → (commit, spans) of what the catalog says of a volume."""
        for aggregate in self.store.catalog.aggregates.values():
            for copy in aggregate.copies.values():
                spans = {(p.number, p.offset) for p in copy.places if p.volume == volume}
                if spans:
                    yield aggregate.uuid, (copy.csn, spans)


def _spans_of(record: dict[str, Any]) -> set[tuple[int, int]]:
    return {(span["number"], span["offset"]) for span in record["spans"]}


def look(config: Path, journal: Journal, *, opened: bool, below: Path | None = None) -> list[str]:
    """What is wrong with what lies there. `opened`: the product has opened it since the last crash."""
    with StoreOnMedia.look(config, below=below) as store:
        return Look(store, journal, opened=opened).all()


# ---- V16: made again from the volumes ----------------------------------------------------------------


def rebuild(
    config: Path, journal: Journal, *, exact: bool, flushed: bool, ill: bool = False
) -> list[str]:
    """Rebuild the catalog beside the real one, and compare.

    Args:
        config: of the store.
        journal: what was acknowledged.
        exact: the directories have caught up: nothing may differ.
        flushed: the store flushed its directories before it acknowledged: nothing acknowledged may be in doubt.
        ill: volumes had faults: perhaps none could be told yet of what was deleted, and what none was told of may come back.
    """
    from fanout.rebuild import rebuild_catalog

    rules = Rules(config)
    with scratch() as directory:
        path = directory / "rebuilt.db"
        report = rebuild_catalog(config, into=path, lock_wait=30.0)
        made = CatalogCopy(path)
    heard = _heard(config) if ill and not exact else None
    kept = CatalogCopy(rules.catalog)
    return list(_compare(rules, kept, made, report, journal, exact, flushed, heard))


def _heard(config: Path) -> set[tuple[bytes, int | None]]:
    """Of which deletions a directory has heard: aggregate and member; None: all of it."""
    found: set[tuple[bytes, int | None]] = set()
    with StoreOnMedia.look(config) as store:
        for volume in store.volumes.values():
            for aggregate, record in volume.records.items():
                if record["op"] == DELETE:
                    found.add((aggregate, None))
                for first, size in record.get("deleted", ()):
                    found.update((aggregate, n) for n in range(first, first + size))
    return found


def _compare(
    rules: Rules,
    kept: CatalogCopy,
    made: CatalogCopy,
    report: RebuildReport,
    journal: Journal,
    exact: bool,
    flushed: bool,
    heard: set[tuple[bytes, int | None]] | None,
) -> Iterator[str]:
    """`heard`: of which deletions the volumes must know; None: of all that were acknowledged."""
    known = {row["path"] for row in kept.volumes.values()}
    for skipped in report.skipped:
        if skipped.path in known:  # else its creation was cut short, and it holds nothing
            yield f"V16 {skipped.path}: took no part: {skipped.reason}"
    for lost in report.lost:
        yield f"V16 {lost.aggregate.hex()}: lost: {lost.reason}"
    yield from (f"V14 rebuilt catalog: {text}" for text in made.complaints)
    doubtful = {(entry.aggregate, entry.pool) for entry in report.in_doubt}
    acknowledged = {sent.transaction for sent in journal.of(Fate.ACKNOWLEDGED)}
    for uuid in made.aggregates.keys() - kept.aggregates.keys():
        one = made.aggregates[uuid]
        known_of = heard is None or any((uuid, n) in heard for n in (None, *one.members))
        objects = {(one.transaction, member.name) for member in one.members.values()}
        if exact or uuid not in kept.dead or (known_of and objects & journal.erased):
            yield f"V2 {uuid.hex()}: is in the rebuilt catalog, and was never committed, or was deleted"
    for uuid, aggregate in kept.aggregates.items():
        again = made.aggregates.get(uuid)
        if again is None:
            pools = aggregate.copies.keys()
            if exact or any((uuid, pool) not in doubtful for pool in pools):
                yield f"V16 {uuid.hex()}: is not in the rebuilt catalog"
            if flushed and aggregate.transaction in acknowledged:
                yield f"V16 {uuid.hex()}: its evidence was not durable before its receipt"
            continue
        back = again.everything - aggregate.everything
        erased = {
            n for n in back if (aggregate.transaction, again.members[n].name) in journal.erased
        }
        if erased and (heard is None or any((uuid, n) in heard for n in (None, *erased))):
            yield f"V2 {uuid.hex()}: members {sorted(back)} were deleted, and are in the rebuilt catalog"
        if not exact:  # no directory has heard of a deletion that nobody was told of
            _forget(again, back)
        yield from _same(rules, aggregate, again, doubtful, exact=exact)
    # The last commit that changed a copy: one that only closed gaps leaves no evidence, and its number may be used again.
    last = max(
        (copy.csn for one in kept.aggregates.values() for copy in one.copies.values()), default=0
    )
    # One that deleted is in the directories, and not in the catalog once that has been told. Numbers that somebody who took no part may
    # have given are left out.
    certain = exact and not report.skipped
    if certain and not last <= made.csn <= (kept.csn if journal.erasures else last):
        yield f"V16 last commit {made.csn}, not {last}"


def _forget(aggregate: Aggregate, members: frozenset[int]) -> None:
    """As if they were not there."""
    for number in members:
        del aggregate.members[number]
    for copy in aggregate.copies.values():
        copy.members -= members
    aggregate.gaps = {pool: missing - members for pool, missing in aggregate.gaps.items()}
    aggregate.erased |= members


def _same(
    rules: Rules,
    aggregate: Aggregate,
    again: Aggregate,
    doubtful: set[tuple[bytes, str]],
    *,
    exact: bool,
) -> Iterator[str]:
    named = f"V16 {aggregate.uuid.hex()}"
    if _facts(aggregate, versions=exact) != _facts(again, versions=exact):
        yield f"{named}: rebuilt as {_facts(again, versions=exact)}"
    for pool in again.copies.keys() - aggregate.copies.keys():
        yield f"{named}: a copy in {pool} is rebuilt that never was"
    for pool, copy in aggregate.copies.items():
        other = again.copies.get(pool)
        if not exact and (aggregate.uuid, pool) in doubtful:
            if other is not None and not other.members <= copy.members:
                yield f"{named}: {pool} is rebuilt with more than it holds"
            continue
        if other is None or (other.members, other.places) != (copy.members, copy.places):
            yield f"{named}: the copy in {pool} is rebuilt otherwise"
    active = frozenset(i for i, m in aggregate.members.items() if m.active)
    for pool in rules.demanded(aggregate.node, aggregate.kind):
        counted = active if rules.is_active(pool) else aggregate.everything
        gaps = [one.gaps.get(pool, frozenset()) & counted for one in (aggregate, again)]
        if exact and gaps[0] != gaps[1]:
            yield f"{named}: the gap of {pool} is rebuilt as {sorted(gaps[1])}"
        elif not gaps[0] <= gaps[1]:
            yield f"{named}: the gap of {pool} is forgotten"


def _facts(aggregate: Aggregate, *, versions: bool) -> tuple[Any, ...]:
    """What must be equal; versions and commit numbers only when nothing before it is missing."""
    one = aggregate
    members = [
        (m.index, m.name, m.start, m.length, m.digest, m.version if versions else 0)
        for m in one.members.values()
    ]
    return one.transaction, one.attempt, one.csn, one.node, one.kind, one.primary, members


# ---- V14, V17: opened and repaired by the product ----------------------------------------------------


def reopen(config: Path, *, repair: bool) -> list[str]:
    """Open the store, ask its allocators, repair if wanted, close."""
    from fanout.store import Store

    with Store.open(config, lock_wait=30.0) as store:
        findings = list(_space(store))
        if repair:
            findings += _repair(store, Rules(config))
    return findings


def _space(store: Store) -> Iterator[str]:
    for status in store.query_volumes():
        if status.state not in ("available", "full"):
            yield f"V14 {status.path}: is {status.state}: {status.reason}"
    for volume in store.pools.volumes():
        block, allocator = volume.superblock, volume.allocator
        assert allocator is not None
        allocator.check()
        status = next(s for s in store.query_volumes() if s.volume == volume.uuid)
        if status.reserved or status.draining or status.quarantined:
            yield f"V14 {volume.path}: space is held by nobody: {status}"
        if status.free + status.live != block.space_length:
            yield f"V14 {volume.path}: {status.free} + {status.live} is not {block.space_length}"


def _repair(store: Store, rules: Rules) -> Iterator[str]:
    from fanout import backup_stgpool, copy_activedata, restore_stgpool

    for primary in sorted({gap.pool for gap in store.query_gaps()} & rules.primaries()):
        restore_stgpool(store, primary)
    for again in (False, True):
        for primary, pool, active in rules.repairs():
            run = copy_activedata if active else backup_stgpool
            report = run(store, primary, pool)
            named = f"V17 {primary} → {pool}"
            if report.failed or report.gaps_left:
                yield f"{named}: {report.gaps_left} gaps are left: {report.failed[:2]}"
            if again and report.copied_objects:
                yield f"{named}: the second run copied {report.copied_objects} objects"
    yield from (f"V17 a gap is left: {gap}" for gap in store.query_gaps())


# ---- the whole of it ---------------------------------------------------------------------------------


def examine(
    config: Path,
    journal: Journal,
    *,
    flushed: bool = False,
    repair: bool = False,
    quick: bool = False,
    below: Path | None = None,
    goes_on: bool = True,
    ill: bool = False,
) -> list[str]:
    """Everything, in this process; what is wrong, in words.

    Args:
        config: path of the store's `fanout.toml`. The store is closed, and all devices are healed.
        journal: what was sent.
        flushed: the store was opened with `flush_before_acknowledge`.
        repair: close all gaps at the end (V17).
        quick: without rebuilding (V16).
        below: see `StoreOnMedia.look`.
        goes_on: somebody uses the store after this. If not, see `move`.
        ill: see `rebuild`.
    """
    stages = ["look", *([] if quick else ["rebuild"]), "open", "look again"]
    stages += [] if quick else ["rebuild again"]
    stages += ["repair", "look after"] if repair else []
    stages += ["rebuild after"] if repair and not quick else []
    for stage in stages:
        findings = _stage(stage, config, journal, flushed=flushed, below=below, ill=ill)
        if findings:  # what follows would only repeat it
            return [f"[{stage}] {finding}" for finding in findings]
        if below is not None and not goes_on:
            move(config, below)
            below = None
    return []


def move(config: Path, below: Path) -> None:
    """For the rest of this process the store lies where `below` does, and no longer on the fault file system.

    The recovery is the same one, and faster: nothing is asked of the daemon. But no power loss can take what it did not flush. To be called
    when all locks were granted: whoever died writes no more. The product has to be told that its volumes are on another file system.
    """
    from fanout.volume import Volume

    kernel.cover(config.parent, below)
    opened = Volume.open
    mock.patch.object(
        Volume, "open", lambda *where, **how: opened(*where, **{**how, "moved": True})
    ).start()


def _stage(
    stage: str, config: Path, journal: Journal, *, flushed: bool, below: Path | None, ill: bool
) -> list[str]:
    step, _, later = stage.partition(" ")
    if step == "look":
        return look(config, journal, opened=bool(later), below=below)
    if step == "rebuild":
        return rebuild(config, journal, exact=bool(later), flushed=flushed, ill=ill)
    if step == "repair":
        for sent in journal.sent.values():
            sent.repaired = True
    return list(reopen(config, repair=step == "repair"))


def judge(
    config: Path,
    journal: Journal,
    *,
    flushed: bool = False,
    repair: bool = False,
    quick: bool = False,
) -> None:
    """`examine` in a fresh process. Raises AssertionError with everything that is wrong."""
    with scratch() as directory:
        kept = directory / "journal"
        journal.save(kept)
        options = {"--flushed": flushed, "--repair": repair, "--quick": quick}
        command = [sys.executable, "-m", "tests.crash.oracle", str(config), str(kept)]
        command += [option for option, given in options.items() if given]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=JUDGE_SECONDS,
            check=False,
        )
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert not findings, "\n".join(findings)
    assert done.returncode == 0, done.stderr


def main(arguments: Iterable[str]) -> int:
    """Print what is wrong, one JSON string per line; 1 if anything is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("journal", type=Path)
    for option in ("--flushed", "--repair", "--quick"):
        parser.add_argument(option, action="store_true")
    given = parser.parse_args(list(arguments))
    findings = examine(
        given.config,
        Journal.load(given.journal),
        flushed=given.flushed,
        repair=given.repair,
        quick=given.quick,
    )
    with contextlib.suppress(BrokenPipeError):
        for finding in findings:
            print(json.dumps(finding), flush=True)
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

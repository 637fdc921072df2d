"""Damage becomes a gap, a lost volume becomes gaps, and both are closed: audit, retire, restore.

What could break: damage that stays on the books as a good copy, a pool that is emptied because its disk was away for a moment, a
repair that is read from the damaged place again, a whole copy that a later check or rebuild does not believe.
"""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fanout.audit
from fanout import (
    audit_stgpool,
    backup_stgpool,
    check_store,
    copy_activedata,
    rebuild_catalog,
    restore_stgpool,
    retire_volume,
)
from fanout.catalog import CopyEntry, MemberSet, Place
from fanout.errors import (
    CatalogBusy,
    CatalogStale,
    InterfaceError,
    TargetError,
    UnknownPool,
    VolumeBusy,
    VolumeError,
)
from fanout.medium import translated
from fanout.store import Store
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase
from fanout.volume import Volume
from tests.store.conftest import MIB
from tests.store.test_reconcile import put

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from fanout.audit import AuditReport
    from tests.store.conftest import Site

WHOLE = {
    "DISKPOOL": "ABCD",
    "TAPEPOOL": "E",
    "COPYPOOL1": "ABCDE",
    "COPYPOOL2": "ABCDE",
    "ACTIVEDATAPOOL": "AB",
}


def stored(site: Site) -> None:
    """A store in which every pool holds what it should."""
    site.create()
    with site.open() as store:
        site.put_all(store)


def repair(store: Store, pool: str) -> int:
    """Fill a pool from all that belongs in it; returns how many objects were copied."""
    if pool in ("DISKPOOL", "TAPEPOOL"):
        reports = [restore_stgpool(store, pool)]
    elif pool == "ACTIVEDATAPOOL":
        reports = [copy_activedata(store, primary, pool) for primary in ("DISKPOOL", "TAPEPOOL")]
    else:
        reports = [backup_stgpool(store, primary, pool) for primary in ("DISKPOOL", "TAPEPOOL")]
    assert all(report.failed == () and report.gaps_left == 0 for report in reports)
    return sum(report.copied_objects for report in reports)


def all_is_well(site: Site) -> None:
    """Exact contents, no gaps, and neither the check nor a catalog made from the volumes alone says otherwise."""
    with site.open() as store:
        assert site.contents(store) == WHOLE
        assert store.query_gaps() == []
    assert check_store(site.path).problems == ()
    rebuild_catalog(site.path, force=True)
    with site.open() as store:
        assert site.contents(store) == WHOLE
        assert store.query_gaps() == []
    assert check_store(site.path).problems == ()


@pytest.mark.parametrize(
    ("pool", "node", "name"),
    [
        ("DISKPOOL", "N1", b"A"),
        ("TAPEPOOL", "N2", b"E"),
        ("COPYPOOL1", "N2", b"C \xff\xfe"),
        ("COPYPOOL2", "N2", b"E"),
        ("ACTIVEDATAPOOL", "N1", b"A"),
    ],
)
def test_damage_becomes_a_gap_and_is_closed(site: Site, pool: str, node: str, name: bytes) -> None:
    """One object is wrong in one pool: found, named, marked with a gap, copied from another pool, and good again."""
    stored(site)
    assert site.flip(pool, site.objects[node, name][-4096:]) == 1
    with site.open(read_only=True) as store:
        report = audit_stgpool(store, pool)
        assert [found for found, _ in report.damaged] == [name]
        assert (report.marked, report.unasked) == (0, ())
        assert store.query_gaps() == []
    with site.open() as store:
        before = set(WHOLE[pool])
        report = audit_stgpool(store, pool, fix=True)
        # Not its neighbours in the same block: they are good by their own digests.
        assert (report.marked, len(report.damaged)) == (1, 1)
        (gap,) = store.query_gaps()
        assert (gap.pool, gap.objects) == (pool, report.marked)
        assert gap.reason.startswith("audit: ")
        held = {entry.name[:1].decode() for entry in store.query_objects(pool=pool)}
        assert held == before - {found[:1].decode() for found, _ in report.damaged}
        site.check(store, node, name, None)  # the other pools still have it
        assert repair(store, pool) == report.marked
        assert audit_stgpool(store, pool, fix=True).damaged == ()
    all_is_well(site)


def test_a_destroyed_pool_is_filled_again(site: Site) -> None:
    """Noise all over a primary volume: headers, footers and data; what was there is found lost and comes back."""
    stored(site)
    site.destroy("DISKPOOL")
    with site.open() as store:
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        assert b"C \xff\xfe" in {name for name, _ in report.damaged}
        assert repair(store, "DISKPOOL") == report.marked == len(report.damaged)
    all_is_well(site)


def test_a_damaged_frame_never_costs_the_last_good_bytes(site: Site) -> None:
    """A header is overwritten: with another copy its objects come from there; without one they are written anew from their old place."""
    stored(site)
    with site.open() as store:
        entry = store.catalog.find("N2", b"E")
        assert entry is not None
        (tape,) = (c for c in store.catalog.copies(entry.aggregate) if c.pool == "TAPEPOOL")
    with open(site.volume("TAPEPOOL"), "r+b") as file:
        file.seek(tape.places[0].offset)
        file.write(bytes(4096))
    with site.open() as store:
        report = audit_stgpool(store, "TAPEPOOL", fix=True)
        assert [name for name, _ in report.damaged] == [b"E"]
        assert repair(store, "TAPEPOOL") == report.marked == 1
    all_is_well(site)
    for pool in ("COPYPOOL1", "COPYPOOL2"):
        retire_volume(site.path, site.volume(pool), force=True)
    with site.open() as store:
        (tape,) = (c for c in store.catalog.copies(entry.aggregate) if c.pool == "TAPEPOOL")
    with open(site.volume("TAPEPOOL"), "r+b") as file:
        file.seek(tape.places[-1].offset)
        file.write(bytes(4096))
    with site.open() as store:
        report = audit_stgpool(store, "TAPEPOOL", fix=True)
        assert ([name for name, _ in report.damaged], report.marked, report.mended) == (
            [b"E"],
            0,
            1,
        )
        site.check(store, "N2", b"E", "TAPEPOOL")
        assert audit_stgpool(store, "TAPEPOOL", fix=True).damaged == ()
    rebuild_catalog(site.path, force=True)
    with site.open() as store:
        site.check(store, "N2", b"E", "TAPEPOOL")


def test_a_damaged_span_without_data_that_was_replaced_is_no_problem(site: Site) -> None:
    """It held one object without bytes, which a newer span names: nothing depends on it any more."""
    site.create()
    with site.open() as store:
        put(store, {b"void": b""})
        (entry,) = store.query_objects()
        copies = store.catalog.copies(entry.aggregate)
        (place,) = next(copy for copy in copies if copy.pool == "COPYPOOL1").places
    with open(site.volume("COPYPOOL1"), "r+b") as file:
        file.seek(place.offset)
        file.write(bytes(4096))
    with site.open() as store:
        assert audit_stgpool(store, "COPYPOOL1", fix=True).marked == repair(store, "COPYPOOL1") == 1
    assert check_store(site.path).problems == ()


def test_good_bytes_beside_damage_are_copied(site: Site) -> None:
    """Everywhere an object is damaged, and a good one shares its block: that one could be read, and never be copied again."""
    site.create()
    good, bad = site.rng.randbytes(30_000), site.rng.randbytes(5000)
    with site.open() as store:
        put(store, {b"before": good, b"bad": bad, b"behind": good[::-1], b"empty": b""}, node="N2")
    for pool in ("COPYPOOL1", "COPYPOOL2"):
        assert site.flip(pool, bad) == 1
    Path(site.volume("DISKPOOL")).unlink()
    retire_volume(site.path, site.volume("DISKPOOL"))
    Store.extend(site.path)
    with site.open() as store:
        report = restore_stgpool(store, "DISKPOOL")
        assert (report.copied_objects, [name for name, _ in report.failed]) == (3, [b"bad"])
        assert store.get("N2", b"before", pool="DISKPOOL").read() == good
        assert store.get("N2", b"behind", pool="DISKPOOL").read() == good[::-1]


@pytest.mark.parametrize("damage", ["header", "footer", "neighbour"])
def test_a_large_object_is_good_by_itself(site: Site, damage: str) -> None:
    """Nobody else has it, and header, footer or a neighbour in its first block is damaged: it is read, never given up, and copied."""
    site.object_limit = 8 * MIB
    site.create()
    large, small = site.rng.randbytes(5 * MIB + 1), site.rng.randbytes(5000)
    with (
        site.locked("COPYPOOL1"),
        site.locked("COPYPOOL2"),
        site.locked("ACTIVEDATAPOOL"),
        site.open(lock_wait=0) as store,
    ):
        put(store, {b"small": small, b"large": large, b"behind": small[::-1]})
    with site.open(read_only=True) as store:
        (entry,) = store.catalog.aggregates()
        (held,) = store.catalog.copies(entry.aggregate)
    place = held.places[0]
    foot = place.offset + 4096 + place.data_length
    at = {"header": place.offset, "footer": foot, "neighbour": place.offset + 4096}[damage]
    with open(site.volume("DISKPOOL"), "r+b") as file:
        file.seek(at)
        file.write(bytes(256))
    bad = [b"small"] if damage == "neighbour" else []
    with site.open() as store:
        with store.get("N1", b"large") as reader:
            assert reader.read() == large
            assert {fault.pool for fault in reader.faults} == {"DISKPOOL"}
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        assert report.marked == len(bad)
        copied = backup_stgpool(store, "DISKPOOL", "COPYPOOL1")
        assert [name for name, _ in copied.failed] == bad
        assert store.get("N1", b"large", pool="COPYPOOL1").read() == large
        assert store.get("N1", b"behind", pool="COPYPOOL1").read() == small[::-1]
        audit_stgpool(store, "DISKPOOL", fix=True)
        restore_stgpool(store, "DISKPOOL")
        with store.get("N1", b"large", pool="DISKPOOL") as reader:
            assert reader.read() == large
            assert reader.faults == () or bad
    lost = [problem.object for problem in check_store(site.path).problems]
    assert set(lost) <= set(bad)


def test_what_another_pool_is_said_to_hold_is_read_before_good_bytes_are_given_up(
    site: Site,
) -> None:
    """One pool has a damaged header, the other rot that nobody has seen: the good bytes are kept until the rot is mended from them."""
    site.create()
    bad, fine = site.rng.randbytes(50_000), site.rng.randbytes(50_000)
    with (
        site.locked("COPYPOOL2"),
        site.locked("ACTIVEDATAPOOL"),
        site.open(lock_wait=0) as store,
    ):
        put(store, {b"bad": bad, b"fine": fine})
    with site.open(read_only=True) as store:
        (entry,) = store.catalog.aggregates()
        (copy,) = (c for c in store.catalog.copies(entry.aggregate) if c.pool == "COPYPOOL1")
    with open(site.volume("COPYPOOL1"), "r+b") as file:
        file.seek(copy.places[0].offset)
        file.write(bytes(4096))
    assert site.flip("DISKPOOL", bad) == 1
    with site.open() as store:
        report = audit_stgpool(store, "COPYPOOL1", fix=True)
        assert ({name for name, _ in report.damaged}, report.marked) == ({b"bad", b"fine"}, 1)
        assert (report.mended, report.kept) == (1, ())
        assert audit_stgpool(store, "DISKPOOL", fix=True).marked == 1
        assert repair(store, "DISKPOOL") == repair(store, "COPYPOOL1") == 1
        assert audit_stgpool(store, "COPYPOOL1", fix=True).damaged == ()
        for name, data in ((b"bad", bad), (b"fine", fine)):
            for pool in ("DISKPOOL", "COPYPOOL1"):
                assert store.get("N1", name, pool=pool).read() == data


class Waited:
    """A lock that says when somebody is about to wait for it."""

    def __init__(self, lock: threading.Lock, waits: Callable[[], None]) -> None:
        self.lock, self.waits = lock, waits

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.waits()
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_two_audits_do_not_give_up_what_each_relies_on_the_other_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pools have a damaged header and good bytes; both are audited at once: one of the two copies stays."""
    site.create()
    with site.locked("COPYPOOL2"), site.locked("ACTIVEDATAPOOL"), site.open(lock_wait=0) as store:
        put(store, {b"a": b"a" * 5000})
    with site.open(read_only=True) as store:
        (entry,) = store.catalog.aggregates()
        copies = store.catalog.copies(entry.aggregate)
    for copy in copies:
        with open(site.volume(copy.pool), "r+b") as file:
            file.seek(copy.places[0].offset)
            file.write(bytes(4096))
    marking = fanout.audit._Audit._mark
    with site.open() as store, ThreadPoolExecutor(1) as other:
        running: list[Future[AuditReport]] = []
        decided = threading.Event()  # by the other one: to wait, or what to give up
        store.auditing = Waited(store.auditing, decided.set)  # type: ignore[assignment]

        def mark(audit: fanout.audit._Audit, *arguments: Any) -> None:
            if audit.pool == "DISKPOOL":  # it has decided; now the other one does
                running.append(other.submit(audit_stgpool, store, "COPYPOOL1", fix=True))
                assert decided.wait(60)
            decided.set()
            marking(audit, *arguments)

        monkeypatch.setattr(fanout.audit._Audit, "_mark", mark)
        first = audit_stgpool(store, "DISKPOOL", fix=True)
        assert (first.marked, running[0].result().marked) == (1, 0)
        assert store.get("N1", b"a").read() == b"a" * 5000


def rot(site: Site, pool: str, data: bytes, begin: int, end: int) -> None:
    """Overwrite a part of an object on a pool's volume."""
    volume = Path(site.volume(pool))
    content = volume.read_bytes()
    assert content.count(data) == 1
    with open(volume, "r+b") as file:
        file.seek(content.find(data) + begin)
        file.write(bytes(end - begin))


def torn(site: Site, length: int, damage: dict[str, list[tuple[int, int]]]) -> bytes:
    """A store with an object that lies in two pools, each of which has rotten at other places, and one that is well beside it."""
    site.object_limit = 8 * MIB
    site.create()
    data = site.rng.randbytes(length)
    with (
        site.locked("COPYPOOL2"),
        site.locked("ACTIVEDATAPOOL"),
        site.open(lock_wait=0) as store,
    ):
        put(store, {b"small": b"s" * 5000, b"torn": data, b"behind": b"b" * 5000})
    whole = {pool: Path(site.volume(pool)).read_bytes() for pool in damage}
    for pool, some in damage.items():
        with open(site.volume(pool), "r+b") as file:
            for begin, end in some:  # it may lie in several spans, but no damage does
                assert whole[pool].count(data[begin:end]) == 1
                file.seek(whole[pool].find(data[begin:end]))
                file.write(bytes(end - begin))
    return data


TORN = {
    "different blocks": (6 * MIB, [(0, 4000)], [(6 * MIB - 4000, 6 * MIB)]),
    "different blocks of a smaller one": (3 * MIB, [(0, 4000)], [(3 * MIB - 4000, 3 * MIB)]),
    "sectors of one block": (100_000, [(0, 512), (50_000, 50_512)], [(20_000, 20_512), (90_000, 95_000)]),
    "halves": (200_000, [(0, 90_000)], [(102_000, 200_000)]),
}  # fmt: skip


@pytest.mark.parametrize("which", TORN)
def test_what_copies_have_between_them_is_put_together(site: Site, which: str) -> None:
    """Each is damaged at another place: it is read, the audit of one writes it anew, that of the other makes it a gap, and all is well."""
    length, one, other = TORN[which]
    data = torn(site, length, {"DISKPOOL": one, "COPYPOOL1": other})
    said = check_store(site.path).problems
    assert {problem.pool for problem in said} == {"DISKPOOL", "COPYPOOL1"}
    assert not any("no pool has" in problem.what for problem in said)
    with site.open() as store:
        assert store.get("N1", b"torn").read() == data
        report = audit_stgpool(store, "DISKPOOL")
        assert ([name for name, _ in report.damaged], report.mended) == ([b"torn"], 0)
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        assert [name for name, _ in report.damaged] == [b"torn"]
        assert (report.marked, report.mended, report.kept) == (0, 1, ())
        assert store.get("N1", b"torn", pool="DISKPOOL").read() == data
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        assert report.damaged == ()
        report = audit_stgpool(store, "COPYPOOL1", fix=True)
        assert (report.marked, report.mended, report.kept) == (1, 0, ())
        for pool in ("COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"):
            repair(store, pool)
    assert check_store(site.path).problems == ()
    rebuild_catalog(site.path, force=True)
    assert check_store(site.path).problems == ()
    with site.open() as store:
        for pool in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"):
            assert store.get("N1", b"torn", pool=pool).read() == data


def test_what_copies_have_between_them_goes_to_a_third_pool(site: Site) -> None:
    """Without an audit: a repair reads it from both."""
    data = torn(site, 200_000, {"DISKPOOL": [(0, 90_000)], "COPYPOOL1": [(102_000, 200_000)]})
    with site.open() as store:
        assert repair(store, "COPYPOOL2") == 3
        assert store.get("N1", b"torn", pool="COPYPOOL2").read() == data


def test_what_is_put_together_keeps_other_gaps_and_deletions(site: Site) -> None:
    """Breaks if a gap that the pool has for a neighbour is closed with it, or if a rebuild takes it for what was deleted."""
    data = torn(site, 200_000, {"DISKPOOL": [(0, 90_000)], "COPYPOOL1": [(102_000, 200_000)]})
    for pool in ("DISKPOOL", "COPYPOOL1"):
        rot(site, pool, b"b" * 5000, 100, 200)
    with site.open() as store:
        store.delete("N1", b"small")
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        assert ({name for name, _ in report.damaged}, report.marked, report.mended) == (
            {b"torn", b"behind"},
            1,
            1,
        )
        (gap,) = store.query_gaps(pool="DISKPOOL")
        assert (gap.objects, gap.bytes) == (1, 5000)
        (entry,) = store.catalog.aggregates()
        (held,) = (c for c in store.catalog.copies(entry.aggregate) if c.pool == "DISKPOOL")
    with open(site.volume("DISKPOOL"), "r+b") as file:
        file.seek(held.places[0].offset)
        file.write(bytes(4096))
    Path(site.volume("COPYPOOL1")).unlink()
    rebuild_catalog(site.path, force=True)
    with site.open() as store:
        assert store.get("N1", b"torn", pool="DISKPOOL").read() == data
        assert {one.name for one in store.query_objects()} <= {b"torn", b"behind"}


def test_what_is_put_together_from_different_pools_goes_one_behind_the_other(site: Site) -> None:
    """Two objects of one aggregate, of which one has a pool more to be read from. Breaks if the spans of both get the same number."""
    site.create()
    x, y = site.rng.randbytes(100_000), site.rng.randbytes(100_000)
    with site.open() as store:
        put(store, {b"x": x, b"y": y}, node="N2")
    rot(site, "COPYPOOL2", x, 0, 50_000)
    with site.open() as store:
        assert audit_stgpool(store, "COPYPOOL2", fix=True).marked == 1
    for pool, begin in {"DISKPOOL": 0, "COPYPOOL1": 80_000}.items():
        rot(site, pool, x, begin, begin + 20_000)
        rot(site, pool, y, begin, begin + 20_000)
    rot(site, "COPYPOOL2", y, 80_000, 100_000)
    with site.open() as store:
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        assert (report.marked, report.mended, report.kept) == (0, 2, ())
        for name, data in {b"x": x, b"y": y}.items():
            assert store.get("N2", name, pool="DISKPOOL").read() == data


def over_two_volumes(site: Site) -> tuple[bytes, list[tuple[str, int]]]:
    """A store with an object that crosses from one volume of DISKPOOL to the other, and a small one behind it; where its two spans are."""
    site.object_limit, site.size, site.second_volume = 8 * MIB, 6 * MIB, "DISKPOOL"
    site.sizes |= {"COPYPOOL1": 12 * MIB, "COPYPOOL2": 12 * MIB}
    site.create()
    data = site.rng.randbytes(7 * MIB)
    with site.open() as store:
        put(store, {b"large": data, b"small": b"s" * 3000}, node="N2")
        (entry,) = store.catalog.aggregates()
        (copy,) = (c for c in store.catalog.copies(entry.aggregate) if c.pool == "DISKPOOL")
        paths = {volume.volume: volume.path for volume in store.catalog.volumes()}
        assert len(copy.places) == 2
        return data, [(paths[place.volume], place.offset) for place in copy.places]


def overwrite(places: list[tuple[str, int]]) -> None:
    """The headers of spans are gone."""
    for path, offset in places:
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(bytes(4096))


def test_an_object_in_several_damaged_spans_is_one_object(site: Site) -> None:
    """It was counted once for each of them, and those of its bytes that were read by themselves not at all."""
    data, places = over_two_volumes(site)
    overwrite(places)
    with site.open() as store:
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        assert [name for name, _ in report.damaged] == [b"large", b"small"]
        assert (report.marked, report.kept) == (2, ())
        assert (report.objects, report.object_bytes) == (2, len(data) + 3000)


def test_a_damaged_span_of_what_was_deleted_is_no_problem_for_ever(site: Site) -> None:
    """Nothing that is left lies in it, so the audit found nothing to mend, and the check told people to audit."""
    _, places = over_two_volumes(site)
    with site.open() as store:
        store.delete("N2", b"large")
    overwrite(places[:1])
    assert [problem.offset for problem in check_store(site.path).problems] == [places[0][1]]
    with site.open() as store:
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        assert (report.damaged, report.kept) == ((), ())
        assert store.query_gaps() == []
    assert check_store(site.path).problems == ()
    made = rebuild_catalog(site.path, force=True)
    assert (made.lost, made.objects, made.gaps) == ((), 1, 0)
    with site.open() as store:
        assert store.get("N2", b"small", pool="DISKPOOL").read() == b"s" * 3000
    assert check_store(site.path).problems == ()


def test_what_a_repair_can_put_together_can_be_read(site: Site) -> None:
    """Two copies, damaged at different places, the frames of both as well: only the object's digest says what is right, and `get` did not ask it."""
    damage = {"DISKPOOL": [(0, 512)], "COPYPOOL1": [(90_000, 95_000)]}
    data = torn(site, 100_000, damage)
    with site.open(read_only=True) as store:
        (entry,) = store.catalog.aggregates()
        paths = {volume.volume: volume.path for volume in store.catalog.volumes()}
        copies = store.catalog.copies(entry.aggregate)
        places = [(paths[p.volume], p.offset) for copy in copies for p in copy.places]
    overwrite(places)
    with site.open() as store:
        assert store.get("N1", b"torn").read() == data
        assert repair(store, "COPYPOOL2") == 3
        assert store.get("N1", b"torn", pool="COPYPOOL2").read() == data


def test_what_cannot_be_put_together_is_left_and_says_why(site: Site) -> None:
    """Breaks if good bytes are given up: the pool is full, or who has the rest is away for the moment."""
    site.sizes["COPYPOOL1"] = 60 * MIB
    data = torn(site, 3 * MIB, {"DISKPOOL": [(0, 4000)], "COPYPOOL1": [(3 * MIB - 4000, 3 * MIB)]})
    with site.locked("COPYPOOL1"), site.open(lock_wait=0) as store:
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        assert (report.marked, report.mended) == (0, 0)
        ((name, why),) = report.kept
        assert name == b"torn"
        assert "COPYPOOL1" in why
    with site.open() as store:
        put_until_full(store)
        report = audit_stgpool(store, "DISKPOOL", fix=True)
        ((name, why),) = report.kept
        assert (name, report.marked, report.mended) == (b"torn", 0, 0)
        assert "no room for" in why
        assert store.get("N1", b"torn").read() == data
    with site.open() as store:
        assert audit_stgpool(store, "COPYPOOL1", fix=True).mended == 1
        assert audit_stgpool(store, "DISKPOOL", fix=True).marked == 1
        assert store.get("N1", b"torn").read() == data


def put_until_full(store: Store) -> None:
    """Fill DISKPOOL to less than 2 MiB; what is more goes elsewhere."""
    for number in range(60):
        if store.pools.pools["DISKPOOL"].free_bytes() < 2 * MIB:
            return
        with store.session("N2") as session:
            for attempt in session.attempts():
                with attempt as txn:
                    txn.put(b"fill%d" % number, bytes(MIB))
    raise AssertionError("never full")


def test_what_was_damaged_everywhere_and_then_deleted_is_not_lost(site: Site) -> None:
    """Every copy of the aggregate lists what it holds: a catalog made anew names what is lost, and nothing when that was deleted."""
    site.create()
    bad = site.rng.randbytes(5000)
    with site.open() as store:
        put(store, {b"a": b"a" * 700, b"bad": bad, b"empty": b"", b"z": b"z"}, node="N2")
    for pool in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2"):
        assert site.flip(pool, bad) == 1
    with site.open() as store:
        for pool in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2"):
            assert audit_stgpool(store, pool, fix=True).marked == 1
    report = rebuild_catalog(site.path, into=site.base / "again.db")
    assert [found.node for found in report.lost] == ["N2"]
    with site.open() as store:
        store.delete("N2", b"bad")
    report = rebuild_catalog(site.path, force=True)
    assert (report.lost, report.objects) == ((), 3)
    with site.open() as store:
        assert {entry.name for entry in store.query_objects()} == {b"a", b"empty", b"z"}


def lose(site: Site, pool: str) -> None:
    """Its volume, for good; an empty one takes its place."""
    retire_volume(site.path, site.volume(pool), force=True)
    os.unlink(site.volume(pool))
    Store.extend(site.path)


def test_what_was_lost_piece_by_piece_and_then_deleted_is_not_lost(site: Site) -> None:
    """The copies damaged, the primary gone: the originals that are left list less than they hold, and repairs hold less.

    A rebuild must not take what was deleted for another object that nobody holds.
    """
    site.create()
    bad, good = site.rng.randbytes(6000), site.rng.randbytes(68)
    with site.open() as store:
        put(store, {b"bad": bad, b"good": good}, node="N2")
    for pool in ("COPYPOOL1", "COPYPOOL2"):
        assert site.flip(pool, bad) == 1
        with site.open() as store:
            assert audit_stgpool(store, pool, fix=True).marked == 1
    lose(site, "DISKPOOL")
    with site.open() as store:
        report = restore_stgpool(store, "DISKPOOL")
        assert (report.copied_objects, [name for name, _ in report.failed]) == (1, [b"bad"])
        store.delete("N2", b"bad")
    made = rebuild_catalog(site.path, force=True)
    assert (made.lost, made.objects, made.gaps) == ((), 1, 0)
    with site.open() as store:
        for pool in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2"):
            assert store.get("N2", b"good", pool=pool).read() == good


NAMES = [b"a", b"b", b"m", b"x", b"y", b"z"]


@pytest.mark.parametrize(
    "gone",
    [[b"a"], [b"b"], [b"m"], [b"x"], [b"z"], [b"a", b"b"], [b"y", b"z"], [b"a", b"m", b"z"], [b"b", b"y"]],
    ids=lambda names: b" ".join(names).decode(),
)  # fmt: skip
def test_repairs_alone_know_who_is_who(site: Site, gone: list[bytes]) -> None:
    """Objects were deleted, some without bytes, then every volume was lost once: nothing but repairs is left.

    Of an object without bytes no hole in the data says that it is missing, and behind the last one nothing does.
    """
    site.create()
    sizes = dict(zip(NAMES, (0, 5000, 0, 300, 700, 0), strict=True))
    objects = {name: site.rng.randbytes(size) for name, size in sizes.items()}
    with site.open() as store:
        put(store, objects, node="N2")
        for name in gone:
            store.delete("N2", name)
        versions = {entry.name: entry.version for entry in store.query_objects()}
    for pool in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2"):
        lose(site, pool)
        with site.open() as store:
            repair(store, pool)
    assert check_store(site.path).problems == ()
    made = rebuild_catalog(site.path, force=True)
    assert (made.lost, made.gaps) == ((), 0)
    with site.open() as store:
        assert {entry.name: entry.version for entry in store.query_objects()} == versions
        for entry in store.query_objects():
            assert store.get("N2", entry.name).read() == objects[entry.name]
        assert repair(store, "COPYPOOL1") == 0
    assert check_store(site.path).problems == ()


def test_repairs_beside_what_they_replace_do_not_name_a_deleted_empty_object(site: Site) -> None:
    """It leaves no hole, and half of what the transaction wrote is still good: a rebuild must not take the next object for it."""
    site.object_limit = 8 * MIB
    site.create()
    objects = {b"a": b"a" * 5000, b"b": site.rng.randbytes(6000), b"c": site.rng.randbytes(3 * MIB)}
    with (
        site.locked("COPYPOOL2"),
        site.locked("ACTIVEDATAPOOL"),
        site.open(lock_wait=0) as store,
    ):
        put(store, {b"a": objects[b"a"], b"void": b"", **objects})
    with site.open() as store:
        store.delete("N1", b"void")
        (entry,) = store.catalog.aggregates()
        copies = {copy.pool: copy for copy in store.catalog.copies(entry.aggregate)}
        before = [(o.name, o.version) for o in store.query_objects()]
    for pool in ("COPYPOOL1", "DISKPOOL"):
        assert len(copies[pool].places) > 1
        with open(site.volume(pool), "r+b") as file:
            file.seek(copies[pool].places[0].offset)
            file.write(bytes(4096))
        with site.open() as store:
            assert audit_stgpool(store, pool, fix=True).marked == repair(store, pool) == 3
    report = rebuild_catalog(site.path, force=True)
    assert report.lost == ()
    with site.open() as store:
        assert [(o.name, o.version) for o in store.query_objects()] == before
        for pool in copies:
            for name, data in objects.items():
                assert store.get("N1", name, pool=pool).read() == data


def test_of_damaged_repairs_the_rest_is_found(site: Site) -> None:
    """As above, and of what is left one span is damaged everywhere: what it held is named as lost, and what others hold is there."""
    site.create()
    objects = {b"a": b"", b"b": b"b" * 5000, b"m": b"m" * 300, b"x": b"x" * 700}
    with site.open() as store:
        put(store, objects, node="N2")
        store.delete("N2", [b"a", b"m"])
    pools = ("DISKPOOL", "COPYPOOL1", "COPYPOOL2")
    for pool in pools:
        lose(site, pool)
        with site.open() as store:
            repair(store, pool)
    with site.open() as store:
        (entry,) = [entry for entry in store.query_objects() if entry.name == b"b"]
        copies = store.catalog.copies(entry.aggregate)
        spans = {copy.pool: copy.servers(entry.start, entry.length) for copy in copies}
    for pool in pools:
        (span,) = spans[pool]
        with open(site.volume(pool), "r+b") as file:
            file.seek(span.offset)
            file.write(bytes(512))
    (site.base / "catalog.db").unlink()
    made = rebuild_catalog(site.path)
    assert [lost.node for lost in made.lost] == ["N2"]
    with site.open() as store:
        for pool in pools:
            assert store.get("N2", b"x", pool=pool).read() == objects[b"x"]


def test_what_cannot_be_asked_is_not_called_damaged(site: Site) -> None:
    """Breaks if a disk that is away for a moment empties its pool."""
    stored(site)
    volume = Path(site.volume("COPYPOOL1"))
    volume.rename(volume.with_suffix(".away"))
    with site.open(lock_wait=0) as store:
        report = audit_stgpool(store, "COPYPOOL1", fix=True)
        assert (report.damaged, report.marked) == ((), 0)
        assert {name[:1] for name, _ in report.unasked} == {b"A", b"B", b"C", b"E"}
        assert store.query_gaps() == []
    volume.with_suffix(".away").rename(volume)
    all_is_well(site)


def test_damage_twice_in_one_place(site: Site) -> None:
    """The copy that replaced a damaged one is damaged, too: the newest span serves, and is audited."""
    stored(site)
    data = site.objects["N1", b"A"]
    for round_number in range(3):
        assert site.flip("DISKPOOL", data[-4096:]) == 1
        with site.open() as store:
            report = audit_stgpool(store, "DISKPOOL", fix=True)
            assert b"A" in {name for name, _ in report.damaged}, round_number
            assert repair(store, "DISKPOOL") == report.marked
    all_is_well(site)


def test_every_copy_was_damaged_once(site: Site) -> None:
    """Each pool in turn, so that no copy of the aggregate is as it was first written: a rebuild must sort all of it out."""
    stored(site)
    for pool in ("DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"):
        assert site.flip(pool, site.objects["N1", b"A"][-4096:]) == 1
        with site.open() as store:
            assert audit_stgpool(store, pool, fix=True).marked == repair(store, pool) == 1
    all_is_well(site)


def test_a_damaged_block_is_read_once_for_all_that_lie_in_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block holds tens of thousands of tiny objects: for each of them it would be read and summed again, several times."""
    site.create()
    tiny = {b"%d" % number: site.rng.randbytes(20) for number in range(500)}
    with site.open() as store:
        put(store, tiny)
    assert site.flip("DISKPOOL", tiny[b"250"]) == 1
    sizes: list[int] = []
    read = Volume.read

    def counted(volume: Volume, offset: int, length: int, **options: Any) -> bytes:
        sizes.append(length)
        return read(volume, offset, length, **options)

    monkeypatch.setattr(Volume, "read", counted)
    with site.open() as store:
        report = audit_stgpool(store, "DISKPOOL")
    assert [name for name, _ in report.damaged] == [b"250"]
    assert sum(size > 20 for size in sizes) < 20
    assert sizes.count(20) == len(tiny)


@pytest.mark.parametrize("batch", [1, 7, 4096])
def test_what_is_damaged_is_given_up_in_few_commits(
    site: Site, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Each was a commit of its own, with a record in the directory: on a disk that dies there are many. A killed one leaves the rest to the next."""
    monkeypatch.setattr(fanout.audit, "BATCH_MEMBERS", batch)
    site.create()
    with site.open() as store:
        for number in range(20):
            put(store, {b"%d" % number: b"%02d" % number * 3000})
    for number in range(20):
        assert site.flip("COPYPOOL1", b"%02d" % number * 3000) == 1
    with site.open() as store:
        before = store.catalog.last_csn()
        report = audit_stgpool(store, "COPYPOOL1", fix=True)
        assert (report.marked, len(report.damaged)) == (20, 20)
        assert store.catalog.last_csn() - before == -(-20 // batch)
        assert sum(gap.objects for gap in store.query_gaps()) == 20
        assert {gap.pool for gap in store.query_gaps()} == {"COPYPOOL1"}
        assert repair(store, "COPYPOOL1") == 20
    for number in range(20):
        assert site.flip("DISKPOOL", b"%02d" % number * 3000) == 1
    with site.open() as store:
        committing, calls = store.ledger.commit_repairs, list[Any]()

        def killed(*arguments: Any) -> int:
            if calls:
                raise KeyboardInterrupt
            calls.append(arguments)
            return committing(*arguments)

        monkeypatch.setattr(store.ledger, "commit_repairs", killed)
        with suppress(KeyboardInterrupt):
            audit_stgpool(store, "DISKPOOL", fix=True)
        monkeypatch.undo()
    with site.open() as store:
        audit_stgpool(store, "DISKPOOL", fix=True)
        assert repair(store, "DISKPOOL") == 20
    assert check_store(site.path).problems == ()


def test_what_a_newer_version_replaced_is_no_gap_of_an_active_data_pool(site: Site) -> None:
    """Damage in a replaced version: nobody asks the pool for it, so nothing is missing."""
    stored(site)
    assert site.flip("ACTIVEDATAPOOL", site.objects["N1", b"A"][-4096:]) == 1
    with site.open() as store:
        old = site.objects["N1", b"A"]
        site.objects["N1", b"A"] = site.rng.randbytes(50_000)
        put(store, {b"A": site.objects["N1", b"A"]})
        report = audit_stgpool(store, "ACTIVEDATAPOOL", fix=True)
        assert b"A" in {name for name, _ in report.damaged}
        assert b"A" not in {
            member.name
            for gap in store.query_gaps()
            for member in store.catalog.members(gap.aggregate)
            if member.active and (gap.missing is None or member.member in gap.missing)
        }
        repair(store, "ACTIVEDATAPOOL")
        site.check(store, "N1", b"A", "ACTIVEDATAPOOL")
        assert old != site.objects["N1", b"A"]


@pytest.mark.parametrize("pool", ["DISKPOOL", "COPYPOOL2", "ACTIVEDATAPOOL"])
def test_a_lost_volume_becomes_gaps_and_a_new_one_is_filled(site: Site, pool: str) -> None:
    """The disk is gone for good: it is given up, a new one takes its path, and everything is there again."""
    stored(site)
    Path(site.volume(pool)).unlink()
    report = retire_volume(site.path, site.volume(pool))
    assert (report.pool, report.objects, report.lost) == (pool, len(WHOLE[pool]), ())
    with site.open() as store:
        assert {gap.pool for gap in store.query_gaps()} == {pool}
        assert sum(gap.objects for gap in store.query_gaps()) == len(WHOLE[pool])
        assert site.contents(store) == WHOLE | {pool: ""}
    (made,) = Store.extend(site.path)
    assert made.path == site.volume(pool)
    with site.open() as store:
        assert repair(store, pool) == len(WHOLE[pool])
    all_is_well(site)


def test_retiring_says_what_is_nowhere_else(site: Site) -> None:
    """The scenario's warning: COPYPOOL1's gap is open when the primary and the other copy pool are lost."""
    site.create()
    with site.locked("COPYPOOL1"), site.open(lock_wait=0) as store:
        site.put_all(store)
    for pool in ("DISKPOOL", "TAPEPOOL"):
        Path(site.volume(pool)).unlink()
        assert retire_volume(site.path, site.volume(pool)).lost == ()
    Path(site.volume("COPYPOOL2")).unlink()
    report = retire_volume(site.path, site.volume("COPYPOOL2"))
    assert {name[:1] for name in report.lost} == {b"C", b"D", b"E"}  # A and B: ACTIVEDATAPOOL
    with site.open() as store:
        site.check(store, "N1", b"A", None)


def test_retiring_is_refused_where_it_would_harm(site: Site) -> None:
    """A volume that is well, one that nobody knows, and a store that is open: each is refused by name, and nothing changes."""
    stored(site)
    with pytest.raises(VolumeError, match="it is well; say force"):
        retire_volume(site.path, site.volume("COPYPOOL1"))
    with pytest.raises(VolumeError, match=r"knows no volume at this path; it knows: .*DISKPOOL"):
        retire_volume(site.path, site.base / "nowhere.vol")
    with site.open(), pytest.raises(CatalogBusy):
        retire_volume(site.path, site.volume("COPYPOOL1"), lock_wait=0)
    with site.locked("COPYPOOL1"), pytest.raises(VolumeBusy, match="is locked"):
        retire_volume(site.path, site.volume("COPYPOOL1"), lock_wait=0)
    all_is_well(site)
    assert retire_volume(site.path, site.volume("COPYPOOL1"), force=True).objects == 5


def test_an_old_catalog_gives_nothing_up(site: Site) -> None:
    """The volume is not lost, the catalog is: it must not become the newest one by forgetting the volume."""
    site.create()
    with site.open() as store:
        site.put(store, "N1")
    old = (site.base / "catalog.db").read_bytes()
    with site.open() as store:
        site.put(store, "N2")
    (site.base / "catalog.db").write_bytes(old)
    with pytest.raises(CatalogStale, match="fanout rebuild catalog"):
        retire_volume(site.path, site.volume("COPYPOOL1"))
    assert rebuild_catalog(site.path, force=True).complete
    all_is_well(site)


@pytest.mark.parametrize(
    ("number", "cls"), [(errno.EMFILE, FaultClass.HOST), (errno.EACCES, FaultClass.ACCESS)]
)
def test_what_this_process_lacks_gives_nothing_up(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int, cls: FaultClass
) -> None:
    """Descriptors, or the right to write: the volume is as it was."""
    stored(site)

    def refused(*_: object, **__: object) -> None:
        outcome = Outcome(OutcomeCode.ERROR, Phase.OPEN, errno=number, cls=cls)
        with translated("/x", "cannot be opened"):
            raise TargetError("/x", outcome)

    monkeypatch.setattr(Volume, "open", refused)
    with pytest.raises(VolumeError, match="does not make it lost"):
        retire_volume(site.path, site.volume("COPYPOOL1"))
    monkeypatch.undo()
    all_is_well(site)


def test_audit_refuses_what_it_cannot_do(site: Site) -> None:
    """An unknown pool is named with those that there are; a read-only store cannot be fixed."""
    stored(site)
    with site.open(read_only=True) as store:
        with pytest.raises(UnknownPool, match="COPYPOOL1"):
            audit_stgpool(store, "COPYPOOL9")
        with pytest.raises(InterfaceError, match="read-only"):
            audit_stgpool(store, "COPYPOOL1", fix=True)


def test_the_newest_span_serves_and_the_others_what_it_leaves() -> None:
    """Breaks if a read runs from an old span into bytes that a newer one has replaced."""

    def span(number: int, start: int, length: int) -> Place:
        return Place(number, bytes(16), MIB * number + MIB, MIB, MIB, start, length)

    whole, middle, again = span(0, 0, 100), span(1, 40, 20), span(2, 45, 5)
    copy = CopyEntry("P", MemberSet(), (whole, middle, again))
    assert copy.served(0) == (whole, 40)
    assert copy.served(39) == (whole, 40)
    assert copy.served(40) == (middle, 45)
    assert copy.served(45) == (again, 50)
    assert copy.served(50) == (middle, 60)
    assert copy.served(60) == (whole, 100)
    assert copy.served(100) is None
    assert copy.servers(30, 40) == [whole, middle, again, middle, whole]
    assert copy.servers(100, 0) == [whole]

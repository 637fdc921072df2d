"""A catalog that was lost is made again from the volumes.

What could break: an object that comes back in another order, or in pools that do not hold it; a gap that nobody notes; something
that was never committed and becomes visible; a rebuilt store that overwrites live data, or cannot be written to.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fanout import audit_stgpool, backup_stgpool, copy_activedata
from fanout import format as fmt
from fanout.catalog import Catalog, CatalogReader
from fanout.errors import CatalogBusy, CatalogError, TransactionFailed, VolumeBusy
from fanout.format import DirectoryRecord, Op
from fanout.rebuild import rebuild_catalog
from fanout.scribe import Scribe
from fanout.volume import Volume
from tests.store.histories import POOLS, SmallSite, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from fanout.rebuild import RebuildReport


@pytest.fixture
def small(tmp_path: Path, rng: random.Random) -> Iterator[SmallSite]:
    """A small store, made; its volumes are removed at the end."""
    site = SmallSite(tmp_path, rng)
    site.create()
    yield site
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("sequential/*")]:
        path.unlink()


def rebuilt(site: SmallSite, name: str = "second.db", **options: Any) -> tuple[Any, RebuildReport]:
    """Rebuild beside the catalog that is there; what the new one says, and the report."""
    report = rebuild_catalog(site.path, into=site.base / name, **options)
    with CatalogReader(report.catalog) as catalog:
        assert catalog.verify() == []
        return snapshot(catalog), report


def original(site: SmallSite) -> dict[str, Any]:
    """What the catalog says that wrote all this."""
    with CatalogReader(site.catalog) as catalog:
        return snapshot(catalog)


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The questions that are answered differently."""
    return [question for question in first if first[question] != second[question]]


# ---- equal to the lost one ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_lost_catalog(small: SmallSite, seed: int) -> None:
    """Every question has the same answer, versions and gaps too; and twice the same comes out."""
    small.rng = random.Random(seed)
    small.live(4)
    lost = original(small)
    first, report = rebuilt(small)
    assert differences(lost, first) == []
    assert (report.skipped, report.lost, report.notes, report.deduced) == ((), (), (), 0)
    assert report.objects == len(small.objects)
    second, again = rebuilt(small, "third.db")
    assert differences(first, second) == []
    assert again.in_doubt == report.in_doubt


def test_the_rebuilt_store_goes_on(small: SmallSite) -> None:
    """It opens for writing with the usual protocol, reads everything, stores more, repairs its gaps, and can be lost again."""
    small.live(3)
    lost = original(small)
    small.catalog.unlink()
    report = rebuild_catalog(small.path)
    assert (report.catalog, report.kept) == (str(small.catalog), None)
    assert small.catalog.stat().st_mode & 0o777 == 0o600
    with small.open() as store:
        assert differences(lost, snapshot(store.catalog)) == ["volumes"], "one more opening"
        small.read_everything(store)
    small.live(2)
    with small.open() as store:
        small.read_everything(store)
    before = original(small)
    assert differences(before, rebuilt(small)[0]) == []


def test_a_resend_of_what_has_committed_is_recognised(small: SmallSite) -> None:
    """Its key is on the volumes."""
    with (
        small.open() as store,
        store.session("N1") as session,
        session.begin(transaction=b"t" * 16) as txn,
    ):
        txn.put("once", b"only")
    small.catalog.unlink()
    rebuild_catalog(small.path)
    with small.open() as store, store.session("N1") as session:
        receipt = store.receipt(b"t" * 16)
        assert receipt is not None
        assert [stored.name for stored in receipt.objects] == [b"once"]
        txn = session.begin(transaction=b"t" * 16, attempt=2)
        txn.put("once", b"only")
        with pytest.raises(TransactionFailed) as refused:
            txn.commit()
        assert refused.value.reason == "duplicate"
        assert len(list(store.query_objects())) == 1


# ---- what may be there already -----------------------------------------------------------------------


def test_nothing_is_overwritten(small: SmallSite) -> None:
    """A catalog that stands there stays; with `force` it is kept under another name, whole, and readable."""
    small.live(1)
    lost = original(small)
    with pytest.raises(CatalogError, match="nothing is overwritten"):
        rebuild_catalog(small.path)
    report = rebuild_catalog(small.path, force=True)
    assert report.kept is not None
    with CatalogReader(report.kept) as kept:
        assert differences(lost, snapshot(kept)) == []
    assert differences(lost, original(small)) == []
    assert list(small.base.glob("*.new*")) == []


def test_the_log_of_a_lost_catalog_is_not_played_into_the_new_one(small: SmallSite) -> None:
    """Only the database was deleted; its write-ahead log lies there still."""
    small.live(1)
    log = small.base / "catalog.db-wal"
    with small.open() as store:
        small.put_some(store)
        shutil.copy(log, small.base / "log")
    lost = original(small)
    small.catalog.unlink()
    shutil.copy(small.base / "log", log)
    report = rebuild_catalog(small.path)
    assert report.kept is not None
    assert not log.exists() or not log.stat().st_size, "readers leave an empty one"
    assert differences(lost, original(small)) == []


def test_never_beside_a_writer(small: SmallSite) -> None:
    """The volumes' locks say so, and the catalog's where only that is left."""
    with small.open():
        with pytest.raises(VolumeBusy):
            rebuild_catalog(small.path, into=small.base / "second.db", lock_wait=0)
        assert not (small.base / "second.db").exists()
    with Catalog.open(small.catalog), pytest.raises(CatalogBusy):
        rebuild_catalog(small.path, force=True)
    assert [path.name for path in small.base.glob("*.replaced*")] == []
    assert [path.name for path in small.base.glob("*.new")] == []


# ---- volumes that are not there ------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["DISKPOOL", "COPYPOOL2", "ACTIVEDATAPOOL"])
@pytest.mark.parametrize("how", ["missing", "zeroed", "foreign", "directory"])
def test_without_a_pool(small: SmallSite, pool: str, how: str) -> None:
    """One pool's volume is gone: it is named, all objects are there, in their order, and the pool's are a gap that says why."""
    with small.open() as store:
        for _ in range(8):
            small.put_some(store)
    lost = original(small)
    (path,) = small.volumes(pool)
    damage(path, how)
    _, report = rebuilt(small)
    assert [(one.pool, one.path) for one in report.skipped] == [(pool, str(path))]
    assert (report.lost, report.deduced) == ((), 0)
    with CatalogReader(report.catalog) as catalog:
        assert list(catalog.objects()) == lost["objects"]
        assert list(catalog.objects(pool=pool)) == []
        gaps = catalog.gaps()
        assert {gap.pool for gap in gaps} == ({pool} if lost["per pool"][pool] else set())
        assert sum(gap.objects for gap in gaps) == sum(
            entry.active or pool != "ACTIVEDATAPOOL" for entry in lost["per pool"][pool]
        )
        assert all(str(path) in gap.reason for gap in gaps)


def damage(path: Path, how: str) -> None:
    """Make a volume unusable."""
    if how == "missing":
        path.rename(path.with_suffix(".away"))
        return
    data = bytearray(path.read_bytes())
    if how == "zeroed":
        data[:] = bytes(len(data))
    elif how == "directory":
        block = fmt.decode_superblock(data[: fmt.BLOCK], path=str(path), offset=0)
        start = block.half_offset(0)
        data[start : block.space_offset] = bytes(block.space_offset - start)
    else:
        block = fmt.decode_superblock(data[: fmt.BLOCK], path=str(path), offset=0)
        for copy in (0, 1):
            other = fmt.encode_superblock(replace(block, store=b"another store..."), copy)
            at = block.copy_offset(copy)
            data[at : at + len(other)] = other
    path.write_bytes(data)


def test_only_what_was_copied_later_is_left(small: SmallSite) -> None:
    """Primary and first copies are gone; the pool that was filled by repairs gives order and versions all the same."""
    with small.locked("COPYPOOL2"), small.open(lock_wait=0) as store:
        for _ in range(10):
            small.put_some(store)
    with small.open() as store:
        for primary in ("DISKPOOL", "TAPEPOOL"):
            backup_stgpool(store, primary, "COPYPOOL2")
    lost = original(small)
    for pool in POOLS:
        if pool != "COPYPOOL2":
            for path in small.volumes(pool):
                path.unlink()
    _, report = rebuilt(small)
    assert report.lost == ()
    assert report.deduced == 0  # every record says with which commit its aggregate came
    with CatalogReader(report.catalog) as catalog:
        values = [(e.node, e.kind, e.name, e.version, e.active, e.digest) for e in lost["objects"]]
        assert values == [
            (e.node, e.kind, e.name, e.version, e.active, e.digest) for e in catalog.objects()
        ]
        assert {gap.pool for gap in catalog.gaps()} >= {"DISKPOOL", "COPYPOOL1"}
    small.catalog.unlink()
    os.rename(report.catalog, small.catalog)
    with small.open(lock_wait=0) as store:
        for entry in store.query_objects():
            data = small.objects[entry.node, entry.name, entry.version]
            assert (
                store.get(entry.node, entry.name, kind=entry.kind, version=entry.version).read()
                == data
            )


def test_runs_of_members_are_what_is_left(small: SmallSite) -> None:
    """An active-data pool holds every other member of a transaction, in runs; all else is gone: these are readable."""
    names = [b"%02d" % n for n in range(12)]
    with small.locked("ACTIVEDATAPOOL"), small.open(lock_wait=0) as store:
        put(small, store, {name: small.rng.randbytes(3000) for name in names})
    with small.open() as store:
        put(small, store, dict.fromkeys(names[1::2], b"newer"))
        copy_activedata(store, "DISKPOOL", "ACTIVEDATAPOOL")
    for pool in POOLS[:-1]:
        for path in small.volumes(pool):
            path.unlink()
    small.catalog.unlink()
    report = rebuild_catalog(small.path)
    assert [(lost.known, lost.node) for lost in report.lost] == [(6, "N1")]
    with small.open(lock_wait=0) as store:
        assert [e.name for e in store.query_objects()] == names[::2] + names[1::2]
        for name in names:
            entry = store.catalog.find("N1", name)
            assert entry is not None
            assert entry.member == names.index(name) or name in names[1::2]
            assert store.get("N1", name).read() == (
                b"newer"
                if name in names[1::2]
                else small.objects["N1", name, names.index(name) + 1]
            )


def put(site: SmallSite, store: Any, objects: dict[bytes, bytes]) -> None:
    """One transaction of N1."""
    with store.session("N1") as session:
        for attempt in session.attempts():
            with attempt as txn:
                for name, data in objects.items():
                    txn.put(name, data)
    for name, data in objects.items():
        site.objects["N1", name, store.catalog.find("N1", name).version] = data


def test_a_damaged_footer_costs_nothing_while_a_copy_is_good(small: SmallSite) -> None:
    """Every footer of the primary is overwritten: names come from the copies, and nothing is lost."""
    with small.open() as store:
        for _ in range(6):
            small.put_some(store)
    lost = original(small)
    (path,) = small.volumes("DISKPOOL")
    data = bytearray(path.read_bytes())
    at = data.find(fmt.MAGIC + b"FOOT")
    while at >= 0:
        data[at + 200] ^= 0xFF
        at = data.find(fmt.MAGIC + b"FOOT", at + 1)
    path.write_bytes(data)
    found, report = rebuilt(small)
    assert differences(lost, found) == []
    assert report.lost == ()


def test_what_nobody_can_name_is_lost_and_said_so(small: SmallSite) -> None:
    """One aggregate's footers are damaged everywhere: it is listed, its space stays taken, and the store opens."""
    with small.open() as store:
        put(small, store, {b"gone": b"x" * 5000, b"too": b"y"})
        put(small, store, {b"here": b"z" * 5000})
        (entry,) = store.query_objects(name=b"gone")
        copies = store.catalog.copies(entry.aggregate)
        paths = {volume.uuid: volume.path for volume in store.pools.volumes()}
    for copy in copies:
        for place in copy.places:
            with open(paths[place.volume], "r+b") as file:
                file.seek(place.offset + fmt.HEAD_SIZE + place.data_length + 160)
                file.write(b"\xff" * 8)
    small.catalog.unlink()
    report = rebuild_catalog(small.path)
    (lost,) = report.lost
    assert (lost.aggregate, lost.node, lost.known) == (entry.aggregate, "N1", 0)
    with small.open() as store:
        assert [e.name for e in store.query_objects()] == [b"here"]
        assert store.get("N1", "here").read() == b"z" * 5000
        assert all(volume.writable for volume in store.pools.volumes())
        small.rng = random.Random(1)
        small.put_some(store)


# ---- killed --------------------------------------------------------------------------------------------

WRITER = """
import sys
from fanout.store import Store
with Store.open(sys.argv[1], flush_before_acknowledge=sys.argv[2] == "flush") as store, store.session("N1") as session:
    print("ready", flush=True)
    for number in range(2000):
        for attempt in session.attempts():
            with attempt as txn:
                for part in range(3):
                    txn.put(b"%d/%d" % (number, part), b"%d/%d." % (number, part) * 50)
        print(number, flush=True)
"""


@pytest.mark.parametrize("mode", ["plain", "flush"])
def test_killed_and_lost(small: SmallSite, mode: str) -> None:
    """Killed in the middle, and the catalog is lost: what is missing is listed as in doubt; with the option nothing is missing."""
    arguments = [sys.executable, "-c", WRITER, os.fspath(small.path), mode]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(small.rng.uniform(0.05, 0.25))  # the moment is what is random here
        writer.send_signal(signal.SIGKILL)
        acknowledged = {int(line) for line in writer.stdout.read().splitlines() if line.strip()}
    lost = {entry.name for entry in original(small)["objects"]}
    found, report = rebuilt(small)
    there = {entry.name for entry in found["objects"]}
    assert there <= lost
    doubtful = {name for one in report.in_doubt for name in one.names}
    assert lost - there <= doubtful
    if mode == "flush":
        assert {b"%d/%d" % (number, part) for number in acknowledged for part in range(3)} <= there


def test_records_that_never_reached_a_directory(
    small: SmallSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last commits left no record anywhere: all their spans are listed, none is visible, and nothing else differs."""
    with small.open() as store:
        put(small, store, {b"before": b"1" * 1000})
    before = original(small)
    with monkeypatch.context() as patch:
        patch.setattr(Scribe, "append", lambda self, entries: None)
        with small.open() as store:
            put(small, store, {b"tail": b"2" * 1000, b"before": b"3"})
    found, report = rebuilt(small)
    assert found["objects"] == before["objects"]
    assert {one.pool for one in report.in_doubt} == {
        "DISKPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL",
    }  # fmt: skip
    assert {one.names for one in report.in_doubt} == {(b"tail", b"before")}
    assert not any(one.committed for one in report.in_doubt)
    assert not report.complete


def test_records_that_reached_some_directories(
    small: SmallSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One volume has the record, the others not: it is committed; the others are gaps, and their spans are listed as such."""
    append = Scribe.append

    def only_the_primary(self: Scribe, entries: Any) -> None:
        volumes = {v.uuid for v in store.pools.volumes() if v.pool == "DISKPOOL"}
        append(self, [entry for entry in entries if entry.volume in volumes])

    with monkeypatch.context() as patch, small.open() as store:
        patch.setattr(Scribe, "append", only_the_primary)
        put(small, store, {b"one": b"1" * 1000})
    lost = original(small)
    found, report = rebuilt(small)
    assert found["objects"] == lost["objects"]
    assert {gap[1] for gap in found["gaps"]} == {"COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"}
    assert {one.pool for one in report.in_doubt} == {gap[1] for gap in found["gaps"]}
    assert all(one.committed for one in report.in_doubt)


def test_deletes_win(small: SmallSite) -> None:
    """One volume says that an aggregate was deleted, the others have not heard of it: it is gone, its key is not."""
    with small.open() as store:
        put(small, store, {b"gone": b"1" * 1000})
        put(small, store, {b"stays": b"2" * 1000})
    with small.open() as store:  # whose scribe has nothing to write
        entry = store.catalog.find("N1", b"gone")
        assert entry is not None
        aggregate = store.catalog.aggregate(entry.aggregate)
        assert aggregate is not None
        volume = next(v for v in store.pools.volumes() if v.pool == "COPYPOOL2")
        record = DirectoryRecord(
            csn=store.catalog.last_csn(),
            op=Op.DELETE,
            aggregate=entry.aggregate,
            transaction=aggregate.transaction,
            attempt=aggregate.attempt,
            node="N1",
        )
        assert volume.written(store.engine.run(volume.prepare([record])))
        volume.flush()
    found, report = rebuilt(small)
    assert [e.name for e in found["objects"]] == [b"stays"]
    assert (report.lost, report.in_doubt) == ((), ())
    with CatalogReader(report.catalog) as catalog:
        assert catalog.committed(aggregate.transaction) is not None


def test_an_audit_does_not_change_the_order(small: SmallSite) -> None:
    """Its commit changes the record of an old version; which version is the newer one stays."""
    with (
        small.locked("COPYPOOL1"),
        small.locked("COPYPOOL2"),
        small.open(lock_wait=0) as store,
        store.session("N2") as session,
    ):
        for data in (b"old", b"new"):
            for attempt in session.attempts():
                with attempt as txn:
                    txn.put(b"a", data)
                    txn.put(b"other", data * 2000)
    (volume,) = small.volumes("DISKPOOL")
    content = bytearray(volume.read_bytes())
    content[content.find(b"oldold") + 100] ^= 0xFF
    volume.write_bytes(content)
    with small.open() as store:
        assert audit_stgpool(store, "DISKPOOL", fix=True).marked == 1
    lost, (found, _) = original(small), rebuilt(small)
    assert [e.version for e in lost["active"]] == [e.version for e in found["active"]]
    assert differences(lost, found) == ["gaps"], "since when only the lost catalog knew"


def test_memory_does_not_grow_with_the_objects(small: SmallSite) -> None:
    """Members are read one transaction at a time, and not kept: of 6,000 more objects a rebuild holds not even the names at once."""
    peaks = []
    for first, last in ((0, 4), (4, 16)):
        with small.open() as store:
            for number in range(first, last):
                put(small, store, {b"%04d/%04d" % (number, n): b"x" for n in range(500)})
        tracemalloc.start()
        try:
            report = rebuild_catalog(small.path, into=small.base / f"{last}.db")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert report.objects == last * 500
    assert peaks[1] - peaks[0] < 6_000 * 20, peaks


def test_a_footer_is_not_read_for_each_empty_object(
    small: SmallSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files without bytes by the hundred lie at one place: which copy holds them its footer says once for all."""
    with small.open() as store:
        put(small, store, {b"%03d" % n: b"" for n in range(300)})
    reads = 0
    read_span = Volume.read_span

    def counted(self: Volume, *arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return read_span(self, *arguments, **options)

    monkeypatch.setattr(Volume, "read_span", counted)
    again, report = rebuilt(small)
    assert (report.objects, differences(original(small), again)) == (300, [])
    assert reads < 20

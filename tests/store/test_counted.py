"""Directory records say how many members an aggregate was stored with: what a rebuild makes of that.

What could break: a loss that is called none, or an alarm where nothing is lost; something deleted that comes back under another's number;
a number from a medium that is believed, and takes memory.
"""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest

from fanout import audit_stgpool, check_store, copy_activedata, rebuild_catalog
from fanout import format as fmt
from fanout.catalog import CatalogReader
from fanout.store import Store
from tests import independent_reader
from tests.hostile import forge

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fanout.rebuild import RebuildReport

CONFIG = """
[store]
catalog = "catalog.db"
[engine]
memory = "32 MiB"
[device_classes.disk]
type = "disk"
[pools.P]
type = "primary"
device_class = "disk"
volumes = [{ path = "P0.vol", size = "1 MiB" }, { path = "P1.vol", size = "1 MiB" }]
active_data_pools = ["A"]
[pools.A]
type = "active-data"
device_class = "disk"
volumes = [{ path = "A.vol", size = "1 MiB" }]
[domains.D]
destination = "P"
active_destinations = ["A"]
[nodes.N1]
domain = "D"
[domains.BARE]
destination = "P"
[nodes.N2]
domain = "BARE"
"""


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """The directory of a store with two small volumes for N2, whose objects no other pool gets."""
    (tmp_path / "fanout.toml").write_text(CONFIG)
    Store.create(tmp_path / "fanout.toml")
    yield tmp_path
    for path in tmp_path.glob("*.vol"):
        path.unlink()


def opened(base: Path) -> Store:
    return Store.open(base / "fanout.toml")


def put(store: Store, node: str, objects: Mapping[str, bytes]) -> None:
    with store.session(node) as session:
        for attempt in session.attempts():
            with attempt as transaction:
                for name, data in objects.items():
                    transaction.put(name, data)


def rebuilt(base: Path) -> tuple[RebuildReport, dict[bytes, tuple[int, int]]]:
    """In the place of the catalog: the report, and version and member of every object by name."""
    for path in base.glob("catalog.db*"):
        path.unlink()
    report = rebuild_catalog(base / "fanout.toml")
    with CatalogReader(report.catalog) as catalog:
        assert catalog.verify() == []
        return report, {e.name: (e.version, e.member) for e in catalog.objects()}


def there(store: Store) -> dict[bytes, tuple[int, int]]:
    return {entry.name: (entry.version, entry.member) for entry in store.query_objects()}


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(8)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in old))


def rot(base: Path, store: Store, name: str, *, footer: bool) -> None:
    """Damage what serves the first byte of an object in the primary pool: its span's footer, or the byte."""
    (entry,) = store.query_objects(name=name.encode())
    copy = next(c for c in store.catalog.copies(entry.aggregate) if c.pool == "P")
    found = copy.served(entry.start)
    assert found is not None
    place = found[0]
    (volume,) = (v for v in store.pools.volumes() if v.uuid == place.volume)
    at = place.data_length + 160 if footer else entry.start - place.data_start + 10
    flip(base / volume.path, place.offset + fmt.HEAD_SIZE + at)


# ---- what is lost, and what is not -------------------------------------------------------------------


@pytest.mark.parametrize("deleted", [True, False])
def test_whether_what_an_audit_has_left_is_all(base: Path, *, deleted: bool) -> None:
    """A footer rots, and an object below it: the audit writes the good one anew, and gives the other up, which is deleted or not."""
    with opened(base) as store:
        put(store, "N2", {"good": b"1" * 5000, "bad": b"2" * 5000})
        rot(base, store, "bad", footer=False)
        rot(base, store, "good", footer=True)
    with opened(base) as store:
        report = audit_stgpool(store, "P", fix=True)
        assert (report.marked, report.mended) == (1, 1)
        if deleted:
            store.delete("N2", "bad")
        good = there(store)[b"good"]
    made, found = rebuilt(base)
    assert found == {b"good": good}
    assert len(made.lost) == (not deleted)


def test_an_empty_object_that_is_lost_leaves_no_hole(base: Path) -> None:
    """An active-data pool has but the active ones of an aggregate, and nothing in their bytes says that there was another."""
    hidden = (base / "A.vol").rename(base / "hidden")
    with opened(base) as store:
        put(store, "N1", {"stays": b"1" * 5000, "empty": b""})
        put(store, "N1", {"empty": b"new"})
    hidden.rename(base / "A.vol")
    with opened(base) as store:
        copy_activedata(store, "P", "A")
        (aggregate,) = {entry.aggregate for entry in store.query_objects(name=b"stays")}
    for path in base.glob("P?.vol"):
        path.rename(path.with_suffix(".away"))
    made, found = rebuilt(base)
    assert found.keys() == {b"stays", b"empty"}
    assert [lost.aggregate for lost in made.lost] == [aggregate]


def test_what_was_deleted_takes_nobodys_number(base: Path, rng: random.Random) -> None:
    """Two audits of a pool that alone holds an aggregate: what its records list is less than what its spans name, and one of it is deleted."""
    with opened(base) as store:
        for number in range(2):  # so that the large one lies on both volumes
            put(store, "N2", {f"fill{number}": bytes(330_000)})
        sizes = {"m0": 190_000, "m1": 30_000, "m2": 30_000, "m3": 30_000}
        put(store, "N2", {name: rng.randbytes(size) for name, size in sizes.items()})
        store.delete("N2", ["fill0", "fill1", "m1"])
        rot(base, store, "m0", footer=True)
    with opened(base) as store:
        assert audit_stgpool(store, "P", fix=True).mended == 1
        rot(base, store, "m3", footer=False)
    with opened(base) as store:
        assert audit_stgpool(store, "P", fix=True).marked == 1
        known = there(store)
        assert known.keys() == {b"m0", b"m2", b"m3"}
    made, found = rebuilt(base)
    assert found == known
    assert len(made.lost) == 1
    assert made.gaps == 1


# ---- a disk that is away at a rebuild, and comes back -------------------------------------------------


def test_what_is_stored_meanwhile_stays_newer(base: Path) -> None:
    """The disk knows of commits and versions that the new catalog has not heard of, and would give again."""
    with opened(base) as store:
        for number in range(4):
            put(store, "N2", {"x": b"old%d" % number, f"other{number}": b""})
        known = [(e.name, e.version) for e in store.query_objects()]
        held = {v.path: v.live for v in store.query_volumes() if v.pool == "P"}
    (path,) = (base / path for path, live in held.items() if live)
    hidden = path.rename(base / "hidden")
    made, found = rebuilt(base)
    assert (len(made.skipped), found) == (1, {})
    with opened(base) as store:
        put(store, "N2", {"x": b"new"})
    hidden.rename(path)
    rebuilt(base)
    with opened(base) as store:
        *old, new = [(e.name, e.version) for e in store.query_objects()]
        assert (sorted(old), new[0]) == (sorted(known), b"x")
        assert store.get("N2", "x").read() == b"new"
        assert store.delete("N2", ["x"], keep=1).objects == 4
        assert store.get("N2", "x").read() == b"new"
    assert check_store(base / "fanout.toml").ok


def test_a_deletion_spares_what_the_catalog_cannot_name(base: Path, rng: random.Random) -> None:
    """A catalog is made without a disk, the objects that it knows of an aggregate are deleted, and the disk is back."""
    with opened(base) as store:
        large, small = rng.randbytes(400_000), rng.randbytes(60_000)
        put(store, "N2", {"goes": large, "away": small, "on both": small})
        known = there(store)
        paths = {volume.uuid: base / volume.path for volume in store.pools.volumes()}
        (aggregate,) = {entry.aggregate for entry in store.query_objects()}
        (copy,) = store.catalog.copies(aggregate)
    assert [paths[place.volume].name for place in copy.places] == ["P0.vol", "P1.vol", "P0.vol"]
    hidden = (base / "P1.vol").rename(base / "hidden")
    made, found = rebuilt(base)
    assert (len(made.lost), list(found)) == (1, [b"goes"])
    with opened(base) as store:
        report = store.delete("N2", "goes")
        assert (report.objects, report.freed_bytes) == (1, 0)
        assert there(store) == {}
    opened(base).close()
    hidden.rename(base / "P1.vol")
    made, found = rebuilt(base)
    assert made.lost == ()
    assert found == {name: known[name] for name in (b"away", b"on both")}
    with opened(base) as store:
        for name in ("away", "on both"):
            assert store.get("N2", name).read() == small


def test_what_holds_nothing_that_is_left_is_freed_and_forgotten(base: Path) -> None:
    """As before, but what the catalog cannot name was never in the pool whose last member goes: its space is free, and a check is content."""
    hidden = (base / "A.vol").rename(base / "hidden")
    with opened(base) as store:
        put(store, "N1", {"stays": b"1" * 5000, "empty": b""})
        put(store, "N1", {"empty": b"new"})
    hidden.rename(base / "A.vol")
    with opened(base) as store:
        copy_activedata(store, "P", "A")
    for path in base.glob("P?.vol"):
        path.rename(path.with_suffix(".away"))
    Store.extend(base / "fanout.toml")
    made, _ = rebuilt(base)
    assert len(made.lost) == 1
    with opened(base) as store:
        assert store.delete("N1", ["stays", "empty"]).freed_bytes > 0
        assert list(store.catalog.aggregates()) == []
        assert store.query_gaps() == []
    assert check_store(base / "fanout.toml").ok


# ---- the number itself -------------------------------------------------------------------------------


def test_every_record_says_it(base: Path) -> None:
    """Those of commits, of repairs and of deletions; read by the format page alone."""
    hidden = (base / "A.vol").rename(base / "hidden")
    with opened(base) as store:
        put(store, "N1", {"a": b"1", "b": b"2", "c": b"3"})
        (aggregate,) = {entry.aggregate for entry in store.query_objects()}
    hidden.rename(base / "A.vol")
    with opened(base) as store:
        copy_activedata(store, "P", "A")
        store.delete("N1", "b")
    said = {}
    for path in base.glob("*.vol"):
        with path.open("rb") as file:
            records = independent_reader.Volume(file).records
            if aggregate in records:
                said[path.name] = {span["objects"] for span in records[aggregate]["spans"]}
    assert len(said) == 2
    assert set(map(tuple, said.values())) == {(3,)}


def claim(path: Path, count: int) -> None:
    """Let every record of a directory say that its aggregate had so many members."""
    data = bytearray(path.read_bytes())
    at = data.find(b"DIRB") - 8
    while at >= 0:
        block = data[at : at + 4096]
        for record, _ in forge.records(block):
            first = record + 88 + block[record + 7]
            for span in range(forge.number(block, record + 64, 4)):
                forge.put(block, first + 48 * span + 4, 4, count)
        forge.seal(block)
        data[at : at + 4096] = block
        at = data.find(b"DIRB", at + 16) - 8
    path.write_bytes(data)


def test_a_number_that_cannot_be_takes_no_memory(base: Path) -> None:
    """Four billion members, of which two are there: named as lost, read, audited, deleted."""
    with opened(base) as store:
        put(store, "N2", {"a": b"1" * 5000, "b": b"2" * 5000})
    for path in base.glob("*.vol"):
        claim(path, (1 << 32) - 1)
    tracemalloc.start()
    try:
        made, found = rebuilt(base)
        assert len(made.lost) == 1
        assert found.keys() == {b"a", b"b"}
        with opened(base) as store:
            assert store.get("N2", "a").read() == b"1" * 5000
            rot(base, store, "b", footer=False)
            assert audit_stgpool(store, "P", fix=True).marked == 1
            store.delete("N2", "b")
            assert there(store).keys() == {b"a"}
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [0, 1])
def test_a_number_that_is_not_known_or_too_small_costs_nothing(base: Path, count: int) -> None:
    """Records of earlier writers do not say it, and a catalog that was made without a volume may have known fewer."""
    with opened(base) as store:
        put(store, "N1", {"a": b"1" * 5000, "b": b"2" * 5000, "c": b""})
        known = there(store)
    for path in base.glob("*.vol"):
        claim(path, count)
    made, found = rebuilt(base)
    assert (made.lost, found) == ((), known)

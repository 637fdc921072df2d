"""What the catalog says after deletions: of a part of an aggregate, of all of it, and when its regions are given back.

What could break: a count that still has what is gone; a region that is free too early, or never; a gap of nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fanout.catalog import (
    Catalog,
    CatalogReader,
    Commit,
    Deletion,
    MemberSet,
    NewCopy,
    NewGap,
    Region,
    Repair,
    SpentCopy,
)
from fanout.errors import CatalogError

if TYPE_CHECKING:
    from tests.catalog.conftest import Sample

NAMES = (b"a", b"b", b"c", b"d")


def only(catalog: CatalogReader) -> bytes:
    (entry,) = catalog.aggregates()
    return entry.aggregate


def deletion(catalog: CatalogReader, members: list[int] | None) -> Deletion:
    """Of these members of the only aggregate, each 100 bytes long; None: of all."""
    entry = catalog.aggregate(only(catalog))
    assert entry is not None
    volumes = {place.volume for copy in catalog.copies(entry.aggregate) for place in copy.places}
    some = None if members is None else entry.erased | MemberSet.of(members)
    return Deletion(entry, some, 100 * len(some or ()), tuple(volumes))


def erase(catalog: Catalog, sample: Sample, members: list[int] | None) -> int:
    (csn,) = catalog.commit([Commit(sample.id(), 1, deletions=(deletion(catalog, members),))])
    return csn


def names(catalog: CatalogReader) -> list[bytes]:
    return [entry.name for entry in catalog.objects()]


def test_some_members(catalog: Catalog, sample: Sample) -> None:
    """They are in no answer and in no count; the others keep their numbers; the copies have changed."""
    gap = NewGap("ACTIVEDATAPOOL", "was away", 5)
    catalog.commit([sample.commit(NAMES, gaps=[gap])])
    versions = [entry.version for entry in catalog.objects()]
    assert erase(catalog, sample, [1]) == 2
    assert erase(catalog, sample, [2]) == 3
    aggregate = only(catalog)
    assert names(catalog) == [b"a", b"d"]
    assert [m.member for m in catalog.members(aggregate)] == [0, 3]
    assert [entry.version for entry in catalog.objects()] == [versions[0], versions[3]]
    entry = catalog.aggregate(aggregate)
    assert entry is not None
    assert (entry.objects, entry.erased, entry.erased_bytes) == (4, MemberSet(((1, 2),)), 200)
    assert catalog.held_on("DISKPOOL") == (2, 200)
    assert {(o.pool, o.objects, o.bytes) for o in catalog.occupancy()} == {
        ("DISKPOOL", 2, 200),
        ("COPYPOOL1", 2, 200),
    }
    (gap_entry,) = catalog.gaps()
    assert (gap_entry.objects, gap_entry.bytes) == (2, 200)
    volume = sample.volumes["COPYPOOL1"].volume
    assert catalog.held_csns(volume) == {aggregate: 3}
    (held,) = catalog.held_spans(volume, [aggregate])
    assert (held.csn, held.committed, held.version) == (3, 1, versions[0])
    assert held.erased == MemberSet(((1, 2),))
    assert catalog.dead() == []


def test_a_gap_of_which_nothing_is_left_is_gone(catalog: Catalog, sample: Sample) -> None:
    gaps = [NewGap("ACTIVEDATAPOOL", "some", 0, MemberSet(((1, 2),)))]
    catalog.commit([sample.commit(NAMES, gaps=gaps)])
    erase(catalog, sample, [2])
    assert [gap.objects for gap in catalog.gaps()] == [1]
    erase(catalog, sample, [1])
    assert catalog.gaps(include_empty=True) == []


@pytest.mark.parametrize("lost", [None, 3])
def test_a_copy_that_lists_all_that_is_left_lacks_nothing(
    catalog: Catalog, sample: Sample, lost: int | None
) -> None:
    """A repair after a deletion names its members, also when these are all that are left: nobody looks through them again and again."""
    catalog.commit([sample.commit(NAMES, pools=("DISKPOOL",))])
    erase(catalog, sample, [1])
    aggregate, held = only(catalog), MemberSet.of({0, 2, 3} - {lost})
    copy = NewCopy("COPYPOOL1", (sample.place("COPYPOOL1", data_length=400),), held)
    catalog.commit([Commit(sample.id(), 1, repairs=(Repair(aggregate, "COPYPOOL1", copy),))])
    found = [e.aggregate for e in catalog.lacking("DISKPOOL", "COPYPOOL1", active_only=False)]
    assert found == ([] if lost is None else [aggregate])


def test_all_of_it(catalog: Catalog, sample: Sample) -> None:
    """Only its regions are left, which belong to nobody else until they are buried."""
    commit = sample.commit(NAMES, gaps=[NewGap("ACTIVEDATAPOOL", "away")])
    catalog.commit([commit])
    aggregate, before = only(catalog), {v: catalog.live_regions(v) for v in volumes(sample)}
    erase(catalog, sample, [0])
    csn = erase(catalog, sample, None)
    assert (names(catalog), list(catalog.aggregates()), catalog.occupancy()) == ([], [], [])
    assert catalog.gaps(include_empty=True) == []
    assert catalog.aggregate(aggregate) is None
    assert (catalog.copies(aggregate), catalog.members(aggregate)) == ([], [])
    assert catalog.held_on("DISKPOOL") == (0, 0)
    assert not list(catalog.lacking("DISKPOOL", "ACTIVEDATAPOOL", active_only=False))
    found = catalog.committed(commit.transaction)
    assert found is not None
    assert found.aggregates == ()
    assert {v: catalog.live_regions(v) for v in volumes(sample)} == before
    assert catalog.waiting_bytes() == sum(r.length for regions in before.values() for r in regions)
    for pool in ("DISKPOOL", "COPYPOOL1"):
        (dead,) = catalog.dead(sample.volumes[pool].volume)
        assert (dead.aggregate, dead.csn, dead.node) == (aggregate, csn, "N1")
    assert catalog.dead(sample.volumes["ACTIVEDATAPOOL"].volume) == []


def volumes(sample: Sample) -> list[bytes]:
    return [entry.volume for entry in sample.volumes.values()]


def test_burying(catalog: Catalog, sample: Sample) -> None:
    """Volume by volume; with the last one the aggregate is forgotten. What nobody has told of stays."""
    catalog.commit([sample.commit()])
    aggregate = only(catalog)
    disk, copy = (sample.volumes[pool].volume for pool in ("DISKPOOL", "COPYPOOL1"))
    regions = {volume: catalog.live_regions(volume) for volume in (disk, copy)}
    erase(catalog, sample, None)
    assert catalog.bury({disk: [sample.id()]}) == ({}, [])
    assert catalog.bury({disk: [aggregate]}) == ({disk: [regions[disk][0].offset]}, [])
    assert (catalog.live_regions(disk), catalog.live_regions(copy)) == ([], regions[copy])
    assert catalog.bury({disk: [aggregate]}) == ({}, [])
    with CatalogReader(catalog.path) as reader:
        assert [one.aggregate for one in reader.dead()] == [aggregate]
    assert catalog.bury({copy: [aggregate]}) == ({copy: [regions[copy][0].offset]}, [aggregate])
    assert (catalog.dead(), catalog.waiting_bytes()) == ([], 0)


def spent_site(catalog: Catalog, sample: Sample) -> tuple[bytes, bytes]:
    """An aggregate of which COPYPOOL1 held b and c, which are deleted; and the pool's volume."""
    commit = sample.commit(NAMES, pools=("DISKPOOL",))
    catalog.commit([commit])
    aggregate = only(catalog)
    copy = NewCopy("COPYPOOL1", (sample.place("COPYPOOL1", data_length=400),), MemberSet.of([1, 2]))
    catalog.commit([Commit(sample.id(), 1, repairs=(Repair(aggregate, "COPYPOOL1", copy),))])
    assert catalog.spent() == []
    erase(catalog, sample, [1])
    assert catalog.spent() == []
    erase(catalog, sample, [2])
    return aggregate, sample.volumes["COPYPOOL1"].volume


def test_a_spent_copy(catalog: Catalog, sample: Sample) -> None:
    """All that it held was deleted: its volume keeps it until it is buried; then nothing is left of it, and the aggregate lives on."""
    aggregate, volume = spent_site(catalog, sample)
    ((offset, length),) = catalog.live_regions(volume)
    assert catalog.spent() == [SpentCopy(aggregate, "COPYPOOL1", length)]
    assert catalog.spent([aggregate, sample.id()]) == catalog.spent()
    assert catalog.spent([]) == catalog.spent([sample.id()]) == []
    assert catalog.waiting_bytes() == length
    assert catalog.bury({volume: [aggregate]}) == ({}, [])  # it is not dead
    assert catalog.bury({}, {volume: [aggregate]}) == ({volume: [offset]}, [])
    assert (catalog.spent(), catalog.live_regions(volume), catalog.waiting_bytes()) == ([], [], 0)
    assert [copy.pool for copy in catalog.copies(aggregate)] == ["DISKPOOL"]
    assert names(catalog) == [b"a", b"d"]


def test_a_living_copy_is_not_buried(catalog: Catalog, sample: Sample) -> None:
    """It could only be a mistake."""
    catalog.commit([sample.commit()])
    aggregate, volume = only(catalog), sample.volumes["COPYPOOL1"].volume
    before = catalog.live_regions(volume)
    assert catalog.bury({}, {volume: [aggregate]}) == ({}, [])
    assert catalog.live_regions(volume) == before


def test_a_dead_region_is_nobody_elses(catalog: Catalog, sample: Sample) -> None:
    """Its place can be named again only when it is buried."""
    catalog.commit([sample.commit()])
    aggregate = only(catalog)
    erase(catalog, sample, None)
    volume = sample.volumes["DISKPOOL"].volume
    (region,) = catalog.live_regions(volume)
    catalog.bury({volume: [aggregate]})
    sample.next_offset = region.offset
    catalog.commit([sample.commit(pools=["DISKPOOL"])])
    assert catalog.live_regions(volume) == [Region(*region)]


def test_versions_are_not_given_again(catalog: Catalog, sample: Sample) -> None:
    catalog.commit([sample.commit([b"a"])])
    (first,) = catalog.objects()
    erase(catalog, sample, None)
    catalog.commit([sample.commit([b"a"])])
    (second,) = catalog.objects()
    assert second.version > first.version
    assert second.active


def test_beyond_the_newest(catalog: Catalog, sample: Sample) -> None:
    for _ in range(4):
        catalog.commit([sample.commit([b"a", b"b"])])
    catalog.commit([sample.commit([b"b"], node="N2")])
    found = [entry.version for entry in catalog.objects(node="N1", beyond=3)]
    assert found == [1, 2]
    assert [e.version for e in catalog.objects(node="N1", name=b"b", beyond=1)] == [2, 4, 6]


def test_a_repair_of_what_is_gone_is_refused_and_harms_nothing(
    catalog: Catalog, sample: Sample
) -> None:
    """It could only be a mistake: whoever repairs holds off deletions."""
    catalog.commit([sample.commit(pools=["DISKPOOL"])])
    aggregate = only(catalog)
    erase(catalog, sample, None)
    disk = sample.volumes["DISKPOOL"].volume
    catalog.bury({disk: [aggregate]})
    place = sample.place("COPYPOOL1", data_length=200)
    repair = Repair(aggregate, "COPYPOOL1", NewCopy("COPYPOOL1", (place,)))
    with pytest.raises(CatalogError, match="nothing was committed"):
        catalog.commit([Commit(sample.id(), 1, repairs=(repair,))])
    assert catalog.live_regions(sample.volumes["COPYPOOL1"].volume) == []


def test_a_deletion_in_doubt_is_settled_by_its_key(catalog: Catalog, sample: Sample) -> None:
    """As any commit: the fence finds it, or forbids it."""
    catalog.commit([sample.commit()])
    done = Commit(sample.id(), 1, deletions=(deletion(catalog, [0]),))
    (csn,) = catalog.commit([done])
    never = Commit(sample.id(), 1, deletions=(deletion(catalog, None),))
    keys = [(done.transaction, 1), (never.transaction, 1)]
    assert catalog.fence(keys) == {keys[0]: csn, keys[1]: None}
    with pytest.raises(CatalogError):
        catalog.commit([never])
    assert names(catalog) == [b"b"]


def test_forgetting_reads_no_table_of_objects(catalog: Catalog, sample: Sample) -> None:
    """Foreign keys would look for members of each aggregate that goes, one by one through all objects."""
    for _ in range(20):
        catalog.commit([sample.commit([b"%d" % n for n in range(500)])])
    entries = list(catalog.aggregates())
    disk, copy = (sample.volumes[pool].volume for pool in ("DISKPOOL", "COPYPOOL1"))
    gone = [Deletion(entry, None, 0, (disk, copy)) for entry in entries[:10]]
    catalog.commit([Commit(sample.id(), 1, deletions=tuple(gone))])
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    catalog._writes.set_progress_handler(step, 100)
    told = [entry.aggregate for entry in entries[:10]]
    offsets, forgotten = catalog.bury({disk: told, copy: told})
    catalog._writes.set_progress_handler(None, 0)
    assert sorted(forgotten) == sorted(told)
    assert sum(map(len, offsets.values())) == 20
    assert steps * 100 < 5000 * 10, "as if every object had been looked at, for every aggregate"
    (on,) = catalog._writes.execute("PRAGMA foreign_keys").fetchone()
    assert on == 1

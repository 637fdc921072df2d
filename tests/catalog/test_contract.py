"""What any catalog must do, whatever database stands behind the door.

A catalog that loses, repeats or half-shows a commit loses data: every test here tries to make it do so. Another implementation
subclasses `CatalogContract` and gives its own fixtures `sample` and `catalog`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fanout.catalog import Commit, MemberSet, NewCopy, NewGap, Repair
from fanout.errors import CatalogError
from fanout.types import ObjectKind

if TYPE_CHECKING:
    from fanout.catalog import Catalog
    from tests.catalog.conftest import Sample


class CatalogContract:
    """The door's promises."""

    # ---- commits ---------------------------------------------------------------------------------

    def test_a_commit_is_there_with_everything(self, sample: Sample, catalog: Catalog) -> None:
        """Names of any bytes, places, digests, copies and gaps come back as they went in."""
        names = [b"\xff\x00\xfe", "größe/é".encode(), b"x" * 1024, b"'; DROP TABLE object; --"]
        gap = NewGap("ACTIVEDATAPOOL", "secondary: EIO", 5)
        commit = sample.commit(names, gaps=[gap])
        assert catalog.commit([commit]) == [1]

        aggregate = commit.aggregates[0]
        members = catalog.members(aggregate.aggregate)
        assert [(m.name, m.start, m.length, m.digest) for m in members] == [
            tuple(member) for member in aggregate.members
        ]
        copies = {copy.pool: copy for copy in catalog.copies(aggregate.aggregate)}
        assert list(copies) == ["DISKPOOL", "COPYPOOL1"]
        assert [copies[copy.pool].places for copy in aggregate.copies] == [
            copy.places for copy in aggregate.copies
        ]
        found = catalog.find("N1", names[0])
        assert found is not None
        assert (found.length, found.primary, found.aggregate) == (
            100,
            "DISKPOOL",
            aggregate.aggregate,
        )
        (row,) = catalog.gaps()
        assert (row.pool, row.reason, row.errno, row.objects, row.bytes) == (
            "ACTIVEDATAPOOL",
            "secondary: EIO",
            5,
            4,
            400,
        )
        entry = catalog.committed(commit.transaction)
        assert entry is not None
        assert (entry.attempt, entry.csn, entry.required) == (1, 1, ("DISKPOOL", "COPYPOOL1"))
        assert [a.aggregate for a in entry.aggregates] == [aggregate.aggregate]

    def test_a_group_is_all_or_nothing(self, sample: Sample, catalog: Catalog) -> None:
        """One bad member of a group takes the others with it, and nothing stays behind."""
        good, bad = sample.commit(), sample.commit()
        wrong = Commit(
            bad.transaction,
            1,
            "N1",
            ObjectKind.BACKUP,
            "NOSUCHPOOL",
            ("NOSUCHPOOL",),
            tuple(type(a)(a.aggregate, "NOSUCHPOOL", a.members, a.copies) for a in bad.aggregates),
        )
        with pytest.raises(CatalogError, match="nothing was committed"):
            catalog.commit([good, wrong])
        assert list(catalog.objects()) == []
        assert catalog.committed(good.transaction) is None
        assert catalog.store().csn == 0
        assert catalog.commit([good]) == [1]
        assert [entry.version for entry in catalog.objects()] == [1, 2]

    def test_numbers_ascend_without_holes(self, sample: Sample, catalog: Catalog) -> None:
        """Commit numbers order all commits; versions never repeat, also after a failed group and a new opening."""
        assert catalog.commit([sample.commit(), sample.commit()]) == [1, 2]
        with pytest.raises(CatalogError):
            catalog.commit([sample.commit(gaps=[NewGap("NOSUCHPOOL", "EIO")])])
        assert catalog.commit([sample.commit()]) == [3]
        catalog.close()
        with sample.open() as again:
            assert again.commit([sample.commit()]) == [4]
            assert [entry.version for entry in again.objects()] == list(range(1, 9))

    def test_a_transaction_commits_once(self, sample: Sample, catalog: Catalog) -> None:
        """A resend of a committed transaction, as the same or a later attempt, changes nothing."""
        first = sample.commit()
        catalog.commit([first])
        for attempt in (1, 2):
            resend = sample.commit(transaction=first.transaction, attempt=attempt)
            with pytest.raises(CatalogError):
                catalog.commit([resend])
        assert len(list(catalog.objects())) == 2
        entry = catalog.committed(first.transaction)
        assert entry is not None
        assert entry.attempt == 1

    def test_two_spans_never_share_a_place(self, sample: Sample, catalog: Catalog) -> None:
        """Even if an allocator went mad, the catalog does not write it down."""
        catalog.commit([sample.commit()])
        sample.next_offset = 4096
        with pytest.raises(CatalogError):
            catalog.commit([sample.commit()])

    @pytest.mark.parametrize("name", [b"", b"x" * 1025])
    def test_names_have_bounds(self, sample: Sample, catalog: Catalog, name: bytes) -> None:
        """A wrong length would shift every name behind it."""
        with pytest.raises(ValueError, match="name of"):
            catalog.commit([sample.commit([b"fine", name])])
        assert list(catalog.objects()) == []

    # ---- the fence -----------------------------------------------------------------------------

    def test_a_fence_settles_what_has_committed(self, sample: Sample, catalog: Catalog) -> None:
        """The key is there: the fence must say so, and not take it."""
        commit = sample.commit()
        (csn,) = catalog.commit([commit])
        key = (commit.transaction, 1)
        assert catalog.fence([key]) == {key: csn}
        assert catalog.fence([key]) == {key: csn}
        assert catalog.committed(commit.transaction) is not None

    def test_a_fenced_attempt_never_commits(self, sample: Sample, catalog: Catalog) -> None:
        """The key is not there: whatever arrives late finds it taken. A later attempt is free to commit."""
        late = sample.commit()
        key = (late.transaction, 1)
        assert catalog.fence([key]) == {key: None}
        with pytest.raises(CatalogError):
            catalog.commit([late])
        assert list(catalog.objects()) == []
        again = sample.commit(transaction=late.transaction, attempt=2)
        assert catalog.commit([again]) == [1]

    # ---- versions ------------------------------------------------------------------------------

    def test_the_newest_version_is_active(self, sample: Sample, catalog: Catalog) -> None:
        """Same name twice, also within one transaction, of two nodes and of two kinds."""
        catalog.commit([sample.commit([b"a", b"b", b"a"])])
        catalog.commit([sample.commit([b"a"], node="N2")])
        catalog.commit([sample.commit([b"a"], kind=ObjectKind.ARCHIVE)])
        active = {(e.node, e.kind, e.name, e.version) for e in catalog.objects(active_only=True)}
        assert active == {
            ("N1", ObjectKind.BACKUP, b"b", 2),
            ("N1", ObjectKind.BACKUP, b"a", 3),
            ("N2", ObjectKind.BACKUP, b"a", 4),
            ("N1", ObjectKind.ARCHIVE, b"a", 5),
        }
        newest = catalog.find("N1", b"a", kind=ObjectKind.BACKUP)
        assert newest is not None
        assert (newest.version, newest.active) == (3, True)
        older = catalog.find("N1", b"a", version=1)
        assert older is not None
        assert not older.active
        assert catalog.find("N1", b"a", version=4) is None, "another node's version"
        assert catalog.find("N3", b"a") is None

    def test_listing_goes_over_pages(
        self, sample: Sample, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing twice, nothing left out, in the order of storing."""
        monkeypatch.setattr("fanout.catalog.reader.PAGE_ROWS", 7)
        catalog.commit([sample.commit([b"%d" % n for n in range(21)])])
        assert [entry.version for entry in catalog.objects()] == list(range(1, 22))
        assert [e.version for e in catalog.objects(name=b"20")] == [21]

    # ---- gaps and repairs ------------------------------------------------------------------------

    def test_an_active_data_gap_counts_active_versions(
        self, sample: Sample, catalog: Catalog
    ) -> None:
        """What was replaced since need not be in an active-data pool; a copy pool lacks it all the same."""
        gaps = [NewGap("ACTIVEDATAPOOL", "EIO"), NewGap("COPYPOOL1", "EIO")]
        catalog.commit([sample.commit([b"a", b"b"], pools=("DISKPOOL",), gaps=gaps)])
        catalog.commit([sample.commit([b"a"])])
        assert {(g.pool, g.objects) for g in catalog.gaps()} == {
            ("ACTIVEDATAPOOL", 1),
            ("COPYPOOL1", 2),
        }
        catalog.commit([sample.commit([b"b"])])
        assert {g.pool for g in catalog.gaps()} == {"COPYPOOL1"}
        assert len(catalog.gaps(include_empty=True)) == 2

    def test_lacking_compares_contents_not_gap_rows(self, sample: Sample, catalog: Catalog) -> None:
        """A copy that was never made and never noted is found as well."""
        noted = sample.commit(pools=("DISKPOOL",), gaps=[NewGap("COPYPOOL1", "EIO")])
        unnoted = sample.commit([b"c"], pools=("DISKPOOL",))
        elsewhere = sample.commit([b"d"], primary="TAPEPOOL", pools=("TAPEPOOL",))
        catalog.commit([noted, unnoted, elsewhere, sample.commit([b"e"])])
        found = catalog.lacking("DISKPOOL", "COPYPOOL1", active_only=False)
        assert [entry.aggregate for entry in found] == [
            noted.aggregates[0].aggregate,
            unnoted.aggregates[0].aggregate,
        ]

    def test_lacking_of_what_is_active(
        self, sample: Sample, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was replaced, what is held and what may not be there is not looked through by each run again and again."""
        monkeypatch.setattr("fanout.catalog.contents.MOST_AGGREGATES", 2)
        replaced = [sample.commit([b"a", b"b"]) for _ in range(5)]
        last, archive = sample.commit([b"a", b"b", b"c"]), ObjectKind.ARCHIVE
        others = [sample.commit([b"d"], kind=archive), sample.commit([b"e"], node="N2")]
        catalog.commit([*replaced, last, *others])
        aggregates = [commit.aggregates[0].aggregate for commit in (*replaced, last, *others)]

        def lacking(*nodes: str) -> list[bytes]:
            found = catalog.lacking(
                "DISKPOOL", "ACTIVEDATAPOOL", active_only=True, nodes=nodes or None
            )
            return [entry.aggregate for entry in found]

        assert lacking() == [aggregates[5], aggregates[7]]
        assert lacking("N1") == [aggregates[5]]
        assert lacking("N2", "N3") == [aggregates[7]]
        for held, left in (([0, 2], [aggregates[5]]), ([0, 1, 2], [])):
            place = sample.place("ACTIVEDATAPOOL", data_length=300)
            copy = NewCopy("ACTIVEDATAPOOL", (place._replace(span=len(held)),), MemberSet.of(held))
            repair = Repair(aggregates[5], "ACTIVEDATAPOOL", copy)
            catalog.commit([Commit(sample.id(), 1, repairs=(repair,))])
            assert lacking("N1") == left
        catalog.commit([sample.commit([b"a"])])
        assert len(lacking("N1")) == 1

    def test_lacking_goes_on_behind_a_page(
        self, sample: Sample, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each once, in order, also where whole pages lack nothing."""
        monkeypatch.setattr("fanout.catalog.contents.MOST_AGGREGATES", 2)
        pools = [("DISKPOOL",), ("DISKPOOL", "COPYPOOL1")]
        commits = [sample.commit([b"%d" % n], pools=pools[n in (1, 2, 3)]) for n in range(7)]
        catalog.commit(commits)
        found = catalog.lacking("DISKPOOL", "COPYPOOL1", active_only=False)
        expected = [commits[n].aggregates[0].aggregate for n in (0, 4, 5, 6)]
        assert [entry.aggregate for entry in found] == expected

    def test_a_repair_closes_the_gap_in_the_commit_that_adds_the_copy(
        self, sample: Sample, catalog: Catalog
    ) -> None:
        """Gap gone and copy there, or neither."""
        commit = sample.commit(pools=("DISKPOOL",), gaps=[NewGap("COPYPOOL1", "EIO", 5)])
        catalog.commit([commit])
        aggregate = commit.aggregates[0].aggregate
        copy = NewCopy("COPYPOOL1", (sample.place("COPYPOOL1", data_length=200),))
        repair = Commit(sample.id(), 1, repairs=(Repair(aggregate, "COPYPOOL1", copy),))
        assert catalog.commit([repair]) == [2]
        assert catalog.gaps() == []
        assert [c.pool for c in catalog.copies(aggregate)] == ["DISKPOOL", "COPYPOOL1"]
        assert not list(catalog.lacking("DISKPOOL", "COPYPOOL1", active_only=False))

    def test_a_gap_that_stays_keeps_its_age(self, sample: Sample, catalog: Catalog) -> None:
        """A failed repair says why and when; `since` is when the gap was opened."""
        commit = sample.commit(pools=("DISKPOOL",), gaps=[NewGap("COPYPOOL1", "EIO", 5)])
        catalog.commit([commit])
        (before,) = catalog.gaps()
        later = NewGap("COPYPOOL1", "no space", 28, MemberSet.of([1]))
        aggregate = commit.aggregates[0].aggregate
        copy = NewCopy(
            "COPYPOOL1", (sample.place("COPYPOOL1", data_length=100),), MemberSet.of([0])
        )
        repair = Repair(aggregate, "COPYPOOL1", copy, later)
        catalog.commit([Commit(sample.id(), 1, repairs=(repair,))])
        (after,) = catalog.gaps()
        assert (after.reason, after.errno, after.objects) == ("no space", 28, 1)
        assert after.since == before.since
        assert after.updated > before.updated
        held = {(row.pool, row.objects, row.bytes) for row in catalog.occupancy()}
        assert held == {("DISKPOOL", 2, 200), ("COPYPOOL1", 1, 100)}
        assert [e.name for e in catalog.objects(pool="COPYPOOL1")] == [b"a"]

    def test_a_repair_of_what_is_gone_is_refused(self, sample: Sample, catalog: Catalog) -> None:
        """An aggregate that was deleted while its copy was made must not come back."""
        copy = NewCopy("COPYPOOL1", (sample.place("COPYPOOL1", data_length=100),))
        with pytest.raises(CatalogError):
            catalog.commit(
                [Commit(sample.id(), 1, repairs=(Repair(b"x" * 16, "COPYPOOL1", copy),))]
            )
        assert catalog.usage() == []

    # ---- volumes -------------------------------------------------------------------------------

    def test_live_regions_are_what_committed_spans_keep(
        self, sample: Sample, catalog: Catalog
    ) -> None:
        """The allocator starts from this: one region too few and live data is overwritten."""
        commits = [sample.commit([b"%d" % n]) for n in range(5)]
        catalog.commit(commits)
        volume = sample.volumes["COPYPOOL1"].volume
        wanted = sorted(
            (place.offset, place.length)
            for commit in commits
            for copy in commit.aggregates[0].copies
            for place in copy.places
            if place.volume == volume
        )
        assert [tuple(region) for region in catalog.live_regions(volume)] == wanted
        usage = {entry.volume: entry for entry in catalog.usage()}
        assert usage[volume].spans == 5
        assert usage[volume].live_bytes == sum(length for _, length in wanted)

    def test_held_spans_say_what_a_directory_should_say(
        self, sample: Sample, catalog: Catalog
    ) -> None:
        """What the volume holds of each aggregate, and the commit that last changed it, repairs included."""
        first, second = sample.commit(), sample.commit(pools=("DISKPOOL",))
        catalog.commit([first, second])
        volume = sample.volumes["COPYPOOL1"].volume
        assert catalog.held_csns(volume) == {first.aggregates[0].aggregate: 1}
        (held,) = catalog.held_spans(volume, catalog.held_csns(volume))
        assert (held.aggregate, held.csn, held.present) == (first.aggregates[0].aggregate, 1, None)
        aggregate = second.aggregates[0].aggregate
        part = NewCopy(
            "COPYPOOL1", (sample.place("COPYPOOL1", data_length=100),), MemberSet.of([1])
        )
        catalog.commit([Commit(sample.id(), 1, repairs=(Repair(aggregate, "COPYPOOL1", part),))])
        assert catalog.held_csns(volume) == {first.aggregates[0].aggregate: 1, aggregate: 3}
        (later,) = catalog.held_spans(volume, [aggregate])
        assert (later.aggregate, later.csn, later.present) == (aggregate, 3, MemberSet.of([1]))
        assert later.places == part.places

    def test_what_is_asked_of_many_at_once_is_what_each_says(
        self, sample: Sample, catalog: Catalog
    ) -> None:
        """A repair, a check and an audit ask for many aggregates at once: none may be mixed up with another, or left out."""
        commits = [
            sample.commit([b"%d" % n, b"b"], pools=("DISKPOOL", *(["COPYPOOL1"] * (n % 3 > 0))))
            for n in range(300)
        ]
        commits[7] = sample.commit([b"%d" % n for n in range(9000)])
        commits[9] = sample.commit(gaps=[NewGap("ACTIVEDATAPOOL", "away", 5, MemberSet.of([1]))])
        commits[11] = sample.commit(gaps=[NewGap("ACTIVEDATAPOOL", "away", 5)])
        catalog.commit(commits)
        ids = [commit.aggregates[0].aggregate for commit in commits]
        nobody = sample.id()
        found = catalog.contents([*reversed(ids), nobody, ids[0]])
        assert list(found) == [*reversed(ids), nobody]
        assert found.pop(nobody) == ((), (), {})
        for commit, aggregate in zip(commits, ids, strict=True):
            contents = found[aggregate]
            assert list(contents.members) == catalog.members(aggregate)
            assert list(contents.copies) == catalog.copies(aggregate)
            assert [m.name for m in contents.members] == [
                m.name for m in commit.aggregates[0].members
            ]
            assert [copy.pool for copy in contents.copies] == [
                copy.pool for copy in commit.aggregates[0].copies
            ]
            assert contents.copy_in("ACTIVEDATAPOOL") is None
        gaps = {aggregate: found[aggregate].gaps for aggregate in ids if found[aggregate].gaps}
        assert gaps == {
            ids[9]: {"ACTIVEDATAPOOL": MemberSet.of([1])},
            ids[11]: {"ACTIVEDATAPOOL": None},
        }
        entries = list(catalog.aggregates())
        assert [entry.aggregate for entry in entries] == ids
        assert [(e.aggregate, c) for e, c in catalog.contents_of(entries)] == [
            (aggregate, found[aggregate]) for aggregate in ids
        ]
        volume = sample.volumes["COPYPOOL1"].volume
        there = [a for a in ids if found[a].copy_in("COPYPOOL1")]
        assert 0 < len(there) < len(ids)
        assert [entry.aggregate for entry in catalog.aggregates(volume=volume)] == there
        held = list(catalog.held_spans(volume, [nobody, *reversed(ids)]))
        assert [spans.aggregate for spans in held] == there[::-1]
        for spans in held:
            copy = found[spans.aggregate].copy_in("COPYPOOL1")
            assert copy is not None
            assert spans.places == copy.places

    def test_epochs_are_recorded_together(self, sample: Sample, catalog: Catalog) -> None:
        """After a new opening they are what was recorded."""
        volumes = [sample.volumes[pool].volume for pool in ("DISKPOOL", "COPYPOOL1")]
        catalog.set_epochs(dict.fromkeys(volumes, (5, 11, 12)))
        catalog.close()
        with sample.open() as again:
            epochs = {
                entry.pool: (entry.epoch, entry.device, entry.inode) for entry in again.volumes()
            }
        assert epochs["DISKPOOL"] == epochs["COPYPOOL1"] == (5, 11, 12)
        assert epochs["TAPEPOOL"] == (1, 7, 9)

    def test_versions_are_ordered_by_their_commits_whatever_the_clock_says(
        self, sample: Sample
    ) -> None:
        """It goes back by a year, and then stands before 1970: what was committed then could not be opened any more."""
        sample.create()
        with sample.open() as catalog:
            for step in (0, -365 * 86_400 * 10**9, -sample.time - 10**15):
                sample.time += step
                catalog.commit([sample.commit([b"a"], gaps=[NewGap("TAPEPOOL", "no volume")])])
            catalog.fence([(sample.id(), 1)])
        with sample.open() as catalog:
            found = list(catalog.objects())
            assert [(one.version, one.active) for one in found] == [
                (1, False),
                (2, False),
                (3, True),
            ]
            assert found[0].at > found[1].at > found[2].at == 0
            assert catalog.find("N1", b"a") == found[2]
            volume = sample.volumes["DISKPOOL"].volume
            held = list(catalog.held_spans(volume, [one.aggregate for one in found]))
            assert [spans.committed for spans in held] == [1, 2, 3]
            assert len(catalog.gaps()) == 3

    def test_inode_numbers_may_have_64_bits(self, sample: Sample) -> None:
        """As network and overlay file systems make them: a store there must be made and opened."""
        for pool, entry in sample.volumes.items():
            sample.volumes[pool] = replace(entry, inode=(1 << 64) - 2)
        sample.create()
        with sample.open() as catalog:
            catalog.set_epochs({sample.volumes["DISKPOOL"].volume: (5, 11, (1 << 64) - 1)})
            assert catalog.volumes()[0].inode == (1 << 63) - 1
            assert catalog.verify() == []


class TestSQLite(CatalogContract):
    """The implementation that there is."""

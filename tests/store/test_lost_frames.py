"""A catalog made anew where headers and footers have rotted in every copy: what is left is what it was, by number and by version.

What could break: a version that is another object's afterwards, so that who deletes it by number deletes something else; a deletion that falls on
the wrong object once the rotten frame can be read again; a check that advises a rebuild after every rebuild; objects that the catalog still
served, lost by a rebuild that nobody needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fanout import audit_stgpool, backup_stgpool, check_store, rebuild_catalog
from fanout import format as fmt
from fanout.catalog import CatalogReader
from fanout.errors import CatalogError, InterfaceError
from tests.store.conftest import MIB
from tests.store.test_reconcile import put

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.catalog import Place
    from tests.store.conftest import Site

    Versions = dict[tuple[str, bytes, int], bytes]  # digests


def versions(site: Site) -> Versions:
    """All that the catalog knows."""
    with CatalogReader(site.base / "catalog.db") as catalog:
        return {(e.node, e.name, e.version): e.digest for e in catalog.objects()}


def flip_places(paths: dict[bytes, str], places: Sequence[Place], part: str) -> None:
    """Damage the frames of spans; once more, and they are what they were."""
    for place in places:
        at = place.offset + (0 if part == "header" else fmt.HEAD_SIZE + place.data_length) + 100
        with open(paths[place.volume], "r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0xFF]))


@pytest.mark.parametrize("part", ["header", "footer"])
def test_versions_do_not_move(site: Site, part: str) -> None:
    """Of transactions of several aggregates the last is lost, and with its header that it was the last: the others took its place."""
    site.create()
    large = site.object_limit + 1
    with site.open() as store:
        for number in range(6):
            names = [b"%d%d" % (number, n) for n in range(4)]
            put(store, {name: name * (large if n % 2 else 2000) for n, name in enumerate(names)})
    before = versions(site)
    with CatalogReader(site.base / "catalog.db") as catalog:
        entries = list(catalog.aggregates())
        paths = {volume.volume: volume.path for volume in catalog.volumes()}
        last = {entry.transaction: entry for entry in entries}.values()
        copies = [copy for entry in last for copy in catalog.copies(entry.aggregate)]
    assert len(entries) > 2 * len(last)
    flip_places(paths, [place for copy in copies for place in copy.places], part)
    (site.base / "catalog.db").unlink()
    report = rebuild_catalog(site.path)
    assert len(report.lost) == 6
    after = versions(site)
    assert after
    assert after.items() <= before.items()
    assert all("disagree" not in problem.what for problem in check_store(site.path).problems)


OBJECTS = [b"a", b"b", b"c", b"void", b"d", b"e"]


@pytest.mark.parametrize("part", ["header", "footer"])
@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_a_deletion_falls_on_what_was_meant(site: Site, part: str, which: str) -> None:
    """The frame of one span of several can be read nowhere; what is behind took the numbers of what it held, and so its versions.

    Deleted by name it was noted by number: when the frame could be read again, something else was gone, and it was back.
    """
    site.object_limit = 16 * MIB
    site.create()
    sizes = dict(zip(OBJECTS, (5000, 6000, 5 * MIB, 0, 7000, 8000), strict=True))
    objects = {name: site.rng.randbytes(size) for name, size in sizes.items()}
    with site.open() as store:
        put(store, objects, node="N2")
    before = versions(site)
    with CatalogReader(site.base / "catalog.db") as catalog:
        (entry,) = catalog.aggregates()
        copies = catalog.copies(entry.aggregate)
        paths = {volume.volume: volume.path for volume in catalog.volumes()}
    spans = sorted({place.span for copy in copies for place in copy.places})
    assert len(spans) > 2
    span = {"first": spans[0], "middle": spans[1], "last": spans[-1]}[which]
    rotten = [place for copy in copies for place in copy.places if place.span == span]
    flip_places(paths, rotten, part)
    (site.base / "catalog.db").unlink()
    report = rebuild_catalog(site.path)
    assert len(report.lost) == 1
    after = versions(site)
    assert after
    assert after.items() <= before.items()
    gone = max(after, key=lambda key: key[2]) if which != "last" else min(after, key=lambda k: k[2])
    with site.open() as store:
        store.delete("N2", gone[1], version=gone[2])
    flip_places(paths, rotten, part)
    rebuild_catalog(site.path, force=True)
    assert versions(site).items() == before.items() - {(gone, before[gone])}
    with site.open() as store:
        for found in store.query_objects():
            assert store.get("N2", found.name).read() == objects[found.name]


@pytest.mark.parametrize("listed", [False, True])
def test_what_the_catalog_still_finds_is_not_given_up_for_a_new_one(
    site: Site, *, listed: bool
) -> None:
    """All bytes are good and every object is served, but frames have rotted in all copies: who is told to make the catalog anew would lose them.

    Directories may list members that nobody can name: these do not count as found.
    """
    site.create()
    with site.open() as store:
        site.put_all(store)
        if listed:
            store.delete("N2", b"D")
            del site.objects["N2", b"D"]
    if listed:
        assert site.flip("COPYPOOL1", site.objects["N2", b"C \xff\xfe"][:4096]) == 1
        with site.open() as store:
            assert audit_stgpool(store, "COPYPOOL1", fix=True).marked == 1
            assert backup_stgpool(store, "DISKPOOL", "COPYPOOL1").copied_objects == 1
    before = versions(site)
    with CatalogReader(site.base / "catalog.db") as catalog:
        paths = {volume.volume: volume.path for volume in catalog.volumes()}
        entries = [entry for entry in catalog.aggregates() if entry.erased or not listed]
        copies = [copy for entry in entries for copy in catalog.copies(entry.aggregate)]
    flip_places(paths, [place for copy in copies for place in copy.places], "header")
    as_it_was = (site.base / "catalog.db").read_bytes()
    with pytest.raises(CatalogError, match=r"still finds \d objects .* audit stgpool COPYPOOL1"):
        rebuild_catalog(site.path, force=True)
    assert (site.base / "catalog.db").read_bytes() == as_it_was
    with site.open() as store:
        for pool in ("DISKPOOL", "TAPEPOOL", "COPYPOOL1", "COPYPOOL2", "ACTIVEDATAPOOL"):
            audit_stgpool(store, pool, fix=True)
    assert rebuild_catalog(site.path, force=True).lost == ()
    assert versions(site) == before
    with site.open() as store:
        for (node, name), data in site.objects.items():
            assert store.get(node, name).read() == data


@pytest.mark.parametrize("all_of_it", [False, True])
def test_what_nobody_can_name_can_be_given_up(site: Site, *, all_of_it: bool) -> None:
    """Each check had a line for it, for ever, and its space was never free: not by any command, and not when all that has a name was deleted.

    It does not come back, not even when the frame can be read again.
    """
    site.object_limit = 16 * MIB
    site.create()
    sizes = dict(zip(OBJECTS, (5000, 6000, 5 * MIB, 0, 7000, 8000), strict=True))
    with site.open() as store:
        put(store, {name: site.rng.randbytes(size) for name, size in sizes.items()}, node="N2")
    before = versions(site)
    with CatalogReader(site.base / "catalog.db") as catalog:
        (entry,) = catalog.aggregates()
        copies = catalog.copies(entry.aggregate)
        paths = {volume.volume: volume.path for volume in catalog.volumes()}
    first = min(place.span for copy in copies for place in copy.places)
    rotten = [place for copy in copies for place in copy.places if place.span == first]
    flip_places(paths, rotten, "footer")
    (site.base / "catalog.db").unlink()
    assert rebuild_catalog(site.path).lost
    after = versions(site)
    assert after.keys() < before.keys()
    lost = len(before) - len(after)
    with site.open() as store:
        if all_of_it:
            store.delete("N2", None, keep=0)
            after = {}
    (said,) = [p for p in check_store(site.path).problems if "are lost to it" in p.what]
    assert "'fanout delete N2 --unnamed'" in said.mend
    with site.open() as store:
        assert store.delete("N2", None, unnamed=True, preview=True).objects == lost
        report = store.delete("N2", None, unnamed=True)
        assert report.postponed == ()
        assert report.aggregates == all_of_it
        assert report.objects == lost
        assert store.delete("N2", None, unnamed=True).objects == 0
        with pytest.raises(InterfaceError):
            store.delete("N2", b"a", unnamed=True)
        if all_of_it:
            assert report.freed_bytes > sizes[b"b"]
    assert not [p for p in check_store(site.path).problems if "are lost to it" in p.what]
    assert versions(site) == after
    flip_places(paths, rotten, "footer")
    report_ = rebuild_catalog(site.path, force=True)
    assert report_.lost == ()
    assert versions(site) == after

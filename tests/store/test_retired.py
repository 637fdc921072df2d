"""A volume that was given up comes back, and the catalog is lost: it is left aside, so that nothing that was deleted since comes back.

What could break: the others do not name it, or forget it in a checkpoint or in a rebuild; or one that was taken back is left aside the next time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from fanout import (
    audit_stgpool,
    backup_stgpool,
    check_store,
    rebuild_catalog,
    retire_volume,
)
from fanout.catalog import CatalogReader, RetiredVolume
from fanout.directory import Directory
from fanout.errors import CatalogError
from fanout.store import Store
from tests import independent_reader

from .histories import SmallSite

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

DATA = b"1" * 5000


def put(store: Store, *names: str) -> None:
    with store.session("N1") as session:
        for attempt in session.attempts():
            with attempt as transaction:
                for name in names:
                    transaction.put(name, DATA)


def names(store: Store) -> list[bytes]:
    return sorted(entry.name for entry in store.query_objects())


class Given:
    """A store of which COPYPOOL2's volume was away while "gone" was deleted, was given up, and is there again."""

    def __init__(self, site: SmallSite) -> None:
        self.site = site
        site.create()
        with site.open() as store:
            put(store, "gone")
            put(store, "kept")
        (self.path,) = site.volumes("COPYPOOL2")
        hidden = self.path.rename(self.path.with_name("hidden"))
        with site.open() as store:
            store.delete("N1", "gone")
            (entry,) = (v for v in store.catalog.volumes() if v.pool == "COPYPOOL2")
        self.volume, self.epoch = entry.volume, entry.epoch
        retire_volume(site.path, self.path)
        site.open().close()  # the others are told
        hidden.rename(self.path)

    def lose_the_catalog(self) -> None:
        for path in self.site.base.glob("catalog.db*"):
            path.unlink()

    def told(self) -> dict[str, int | None]:
        """By volume: the epoch with which its directory names the one that was given up, read by the format page alone."""
        said = {}
        for path in self.site.base.glob("*.vol"):
            if path != self.path:
                with path.open("rb") as file:
                    said[path.name] = independent_reader.Volume(file).retired.get(self.volume)
        return said


@pytest.fixture
def given(tmp_path: Path, rng: random.Random) -> Iterator[Given]:
    yield Given(SmallSite(tmp_path, rng))
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("sequential/*")]:
        path.unlink()


def test_it_is_left_aside_and_named(given: Given) -> None:
    """Nothing comes back, nothing waits for it, and its pool's gaps can be closed on another volume."""
    given.lose_the_catalog()
    report = rebuild_catalog(given.site.path)
    (aside,) = report.retired
    assert (aside.pool, aside.path) == ("COPYPOOL2", str(given.path))
    assert "given up" in aside.reason
    assert (report.skipped, report.lost, report.gaps) == ((), (), 1)
    given.path.unlink()
    Store.extend(given.site.path)
    with given.site.open() as store:
        assert names(store) == [b"kept"]
        backup_stgpool(store, "DISKPOOL", "COPYPOOL2")
        assert store.query_gaps() == []
        assert store.catalog.waiting_bytes() == 0
    assert check_store(given.site.path).problems == ()


def test_every_other_volume_names_it(given: Given) -> None:
    said = given.told()
    assert len(said) == 4
    assert set(said.values()) == {given.epoch}


def test_nobody_forgets_it(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in checkpoints, and not when the catalog is made anew and lost again."""
    monkeypatch.setattr("fanout.scribe.GATHER", 0.0)  # a block for each record
    for _ in range(2):
        with given.site.open() as store:
            before = {v.path: v.directory.extent[0] for v in store.pools.volumes() if v.directory}
            for number in range(70):
                put(store, f"{number}")
            after = {v.path: v.directory.extent[0] for v in store.pools.volumes() if v.directory}
            disk = str(given.site.volumes("DISKPOOL")[0])
            assert before[disk] != after[disk], "no checkpoint: more transactions are needed"
        assert set(given.told().values()) == {given.epoch}
        given.lose_the_catalog()
        report = rebuild_catalog(given.site.path)
        assert [aside.path for aside in report.retired] == [str(given.path)]
        with CatalogReader(given.site.catalog) as catalog:
            (entry,) = catalog.retired()
        assert (entry.volume, entry.epoch, entry.path) == (
            given.volume,
            given.epoch,
            str(given.path),
        )


def test_taken_back_it_is_a_volume_like_any_other(given: Given) -> None:
    """On request, with what it was not told of; from its next opening on nobody leaves it aside."""
    given.lose_the_catalog()
    report = rebuild_catalog(given.site.path, take_retired=True)
    assert report.retired == ()
    assert str(given.path) in report.volumes
    assert any("given up" in note for note in report.notes)
    with given.site.open() as store:
        assert store.catalog.retired() == []
        assert b"kept" in names(store)
        put(store, "new")
        assert store.get("N1", "new", pool="COPYPOOL2").read() == DATA
    given.lose_the_catalog()
    report = rebuild_catalog(given.site.path)
    assert report.retired == ()
    assert str(given.path) in report.volumes


def test_a_directory_without_room_does_without(
    given: Given, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others name it, too; the volume is not given up for that."""
    (path,) = given.site.volumes("ACTIVEDATAPOOL")
    retire_volume(given.site.path, path, force=True)
    monkeypatch.setattr(Directory, "spare_bytes", 0)
    with caplog.at_level(logging.WARNING), given.site.open() as store:
        put(store, "goes on")
        assert store.query_gaps() != []
    assert "no room to name 1 volumes" in caplog.text
    monkeypatch.undo()
    given.site.open().close()
    with given.site.open() as store:
        told = [v.directory.records for v in store.pools.volumes() if v.directory]
        retired = {entry.volume for entry in store.catalog.retired()}
    assert len(retired) == 2
    assert all(retired <= records.keys() for records in told)


def test_a_volume_that_was_given_up_still_tells_of_others(given: Given) -> None:
    """It is the last one; nobody is left who could say of itself that it was given up."""
    for path in given.site.base.glob("*.vol"):
        if path not in (given.path, given.site.volumes("DISKPOOL")[0]):
            path.unlink()
    for path in given.site.base.glob("sequential/*"):
        path.unlink()
    (disk,) = given.site.volumes("DISKPOOL")
    retire_volume(given.site.path, disk, force=True)
    given.lose_the_catalog()
    report = rebuild_catalog(given.site.path)
    assert [aside.path for aside in report.retired] == [str(given.path)]
    assert report.volumes == (str(disk),)


@pytest.mark.parametrize(
    ("epoch", "confirmed", "named"), [(6, True, True), (7, True, True), (8, False, True), (8, True, False), (9, False, False)]
)  # fmt: skip
def test_a_later_opening_ends_it(epoch: int, *, confirmed: bool, named: bool) -> None:
    """One that was cut short before anybody heard of it does not."""
    entry = RetiredVolume(b"v" * 16, csn=9, at=1, epoch=7)
    assert entry.names(b"v" * 16, epoch, confirmed=confirmed) is named
    assert not entry.names(b"w" * 16, epoch, confirmed=confirmed)


def test_a_catalog_from_before_is_refused(given: Given) -> None:
    """It still counts on the volume."""
    copy = given.site.catalog.with_name("copy.db")
    copy.write_bytes(given.site.catalog.read_bytes())
    (path,) = given.site.volumes("ACTIVEDATAPOOL")
    retire_volume(given.site.path, path, force=True)
    given.site.open().close()
    given.lose_the_catalog()
    copy.rename(given.site.catalog)
    with pytest.raises(CatalogError, match="older than a volume"):
        given.site.open()


def test_an_opening_tells_what_became_of_it(given: Given, caplog: pytest.LogCaptureFixture) -> None:
    """It stands in the configuration still."""
    given.site.open().close()
    assert (
        f"{given.path} of pool COPYPOOL2 is not used: it is a volume of this store that was given up"
        in caplog.text
    )


@pytest.mark.parametrize("deleted", [(), (0, 3, 20)])
def test_objects_that_lie_on_two_volumes_of_which_one_comes_back(
    tmp_path: Path, rng: random.Random, deleted: tuple[int, ...]
) -> None:
    """The record on the other names them no more, and nobody else has good bytes of them: they are here again, but for those that were deleted."""
    site = SmallSite(tmp_path, rng)
    site.create()
    data = {b"%02d" % number: rng.randbytes(250_000) for number in range(36)}
    with (
        site.locked("COPYPOOL2"),
        site.open(lock_wait=0) as store,
        store.session("N2") as session,
        session.begin() as transaction,
    ):
        for name, content in data.items():
            transaction.put(name, content)
    (disk,) = site.volumes("DISKPOOL")
    with site.open() as store:
        (volume,) = (v for v in store.pools.volumes() if v.path == str(disk))
        assert volume.directory is not None
        first = min(volume.directory.spans(), key=lambda span: span.data_start)
    with disk.open("r+b") as file:
        file.seek(first.offset)
        file.write(bytes(4096))
    with site.open() as store:
        lost = [name for name, _ in audit_stgpool(store, "DISKPOOL", fix=True).damaged]
    path = site.volumes("COPYPOOL1")[0]
    hidden = path.rename(path.with_name("hidden"))
    assert retire_volume(site.path, path, force=True).lost == tuple(lost)
    with site.open() as store:
        for number in deleted:
            name = b"%02d" % number
            store.delete("N2", name)
            del data[name]
    hidden.rename(path)
    site.catalog.unlink()
    report = rebuild_catalog(site.path, take_retired=True)
    assert report.lost == ()
    with site.open() as store:
        assert names(store) == sorted(data)
        assert all(store.get("N2", name).read() == content for name, content in data.items())
    assert check_store(site.path).problems == ()
    for path in [*tmp_path.glob("*.vol"), *tmp_path.glob("sequential/*")]:
        path.unlink()

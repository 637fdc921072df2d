"""Media that refuse to read some of a volume's directory: the catalog in force says what stood there, and the next opening writes it anew.

What could break: one bad sector closes a volume all of whose data can be read, with the advice to give it up; a half that cannot be read now and can
another day brings back what was deleted; a device that gives nothing is taken for one that is damaged.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from fanout import backup_stgpool, check_store, rebuild_catalog, retire_volume
from fanout.errors import ObjectNotFound, VolumeError
from fanout.store import Store
from tests.faults.faultfs import Rule
from tests.store.test_reconcile import put
from tests.store.test_refused import refusing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.volume import Volume
    from tests.store.test_refused import Refusing

__all__ = ["refusing"]  # the fixture

GRANULE = 4096
POOL = "COPYPOOL1"


def volume_of(store: Store, pool: str = POOL) -> Volume:
    return next(volume for volume in store.pools.volumes() if volume.pool == pool)


def append(refusing: Refusing, store: Store, name: bytes) -> None:
    """One more object, in a directory block of its own."""
    data = refusing.objects.setdefault(name, name * 5000)
    put(store, {name: data})
    assert store._scribe is not None
    store._scribe.write_out()


def blocks_of(refusing: Refusing) -> dict[str, int]:
    """Places in a directory of which the second checkpoint was appended to: by what is there."""
    with Store.open(refusing.path) as store:
        volume = volume_of(store)
        assert volume.directory is not None
        store.delete("N1", b"c")
        del refusing.objects[b"c"]
        append(refusing, store, b"d")
        append(refusing, store, b"x")
        volume.engine.run(volume.prepare((), anew=True))
        assert volume.written(())
        store.delete("N1", b"x")  # an older checkpoint names it all the same
        del refusing.objects[b"x"]
        append(refusing, store, b"e")
        begin, end = volume.directory.extent
        other = volume.superblock.half_offset(1 - volume.directory.live_half)
    assert end - begin > GRANULE
    return {
        "checkpoint": begin,
        "last record": end - GRANULE,
        "behind": end + 8 * GRANULE,
        "other": other,
        "behind the other": other + 9 * GRANULE,
    }


def refuse(refusing: Refusing, places: Sequence[int], *ops: str, pool: str = POOL) -> None:
    refusing.fs.set_rules(
        *(
            Rule(
                op=op, path=f"/{pool}.vol", start=at, end=at + GRANULE, errno=errno.EIO, count=None
            )
            for at in places
            for op in ops
        )
    )


def told(refusing: Refusing) -> list[str]:
    return [f"{problem.what}; {problem.mend}" for problem in check_store(refusing.path).problems]


PLACES = ["checkpoint", "last record", "behind", "other", "behind the other"]


@pytest.mark.parametrize("place", PLACES)
def test_one_block_is_refused(refusing: Refusing, place: str) -> None:
    """Until it is written, as a drive does with a bad sector."""
    at = blocks_of(refusing)[place]
    refuse(refusing, [at], "read")
    found = told(refusing)
    assert (
        "a block of its directory cannot be read; the next opening for writing writes it anew"
        in found
    )
    assert all("the next opening for writing" in what for what in found)
    with pytest.raises(VolumeError, match="it is well"):
        retire_volume(refusing.path, refusing.fs.mount / f"{POOL}.vol")
    with Store.open(refusing.path) as store:
        assert volume_of(store).writable
        written = [
            entry
            for entry in refusing.fs.log("write", path=f"/{POOL}.vol")
            if entry.offset <= at < entry.offset + entry.size
        ]
        assert written
        refusing.fs.heal()
        append(refusing, store, b"f")
        refusing.reads(store)
    assert told(refusing) == []
    rebuild_catalog(refusing.path, force=True)
    with Store.open(refusing.path) as store:
        refusing.reads(store)
        for name in (b"c", b"x"):
            with pytest.raises(ObjectNotFound):
                store.get("N1", name)


@pytest.mark.parametrize("place", ["last record", "behind", "behind the other"])
def test_it_cannot_be_written_either(refusing: Refusing, place: str) -> None:
    """The other half serves, or what is left of this one, opening after opening. What comes to be read again one day counts no more."""
    at = blocks_of(refusing)[place]
    refuse(refusing, [at], "read", "write")
    for name in (b"f", b"g"):
        with Store.open(refusing.path) as store:
            assert volume_of(store).writable
            append(refusing, store, name)
            refusing.reads(store)
    with Store.open(refusing.path) as store:
        store.delete("N1", b"d")
        del refusing.objects[b"d"]
    refusing.fs.heal()
    rebuild_catalog(refusing.path, force=True)
    with Store.open(refusing.path) as store:
        refusing.reads(store)
        with pytest.raises(ObjectNotFound):
            store.get("N1", b"d")
    assert told(refusing) == []


@pytest.mark.parametrize("place", ["other", "checkpoint"])
def test_where_a_checkpoint_begins_nothing_can_be_read_or_written(
    refusing: Refusing, place: str
) -> None:
    """A newer use of that half may be there, and come back: nothing is written behind its back. What the volume holds can be read, and the mend is told."""
    refuse(refusing, [blocks_of(refusing)[place]], "read", "write")
    path = refusing.fs.mount / f"{POOL}.vol"
    with Store.open(refusing.path) as store:
        (status,) = (status for status in store.pools.status() if status.pool == POOL)
        assert status.state == "failed"
        assert f"fanout retire volume --force {path}" in status.reason
        volume = volume_of(store)
        begin, end = refusing.place(store, POOL, b"a")
        assert volume.read(begin, end - begin) == refusing.objects[b"a"]
        append(refusing, store, b"f")
        assert [gap.pool for gap in store.query_gaps()] == [POOL]
    refusing.fs.heal()
    with Store.open(refusing.path) as store:
        assert backup_stgpool(store, "DISKPOOL", POOL).copied_objects == 1
        refusing.reads(store)
    assert told(refusing) == []


@pytest.mark.parametrize("superblock", [True, False])
@pytest.mark.parametrize("after", range(6))
def test_a_device_that_gives_nothing_is_not_merely_damaged(
    refusing: Refusing, after: int, *, superblock: bool
) -> None:
    """From some read of its opening on, but for its superblock perhaps: its directory is not touched, and is as it was when it answers again."""
    fs, path = refusing.fs, f"/{POOL}.vol"
    before = len(fs.log("write", path=path))
    fs.set_rules(
        Rule(
            op="read",
            path=path,
            start=GRANULE if superblock else 0,
            nth=after + 1,
            errno=errno.EIO,
            count=None,
        )
    )
    with Store.open(refusing.path) as store:
        (status,) = (status for status in store.pools.status() if status.pool == POOL)
        fs.heal()
        refusing.reads(store)
        if status.state != "available":
            superblocks = (0, status.size - GRANULE)
            assert all(entry.offset in superblocks for entry in fs.log("write", path=path)[before:])
        else:
            assert after > 1
    assert told(refusing) == []


def test_deletes_that_a_hole_has_lost_are_told_with_what_ends_it(refusing: Refusing) -> None:
    """Other records were missing, too, and there was no room to append them: the checkpoint that took these ended the hole, and nobody told the deletes."""
    path, away = (refusing.fs.mount / name for name in (f"{POOL}.vol", "away"))
    with Store.open(refusing.path) as store:
        append(refusing, store, b"gone")
        append(refusing, store, b"kept")
    path.rename(away)
    with Store.open(refusing.path, lock_wait=0) as store:
        store.delete("N1", b"gone")
        del refusing.objects[b"gone"]
        disk = volume_of(store, "DISKPOOL")
        assert disk.directory is not None
        for number in range(disk.directory.blocks_left):
            append(refusing, store, b"%d" % number)
        assert disk.directory.blocks_left == 0
        begin, _ = disk.directory.extent
        (dead,) = store.catalog.dead()
        kept = store.catalog.find("N1", b"kept")
        assert kept is not None
        lost = [dead.aggregate, kept.aggregate]
    with open(refusing.fs.backing("DISKPOOL.vol"), "r+b") as file:
        file.seek(begin)
        data = file.read(256 << 10)
        rotten = [at - at % GRANULE for one in lost for at in _places(data, one)]
        assert len(set(rotten)) == 3  # two of what is gone
        for at in rotten:
            file.seek(begin + at)
            file.write(bytes(GRANULE))
    with Store.open(refusing.path, lock_wait=0) as store:
        assert volume_of(store, "DISKPOOL").writable
        refusing.reads(store)
    away.rename(path)
    (refusing.path.parent / "catalog.db").unlink()
    rebuild_catalog(refusing.path)
    with Store.open(refusing.path) as store:
        refusing.reads(store)
        with pytest.raises(ObjectNotFound):
            store.get("N1", b"gone")


def _places(data: bytes, what: bytes) -> Iterator[int]:
    at = data.find(what)
    while at >= 0:
        yield at
        at = data.find(what, at + 1)

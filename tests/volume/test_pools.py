"""Space is handed out twice, never comes back, or one bad volume takes the store with it."""

from __future__ import annotations

import fcntl
import gc
import os
import random
import re
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from fanout import _core
from fanout import format as fmt
from fanout.allocator import RegionState
from fanout.catalog.rows import RetiredVolume, VolumeEntry
from fanout.config import MAX_VOLUMES, Config, parse
from fanout.errors import (
    CatalogError,
    CatalogStale,
    PoolFull,
    PoolUnavailable,
    UnknownPool,
    VolumeForeign,
)
from fanout.format import DirectoryRecord, Op, SpanFraming, StoredSpan
from fanout.host import Fragment, ReserveRequest, Span, WrittenSpan
from fanout.making import create_volumes, probe
from fanout.pool import directory_full
from fanout.pools import PoolSet
from fanout.types import ObjectKind
from fanout.volume import Volume, VolumeState
from tests.conftest import SEED
from tests.independent_reader import Volume as IndependentVolume
from tests.strike import Striker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from fanout.engine import Engine

STORE = b"S" * 16
CONFIG = """
[store]
catalog = "catalog.db"
[device_classes.disk]
type = "disk"
[device_classes.seq]
type = "file"
directory = "seq"
volume_size = "2 MiB"
max_volumes = 3
[pools.DISK]
type = "primary"
device_class = "disk"
volumes = [{ path = "d0.vol", size = "16 MiB" }, { path = "d1.vol", size = "16 MiB" }]
next = "SEQ"
copy_pools = ["COPY"]
[pools.SEQ]
type = "primary"
device_class = "seq"
[pools.COPY]
type = "copy"
device_class = "disk"
volumes = [{ path = "c0.vol", size = "12 MiB" }]
[pools.OFF]
type = "copy"
device_class = "disk"
access = "unavailable"
volumes = [{ path = "o0.vol", size = "2 MiB" }]
"""


class Book:
    """The part of a catalog that pools ask, in memory: what it has, it would have on disk."""

    path = "book"

    def __init__(self) -> None:
        self.entries: dict[bytes, VolumeEntry] = {}
        self.live: dict[bytes, dict[int, int]] = {}
        self.csn = 0
        self.broken = False

    def volumes(self) -> list[VolumeEntry]:
        return list(self.entries.values())

    def live_regions(self, volume: bytes) -> Iterable[tuple[int, int]]:
        return list(self.live.get(volume, {}).items())

    def retired(self) -> list[RetiredVolume]:
        return []

    def last_csn(self) -> int:
        return self.csn

    def set_epochs(self, epochs: Mapping[bytes, tuple[int, int, int]]) -> None:
        if self.broken:
            raise CatalogError(self.path, "broken on purpose")
        for volume, (epoch, device, inode) in epochs.items():
            entry = self.entries[volume]
            self.entries[volume] = VolumeEntry(
                entry.volume, entry.pool, entry.path, entry.size, entry.granule, epoch, device,
                inode, entry.is_block,
            )  # fmt: skip

    def add(self, *, volumes: Iterable[VolumeEntry]) -> None:
        self.entries |= {entry.volume: entry for entry in volumes}


class House:
    """A configuration, its volumes on disk, a book, and the pools when they are open."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine, self.directory = engine, directory
        self.config: Config = parse(CONFIG, path=str(directory / "fanout.toml"))
        self.uuids = {name: name.ljust(16).encode() for name in self.config.pools}
        self.book = Book()
        self.book.add(
            volumes=create_volumes(engine, self.config, store=STORE, pool_uuids=self.uuids)
        )
        self.now = 0.0
        self.pools = self.make()

    def make(self) -> PoolSet:
        return PoolSet(
            self.engine, self.config, store=STORE, pool_uuids=self.uuids, book=self.book,
            clock=lambda: self.now,
        )  # fmt: skip

    def again(self) -> PoolSet:
        self.pools.close()
        self.pools = self.make()
        self.pools.open()
        return self.pools


@pytest.fixture
def house(real: Engine, tmp_path: Path) -> Iterator[House]:
    made = House(real, tmp_path)
    made.pools.open()
    yield made
    made.pools.close()


def ask(
    length: int | None, *, primary: str = "DISK", copies: tuple[str, ...] = ("COPY",), **more: Any
) -> ReserveRequest:
    values: dict[str, Any] = {
        "transaction": b"T" * 16, "attempt": 1, "aggregate": b"A" * 16, "primary": primary,
        "secondaries": copies, "required": (primary, *copies), "length": length, "members": 1,
        "first_span": 0, "name_bytes": 10,
    }  # fmt: skip
    return ReserveRequest(**{**values, **more})


def bytes_in(pools: PoolSet, state: RegionState) -> dict[str, int]:
    found: dict[str, int] = {}
    for volume in pools.volumes():
        assert volume.allocator is not None
        volume.allocator.check()
        found[volume.pool] = found.get(volume.pool, 0) + volume.allocator.bytes_in(state)
    return {pool: count for pool, count in found.items() if count}


# ---- reserving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 4096, 1 << 20, 5 << 20, 9 << 20])
def test_a_known_length_fits_what_was_reserved(house: House, length: int) -> None:
    """The session must be able to put all its bytes, with their framing, into the spans it got."""
    spans = house.pools.reserve(ask(length))
    framing = SpanFraming(STORE, block_size=house.engine.slot_size, volumes=PoolSet.volumes_of)
    room = 0
    for span in spans:
        assert [placement.pool for placement in span.placements] == ["DISK", "COPY"]
        assert span.length % 4096 == 0
        room += span.length - framing.head_size() - framing.foot_size(2, 2048, span.length)
    assert room >= length
    assert room < length + (1 << 20), "far more than was asked for"
    for span in spans:
        house.pools.release(span, ["DISK", "COPY"])
    assert not bytes_in(house.pools, RegionState.RESERVED)


def test_all_or_nothing(house: House) -> None:
    """The copy pool is smaller: what the primary has given already must come back."""
    with pytest.raises(PoolFull) as caught:
        house.pools.reserve(ask(14 << 20))
    assert caught.value.pool == "COPY"
    assert re.fullmatch(r"no room for 14\.0 MiB, [\d.]+ MiB are free", caught.value.message)
    assert not bytes_in(house.pools, RegionState.RESERVED)
    assert not any(m.users for pool in house.pools.pools.values() for m in pool.members)
    assert house.pools.reserve(ask(14 << 20, copies=()))


def test_room_in_small_pieces_is_room(house: House) -> None:
    """Every second one of many small spans was given back: half of the pool is free, and no piece of it is long."""
    held: list[Span] = []
    with suppress(PoolFull):
        while True:
            held += house.pools.reserve(ask(100 << 10))
    for span in held[::2]:
        house.pools.release(span, ["DISK", "COPY"])
    spans = house.pools.reserve(ask(1 << 20))
    assert len(spans) > 8
    assert sum(house.pools._capacity(span.length) for span in spans) >= 1 << 20


def test_too_many_small_pieces_are_the_fault_of_who_has_them(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The primary was blamed for a copy pool: the object went down the chain, or was refused, where the copy pool had to go."""
    monkeypatch.setattr("fanout.pools.MAX_SPANS", 4)
    held: list[Span] = []
    with suppress(PoolFull):
        while True:
            held += house.pools.reserve(ask(100 << 10))
    for span in held[::2]:
        house.pools.release(span, ["COPY"])
    for length in (450 << 10, 1 << 20):
        with pytest.raises(PoolFull, match="too many small ones") as caught:
            house.pools.reserve(ask(length))
        assert caught.value.pool == "COPY"
        assert len(house.pools.reserve(ask(length, copies=()))) == 1
    assert len(house.pools.reserve(ask(400 << 10))) == 4


def test_an_unknown_length_gets_a_fair_piece(house: House) -> None:
    """Many sessions at once must all get something: no wish takes more than an eighth of what is free."""
    spans = [house.pools.reserve(ask(None))[0] for _ in range(8)]
    assert all(span.length >= 64 << 10 for span in spans)
    assert spans[0].length <= (12 << 20) // 8 + 4096


def test_a_wish_is_granted_when_there_is_room(house: House) -> None:
    (span,) = house.pools.reserve(ask(1000, wish=1 << 20))
    assert span.length > 1 << 20
    (span,) = house.pools.reserve(ask(1000, wish=1 << 40))
    assert span.length < 2 << 20


def test_spans_go_to_the_least_busy_volume(house: House) -> None:
    spans = [house.pools.reserve(ask(1000))[0] for _ in range(4)]
    paths = [span.placements[0].target.path for span in spans]
    assert sorted(paths.count(path) for path in set(paths)) == [2, 2]


def test_a_volume_that_failed_comes_after_the_others_for_a_while(house: House) -> None:
    """Every resend went to the same bad disk again, since it was as free as the good one beside it."""

    def used() -> str:
        (span,) = house.pools.reserve(ask(1000))
        house.pools.release(span, ["DISK", "COPY"])
        return os.path.basename(span.placements[0].target.path)

    targets = {os.path.basename(v.path): v.target for v in house.pools.volumes()}
    bad = used()
    (good,) = {"d0.vol", "d1.vol"} - {bad}
    assert used() == bad
    for faults, pause in ((1, 60), (2, 120), (100, 3600)):
        targets[bad].faults = faults
        assert [used(), used()] == [good, good]
        house.now += pause - 1
        assert used() == good
        house.now += 2
        assert used() == bad
    targets[good].faults = targets["c0.vol"].faults = 1
    assert used() == bad
    targets[bad].faults += 1
    assert used() in (good, bad)  # rather than nowhere


def test_a_sequential_volume_that_failed_comes_after_the_others(house: House) -> None:
    """They are filled one after another: the first one that is bad would be asked for ever."""
    for _ in range(2):
        house.pools.reserve(ask(900 << 10, primary="SEQ"))
    first, second, *_ = (v for v in house.pools.volumes() if v.pool == "SEQ")

    def used() -> object:
        return house.pools.reserve(ask(1000, primary="SEQ"))[0].placements[0].target

    assert used() is first.target
    first.target.faults = 1
    assert used() is second.target


def test_who_cannot_take_part(house: House) -> None:
    with pytest.raises(UnknownPool, match="defined: DISK"):
        house.pools.reserve(ask(1, primary="DISC"))
    with pytest.raises(PoolUnavailable, match="access is unavailable"):
        house.pools.reserve(ask(1, copies=("OFF",)))
    for volume in house.pools.volumes():
        if volume.pool == "COPY":
            volume.fail("it smells")
    with pytest.raises(PoolUnavailable, match="it smells"):
        house.pools.reserve(ask(1))
    assert not bytes_in(house.pools, RegionState.RESERVED)


def test_a_full_directory_is_a_full_volume(house: House) -> None:
    """There must be room for the evidence of what was accepted, not only for the data."""
    volume = next(volume for volume in house.pools.volumes() if volume.pool == "COPY")
    spare = 1 << 40
    while volume.promise(spare):
        spare += 1
    with pytest.raises(PoolFull, match="COPY") as caught:
        house.pools.reserve(ask(1))
    assert PoolFull.explains(str(caught.value)), "or nobody is told to give it room"
    assert next(s for s in house.pools.status() if s.pool == "COPY").state == "full"


def test_a_directory_that_becomes_full_meanwhile(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of deletions and repairs take room that nobody was promised, also between the look and the promise."""

    def look(volume: Volume) -> bool:
        full, spare = directory_full(volume), 1 << 40
        while volume.pool == "COPY" and volume.promise(spare):
            spare += 1
        return full

    monkeypatch.setattr("fanout.pools.directory_full", look)
    with pytest.raises(PoolFull, match="COPY") as caught:
        house.pools.reserve(ask(1))
    assert PoolFull.explains(str(caught.value)), "or nobody is told to give it room"
    assert not bytes_in(house.pools, RegionState.RESERVED)
    assert not any(m.users for pool in house.pools.pools.values() for m in pool.members)


# ---- settling ----------------------------------------------------------------------------------------------


def test_commit_keeps_what_was_used(house: House) -> None:
    (span,) = house.pools.reserve(ask(1 << 20))
    written = WrittenSpan(0, span, 12288, 0, 100)
    assert house.pools.kept_length(written, "DISK") == 12288
    house.pools.commit(written, ["DISK"])
    assert bytes_in(house.pools, RegionState.LIVE) == {"DISK": 12288}
    assert bytes_in(house.pools, RegionState.RESERVED) == {"COPY": span.length}
    house.pools.release(span, ["COPY", "DISK"])  # once more is no harm
    assert not bytes_in(house.pools, RegionState.RESERVED)
    placement = span.placements[0]
    volume = house.pools.volume_of(placement.target)
    assert volume is not None
    assert house.pools.free(volume, [placement.offset]) == 12288
    assert not bytes_in(house.pools, RegionState.LIVE)


def test_quarantine_lasts_until_the_volume_was_reopened(house: House) -> None:
    (span,) = house.pools.reserve(ask(1 << 20))
    copy = house.pools.volume_of(span.placements[1].target)
    assert copy is not None
    copy.fail("hung")
    house.pools.quarantine(span, ["COPY"])
    assert bytes_in(house.pools, RegionState.QUARANTINED) == {"COPY": span.length}
    assert house.pools.revive("COPY") == [copy]
    assert copy.state is VolumeState.AVAILABLE
    assert not bytes_in(house.pools, RegionState.QUARANTINED)
    assert house.book.entries[copy.uuid].epoch == copy.superblock.epoch == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a generator
def test_an_interrupt_anywhere_in_the_books(house: House) -> None:
    """Of a reservation, and of its release: the books stay whole, and nothing is handed out twice. Space may wait for an opening.

    At every third point; the seed says from which on.
    """
    point, struck = 1 + SEED % 3, True
    while struck:
        striker = Striker(point)
        try:
            sys.setprofile(striker)
            house.pools.release(house.pools.reserve(ask(1))[0], ["DISK", "COPY"])
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        gc.collect()
        spans = house.pools.reserve(ask(1)) + house.pools.reserve(ask(1))
        bytes_in(house.pools, RegionState.FREE)  # checks them
        taken = sorted((p.target.path, p.offset) for one in spans for p in one.placements)
        assert taken == sorted(set(taken)), point
        for one in spans:
            house.pools.release(one, ["DISK", "COPY"])
        del spans, one
        if point % 100 < 3:
            house.again()
        struck, point = striker.struck, point + 3
    assert point > 50


def test_a_span_that_survives_a_reopening_can_still_commit(house: House) -> None:
    """Its transaction was synced before the failure: the reopening must not give its region away."""
    (span,) = house.pools.reserve(ask(1 << 20))
    copy = house.pools.volume_of(span.placements[1].target)
    assert copy is not None
    copy.fail("flush of somebody else")
    house.pools.revive("COPY")
    assert bytes_in(house.pools, RegionState.RESERVED)["COPY"] == span.length
    house.pools.commit(WrittenSpan(0, span, 8192, 0, 0), ["DISK", "COPY"])
    assert bytes_in(house.pools, RegionState.LIVE) == {"DISK": 8192, "COPY": 8192}


def test_a_forgotten_span_is_quarantined(house: House) -> None:
    """Nobody can say any more whether a write is in flight: the region is neither lost for ever nor free."""
    (span,) = house.pools.reserve(ask(1 << 20))
    length = span.length
    del span
    gc.collect()
    house.pools.reserve(ask(1))
    assert bytes_in(house.pools, RegionState.QUARANTINED) == {"DISK": length, "COPY": length}


def test_many_threads(house: House) -> None:
    """Reservations, commits and releases from eight threads at once add up."""
    kept = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            try:
                spans = house.pools.reserve(ask(rng.choice([None, 100, 50_000])))
            except PoolFull:
                continue
            for span in spans:
                if rng.random() < 0.1:
                    house.pools.commit(WrittenSpan(0, span, 8192, 0, 0), ["DISK"])
                    kept.append(8192)
                house.pools.release(span, ["DISK", "COPY"])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not bytes_in(house.pools, RegionState.RESERVED)
    assert bytes_in(house.pools, RegionState.LIVE).get("DISK", 0) == sum(kept)
    assert not any(m.users for pool in house.pools.pools.values() for m in pool.members)


# ---- opening -------------------------------------------------------------------------------------------------


def test_one_bad_volume_is_not_the_store(house: House) -> None:
    """Missing, foreign, torn or busy: the others open; it comes back by itself when it is mended."""
    house.pools.close()
    path = house.directory / "c0.vol"
    path.rename(house.directory / "away")
    pools = house.again()
    status = {entry.path: entry for entry in pools.status()}
    assert (status[str(path)].state, "mounted" in status[str(path)].reason) == ("unavailable", True)
    assert pools.reserve(ask(1, copies=()))
    with pytest.raises(PoolUnavailable, match="is it mounted"):
        pools.reserve(ask(1))
    (house.directory / "away").rename(path)
    assert pools.revive("COPY") == [], "not more often than once a second"
    house.now += 1.5
    assert [volume.path for volume in pools.revive("COPY")] == [str(path)]
    assert pools.reserve(ask(1))


def test_a_lock_that_is_let_go_in_a_moment_is_waited_for(house: House) -> None:
    """As that of an opening which hung, was given up, and answers when the volume is tried again."""
    house.pools.close()
    path = house.directory / "c0.vol"
    with open(path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pools = house.again()
        assert "locked" in pools.pools["COPY"].reasons()
        house.now += 1.5
        letting_go = threading.Timer(0.03, fcntl.flock, (held, fcntl.LOCK_UN))
        letting_go.start()
        assert [volume.path for volume in pools.revive("COPY")] == [str(path)]
        letting_go.join()


def test_live_regions_are_not_handed_out_after_an_open(house: House) -> None:
    (span,) = house.pools.reserve(ask(1 << 20))
    volume, offset = PoolSet.held(span)["COPY"][:2]
    house.book.live[volume.uuid] = {offset: span.length}
    pools = house.again()
    assert bytes_in(pools, RegionState.LIVE) == {"COPY": span.length}
    taken = [pools.reserve(ask(1 << 20))[0] for _ in range(8)]
    for other in taken:
        at = other.placements[1].offset
        assert at + other.length <= offset or at >= offset + span.length


@pytest.mark.parametrize("how", ["epoch", "directory"])
def test_an_old_catalog_never_allocates(house: House, how: str) -> None:
    """One volume that has seen more than the catalog stops all of it, before anything is written."""
    if how == "epoch":
        house.pools.close()
        uuid, entry = next(iter(house.book.entries.items()))
        house.book.set_epochs({uuid: (entry.epoch - 1, entry.device, entry.inode)})
    else:
        volume = next(house.pools.volumes())
        record = DirectoryRecord(
            csn=5, op=Op.COMMIT, aggregate=b"A" * 16, transaction=b"T" * 16, attempt=1,
            spans=(StoredSpan(0, 1 << 20, 8192, 8192, 0, 0),),
        )  # fmt: skip
        assert volume.written(house.engine.run(volume.prepare([record])))
        house.pools.close()
    epochs = {entry.volume: entry.epoch for entry in house.book.volumes()}
    with pytest.raises(CatalogStale, match="older than a volume"):
        house.again()
    assert {entry.volume: entry.epoch for entry in house.book.volumes()} == epochs
    with pytest.raises(CatalogStale):
        house.pools.reserve(ask(1))
    for entry in house.book.volumes():
        found = probe(house.engine, entry.path)
        assert found is not None
        assert found.epoch <= entry.epoch + 1


def test_a_catalog_that_records_nothing_opens_nothing(house: House) -> None:
    """Epochs that nobody recorded are provisional: the next opening goes on."""
    house.pools.close()
    house.book.broken = True
    for _ in range(3):
        with pytest.raises(CatalogError, match="on purpose"):
            house.again()
    house.book.broken = False
    assert house.again().reserve(ask(1))


def test_a_revival_that_is_not_recorded_can_be_tried_again(house: House) -> None:
    copy = next(volume for volume in house.pools.volumes() if volume.pool == "COPY")
    copy.fail("test")
    house.book.broken = True
    for _ in range(3):
        house.now += 100
        with pytest.raises(CatalogError):
            house.pools.revive("COPY")
        assert not copy.writable
    house.book.broken = False
    house.now += 100
    assert house.pools.revive("COPY") == [copy]
    house.again().reserve(ask(1))


def test_a_revival_that_is_interrupted_anywhere(house: House) -> None:
    """Whoever came next found the pool taken: it was not tried again, and who needed it to grow waited for ever."""
    copy = next(volume for volume in house.pools.volumes() if volume.pool == "COPY")
    point, struck = 1, True
    while struck:
        copy.fail("test")
        house.now += 100
        striker = Striker(point)
        try:
            sys.setprofile(striker)
            house.pools.revive("COPY")
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert not house.pools.pools["COPY"].growing.locked(), point
        house.now += 100
        house.pools.revive("COPY")
        assert copy.writable, point
        struck, point = striker.struck, point + (1 if point < 30 else 7)
    house.again().reserve(ask(1))
    assert point > 50


def test_read_only(house: House) -> None:
    """Beside a writer: nothing is locked, nothing is written, nothing can be reserved."""
    beside = house.make()
    assert len(beside.open(read_only=True)) == 4
    with pytest.raises(PoolUnavailable):
        beside.reserve(ask(1))
    beside.close()


def test_creation_is_undone_when_one_volume_cannot_be_made(real: Engine, tmp_path: Path) -> None:
    (tmp_path / "c0.vol").write_bytes(b"mine")
    with pytest.raises(VolumeForeign, match="there is a file already"):
        House(real, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["c0.vol", "seq"]
    assert (tmp_path / "c0.vol").read_bytes() == b"mine"


# ---- sequential volumes ----------------------------------------------------------------------------------------


def test_sequential_volumes_are_made_on_demand(house: House) -> None:
    """One after another, up to the limit; then the pool is full. After an open they are all there."""
    pools = house.pools
    request = ask(700_000, primary="SEQ", copies=())
    spans: list[Span] = []
    while len(spans) < 6:
        spans += pools.reserve(request)
    with pytest.raises(PoolFull, match="SEQ"):
        pools.reserve(request)
    paths = [span.placements[0].target.path for span in spans]
    assert paths == sorted(paths)
    assert [os.path.basename(path) for path in dict.fromkeys(paths)] == [
        f"SEQ.{number:05d}.fanout" for number in (1, 2, 3)
    ]
    pools = house.again()
    assert len([volume for volume in pools.volumes() if volume.pool == "SEQ"]) == 3
    assert len(pools.reserve(ask(3 << 20, primary="SEQ", copies=()))) > 1


def test_no_volume_is_made_for_what_can_never_fit(house: House) -> None:
    """Each attempt filled the disk with empty volumes up to max_volumes, and was refused all the same."""
    before = os.listdir(house.directory / "seq")
    with pytest.raises(PoolFull, match="its 3 volumes together would not take it"):
        house.pools.reserve(ask(1 << 30, primary="SEQ", copies=()))
    assert os.listdir(house.directory / "seq") == before
    assert house.pools.reserve(ask(3 << 20, primary="SEQ", copies=()))


def test_a_spare_volume_is_made_ahead(house: House) -> None:
    """The session that fills a volume does not wait for the next one; and there is one at most."""
    house.pools.reserve(ask(1_400_000, primary="SEQ", copies=()))
    for grower in house.pools._grower.threads:
        grower.join()
    made = [status for status in house.pools.status() if status.pool == "SEQ"]
    assert [status.state for status in made] == ["available"] * 2
    house.pools.reserve(ask(1000, primary="SEQ", copies=()))
    assert not any(grower.is_alive() for grower in house.pools._grower.threads)


def test_an_interrupted_growth_is_taken_up_again(house: House) -> None:
    """A crash between making a volume and telling the catalog leaves a file; other people's files are passed over."""
    made = create_volumes(
        house.engine,
        parse(CONFIG.replace('directory = "seq"', 'directory = "other"').replace(".vol", ".other"), path=str(house.directory / "x")),
        store=STORE,
        pool_uuids=house.uuids,
    )  # fmt: skip
    orphan = next(entry for entry in made if entry.pool == "SEQ")
    os.rename(orphan.path, house.directory / "seq" / "SEQ.00002.fanout")
    (house.directory / "seq" / "SEQ.00003.fanout").write_bytes(b"somebody's" * 1000)
    request = ask(700_000, primary="SEQ", copies=())
    paths = {house.pools.reserve(request)[0].placements[0].target.path for _ in range(5)}
    assert {os.path.basename(path) for path in paths} == {
        "SEQ.00001.fanout", "SEQ.00002.fanout", "SEQ.00004.fanout",
    }  # fmt: skip
    assert (house.directory / "seq" / "SEQ.00003.fanout").read_bytes() == b"somebody's" * 1000


def test_a_volume_that_was_made_and_not_opened_is_one_of_the_pool(house: House) -> None:
    """It was forgotten, and every reservation made another one: more than there may be, and the disk was full of them."""
    pools = house.pools
    pools.reserve(ask(1_400_000, primary="SEQ", copies=()))
    for grower in pools._grower.threads:
        grower.join()
    house.book.broken = True
    request = ask(1_400_000, primary="SEQ", copies=())
    pools.reserve(request)  # into the spare one
    for _ in range(3):
        with pytest.raises((CatalogError, PoolFull)):
            pools.reserve(request)
    assert len(os.listdir(house.directory / "seq")) == 3
    house.book.broken = False
    house.now += 100
    assert [os.path.basename(v.path) for v in pools.revive("SEQ")] == ["SEQ.00003.fanout"]
    assert pools.reserve(request)


def test_growth_that_fails_says_why(house: House) -> None:
    house.config.device_classes["seq"].directory.rename(house.directory / "gone")  # type: ignore[union-attr]
    with pytest.raises(PoolFull, match=r"no volume could be added.*No such file"):
        house.pools.reserve(ask(3 << 20, primary="SEQ", copies=()))


def test_a_store_has_so_many_volumes_and_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanout.growing.MAX_VOLUMES", len(list(house.pools.volumes())))
    with pytest.raises(PoolFull, match=r"as many as can be open at once; raise volume_size"):
        house.pools.reserve(ask(3 << 20, primary="SEQ", copies=()))


def test_the_limit_is_the_engine_s() -> None:
    assert MAX_VOLUMES == _core.MAX_TARGETS


# ---- the whole way -----------------------------------------------------------------------------------------------


def test_an_independent_reader_finds_every_byte(house: House) -> None:
    """Streamed by the engine, framed by SpanFraming, committed, closed: read back by the format page alone."""
    rng = random.Random(7)
    framing = SpanFraming(STORE, block_size=house.engine.slot_size, volumes=PoolSet.volumes_of)
    objects = [
        (b"name \xff%d" % n, rng.randbytes(size)) for n, size in enumerate((0, 1, 70_000, 4096))
    ]
    data = b"".join(content for _, content in objects)
    request = ask(len(data), members=len(objects), name_bytes=50)
    (span,) = house.pools.reserve(request)
    with house.engine.stream([placement.target for placement in span.placements]) as stream:
        stream.place([placement.offset for placement in span.placements], span.length)
        stream.write(framing.head(request, 0, span, 0), raw=True)
        fragments, at = [], 0
        for name, content in objects:
            stream.write(content)
            fragments.append(Fragment(name, at, len(content), stream.digest()))
            at += len(content)
        stream.write(
            framing.foot(request, 0, span, fragments, stream.sums(), 0, at, final=True), raw=True
        )
        stream.pad()
        used = stream.position
        assert all(outcome.ok for outcome in stream.sync().values())
    written = WrittenSpan(0, span, used, 0, at)
    for pool, held in dict(PoolSet.held(span)).items():
        kept = house.pools.kept_length(written, pool)
        stored = StoredSpan(0, held.offset, kept, used, 0, at)
        record = DirectoryRecord(
            csn=1, op=Op.COMMIT, aggregate=request.aggregate, transaction=request.transaction,
            attempt=1, spans=(stored,), node="N1", kind=ObjectKind.BACKUP, time_ns=3,
        )  # fmt: skip
        house.pools.commit(written, [pool])
        assert held.volume.written(house.engine.run(held.volume.prepare([record])))
        held.volume.flush()
        header, footer = held.volume.read_span(stored, aggregate=request.aggregate)
        assert footer.fragments == tuple(fragments)
        with open(held.volume.path, "rb") as file:
            other = IndependentVolume(file)
            assert (other.info["epoch"], other.info["pool"]) == (2, pool)
            found = other.records[request.aggregate]
            assert (found["node"], found["csn"], found["all"]) == ("N1", 1, True)
            view = other.span(found["spans"][0])
        assert view["data"] == data
        assert view["required"] == list(header.required) == ["DISK", "COPY"]
        for (name, offset, length, digest), (expected, content) in zip(
            view["fragments"], objects, strict=True
        ):
            assert (name, view["data"][offset : offset + length]) == (expected, content)
            assert digest == xxhash.xxh3_128_digest(content)
    assert fmt.HEAD_SIZE + len(data) < used

"""The directory forgets what was committed, brings back what was deleted, or lies after a crash."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fanout import format as fmt
from fanout.directory import BlockRefused, CheckpointUnsafe, Directory, Write
from fanout.errors import InterfaceError, VolumeError, VolumeFull, VolumeTorn
from fanout.format import DirectoryRecord, Op, encode_superblock, ranges
from tests.format import samples
from tests.format.samples import PATH, record
from tests.independent_reader import Volume as IndependentVolume

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Sequence
    from pathlib import Path


BLOCK = samples.superblock(directory_bytes=64 << 10)  # 16 blocks in each half


class Medium:
    """The bytes of a volume's directory, and the directory that thinks it knows them."""

    def __init__(self) -> None:
        self.data = bytearray(BLOCK.size)
        self.put([Directory.first_block(BLOCK)])
        self.directory = self.load()
        self.directory.flushed()

    def put(self, writes: Sequence[Write]) -> None:
        for offset, data in writes:
            self.data[offset : offset + len(data)] = data

    def load(self, block: fmt.Superblock = BLOCK, *, vouched: bool = False) -> Directory:
        halves = [
            bytes(self.data[block.half_offset(half) :][: block.directory_bytes]) for half in (0, 1)
        ]
        return Directory.load(block, halves, path=PATH, vouched=vouched)

    def append(self, *records: DirectoryRecord, flush: bool = True) -> list[Write]:
        writes = self.directory.prepare(records, epoch=BLOCK.epoch)
        self.put(writes)
        self.directory.written()
        if flush:
            self.directory.flushed()
        return writes


def held(directory: Directory) -> list[DirectoryRecord]:
    """The records of aggregates that are on the volume."""
    return [record for record in directory.records.values() if record.spans]


def delete(csn: int, aggregate: bytes) -> DirectoryRecord:
    return record(csn, 0, op=Op.DELETE, aggregate=aggregate)


def test_it_remembers_over_many_checkpoints() -> None:
    """300 commits and deletes through 16 blocks a half: loading gives what memory has, at every step."""
    medium = Medium()
    expected: dict[bytes, DirectoryRecord] = {}
    for csn in range(1, 300):
        if csn % 3 == 0:
            gone = expected.pop(record(csn - 1).aggregate)
            medium.append(delete(csn, gone.aggregate))
            medium.directory.forget_deletes([record(max(2, csn - 31)).aggregate])
        else:
            expected[record(csn).aggregate] = record(csn, 1 + csn % 5)
            medium.append(record(csn, 1 + csn % 5))
        for directory in (medium.directory, medium.load()):
            assert {r.aggregate: r for r in held(directory)} == expected
            assert directory.last_csn == csn


def test_the_newest_delete_is_never_forgotten() -> None:
    """A catalog from before it would be taken for the present one. Older ones go when everybody has them."""
    medium = Medium()
    medium.append(record(1), record(2))
    for csn in (3, 4):
        medium.append(delete(csn, record(csn - 2).aggregate))
    medium.directory.forget_deletes([record(1).aggregate, record(2).aggregate, b"unknown"])
    while medium.directory._live.generation == 1:
        medium.append(delete(4, record(2).aggregate))
    for directory in (medium.directory, medium.load()):
        assert directory.deletes() == [record(2).aggregate]
        assert directory.last_csn == 4
    medium.append(record(5))
    while medium.directory._live.generation == 2:
        medium.append(record(5))
    assert medium.load().deletes() == []


def test_deletions_have_room_when_nothing_new_has() -> None:
    """Half of what stays for appending: a full directory can say what is left of its aggregates, and is written all the same."""
    medium = Medium()
    count = 0
    while medium.directory.promise(count * 4096):
        medium.append(record(count + 1))
        count += 1
    assert medium.directory.full
    told = 0
    for number in range(count):
        more = replace(record(number + 1), csn=1000 + number, deleted=ranges(range(0, 40, 2)))
        if medium.directory.growth(more) > medium.directory.spare_bytes:
            break
        medium.append(more)
        told += 1
    assert 0 < told < count
    assert sum(bool(r.deleted) for r in held(medium.load())) == told
    assert medium.directory.growth(delete(2000, record(1).aggregate)) < 0


def test_a_move_replaces_and_an_empty_one_ends() -> None:
    """An aggregate that was moved is only at its new spans; one that left is not on the volume, after a load too."""
    medium = Medium()
    medium.append(record(1, 2), record(2))
    medium.append(record(3, 1, op=Op.MOVE, aggregate=record(1).aggregate))
    medium.append(record(4, 0, op=Op.MOVE, aggregate=record(2).aggregate))
    assert [r.csn for r in held(medium.load())] == [3]
    medium.append(record(2))  # older than what is known: changes nothing
    assert [r.csn for r in held(medium.load())] == [3]


@pytest.mark.parametrize("op", [Op.MOVE, Op.DELETE])
def test_a_checkpoint_keeps_the_newest_record_whatever_it_is(op: Op) -> None:
    """Breaks if a catalog from before an aggregate left the volume, or was deleted, is not recognised."""
    medium = Medium()
    medium.append(record(1), record(2))
    for csn, old in ((4, record(1)), (5, record(2))):
        medium.append(record(csn, 0, op=op, aggregate=old.aggregate))
        medium.directory.forget_deletes([old.aggregate])
    for _ in range(medium.directory.blocks_left + 1):
        medium.append(record(3, aggregate=b"7" * 16))
    found = medium.load()
    assert (found.last_csn, sorted(r.csn for r in found.records.values())) == (5, [3, 5])


def test_appends_never_touch_a_block_again() -> None:
    """Between two checkpoints no block is written twice, and the live half is never overwritten by one."""
    medium, seen = Medium(), set[int]()
    for csn in range(1, 120):
        half = medium.directory._live.half
        writes = medium.append(
            delete(csn, b"D" * 16) if csn % 2 else record(csn, aggregate=b"7" * 16)
        )
        lower = BLOCK.half_offset(1 - half)
        if all(lower <= write.offset < lower + BLOCK.directory_bytes for write in writes):
            seen = set()  # a checkpoint: the other half, from its beginning
        for write in writes:
            assert write.offset not in seen
            seen.add(write.offset)
    assert medium.directory._live.generation > 3


def test_a_checkpoint_waits_for_the_last_one_to_be_durable() -> None:
    """Overwriting the old half before the new base is durable could lose both."""
    medium = Medium()
    for csn in range(1, 17):  # the last one is a checkpoint: the first block of all was durable
        medium.append(record(csn), flush=False)
    assert medium.directory.blocks_left == 15
    for csn in range(17, 32):
        medium.append(record(csn), flush=False)
    csn = 32
    with pytest.raises(CheckpointUnsafe, match="flush before the next checkpoint"):
        medium.append(record(csn), flush=False)
    medium.directory.flushed()
    medium.append(record(csn))


@pytest.mark.parametrize("round_", range(40))
def test_a_crash_at_any_point_loses_only_what_was_not_flushed(
    round_: int, rng: random.Random
) -> None:
    """Blocks since the last flush arrive or not, whole or torn; what was flushed is there, and nothing else appears."""
    medium = Medium()
    durable: dict[bytes, int] = {}
    recent: dict[bytes, int] = {}
    unflushed: list[Write] = []
    before = bytes(medium.data)
    for csn in range(1, rng.randrange(2, 90)):
        try:
            writes = medium.append(record(csn, aggregate=bytes([csn % 50]) * 16), flush=False)
        except CheckpointUnsafe:
            medium.directory.flushed()
            durable, recent, unflushed, before = {**durable, **recent}, {}, [], bytes(medium.data)
            writes = medium.append(record(csn, aggregate=bytes([csn % 50]) * 16), flush=False)
        unflushed += writes
        recent[bytes([csn % 50]) * 16] = csn
        if rng.random() < 0.2:
            medium.directory.flushed()
            durable, recent, unflushed, before = {**durable, **recent}, {}, [], bytes(medium.data)
    medium.data = bytearray(before)
    for offset, data in unflushed:
        for at in range(0, len(data), 512):
            if rng.random() < 0.6:
                medium.data[offset + at : offset + at + 512] = data[at : at + 512]
    found = {r.aggregate: r.csn for r in held(medium.load())}
    for aggregate, csn in durable.items():
        assert found.pop(aggregate) in (csn, *([recent[aggregate]] if aggregate in recent else []))
    assert all(recent[aggregate] >= csn for aggregate, csn in found.items())


@pytest.mark.parametrize("round_", range(20))
def test_life_goes_on_after_a_torn_checkpoint(round_: int, rng: random.Random) -> None:
    """The torn half's blocks carry a generation that is never used again, whatever was left of them."""
    medium = Medium()
    for csn in range(1, 16):
        medium.append(record(csn))
    before = bytes(medium.data)
    writes = medium.directory.prepare([record(16)], epoch=BLOCK.epoch)
    medium.data = bytearray(before)
    for offset, data in writes:
        length = rng.choice([0, 512, 2048, 4096])
        medium.data[offset : offset + length] = data[:length]
    medium.directory = medium.load()
    medium.directory.flushed()
    known = {r.csn for r in held(medium.directory)}
    assert known >= set(range(1, 16))
    for csn in range(17, 60):
        medium.append(record(csn))
        assert {r.csn for r in held(medium.load())} == known | set(range(17, csn + 1))


@pytest.mark.parametrize("records", [0, 100])
def test_damage_is_named_never_empty(records: int) -> None:
    """With both bases damaged the directory must not look like that of a new volume; where a catalog can say what is lost, it is written anew."""
    medium = Medium()
    for csn in range(1, records + 1):
        medium.append(record(csn))
    for half in (0, 1):
        medium.data[BLOCK.half_offset(half)] ^= 1
    with pytest.raises(VolumeTorn, match="both halves are damaged"):
        medium.load()
    medium.directory = medium.load(vouched=True)
    medium.directory.flushed()
    assert medium.directory.holed
    assert medium.directory.torn
    left = {r.csn for r in held(medium.directory)}
    assert left <= set(range(1, records + 1))
    medium.append(record(1000))
    medium.put(medium.directory.prepare((), epoch=BLOCK.epoch, anew=True))
    medium.directory.written()
    again = medium.load()
    assert not again.holed
    assert {r.csn for r in held(again)} == left | {1000}


def test_the_first_base_is_empty() -> None:
    """One rotten block closed a volume of which all else was there: the first, which says nothing."""
    medium = Medium()
    for csn in range(1, 10):
        medium.append(record(csn))
    medium.data[BLOCK.half_offset(0)] ^= 1
    directory = medium.load()
    assert directory.holed
    assert {r.csn for r in held(directory)} == set(range(1, 10))


def test_blocks_of_an_earlier_life_do_not_count() -> None:
    """The same device was a volume before: its blocks are valid, and of another volume."""
    medium = Medium()
    for csn in range(1, 10):
        medium.append(record(csn))
    again = samples.superblock(volume=b"N" * 16, epoch=1)
    medium.put([Directory.first_block(again)])
    assert not medium.load(again).records


def test_a_superblock_from_the_past_is_found_by_the_directory() -> None:
    medium = Medium()
    medium.append(record(1))
    with pytest.raises(VolumeTorn, match="superblock was restored from the past"):
        medium.load(samples.superblock(directory_bytes=64 << 10, epoch=6))


def test_what_was_promised_fits() -> None:
    """Promises up to the last, then all of them kept, in one block each: there is always room for the records."""
    medium = Medium()
    offers = 0
    while medium.directory.promise(offers * 4096):
        offers += 1
    assert medium.directory.full
    assert offers > 100
    for number in range(offers):
        span = record(1).spans[0]._replace(offset=number * 4096)
        aggregate = number.to_bytes(16, "big")
        whole = record(number + 1, 0, aggregate=aggregate, node="x" * 64)
        medium.append(replace(whole, spans=(span,)))
    assert medium.directory.full
    assert len(list(held(medium.load()))) == offers
    for number in range(offers):  # and they can all be deleted
        medium.append(delete(1000 + number, number.to_bytes(16, "big")))
    assert not list(held(medium.load()))


def test_more_than_a_half_is_refused_by_name() -> None:
    medium = Medium()
    with pytest.raises(VolumeFull, match="its directory is full"):
        medium.directory.prepare([record(1, spans=2000)], epoch=BLOCK.epoch)


def test_questions_that_need_no_whole_records() -> None:
    """What is held, where, and which volumes were given up; as the records themselves say it."""
    medium = Medium()
    given_up = DirectoryRecord.retirement(b"G" * 16, csn=5, epoch=2, time_ns=9)
    medium.append(record(1, 2), record(2, 200), record(3), delete(4, record(3).aggregate), given_up)
    medium.append(record(6, 0, op=Op.MOVE, aggregate=record(1).aggregate))
    for directory in (medium.directory, medium.load()):
        assert directory.held_csns() == {record(2).aggregate: 2}
        assert tuple(directory.spans()) == record(2, 200).spans
        assert directory.retirements() == [given_up]
        assert directory.deletes() == [record(3).aggregate, given_up.aggregate]
        assert directory.names(record(2).aggregate)
        assert not directory.names(record(1).aggregate)
        assert not directory.names(record(9).aggregate)


def of_version_1(part: bytes) -> bytes:
    """A part of a record, as version 1 of the format had it: without what came since, 16 bytes behind the fixed ones."""
    body = (len(part) - 16).to_bytes(4, "little") + part[4:72] + part[88:-8]
    return body + fmt.sum64(body).to_bytes(8, "little")


def test_long_records_of_an_old_version_are_cut_anew() -> None:
    """What filled a block without the numbers that came since does not with them; the next checkpoint must have room for it."""
    medium, room = Medium(), fmt.record_room(BLOCK.granule)
    long = record(2, 300, present=ranges(range(0, 600, 2)), deleted=ranges(range(1, 99, 2)))
    said = [record(1), long, record(3, 81, node="N" * 3)]
    parts = [of_version_1(part) for one in said for part in fmt.encode_record(one, room + 16)]
    assert max(map(len, parts)) > room - 16
    for number, content in enumerate(fmt.pack_blocks(parts, room), 1):
        place = fmt.BlockPlace(BLOCK.epoch, 1, 1 + number, 0, number, 1)
        block = bytearray(fmt.encode_block(BLOCK, place, content))
        block[12:16] = (1).to_bytes(2, "little") * 2
        block[-8:] = fmt.sum64(bytes(block[:-8])).to_bytes(8, "little")
        medium.put([Write(BLOCK.half_offset(0) + number * BLOCK.granule, bytes(block))])
    medium.directory = medium.load()
    medium.directory.flushed()
    assert list(medium.directory.records.values()) == said
    while medium.directory._live.generation == 1:
        medium.append(record(4))
    assert list(medium.load().records.values()) == [
        *sorted(said, key=lambda one: -len(fmt.encode_record(one, room)[0])), record(4),
    ]  # fmt: skip


class Refusing:
    """A half of which some blocks cannot be read."""

    def __init__(self, data: bytes, numbers: Collection[int]) -> None:
        self._data, self._numbers = data, numbers

    def __getitem__(self, part: slice) -> bytes:
        if part.start // BLOCK.granule in self._numbers:
            raise BlockRefused
        return self._data[part]


def refused(medium: Medium, *numbers: Collection[int]) -> Directory:
    """What is loaded while the medium refuses these blocks of either half."""
    halves = [
        Refusing(bytes(medium.data[BLOCK.half_offset(half) :][: BLOCK.directory_bytes]), mine)
        for half, mine in enumerate(numbers)
    ]
    return Directory.load(BLOCK, halves, path=PATH, vouched=True)


def test_what_is_read_again_another_day_does_not_count() -> None:
    """A newer use of the other half was there, and nobody could see that. When its blocks came back they belonged to the one that followed."""
    medium = Medium()
    while medium.directory.live_half == 0:
        medium.append(record(1))
    medium.append(record(2))
    medium.append(record(3))
    assert medium.directory.extent[1] == BLOCK.half_offset(1) + 3 * BLOCK.granule
    medium.directory = refused(medium, (), (0, 1, 2))
    assert held(medium.directory) == [record(1)]
    assert medium.directory.holed
    medium.directory.flushed()
    medium.put(medium.directory.prepare((), epoch=BLOCK.epoch, anew=True))
    medium.directory.written()
    assert held(medium.load()) == held(medium.directory) == [record(1)]
    medium.directory.flushed()
    medium.append(record(4))
    assert held(medium.load()) == [record(1), record(4)]


def test_nothing_is_appended_behind_what_is_refused() -> None:
    """It may be a block that counts: written over it is gone, and cannot be read another day."""
    medium = Medium()
    medium.append(record(1))
    medium.append(record(2))
    medium.directory = refused(medium, (2,), ())
    medium.directory.flushed()
    begin = BLOCK.half_offset(1)
    assert [write.offset for write in medium.append(record(3))] == [begin]
    assert [write.offset for write in medium.append(record(4))] == [begin + BLOCK.granule]
    assert held(medium.load()) == held(medium.directory) == [record(n) for n in (1, 3, 4)]


def test_a_medium_that_refuses_a_whole_half_and_more_is_failing() -> None:
    """Each refusal may take it seconds; nothing that it gives is to be built upon."""
    medium = Medium()
    assert refused(medium, (), range(16)).holed
    with pytest.raises(VolumeError, match="more than 16 blocks of its directory are refused"):
        refused(medium, (15,), range(16))


def test_after_a_lost_write_nothing_is_appended() -> None:
    """What is on the medium is unknown: appending behind it could overwrite what arrived."""
    medium = Medium()
    medium.directory.prepare([record(1)], epoch=BLOCK.epoch)
    with pytest.raises(InterfaceError, match="PREPARED"):
        medium.directory.prepare([record(2)], epoch=BLOCK.epoch)
    medium.directory.lost()
    with pytest.raises(InterfaceError, match="LOST"):
        medium.directory.prepare([record(2)], epoch=BLOCK.epoch)


@pytest.mark.parametrize("round_", range(10))
def test_the_independent_reader_agrees(round_: int, tmp_path: Path, rng: random.Random) -> None:
    """Over checkpoints, deletes, long records and torn tails: the format page alone gives the same directory."""
    medium = Medium()
    for csn in range(1, rng.randrange(2, 120)):
        aggregate = bytes([rng.randrange(20)]) * 16
        made = record(
            csn,
            rng.choice([1, 2, 90]),
            aggregate=aggregate,
            present=ranges([1, 2, 9]),
            deleted=ranges(range(rng.randrange(500))) + ranges([600, 602]),
            committed=csn - 1,
            version=7 * csn,
            objects=600 + csn,
        )
        medium.append(delete(csn, aggregate) if rng.random() < 0.3 else made)
    writes = medium.directory.prepare([record(500, 90), record(501)], epoch=BLOCK.epoch)
    medium.put([write._replace(data=write.data[: rng.choice([512, 4096])]) for write in writes])
    for copy in (0, 1):
        at = BLOCK.copy_offset(copy)
        medium.data[at : at + 4096] = encode_superblock(BLOCK, copy)
    path = tmp_path / "image"
    path.write_bytes(medium.data)
    with path.open("rb") as file:
        found = IndependentVolume(file).records
    mine = medium.load().records
    assert found.keys() == mine.keys()
    for aggregate, expected in mine.items():
        seen = found[aggregate]
        assert (seen["csn"], seen["op"], seen["node"]) == (expected.csn, expected.op, expected.node)
        assert [span.pop("objects") for span in seen["spans"]] == [expected.objects] * len(
            expected.spans
        )
        assert [tuple(span.values()) for span in seen["spans"]] == list(expected.spans)
        assert [range(first, first + count) for first, count in seen["ranges"]] == list(
            expected.present or ()
        )
        assert [range(first, first + count) for first, count in seen["deleted"]] == list(
            expected.deleted
        )
        assert (seen["committed"], seen["version"]) == (expected.committed, expected.version)

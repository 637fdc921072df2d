"""Blocks that are not what they should be: at every reader, and at the volume as a whole.

What could break: an error that is no `FanoutError`, an allocation as large as somebody's number, an endless loop; or bytes that are
valid by themselves and do not belong where they lie: of an older opening, another transaction, volume, store or place.
"""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout import format as fmt
from fanout.errors import FanoutError, InterfaceError, VolumeError, VolumeForeign, VolumeTorn
from fanout.evidence import find_spans
from fanout.format import StoredSpan
from tests.format import samples
from tests.format.samples import STORE, record
from tests.hostile import image
from tests.hostile.forge import forge, put, seal, torn
from tests.volume.image import Disk, ImageEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.ahead import ReadAhead
    from fanout.volume import Volume

REFUSALS = (VolumeTorn, VolumeForeign)
MADE = image.volume()
SUPER = MADE.superblock


def block(name: str) -> bytes:
    """One of the blocks of the volume."""
    at, length = MADE.blocks[name]
    return MADE.data[at : at + length]


# ---- every reader ------------------------------------------------------------------------------------


def superblock_at(offset: int) -> Callable[[bytes], object]:
    return lambda data: fmt.decode_superblock(data, path=image.PATH, offset=offset)


def directory_block(half: int, number: int) -> Callable[[bytes], object]:
    return lambda data: fmt.decode_block(data, SUPER, path=image.PATH, half=half, number=number)


def directory_place(half: int, number: int) -> Callable[[bytes], object]:
    return lambda data: fmt.decode_place(data, SUPER, path=image.PATH, half=half, number=number)


def header_at(offset: int) -> Callable[[bytes], object]:
    return lambda data: fmt.decode_header(
        data, path=image.PATH, volume=SUPER.volume, offset=offset, store=STORE
    )


def footer(data: bytes) -> object:
    return fmt.decode_footer(data, path=image.PATH, offset=0, store=STORE)


def trailer(data: bytes) -> object:
    return fmt.decode_trailer(data, path=image.PATH, offset=0, used=16384)


# Reader: a block that it takes.
READERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "superblock A": (superblock_at(0), block("superblock A")),
    "superblock B": (superblock_at(image.SIZE - 4096), block("superblock B")),
    "directory block": (directory_block(1, 2), block("directory 1.2")),
    "directory place": (directory_place(1, 2), block("directory 1.2")),
    "header": (header_at(MADE.blocks["header 20"][0]), block("header 20")),
    "footer": (footer, block("footer 20")),
    "trailer": (trailer, block("footer 20")),
}
every_reader = pytest.mark.parametrize("name", READERS)


@every_reader
def test_every_other_valid_block_is_refused(name: str, rng: random.Random) -> None:
    """Zeros, ones, noise, and every valid block of the same volume that is not the one that belongs here."""
    read, right = READERS[name]
    read(right)
    junk = [bytes(4096), b"\xff" * 4096, rng.randbytes(4096), b"", right[:-1]]
    others = [block(other) for other in MADE.blocks if block(other) != right]
    if name in {"footer", "trailer"}:
        # A footer does not say where it lies: which one it is, is for the header and the directory to say.
        others = [other for other in others if other[8:12] != b"FOOT"]
    for data in (*junk, *others):
        with pytest.raises(REFUSALS):
            read(data)


@every_reader
def test_torn_mixtures_are_refused(name: str, rng: random.Random) -> None:
    """Of any two valid blocks: what a power cut leaves when one is written over the other."""
    read, right = READERS[name]
    for other in MADE.blocks:
        if name == "trailer" or block(other) == right:
            continue  # the trailer lies in one sector: it is whole, or the other's
        for _ in range(8):
            data = torn(right, block(other), rng)[: len(right)]
            if data in (right, block(other)[: len(right)]):
                continue  # the sectors that they differ in are all of one of them
            with pytest.raises(REFUSALS):
                read(data)


def of(kind: Any, **changes: Any) -> Any:
    return replace(kind, **changes)


HEADER = fmt.decode_header(
    block("header 20"), path="", volume=SUPER.volume, offset=MADE.blocks["header 20"][0]
)
FOOTER = fmt.decode_footer(block("footer 20"), path="", offset=0)
DIRECTORY = fmt.decode_block(block("directory 1.2"), SUPER, path="", half=1, number=2)


def directory_of(superblock: fmt.Superblock, **place: int) -> bytes:
    return fmt.encode_block(superblock, DIRECTORY.place._replace(**place), ())


# What is valid, sealed and wrong: (reader, bytes). Every row is refused by the reader itself.
STRANGERS: dict[str, tuple[str, bytes]] = {
    "superblock, other offset": ("superblock A", block("superblock B")),
    "superblock, other size": (
        "superblock B",
        fmt.encode_superblock(of(SUPER, size=SUPER.size * 2), 1)[:4096],
    ),
    "directory, other store": ("directory block", directory_of(of(SUPER, store=b"?" * 16))),
    "directory, other volume": ("directory block", directory_of(of(SUPER, volume=b"?" * 16))),
    "directory, other half": ("directory block", directory_of(SUPER, half=0)),
    "directory, other index": ("directory block", directory_of(SUPER, number=3)),
    "directory, epoch to come": ("directory block", directory_of(SUPER, epoch=SUPER.epoch + 1)),
    "header, other store": ("header", fmt.encode_header(of(HEADER, store=b"?" * 16))),
    "header, other volume": (
        "header",
        fmt.encode_header(of(HEADER, places=(HEADER.places[0]._replace(volume=b"?" * 16),))),
    ),
    "header, other offset": (
        "header",
        fmt.encode_header(of(HEADER, places=(HEADER.places[0]._replace(offset=1 << 20),))),
    ),
    "footer, other store": ("footer", fmt.encode_footer(of(FOOTER, store=b"?" * 16), 4096)),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_refused(stranger: str) -> None:
    """A right sum is no proof: of another store, volume, half or place is not ours."""
    name, data = STRANGERS[stranger]
    with pytest.raises(REFUSALS):
        READERS[name][0](data)


# ---- what is old -------------------------------------------------------------------------------------


def opened(data: bytes) -> Volume:
    return image.open_(ImageEngine({image.PATH: Disk(bytearray(data))}), SUPER, image.EPOCH)


def with_block(name: str, data: bytes) -> bytes:
    at, length = MADE.blocks[name]
    assert len(data) <= length
    return MADE.data[:at] + data.ljust(length, b"\0") + MADE.data[at + length :]


def read_20(volume: Volume) -> object:
    """The span of mark 20, as its directory says."""
    assert volume.directory is not None
    said = volume.directory.records[bytes([21]) * 16]
    return volume.read_span(said.spans[0], aggregate=said.aggregate)


OLD_HEADERS: dict[str, dict[str, Any]] = {
    "another transaction": {"transaction": b"?" * 16},
    "an earlier attempt": {"attempt": 9},
    "another aggregate": {"aggregate": b"?" * 16},
    "another number": {"number": 1},
    "another part of the data": {"data_start": 4096},
}


@pytest.mark.parametrize("old", OLD_HEADERS)
@pytest.mark.parametrize("which", ["header 20", "footer 20", "both"])
def test_an_old_span_is_not_the_one_that_was_committed(old: str, which: str) -> None:
    """Left at this very place by an earlier use of it: valid in itself, and told apart by what it says it is."""
    read_20(opened(MADE.data))
    head = fmt.encode_header(of(HEADER, **OLD_HEADERS[old]))
    foot = of(FOOTER, **OLD_HEADERS[old])
    if which == "both":
        foot = of(foot, header_sum=fmt.header_sum(head))
    data = MADE.data
    if which != "footer 20":
        data = with_block("header 20", head)
    if which != "header 20":
        at, length = MADE.blocks["footer 20"]
        data = data[:at] + fmt.encode_footer(foot, 4096).ljust(length, b"\0") + data[at + length :]
    if which == "both" and old in {"another transaction", "an earlier attempt"}:
        # Of the same aggregate: only the directory's record knows the transaction, and its readers compare it.
        assert read_20(opened(data))[0] != HEADER  # type: ignore[index]
        return
    with pytest.raises(VolumeTorn):
        read_20(opened(data))


def test_blocks_of_an_earlier_generation_do_not_count() -> None:
    """A half is used again and again: behind the new blocks lie old ones, valid in every way but their generation."""
    volume = opened(MADE.data)
    assert volume.directory is not None
    now = set(volume.directory.records)
    old = fmt.encode_record(record(99, 0, aggregate=b"!" * 16), fmt.record_room(4096))
    stale = fmt.encode_block(SUPER, DIRECTORY.place._replace(generation=1, number=7), old)
    at = SUPER.half_offset(1) + 7 * 4096
    again = opened(MADE.data[:at] + stale + MADE.data[at + 4096 :])
    assert again.directory is not None
    assert set(again.directory.records) == now


def test_a_superblock_of_an_earlier_opening_never_wins() -> None:
    """Restored over one copy it is older than the other; over both it is refused, by the epoch."""
    older = of(SUPER, epoch=SUPER.epoch - 1, sequence=SUPER.sequence - 2)
    for copy, name in enumerate(("superblock A", "superblock B")):
        one = with_block(name, fmt.encode_superblock(older, copy))
        with suppress(VolumeError):  # the newer copy was the one that was overwritten
            assert opened(one).superblock.epoch == SUPER.epoch + 1
    both = with_block("superblock A", fmt.encode_superblock(older, 0))
    both = both[: image.SIZE - 4096] + fmt.encode_superblock(older, 1)
    with pytest.raises(VolumeError, match="epoch"):
        opened(both)


# ---- what a sum does not say ---------------------------------------------------------------------------


def changed(name: str, *writes: tuple[int, int, int]) -> bytes:
    """A block with fields (offset, bytes, value) changed, and sealed."""
    data = bytearray(READERS[name][1])
    for at, size, value in writes:
        put(data, at, size, value)
    seal(data)
    return bytes(data)


# Numbers that nothing else can hold: the next step would not fit the field, a file offset or the database.
NUMBERS = {
    "superblock epoch": ("superblock A", (80, 8, (1 << 62) + 1)),
    "superblock sequence": ("superblock A", (88, 8, (1 << 64) - 1)),
    "superblock time": ("superblock A", (152, 8, 1 << 63)),
    "directory generation": ("directory place", (72, 8, (1 << 62) + 1)),
    "directory sequence": ("directory block", (80, 8, (1 << 64) - 1)),
    "record commit": ("directory block", (112 + 8, 8, (1 << 62) + 1)),
    "record time": ("directory block", (112 + 56, 8, 1 << 63)),
    "record attempt": ("directory block", (112 + 48, 4, 0)),
    "header attempt": ("header", (80, 4, 0)),
    "header data start": ("header", (88, 8, (1 << 63) - 4096)),
    "header place": ("header", (120 + 32 + 16, 8, (1 << 63) - 4096)),
    "footer data start": ("footer", (88, 8, (1 << 64) - 1)),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_impossible_numbers_are_damage(case: str) -> None:
    name, write = NUMBERS[case]
    with pytest.raises(VolumeTorn):
        READERS[name][0](changed(name, write))


SPAN = StoredSpan(0, 65536, 32768, 16384, 0, 4096)


@pytest.mark.parametrize(
    "changes",
    [
        {"spans": (SPAN._replace(used=65536),)},
        {"spans": (SPAN._replace(length=(1 << 30) + 1),)},
        {"spans": (SPAN._replace(data_length=16384 - 4096),)},
        {"spans": (SPAN._replace(offset=(1 << 63) - 1),)},
        {"spans": (SPAN._replace(data_start=(1 << 64) - 1),)},
        {"present": (range(5, 9), range(2))},
        {"present": (range(5), range(4, 6))},
        {"present": (range(3, 3),)},
        {"present": (range(1, (1 << 32) + 1),)},
        {"spans": (SPAN,), "objects": 1 << 32},
        {"attempt": 0},
        {"csn": (1 << 62) + 1},
        {"time_ns": 1 << 63},
    ],
    ids=str,
)
def test_impossible_records_are_neither_written_nor_read(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = of(record(7), **changes)
    with pytest.raises(InterfaceError):
        fmt.encode_record(said, 3976)
    with monkeypatch.context() as patch:  # a writer that does not look
        patch.setattr("fanout.format.records._impossible", lambda _: None)
        try:
            parts = fmt.encode_record(said, 3976)
        except struct.error:
            return  # it does not even fit the field
    with pytest.raises(VolumeTorn):
        READERS["directory block"][0](fmt.encode_block(SUPER, DIRECTORY.place, parts))


@every_reader
def test_forged_blocks_are_read_or_refused(name: str, rng: random.Random) -> None:
    """Fields changed where the format page has them, sums that fit: a value or a typed error, nothing else, and quickly."""
    read, right = READERS[name]
    for _ in range(800):
        data = forge(right, rng)
        with suppress(*REFUSALS):
            read(data)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 1 << 64), blocks=st.integers(1, 6))
def test_a_forged_volume_is_used_or_refused(seed: int, blocks: int) -> None:
    """The whole life of a volume on forged blocks: opening, reading, searching, appending, closing."""
    data = image.corrupt(random.Random(seed), forge, blocks)
    with suppress(FanoutError):
        image.use(data)


@settings(max_examples=60, deadline=None)
@given(data=samples.records, cut=st.integers(0, 4096))
def test_parts_without_the_rest_are_no_record(data: fmt.DirectoryRecord, cut: int) -> None:
    """Parts in any number and order: never a record that lacks some."""
    parts = fmt.encode_record(data, 3976)
    blocks = fmt.pack_blocks(parts[: cut % (len(parts) + 1)], 3976)
    decoded: list[fmt.RecordPart] = []
    for number, content in enumerate(blocks):
        place = DIRECTORY.place._replace(number=number)
        big = of(SUPER, directory_bytes=1 << 20, size=4 << 20)
        decoded += fmt.decode_block(
            fmt.encode_block(big, place, content), big, path="", half=1, number=number
        ).parts
    found = [fmt.decode_record(encoded) for _, encoded in fmt.join_parts(decoded)]
    assert found in ([], [data])


# ---- bounds ------------------------------------------------------------------------------------------


def peak(action: Callable[[], object]) -> int:
    """Most bytes that it allocated at once."""
    tracemalloc.start()
    try:
        with suppress(FanoutError):
            action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_made_up_length_allocates_nothing() -> None:
    """A record claims a footer of nearly 1 GiB on a volume of half a MiB; a read claims more than there is."""
    volume = opened(MADE.data)
    large = StoredSpan(0, SUPER.space_offset, 1 << 30, 1 << 30, 0, 100)
    assert peak(lambda: volume.read_span(large, aggregate=b"a" * 16)) < 4 << 20
    for offset, length in ((0, 1 << 40), (1 << 63, 8), (-8, 16), (image.SIZE, 1)):
        with pytest.raises(VolumeTorn, match="not on the volume"):
            volume.read(offset, length)


def test_free_space_full_of_footers_is_searched_once(rng: random.Random) -> None:
    """Clients choose their bytes. What looks like a footer costs a look at its header: once for each place, not for each footer."""
    fake = bytearray(MADE.data)
    begin, end = SUPER.space_offset + (96 << 10), SUPER.space_offset + SUPER.space_length
    foot = bytearray(block("footer 30")[:144])
    count = 0
    for at in range(begin + 8192, end - 4096, 144):
        put(foot, 96, 8, (at - begin - 4096) % (8 << 10) // 4096 * 4096 + at % 4096)
        fake[at : at + 144] = foot
        count += 1
    volume = opened(bytes(fake))
    reads: list[int] = []
    original = volume.read_header

    def counted(offset: int, *, ahead: ReadAhead | None = None) -> fmt.SpanHeader:
        reads.append(offset)
        return original(offset, ahead=ahead)

    volume.read_header = counted  # type: ignore[method-assign]
    began = time.monotonic()
    found = list(find_spans(volume, on_bytes=lambda _: None))
    assert [span.span.offset for span in found] == [MADE.blocks["header 30"][0]]
    assert count > 2000
    assert len(reads) < (end - begin) // 4096 + 16
    assert time.monotonic() - began < 20

"""What is written is not what is read; or something that was never written is read."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout import format as fmt
from fanout.errors import InterfaceError, VolumeForeign, VolumeTorn
from fanout.format import BlockPlace, SpanFraming, SpanPlace
from fanout.host import Fragment, Placement, ReserveRequest, Span
from tests.format import samples
from tests.format.samples import PATH, STORE, VOLUME

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

FILLERS = (b"\0", b"\xff")
REFUSALS = (VolumeTorn, VolumeForeign)
PLACE = BlockPlace(epoch=7, generation=3, sequence=40, half=1, number=2, base_blocks=2)


class Kind(NamedTuple):
    """One kind of block: its bytes, what they mean, and how to read them."""

    data: bytes
    value: Any
    offset: int  # where the decoder is told that it was read
    decode: Callable[[bytes], Any]


def whole(parts: Iterable[fmt.RecordPart]) -> list[fmt.DirectoryRecord]:
    """The records of which all parts are there."""
    return [fmt.decode_record(encoded) for _, encoded in fmt.join_parts(parts)]


def kinds() -> dict[str, Kind]:
    block = samples.superblock()
    records = [samples.record(1), samples.record(2, spans=3, present=(range(2), range(5, 9)))]
    parts = [part for record in records for part in fmt.encode_record(record, 3976)]
    directory = fmt.encode_block(block, PLACE, parts)
    header = samples.header()
    return {
        "superblock A": Kind(
            fmt.encode_superblock(block, 0),
            block,
            0,
            lambda data: fmt.decode_superblock(data, path=PATH, offset=0),
        ),
        "superblock B": Kind(
            fmt.encode_superblock(block, 1),
            block,
            samples.SIZE - 4096,
            lambda data: fmt.decode_superblock(data, path=PATH, offset=samples.SIZE - 4096),
        ),
        "directory block": Kind(
            directory,
            records,
            block.half_offset(1) + 2 * 4096,
            lambda data: whole(fmt.decode_block(data, block, path=PATH, half=1, number=2).parts),
        ),
        "header": Kind(
            fmt.encode_header(header),
            header,
            1 << 19,
            lambda data: fmt.decode_header(
                data, path=PATH, volume=VOLUME, offset=1 << 19, store=STORE
            ),
        ),
        "footer": Kind(
            fmt.encode_footer(samples.footer(), 4096),
            samples.footer(),
            4096,
            lambda data: fmt.decode_footer(data, path=PATH, offset=4096, store=STORE),
        ),
    }


KINDS = kinds()
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
def test_it_comes_back(kind: Kind) -> None:
    assert kind.decode(kind.data) == kind.value


def refused(kind: Kind, data: bytes) -> None:
    """It must be refused, by an error that names the volume and the place on it."""
    with pytest.raises(REFUSALS) as caught:
        kind.decode(data)
    assert caught.value.path == PATH
    assert f" at {kind.offset}: " in str(caught.value)


@every_kind
def test_any_flipped_bit_is_noticed(kind: Kind) -> None:
    """Every byte is covered by a sum: there are no bytes that do not matter."""
    data = bytearray(kind.data)
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            refused(kind, bytes(data))
            data[at] ^= 1 << bit


@every_kind
def test_any_cut_is_noticed(kind: Kind) -> None:
    """Half a block, with nothing, zeros or ones behind it."""
    for length in range(len(kind.data)):
        rest = len(kind.data) - length
        for data in (kind.data[:length], *(kind.data[:length] + fill * rest for fill in FILLERS)):
            if data != kind.data:
                refused(kind, data)


@every_kind
@pytest.mark.parametrize("filler", [0x00, 0xFF, 0x5A])
def test_constant_blocks_are_nothing(kind: Kind, filler: int) -> None:
    for length in (len(kind.data), 1 << 20):
        with pytest.raises(REFUSALS):
            kind.decode(bytes([filler]) * length)


@every_kind
def test_torn_sectors_are_noticed(kind: Kind, rng: random.Random) -> None:
    """Any mixture of the block's sectors with zeros or with an older valid block of the same place."""
    older = bytearray(kind.data)
    older[48] ^= 1  # something of the content: another volume, transaction …
    reseal(older)
    for base in (bytes(len(kind.data)), bytes(older)):
        for _ in range(200):
            mixed = bytearray(kind.data)
            for at in range(0, len(mixed), 512):
                if rng.random() < 0.5:
                    mixed[at : at + 512] = base[at : at + 512]
            if bytes(mixed) in (kind.data, bytes(older)):
                continue
            with pytest.raises(REFUSALS):
                kind.decode(bytes(mixed))


def reseal(data: bytearray) -> None:
    """Make the sum right again, as a hostile or buggy writer would."""
    length = int.from_bytes(data[16:24], "little")
    if 8 <= length <= len(data):
        data[length - 8 : length] = xxhash.xxh3_64_intdigest(data[: length - 8]).to_bytes(
            8, "little"
        )


@every_kind
def test_sums_that_fit_nonsense_crash_nothing(kind: Kind, rng: random.Random) -> None:
    """Sizes, counts and offsets are checked against their bounds, not believed because a sum is right."""
    interesting = [0, 1, 2, 255, 256, 4096, 0x7FFF, 0xFFFF, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
    for _ in range(6000):
        data = bytearray(kind.data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            width = rng.choice([1, 2, 4, 8])
            at = rng.randrange(8, min(len(data), 600) - width)
            value = rng.choice([*interesting, rng.getrandbits(64)])
            data[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
        reseal(data)
        with suppress(*REFUSALS):
            kind.decode(bytes(data))


def test_a_newer_format_is_refused_by_name() -> None:
    """A block that needs a newer reader is not damaged; the message must say what mends it."""
    for kind in KINDS.values():
        data = bytearray(kind.data)
        data[14:16] = (fmt.READER_VERSION + 1).to_bytes(2, "little")
        reseal(data)
        with pytest.raises(VolumeForeign, match=r"needs a reader of format 3.*upgrade"):
            kind.decode(bytes(data))
        data[12:16] = b"\x09\x00\x01\x00"  # written by a newer one that this reader may read
        reseal(data)
        assert kind.decode(bytes(data)) == kind.value


@pytest.mark.parametrize("name", ["directory block", "header", "footer"])
def test_another_store_is_refused(name: str) -> None:
    data = bytearray(KINDS[name].data)
    data[32:48] = b"?" * 16
    reseal(data)
    with pytest.raises(VolumeForeign, match="belongs to store"):
        KINDS[name].decode(bytes(data))


# ---- superblock ------------------------------------------------------------------------------------


@given(samples.superblocks(), st.integers(0, 1))
def test_superblocks_come_back(block: fmt.Superblock, copy: int) -> None:
    data = fmt.encode_superblock(block, copy)
    assert len(data) == block.granule
    found = fmt.decode_superblock(data, path=PATH, offset=block.copy_offset(copy))
    assert found == block


def test_a_superblock_at_another_place_is_refused() -> None:
    """A copied or misdirected superblock must not pass for the one that belongs there."""
    data = fmt.encode_superblock(samples.superblock(), 0)
    with pytest.raises(VolumeTorn, match="misdirected"):
        fmt.decode_superblock(data, path=PATH, offset=4096)
    with pytest.raises(VolumeForeign, match="there is none"):
        fmt.decode_superblock(bytes(4096), path=PATH, offset=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"granule": 512},
        {"granule": 6000},
        {"size": samples.SIZE + 1},
        {"directory_bytes": 4096},
        {"size": 128 << 10},
        {"pool": ""},
        {"pool": "x" * 121},
    ],
    ids=str,
)
def test_impossible_superblocks_are_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(InterfaceError):
        fmt.encode_superblock(samples.superblock(**changes), 0)


# ---- directory records -------------------------------------------------------------------------------


@given(samples.records, st.sampled_from([3976, 65536 - 120]))
@settings(deadline=None)
def test_records_come_back_in_parts(record: fmt.DirectoryRecord, room: int) -> None:
    """However many spans and ranges: cut into parts that fit blocks, and joined again, in any order."""
    block = samples.superblock(
        granule=room + 120, size=1 << 30, directory_bytes=(room + 120) * 64, epoch=7
    )
    parts = fmt.encode_record(record, room)
    assert all(len(part) <= room for part in parts)
    size = fmt.record_size(record)
    assert sum(map(len, parts)) <= (size if size <= room else fmt.round_up(size * 9 // 8, room))
    blocks = fmt.pack_blocks(parts, room)
    decoded: list[fmt.RecordPart] = []
    for number, content in enumerate(blocks):
        data = fmt.encode_block(block, BlockPlace(7, 1, number, 0, number, 1), content)
        decoded += fmt.decode_block(data, block, path=PATH, half=0, number=number).parts
    assert whole(decoded) == [record]
    assert whole(reversed(decoded)) == [record]
    if len(decoded) > 1:
        assert whole(decoded[1:]) == []


def test_a_block_of_an_epoch_that_nobody_opened_is_refused() -> None:
    block = samples.superblock()
    data = fmt.encode_block(block, PLACE._replace(epoch=8), ())
    with pytest.raises(VolumeTorn, match="epoch is 8"):
        fmt.decode_block(data, block, path=PATH, half=1, number=2)


def test_ranges_say_a_set() -> None:
    assert fmt.ranges([5, 1, 2, 3, 9, 2]) == (range(1, 4), range(5, 6), range(9, 10))
    assert fmt.ranges([]) == ()


# ---- spans ---------------------------------------------------------------------------------------------


@given(samples.headers())
def test_headers_come_back(header: fmt.SpanHeader) -> None:
    data = fmt.encode_header(header)
    assert len(data) == fmt.HEAD_SIZE
    for place in header.places:
        found = fmt.decode_header(data, path=PATH, volume=place.volume, offset=place.offset)
        assert found == header
        assert found.sum == fmt.header_sum(data)


def test_a_header_is_valid_only_where_it_says() -> None:
    """A misdirected write, or a volume that was copied, must be found by reading the header."""
    data = fmt.encode_header(samples.header())
    for volume, offset in ((VOLUME, 1 << 20), (b"W" * 16, 1 << 19), (b"?" * 16, 1 << 19)):
        with pytest.raises(VolumeTorn, match="written for other places"):
            fmt.decode_header(data, path=PATH, volume=volume, offset=offset)


def test_headers_that_do_not_fit_are_not_written() -> None:
    place = SpanPlace(VOLUME, 0, "P")
    for changes in (
        {"places": ()},
        {"places": (place,) * 17},
        {"required": ()},
        {"required": ("A", "A")},
        {"required": tuple(f"{n:0120}" for n in range(31))},
        {"required": ("x" * 121,)},
    ):
        with pytest.raises(InterfaceError):
            fmt.encode_header(samples.header(**changes))


@given(samples.footers(), st.sampled_from([4096, 65536]))
def test_footers_come_back(footer: fmt.SpanFooter, granule: int) -> None:
    data = fmt.encode_footer(footer, granule)
    assert (fmt.HEAD_SIZE + footer.data_length + len(data)) % granule == 0
    least = fmt.footer_size(
        len(footer.fragments),
        sum(len(piece.name) for piece in footer.fragments),
        footer.data_length,
        footer.block_size,
    )
    assert least <= len(data) < least + granule
    assert fmt.decode_footer(data, path=PATH, offset=0) == footer


@given(samples.footers())
def test_a_scanner_finds_the_footer_from_the_end(footer: fmt.SpanFooter) -> None:
    data = fmt.encode_footer(footer, 4096)
    used = fmt.HEAD_SIZE + footer.data_length + len(data)
    assert fmt.decode_trailer(data[-4096:], path=PATH, offset=0, used=used) == len(data)
    with pytest.raises(VolumeTorn):
        fmt.decode_trailer(data[-4096:], path=PATH, offset=0, used=fmt.HEAD_SIZE + len(data) - 1)
    for tail in (b"", bytes(4096), data[:-1][-4096:]):
        with pytest.raises(VolumeTorn):
            fmt.decode_trailer(tail, path=PATH, offset=0, used=used)


@pytest.mark.parametrize(
    "pieces",
    [
        (Fragment(b"a", 1, 5, None),),
        (Fragment(b"a", 0, 5, None), Fragment(b"b", 6, 5, None)),
        (Fragment(b"a", 0, 5, None), Fragment(b"b", 4, 5, None)),
        (Fragment(b"", 0, 5, None),),
        (Fragment(b"x" * 1025, 0, 5, None),),
    ],
    ids=["late", "hole", "overlap", "no name", "long name"],
)
def test_footers_that_lie_are_not_written(pieces: tuple[Fragment, ...]) -> None:
    with pytest.raises(InterfaceError):
        fmt.encode_footer(samples.footer(fragments=pieces), 4096)


def test_a_footer_belongs_to_one_header() -> None:
    """Header of one attempt, footer of another: neither is damaged, together they are nothing."""
    place = samples.header().places[0]
    data = fmt.encode_header(samples.header())
    header = fmt.decode_header(data, path=PATH, volume=place.volume, offset=place.offset)
    footer = samples.footer(header_sum=header.sum)
    assert footer.belongs_to(header)
    for other in (
        replace(footer, attempt=3),
        replace(footer, header_sum=1),
        replace(footer, number=4),
        replace(footer, data_start=0),
    ):
        assert not other.belongs_to(header)


# ---- framing -------------------------------------------------------------------------------------------


def framing_span(*granules: int) -> tuple[SpanFraming, ReserveRequest, Span]:
    placements = tuple(
        Placement(f"P{n}", SimpleNamespace(granule=granule), (n + 1) << 20)  # type: ignore[arg-type]
        for n, granule in enumerate(granules)
    )
    names = tuple(placement.pool for placement in placements)
    volumes = tuple(bytes([n]) * 16 for n in range(len(granules)))
    request = ReserveRequest(
        transaction=b"T" * 16, attempt=1, aggregate=b"A" * 16, primary="P0", secondaries=names[1:],
        required=(*names, "MISSING"), length=None, members=1, first_span=0,
    )  # fmt: skip
    framing = SpanFraming(STORE, block_size=64 << 10, volumes=lambda _: volumes)
    return framing, request, Span(1 << 20, placements)


@pytest.mark.parametrize("granules", [(512,), (512, 4096), (4096, 65536, 512)])
def test_framing_makes_a_span_that_reads_back(granules: tuple[int, ...]) -> None:
    """The session's bytes, put together, are what a reader finds at every place."""
    framing, request, span = framing_span(*granules)
    pieces = samples.fragments(50)
    data = bytes(5000)
    head = framing.head(request, 2, span, 777)
    assert len(head) == framing.head_size()
    blocks = head + data
    sums = b"".join(
        xxhash.xxh3_64_intdigest(blocks[at : at + (64 << 10)]).to_bytes(8, "little")
        for at in range(0, len(blocks), 64 << 10)
    )
    foot = framing.foot(request, 2, span, pieces, sums, 777, len(data), final=False)
    used = len(head) + len(data) + len(foot)
    assert used % max(4096, *granules) == 0
    bound = framing.foot_size(len(pieces), sum(len(piece.name) for piece in pieces), len(data))
    assert fmt.round_up(len(head) + len(data) + bound, max(4096, *granules)) == used
    for number, placement in enumerate(span.placements):
        header = fmt.decode_header(
            head, path=PATH, volume=bytes([number]) * 16, offset=placement.offset, store=STORE
        )
        footer = fmt.decode_footer(foot, path=PATH, offset=0, store=STORE)
        assert footer.belongs_to(header)
        assert (header.primary, header.required[-1]) == ("P0", "MISSING")
        assert (header.data_start, header.number, footer.final) == (777, 2, False)
        assert footer.sum_of(0) == fmt.sum64(blocks)


def test_a_footer_of_4096_members_is_quick() -> None:
    """It is made while the stream waits: 5 ms is 5 MiB of one disk; allow a busy machine four times that."""
    footer = samples.footer(4096)
    best = min(timed(lambda: fmt.encode_footer(footer, 4096)) for _ in range(5))
    assert best < 0.020


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started

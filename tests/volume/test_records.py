"""The compact form says something else than what was put, forgets, or grows into objects again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout import format as fmt
from fanout.directory import Directory
from fanout.format import BlockPlace, DirectoryRecord, Op, ranges
from fanout.records import Records
from fanout.types import ObjectKind
from tests.format import samples
from tests.format.samples import record
from tests.volume.memory import grown

ROOM = 3976


def put(records: Records, *added: DirectoryRecord) -> None:
    for one in added:
        encoded = b"".join(fmt.encode_record(one, ROOM))
        records.put(fmt.head_of(encoded), encoded)


KINDS = {
    "commit": record(1),
    "in parts": record(2, 200),
    "some members": record(3, present=ranges([1, 2, 9])),
    "no member": record(4, present=()),
    "some deleted": record(5, deleted=ranges(range(0, 40, 2))),
    "ranges in parts": record(6, 90, present=ranges(range(0, 3000, 2)), deleted=ranges(range(1, 900, 3))),
    "with its members counted": record(13, 90, present=ranges(range(0, 3000, 2)), objects=2**32 - 1),
    "moved": record(7, 2, op=Op.MOVE),
    "moved away": record(8, 0, op=Op.MOVE, present=ranges([3]), deleted=ranges([3])),
    "deleted": record(9, 0, op=Op.DELETE, node=""),
    "retired": DirectoryRecord.retirement(b"V" * 16, csn=10, epoch=3, time_ns=7),
    "another kind": record(11, kind=ObjectKind.ARCHIVE, committed=3, version=77),
    "of an old writer": record(12, kind=None, node="Zoë", committed=0, version=0),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_record_comes_back(kind: str) -> None:
    """As it was, and its head says the same, alone and among others."""
    said = KINDS[kind]
    records = Records()
    put(records, *(other for other in KINDS.values() if other.csn < said.csn), said)
    assert records[said.aggregate] == said
    head = records.head(said.aggregate)
    assert head is not None
    assert (head.csn, head.op, head.aggregate) == (said.csn, said.op, said.aggregate)
    assert (head.transaction, head.retires) == (said.transaction, said.retires)
    assert (head.spans, head.size) == (len(said.spans), fmt.record_size(said))
    (encoded,) = [data for other, data in records.encoded() if other.csn == said.csn]
    assert len(encoded) == head.length
    assert fmt.split_parts(encoded) == fmt.encode_record(said, ROOM)
    assert tuple(fmt.spans_of(encoded)) == said.spans


@given(samples.records)
@settings(deadline=None)
def test_any_record_comes_back(said: DirectoryRecord) -> None:
    records = Records()
    put(records, said)
    assert dict(records) == {said.aggregate: said}
    assert [head.size for head in records.heads()] == [fmt.record_size(said)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30)), max_size=200))
def test_it_is_the_dictionary_that_it_stands_for(steps: list[tuple[int, int]]) -> None:
    """The same answers, in the same order; of equal commits the later one counts, and an older one changes nothing."""
    records, model = Records(), dict[bytes, DirectoryRecord]()
    for turn, (csn, number) in enumerate(steps):
        op = list(Op)[turn % 3]
        said = record(csn, turn % 2, op=op, aggregate=bytes([number]) * 16, attempt=turn + 1)
        before = model.get(said.aggregate)
        encoded = b"".join(fmt.encode_record(said, ROOM))
        old = records.put(fmt.head_of(encoded), encoded)
        assert (old and old.csn) == (before and before.csn)
        if before is None or before.csn <= csn:
            model[said.aggregate] = said
    assert list(records.items()) == list(model.items())
    assert [head.csn for head in records.heads()] == [said.csn for said in model.values()]
    deleted = [said.aggregate for said in model.values() if said.op is Op.DELETE]
    assert [head.aggregate for head in records.deletes()] == deleted


def test_what_is_not_there_is_not_found() -> None:
    """Aggregates that no record names, ids that are none, and everything in an empty one."""
    records = Records()
    for unknown in (record(1).aggregate, b"", b"\0" * 15, b"\0" * 17):
        assert unknown not in records
        assert records.head(unknown) is None
    put(records, *(record(csn) for csn in range(2, 500)))
    for unknown in (record(1).aggregate, b"", record(2).aggregate[:15], record(2).aggregate * 2):
        assert unknown not in records
        assert records.get(unknown) is None
        with pytest.raises(KeyError):
            records[unknown]


def test_a_copy_goes_its_own_way() -> None:
    """A checkpoint that is prepared and not written has changed nothing."""
    records = Records()
    put(records, *(record(csn) for csn in range(1, 100)))
    before, other = dict(records), records.copy()
    put(other, *(replace(record(csn), csn=1000 + csn) for csn in range(1, 100, 2)), record(200))
    assert dict(records) == before
    assert (len(records), len(other)) == (99, 100)
    assert other[record(1).aggregate].csn == 1001


def test_dropped_while_others_ask() -> None:
    """As a checkpoint does: whoever goes through them all sees what was there."""
    records = Records()
    put(records, *(record(csn) for csn in range(1, 60)))
    seen = []
    for head in records.heads():
        seen.append(head.csn)
        if head.csn % 2:
            records.drop(head.aggregate)
    assert seen == list(range(1, 60))
    assert [said.csn for said in records.values()] == list(range(2, 60, 2))
    assert record(1).aggregate not in records


# ---- memory -------------------------------------------------------------------------------------------


def test_a_directory_takes_no_more_when_it_was_read() -> None:
    """Of blocks that are looked at once, of records that nobody asks for, nothing stays; memory grows with the records alone."""
    block = samples.superblock(directory_bytes=2 << 20, size=8 << 20)

    def taken(count: int) -> int:
        parts = [part for csn in range(count) for part in fmt.encode_record(record(csn), ROOM)]
        blocks = fmt.pack_blocks(parts, ROOM)
        half = b"".join(
            fmt.encode_block(block, BlockPlace(block.epoch, 1, 1 + n, 0, n, len(blocks)), content)
            for n, content in enumerate(blocks)
        )
        halves = [half.ljust(block.directory_bytes, b"\0"), bytes(block.directory_bytes)]
        return grown(lambda: Directory.load(block, halves, path=samples.PATH))

    # Beside the bytes: an object round them, one for the key, and an entry of a dictionary.
    assert taken(4000) - taken(2000) < 2000 * (fmt.record_size(record(1)) + 200)

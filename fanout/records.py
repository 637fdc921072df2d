"""The newest record of each aggregate on a volume, held as the bytes that stand on the medium. Pure.

A volume may hold hundreds of thousands of aggregates, and nearly all that is ever asked of their records is a commit number. So a record is
kept encoded, and decoded for whoever asks for it.

What it promises:

1. It behaves like a dictionary of `DirectoryRecord`, by aggregate, in the order in which the aggregates came.
2. It takes little more than the bytes of all records that were put since it was made, and no object for any. So it hardly takes more
   than the half of a directory that they stand in; who writes the other half makes a new one of what still counts.
3. Bytes that were put never change: while one thread puts, others that ask get what was there before or after.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fanout import format as fmt
from fanout.format import AGGREGATE_AT, OP_AT, UUID, DirectoryRecord, Op

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.format import RecordHead

LEAST_SLOTS = 16  # a power of two


class Records(Mapping[bytes, DirectoryRecord]):
    """Encoded records by aggregate. One thread puts; any may ask.

    A hash table laid out as that of `dict`, in arrays: a slot holds an aggregate's turn, and the turn's entry says where in the bytes
    its record begins. A superseded record stays in the bytes, and nothing refers to it.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._places = array(
            "I"
        )  # of the records, in the order of the aggregates' turns, which count from 1
        self._slots = _free(LEAST_SLOTS)  # turns, by hash; 0: free

    def copy(self) -> Records:
        """Another one, that holds the same."""
        other = Records()
        other._bytes, other._places, other._slots = self._bytes[:], self._places[:], self._slots[:]
        return other

    # ---- questions -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[bytes]:
        held = bytes(self._bytes)  # a slice of it is one copy
        for place in self._places:
            at = place + AGGREGATE_AT
            yield held[at : at + UUID]

    def __contains__(self, aggregate: object) -> bool:
        return isinstance(aggregate, bytes) and self._place(aggregate) is not None

    def __getitem__(self, aggregate: bytes) -> DirectoryRecord:
        place = self._place(aggregate)
        if place is None:
            raise KeyError(aggregate)
        return fmt.decode_record(self._data(place, fmt.head_of(self._bytes, place)))

    def head(self, aggregate: bytes) -> RecordHead | None:
        """The head of an aggregate's record; None: there is none."""
        place = self._place(aggregate)
        return None if place is None else fmt.head_of(self._bytes, place)

    def heads(self) -> Iterator[RecordHead]:
        """The heads of all records."""
        return (fmt.head_of(self._bytes, place) for place in self._places)

    def deletes(self) -> Iterator[RecordHead]:
        """Those of deletes: few among many, found without a look at the others' heads."""
        found = (place for place in self._places if self._bytes[place + OP_AT] == Op.DELETE)
        return (fmt.head_of(self._bytes, place) for place in found)

    def encoded(self) -> Iterator[tuple[RecordHead, bytes]]:
        """The head and the bytes of every record."""
        for place in self._places:
            head = fmt.head_of(self._bytes, place)
            yield head, self._data(place, head)

    # ---- putting -------------------------------------------------------------------------------

    def put(self, head: RecordHead, data: bytes) -> RecordHead | None:
        """Let a record replace an older one of its aggregate.

        Args:
            head: of the record.
            data: its parts, back to back.

        Returns:
            The head of the one that counted until now; None: there was none. If that one is newer, it counts as before.
        """
        place = len(self._bytes)
        slot = self._slot(self._slots, head.aggregate)
        turn = self._slots[slot]
        if turn:
            old = fmt.head_of(self._bytes, self._places[turn - 1])
            if old.csn <= head.csn:
                self._bytes += data
                self._places[turn - 1] = place
            return old
        self._bytes += data
        self._places.append(place)
        self._slots[slot] = len(self._places)
        if 2 * len(self._places) > len(self._slots):
            self._spread()
        return None

    def _spread(self) -> None:
        """Twice the slots."""
        slots = _free(2 * len(self._slots))
        mask = len(slots) - 1
        for turn, aggregate in enumerate(self, 1):
            slot = hash(aggregate) & mask
            while slots[slot]:
                slot = (slot + 1) & mask
            slots[slot] = turn
        self._slots = slots

    # ---- the table -----------------------------------------------------------------------------

    def _slot(self, slots: array[int], aggregate: bytes) -> int:
        """The slot of an aggregate, or the one that it would take."""
        mask = len(slots) - 1
        slot = hash(aggregate) & mask
        while turn := slots[slot]:
            at = self._places[turn - 1] + AGGREGATE_AT
            if self._bytes[at : at + UUID] == aggregate:
                break
            slot = (slot + 1) & mask
        return slot

    def _place(self, aggregate: bytes) -> int | None:
        slots = self._slots  # another thread may spread them
        turn = slots[self._slot(slots, aggregate)]
        return self._places[turn - 1] if turn else None

    def _data(self, place: int, head: RecordHead) -> bytes:
        return bytes(self._bytes[place : place + head.length])


def _free(slots: int) -> array[int]:
    return array("I", bytes(4 * slots))

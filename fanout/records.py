"""The newest record of each aggregate on a volume, held as the bytes that stand on the medium. Pure.

A volume may hold hundreds of thousands of aggregates, and nearly all that is ever asked of their records is a commit number. So a record is
kept encoded, and decoded for whoever asks for it.

What it promises:

1. It behaves like a dictionary of `DirectoryRecord`, by aggregate, in the order in which the aggregates came.
2. While one thread puts, others may ask: they get what was there before or after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fanout import format as fmt
from fanout.format import OP_AT, DirectoryRecord, Op

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.format import RecordHead


class Records(Mapping[bytes, DirectoryRecord]):
    """Encoded records by aggregate. One thread puts; any may ask."""

    def __init__(self) -> None:
        self._held: dict[bytes, bytes] = {}

    def copy(self) -> Records:
        """Another one, that holds the same."""
        other = Records()
        other._held = self._held.copy()
        return other

    # ---- questions -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[bytes]:
        return iter(list(self._held))

    def __contains__(self, aggregate: object) -> bool:
        return aggregate in self._held

    def __getitem__(self, aggregate: bytes) -> DirectoryRecord:
        return fmt.decode_record(self._held[aggregate])

    def head(self, aggregate: bytes) -> RecordHead | None:
        """The head of an aggregate's record; None: there is none."""
        data = self._held.get(aggregate)
        return None if data is None else fmt.head_of(data)

    def heads(self) -> Iterator[RecordHead]:
        """The heads of all records."""
        return map(fmt.head_of, list(self._held.values()))

    def deletes(self) -> Iterator[RecordHead]:
        """Those of deletes: few among many, found without a look at the others' heads."""
        return (fmt.head_of(data) for data in list(self._held.values()) if data[OP_AT] == Op.DELETE)

    def encoded(self) -> Iterator[tuple[RecordHead, bytes]]:
        """The head and the bytes of every record: its parts, back to back."""
        return ((fmt.head_of(data), data) for data in list(self._held.values()))

    # ---- putting -------------------------------------------------------------------------------

    def put(self, head: RecordHead, data: bytes) -> RecordHead | None:
        """Let a record replace an older one of its aggregate.

        Args:
            head: of the record.
            data: its parts, back to back.

        Returns:
            The head of the one that counted until now; None: there was none. If that one is newer, it counts as before.
        """
        old = self.head(head.aggregate)
        if old is None or old.csn <= head.csn:
            self._held[head.aggregate] = data
        return old

    def drop(self, aggregate: bytes) -> None:
        """Forget the record of an aggregate."""
        del self._held[aggregate]

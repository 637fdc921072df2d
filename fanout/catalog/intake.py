"""A commit group as the one row that `schema.sql`'s ``intake`` takes. Pure: values in, parameters out.

Everything that the database would otherwise be told row by row is packed here: numbers and texts as JSON, names and digests as
two long byte strings that the members point into. Packing 1,000 members costs about 1 ms of Python.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fanout.catalog.members import to_json
from fanout.types import ObjectKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.catalog.rows import Commit, Deletion, NewAggregate, NewCopy, NewGap, Repair
    from fanout.types import Member

KINDS = (ObjectKind.BACKUP, ObjectKind.ARCHIVE, ObjectKind.SPACE_MANAGED)
KIND_CODES = {kind: code for code, kind in enumerate(KINDS)}
NAME_BITS = 11  # of the length of a name, beside its place
_MEMBER = '"%16d%20d%20d"'  # no number has twenty digits: there is always a space between two
_as_json = json.JSONEncoder(separators=(",", ":")).encode  # `dumps` makes an encoder each time


@dataclass(frozen=True, slots=True)
class Counters:
    """The numbers that the catalog gives out, as they stand before a group."""

    csn: int
    aggregate: int
    object: int

    def after(self, intake: Intake) -> Counters:
        """As they stand once the group is committed."""
        return Counters(
            self.csn + len(intake.attempts),
            self.aggregate + len(intake.aggregates),
            self.object + intake.objects,
        )


@dataclass(slots=True)
class Intake:
    """The columns of the row, as they grow."""

    attempts: list[list[Any]] = field(default_factory=list)
    aggregates: list[list[Any]] = field(default_factory=list)
    copies: list[list[Any]] = field(default_factory=list)
    placements: list[list[Any]] = field(default_factory=list)
    gaps: list[list[Any]] = field(default_factory=list)
    closed: list[list[Any]] = field(default_factory=list)
    deletions: list[list[Any]] = field(default_factory=list)
    members: list[str] = field(default_factory=list)  # of each aggregate
    objects: int = 0
    names: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    name_bytes: int = 0

    def versions(self, counters: Counters) -> dict[bytes, int]:
        """The version that the first member of each aggregate gets."""
        return {bytes.fromhex(row[0]): counters.object + row[3] for row in self.aggregates}

    def parameters(self, counters: Counters, at: int) -> tuple[Any, ...]:
        """The values of the row, in the order of the view's columns."""
        lists = (
            self.attempts,
            self.aggregates,
            self.copies,
            self.placements,
            self.gaps,
            self.closed,
            self.deletions,
        )
        return (
            counters.csn,
            counters.aggregate,
            counters.object,
            at,
            *map(_as_json, lists),
            f"[{','.join(self.members)}]",
            b"".join(self.names),
            b"".join(self.digests),
        )


def pack(commits: Sequence[Commit]) -> Intake:
    """The intake of a group; commits get their numbers in this order.

    Raises:
        ValueError: a name or digest of the wrong length. Checked here because a wrong length would shift its neighbours.
    """
    intake = Intake()
    for ordinal, commit in enumerate(commits):
        _add_attempt(intake, commit)
        for aggregate in commit.aggregates:
            _add_aggregate(intake, aggregate, ordinal)
        for repair in commit.repairs:
            _add_repair(intake, repair, ordinal)
        for deletion in commit.deletions:
            _add_deletion(intake, deletion, ordinal)
    return intake


def _add_attempt(intake: Intake, commit: Commit) -> None:
    intake.attempts.append(
        [
            commit.transaction.hex(),
            commit.attempt,
            "client" if commit.aggregates else "reconcile",
            commit.node,
            None if commit.kind is None else KIND_CODES[commit.kind],
            commit.destination,
            json.dumps(commit.required),
            len(intake.aggregates),
            len(commit.aggregates),
        ]
    )


def _add_aggregate(intake: Intake, aggregate: NewAggregate, ordinal: int) -> None:
    uuid = aggregate.aggregate.hex()
    first, total = intake.objects, _add_members(intake, aggregate.members)
    intake.aggregates.append(
        [uuid, ordinal, aggregate.primary, first, len(aggregate.members), total]
    )
    for copy in aggregate.copies:
        _add_copy(intake, uuid, copy, ordinal)
    for gap in aggregate.gaps:
        _add_gap(intake, uuid, gap)


def _add_members(intake: Intake, members: Sequence[Member]) -> int:
    """The one loop that runs once per object: kept short on purpose. Returns the bytes of all."""
    position = intake.name_bytes + 1  # SQL counts bytes from 1
    lines, names, digests, total = list[str](), intake.names, intake.digests, 0
    for name, start, length, digest in members:
        size = len(name)
        if not 0 < size <= 1024 or len(digest) != 16:
            raise ValueError(f"name of {size} bytes with a digest of {len(digest)}: {name[:64]!r}")
        lines.append(_MEMBER % (position << NAME_BITS | size, start, length))
        names.append(name)
        digests.append(digest)
        position += size
        total += length
    intake.members.append(f"[{','.join(lines)}]")
    intake.name_bytes = position - 1
    intake.objects += len(lines)
    return total


def _add_copy(intake: Intake, uuid: str, copy: NewCopy, ordinal: int) -> None:
    intake.copies.append([uuid, copy.pool, to_json(copy.present), ordinal])
    for place in copy.places:
        intake.placements.append([uuid, copy.pool, place.span, place.volume.hex(), *place[2:]])


def _add_gap(intake: Intake, uuid: str, gap: NewGap) -> None:
    intake.gaps.append([uuid, gap.pool, to_json(gap.missing), gap.reason, gap.errno])


def _add_repair(intake: Intake, repair: Repair, ordinal: int) -> None:
    uuid = repair.aggregate.hex()
    if repair.copy is not None:
        _add_copy(intake, uuid, repair.copy, ordinal)
    if repair.gap is not None:
        _add_gap(intake, uuid, repair.gap)
    else:
        intake.closed.append([uuid, repair.pool])


def _add_deletion(intake: Intake, deletion: Deletion, ordinal: int) -> None:
    uuid, members = deletion.entry.aggregate.hex(), to_json(deletion.members)
    count = 0 if deletion.members is None else len(deletion.members)
    intake.deletions.append([uuid, ordinal, members, count, deletion.size])

"""What a rebuild found, and what was made of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SkippedVolume:
    """A volume that could not take part, and why."""

    pool: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class InDoubt:
    """A complete span that its volume's directory does not name: committed in the last instants, or never.

    Attributes:
        pool: of the volume.
        path: of the volume.
        offset: of the span there.
        used: its bytes.
        transaction: id.
        attempt: 1-based.
        aggregate: id.
        names: of the objects in it.
        committed: other volumes say that the transaction has committed; then this is a copy whose record was lost, and a gap.
    """

    pool: str
    path: str
    offset: int
    used: int
    transaction: bytes
    attempt: int
    aggregate: bytes
    names: tuple[bytes, ...]
    committed: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """An aggregate of which members cannot be had any more: no copy that could be opened has them.

    Attributes:
        aggregate: id.
        node: whose objects they were.
        known: how many members are still known by name.
        reason: what is not there.
    """

    aggregate: bytes
    node: str
    known: int
    reason: str


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What was found, and what was made of it.

    Attributes:
        catalog: path of the new catalog.
        kept: path of the catalog that stood there before, if one did.
        store: id of the store.
        csn: of the last commit.
        volumes: paths of those that took part.
        skipped: those that did not.
        retired: those that were left aside because they had been given up; nothing waits for them.
        transactions: that have committed.
        objects: versions of objects that are visible.
        bytes: of these.
        gaps: how many there are now, counted as `query gap` counts.
        in_doubt: complete spans that no directory names.
        lost: aggregates with members that are gone.
        deduced: transactions whose place in the order was deduced from their time: what was written first is gone.
        notes: what else an operator should know.
        seconds: it took.
    """

    catalog: str
    kept: str | None
    store: bytes
    csn: int
    volumes: tuple[str, ...]
    skipped: tuple[SkippedVolume, ...]
    retired: tuple[SkippedVolume, ...]
    transactions: int
    objects: int
    bytes: int
    gaps: int
    in_doubt: tuple[InDoubt, ...]
    lost: tuple[Lost, ...]
    deduced: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every volume of the store took part and nothing is lost or in doubt."""
        return not (self.skipped or self.lost or self.in_doubt)

"""What the demo found, as frozen values; `plain` turns any of them into JSON's types."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Holding:
    """Objects of one group in one pool."""

    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Retry:
    """One attempt that failed everywhere and was made again.

    Attributes:
        node: whose session.
        transaction: the group of objects that was sent again.
        pool: that was removed from the session.
        reason: in the session's words, with the errno of the kernel.
    """

    node: str
    transaction: str
    pool: str
    reason: str


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One client's session.

    Attributes:
        node: its name.
        domain: its policy domain.
        groups: one transaction for each.
        objects: stored.
        bytes: stored, once.
        written_bytes: times the pools that hold them.
        seconds: from the first transaction to the last commit.
        attempts: transactions begun, retries included.
        removed: pool to reason.
        degraded: a pool that should hold an object does not.
    """

    node: str
    domain: str
    groups: tuple[str, ...]
    objects: int
    bytes: int
    written_bytes: int
    seconds: float
    attempts: int
    removed: dict[str, str]
    degraded: bool


@dataclass(frozen=True, slots=True)
class GapReport:
    """What the gap query says, added up for a primary and a pool."""

    primary: str
    pool: str
    objects: int
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class FaultReport:
    """The fault of a phase: which pool, what was done to it, the errno that the kernel answers."""

    pool: str
    cause: str
    errno: str


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """Both clients' sessions under one condition.

    Attributes:
        name: ``healthy``, ``copy pool fails``, ``active-data pool fails``.
        fault: None when nothing failed.
        targets: pool to what it stands on.
        sessions: one for each client.
        retries: attempts that failed everywhere.
        pools: pool to group to what it holds, from the catalog.
        gaps: from the gap query.
        as_expected: whether pools and gaps are exactly what the rules demand.
        client_bytes_per_second: what the clients saw, retries included.
        written_bytes_per_second: on all pools together.
    """

    name: str
    fault: FaultReport | None
    targets: dict[str, str]
    sessions: tuple[SessionReport, ...]
    retries: tuple[Retry, ...]
    pools: dict[str, dict[str, Holding]]
    gaps: tuple[GapReport, ...]
    as_expected: bool
    client_bytes_per_second: float
    written_bytes_per_second: float


@dataclass(frozen=True, slots=True)
class RepairReport:
    """One repair command."""

    command: str
    copied_objects: int
    copied_bytes: int
    gaps_left: int
    failed: tuple[tuple[str, str], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class ProofReport:
    """Every object read back from every pool that must hold it.

    Attributes:
        phase: whose store.
        reads: objects read.
        bytes: read.
        wrong: what did not agree with the source's digest, or was not there.
        pools: pool to objects read and verified.
        seconds: it took.
    """

    phase: str
    reads: int
    bytes: int
    wrong: tuple[str, ...]
    pools: dict[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class LossReport:
    """If both primaries and COPYPOOL2 had been lost before the repair.

    Attributes:
        phase: in which store.
        lost: group to what no pool would hold any more.
        saved: group to the pool that would still hold it.
        gap_query_said: whether the gap query had named every one of the lost objects.
    """

    phase: str
    lost: dict[str, Holding]
    saved: dict[str, str]
    gap_query_said: bool


@dataclass(frozen=True, slots=True)
class InputReport:
    """What was stored: files of this machine in groups A to D, and one generated file E."""

    files: int
    bytes: int
    groups: dict[str, Holding]


@dataclass(frozen=True, slots=True)
class Report:
    """The whole demo. `ok`: every phase as expected, every gap closed, every byte verified."""

    ok: bool
    targets: str
    why_targets: str
    backend: str
    input: InputReport
    phases: tuple[PhaseReport, ...]
    repairs: tuple[RepairReport, ...]
    proofs: tuple[ProofReport, ...]
    loss: LossReport
    seconds: float
    sentence: str


def plain(value: Any) -> Any:
    """Dataclasses to dicts, tuples to lists, seconds and rates rounded: what JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value

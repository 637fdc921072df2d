"""What a benchmark does, as frozen values: places with targets, what is measured on them, which figures should reach what.

`scenario` reads them from a file. `figures_of` gives every figure its name before anything runs, so that a goal for a figure that nothing
measures is a mistake in the file and not a hole in the result.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.bench.work import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class MeasureKind(enum.Enum):
    """What a measure does; its class says more."""

    STREAM = "stream"
    LATENCY = "latency"
    SLOW = "slow"
    HANG = "hang"
    SMALL = "small"
    MEMORY = "memory"


class Kind(enum.Enum):
    """What targets are."""

    FILES = "files"
    LOOPS = "loops"
    DEVICES = "devices"


class Over(enum.Enum):
    """What files, or the files under loop devices, stand on."""

    MEMORY = "memory"
    DISK = "disk"


class Peer(enum.Enum):
    """A family of contenders; the strongest of it stands for it."""

    FIO_TUNED = "fio_tuned"
    FIO_STOCK = "fio_stock"
    PYTHON_THREADS = "python_threads"
    PYTHON_THREADS_BARE = "python_threads_bare"
    DD_TEE = "dd_tee"
    DRIVER = "driver"
    BTRFS = "btrfs"
    RCLONE = "rclone"


class Policy(enum.Enum):
    """What becomes of a slow target; the words are those of `Engine.open`'s `on_slow`."""

    WAIT = "wait"
    EJECT = "eject"


@dataclass(frozen=True, slots=True)
class Targets:
    """Section ``[targets.NAME]``.

    Attributes:
        name: of the place.
        kind: files, loop devices, or block devices that are there.
        over: files and loops: in memory or on disk.
        count: files and loops: how many.
        size_bytes: client bytes that each can take.
        sector_bytes: loops: logical sector.
        directory: on disk: where; None: the directory for temporary files.
        paths: devices.
    """

    name: str
    kind: Kind
    over: Over
    count: int
    size_bytes: int
    sector_bytes: int = 512
    directory: Path | None = None
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of what a stream measure sweeps over.

    Attributes:
        targets: how many.
        chunk_bytes: what the client hands over at once.
        streams: clients at once, on one engine.
        slot_bytes: of the engine.
        depth: writes in flight on each target.
    """

    targets: int
    chunk_bytes: int
    streams: int
    slot_bytes: int
    depth: int


@dataclass(frozen=True, slots=True)
class Measure:
    """What every ``[[measure]]`` has.

    Attributes:
        name: begins the names of its figures.
        on: name of the targets.
        title: for people.
        rounds: how often all of it is done.
    """

    name: str
    on: str
    title: str
    rounds: int


@dataclass(frozen=True, slots=True)
class StreamMeasure(Measure):
    """``kind = "stream"``: as fast as it goes, beside the peers, at one point or several.

    Attributes:
        points: all combinations, in the order of the file.
        swept: names of the fields of `Point` that have several values.
        peers: who runs beside fanout.
        size_bytes: client bytes of one run.
        most_chunks: a run is shortened to so many chunks of a stream, down to 1 MiB.
    """

    points: tuple[Point, ...]
    swept: tuple[str, ...]
    peers: tuple[Peer, ...]
    size_bytes: int
    most_chunks: int

    def run_bytes(self, point: Point) -> int:
        """Client bytes of one run at a point: whole blocks and whole chunks for each stream."""
        unit = max(BLOCK_BYTES, point.chunk_bytes) * point.streams
        wanted = min(self.size_bytes, max(unit, self.most_chunks * point.chunk_bytes))
        return max(unit, wanted // unit * unit)


@dataclass(frozen=True, slots=True)
class LatencyMeasure(Measure):
    """``kind = "latency"``: one chunk at a time until it is durable on every target, beside Python threads.

    Attributes:
        chunk_bytes: of each operation.
        operations: in each round.
    """

    chunk_bytes: int
    operations: int


@dataclass(frozen=True, slots=True)
class SlowMeasure(Measure):
    """``kind = "slow"``: the last target slows down in the middle of a stream.

    Attributes:
        policies: what becomes of it, one after the other.
        share: of its speed that is left to it.
        seconds: for which it is slow; half of that before, half after.
        patience: seconds for which it may hold up the others, with ``eject``.
    """

    policies: tuple[Policy, ...]
    share: float
    seconds: float
    patience: float


@dataclass(frozen=True, slots=True)
class HangMeasure(Measure):
    """``kind = "hang"``: the last target stops answering.

    Attributes:
        deadline: seconds after which the engine is to let go of it.
    """

    deadline: float


@dataclass(frozen=True, slots=True)
class SmallMeasure(Measure):
    """``kind = "small"``: small objects, committed durably to a primary and two copy pools.

    Attributes:
        object_bytes: of each.
        groups: objects of a transaction.
        most_objects: in one round of one group.
        most_transactions: likewise.
        busy: also beside a Python thread that never waits.
    """

    object_bytes: int
    groups: tuple[int, ...]
    most_objects: int
    most_transactions: int
    busy: bool


@dataclass(frozen=True, slots=True)
class MemoryMeasure(Measure):
    """``kind = "memory"``: how much a process grows while it streams, beside the engine's budget.

    Attributes:
        stream_bytes: client bytes altogether.
        memory_bytes: the budget.
    """

    stream_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Goal:
    """``[[goal]]``: what a figure should reach, at first and then; `least` or `most`, the other is None."""

    figure: str
    title: str
    least: tuple[float, ...] | None
    most: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole scenario, checked."""

    path: str
    title: str
    note: str
    targets: Mapping[str, Targets]
    measures: tuple[Measure, ...]
    goals: tuple[Goal, ...]


# ---- names of figures ----------------------------------------------------------------------------


def label(measure: StreamMeasure, point: Point) -> str:
    """A point in the name of a figure: what is swept, and nothing when nothing is."""
    return ",".join(f"{name}={getattr(point, name)}" for name in measure.swept)


def named(measure: Measure, what: str, at: str = "") -> str:
    """The name of a figure: measure, point, what it is."""
    return ".".join(part for part in (measure.name, at, what) if part)


def figures_of(measure: Measure) -> list[str]:
    """The names of all figures that a measure makes when every peer is present."""
    if isinstance(measure, StreamMeasure):
        found = []
        for point in measure.points:
            at = label(measure, point)
            found += [named(measure, what, at) for what in ("bandwidth", "cpu")]
            for peer in measure.peers:
                found += [
                    named(measure, f"{what}_vs_{peer.value}", at) for what in ("bandwidth", "cpu")
                ]
        extra = [named(measure, "cpu_per_extra_target")] if sweeps_targets_alone(measure) else []
        return [*found, *extra]
    if isinstance(measure, LatencyMeasure):
        return [named(measure, what) for what in ("p50", "p99", "p50_vs_python_threads")]
    if isinstance(measure, SlowMeasure):
        return [named(measure, f"healthy_rate_{policy.value}") for policy in measure.policies]
    if isinstance(measure, HangMeasure):
        return [named(measure, "detach")]
    if isinstance(measure, SmallMeasure):
        beside = ("alone", "busy") if measure.busy else ("alone",)
        return [named(measure, how, f"group={group}") for group in measure.groups for how in beside]
    return [named(measure, "growth_vs_budget")]


def sweeps_targets_alone(measure: StreamMeasure) -> bool:
    """Whether the price of one more target can be told from it."""
    return measure.swept == ("targets",)

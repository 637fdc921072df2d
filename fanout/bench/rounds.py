"""Rounds and ratios: what makes figures of one machine comparable.

In every round each contender does each of its works once, in an order that moves by one from round to round, so that nobody always
runs after the same neighbour. A ratio is made within its round; reported are the median over the rounds and how far they spread.
"""

from __future__ import annotations

import mmap
import os
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fanout.bench.contenders import BenchmarkError, Fanout
from fanout.bench.work import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fanout.bench.contenders import Contender
    from fanout.bench.measure import Sample
    from fanout.bench.work import Work
    from fanout.engine import Engine

K = TypeVar("K")

# How much free memory is touched before anything is timed: the page cache of the buffered peers.
TOUCHED_SHARE = 2


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median, smallest and largest of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def rounded(self, digits: int) -> dict[str, float]:
        """For JSON."""
        return {
            "median": round(self.median, digits),
            "min": round(self.low, digits),
            "max": round(self.high, digits),
        }


def touch_free_memory(size_bytes: int) -> None:
    """Touch memory once and give it back, so that no contender pays for the host's first page."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with mmap.mmap(-1, max(mmap.PAGESIZE, min(size_bytes, available // 2))) as memory:
        for start in range(0, len(memory), mmap.PAGESIZE):
            memory[start] = 1


def warm_up(
    present: Iterable[Contender], work: Work, on_step: Callable[[str], None]
) -> dict[str, str]:
    """Run each once; names of the peers that cannot, and why. Fanout has no excuse."""
    absent = {}
    for one in present:
        on_step(f"warming up: {one.title}")
        try:
            one.run(work)
        except BenchmarkError as error:
            if isinstance(one, Fanout):
                raise
            absent[one.name] = str(error)
        else:
            if isinstance(one, Fanout):
                _prove(work)
    return absent


def _prove(work: Work) -> None:
    """A fast writer of wrong bytes is no contender."""
    wrong = [path for path in work.targets if not matches(work, path)]
    if wrong:
        raise BenchmarkError(f"fanout wrote other bytes than it was given to {', '.join(wrong)}")


def interleaved(
    jobs: Mapping[K, tuple[Contender, Work]], rounds: int, on_step: Callable[[str], None]
) -> dict[K, list[Sample]]:
    """Every job once in each round; their samples, in the order of the rounds."""
    samples: dict[K, list[Sample]] = {key: [] for key in jobs}
    order = list(jobs.items())
    for number in range(rounds):
        shift = number % len(order)
        for key, (one, work) in (*order[shift:], *order[:shift]):
            on_step(f"round {number + 1} of {rounds}: {one.title}")
            samples[key].append(one.run(work))
    return samples


def best(samples: Iterable[Sequence[Sample]], figure: str) -> Sequence[Sample]:
    """The rounds of the contender with the best median."""
    if figure == "bandwidth":
        return max(samples, key=lambda runs: statistics.median(figures(runs, figure)))
    return min(samples, key=lambda runs: statistics.median(figures(runs, figure)))


def ratios(ours: Sequence[Sample], theirs: Sequence[Sample], figure: str) -> list[float]:
    """Fanout's figure divided by the peer's, round by round."""
    pairs = zip(figures(ours, figure), figures(theirs, figure), strict=True)
    return [mine / other for mine, other in pairs]


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], figure: str) -> Spread:
    """The same as one figure."""
    return Spread.of(ratios(ours, theirs, figure))


def figures(runs: Iterable[Sample], figure: str) -> list[float]:
    """One figure of each round: ``bandwidth`` (more is better) or ``cpu`` (less is better)."""
    if figure == "bandwidth":
        return [run.aggregate_bytes_per_second for run in runs]
    return [run.cpu_ms_per_client_gib for run in runs]


def summary(one: Contender, runs: Sequence[Sample]) -> dict[str, object]:
    """A contender's figures, for JSON."""
    return {
        "title": one.title,
        "family": one.family,
        "memory": getattr(one, "memory", None),
        "aggregate_mb_per_second": Spread.of(
            [run.aggregate_bytes_per_second / 1e6 for run in runs]
        ).rounded(1),
        "cpu_ms_per_client_gib": Spread.of([run.cpu_ms_per_client_gib for run in runs]).rounded(1),
        "machine_cpu_ms_per_client_gib": Spread.of(
            [run.machine_cpu_ms_per_client_gib for run in runs]
        ).rounded(1),
        "seconds": [round(run.seconds, 4) for run in runs],
    }


def describe_engine(engine: Engine) -> dict[str, object]:
    """How fanout's engine runs here, for JSON."""
    info = engine.info
    return {
        "backend": info.backend,
        "reason": info.reason,
        "memory_bytes": info.memory_bytes,
        "slot_bytes": info.slot_size,
        "huge_pages": info.huge_pages,
        "registered": info.registered,
        "hash_isa": info.hash_isa,
    }

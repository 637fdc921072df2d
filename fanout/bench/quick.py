"""Rounds, ratios and the report.

In every round each contender runs once, in an order that moves by one from round to round, so that
nobody always runs after the same neighbour. A ratio is made within its round, and reported as the
median over the rounds with the smallest and largest.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.bench import machine
from fanout.bench.contenders import BenchmarkError, Fanout, field, reserved_huge_pages
from fanout.bench.work import CHUNK_BYTES, matches, prepare
from fanout.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fanout.bench.contenders import Contender
    from fanout.bench.measure import Sample
    from fanout.bench.work import Work

REPORT_VERSION = 1
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


@dataclass(frozen=True, slots=True)
class Question:
    """One ratio: what fanout is divided by, and what it should reach.

    Attributes:
        key: in the report's `ratios`.
        families: of contenders; the one with the best median stands for them.
        figure: ``bandwidth`` (more is better) or ``cpu`` (less is better).
        goal: to reach at least (bandwidth) or at most (cpu); None: for information.
        title: for people.
    """

    key: str
    families: tuple[str, ...]
    figure: str
    goal: float | None
    title: str


QUESTIONS = (
    Question("fio_tuned_bandwidth", ("fio_tuned",), "bandwidth", 0.90, "bandwidth ÷ tuned fio"),
    Question("fio_stock_bandwidth", ("fio_stock",), "bandwidth", None, "bandwidth ÷ stock fio"),
    Question(
        "python_threads_bandwidth",
        ("python_threads", "python_threads_bare"),
        "bandwidth",
        None,
        "bandwidth ÷ Python threads",
    ),
    Question("python_threads_cpu", ("python_threads",), "cpu", 0.30, "CPU ÷ Python threads, hash"),
    Question("dd_tee_bandwidth", ("dd_tee",), "bandwidth", 5.0, "bandwidth ÷ dd | tee"),
)


def quick(
    targets: Sequence[str],
    *,
    size_bytes: int,
    rounds: int,
    backend: str = "auto",
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, object]:
    """Compare fanout with everybody who is present, on the same targets.

    Args:
        targets: files or block devices; what is in them is lost.
        size_bytes: client bytes of one run.
        rounds: how often each contender runs, after one round that does not count.
        backend: of fanout's engine.
        on_step: told what runs now.

    Returns:
        Plain values for JSON; `ratios` has the keys of `QUESTIONS`, None where a peer is absent.
    """
    on_step("preparing the targets")
    with (
        prepare(targets, size_bytes=size_bytes) as work,
        reserved_huge_pages(),
        Engine(backend=backend) as engine,
    ):
        touch_free_memory(TOUCHED_SHARE * size_bytes * len(targets))
        contenders = field(engine)
        absent = {one.name: why for one in contenders if (why := one.missing())}
        present = [one for one in contenders if one.name not in absent]
        about = machine.describe()  # with the huge pages in place
        about_engine = _describe(engine)
        absent |= _warm_up(present, work, on_step)
        present = [one for one in present if one.name not in absent]
        samples = _rounds(present, work, rounds, on_step)
    return _report(work, samples, present, absent, {"machine": about, "engine": about_engine})


def touch_free_memory(size_bytes: int) -> None:
    """Touch memory once and give it back, so that no contender pays for the host's first page."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with mmap.mmap(-1, max(mmap.PAGESIZE, min(size_bytes, available // 2))) as memory:
        for start in range(0, len(memory), mmap.PAGESIZE):
            memory[start] = 1


def best(samples: Iterable[Sequence[Sample]], figure: str) -> Sequence[Sample]:
    """The rounds of the contender with the best median."""
    if figure == "bandwidth":
        return max(samples, key=lambda runs: statistics.median(_figure(runs, figure)))
    return min(samples, key=lambda runs: statistics.median(_figure(runs, figure)))


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], figure: str) -> Spread:
    """Fanout's figure divided by the peer's, round by round."""
    pairs = zip(_figure(ours, figure), _figure(theirs, figure), strict=True)
    return Spread.of([mine / other for mine, other in pairs])


def _figure(runs: Sequence[Sample], figure: str) -> list[float]:
    if figure == "bandwidth":
        return [run.aggregate_bytes_per_second for run in runs]
    return [run.cpu_ms_per_client_gib for run in runs]


def _describe(engine: Engine) -> dict[str, object]:
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


def _prove(work: Work) -> None:
    """A fast writer of wrong bytes is no contender."""
    wrong = [path for path in work.targets if not matches(work, path)]
    if wrong:
        raise BenchmarkError(f"fanout wrote other bytes than it was given to {', '.join(wrong)}")


def _warm_up(
    present: Sequence[Contender], work: Work, on_step: Callable[[str], None]
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


def _rounds(
    present: Sequence[Contender], work: Work, rounds: int, on_step: Callable[[str], None]
) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {one.name: [] for one in present}
    for number in range(rounds):
        shift = number % len(present)
        for one in (*present[shift:], *present[:shift]):
            on_step(f"round {number + 1} of {rounds}: {one.title}")
            samples[one.name].append(one.run(work))
    return samples


def _report(
    work: Work,
    samples: dict[str, list[Sample]],
    present: Sequence[Contender],
    absent: dict[str, str],
    about: dict[str, dict[str, object]],
) -> dict[str, object]:
    families: dict[str, list[Sequence[Sample]]] = {}
    for one in present:
        families.setdefault(one.family, []).append(samples[one.name])
    ours = present[0]
    spreads: dict[str, Spread | None] = dict.fromkeys(question.key for question in QUESTIONS)
    for question in QUESTIONS:
        if peers := [runs for name in question.families for runs in families.get(name, ())]:
            strongest = best(peers, question.figure)
            spreads[question.key] = ratio(samples[ours.name], strongest, question.figure)
    return {
        "report": "fanout bench quick",
        "version": REPORT_VERSION,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **about,
        "settings": {
            "targets": list(work.targets),
            "kind": "block devices" if work.block_devices else "files",
            "size_bytes": work.size_bytes,
            "block_bytes": CHUNK_BYTES,
            "rounds": len(samples[ours.name]),
        },
        "ratios": {key: spread and round(spread.median, 3) for key, spread in spreads.items()},
        "spread": {key: spread and spread.rounded(3) for key, spread in spreads.items()},
        "goals": {question.key: question.goal for question in QUESTIONS},
        "contenders": {one.name: _summary(one, samples[one.name]) for one in present},
        "absent": absent,
    }


def _summary(one: Contender, runs: Sequence[Sample]) -> dict[str, object]:
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

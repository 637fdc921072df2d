"""``fanout bench quick``: everybody who is present, on the same targets, and five ratios."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.bench import machine
from fanout.bench.contenders import field, reserved_huge_pages
from fanout.bench.rounds import (
    TOUCHED_SHARE,
    Spread,
    best,
    describe_engine,
    interleaved,
    ratio,
    summary,
    touch_free_memory,
    warm_up,
)
from fanout.bench.work import BLOCK_BYTES, prepare
from fanout.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fanout.bench.contenders import Contender
    from fanout.bench.measure import Sample
    from fanout.bench.work import Work

REPORT_VERSION = 1


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
        about_engine = describe_engine(engine)
        absent |= warm_up(present, work, on_step)
        present = [one for one in present if one.name not in absent]
        jobs = {one.name: (one, work) for one in present}
        samples = interleaved(jobs, rounds, on_step)
    return _report(work, samples, present, absent, {"machine": about, "engine": about_engine})


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
            "block_bytes": BLOCK_BYTES,
            "rounds": len(samples[ours.name]),
        },
        "ratios": {key: spread and round(spread.median, 3) for key, spread in spreads.items()},
        "spread": {key: spread and spread.rounded(3) for key, spread in spreads.items()},
        "goals": {question.key: question.goal for question in QUESTIONS},
        "contenders": {one.name: summary(one, samples[one.name]) for one in present},
        "absent": absent,
    }

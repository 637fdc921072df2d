"""Ratios are only as good as the samples: arithmetic, clocks, and who is blamed for which CPU time."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from fanout.bench.measure import GIB, Meter, Sample
from fanout.bench.measures.slow import Trace, healthy_rate
from fanout.bench.plan import Policy
from fanout.bench.quick import QUESTIONS
from fanout.bench.rounds import Spread, best, ratio


def sample(seconds: float, cpu: float = 0.1) -> Sample:
    return Sample(seconds, cpu, cpu, client_bytes=GIB, targets=3)


def test_units() -> None:
    """Aggregate counts every target, CPU counts the client's bytes once."""
    one = sample(2.0, cpu=0.5)
    assert one.aggregate_bytes_per_second == pytest.approx(1.5 * GIB)
    assert one.cpu_ms_per_client_gib == pytest.approx(500)


def test_ratio_is_made_within_a_round() -> None:
    """A machine that slows down for both must not show in the ratio."""
    ours = [sample(1.0), sample(2.0), sample(4.0)]
    theirs = [sample(2.0), sample(4.0), sample(8.0)]
    assert ratio(ours, theirs, "bandwidth") == Spread(2.0, 2.0, 2.0)


def test_cpu_ratio_is_smaller_when_ours_is() -> None:
    """The direction of the ratio."""
    assert ratio([sample(1, 0.1)], [sample(1, 0.4)], "cpu").median == pytest.approx(0.25)


def test_the_strongest_of_a_family_stands_for_it() -> None:
    """A weak variant of a peer must not flatter us."""
    slow, quick, frugal = [sample(3, 0.3)], [sample(1, 0.3)], [sample(2, 0.1)]
    assert best([slow, quick, frugal], "bandwidth") is quick
    assert best([slow, quick, frugal], "cpu") is frugal


def test_questions_have_the_promised_keys() -> None:
    """Scripts read these."""
    assert {one.key for one in QUESTIONS} == {
        "fio_tuned_bandwidth",
        "fio_stock_bandwidth",
        "python_threads_bandwidth",
        "python_threads_cpu",
        "dd_tee_bandwidth",
    }


def test_meter_charges_own_and_children() -> None:
    """Work of a child is its work, not ours; sleeping costs nothing."""
    with Meter() as idle:
        time.sleep(0.05)
    assert idle.self_cpu_seconds < 0.04
    assert idle.seconds >= 0.05
    with Meter() as busy:
        subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert busy.children_cpu_seconds > 0.01
    assert busy.sample(GIB, 3).cpu_seconds >= busy.children_cpu_seconds


# ---- a slow target --------------------------------------------------------------------------------


def trace(ejected: dict[int, float]) -> Trace:
    """Two targets, looked at every second for ten: the last one is slow from 2 to 8, the first from 2 to 5."""
    first = [0, 10, 20, 21, 22, 23, 33, 43, 53, 63, 73]
    last = [0, 10, 20, 21, 22, 23, 24, 25, 26, 36, 46]
    times = [float(second) for second in range(1, 11)]
    return Trace(times, list(zip(first[1:], last[1:], strict=True)), (2.0, 8.0), ejected)


def test_rates_between_two_looks() -> None:
    """Moments at which nobody has looked, before the first look and after the last one."""
    found = trace({})
    assert found.rate(0, 0.0, 2.0) == pytest.approx(10)
    assert found.rate(0, 0.5, 1.5) == pytest.approx(10)
    assert found.rate(1, 2.5, 3.5) == pytest.approx(1)
    assert found.done(0, 99.0) == 73


def test_the_healthy_rate_counts_from_the_ejection() -> None:
    """Praise for an ejection that came too late, or blame for the time before."""
    whole = (53 - 20) / 6
    assert healthy_rate(trace({}), Policy.WAIT) == pytest.approx(whole)
    assert healthy_rate(trace({1: 5.0}), Policy.EJECT) == pytest.approx(10)
    assert healthy_rate(trace({}), Policy.EJECT) == pytest.approx(whole)
    assert healthy_rate(trace({1: 7.9}), Policy.EJECT) == pytest.approx(whole)
    assert healthy_rate(trace({0: 5.0}), Policy.EJECT) == pytest.approx(whole)

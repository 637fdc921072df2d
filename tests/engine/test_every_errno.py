"""Every errno at every phase, at the first, a middle and the last operation: exactly one report, and it is the right one.

Generated from two tables: what an errno means, and where an operation can be met. The survivor beside it has to hold every byte.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
import xxhash

from fanout.engine import Engine, EventKind, Fault, Request, Target
from fanout.errors import TargetError
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

from .conftest import SLOT

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

BLOCKS = 5

MEANING = {
    FaultClass.SPACE: [errno.ENOSPC, errno.EDQUOT, errno.EFBIG],
    FaultClass.MEDIUM: [errno.ENODATA, errno.EILSEQ],
    FaultClass.DEVICE: [errno.EIO, errno.EREMOTEIO, 4094],  # the last one: unknown
    FaultClass.TRANSPORT: [
        errno.ETIMEDOUT,
        errno.ETIME,
        errno.ENOLINK,
        errno.ENODEV,
        errno.ENXIO,
        errno.ESHUTDOWN,
        errno.ECONNABORTED,
        errno.ENOTCONN,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
    ],
    FaultClass.ACCESS: [errno.EPERM, errno.EROFS, errno.EACCES],
    FaultClass.SETUP: [errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EBADE],
    FaultClass.TRANSIENT: [errno.EAGAIN, errno.EINTR, errno.EBUSY],
    FaultClass.HOST: [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EFAULT],
}
CLASSES = {number: cls for cls, numbers in MEANING.items() for number in numbers}
RETRIED = {errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOMEM}  # of reads and writes alone


@dataclass
class Bench:
    """An engine with a healthy target, and the data that goes to it with every case."""

    engine: Engine
    directory: Path
    good: Target
    data: bytes
    number: int = 0

    def path(self) -> Path:
        self.number += 1
        return self.directory / f"bad{self.number}"

    def bad(self) -> Target:
        return self.engine.open(self.path(), create=True, size=len(self.data))

    def script(self, phase: Phase, number: int, nth: int, target: Target | None = None) -> None:
        self.engine.set_faults(
            [
                Fault.error(
                    number,
                    kind=phase,
                    nth=nth,
                    target=target,
                    count=None if number in RETRIED else 1,
                )
            ]
        )

    def pour(self, targets: list[Target]) -> dict[Target, Outcome]:
        with self.engine.stream(targets) as stream:
            stream.place([0] * len(targets))
            stream.write(self.data)
            assert stream.digest() == xxhash.xxh3_128_digest(self.data)
            return stream.sync()


# ---- where an operation can be met: each runs one case, and returns the outcome with the offset and length that it must name


def stream_write(nth: int, bench: Bench, number: int) -> tuple[Outcome, int, int]:
    bad = bench.bad()
    bench.script(Phase.WRITE, number, nth, bad)
    outcome = bench.pour([bench.good, bad])[bad]
    bad.close()
    return outcome, (nth - 1) * SLOT, SLOT


def stream_flush(nth: int, bench: Bench, number: int) -> tuple[Outcome, int, int]:
    """The nth of several streams; those before it are durable."""
    bad = bench.bad()
    bench.script(Phase.FLUSH, number, nth, bad)
    for _ in range(nth - 1):
        assert bench.pour([bench.good, bad])[bad].ok
    outcome = bench.pour([bench.good, bad])[bad]
    assert bad.state == "failed"
    bad.close()
    return outcome, 0, len(bench.data)


def request(phase: Phase, nth: int, bench: Bench, number: int) -> tuple[Outcome, int, int]:
    """One of several requests side by side."""
    bad = bench.bad()
    bench.pour([bench.good, bad])
    bench.script(phase, number, nth, bad)
    size = bad.granule
    requests = [
        Request(phase, bad, at * size, length=size, data=bytearray(size)) for at in range(BLOCKS)
    ]
    outcomes = bench.engine.run(requests)
    wrong = [outcome for outcome in outcomes if not outcome.ok]
    assert outcomes.index(wrong[0]) == wrong[0].offset // size
    bad.close()
    return wrong[0], (nth - 1) * size, size


def opening(phase: Phase, bench: Bench, number: int) -> tuple[Outcome, int, int]:
    bench.script(phase, number, 1)
    with pytest.raises(TargetError) as caught:
        bench.engine.open(bench.path(), create=True, size=8 * SLOT)
    bench.engine.set_faults([])
    assert caught.value.errno == number
    outcome = caught.value.outcome
    return outcome, 0, {Phase.ALLOCATE: 8 * SLOT}.get(phase, outcome.length)


def finishing(phase: Phase, bench: Bench, number: int) -> tuple[Outcome, int, int]:
    bad = bench.bad()
    bench.pour([bench.good, bad])
    bench.script(phase, number, 1, bad)
    outcome = bad.finish(1000)
    assert bad.state == "closed"
    return outcome, 0, 1000 if phase is Phase.TRUNCATE else 0


PLACES = (1, 3, BLOCKS)
CASES: dict[str, tuple[Phase, Callable[[Bench, int], tuple[Outcome, int, int]]]] = {}
for place in PLACES:
    CASES[f"write {place}"] = Phase.WRITE, partial(stream_write, place)
    CASES[f"write request {place}"] = Phase.WRITE, partial(request, Phase.WRITE, place)
    CASES[f"read {place}"] = Phase.READ, partial(request, Phase.READ, place)
for place in (1, 2, 3):
    CASES[f"flush {place}"] = Phase.FLUSH, partial(stream_flush, place)
for step in (Phase.OPEN, Phase.ALLOCATE, Phase.READ):
    CASES[f"{step.name.lower()} at open"] = step, partial(opening, step)
for step in (Phase.TRUNCATE, Phase.FLUSH, Phase.DIRSYNC, Phase.CLOSE):
    CASES[f"{step.name.lower()} at finish"] = step, partial(finishing, step)


@pytest.mark.parametrize("name", CASES)
def test_every_errno_is_reported_once_and_rightly(
    faulty: Engine, tmp_path: Path, rng: random.Random, name: str
) -> None:
    """Breaks if an errno is lost, told twice, told of the wrong operation, tried again where it must not be, or hurts the peer."""
    phase, case = CASES[name]
    good = faulty.open(tmp_path / "good", create=True)
    bench = Bench(faulty, tmp_path, good, rng.randbytes(BLOCKS * SLOT))
    for number, cls in CLASSES.items():
        faulty.events()
        outcome, offset, length = case(bench, number)
        told = [
            event
            for event in faulty.events()
            if event.kind is EventKind.FAULT and event.outcome is OutcomeCode.ERROR
        ]
        where = f"{name}, {errno.errorcode.get(number, number)}: {outcome}"
        assert outcome.code is OutcomeCode.ERROR, where
        assert (outcome.errno, outcome.cls, outcome.phase) == (number, cls, phase), where
        if (
            number in RETRIED
            and ("write" in name or name.startswith("read "))
            and "open" not in name
        ):
            assert outcome.attempts > 1, (
                where
            )  # and which of them is the first to give up is no matter
            assert {(event.errno, event.phase) for event in told} == {(number, phase)}, where
        else:
            assert (outcome.offset, outcome.length) == (offset, length), where
            assert [(event.errno, event.phase, event.merged) for event in told] == [
                (number, phase, 1)
            ], where
            if not name.startswith("flush"):  # its leg knows nothing of attempts
                assert outcome.attempts == 1, where
        bench.pour([good])
        with open(good.path, "rb") as file:
            assert file.read(len(bench.data)) == bench.data, where
    assert faulty.info.targets == 1
    assert faulty.info.slots_free == faulty.info.slot_count

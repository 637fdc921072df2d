"""Every way in which an operation can end, scripted: the right outcome, on the right target, and nothing else disturbed."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, Any

import pytest

from fanout.engine import Engine, EventKind, Fault, Request, Target
from fanout.errors import TargetError
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

from .conftest import SLOT, SLOTS, Run

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Pour = Callable[..., Run]

BLOCKS = 6  # five full slots and a bit
SIZE = 5 * SLOT + 1234
PADDED_TAIL = 4096  # of 1234 bytes, with a granule of at most 4096


def second(
    fault: Callable[..., Fault], *args: Any, **where: Any
) -> Callable[[list[Target]], list[Fault]]:
    """A script for the writes of the second target."""

    def script(targets: list[Target]) -> list[Fault]:
        return [fault(*args, **{"kind": Phase.WRITE, "target": targets[1]} | where)]

    return script


def check_place(outcome: Outcome, nth: int) -> None:
    """The outcome names the nth slot."""
    assert outcome.phase is Phase.WRITE
    assert outcome.offset == (nth - 1) * SLOT
    assert outcome.length == SLOT if nth < BLOCKS else 0 < outcome.length <= PADDED_TAIL


@pytest.fixture
def data(rng: random.Random) -> bytes:
    return rng.randbytes(SIZE)


FINAL_ERRNOS = {
    errno.ENOSPC: FaultClass.SPACE,
    errno.EDQUOT: FaultClass.SPACE,
    errno.EFBIG: FaultClass.SPACE,
    errno.ENODATA: FaultClass.MEDIUM,
    errno.EILSEQ: FaultClass.MEDIUM,
    errno.EIO: FaultClass.DEVICE,
    errno.EREMOTEIO: FaultClass.DEVICE,
    errno.ENOLINK: FaultClass.TRANSPORT,
    errno.ETIMEDOUT: FaultClass.TRANSPORT,
    errno.ENODEV: FaultClass.TRANSPORT,
    errno.ESHUTDOWN: FaultClass.TRANSPORT,
    errno.EPERM: FaultClass.ACCESS,
    errno.EROFS: FaultClass.ACCESS,
    errno.EINVAL: FaultClass.SETUP,
    errno.EOPNOTSUPP: FaultClass.SETUP,
}


@pytest.mark.parametrize("nth", [1, 3, BLOCKS], ids=["first", "middle", "last"])
@pytest.mark.parametrize("number", FINAL_ERRNOS, ids=errno.errorcode.get)
def test_an_errno_is_reported_where_it_happened(
    faulty: Engine, pour: Pour, data: bytes, number: int, nth: int
) -> None:
    """Breaks if an errno is lost, blamed on a neighbour, or takes a healthy target along."""
    run = pour(faulty, [data], faults=second(Fault.error, number, nth=nth))
    outcome = run.outcomes[run.targets[1]]
    assert outcome.code is OutcomeCode.ERROR
    assert (outcome.errno, outcome.cls, outcome.done) == (number, FINAL_ERRNOS[number], 0)
    check_place(outcome, nth)
    run.check_healthy(0, 2)


@pytest.mark.parametrize("nth", [1, 3, BLOCKS], ids=["first", "middle", "last"])
def test_a_write_that_is_done_and_reported_as_failed_is_a_failure(
    faulty: Engine, pour: Pour, data: bytes, nth: int
) -> None:
    """Breaks if bytes on the medium count for more than what the kernel said."""
    run = pour(faulty, [data], faults=second(Fault.error_after, errno.EIO, nth=nth))
    outcome = run.outcomes[run.targets[1]]
    assert (outcome.code, outcome.errno) == (OutcomeCode.ERROR, errno.EIO)
    run.check_healthy(0, 2)


@pytest.mark.parametrize("nth", [1, 3, 5], ids=["first", "middle", "last"])
@pytest.mark.parametrize("written", [1, 511, 512, 4096, SLOT - 1])
def test_a_partial_write_is_resumed(
    faulty: Engine, pour: Pour, data: bytes, nth: int, written: int
) -> None:
    """Breaks if the rest is lost, or resumed from a place that is not aligned."""
    run = pour(faulty, [data], faults=second(Fault.short, written, nth=nth))
    run.check_healthy(0, 1, 2)
    assert faulty.info.retries >= 1


def test_partial_writes_without_end_are_short(faulty: Engine, pour: Pour, data: bytes) -> None:
    """Breaks if resuming has no bound."""
    run = pour(faulty, [data], faults=second(Fault.short, 100, nth=3, count=None))
    outcome = run.outcomes[run.targets[1]]
    assert outcome.code is OutcomeCode.SHORT
    assert outcome.done < outcome.length
    assert outcome.offset >= 2 * SLOT  # the first of them to run out of resumes
    assert outcome.attempts > 1
    run.check_healthy(0, 2)


@pytest.mark.parametrize("nth", [1, 3, BLOCKS], ids=["first", "middle", "last"])
def test_zero_bytes_written_is_an_error_at_once(
    faulty: Engine, pour: Pour, data: bytes, nth: int
) -> None:
    """Breaks if a write of nothing is tried again for ever."""
    run = pour(faulty, [data], faults=second(Fault.short, 0, nth=nth))
    outcome = run.outcomes[run.targets[1]]
    assert (outcome.code, outcome.cls, outcome.done) == (OutcomeCode.ERROR, FaultClass.DEVICE, 0)
    check_place(outcome, nth)
    run.check_healthy(0, 2)


@pytest.mark.parametrize(
    "number", [errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOMEM], ids=errno.errorcode.get
)
def test_a_transient_errno_is_tried_again(
    faulty: Engine, pour: Pour, data: bytes, number: int
) -> None:
    """Breaks if one EINTR drops a pool."""
    run = pour(faulty, [data], faults=second(Fault.error, number, nth=2, count=5))
    run.check_healthy(0, 1, 2)
    assert faulty.info.retries >= 5


@pytest.mark.parametrize(
    ("number", "cls"),
    [(errno.EAGAIN, FaultClass.TRANSIENT), (errno.ENOMEM, FaultClass.HOST)],
    ids=["EAGAIN", "ENOMEM"],
)
def test_a_transient_errno_that_stays_ends_within_the_deadline(
    faulty: Engine, pour: Pour, data: bytes, number: int, cls: FaultClass
) -> None:
    """Breaks if retries outlast the hard deadline, or if a lack of memory is blamed on a device."""
    began = faulty.now()
    run = pour(faulty, [data], faults=second(Fault.error, number, nth=2, count=None))
    outcome = run.outcomes[run.targets[1]]
    assert outcome.code in (OutcomeCode.ERROR, OutcomeCode.TIMED_OUT)
    assert (outcome.errno, outcome.cls) == (number, cls)
    assert outcome.attempts > 1
    assert faulty.now() - began <= 120.5
    run.check_healthy(0, 2)


@pytest.mark.parametrize("nth", [1, 3, BLOCKS], ids=["first", "middle", "last"])
def test_a_write_that_never_ends_is_let_go(
    faulty: Engine, pour: Pour, data: bytes, nth: int
) -> None:
    """Breaks if a hung target holds up the others, or if its slot is used again while the write may still land."""
    run = pour(faulty, [data], faults=second(Fault.never, nth=nth))
    outcome = run.outcomes[run.targets[1]]
    assert outcome.code is OutcomeCode.TIMED_OUT
    check_place(outcome, nth)
    run.check_healthy(0, 2)
    assert run.targets[1].state == "detached"
    assert faulty.info.slots_quarantined == 1
    kinds = [event.kind for event in faulty.events() if event.target == run.targets[1].id]
    assert kinds == [EventKind.SLOW, EventKind.LAGGARD, EventKind.DETACHED]


@pytest.mark.parametrize("late_error", [0, errno.EIO])
def test_a_late_completion_changes_nothing_but_frees_the_slot(
    faulty: Engine, pour: Pour, data: bytes, late_error: int
) -> None:
    """Breaks if a late success turns a miss into a hit, or if a quarantined slot is lost for good."""
    run = pour(faulty, [data], faults=second(Fault.never, nth=2))
    faulty.events()
    faulty.release(run.targets[1])
    faulty.advance(1.0)
    assert faulty.info.slots_quarantined == 0
    late = [event for event in faulty.events() if event.kind is EventKind.LATE]
    assert [(event.target, event.offset, event.outcome) for event in late] == [
        (run.targets[1].id, SLOT, OutcomeCode.LATE_OK)
    ]
    assert run.outcomes[run.targets[1]].code is OutcomeCode.TIMED_OUT
    assert faulty.info.late == 1


def test_a_slow_write_within_the_deadline_is_only_slow(
    faulty: Engine, pour: Pour, data: bytes
) -> None:
    """Breaks if patience ends before the hard deadline."""
    run = pour(faulty, [data], faults=second(Fault.delay, 100.0, nth=2))
    run.check_healthy(0, 1, 2)
    assert [event.kind for event in faulty.events()] == [EventKind.SLOW, EventKind.LAGGARD]


def test_a_failed_flush_is_final(faulty: Engine, pour: Pour, data: bytes) -> None:
    """Breaks if a failed flush is tried again until it succeeds."""
    run = pour(faulty, [data], faults=second(Fault.error, errno.EIO, kind=Phase.FLUSH))
    target = run.targets[1]
    outcome = run.outcomes[target]
    assert (outcome.code, outcome.phase, outcome.errno) == (
        OutcomeCode.ERROR,
        Phase.FLUSH,
        errno.EIO,
    )
    run.check_healthy(0, 2)
    assert target.state == "failed"
    with pytest.raises(TargetError) as caught:
        faulty.flush(target)
    assert not caught.value.outcome.ok
    assert faulty.read(target, 0, 100) == data[:100]
    write = Request(Phase.WRITE, target, data=bytes(target.granule))
    assert faulty.run([write])[0].code is OutcomeCode.NOT_SUBMITTED


def test_a_flush_that_never_ends_is_let_go(faulty: Engine, pour: Pour, data: bytes) -> None:
    """Breaks if the last step of a stream has no deadline."""
    run = pour(faulty, [data], faults=second(Fault.never, kind=Phase.FLUSH))
    outcome = run.outcomes[run.targets[1]]
    assert outcome.code in (OutcomeCode.TIMED_OUT, OutcomeCode.DETACHED)
    assert outcome.phase is Phase.FLUSH
    assert run.targets[1].state == "detached"
    run.check_healthy(0, 2)


def test_all_targets_failing_is_said_of_each(faulty: Engine, pour: Pour, data: bytes) -> None:
    """Breaks if the last target's failure is hidden behind an exception or a hang."""
    run = pour(
        faulty,
        [data, data],
        faults=lambda targets: [Fault.error(errno.EIO, kind=Phase.WRITE, count=None)],
    )
    assert [outcome.code for outcome in run.outcomes.values()] == [OutcomeCode.ERROR] * 3


def test_the_watermarks_keep_their_order(faulty: Engine, tmp_path: Any, data: bytes) -> None:
    """Breaks if something counts as more than it is: accepted ≥ submitted ≥ completed ≥ synced on every target."""
    targets = [faulty.open(tmp_path / name, create=True) for name in ("a", "b", "c")]
    faulty.set_faults(
        [
            Fault.error(errno.ENOSPC, kind=Phase.WRITE, nth=3, target=targets[1]),
            Fault.error(errno.EIO, kind=Phase.FLUSH, target=targets[2]),
        ]
    )
    with faulty.stream(targets) as stream:
        stream.place([0, 0, 0])
        for at in range(0, SIZE, 10_000):
            stream.write(data[at : at + 10_000])
            for leg in stream.legs():
                assert leg.accepted >= leg.submitted >= leg.completed >= leg.synced
        stream.sync()
        good, full, unflushed = stream.legs()
        assert set(stream.failures()) == {targets[1], targets[2]}
    assert good.accepted == good.synced >= SIZE
    assert full.state == unflushed.state == "failed"
    assert full.synced == unflushed.synced == 0


def test_the_mask_of_write_names_the_failed(faulty: Engine, tmp_path: Any, data: bytes) -> None:
    """Breaks if a caller that looks only at the mask learns of a failure too late or of the wrong target."""
    targets = [faulty.open(tmp_path / name, create=True) for name in ("a", "b", "c")]
    faulty.set_faults([Fault.error(errno.EIO, kind=Phase.WRITE, target=targets[2])])
    with faulty.stream(targets) as stream:
        stream.place([0, 0, 0])
        masks = [stream.write(bytes(SLOT)) for _ in range(60)]
        found = stream.write_object(bytes(SLOT))
    assert masks[-1] == found == 0b100
    assert set(masks) <= {0, 0b100}


def test_faults_are_events_with_the_whole_story(faulty: Engine, pour: Pour, data: bytes) -> None:
    """Breaks if an observer learns less than the caller."""
    run = pour(faulty, [data], faults=second(Fault.error, errno.ENOSPC, nth=4))
    (event,) = faulty.events()
    outcome = run.outcomes[run.targets[1]]
    assert event.kind is EventKind.FAULT
    assert (event.target, event.offset, event.length) == (run.targets[1].id, 3 * SLOT, SLOT)
    assert (event.errno, event.cls, event.phase, event.outcome) == (
        errno.ENOSPC,
        FaultClass.SPACE,
        Phase.WRITE,
        outcome.code,
    )


def test_many_unread_events_do_not_stop_the_writers(faulty: Engine, tmp_path: Any) -> None:
    """Breaks if nobody reading events blocks a stream for ever, or loses a stream's own outcome."""
    target = faulty.open(tmp_path / "a", create=True)
    healthy = faulty.open(tmp_path / "b", create=True)
    faulty.set_faults([Fault.error(errno.EIO, kind=Phase.WRITE, target=target, count=None)])
    for _ in range(1500):
        with faulty.stream([target, healthy]) as stream:
            stream.place([0, 0])
            stream.write(b"x")
            outcomes = stream.sync()
        assert outcomes[target].errno == errno.EIO
        assert outcomes[healthy].ok
    assert sum(event.merged for event in faulty.events()) == 1500
    assert faulty.info.events_lost == 0


def test_whoever_polls_finds_unread_events_however_many(engine: Engine, tmp_path: Any) -> None:
    """Breaks if events that are set aside, so that streams go on, are hidden from a poll, or stop an opening or a request."""
    target = engine.open(tmp_path / "a", create=True)
    poll = select.poll()
    poll.register(engine.fileno(), select.POLLIN)
    seen, rounds = [], 1024 + 48 * SLOTS + 1536 + 2560 + 200  # what the core keeps, and more
    for number in range(rounds):
        with engine.stream([target]) as stream:
            assert number == 0 or poll.poll(0)
            assert engine.run([Request(Phase.WRITE, target, data=b"")])[0].ok
            if number % 64 == 0:
                engine.open(tmp_path / "b", replace=True).close()
            stream.abort()
    while poll.poll(0):
        seen += engine.events()
    assert [event.kind for event in seen] == [EventKind.DRAINED] * rounds
    assert [event.seq for event in seen] == list(range(1, rounds + 1))
    assert engine.info.events_lost == 0


def test_an_ejected_target_is_not_ok(faulty: Engine, tmp_path: Any, data: bytes) -> None:
    """Breaks if a target that policy dropped counts as written."""
    targets = [faulty.open(tmp_path / name, create=True) for name in ("a", "b")]
    with faulty.stream(targets) as stream:
        stream.place([0, 0])
        stream.write(data)
        stream.eject(targets[1])
        stream.write(data)
        outcomes = stream.sync()
        assert [leg.state for leg in stream.legs()] == ["synced", "ejected"]
    assert outcomes[targets[0]].ok
    assert outcomes[targets[1]].code is OutcomeCode.NOT_SUBMITTED


def test_an_abort_drains(faulty: Engine, tmp_path: Any, data: bytes) -> None:
    """Breaks if a region is called free while a write may still land in it."""
    targets = [faulty.open(tmp_path / name, create=True) for name in ("a", "b")]
    faulty.set_faults([Fault.never(kind=Phase.WRITE, nth=2, target=targets[1])])
    with faulty.stream(targets) as stream:
        stream.place([0, 0])
        stream.write(data)
        stream.abort()
        assert stream.drained(timeout=1.0) == {targets[0]}
        faulty.release(targets[1])
        assert stream.drained(timeout=10.0) == set(targets)


def test_the_same_seed_is_the_same_run(tmp_path: Any, data: bytes) -> None:
    """Breaks if a failure found by a random test cannot be found again."""

    def once(name: str) -> list[tuple[Any, ...]]:
        (tmp_path / name).mkdir()
        with Engine(
            backend="faulty", memory_bytes=64 * SLOT, slot_size_bytes=SLOT, seed=7
        ) as engine:
            targets = [engine.open(tmp_path / name / str(i), create=True) for i in range(3)]
            engine.set_faults(
                [
                    Fault.error(errno.EIO, kind=Phase.WRITE, nth=2),
                    Fault.never(kind=Phase.WRITE, nth=9),
                ]
            )
            with engine.stream(targets) as stream:
                stream.place([0, 0, 0])
                stream.write(data)
                stream.sync()
            return [tuple(event) for event in engine.events()]

    assert once("first") == once("again")

"""The engine on targets that really fail: files of the fault file system, and block devices over it, on both real backends.

What could break: an errno, an offset or a phase that is not the kernel's; a failed flush that is tried again; a hung target that
holds up a healthy one, the caller or the process; late completions that change what was already told; a flush that is asked for
before the writes have completed. In every test the survivor's bytes are compared and the digest is the independent library's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from . import kernel, needs, strace
from .devices import FaultDisk, ext4_disk, fault_disk, scratch
from .faultfs import FOR_EVER, FaultFS, LogEntry
from .rules import Rule

if needs.why_not("engine") or needs.why_not("xxhash"):
    needs.require("engine", "xxhash")

import xxhash

from fanout.engine import Engine, Event, EventKind, Request, Stream, Target
from fanout.errors import ConfigError, InterfaceError, TargetError
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

SLOT = 64 << 10
SLOTS = 96
BLOCKS = 12
LENGTH = BLOCKS * SLOT
SIZE = 8 << 20
PATIENCE = 0.1  # seconds beyond a deadline, the goal; the machine may be busy with other things
HARD = 0.3  # seconds: the deadline of the targets that hang
IMPATIENT = {"soft_deadline": 0.1, "hard_deadline": HARD}
SLACK = 0.4  # what is added to it in the tests, for the same reason

pytestmark = [pytest.mark.root, pytest.mark.loop]

# What a device can say, and who is to blame. Written down here once more on purpose: this is the specification.
CLASSES = {
    errno.EIO: FaultClass.DEVICE,
    errno.EREMOTEIO: FaultClass.DEVICE,
    errno.ENODATA: FaultClass.MEDIUM,
    errno.EILSEQ: FaultClass.MEDIUM,
    errno.ENOSPC: FaultClass.SPACE,
    errno.ETIMEDOUT: FaultClass.TRANSPORT,
    errno.ETIME: FaultClass.TRANSPORT,
    errno.ENOLINK: FaultClass.TRANSPORT,
    errno.ENODEV: FaultClass.TRANSPORT,
    errno.EBADE: FaultClass.SETUP,
}
FILE_CLASSES = CLASSES | {
    errno.EDQUOT: FaultClass.SPACE,
    errno.EFBIG: FaultClass.SPACE,
    errno.EROFS: FaultClass.ACCESS,
    errno.EPERM: FaultClass.ACCESS,
    errno.EACCES: FaultClass.ACCESS,
    errno.ENXIO: FaultClass.TRANSPORT,
    errno.ESHUTDOWN: FaultClass.TRANSPORT,
    errno.EHOSTUNREACH: FaultClass.TRANSPORT,
    errno.EINVAL: FaultClass.SETUP,
}
# The oldest operation of a target timed out, the others were let go with it; which of them is a stream's first may differ.
LET_GO = {OutcomeCode.TIMED_OUT, OutcomeCode.DETACHED}
TRANSIENT = {errno.EBUSY: FaultClass.TRANSIENT, errno.ENOMEM: FaultClass.HOST}


@dataclass(frozen=True, slots=True)
class Place:
    """A target whose faults are scripted: `path` for the engine, `name` for the rules."""

    fs: FaultFS
    path: str
    name: str

    def media(self, offset: int = 0, length: int = LENGTH) -> bytes:
        """What is there, read behind the back of the file system."""
        with open(self.fs.backing(self.name), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def log(self, *ops: str, after: int = 0) -> list[LogEntry]:
        """What the fault file system saw of this target."""
        return [entry for entry in self.fs.log(*ops, path=self.name) if entry.seq > after]

    def script(self, *rules: Rule) -> int:
        """Set rules; returns the length of the log so far."""
        self.fs.set_rules(*rules)
        return len(self.fs.log())

    def fault(self, op: str = "write", **how: Any) -> Rule:
        """A rule for this target."""
        return Rule(op=op, path=self.name, **how)


@pytest.fixture(scope="module", params=["io_uring", "threads"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    try:
        Engine(backend=name, memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT).close()
    except ConfigError as problem:
        pytest.skip(f"{name} cannot run here: {problem}")
    return name


@pytest.fixture
def engine(backend: str) -> Iterator[Engine]:
    with make_engine(backend) as made:
        yield made


def make_engine(backend: str) -> Engine:
    return Engine(
        backend=backend,
        memory_bytes=SLOTS * SLOT,
        slot_size_bytes=SLOT,
    )


@pytest.fixture(scope="module")
def shared_disk() -> Iterator[FaultDisk]:
    with fault_disk(SIZE) as made:
        yield made


@pytest.fixture
def disk(shared_disk: FaultDisk) -> Iterator[FaultDisk]:
    yield shared_disk
    shared_disk.fs.heal()
    shared_disk.fs.settle()


@pytest.fixture
def place(request: pytest.FixtureRequest, disk: FaultDisk) -> Place:
    """A block device, or a file with a name of its own."""
    kind = getattr(request, "param", "disk")
    return disk_place(disk) if kind == "disk" else file_place(disk.fs)


def disk_place(disk: FaultDisk) -> Place:
    return Place(disk.fs, disk.path, disk.name)


def file_place(fs: FaultFS, *, size: int = SIZE) -> Place:
    """A file that is there already; `size=0` makes one that grows."""
    name = f"/file{time.monotonic_ns()}"
    return Place(fs, str(fs.create_file(name, size)), name)


both_kinds = pytest.mark.parametrize("place", ["disk", "file"], indirect=True)


@pytest.fixture
def healthy() -> Iterator[Path]:
    """A directory for targets that do not fail."""
    with scratch() as directory:
        yield directory


@dataclass(slots=True)
class Poured:
    """What came of one stream over a bad and a good target."""

    bad: Target
    good: Target
    outcomes: dict[Target, Outcome]
    digest: bytes
    data: bytes
    stream: Stream

    @property
    def outcome(self) -> Outcome:
        return self.outcomes[self.bad]

    def check_survivor(self) -> None:
        assert self.outcomes[self.good].ok
        with open(self.good.path, "rb") as file:
            assert file.read(len(self.data)) == self.data
        assert self.digest == xxhash.xxh3_128_digest(self.data)


@contextlib.contextmanager
def poured(
    engine: Engine,
    place: Place,
    healthy: Path,
    data: bytes,
    **options: Any,
) -> Iterator[Poured]:
    """One stream of `data` to the bad place and a healthy file; closed afterwards."""
    # Without a size a growing file is preallocated by 64 MiB and more, which is memory here.
    bad = engine.open(place.path, **{"size": len(data), **options})
    good = engine.open(healthy / f"good{time.monotonic_ns()}", create=True, size=len(data))
    with engine.stream([bad, good]) as stream:
        stream.place([0, 0])
        for at in range(0, len(data), 3 * SLOT):
            stream.write(data[at : at + 3 * SLOT])
        digest = stream.digest()
        yield Poured(bad, good, stream.sync(timeout=20.0), digest, data, stream)
    bad.close(timeout=0.1)  # what hangs goes on hanging: the tests end it
    good.close()


def faults_of(engine: Engine, target: Target) -> list[tuple[int, int]]:
    """(offset, errno) of the operations that the kernel failed; what was not submitted is another list."""
    return [
        (event.offset, event.errno)
        for event in engine.events()
        if (event.kind, event.outcome) == (EventKind.FAULT, OutcomeCode.ERROR)
        and event.target == target.id
    ]


def at_block(block: int) -> dict[str, Any]:
    return {"start": block * SLOT, "end": block * SLOT + 1}


# ---- write errors ------------------------------------------------------------------------------------------------------------


def check_write_error(
    engine: Engine,
    place: Place,
    healthy: Path,
    data: bytes,
    number: int,
    expected: FaultClass,
    block: int,
) -> None:
    mark = place.script(place.fault(errno=number, count=None, **at_block(block)))
    with poured(engine, place, healthy, data) as result:
        outcome = result.outcome
        events = faults_of(engine, result.bad)
        result.check_survivor()
    assert (outcome.code, outcome.phase) == (OutcomeCode.ERROR, Phase.WRITE), outcome
    assert (outcome.errno, outcome.cls) == (number, expected), outcome
    assert (outcome.offset, outcome.length) == (block * SLOT, SLOT), outcome
    injected = [entry for entry in place.log("write", after=mark) if entry.rule is not None]
    assert [(e.offset, e.errno) for e in injected] == [(block * SLOT, number)]
    assert events == [(block * SLOT, number)]


@pytest.mark.parametrize("number", CLASSES, ids=lambda number: errno.errorcode[number])
def test_every_errno_of_a_block_device_at_the_first_middle_and_last_write(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random, number: int
) -> None:
    place, data = disk_place(disk), rng.randbytes(LENGTH)
    for block in (0, BLOCKS // 2, BLOCKS - 1):
        check_write_error(engine, place, healthy, data, number, CLASSES[number], block)


@pytest.mark.parametrize("number", FILE_CLASSES, ids=lambda number: errno.errorcode[number])
def test_every_errno_of_a_file_at_the_first_middle_and_last_write(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random, number: int
) -> None:
    data = rng.randbytes(LENGTH)
    for block in (0, BLOCKS // 2, BLOCKS - 1):
        place = file_place(disk.fs, size=0)
        check_write_error(engine, place, healthy, data, number, FILE_CLASSES[number], block)
    disk.fs.heal()


@pytest.mark.parametrize("number", TRANSIENT, ids=lambda number: errno.errorcode[number])
@both_kinds
def test_a_transient_error_that_heals_is_absorbed(
    engine: Engine, place: Place, healthy: Path, rng: random.Random, number: int
) -> None:
    data = rng.randbytes(LENGTH)
    mark = place.script(place.fault(errno=number, count=3, **at_block(4)))
    with poured(engine, place, healthy, data) as result:
        assert result.outcome.ok, result.outcome
        result.check_survivor()
    assert place.media() == data
    assert len([e for e in place.log("write", after=mark) if e.rule is not None]) == 3
    assert engine.info.retries >= 3


@pytest.mark.parametrize("number", TRANSIENT, ids=lambda number: errno.errorcode[number])
@both_kinds
def test_a_transient_error_that_stays_is_an_error_within_the_deadline(
    engine: Engine, place: Place, healthy: Path, rng: random.Random, number: int
) -> None:
    place.script(place.fault(errno=number, count=None, **at_block(4)))
    began = time.monotonic()
    with poured(engine, place, healthy, rng.randbytes(LENGTH), **IMPATIENT) as result:
        outcome, took = result.outcome, time.monotonic() - began
        result.check_survivor()
    assert (outcome.code, outcome.errno) == (OutcomeCode.ERROR, number)
    assert outcome.cls is TRANSIENT[number]
    assert outcome.attempts > 3
    assert took < HARD + PATIENCE + SLACK


@both_kinds
def test_a_write_that_failed_and_was_done_all_the_same_is_a_failure(
    engine: Engine, place: Place, healthy: Path, rng: random.Random
) -> None:
    """Nothing may conclude from the error that the old bytes are still there."""
    data = rng.randbytes(LENGTH)
    place.script(place.fault(errno=errno.EIO, after_io=True, **at_block(3)))
    with poured(engine, place, healthy, data) as result:
        assert (result.outcome.code, result.outcome.offset) == (OutcomeCode.ERROR, 3 * SLOT)
        result.check_survivor()
    assert place.media(3 * SLOT, SLOT) == data[3 * SLOT : 4 * SLOT]


def test_a_short_write_is_resumed_where_the_kernel_tells_of_it(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random
) -> None:
    """FUSE tells pwrite of it and turns it into EIO for a ring: good in one case, an honest error in the other."""
    place, data = file_place(disk.fs), rng.randbytes(LENGTH)
    place.script(place.fault(short=4096, **at_block(2)))
    with poured(engine, place, healthy, data) as result:
        if engine.info.backend == "threads":
            assert result.outcome.ok
            assert place.media() == data
        else:
            assert (result.outcome.errno, result.outcome.offset) == (errno.EIO, 2 * SLOT)
        result.check_survivor()
    disk.fs.heal()


@both_kinds
def test_two_targets_fail_at_once_each_with_its_own_error(
    engine: Engine, place: Place, healthy: Path, rng: random.Random
) -> None:
    data = rng.randbytes(LENGTH)
    other = file_place(place.fs)
    place.script(
        place.fault(errno=errno.ENODATA, count=None, **at_block(5)),
        other.fault(errno=errno.ENOSPC, count=None, **at_block(5)),
    )
    targets = [
        engine.open(place.path),
        engine.open(healthy / "good", create=True, size=SIZE),
        engine.open(other.path),
    ]
    with engine.stream(targets) as stream:
        stream.place([0, 0, 0])
        stream.write(data)
        outcomes = stream.sync(timeout=20)
    numbers = [outcomes[target].errno for target in targets]
    assert numbers == [errno.ENODATA, 0, errno.ENOSPC]
    assert (healthy / "good").read_bytes()[:LENGTH] == data


@both_kinds
def test_a_device_that_vanishes(
    backend: str, place: Place, healthy: Path, rng: random.Random
) -> None:
    """Its own file system, for there is no way back."""
    data = rng.randbytes(LENGTH)
    with fault_disk(SIZE) as disk, make_engine(backend) as engine:
        mine = disk_place(disk) if place.name == "/disk" else file_place(disk.fs)
        bad = engine.open(mine.path)
        good = engine.open(healthy / "good", create=True, size=SIZE)
        with engine.stream([bad, good]) as stream:
            stream.place([0, 0])
            stream.write(data[: 4 * SLOT])
            disk.fs.abort()
            stream.write(data[4 * SLOT :])
            outcomes = stream.sync(timeout=20)
        assert outcomes[bad].code is OutcomeCode.ERROR
        assert outcomes[bad].cls in (FaultClass.DEVICE, FaultClass.TRANSPORT)
        assert outcomes[good].ok
        bad.close()  # close(2) on a file of a server that is gone has an error, too: an event, and it is closed
        bad.close()
    assert (healthy / "good").read_bytes()[:LENGTH] == data


# ---- the other steps ----------------------------------------------------------------------------------------------------------


@both_kinds
def test_a_failed_flush_is_final(
    engine: Engine, place: Place, healthy: Path, rng: random.Random
) -> None:
    """EIO once, then 0: the second answer is a lie, and nobody may ask for it."""
    data = rng.randbytes(LENGTH)
    mark = place.script(place.fault("fsync", errno=errno.EIO))
    with poured(engine, place, healthy, data) as result:
        outcome = result.outcome
        assert (outcome.code, outcome.phase, outcome.errno) == (
            OutcomeCode.ERROR,
            Phase.FLUSH,
            errno.EIO,
        )
        result.check_survivor()
        assert result.bad.state == "failed"
        leg = result.stream.legs()[0]
        assert (leg.completed, leg.synced) == (LENGTH, 0)
        again = [
            Request(Phase.WRITE, result.bad, 0, data=data[:SLOT]),
            Request(Phase.FLUSH, result.bad),
        ]
        assert {out.code for out in engine.run(again)} == {OutcomeCode.NOT_SUBMITTED}
        assert engine.read(result.bad, 0, SLOT) == data[:SLOT]
        result.stream.close()
        with pytest.raises(InterfaceError):
            engine.stream([result.bad])
    assert len(place.log("fsync", after=mark)) == 1
    place.fs.crash()
    assert place.media(0, SLOT) != data[:SLOT]


@pytest.mark.parametrize(
    ("op", "phase"),
    [("truncate", Phase.TRUNCATE), ("fsync", Phase.FLUSH), ("fsyncdir", Phase.DIRSYNC)],
)
def test_every_step_of_finish_can_fail_with_every_errno_and_says_so(
    engine: Engine, disk: FaultDisk, rng: random.Random, op: str, phase: Phase
) -> None:
    data = rng.randbytes(SLOT)
    for number, cls in FILE_CLASSES.items():
        path = disk.fs.path(f"new{time.monotonic_ns()}")
        target = engine.open(path, create=True, size=SLOT)
        engine.write(target, 0, data)
        disk.fs.set_rules(Rule(op=op, errno=number))
        outcome = target.finish(SLOT - 100)
        assert (outcome.code, outcome.phase) == (OutcomeCode.ERROR, phase), outcome
        assert (outcome.errno, outcome.cls) == (number, cls), outcome
        assert faults_of(engine, target) == [(0, number)]
        disk.fs.heal()
        path.unlink()
    kernel.wait_until(lambda: disk.fs.status().open_files == 1, "only the loop device's is open")


def test_every_errno_of_a_flush_at_the_first_middle_and_last(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random
) -> None:
    """What an earlier flush has vouched for stays; the one that fails is reported once, whatever it says, and is the last."""
    data = rng.randbytes(2 * SLOT)
    for at, (number, cls) in enumerate(FILE_CLASSES.items()):
        place, nth = file_place(disk.fs), at % 3 + 1
        mark = place.script(place.fault("fsync", errno=number, nth=nth))
        bad = engine.open(place.path)
        good = engine.open(healthy / f"flush{number}", create=True, size=SIZE)
        outcomes: dict[Target, Outcome] = {}
        for turn in range(1, nth + 1):
            with engine.stream([bad, good]) as stream:
                stream.place([turn * 2 * SLOT] * 2)
                stream.write(data)
                outcomes = stream.sync(timeout=20.0)
            assert outcomes[good].ok
            assert outcomes[bad].ok == (turn < nth), outcomes[bad]
        outcome = outcomes[bad]
        assert (outcome.phase, outcome.errno, outcome.cls) == (Phase.FLUSH, number, cls), outcome
        assert [error for _, error in faults_of(engine, bad)] == [number]
        assert len(place.log("fsync", after=mark)) == nth
        bad.close()
        good.close()
        with open(good.path, "rb") as file:
            file.seek(2 * SLOT)
            assert file.read(nth * 2 * SLOT) == data * nth


@pytest.mark.parametrize(
    ("op", "phase"),
    [
        ("open", Phase.OPEN),
        ("create", Phase.OPEN),
        ("fallocate", Phase.ALLOCATE),
        ("read", Phase.READ),
    ],
)
def test_every_step_of_open_can_fail_with_every_errno_and_says_so(
    engine: Engine, disk: FaultDisk, op: str, phase: Phase
) -> None:
    place = file_place(disk.fs)
    disk.fs.backing(place.name).write_bytes(bytes(SLOT))  # something to read
    path = disk.fs.path("created") if op == "create" else place.path
    for number, cls in FILE_CLASSES.items():
        disk.fs.set_rules(Rule(op=op, errno=number, count=None))
        with pytest.raises(TargetError) as caught:
            engine.open(path, create=op == "create", size=0 if op == "read" else SIZE)
        outcome = caught.value.outcome
        assert (outcome.phase, outcome.errno, outcome.cls) == (phase, number, cls)
    disk.fs.heal()
    kernel.wait_until(lambda: disk.fs.status().open_files == 1, "only the loop device's is open")


def test_a_file_system_without_fallocate_is_absorbed(
    engine: Engine, disk: FaultDisk, healthy: Path, rng: random.Random
) -> None:
    place, data = file_place(disk.fs), rng.randbytes(LENGTH)
    place.script(place.fault("fallocate", errno=errno.EOPNOTSUPP, count=None))
    with poured(engine, place, healthy, data, size=SIZE) as result:
        assert result.outcome.ok, result.outcome
        result.check_survivor()
    assert place.media() == data
    disk.fs.heal()


@both_kinds
def test_a_read_error_names_its_place(engine: Engine, place: Place, rng: random.Random) -> None:
    data = rng.randbytes(LENGTH)
    target = engine.open(place.path)
    engine.write(target, 0, data)
    place.script(place.fault("read", errno=errno.ENODATA, count=None, **at_block(2)))
    assert engine.read(target, 0, 2 * SLOT) == data[: 2 * SLOT]
    with pytest.raises(TargetError) as caught:
        engine.read(target, 0, LENGTH)
    outcome = caught.value.outcome
    assert (outcome.phase, outcome.errno, outcome.offset) == (Phase.READ, errno.ENODATA, 2 * SLOT)
    target.close()


# ---- power loss ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["all", "torn"])
@both_kinds
def test_what_sync_vouched_for_survives_a_power_loss(
    engine: Engine, place: Place, healthy: Path, rng: random.Random, mode: str
) -> None:
    """Some writes are reported late: a flush that is asked for before they are reaped does not cover them (strict rule)."""
    data = rng.randbytes(LENGTH)
    late = [place.fault(delay_after=0.03, **at_block(block)) for block in (1, 6, BLOCKS - 1)]
    place.script(*late)
    with poured(engine, place, healthy, data, depth=8) as result:
        assert result.outcome.ok
    place.fs.crash(seed=rng.getrandbits(32), mode=mode, names=False)
    assert place.media() == data


@both_kinds
def test_what_sync_did_not_vouch_for_may_be_gone(
    engine: Engine, place: Place, healthy: Path, rng: random.Random
) -> None:
    """The counter-test: the layer does lose what was only written."""
    data = rng.randbytes(LENGTH)
    target = engine.open(place.path)
    engine.write(target, 0, data)
    assert place.media() == data
    place.fs.crash(names=False)
    assert place.media()[:SLOT] != data[:SLOT]
    target.close()


def test_a_finished_new_file_survives_with_its_name_and_length(
    engine: Engine, disk: FaultDisk, rng: random.Random
) -> None:
    data = rng.randbytes(SLOT)
    names = {}
    for finish in (True, False):
        path = disk.fs.path(f"finish{finish}{time.monotonic_ns()}")
        target = engine.open(path, create=True, size=1 << 20)
        engine.write(target, 0, data)
        if finish:
            assert target.finish(SLOT - 100).ok
            disk.fs.backing(path.name).stat()
        else:
            engine.flush(target)
            target.close()
        names[finish] = path.name
    disk.fs.crash()
    assert disk.fs.backing(names[True]).read_bytes() == data[:-100]
    assert not disk.fs.backing(names[False]).exists()


# ---- hung targets -------------------------------------------------------------------------------------------------------------


def wait_for_event(engine: Engine, kind: EventKind, offset: int | None = None) -> Event:
    limit = time.monotonic() + 5.0
    while time.monotonic() < limit:
        for event in engine.events(timeout=0.05):
            if event.kind is kind and offset in (None, event.offset):
                return event
    raise TimeoutError(f"no {kind.name} in time")


@both_kinds
def test_a_hung_write_is_let_go_in_time_and_lands_late_without_effect(
    engine: Engine, place: Place, healthy: Path, rng: random.Random
) -> None:
    data, held = rng.randbytes(LENGTH), 5 * SLOT
    place.script(place.fault(delay=FOR_EVER, count=None, **at_block(5)))
    began = time.monotonic()
    with poured(engine, place, healthy, data, **IMPATIENT) as result:
        took = time.monotonic() - began
        assert result.outcome.code in LET_GO
        result.check_survivor()
        assert HARD < took < HARD + PATIENCE + SLACK
        assert result.bad.state == "detached"
        assert engine.info.slots_quarantined >= 1
        kinds = {e.kind: e for e in engine.events() if e.target == result.bad.id}
        assert HARD <= kinds[EventKind.DETACHED].latency_ns / 1e9 < HARD + PATIENCE + SLACK
        assert EventKind.SLOW in kinds
        before = result.stream.legs()[0]
        assert place.media(held, SLOT) != data[held : held + SLOT]

        place.fs.release()
        late = wait_for_event(engine, EventKind.LATE, held)
        assert late.outcome is OutcomeCode.LATE_OK
        assert place.media(held, SLOT) == data[held : held + SLOT]
        after = result.stream.legs()[0]
        assert (after.first, after.state, after.synced) == (before.first, "failed", 0)
        assert result.stream.sync()[result.bad] == result.outcome
        result.stream.close()
    kernel.wait_until(lambda: engine.info.slots_quarantined == 0, "the slots come back")


@both_kinds
def test_a_hung_slot_is_never_reused_before_its_write_has_ended(
    engine: Engine, place: Place, healthy: Path, rng: random.Random
) -> None:
    """Else the device gets the next client's bytes."""
    data = rng.randbytes(LENGTH)
    place.script(place.fault(delay=FOR_EVER, count=None))
    with poured(engine, place, healthy, data, **IMPATIENT) as result:
        assert result.outcome.code in LET_GO
    held = [call["offset"] for call in place.fs.status().calls]
    assert held
    other = engine.open(healthy / "other", create=True, size=SIZE)
    for _ in range(4):
        with engine.stream([other]) as stream:
            stream.place([0])
            stream.write(b"\xee" * (SLOTS * SLOT))  # as much as the whole arena
            assert stream.sync(timeout=20)[other].ok
    place.fs.heal()
    kernel.wait_until(lambda: engine.info.slots_quarantined == 0, "all late writes end")
    for offset in held:
        assert place.media(offset, SLOT) == data[offset : offset + SLOT]


@both_kinds
def test_a_hung_flush_is_let_go_in_time(
    engine: Engine, place: Place, healthy: Path, rng: random.Random
) -> None:
    place.script(place.fault("fsync", delay=FOR_EVER))
    began = time.monotonic()
    with poured(engine, place, healthy, rng.randbytes(LENGTH), **IMPATIENT) as result:
        took = time.monotonic() - began
        assert result.outcome.code in LET_GO
        assert result.outcome.phase is Phase.FLUSH
        result.check_survivor()
        assert HARD < took < HARD + PATIENCE + SLACK
        place.fs.release()
        late = wait_for_event(engine, EventKind.LATE)
        assert late.phase is Phase.FLUSH
        assert result.stream.legs()[0].synced == 0


@pytest.mark.parametrize("count", [1, 6])
def test_reads_that_hang_hold_up_no_other_target(
    engine: Engine, place: Place, healthy: Path, rng: random.Random, count: int
) -> None:
    """Breaks if they take all that requests have: a healthy file's end then says that it timed out, and was no flush."""
    data = rng.randbytes(LENGTH)
    places = [place, *(file_place(place.fs) for _ in range(count - 1))]
    hung = [engine.open(place.path, hard_deadline=60.0) for place in places]
    good = engine.open(healthy / "good", create=True, size=SIZE)
    engine.write(good, 0, data)
    place.script(*(place.fault("read", delay=FOR_EVER, count=None) for place in places))
    problems: list[TargetError] = []

    def read(target: Target) -> None:
        try:
            engine.read(target, 0, LENGTH)
        except TargetError as problem:  # pragma: no cover
            problems.append(problem)

    threads = [threading.Thread(target=read, args=(target,)) for target in hung]
    try:
        for number, thread in enumerate(threads, 1):
            thread.start()
            place.fs.wait_for_calls(number, "read")
        assert engine.read(good, 0, LENGTH) == data
        assert good.finish(LENGTH, timeout=5.0).ok
    finally:
        place.fs.set_rules()
        place.fs.release()
        for thread in threads:
            if thread.ident is not None:  # else the one before it got no slot
                thread.join(20)
                assert not thread.is_alive()
    assert not problems
    for target in hung:
        target.close()


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@both_kinds
def test_a_frozen_server_never_stops_writes_to_a_healthy_target(
    backend: str, place: Place, healthy: Path, rng: random.Random, *, warm: bool
) -> None:
    """A connection of its own, at depth 16, which is more than FUSE takes in: the submitter must not be the one to wait."""
    data = rng.randbytes(24 * SLOT)
    with fault_disk(SIZE) as disk, make_engine(backend) as engine:
        mine = disk_place(disk) if place.name == "/disk" else file_place(disk.fs)
        hung = engine.open(mine.path, depth=16)
        good = engine.open(healthy / "good", create=True, depth=16, size=SIZE)
        if warm:
            engine.write(hung, 0, data[: 2 * SLOT])
        with disk.fs.frozen(), engine.stream([hung]) as stuck:
            stuck.place([0])
            stuck.write(data)
            stuck.seal()
            time.sleep(0.05)  # so that all of it is with the kernel
            times = []
            for _ in range(8):
                began = time.monotonic()
                with engine.stream([good]) as stream:
                    stream.place([0])
                    stream.write(data)
                    assert stream.sync(timeout=5.0)[good].ok
                times.append(time.monotonic() - began)
            assert max(times) < 0.5, times
            assert engine.read(good, 0, len(data)) == data
            leg = stuck.legs()[0]
            assert (leg.completed, leg.state) == (0, "active")
            assert leg.inflight >= 1
            disk.fs.thaw()
            assert stuck.sync(timeout=10.0)[hung].ok
        assert mine.media(0, len(data)) == data
        hung.close()


@pytest.mark.parametrize("create", [False, True])
def test_opening_on_a_frozen_server_waits_no_longer_than_it_was_told(
    backend: str, create: bool, healthy: Path, rng: random.Random
) -> None:
    data = rng.randbytes(LENGTH)
    with FaultFS() as fs, make_engine(backend) as engine:
        path = fs.path("new") if create else file_place(fs).path
        good = engine.open(healthy / "good", create=True, size=SIZE)
        with fs.frozen():
            began = time.monotonic()
            failures: list[BaseException] = []

            def open_it() -> None:
                try:
                    engine.open(path, create=create, timeout=0.3)
                except (TargetError, TimeoutError) as problem:
                    failures.append(problem)

            thread = threading.Thread(target=open_it)
            thread.start()
            with engine.stream([good]) as stream:
                stream.place([0])
                stream.write(data)
                assert stream.sync(timeout=5.0)[good].ok
            assert time.monotonic() - began < 0.3
            thread.join(5)
            assert 0.3 <= time.monotonic() - began < 0.3 + PATIENCE + SLACK
            assert len(failures) == 1
    assert (healthy / "good").read_bytes()[:LENGTH] == data


@both_kinds
def test_closing_an_engine_with_a_hung_target_returns(
    backend: str, place: Place, healthy: Path, rng: random.Random
) -> None:
    place.script(place.fault(delay=FOR_EVER, count=None))
    engine = make_engine(backend)
    with poured(engine, place, healthy, rng.randbytes(LENGTH), **IMPATIENT) as result:
        assert result.outcome.code in LET_GO
    began = time.monotonic()
    engine.close(timeout=0.3)
    assert time.monotonic() - began < 0.3 + PATIENCE + SLACK


def test_closing_an_engine_whose_kernel_workers_are_stuck_returns(
    disk: FaultDisk, rng: random.Random
) -> None:
    """A hung fallocate keeps the lock of the file's inode; asynchronous ring writes to it then wait in the kernel's workers."""
    place = file_place(disk.fs, size=0)
    place.script(place.fault("fallocate", delay=2.0, count=None))
    engine = make_engine("io_uring")
    bad = engine.open(place.path, replace=True, **IMPATIENT)  # type: ignore[arg-type]
    with engine.stream([bad]) as stream:
        stream.place([0])
        stream.write(rng.randbytes(LENGTH))
        assert stream.sync(timeout=5.0)[bad].code in LET_GO
    began = time.monotonic()
    engine.close(timeout=0.3)
    assert time.monotonic() - began < 0.3 + PATIENCE + SLACK


LEAVING = """
    import sys, time
    from fanout.engine import Engine
    with Engine(backend=sys.argv[1], soft_deadline=0.1, hard_deadline=0.2, memory_bytes=4 << 20,
                slot_size_bytes=65536) as engine:
        target = engine.open(sys.argv[2], lock=True)
        with engine.stream([target]) as stream:
            stream.place([0])
            stream.write(b"L" * (4 << 16))
            print(stream.sync(timeout=5)[target].code.name, flush=True)
            sys.stdin.readline()
        stopped = time.monotonic()
        engine.close(timeout=0.2)
    print("closed", flush=True)
"""


def test_a_process_can_leave_while_a_detached_device_holds_its_ring_writes(
    place: Place, engine: Engine
) -> None:
    """The writes end in the kernel without it, and until then its lock keeps everybody else away."""
    if engine.info.backend != "io_uring":
        pytest.skip(
            "promised for direct ring writes only: a helper thread stuck in the kernel does delay the exit"
        )
    place.script(place.fault(delay=FOR_EVER, count=None))
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LEAVING), "io_uring", place.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "TIMED_OUT\n"
        began = time.monotonic()
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "closed\n"
        assert child.wait(5) == 0
        assert time.monotonic() - began < 1.0 + SLACK
        assert place.fs.status().calls, "the writes were to be in flight still"
        with pytest.raises(TargetError) as caught:
            engine.open(place.path, lock=True, lock_wait=0.1)
        assert (caught.value.errno, caught.value.outcome.phase) == (errno.EBUSY, Phase.OPEN)
        place.fs.release()
        place.fs.set_rules()
        after = engine.open(place.path, lock=True, lock_wait=5.0)
        assert engine.read(after, 0, 4 << 16) == b"L" * (4 << 16)
        after.close()
    finally:
        place.fs.heal()
        child.kill()
        child.communicate()


# ---- the choice of the backend --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=["EPERM", "ENOSYS"])
def test_a_container_that_forbids_io_uring_gets_threads_and_a_reason(number: int) -> None:
    script = (
        "from fanout.engine import Engine\n"
        "with Engine() as engine: print(engine.info.backend, '|', engine.info.reason)\n"
        "try: Engine(backend='io_uring')\n"
        "except Exception as problem: print(type(problem).__name__)\n"
    )
    command = strace.refusing([sys.executable, "-c", script], {"io_uring_setup": number})
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    chosen, asked = result.stdout.splitlines()
    assert chosen.startswith("threads |")
    assert os.strerror(number) in chosen
    assert asked == "ConfigError"


def test_a_file_without_direct_io_does_not_pass_for_direct(
    backend: str, rng: random.Random
) -> None:
    """Breaks if O_DIRECT is believed where ext4 journals data: opens take it, and every byte stays in the page cache."""
    data = rng.randbytes(LENGTH)
    with ext4_disk(options="data=journal") as disk, make_engine(backend) as engine:
        target = engine.open(disk.path / "journalled", create=True, size=SIZE)
        if not target.geometry.io_align:
            pytest.skip("this kernel does not say which files take direct I/O")
        assert not target.geometry.direct
        engine.write(target, 0, data)
        assert engine.read(target, 0, LENGTH) == data
        assert target.finish(LENGTH).ok
        assert (disk.path / "journalled").read_bytes() == data

"""Targets that lie: they confirm writes and flushes and hold something else. `verify` reads everything back and finds out."""

from __future__ import annotations

import asyncio
import collections
import errno
import threading
from typing import TYPE_CHECKING, Any

import pytest

from fanout import aio
from fanout.engine import Engine, Fault
from fanout.errors import InterfaceError
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

from .conftest import SLOT, SLOTS, block_sums

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from fanout.engine import Target

BLOCKS = 7
TAIL = 5000
LENGTH = BLOCKS * SLOT + TAIL


def open_two(engine: Engine, directory: Path) -> list[Target]:
    return [engine.open(directory / f"t{index}", create=True, size=1 << 20) for index in range(2)]


def write(engine: Engine, targets: list[Target], data: bytes, **options: Any) -> list[Outcome]:
    """Framing in front and behind, the sums asked for in between, as a host does it."""
    with engine.stream(targets, **options) as stream:
        granule = stream.granule
        room = LENGTH + 2 * 777 + -(LENGTH + 2 * 777) % granule
        stream.place([0, 8 * granule], room)
        stream.write(b"h" * 777, raw=True)
        stream.write(data)
        assert stream.sums() == block_sums(b"h" * 777 + data)
        stream.write(b"f" * 777, raw=True)
        outcomes = stream.sync()
        assert stream.failures() == {t: o for t, o in outcomes.items() if not o.ok}
        assert stream.sync() == outcomes  # the second time it knows
    return [outcomes[target] for target in targets]


def spoil(target: Target, offset: int) -> None:
    """Another byte stands there behind the engine's back."""
    with open(target.path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


LIES: dict[str, Callable[..., Fault]] = {
    "swallowed": lambda **where: Fault.swallowed(kind=Phase.WRITE, **where),
    "flipped": lambda **where: Fault.flipped(100, **where),
    "flipped in the last byte": lambda **where: Fault.flipped(SLOT - 1, **where),
    "misdirected": lambda **where: Fault.misdirected(SLOT, **where),
}


@pytest.mark.parametrize("nth", [1, 4, BLOCKS + 1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_found_on_its_target(
    faulty: Engine, tmp_path: Path, rng: random.Random, lie: str, nth: int
) -> None:
    """Breaks if a block is left out, or if the honest target is blamed too."""
    targets = open_two(faulty, tmp_path)
    faulty.set_faults([LIES[lie](target=targets[1], nth=nth)])
    good, bad = write(faulty, targets, rng.randbytes(LENGTH), verify=targets)
    assert good.ok
    assert (bad.code, bad.phase) == (OutcomeCode.MISMATCH, Phase.READ)
    assert (bad.errno, bad.cls) == (errno.EILSEQ, FaultClass.MEDIUM)
    base = 8 * targets[1].granule
    wrong = range(bad.offset, bad.offset + bad.length)
    assert base + (nth - 1) * SLOT in wrong or (lie == "misdirected" and base + nth * SLOT in wrong)
    assert targets[1].state == "active"
    assert faulty.info.slots_free == SLOTS


def test_what_nobody_asks_for_is_not_read(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if verifying one target costs the others a read, or if a lie is found by chance alone."""
    targets = open_two(faulty, tmp_path)
    faulty.set_faults([Fault.swallowed(kind=Phase.WRITE, target=targets[1])])
    before = faulty.info.submissions
    assert all(outcome.ok for outcome in write(faulty, targets, rng.randbytes(LENGTH)))
    plain = faulty.info.submissions - before
    before = faulty.info.submissions
    assert all(o.ok for o in write(faulty, targets, rng.randbytes(LENGTH), verify=targets[:1]))
    assert faulty.info.submissions - before == plain + BLOCKS + 1


def test_a_read_that_fails_or_hangs_is_the_target_s_fault(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if what cannot be read back counts as proven, or if a hung read has no deadline."""
    targets = open_two(faulty, tmp_path)
    faulty.set_faults(
        [
            Fault.error(errno.ENODATA, kind=Phase.READ, target=targets[0], nth=3, count=None),
            Fault.never(kind=Phase.READ, target=targets[1], nth=2),
        ]
    )
    medium, hung = write(faulty, targets, rng.randbytes(LENGTH), verify=targets)
    assert (medium.code, medium.errno) == (OutcomeCode.ERROR, errno.ENODATA)
    assert (medium.phase, medium.offset) == (Phase.READ, 2 * SLOT)
    assert hung.code is OutcomeCode.TIMED_OUT
    assert targets[1].state == "detached"


def test_many_places_and_more_bytes_than_memory(
    engine: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if the sums of one place are compared with another's bytes, or if reading back needs memory of its own."""
    targets = open_two(engine, tmp_path)
    size = (SLOTS + 9) * SLOT
    with engine.stream(targets, verify=targets) as stream:
        for number in range(3):
            stream.place([number * size, (2 - number) * size], size)
            stream.write(rng.randbytes(size if number == 1 else 3 * SLOT + 12345))
            stream.pad()
        assert all(outcome.ok for outcome in stream.sync().values())
    with engine.stream(targets, verify=targets) as stream:
        stream.place([0, 0], size)
        stream.write(rng.randbytes(size))
        stream.seal()
        while not all(leg.state == "synced" for leg in stream.legs()):
            stream.drained(timeout=0.01)
        spoil(targets[0], (SLOTS + 8) * SLOT + 1)
        outcomes = stream.sync()
    assert outcomes[targets[0]].code is OutcomeCode.MISMATCH
    assert outcomes[targets[0]].offset == (SLOTS + 8) * SLOT
    assert outcomes[targets[1]].ok


def test_a_failed_target_is_not_read_back(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a mismatch hides the first fault."""
    targets = open_two(faulty, tmp_path)
    faulty.set_faults([Fault.error(errno.EIO, kind=Phase.WRITE, target=targets[1], nth=2)])
    good, bad = write(faulty, targets, rng.randbytes(LENGTH), verify=targets)
    assert good.ok
    assert (bad.phase, bad.errno) == (Phase.WRITE, errno.EIO)


def test_a_place_that_is_refused_loses_nothing(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if the region before it is noted too early, or twice."""
    targets = open_two(faulty, tmp_path)
    faulty.set_faults([Fault.flipped(0, target=targets[1], nth=1)])
    with faulty.stream(targets, verify=targets) as stream:
        stream.place([0, 0], 4 * SLOT)
        stream.write(rng.randbytes(SLOT + 100))
        with pytest.raises(InterfaceError, match="pad"):
            stream.place([8 * SLOT, 8 * SLOT], SLOT)
        stream.pad()
        stream.place([8 * SLOT, 8 * SLOT], SLOT)
        stream.write(rng.randbytes(100))
        outcomes = stream.sync()
    assert outcomes[targets[0]].ok
    assert (outcomes[targets[1]].code, outcomes[targets[1]].offset) == (OutcomeCode.MISMATCH, 0)


class Interrupted:
    """A stream's core that is interrupted as its first `place` returns: there a signal is looked at."""

    def __init__(self, core: Any) -> None:
        self.core, self.places = core, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def place(self, offsets: list[int], length: int) -> int:
        status: int = self.core.place(offsets, length)
        self.places += 1
        if self.places == 1:
            raise KeyboardInterrupt
        return status


def test_a_place_that_was_interrupted_loses_nothing(
    faulty: Engine, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the region before it is not read back when the call is made again."""
    targets = open_two(faulty, tmp_path)
    faulty.set_faults([Fault.flipped(0, target=targets[1], nth=1)])
    with faulty.stream(targets, verify=targets) as stream:
        stream.place([0, 0], SLOT)
        stream.write(rng.randbytes(SLOT))
        monkeypatch.setattr(stream, "_core", Interrupted(stream._core))
        with pytest.raises(KeyboardInterrupt):
            stream.place([8 * SLOT, 8 * SLOT], SLOT)
        stream.place([8 * SLOT, 8 * SLOT], SLOT)
        stream.write(rng.randbytes(100))
        outcomes = stream.sync()
    assert outcomes[targets[0]].ok
    assert (outcomes[targets[1]].code, outcomes[targets[1]].offset) == (OutcomeCode.MISMATCH, 0)


class Held:
    """An engine's core: thread `first` stays where it has read once, thread `second` where it is about to read again."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.reads: collections.Counter[str] = collections.Counter()
        self.inside = {name: threading.Event() for name in ("first", "second")}
        self.go_on = {name: threading.Event() for name in ("first", "second")}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)

    def stay(self, name: str) -> None:
        self.inside[name].set()
        assert self.go_on[name].wait(60)

    def read_back(self, regions: list[Any], timeout_ns: int) -> Any:
        name = threading.current_thread().name
        self.reads[name] += 1
        if (name, self.reads[name]) == ("second", 2):
            self.stay(name)
        found = self.core.read_back(regions, timeout_ns)
        if (name, self.reads[name]) == ("first", 1):
            self.stay(name)
        return found


def test_two_read_back_at_once(
    engine: Engine, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if one takes for proven what the other has yet to read; a sync on an event loop that is cancelled goes on in a thread."""
    targets = open_two(engine, tmp_path)
    told: dict[str, OutcomeCode] = {}
    with engine.stream(targets, verify=targets) as stream:
        for number in range(3):
            stream.place([number * SLOT, number * SLOT], SLOT)
            stream.write(rng.randbytes(SLOT))
        stream.seal()
        while not all(leg.state == "synced" for leg in stream.legs()):
            stream.drained(timeout=0.01)
        spoil(targets[1], SLOT)
        held = Held(engine._core)
        monkeypatch.setattr(engine, "_core", held)

        def sync() -> None:
            told[threading.current_thread().name] = stream.sync()[targets[1]].code

        threads = {name: threading.Thread(target=sync, name=name) for name in held.inside}
        for name, thread in threads.items():
            thread.start()
            assert held.inside[name].wait(60)
        for name, thread in threads.items():
            held.go_on[name].set()
            thread.join(60)
        monkeypatch.undo()
    assert told == dict.fromkeys(threads, OutcomeCode.MISMATCH)


def test_reads_of_others_are_waited_for(tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a stream that waits for no slot cannot be verified while somebody reads: its sync, for ever, is a TimeoutError."""
    done = threading.Event()
    with Engine(memory_bytes=16 * SLOT, slot_size_bytes=SLOT, max_streams=2) as engine:
        *targets, other = [
            engine.open(tmp_path / name, create=True, size=20 * SLOT) for name in "abc"
        ]
        engine.write(other, 0, bytes(BLOCKS * SLOT))

        def read() -> None:
            while not done.is_set():
                engine.read(other, 0, BLOCKS * SLOT)

        thread = threading.Thread(target=read)
        with engine.stream(targets, timeout=0, verify=targets) as stream:
            thread.start()
            try:
                for number in range(20):
                    stream.place([number * SLOT] * 2, SLOT)
                    stream.write(rng.randbytes(SLOT))
                    stream.drained(timeout=None)
                assert all(outcome.ok for outcome in stream.sync().values())
            finally:
                done.set()
                thread.join(60)


def test_only_targets_of_the_stream_can_be_kept_or_verified(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if a wish for a target that is not there is granted in silence."""
    first, second = open_two(faulty, tmp_path)
    with pytest.raises(InterfaceError, match="targets of the stream"):
        faulty.stream([first], keep=[second])
    with pytest.raises(InterfaceError, match="targets of the stream"):
        faulty.stream([first], verify=[second])
    assert faulty.info.streams == 0


def test_a_place_without_an_end_cannot_be_verified(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if the sums of an endless stream run out in silence."""
    targets = open_two(faulty, tmp_path)
    with (
        faulty.stream(targets, verify=targets) as stream,
        pytest.raises(InterfaceError, match="needs a length"),
    ):
        stream.place([0, 0])


def test_on_an_event_loop(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if the asyncio twin believes the flush."""
    targets = open_two(engine, tmp_path)

    async def run() -> dict[Target, Outcome]:
        with engine.stream(targets, verify=targets) as stream:
            stream.place([0, 0], LENGTH + -LENGTH % stream.granule)
            await aio.write(stream, rng.randbytes(LENGTH))
            stream.seal()
            while not all(leg.state == "synced" for leg in stream.legs()):
                await asyncio.sleep(0.01)
            spoil(targets[1], 0)
            return await aio.sync(stream)

    outcomes = asyncio.run(run())
    assert outcomes[targets[0]].ok
    assert outcomes[targets[1]].code is OutcomeCode.MISMATCH

"""Callers that get it wrong: another engine's things, things that have ended, everything from every thread at once."""

from __future__ import annotations

import errno
import random
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from fanout import _core
from fanout.engine import Engine, Request
from fanout.errors import ConfigError, InterfaceError, TargetError
from fanout.types import OutcomeCode, Phase

from .conftest import SLOT, SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL: dict[str, Any] = {"memory_bytes": SLOTS * SLOT, "slot_size_bytes": SLOT}
NO_KINDS: tuple[Any, ...] = (99, -1, 2.5, None, "write", Phase.NONE, Phase.OPEN, Phase.CLOSE)
EXPECTED = (InterfaceError, TargetError, TimeoutError, BufferError)


def test_what_belongs_to_another_engine(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a number of one engine means something in another: bytes would go to whatever has that number there."""
    mine = engine.open(tmp_path / "mine", create=True)
    with Engine(**SMALL) as other:
        theirs = other.open(tmp_path / "theirs", create=True, size=4 * SLOT)
        assert (mine.id, theirs.id) == (0, 0)
        with engine.stream([mine]) as stream, other.stream([theirs]) as foreign:
            stream.place([0])
            stream.write(b"begun")
            calls: list[Callable[[], object]] = [
                lambda: engine.stream([theirs]),
                lambda: engine.stream([mine, theirs]),
                lambda: engine.read(theirs, 0, 1),
                lambda: engine.write(theirs, 0, bytes(theirs.granule)),
                lambda: engine.flush(theirs),
                lambda: engine.run([Request(Phase.FLUSH, theirs)]),
                lambda: stream.eject(theirs),
            ]
            for call in calls:
                with pytest.raises(InterfaceError):
                    call()
            assert stream.sync()[mine].ok
            assert foreign.sync()[theirs].ok
    assert (tmp_path / "mine").read_bytes()[:5] == b"begun"
    assert (tmp_path / "theirs").read_bytes() == bytes(4 * SLOT)


def test_what_has_ended(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a stream or a lease can be used again, or if a number that is used again brings the old one back to life."""
    first, second = (engine.open(tmp_path / name, create=True) for name in "ab")
    with engine.stream([first]) as stream:
        stream.place([0])
        lease = stream.lease(10)
        lease.commit(0)
        assert stream.sync()[first].ok
        with pytest.raises(InterfaceError):
            stream.write(b"x")
        with pytest.raises(InterfaceError):
            stream.lease()
        with pytest.raises(InterfaceError):
            stream.place([0])
        for late in (lambda: lease.commit(0), lambda: lease.view):
            with pytest.raises((InterfaceError, BufferError)):
                late()
        assert stream.sync()[first].ok, "asking again is no misuse"
    first.close()
    with pytest.raises(InterfaceError):
        engine.stream([second, first])
    reopened = [
        engine.open(tmp_path / f"c{number}", create=True) for number in range(_core.MAX_TARGETS - 1)
    ]
    assert first.id in {target.id for target in reopened}
    with pytest.raises(InterfaceError):
        engine.read(first, 0, 1)
    with pytest.raises(InterfaceError):
        first.finish()
    with pytest.raises(InterfaceError):
        engine.stream([first])
    first.close()
    assert {target.state for target in reopened} == {"active"}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"memory_bytes": "x"}, "memory_bytes is a whole number"),
        ({"memory_bytes": None}, "memory_bytes is a whole number"),
        ({"memory_bytes": -SLOT}, "memory_bytes is a whole number from 0"),
        ({"memory_bytes": 1 << 60}, "not 1 to 4096 slots"),
        ({"memory_bytes": 1 << 70}, "memory_bytes is a whole number from 0"),
        ({"memory_bytes": 0, "slot_size_bytes": 0}, "not 1 to 4096 slots"),
        ({"slot_size_bytes": "x"}, "slot_size_bytes is a whole number"),
        ({"slot_size_bytes": -1}, "slot_size_bytes is a whole number from 0"),
        ({"max_streams": 1 << 40}, "max_streams is a whole number from 0"),
        ({"max_streams": "3"}, "max_streams is a whole number"),
        ({"seed": 1 << 64}, "seed is a whole number from 0"),
    ],
)
def test_an_engine_of_no_such_size(setting: dict[str, Any], says: str) -> None:
    """Breaks if a setting that makes no sense is told of in the words of another layer: a format string, a type of C."""
    with pytest.raises(ConfigError, match=says):
        Engine(**setting)


def test_numbers_that_fit_no_file(engine: Engine, tmp_path: Path) -> None:
    """Breaks if such a number comes out as an error of the conversion to C, or touches anything."""
    wrong: dict[Any, type[Exception]] = {-1: ValueError, 1 << 64: ValueError, "x": TypeError}
    for what in ("size", "granule", "depth"):
        for number, error in wrong.items():
            options: dict[str, Any] = {what: number}
            with pytest.raises(error, match=f"{what} is a whole number"):
                engine.open(tmp_path / "no", create=True, **options)
    assert not (tmp_path / "no").exists()
    target = engine.open(tmp_path / "file", create=True)
    with engine.stream([target], timeout=1e300) as stream:  # longer than any clock runs
        calls: list[Callable[[], object]] = [
            lambda: stream.place([-1]),
            lambda: stream.place([1 << 70]),
            lambda: stream.place([0], -1),
            lambda: stream.place([0], 1 << 70),
            lambda: stream.lease(1 << 70),
            lambda: engine.run([Request(Phase.ALLOCATE, target, offset=-1, length=1)]),
            *(partial(engine.run, [Request(kind, target)]) for kind in NO_KINDS),
            lambda: engine.write(target, -target.granule, bytes(target.granule)),
            lambda: engine.read(target, 1 << 70, 1),
        ]
        for call in calls:
            with pytest.raises(InterfaceError):
                call()
        stream.place([0])
        stream.write(b"still in order")
        assert stream.sync()[target].ok
    for number in (-1, 1 << 63):
        with pytest.raises(ValueError, match="length is a whole number from 0"):
            target.finish(number)
    assert target.finish(14).ok
    assert (tmp_path / "file").read_bytes() == b"still in order"


def test_handles_that_nobody_opened() -> None:
    """Breaks if a handle that was made past its maker (by a copy, a mock, a debugger) leads anywhere."""
    kinds: tuple[Any, ...] = (_core.Lease, _core.Stream, _core.Target)
    lease, stream, target = (kind.__new__(kind) for kind in kinds)
    assert lease.commit(0, 0) == -errno.EBADF
    lease.end()
    assert stream.write(b"", 0, 0) == stream.abort() == -errno.EBADF
    assert (stream.close(), stream.position) == (0, 0)
    assert target.close(0) == target.geometry() == -errno.EBADF


def test_everything_from_every_thread_at_once(
    engine: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if two callers inside one stream, target or lease do more than refuse each other."""
    targets = [engine.open(tmp_path / name, create=True, size=64 * SLOT) for name in "abc"]
    stop, problems = threading.Event(), list[BaseException]()
    shared: dict[str, Any] = {}
    data = rng.randbytes(3 * SLOT)

    def renew() -> None:
        shared["stream"] = engine.stream(targets, timeout=5.0)
        shared["stream"].place([0, 0, 0], 64 * SLOT)

    def take_lease() -> None:
        with shared["stream"].lease(64) as lease:
            shared["lease"] = lease
            lease.view[:8] = b"12345678"
            lease.commit(8)

    def on(what: str, method: str) -> None:
        getattr(shared[what], method)()

    calls: list[Callable[[], object]] = [
        lambda: shared["stream"].write(data[: random.randrange(len(data))]),
        lambda: shared["stream"].write(b"small"),
        lambda: shared["stream"].sync(timeout=0.05),
        partial(on, "stream", "digest"),
        partial(on, "stream", "sums"),
        partial(on, "stream", "legs"),
        partial(on, "stream", "pad"),
        lambda: shared["stream"].place([0, 0, 0], 64 * SLOT),
        lambda: shared["stream"].drained(timeout=0.01),
        partial(on, "stream", "close"),
        lambda: shared["lease"].commit(4),
        partial(on, "lease", "close"),
        take_lease,
        renew,
        renew,
        lambda: engine.events(timeout=0.001),
        lambda: engine.info,
        lambda: engine.read(targets[0], 0, 100),
        lambda: engine.flush(targets[1]),
        lambda: targets[2].geometry,
        lambda: targets[2].close(timeout=0.0) if engine.info.streams == 0 else None,
    ]

    def hammer(seed: int) -> None:
        dice = random.Random(seed)
        while not stop.is_set():
            try:
                dice.choice(calls)()
            except EXPECTED:
                continue
            except KeyError:  # no lease yet
                continue
            except BaseException as problem:
                problems.append(problem)
                stop.set()

    renew()
    threads = [threading.Thread(target=hammer, args=(rng.getrandbits(32),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    stop.wait(1.5)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not problems, problems
    shared["stream"].close()
    shared.clear()
    last = engine.open(tmp_path / "last", create=True)
    with engine.stream([last], timeout=20.0) as stream:
        stream.place([0])
        stream.write(data)
        assert stream.digest() == xxhash.xxh3_128_digest(data)
        outcome = stream.sync()[last]
    assert outcome.code is OutcomeCode.OK
    assert engine.read(last, 0, len(data)) == data

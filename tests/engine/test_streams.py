"""Bytes in, the same bytes on every target, on both real backends: sizes, buffers, callers that misbehave."""

from __future__ import annotations

import array
import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from fanout.engine import Engine, Fault, Request, Stream
from fanout.errors import InterfaceError, TargetError
from fanout.types import OutcomeCode, Phase

from .conftest import SLOT, SLOTS, Run, block_sums

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Pour = Callable[..., Run]

SIZES = [0, 1, 511, 512, 4095, 4096, SLOT - 1, SLOT, SLOT + 1, 5 * SLOT + 3]


@pytest.mark.parametrize("size", SIZES)
def test_one_write_of_any_size(engine: Engine, pour: Pour, rng: random.Random, size: int) -> None:
    """Breaks at a slot's, sector's or page's edge."""
    run = pour(engine, [rng.randbytes(size)])
    run.check_healthy(0, 1, 2)
    assert run.sums == block_sums(run.data)


@pytest.mark.parametrize("size", [1, 511, 4095, SLOT - 1, SLOT + 1])
def test_many_writes_of_one_size(engine: Engine, pour: Pour, rng: random.Random, size: int) -> None:
    """Breaks if packing chunks into slots loses, doubles or moves a byte."""
    count = max(3, min(2000, 4 * SLOT // size))
    run = pour(engine, [rng.randbytes(size) for _ in range(count)], count=2)
    run.check_healthy(0, 1)
    assert run.sums == block_sums(run.data)


def test_random_sizes_with_more_bytes_than_memory(
    engine: Engine, pour: Pour, rng: random.Random
) -> None:
    """Breaks if the arena is not reused, or reused too early."""
    run = pour(engine, [rng.randbytes(rng.randrange(3 * SLOT)) for _ in range(120)])
    assert len(run.data) > SLOTS * SLOT
    run.check_healthy(0, 1, 2)
    info = engine.info
    used = info.slots_filling + info.slots_live + info.slots_lagging + info.slots_control
    assert (info.slots_free, used, info.slots_quarantined) == (SLOTS, 0, 0)


def buffers(data: bytes) -> Iterator[Any]:
    import numpy as np

    yield data
    yield bytearray(data)
    yield memoryview(data)
    yield memoryview(bytearray(data))[: len(data)]
    yield np.frombuffer(data, dtype="u1")
    yield np.frombuffer(data, dtype="<f8").reshape(-1, 4)
    yield array.array("d", data)
    yield memoryview(array.array("I", data))


def test_any_flat_buffer_is_taken(engine: Engine, pour: Pour, rng: random.Random) -> None:
    """Breaks if a length is taken in items instead of bytes."""
    data = rng.randbytes(SLOT)
    run = pour(engine, list(buffers(data)), count=1)
    assert run.digest == xxhash.xxh3_128_digest(data * len(list(buffers(data))))


def test_a_buffer_with_gaps_is_refused(engine: Engine, tmp_path: Path) -> None:
    """Breaks if bytes between the items are written."""
    np = pytest.importorskip("numpy")
    target = engine.open(tmp_path / "t", create=True)
    with engine.stream([target]) as stream:
        stream.place([0])
        for gaps in (
            np.zeros(100, "u1")[::2],
            memoryview(bytes(100))[::2],
            np.zeros((4, 4), order="F"),
        ):
            with pytest.raises(BufferError):
                stream.write(gaps)
        with pytest.raises(TypeError):
            stream.write("text")  # type: ignore[arg-type]
        assert stream.position == 0
        assert stream.write(b"") == 0


def test_an_object_that_goes_on_in_another_stream(engine: Engine, tmp_path: Path) -> None:
    """Breaks if its digest ends with the first stream, or if what was taken away stays there as well."""
    first, second = (engine.open(tmp_path / name, create=True) for name in "ab")
    with engine.stream([first]) as stream:
        stream.place([0])
        stream.write(b"begun, ")
        begun = stream.suspend()
        assert stream.digest() == xxhash.xxh3_128_digest(b"")
        assert stream.sync()[first].ok
    with engine.stream([second]) as stream:
        stream.place([0])
        stream.resume(begun)
        stream.write(b"and ended")
        assert stream.digest() == xxhash.xxh3_128_digest(b"begun, and ended")
        assert stream.sync()[second].ok
        with pytest.raises(TypeError, match="made by"):
            stream.resume(type(begun)())


def test_whole_objects_in_one_call_each(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a digest takes in framing or a neighbour, or if bytes are lost between objects."""
    target = engine.open(tmp_path / "t", create=True)
    objects = [rng.randbytes(size) for size in [*SIZES, *reversed(SIZES)]]
    with engine.stream([target]) as stream:
        stream.place([0])
        assert stream.write(b"head", raw=True) == 0
        for data in objects:
            assert stream.write_object(data) == xxhash.xxh3_128_digest(data)
        assert stream.digest() == xxhash.xxh3_128_digest(b"")
        with pytest.raises(BufferError):
            stream.write_object(memoryview(bytes(64))[::3])
        assert stream.sync()[target].ok
        with pytest.raises(InterfaceError, match="state or order"):
            stream.write_object(b"late")
    written = b"head" + b"".join(objects)
    assert (tmp_path / "t").read_bytes()[: len(written)] == written


def test_the_buffer_is_free_after_the_call(engine: Engine, tmp_path: Path) -> None:
    """Breaks if an export outlives the call: the caller could not resize its bytearray."""
    target = engine.open(tmp_path / "t", create=True)
    buffer = bytearray(b"first" * 20_000)
    with engine.stream([target]) as stream:
        stream.place([0])
        stream.write(buffer)
        buffer[:] = b"changed"
        digest = stream.digest()
        stream.sync()
    assert digest == xxhash.xxh3_128_digest(b"first" * 20_000)
    assert (tmp_path / "t").read_bytes()[:100_000] == b"first" * 20_000


def test_a_caller_that_changes_its_buffer_meanwhile(engine: Engine, tmp_path: Path) -> None:
    """Breaks if the digest is taken from the caller's memory instead of what is written."""
    targets = [engine.open(tmp_path / name, create=True) for name in ("a", "b")]
    buffer = bytearray(4 << 20)
    stop = threading.Event()

    def scribble() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 251
            for at in range(0, len(buffer), 4093):
                buffer[at] = value

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    try:
        with engine.stream(targets) as stream:
            stream.place([0, 0])
            for _ in range(20):
                stream.write(buffer)
            digest = stream.digest()
            stream.sync()
    finally:
        stop.set()
        scribbler.join()
    first, other = ((tmp_path / name).read_bytes()[: 80 << 20] for name in ("a", "b"))
    assert first == other
    assert xxhash.xxh3_128_digest(first) == digest


def test_regions_framing_and_sums(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a second region lands elsewhere, framing enters the digest, or padding is not zeros."""
    target, other = (
        engine.open(tmp_path / name, create=True, size=8 * SLOT) for name in ("a", "b")
    )
    data = [rng.randbytes(SLOT + 100), rng.randbytes(777)]
    with engine.stream([target, other]) as stream:
        for index, part in enumerate(data):
            stream.place([index * 2 * SLOT, index * 3 * SLOT], 2 * SLOT)
            stream.write(b"head" * 16, raw=True)
            stream.write(part)
            assert stream.sums() == block_sums(b"head" * 16 + part)
            stream.write(b"foot", raw=True)
            stream.pad()
            assert stream.position % stream.granule == 0
        assert stream.digest() == xxhash.xxh3_128_digest(b"".join(data))
        assert stream.digest() == xxhash.xxh3_128_digest(b"")
        assert all(outcome.ok for outcome in stream.sync().values())
    for name, step in (("a", 2), ("b", 3)):
        media = (tmp_path / name).read_bytes()
        for index, part in enumerate(data):
            framed = b"head" * 16 + part + b"foot"
            at = index * step * SLOT
            assert media[at : at + len(framed)] == framed
            end = at + len(framed)
            assert not any(media[end : end + -len(framed) % stream.granule])


def test_the_order_of_calls_is_checked(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a mistake of the caller becomes a write to the wrong place."""
    target = engine.open(tmp_path / "t", create=True)
    with pytest.raises(InterfaceError):
        engine.stream([])
    with pytest.raises(InterfaceError):
        engine.stream([target, target])
    with engine.stream([target]) as stream:
        with pytest.raises(InterfaceError):
            stream.place([0, 0])
        with pytest.raises(InterfaceError):
            stream.place([1])
        stream.place([0], 4096)
        stream.write(bytes(100))
        with pytest.raises(InterfaceError):
            stream.place([SLOT])
        with pytest.raises(InterfaceError):
            stream.write(bytes(5000))
        with pytest.raises(InterfaceError):
            target.close()
        stream.abort()
        stream.abort()
        with pytest.raises(InterfaceError):
            stream.write(b"x")
    with pytest.raises(InterfaceError):
        stream.write(b"x")
    stream.close()
    target.close()
    target.close()
    with pytest.raises(InterfaceError):
        engine.stream([target])


def test_two_threads_on_one_stream(engine: Engine, tmp_path: Path) -> None:
    """Breaks if the second caller's bytes get between the first one's, or if it waits for its turn."""
    target = engine.open(tmp_path / "t", create=True)
    refused = threading.Event()
    with engine.stream([target]) as stream:
        stream.place([0])
        writer = threading.Thread(target=write_until, args=(stream, refused))
        writer.start()
        until = time.monotonic() + 20
        while not refused.is_set() and time.monotonic() < until:
            try:
                stream.write(b"")
            except InterfaceError:
                refused.set()
        seen = refused.is_set()
        refused.set()
        writer.join()
        assert seen
        length, digest = stream.position, stream.digest()
        assert stream.sync()[target].ok
    assert digest == xxhash.xxh3_128_digest(b"one caller at a time" * (length // 20))


def write_until(stream: Stream, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(InterfaceError):  # the other one was first
            stream.write(b"one caller at a time" * 50_000)


class Interrupted(Exception):
    pass


def test_a_signal_ends_a_blocked_write(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if Ctrl-C is not noticed while a target hangs, or leaves an engine that cannot be used."""
    target, healthy = (
        faulty.open(tmp_path / name, create=True, hard_deadline=1e9) for name in "ab"
    )
    faulty.set_faults([Fault.never(kind=Phase.WRITE, count=None, target=target)])

    def interrupt(*_: object) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with faulty.stream([target], timeout=None) as stream:
            stream.place([0])
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            began = time.monotonic()
            with pytest.raises(Interrupted):
                stream.write(bytes(2 * SLOTS * SLOT))
            assert time.monotonic() - began < 2.0
            assert 0 < stream.position < 2 * SLOTS * SLOT
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    with faulty.stream([healthy]) as stream:
        stream.place([0])
        stream.write(b"goes on")
        assert stream.sync()[healthy].ok
    faulty.release(target)


def test_a_signal_ends_a_wait_for_admission(tmp_path: Path, no_leaks: None) -> None:
    """Breaks if waiting for a stream cannot be interrupted, on the backend that this machine would use."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    with Engine(memory_bytes=SLOTS * SLOT, slot_size_bytes=SLOT, max_streams=1) as engine:
        target = engine.open(tmp_path / "t", create=True)
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            with engine.stream([target]):
                signal.setitimer(signal.ITIMER_REAL, 0.15)
                with pytest.raises(Interrupted):
                    engine.stream([target], timeout=None)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        with engine.stream([target], timeout=1.0), pytest.raises(TimeoutError):
            engine.stream([target], timeout=0.05)


def test_stalled_clients_hold_only_their_two_slots(
    engine: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a client that says nothing for a while starves the others."""
    targets = [engine.open(tmp_path / f"t{i}", create=True) for i in range(8)]
    streams = [engine.stream([target]) for target in targets]
    try:
        for stream in streams:
            stream.place([0])
            stream.write(b"begun")
        for stream in streams[2:]:
            data = rng.randbytes(20 * SLOT)
            stream.write(data)
            assert stream.digest() == xxhash.xxh3_128_digest(b"begun" + data)
            assert all(outcome.ok for outcome in stream.sync().values())
        assert engine.info.slots_filling <= 2 * 2
        for stream in streams[:2]:
            stream.write(b" and ended")
            assert all(outcome.ok for outcome in stream.sync().values())
    finally:
        for stream in streams:
            stream.close()


def test_requests_read_and_write_anywhere(
    engine: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if rounding to the granule shifts what is read, or a bad request takes good ones along."""
    data = rng.randbytes(3 * SLOT)
    target = engine.open(tmp_path / "t", create=True, size=4 * SLOT)
    engine.write(target, 0, data)
    engine.flush(target)
    for offset, length in (
        (0, 0),
        (0, 1),
        (1, 1),
        (511, 4097),
        (SLOT - 1, SLOT + 2),
        (5, 3 * SLOT - 5),
    ):
        assert engine.read(target, offset, length) == data[offset : offset + length]
    with pytest.raises(TargetError) as caught:
        engine.read(target, 4 * SLOT - 10, 20)
    assert caught.value.outcome.code is OutcomeCode.SHORT
    into = bytearray(target.granule)
    good, bad = engine.run(
        [
            Request(Phase.READ, target, 0, data=into),
            Request(Phase.READ, target, 3, data=bytearray(target.granule)),
        ]
    )
    assert good.ok
    assert not bad.ok
    assert into == data[: target.granule]
    with pytest.raises(BufferError):
        engine.run([Request(Phase.READ, target, data=bytes(target.granule))])
    with pytest.raises(InterfaceError):
        engine.run([Request(Phase.READ, target)])


def test_finish_cuts_to_length(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if padding or preallocation stays in a finished file."""
    data = rng.randbytes(SLOT + 77)
    target = engine.open(tmp_path / "t", create=True, size=10 * SLOT)
    with engine.stream([target]) as stream:
        stream.place([0])
        stream.write(data)
        assert stream.sync()[target].ok
    assert target.finish(len(data)).ok
    assert (tmp_path / "t").read_bytes() == data
    assert target.state == "closed"
    with pytest.raises(InterfaceError):
        target.finish()

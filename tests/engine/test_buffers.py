"""A caller's memory: held for exactly as long as C may look at it, whatever kind it is and however large."""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import mmap
import os
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from fanout import aio
from fanout.engine import Engine, Fault, Stream, Target
from fanout.errors import InterfaceError
from fanout.types import Phase
from tests.faults import devices

from .conftest import SLOT, SLOTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 2 * SLOTS * SLOT  # more than the engine has: a write of so much waits


def enlarge_array(values: array.array[int]) -> None:
    values.append(1)


def enlarge_bytes(values: bytearray) -> None:
    values.extend(b"more")


def shrink_bytes(values: bytearray) -> None:
    values.clear()


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "bytearray, larger": (lambda: bytearray(SIZE), enlarge_bytes),
    "bytearray, emptied": (lambda: bytearray(SIZE), shrink_bytes),
    "array": (lambda: array.array("B", bytes(SIZE)), enlarge_array),
    "mmap, closed": (lambda: mmap.mmap(-1, SIZE), mmap.mmap.close),
    "memoryview, released": (lambda: memoryview(bytearray(SIZE)), memoryview.release),
}


@contextlib.contextmanager
def hung(engine: Engine, path: Path) -> Iterator[Target]:
    """A target whose writes do not end before the end of the block."""
    target = engine.open(path, create=True, hard_deadline=1e9)
    engine.set_faults([Fault.never(kind=Phase.WRITE, count=None)])
    try:
        yield target
    finally:
        engine.set_faults([])
        engine.release(target)


def until_it_waits(stream: Stream) -> None:
    """The other thread's write has taken all slots there are."""
    before = -1
    while stream.position == 0 or stream.position != before:
        before = stream.position
        threading.Event().wait(0.02)


@pytest.mark.parametrize("name", CHANGES)
def test_memory_in_flight_cannot_go_away(faulty: Engine, tmp_path: Path, name: str) -> None:
    """Breaks if resizing under a write is allowed (which ends a process that copies from there), or stays forbidden afterwards."""
    make, change = CHANGES[name]
    data = make()
    ended: list[BaseException] = []

    def write(stream: Stream) -> None:
        try:
            stream.write(data)
        except InterfaceError as error:
            ended.append(error)

    with hung(faulty, tmp_path / "t") as target, faulty.stream([target], timeout=None) as stream:
        stream.place([0])
        writer = threading.Thread(target=write, args=(stream,))
        writer.start()
        until_it_waits(stream)
        with pytest.raises(BufferError):
            change(data)
        stream.abort()
        writer.join(20)
        assert len(ended) == 1
    change(data)


def test_memory_in_flight_on_an_event_loop_cannot_go_away(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if the export ends between two turns of the loop, or outlives a cancelled write."""
    data = bytearray(SIZE)

    async def main(target: Target) -> None:
        with await aio.open_stream(faulty, [target]) as stream:
            stream.place([0])
            writing = asyncio.create_task(aio.write(stream, data))
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert not writing.done()
            with pytest.raises(BufferError):
                data.extend(b"more")
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            data.extend(b"more")

    with hung(faulty, tmp_path / "t") as target:
        asyncio.run(asyncio.wait_for(main(target), 20))


def kinds(path: Path, data: bytes) -> Iterator[Any]:
    """The same bytes in every kind of memory."""
    np = pytest.importorskip("numpy")
    path.write_bytes(data)
    yield data
    yield bytearray(data)
    yield memoryview(data).toreadonly()
    yield (ctypes.c_ubyte * len(data)).from_buffer_copy(data)
    yield array.array("B", data)
    yield pickle.PickleBuffer(data)
    yield np.frombuffer(data, "<u2")
    frozen = np.frombuffer(bytearray(data), "u1").reshape(-1, 16)
    frozen.flags.writeable = False
    yield frozen
    yield np.memmap(path, mode="r")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped
    anonymous = mmap.mmap(-1, len(data))
    anonymous[:] = data
    yield anonymous
    with memoryview(anonymous) as view:
        yield view


def test_every_kind_of_memory(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a read-only, mapped, shaped or foreign buffer is refused, or read with another length."""
    data = bytes(range(256)) * 1024
    target = engine.open(tmp_path / "t", create=True)
    with engine.stream([target]) as stream:
        stream.place([0])
        for number, memory in enumerate(kinds(tmp_path / "source", data), 1):
            assert stream.write(memory) == 0
            assert stream.position == number * len(data)
            assert stream.digest() == xxhash.xxh3_128_digest(data), type(memory)
        written = stream.position
        assert stream.sync()[target].ok
    assert (tmp_path / "t").read_bytes()[:written] == data * (written // len(data))


def test_no_bytes_at_all(engine: Engine, tmp_path: Path) -> None:
    """Breaks if an empty buffer, whose address may be anything, is looked at, or if a stream of nothing cannot be synced."""
    np = pytest.importorskip("numpy")
    target = engine.open(tmp_path / "t", create=True)
    with engine.stream([target]) as stream:
        stream.place([0])
        for nothing in (
            b"",
            bytearray(),
            memoryview(b""),
            array.array("d"),
            np.empty((0, 7)),
            np.empty((3, 0)),
        ):
            assert stream.write(nothing) == 0
        assert stream.position == 0
        assert stream.digest() == xxhash.xxh3_128_digest(b"")
        assert stream.sums() == b""
        assert stream.sync()[target].ok


class Refuses:
    """Its export fails."""

    __slots__ = ()


@pytest.mark.parametrize(
    "wrong", [Refuses(), None, 3, "text", [1, 2], memoryview(bytes(64))[::3]], ids=type
)
def test_what_is_no_buffer_leaves_the_stream_as_it_was(
    engine: Engine, tmp_path: Path, wrong: Any
) -> None:
    """Breaks if a refused argument keeps the stream taken, or takes a slot along."""
    target = engine.open(tmp_path / "t", create=True)
    with engine.stream([target]) as stream:
        stream.place([0])
        with pytest.raises((TypeError, BufferError)):
            stream.write(wrong)
        assert engine.info.slots_free == SLOTS
        assert stream.write(b"goes on") == 0
        assert stream.sync()[target].ok


@pytest.mark.loop
@pytest.mark.slow
def test_one_write_of_more_than_four_gibibytes(tmp_path: Path) -> None:
    """Breaks wherever a length or a position is 32 bits wide. Zeros cost nothing, neither here nor on zram."""
    if os.environ.get("FANOUT_SANITIZE"):
        pytest.skip("minutes under a sanitizer")
    size = (4 << 30) + 3 * SLOT + 17
    places = [0, (2 << 30) - 3, (4 << 30) - 2, (4 << 30) + SLOT, size - 5]
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # what is read only is no memory
    with (
        devices.zram(size // SLOT * SLOT + 2 * SLOT) as disk,
        mmap.mmap(-1, size, flags=private) as memory,
    ):
        with contextlib.suppress(OSError):  # without them a million pages are looked up
            memory.madvise(mmap.MADV_HUGEPAGE)
        for place in places:
            memory[place : place + 5] = b"marks"
        with Engine(memory_bytes=32 << 20) as engine:
            target = engine.open(disk.path, lock=True)
            with engine.stream([target]) as stream:
                stream.place([0])
                assert stream.write(memory) == 0
                assert stream.position == size
                assert stream.digest() == xxhash.xxh3_128_digest(memory)
                outcome = stream.sync(timeout=200)[target]
            assert outcome.ok
            assert outcome.length >= size
            for place in places:
                assert engine.read(target, place, 5) == b"marks"
            assert engine.read(target, (4 << 30) + 100, 50) == bytes(50)
            target.close()

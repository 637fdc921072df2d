"""Waiting on an event loop: the loop goes on, several streams share it, and a cancelled wait breaks nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from fanout import aio
from fanout.engine import Engine, Fault, Stream
from fanout.errors import InterfaceError, TargetError
from fanout.types import Phase

from .conftest import SLOT, SLOTS, block_sums

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

SECONDS = 20.0  # no test waits that long


def run(main: Coroutine[Any, Any, None]) -> None:
    """On a fresh loop, which may leave no descriptor behind."""
    asyncio.run(asyncio.wait_for(main, SECONDS))
    gc.collect()
    assert not aio._watches


@contextlib.asynccontextmanager
async def ticking() -> AsyncIterator[list[int]]:
    """Counts the turns of the loop."""
    ticks = [0]

    async def tick() -> None:
        while True:
            ticks[0] += 1
            await asyncio.sleep(0.001)

    task = asyncio.create_task(tick())
    try:
        yield ticks
    finally:
        task.cancel()


async def turns(count: int = 5) -> None:
    """Let the others come to their waits."""
    for _ in range(count):
        await asyncio.sleep(0.002)


def test_many_streams_on_one_loop(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a wake-up is lost, one stream's bytes get into another's, or a thread is made per call."""
    datas = [rng.randbytes(rng.randrange(20 * SLOT, 60 * SLOT)) for _ in range(6)]

    async def one(number: int, data: bytes) -> None:
        targets = [engine.open(tmp_path / f"{number}-{name}", create=True) for name in "ab"]
        with await aio.open_stream(engine, targets) as stream:
            stream.place([0, 0])
            cut = len(data) // 3
            for part in (data[:cut], data[cut : cut + 77], data[cut + 77 :]):
                assert await aio.write(stream, part) == 0
            assert stream.digest() == xxhash.xxh3_128_digest(data)
            assert stream.sums() == block_sums(data)
            outcomes = await aio.sync(stream)
            assert all(outcomes[target].ok for target in targets)
            assert await aio.drained(stream) == frozenset(targets)
        for target in targets:
            assert target.finish(len(data)).ok

    async def main() -> None:
        threads = threading.active_count()
        await asyncio.gather(*(one(number, data) for number, data in enumerate(datas)))
        assert threading.active_count() == threads

    run(main())
    for number, data in enumerate(datas):
        for name in "ab":
            assert (tmp_path / f"{number}-{name}").read_bytes() == data


def test_the_loop_goes_on_while_no_slot_is_free(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a hung target stops the loop, or the end of the hang is not noticed."""
    target = faulty.open(tmp_path / "t", create=True, hard_deadline=1e6)
    faulty.set_faults([Fault.never(kind=Phase.WRITE, count=None)])
    data = rng.randbytes(SLOTS * SLOT)

    async def main() -> None:
        with await aio.open_stream(faulty, [target]) as stream:
            stream.place([0])
            writing = asyncio.create_task(aio.write(stream, data))
            async with ticking() as ticks:
                for _ in range(
                    500
                ):  # a tenth of a second, or much longer on a machine that is busy
                    await asyncio.sleep(0.01)
                    if ticks[0] > 10:
                        break
                assert ticks[0] > 10
            assert not writing.done()
            assert 0 < stream.position < len(data)
            with pytest.raises(TimeoutError):
                stream.write(bytes(2 * SLOT))  # the plain one does not wait
            await asyncio.sleep(0)
            assert not writing.done()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            begun = stream.position
            faulty.set_faults([])
            faulty.release(target)
            assert await aio.write(stream, b"goes on") == 0
            assert stream.position == begun + 7
            syncing = asyncio.create_task(aio.sync(stream))
            await turns()
            assert not syncing.done()
            faulty.advance(5.0)
            assert (await syncing)[target].ok

    run(main())


def test_a_released_target_wakes_the_writer(
    faulty: Engine, tmp_path: Path, rng: random.Random
) -> None:
    """Breaks if a slot that comes free wakes nobody."""
    target = faulty.open(tmp_path / "t", create=True, hard_deadline=1e6)
    faulty.set_faults([Fault.never(kind=Phase.WRITE, count=8)])
    data = rng.randbytes(2 * SLOTS * SLOT)

    async def main() -> None:
        with await aio.open_stream(faulty, [target]) as stream:
            stream.place([0])
            writing = asyncio.create_task(aio.write(stream, data))
            await turns()
            assert not writing.done()
            faulty.release(target)
            while not writing.done():
                faulty.advance(0.001)
                await asyncio.sleep(0)
            assert writing.result() == 0
            assert stream.digest() == xxhash.xxh3_128_digest(data)
            stream.abort()
            draining = asyncio.create_task(aio.drained(stream))
            await turns()
            faulty.advance(1.0)
            assert await draining == {target}

    run(main())


def test_timeouts_and_admission(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a wait that was given up leaves something behind, or a place that comes free is not noticed."""
    targets = [engine.open(tmp_path / f"t{i}", create=True) for i in range(8)]

    async def main() -> None:
        streams = [await aio.open_stream(engine, [target]) for target in targets]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await aio.open_stream(engine, targets[:1])
        waiting = asyncio.create_task(aio.open_stream(engine, targets[:1]))
        await turns()
        assert not waiting.done()
        streams.pop().close()
        streams.append(await waiting)
        for stream in streams:
            stream.place([0])
            await aio.write(stream, bytes(SLOT))
        results = await asyncio.gather(*(aio.sync(stream) for stream in streams))
        assert all(outcome.ok for result in results for outcome in result.values())
        for stream in streams:
            stream.close()
        with pytest.raises(InterfaceError):
            await aio.open_stream(engine, [])

    run(main())


def test_cancelled_at_any_moment(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if a wait that is given up, wherever it was, keeps a slot, a place or the stream, or hurts one beside it."""
    data = rng.randbytes(30 * SLOT + 77)
    digest = xxhash.xxh3_128_digest(data)
    targets = [engine.open(tmp_path / f"t{number}", create=True) for number in range(24)]
    ends = {"synced": 0, "cancelled": 0}

    async def one(number: int, patience: float) -> None:
        target = targets[number]
        try:
            async with asyncio.timeout(patience):
                with await aio.open_stream(engine, [target]) as stream:
                    stream.place([0])
                    await aio.write(stream, data[:SLOT])
                    with await aio.lease(stream, 100) as lease:
                        lease.view[:] = data[SLOT : SLOT + 100]
                        lease.commit(100)
                    await aio.write(stream, data[SLOT + 100 :])
                    assert stream.digest() == digest
                    assert (await aio.sync(stream))[target].ok
        except TimeoutError:
            ends["cancelled"] += 1
            return
        ends["synced"] += 1
        assert engine.read(target, 0, len(data)) == data

    async def main() -> None:
        threads = threading.active_count()
        patience = 0.001
        while (not ends["synced"] or ends["cancelled"] < 40) and patience < 5.0:
            waits = [rng.uniform(0.0, patience) for _ in targets]
            await asyncio.gather(*(one(number, wait) for number, wait in enumerate(waits)))
            patience *= 1.5
        assert threading.active_count() == threads

    run(main())
    assert ends["synced"]
    assert ends["cancelled"] >= 40
    for target in targets:
        target.close()
    assert engine.info.slots_free == SLOTS
    assert (engine.info.streams, engine.info.targets) == (0, 0)


def test_received_into_leases(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if leases and asyncio's own ``sock_recv_into`` do not go together."""
    data = rng.randbytes(7 * SLOT + 13)
    target = engine.open(tmp_path / "t", create=True)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        with here, there, await aio.open_stream(engine, [target]) as stream:
            here.setblocking(False)
            there.setblocking(False)
            stream.place([0])
            sending = asyncio.create_task(loop.sock_sendall(there, data))
            while stream.position < len(data):
                with await aio.lease(stream) as lease:
                    count = await loop.sock_recv_into(here, lease.view)
                    assert lease.commit(count) == 0
            await sending
            assert stream.digest() == xxhash.xxh3_128_digest(data)
            assert (await aio.sync(stream))[target].ok

    run(main())
    assert target.finish(len(data)).ok
    assert (tmp_path / "t").read_bytes() == data


def test_one_task_at_a_time(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if a second task's bytes get into the middle of the first one's."""
    target = faulty.open(tmp_path / "t", create=True, hard_deadline=1e6)
    faulty.set_faults([Fault.never(kind=Phase.WRITE, count=None)])

    async def main() -> None:
        with await aio.open_stream(faulty, [target]) as stream:
            stream.place([0])
            first = asyncio.create_task(aio.write(stream, bytes(SLOTS * SLOT)))
            await turns()
            for second in (aio.write(stream, b"x"), aio.lease(stream), aio.sync(stream)):
                with pytest.raises(InterfaceError):
                    await second
            stream.abort()
            with pytest.raises(InterfaceError):
                await first
            faulty.release(target)

    run(main())


def test_faults_and_events(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if a waiting writer does not hear that its targets failed, or a waiting reader of events sleeps on."""
    target = faulty.open(tmp_path / "t", create=True)
    faulty.set_faults([Fault.error(errno.EIO, kind=Phase.WRITE, count=None)])

    async def main() -> None:
        with await aio.open_stream(faulty, [target]) as stream:
            stream.place([0])
            waiting = asyncio.create_task(aio.events(faulty))
            writing = asyncio.create_task(aio.write(stream, bytes(SLOTS * SLOT)))
            await turns()
            assert not waiting.done()
            assert not writing.done()
            faulty.advance(1.0)
            assert await writing == 1
            assert (await waiting)[0].errno == errno.EIO
            assert (await aio.sync(stream))[target].errno == errno.EIO
            with pytest.raises(InterfaceError):
                await aio.write(stream, b"after the end")
        with faulty.stream([target]) as stream:
            stream.place([0])
            assert await aio.write(stream, bytes(SLOT)) == 0
            faulty.advance(1.0)
            with pytest.raises(TargetError):
                await aio.lease(stream)

    run(main())


def test_closed_while_waiting(faulty: Engine, tmp_path: Path) -> None:
    """Breaks if those who wait are not told, or the eventfd is used after it was closed."""
    target = faulty.open(tmp_path / "t", create=True, hard_deadline=1e6)
    faulty.set_faults([Fault.never(kind=Phase.WRITE, count=None)])

    async def main() -> None:
        stream = await aio.open_stream(faulty, [target])
        stream.place([0])
        tasks = [
            asyncio.create_task(aio.write(stream, bytes(SLOTS * SLOT))),
            asyncio.create_task(aio.events(faulty)),
        ]
        await turns()
        faulty.close(timeout=0.1)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], InterfaceError)
        assert isinstance(results[1], InterfaceError)

    run(main())


def test_two_loops_share_an_engine(engine: Engine, tmp_path: Path, rng: random.Random) -> None:
    """Breaks if one loop takes the other's wake-ups."""
    data = rng.randbytes(40 * SLOT)
    digests: list[bytes] = []

    async def main(number: int) -> None:
        target = engine.open(tmp_path / f"t{number}", create=True)
        with await aio.open_stream(engine, [target]) as stream:
            stream.place([0])
            await aio.write(stream, data)
            digests.append(stream.digest())
            assert (await aio.sync(stream))[target].ok

    threads = [threading.Thread(target=asyncio.run, args=(main(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert digests == [xxhash.xxh3_128_digest(data)] * 3
    assert not aio._watches


def test_the_seventeenth_event_loop(engine: Engine) -> None:
    """Breaks if the limit is an errno that nobody can act on, or if whoever hits it takes a place from the others."""
    loops = [asyncio.new_event_loop() for _ in range(aio.MAX_LOOPS + 1)]
    *waiting, late = loops
    tasks = []
    for loop in waiting:
        tasks.append(loop.create_task(aio.events(engine)))
        loop.run_until_complete(asyncio.sleep(0))  # it waits now
    with pytest.raises(InterfaceError, match=r"16 event loops .* share a loop"):
        late.run_until_complete(aio.events(engine))
    assert len(aio._watches) == aio.MAX_LOOPS
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting[0].run_until_complete(tasks[0])
    tasks[0] = late.create_task(aio.events(engine))
    late.run_until_complete(asyncio.sleep(0))  # in the place that was given up
    for loop, task in zip([late, *waiting[1:]], tasks, strict=True):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
    for loop in loops:
        loop.close()
    assert not aio._watches


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("closed", [True, False])
def test_a_loop_that_ended_while_somebody_waited(tmp_path: Path, closed: bool) -> None:
    """Breaks if a wait that nobody will ever wake keeps the engine, its memory and its locks for as long as the process lives."""
    refused: list[dict[str, Any]] = []

    def leave() -> list[weakref.ref[Any]]:
        engine = Engine(
            backend="faulty", memory_bytes=16 * SLOT, slot_size_bytes=SLOT, max_streams=2
        )
        target = engine.open(tmp_path / "t", create=True, lock=True, hard_deadline=1e6)
        engine.set_faults([Fault.never(kind=Phase.WRITE, count=None)])
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda _, context: refused.append(context))

        async def stuck() -> None:
            with await aio.open_stream(engine, [target]) as stream:
                stream.place([0])
                await aio.write(stream, bytes(20 * SLOT))

        task = loop.create_task(stuck())
        loop.run_until_complete(turns())
        assert not task.done()
        assert aio._watches
        if closed:
            loop.close()
        return [weakref.ref(engine), weakref.ref(loop), weakref.ref(task)]

    left = leave()
    gc.collect()
    assert [reference() for reference in left] == [None] * 3
    assert not aio._watches
    assert [context["message"] for context in refused] == ["Task was destroyed but it is pending!"]
    with Engine(memory_bytes=16 * SLOT, slot_size_bytes=SLOT, max_streams=2) as another:
        another.open(tmp_path / "t", lock=True, lock_wait=5.0).close()


def test_any_buffer_also_an_empty_one(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a length is taken in items, or a buffer with gaps is written."""
    np = pytest.importorskip("numpy")
    target = engine.open(tmp_path / "t", create=True)

    async def main() -> None:
        with await aio.open_stream(engine, [target]) as stream:
            stream.place([0])
            for empty in (b"", np.zeros((0, 4))):
                assert await aio.write(stream, empty) == 0
            await aio.write(stream, np.arange(1000, dtype="<u4"), raw=True)
            await aio.write(stream, bytearray(b"end"))
            with pytest.raises(BufferError):
                await aio.write(stream, np.zeros(100, "u1")[::2])
            assert stream.position == 4003
            assert stream.digest() == xxhash.xxh3_128_digest(b"end")

    run(main())


def test_watching_by_hand(engine: Engine, tmp_path: Path) -> None:
    """Breaks if a change between asking and sleeping is missed, or told twice."""
    target = engine.open(tmp_path / "t", create=True)
    number = os.eventfd(0, os.EFD_NONBLOCK)

    def told() -> int:
        """How often, of two watches before a change and none after it."""
        with engine.stream([target]) as stream:
            stream.place([0])
            assert engine._core.watch(number) == 0
            assert engine._core.watch(number) == 0
            write_and_sync(stream)
            count = os.eventfd_read(number)
            write_and_sync(stream)
            with pytest.raises(BlockingIOError):
                os.eventfd_read(number)
            assert engine._core.watch(number) == 0
            engine._core.unwatch(number)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(number)
        return count

    try:
        # Twice if the opening of the stream was news between the two: then the second is a watch of its own.
        assert any(told() == 1 for _ in range(20))
    finally:
        os.close(number)


def write_and_sync(stream: Stream) -> None:
    with contextlib.suppress(InterfaceError):  # sealed by the first
        stream.write(b"x")
    stream.sync()

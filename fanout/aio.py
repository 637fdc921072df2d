"""asyncio twins of the calls that wait: no thread per call, any number of streams on one event loop.

::

    stream = await aio.open_stream(engine, targets)
    with stream:
        stream.place([0] * len(targets))
        async for chunk in chunks:
            await aio.write(stream, chunk)
        length = stream.position
        outcomes = await aio.sync(stream)
    ends = [await asyncio.to_thread(target.finish, length) for target in targets]

Only what may wait has a twin here; everything else (`place`, `digest`, `legs`, `abort` …) is called on the stream itself. Opening and
finishing targets have none yet: they wait in the calling thread, so give them one (`asyncio.to_thread`).

How it waits: the engine writes to an eventfd at the next change of anything that somebody could wait for, and everybody on that
loop tries again. Nothing runs in an executor, and nothing happens while nobody waits.

Cancelling a wait, or `asyncio.timeout` around it, leaves stream and engine as they are: of a cancelled `write`,
`Stream.position` says how much was accepted. A wait for targets that hang ends by itself, at the engine's hard deadline.

One task at a time moves bytes on a stream; a second one gets `InterfaceError`. So does whoever would wait on the 17th event loop for
one engine while sixteen do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import weakref
from typing import TYPE_CHECKING

from fanout.engine.status import checked, checked_size
from fanout.errors import InterfaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from typing_extensions import Buffer

    from fanout.engine import Engine, Event, Lease, Stream, Target
    from fanout.types import Outcome

    T = TypeVar("T")

PIECE_BYTES = 1 << 20  # at most this between two looks at the event loop: about 0.3 ms
MAX_LOOPS = 16  # FO_MAX_WATCHES: event loops that can wait for one engine at once
_NOT_YET = -errno.ETIMEDOUT  # what the core says to a wait of no time


async def open_stream(engine: Engine, targets: Sequence[Target]) -> Stream:
    """As `Engine.stream`; waits until `max_streams` admits it.

    The stream's own `Stream.write` and `Stream.lease` then never block the loop: without a free slot they raise TimeoutError.

    Raises:
        InterfaceError: as `Engine.stream`.
    """

    def attempt() -> Stream | int:
        try:
            return engine.stream(targets, timeout=0)
        except TimeoutError:
            return _NOT_YET

    found = await _until(engine, attempt)
    assert not isinstance(found, int)
    return found


async def write(stream: Stream, data: Buffer, *, raw: bool = False) -> int:
    """As `Stream.write`; waits for free slots. `data` stays exported meanwhile, and is taken as it is at that moment.

    Returns:
        Bit mask of the targets that have failed so far.

    Raises:
        InterfaceError: as `Stream.write`, or another task is inside.
        BufferError: the buffer is not C-contiguous.
    """
    at = 0
    with _alone(stream), memoryview(data) as whole:
        if not whole.c_contiguous:
            raise BufferError("the buffer is not C-contiguous")
        with whole.cast("B") if whole.nbytes else memoryview(b"") as view:

            def attempt() -> int:
                nonlocal at
                before = stream.position
                with view[at : at + PIECE_BYTES] as piece:
                    status = stream._write_now(piece, raw)
                at += stream.position - before
                return status

            while True:
                status = await _until(_engine(stream), attempt)
                if status < 0 or at == len(view):
                    return stream._mask(status)
                await asyncio.sleep(0)


async def lease(stream: Stream, size: int | None = None) -> Lease:
    """As `Stream.lease`; waits for a free slot.

    Raises:
        TargetError: no target is left.
        InterfaceError: as `Stream.lease`, or another task is inside.
    """
    wanted = checked_size(size)
    with _alone(stream):
        return stream._lent(await _until(_engine(stream), lambda: stream._core.lease(wanted, 0)))


async def sync(stream: Stream) -> dict[Target, Outcome]:
    """As `Stream.sync`.

    Raises:
        InterfaceError: closed or aborted, or another task is inside.
    """
    with _alone(stream):
        await _until(_engine(stream), lambda: stream._core.sync(0))
        if stream._verify:  # reading back is the one thing that takes a thread
            return await asyncio.to_thread(stream.sync, timeout=0)
        return stream.sync(timeout=0)


async def drained(stream: Stream) -> frozenset[Target]:
    """Wait until nothing of the stream is in flight on any target that has not been let go; says on which targets nothing is."""
    await _until(_engine(stream), lambda: stream._core.drained(0))
    return stream.drained()


async def events(engine: Engine) -> list[Event]:
    """Wait for the first event; take all that there are, oldest first."""
    found = await _until(engine, lambda: engine.events() or _NOT_YET)
    assert not isinstance(found, int)
    return found


# ---- waiting -------------------------------------------------------------------------------------------------------------


def _engine(stream: Stream) -> Engine:
    return stream.targets[0].engine


_inside: weakref.WeakSet[Stream] = weakref.WeakSet()


@contextlib.contextmanager
def _alone(stream: Stream) -> Iterator[None]:
    """A write may be spread over many turns of the loop: no other bytes get in between."""
    if stream in _inside:
        raise InterfaceError("in use: another task moves bytes on this stream")
    _inside.add(stream)
    try:
        yield
    finally:
        _inside.discard(stream)


class _Watch:
    """One engine's eventfd on one event loop, for as long as anybody waits there."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine, self.loop, self.users = engine, loop, 0
        self.waiting: list[asyncio.Future[None]] = []
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.add_reader(self.fd, self._changed)

    def arm(self) -> None:
        """From here on no change goes unnoticed."""
        status = self.engine._core.watch(self.fd)
        if status == -errno.ENOBUFS:
            raise InterfaceError(
                f"{MAX_LOOPS} event loops wait for this engine already, the most that one can serve: "
                "let streams share a loop, or give the others an engine of their own"
            )
        checked(status, "engine")

    async def change(self) -> None:
        """Wait for the next change since `arm`."""
        waiter = self.loop.create_future()
        self.waiting.append(waiter)
        await waiter

    def _changed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            if not waiter.done():  # cancelled meanwhile
                waiter.set_result(None)

    def close(self) -> None:
        """The engine forgets the number before it can mean something else."""
        self.engine._core.unwatch(self.fd)
        self.loop.remove_reader(self.fd)
        os.close(self.fd)


# By identity: a watch keeps both alive. Those who wait keep the watch, and their loop keeps them: when it is gone, so are they all.
_watches: weakref.WeakValueDictionary[tuple[int, int], _Watch] = weakref.WeakValueDictionary()


@contextlib.contextmanager
def _watching(engine: Engine) -> Iterator[_Watch]:
    loop = asyncio.get_running_loop()
    key = (id(engine), id(loop))
    watch = _watches.get(key)
    if watch is None:
        watch = _watches[key] = _Watch(engine, loop)
    watch.users += 1
    try:
        yield watch
    finally:
        watch.users -= 1
        if watch.users == 0:
            _watches.pop(key, None)  # a loop that is collected has lost it already
            watch.close()


async def _until(engine: Engine, attempt: Callable[[], T | int]) -> T | int:
    """The first answer that is not "not yet"."""
    answer = attempt()
    if answer != _NOT_YET:
        return answer
    with _watching(engine) as watch:
        while True:
            watch.arm()
            answer = attempt()
            if answer != _NOT_YET:
                return answer
            await watch.change()

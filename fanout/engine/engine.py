"""The engine: its life, opening targets and streams, requests, events."""

from __future__ import annotations

import errno
import os
import struct
import time
import warnings
from typing import TYPE_CHECKING, Any

from fanout import _core
from fanout.engine.status import (
    checked,
    fail,
    nanoseconds,
    outcome_of,
    whole,
)
from fanout.engine.stream import Stream
from fanout.engine.target import ON_SLOW, Target, is_absent_device
from fanout.engine.values import EngineInfo, Event, EventKind, Fault, Request
from fanout.errors import ConfigError, InterfaceError, TargetError
from fanout.types import FaultClass, Outcome, OutcomeCode, Phase

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from types import TracebackType
    from typing import Self, TypeAlias

    import numpy as np
    from typing_extensions import Buffer

    # A request as the core takes it: target, kind, offset, length, data.
    _Record: TypeAlias = tuple[int, int, int, int, Buffer | None]


_BACKENDS = {
    "auto": _core.BACKEND_AUTO,
    "io_uring": _core.BACKEND_URING,
    "threads": _core.BACKEND_THREADS,
    "faulty": _core.BACKEND_FAULTY,
}
REQUESTS = (
    Phase.WRITE,
    Phase.READ,
    Phase.FLUSH,
    Phase.ALLOCATE,
    Phase.TRUNCATE,
    Phase.DIRSYNC,
)
NO_DEVICE = Outcome(OutcomeCode.ERROR, Phase.OPEN, errno=errno.ENODEV, cls=FaultClass.TRANSPORT)
_EVENT = struct.Struct("=7QiHHI4B4IHB5x")  # fo_event; 96 bytes
_EVENT_DTYPE = [
    ("seq", "u8"),
    ("time_ns", "u8"),
    ("offset", "u8"),
    ("length", "u8"),
    ("done", "u8"),
    ("queued_ns", "u8"),
    ("latency_ns", "u8"),
    ("errno", "i4"),
    ("version", "u2"),
    ("target", "u2"),
    ("stream", "u4"),
    ("kind", "u1"),
    ("phase", "u1"),
    ("outcome", "u1"),
    ("cls", "u1"),
    ("attempts", "u4"),
    ("inflight", "u4"),
    ("lag", "u4"),
    ("merged", "u4"),
    ("pace", "u2"),
    ("strikes", "u1"),
    ("reserved", "V5"),
]
_CODES, _PHASES, _CLASSES = tuple(OutcomeCode), tuple(Phase), tuple(FaultClass)
_OK = _CODES.index(OutcomeCode.OK)
_READ = (_OK, _CODES.index(OutcomeCode.SHORT))  # of a read that gave something
_CLOSE_POLL_SECONDS = 0.002
_MOST_SLOTS, _MOST_32, _MOST_64 = 4096, (1 << 32) - 1, (1 << 64) - 1


class Engine:
    """One arena, one thread, one ring. Use it as a context manager, or call `close`.

    Args:
        memory_bytes: the arena; the engine takes it at once and never more. A multiple of `slot_size_bytes`, at least three
            slots for each stream.
        slot_size_bytes: power of two from 64 KiB to 16 MiB.
        max_streams: streams that may be open at once; each is guaranteed two slots.
        backend: ``auto`` (io_uring where it works, else threads), ``io_uring``, ``threads``, or ``faulty`` for tests.
        soft_deadline: seconds after which an operation raises a SLOW event.
        hard_deadline: seconds after which a target that does not answer is let go.
        patience: seconds that a target may hold up its peers before it counts as a laggard.
        seed: faulty backend: order and latency of completions.
        faults: faulty backend: the script to begin with.

    Raises:
        ConfigError: an argument is out of range, the backend cannot run here, or there is no thread left for it; says why.
        MemoryError: the arena cannot be had.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 64 << 20,
        slot_size_bytes: int = 1 << 20,
        max_streams: int = 8,
        backend: str = "auto",
        soft_deadline: float = 30.0,
        hard_deadline: float = 120.0,
        patience: float = 2.0,
        seed: int = 0,
        faults: Sequence[Fault] = (),
    ) -> None:
        self._closed = True  # until there is something to close
        self._core = _open_core(
            memory_bytes,
            slot_size_bytes,
            max_streams,
            backend,
            soft_deadline,
            hard_deadline,
            patience,
            seed,
        )
        self._closed = False
        self.slot_size = slot_size_bytes
        if faults:
            self.set_faults(faults)

    # -- life

    def close(self, *, timeout: float = 5.0) -> None:
        """Stop; idempotent. Open streams are aborted, open targets closed without a flush.

        Waits at most `timeout` seconds for what is in flight; what has not ended then ends in the kernel without us.

        Raises:
            InterfaceError: another thread is still inside a call after that time; the engine takes no new calls.
        """
        if self._closed:
            return
        deadline = time.monotonic() + timeout
        while True:
            streams = self._core.streams()  # each time: one may just have been opened
            for stream in streams:
                stream.abort()
            busy = [stream for stream in streams if stream.close() == -errno.EBUSY]
            left = max(0.0, deadline - time.monotonic())
            status = self._core.close(nanoseconds(left))
            if status != -errno.EBUSY:
                break
            if left <= 0:
                raise InterfaceError(
                    f"close: another thread is still inside a call of this engine ({len(busy)} streams)"
                )
            time.sleep(_CLOSE_POLL_SECONDS)
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if (
            not self._closed and self._core.info() is not None
        ):  # else its close was interrupted at the end
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        found = None if self._closed else self._core.info()
        return (
            f"<fanout.Engine {'closed' if found is None else _core.backend_name(found['backend'])}>"
        )

    # -- looking

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    @property
    def info(self) -> EngineInfo:
        """A snapshot: backend, memory, counters. The first one counts the huge pages, which takes long in a large process.

        Raises:
            InterfaceError: closed.
        """
        self._core.look()
        found = self._core.info()
        if found is None:
            fail(-errno.EBADF, "engine")
        found["backend"] = _core.backend_name(found["backend"])
        found["registered"], found["dead"] = bool(found["registered"]), bool(found["dead"])
        return EngineInfo(**found, events_lost=self._core.lost_batches * 128)

    def now(self) -> float:
        """Seconds on the engine's clock: the monotonic one, or the simulated one of the faulty backend."""
        return checked(self._core.now(), "engine") / 1e9

    def fileno(self) -> int:
        """A descriptor that is readable while events are pending or a stream's state has changed.

        Raises:
            InterfaceError: closed, or the faulty backend, which has none.
        """
        return checked(self._core.event_fd(), "engine")

    def events(self, *, timeout: float = 0.0) -> list[Event]:
        """Take all events, oldest first; waits at most `timeout` seconds for the first."""
        return [_event(record) for record in _EVENT.iter_unpack(self._event_bytes(timeout))]

    def events_array(self, *, timeout: float = 0.0) -> np.ndarray[Any, np.dtype[np.void]]:
        """Take all events as one structured array with the fields of `Event`, without unpacking them."""
        import numpy as np  # noqa: PLC0415

        return np.frombuffer(self._event_bytes(timeout), dtype=np.dtype(_EVENT_DTYPE))

    def _event_bytes(self, timeout: float) -> bytes:
        batches = []
        wait = nanoseconds(timeout)
        while batch := self._core.events(wait):
            batches.append(batch)
            wait = 0
        return b"".join(batches)

    # -- targets and streams

    def open(
        self,
        path: str | os.PathLike[str] | bytes,
        *,
        create: bool = False,
        replace: bool = False,
        read_only: bool = False,
        lock: bool = False,
        lock_wait: float = 0.0,
        size: int = 0,
        granule: int = 0,
        direct: bool = True,
        follow_links: bool = True,
        named: bool = False,
        depth: int = 0,
        timeout: float = 60.0,
        soft_deadline: float = 0.0,
        hard_deadline: float = 0.0,
        on_slow: str = "wait",
        patience: float = 0.0,
    ) -> Target:
        """Open a file or block device for writing (or reading only).

        Args:
            path: file or device. Without `create` and `replace` it must exist.
            create: make a new file; there must be none. Never among the devices in /dev.
            replace: make a file, or use the existing one in place from offset 0 on.
            read_only: for `read` alone; takes no lock.
            lock: take an exclusive lock that lasts until the last write has ended, even if this process is killed.
            lock_wait: seconds to wait for a lock that somebody else holds.
            size: bytes to preallocate (files); 0: grow ahead of the writes.
            granule: alignment to use instead of the discovered one.
            direct: False: go through the page cache.
            follow_links: False: refuse a symbolic link in the last component of the path (ELOOP).
            named: the name of a file that is there may not be durable yet: a request DIRSYNC makes it so, as it does for one that is
                made here. Its directory must be readable.
            depth: writes in flight at once; 0: the default.
            timeout: seconds for the whole of it. Signals are looked at when it is over.
            soft_deadline: seconds, instead of the engine's.
            hard_deadline: seconds, instead of the engine's.
            on_slow: what becomes of it when it holds up its peers for longer than `patience`: ``wait``: it paces its streams;
                ``eject``: each stream that it holds up goes on without it, with outcome SLOW. Either way there is an event
                LAGGARD. The last target of a stream, and one that is no slower than another that stays, is never ejected.
            patience: seconds, instead of the engine's.

        Raises:
            TargetError: it cannot be opened; `outcome.phase` says at which step.
            InterfaceError: closed, or too many targets.
            ValueError: a number that is negative or too large, a path that cannot be one. Nothing was touched.
        """
        if on_slow not in ON_SLOW:
            raise ValueError(f"on_slow is one of {', '.join(ON_SLOW)}: {on_slow!r}")
        name = os.fsencode(path)
        if b"\0" in name:
            raise ValueError("a path cannot hold a zero byte")
        if (create or replace) and is_absent_device(name):
            raise TargetError(os.fsdecode(name), NO_DEVICE)
        flags = (
            (_core.OPEN_CREATE if create else 0)
            | (_core.OPEN_REPLACE if replace else 0)
            | (_core.OPEN_READONLY if read_only else 0)
            | (_core.OPEN_LOCK if lock else 0)
            | (0 if direct else _core.OPEN_BUFFERED)
            | (0 if follow_links else _core.OPEN_NOFOLLOW)
            | (_core.OPEN_NAMED if named else 0)
        )
        status, core, why = self._core.target_open(
            name,
            flags=flags,
            depth=whole(depth, "depth", _MOST_32),
            size=whole(size, "size"),
            lock_wait_ns=nanoseconds(lock_wait),
            granule=whole(granule, "granule", _MOST_32),
            on_slow=ON_SLOW.index(on_slow),
            soft_ns=nanoseconds(soft_deadline),
            hard_ns=nanoseconds(hard_deadline),
            patience_ns=nanoseconds(patience),
            timeout_ns=nanoseconds(timeout),
        )
        text = os.fsdecode(path)
        if core is None:
            if why is not None and why[0]:
                outcome = outcome_of(why)
                if outcome.code is OutcomeCode.NOT_SUBMITTED and status == -errno.EMFILE:
                    raise InterfaceError(
                        f"{text}: an engine holds at most {_core.MAX_TARGETS} targets; close one first"
                    )
                raise TargetError(text, outcome)
            fail(status, text)
        return Target(self, core, text)

    def stream(
        self,
        targets: Sequence[Target],
        *,
        timeout: float | None = 30.0,
        at_once: bool = False,
        keep: Collection[Target] = (),
        verify: Collection[Target] = (),
    ) -> Stream:
        """Begin a stream to 1 to 16 targets.

        Args:
            targets: each once, all of this engine.
            timeout: seconds to wait for admission here, and for a free slot in every later call of the stream.
            at_once: do not wait for admission.
            keep: targets that are not ejected for being slow, whatever their `on_slow` says.
            verify: targets that `Stream.sync` reads back after their flush: one that holds anything else than was written
                gets outcome MISMATCH. Every `place` needs a length then, and no two may overlap.

        Raises:
            InterfaceError: closed, no targets, too many, the same one twice, or one that is not active.
            TimeoutError: `max_streams` are open, or no slot came free in time. Who holds a stream that is not sealed and waits
                for another one may wait for somebody who does the same.
        """
        if not set(targets).issuperset((*keep, *verify)):
            raise InterfaceError("stream: `keep` and `verify` name targets of the stream")
        wait = nanoseconds(timeout)
        core = self._core.stream([self._id(target) for target in targets], 0 if at_once else wait)
        if isinstance(core, int):
            fail(core, "stream")
        for target in targets:
            target._live_id()  # one that was closed while we waited may have given its number to another
        if keep:
            mask = sum(1 << index for index, target in enumerate(targets) if target in keep)
            checked(core.keep(mask), "stream")
        if verify:
            checked(core.prove(), "stream")
        return Stream(core, tuple(targets), wait, frozenset(verify))

    # -- requests

    def run(self, requests: Sequence[Request], *, timeout: float | None = None) -> list[Outcome]:
        """Run requests side by side and wait for all of them.

        Returns:
            One outcome per request, in their order. Those that got no slot within `timeout` seconds are NOT_SUBMITTED.

        Raises:
            InterfaceError: closed, a kind that no request has, a WRITE or READ without data, or an offset or length that is negative or too large.
        """
        records = []
        for request in requests:
            if request.kind not in REQUESTS:
                known = ", ".join(kind.name for kind in REQUESTS)
                raise InterfaceError(f"a request cannot be {request.kind!r}: say one of {known}")
            if request.data is None and request.kind in (Phase.WRITE, Phase.READ):
                raise InterfaceError(f"a {request.kind.name} request needs data")
            target = self._id(request.target)
            records.append((target, request.kind, request.offset, request.length, request.data))
        return [outcome_of(outcome) for outcome in self._outcomes(records, nanoseconds(timeout))]

    def _outcomes(
        self, records: Sequence[_Record], timeout_ns: int = _core.FOREVER
    ) -> list[_core._Outcome]:
        """Run requests that are records of the core already: the outcome of one that went well need not become a value."""
        try:
            status, outcomes = self._core.run(records, timeout_ns)
        except OverflowError as error:
            raise InterfaceError(f"run: an offset or a length of no file: {error}") from error
        if status not in (0, -errno.ETIMEDOUT):
            fail(status, "run")
        return outcomes

    def read(self, target: Target, offset: int, length: int) -> bytes:
        """Read `length` bytes from any offset.

        Raises:
            TargetError: an error, or the target ends before that (SHORT).
            InterfaceError: closed.
        """
        if offset < 0 or length < 0:
            raise ValueError(f"offset and length must not be negative: {offset}, {length}")
        granule = target.granule
        start = offset - offset % granule
        end = offset + length + -(offset + length) % granule
        buffer = bytearray(end - start)
        with memoryview(buffer) as view:
            size, number = self.slot_size, self._id(target)
            pieces = [
                (number, Phase.READ, at, 0, view[at - start : at - start + size])
                for at in range(start, end, size)
            ]
            for piece, record in zip(pieces, self._outcomes(pieces), strict=True):
                needed = min(offset + length - piece[2], size)
                if record[0] not in _READ or record[4] < needed:
                    raise TargetError(target.path, outcome_of(record))
            return bytes(view[offset - start : offset - start + length])

    def write(self, target: Target, offset: int, data: Buffer) -> None:
        """Write outside of any stream; `offset` and the length of `data` are multiples of the granule. Not durable by itself.

        Raises:
            TargetError: what happened to the first piece that failed.
            InterfaceError: closed.
        """
        with memoryview(data) as whole, whole.cast("B") as view:
            size, number = self.slot_size, self._id(target)
            pieces = [
                (number, Phase.WRITE, offset + at, 0, view[at : at + size])
                for at in range(0, len(view), size)
            ]
            self._run_all(target, pieces)

    def flush(self, target: Target) -> None:
        """Make all writes that have completed on the target durable.

        Raises:
            TargetError: the flush failed. All since the last good one is unknown, and the target takes no more writes.
            InterfaceError: closed.
        """
        self._run_all(target, [(self._id(target), Phase.FLUSH, 0, 0, None)])

    def _run_all(self, target: Target, records: Sequence[_Record]) -> None:
        for record in self._outcomes(records):
            if record[0] != _OK:
                raise TargetError(target.path, outcome_of(record))

    def _id(self, target: Target) -> int:
        if target.engine is not self:
            raise InterfaceError(f"{target.path}: belongs to another engine")
        return target._live_id()

    # -- the faulty backend

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Replace the script; counting starts anew. Faulty backend only, like `advance` and `release`."""
        checked(self._core.faults_set([fault._record() for fault in faults]), "set_faults")

    def advance(self, seconds: float) -> None:
        """Let simulated time pass: due completions arrive and deadlines are looked at."""
        checked(self._core.faults_advance(nanoseconds(seconds)), "advance")

    def release(self, target: Target | None) -> None:
        """Let the operations of a target (None: of all) that never complete, complete now."""
        number = _core.ANY_TARGET if target is None else target.id
        checked(self._core.faults_release(number), "release")

    def record_to(self, fd: int) -> None:
        """Append every operation that is carried out to an ordinary file, as a record of csrc/fanout.h; -1: no more."""
        checked(self._core.faults_journal(fd), "record_to")

    def cut_power(self, *, after: int | None = 0) -> bool:
        """Let the power fail after so many more operations; None: not. From then on all but closing fails with EIO.

        Returns:
            Whether there was power until now.
        """
        status = self._core.faults_power(_core.FOREVER if after is None else after)
        if status == -errno.ENODEV:
            return False
        checked(status, "cut_power")
        return True


# ---- from numbers to values


def _event(record: tuple[int, ...]) -> Event:
    kind, phase, outcome, cls = record[11:15]
    enums = (EventKind(kind), _PHASES[phase], _CODES[outcome], _CLASSES[cls])
    return Event._make((*record[:11], *enums, *record[15:]))


def _shares(memory: int, slot: int, streams: int) -> tuple[int, int, int]:
    """Slots in all, for requests, and set aside to be lost to targets that hang. Raises `ConfigError` when they do not go round."""
    slots, rest = divmod(memory, slot) if slot else (0, memory)
    if rest or not 0 < slots <= _MOST_SLOTS:
        raise ConfigError(
            f"{memory} bytes of memory are not 1 to {_MOST_SLOTS} slots of {slot} bytes",
            key="engine.memory",
        )
    control, quarantine = min(4, max(1, slots // 16)), min(16, slots // 4)
    if slots < 2 * streams + control + quarantine:
        raise ConfigError(
            f"{memory} bytes of memory are too few for {streams} streams with slots of {slot} bytes, two for each and some of the "
            "engine's own: more memory_bytes, fewer max_streams or smaller slot_size_bytes",
            key="engine.memory",
        )
    return slots, control, quarantine


def _open_core(
    memory: int,
    slot: int,
    streams: int,
    backend: str,
    soft: float,
    hard: float,
    patience: float,
    seed: int,
) -> _core.Engine:
    if backend not in _BACKENDS:
        allowed = ", ".join(_BACKENDS)
        raise ConfigError(f"{backend!r} is no backend; one of {allowed}", key="engine.backend")
    try:
        memory, slot = whole(memory, "memory_bytes"), whole(slot, "slot_size_bytes", _MOST_32)
        streams = whole(streams, "max_streams", _MOST_32)
        slots, control, quarantine = _shares(memory, slot, streams)
        return _core.Engine(
            slot_size=slot,
            slot_count=slots,
            max_streams=streams,
            control_slots=control,
            quarantine_slots=quarantine,
            backend=_BACKENDS[backend],
            soft_ns=nanoseconds(soft),
            hard_ns=nanoseconds(hard),
            patience_ns=nanoseconds(patience),
            seed=whole(seed, "seed", _MOST_64),
        )
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error), key="engine") from error
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(
                f"no memory for an engine of {memory} bytes: {error.strerror}"
            ) from error
        if error.errno == errno.EAGAIN:
            raise ConfigError(
                f"{error.strerror}; raise the limit (ulimit -u, pids.max of the container), or end something",
                key="engine",
            ) from error
        raise ConfigError(
            f"backend {backend} cannot run here: {error.strerror}", key="engine.backend"
        ) from error

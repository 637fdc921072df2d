"""What an engine is told and what it tells: frozen values, nothing that acts."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout import _core
from fanout.engine.status import nanoseconds
from fanout.types import Phase

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from fanout.engine.target import Target
    from fanout.types import FaultClass, Outcome, OutcomeCode


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """A snapshot of an engine.

    Attributes:
        backend: ``io_uring``, ``threads`` or ``faulty``: the one that runs.
        reason: why this backend, why not registered, and the like; one sentence each.
        huge_pages: 2 for hugetlb, 1 for advised transparent huge pages, 0 for small pages.
        registered: whether the arena is registered with the ring.
        hash_isa: 0 for baseline code, 2 for AVX2, 3 for AVX-512.
        slot_size: bytes of one slot.
        slot_count: slots of the arena; each is counted in exactly one of the six that follow, so these add up to it.
        slots_free: not in use.
        slots_filling: being filled by a stream.
        slots_live: being written, and no target is through with them yet.
        slots_lagging: held for laggards: some target is through with them and another is not, or those that are not were ejected.
        slots_control: lent to requests.
        slots_quarantined: held by targets that were let go; not used again before their write has ended.
        streams: open streams.
        targets: open targets.
        memory_bytes: all that the engine has reserved; does not grow.
        steps: runs of the state machine.
        submissions: operations handed to the kernel.
        completions: operations that the kernel ended.
        wakeups: times the engine's thread woke up.
        retries: operations handed over again after a transient error or a partial transfer.
        late: completions for targets that had been let go.
        events_pending: events nobody has read.
        ring_flags: IORING_SETUP_* in use.
        dead: a forked child's copy, or stopped after an error of our own.
        events_lost: events dropped because nobody read 65,536 of them.
    """

    backend: str
    reason: str
    huge_pages: int
    registered: bool
    hash_isa: int
    slot_size: int
    slot_count: int
    slots_free: int
    slots_filling: int
    slots_live: int
    slots_lagging: int
    slots_control: int
    slots_quarantined: int
    streams: int
    targets: int
    memory_bytes: int
    steps: int
    submissions: int
    completions: int
    wakeups: int
    retries: int
    late: int
    events_pending: int
    ring_flags: int
    dead: bool
    events_lost: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """What an open target is like, and how it is doing.

    Attributes:
        size: bytes of the file or device when it was opened.
        allocated: preallocated up to here.
        granule: offsets and lengths of writes are multiples of it.
        mem_align: memory alignment that direct I/O wants.
        io_align: file alignment that direct I/O wants.
        sector_logical: logical sector of the device; 0 if unknown.
        sector_physical: physical sector of the device; 0 if unknown.
        direct: False: the file system refused O_DIRECT, and writes go through the page cache.
        is_block: a block device.
        created: the file did not exist before.
        slow_path: on FUSE or a network file system; submitted asynchronously only.
        depth: writes in flight at once.
        state: ``opening``, ``active``, ``failed`` (a flush failed: reads go on), ``detached`` (hung) or ``closing``.
        inflight: operations in the kernel.
        queued: operations waiting for their turn.
        quarantined: slots held by operations that nobody waits for any more.
        on_slow: what becomes of the target when it holds up its peers: ``wait`` or ``eject``.
        strikes: looks, of three that make a verdict, that found it holding up its peers.
        latency_ns: of a stream's write, from submission to completion: a moving average; 0: none yet.
        rate: bytes per second while writes of streams are in flight: a moving average.
        flushes_good: flushes that succeeded.
        fs_magic: type of the file system, as statfs gives it.
        dev: device number: of the device itself for block devices, else of the file system.
        ino: inode number.
    """

    size: int
    allocated: int
    granule: int
    mem_align: int
    io_align: int
    sector_logical: int
    sector_physical: int
    direct: bool
    is_block: bool
    created: bool
    slow_path: bool
    depth: int
    state: str
    inflight: int
    queued: int
    quarantined: int
    on_slow: str
    strikes: int
    latency_ns: int
    rate: int
    flushes_good: int
    fs_magic: int
    dev: int
    ino: int


@dataclass(frozen=True, slots=True)
class Leg:
    """How far a stream has come on one target.

    Attributes:
        target: the target.
        state: ``active``, ``failed``, ``ejected`` or ``synced``; the last three are final.
        drained: nothing of the stream is in flight on the target.
        inflight: operations of the stream in the kernel.
        accepted: bytes taken over from the caller (accepted ≥ submitted ≥ completed ≥ synced).
        submitted: bytes handed to the kernel.
        completed: bytes that the kernel confirmed.
        synced: bytes that the device confirmed.
        first: the first fault; None while there is none.
    """

    target: Target
    state: str
    drained: bool
    inflight: int
    accepted: int
    submitted: int
    completed: int
    synced: int
    first: Outcome | None


class EventKind(enum.IntEnum):
    """What an event tells."""

    FAULT = 1
    SLOW = 2
    DETACHED = 3
    LATE = 4
    EJECTED = 5
    DRAINED = 6
    LAGGARD = 7


class Event(NamedTuple):
    """One thing that happened, in the order of `seq`; times are nanoseconds on the engine's clock.

    `pace` and `strikes` are of LAGGARD: the target's rate in thousandths of its peer's.
    """

    seq: int
    time_ns: int
    offset: int
    length: int
    done: int
    queued_ns: int
    latency_ns: int
    errno: int
    version: int
    target: int
    stream: int
    kind: EventKind
    phase: Phase
    outcome: OutcomeCode
    cls: FaultClass
    attempts: int
    inflight: int
    lag: int
    merged: int
    pace: int
    strikes: int


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the faulty backend's script; made by its class methods.

    Attributes:
        action: what happens, as the core numbers it.
        value: errno, bytes or nanoseconds, by action.
        kind: operations it applies to; None: all.
        nth: the first matching operation it hits, from 1.
        count: how many in a row; None: for ever.
        target: where; None: anywhere.
    """

    action: int
    value: int = 0
    kind: Phase | None = None
    nth: int = 1
    count: int | None = 1
    target: Target | None = None

    @classmethod
    def error(cls, number: int, **where: Any) -> Fault:
        """The operation fails with this errno, and nothing was written."""
        return cls(_core.FAULT_ERRNO, number, **where)

    @classmethod
    def error_after(cls, number: int, **where: Any) -> Fault:
        """The operation is done and then reported as failed with this errno."""
        return cls(_core.FAULT_ERRNO_AFTER, number, **where)

    @classmethod
    def short(cls, written: int, **where: Any) -> Fault:
        """Only this many bytes are transferred; 0 is the zero-byte write."""
        return cls(_core.FAULT_SHORT, written, **where)

    @classmethod
    def never(cls, **where: Any) -> Fault:
        """The operation does not come back until `Engine.release`."""
        return cls(_core.FAULT_NEVER, **where)

    @classmethod
    def delay(cls, seconds: float, **where: Any) -> Fault:
        """The operation takes this long and then succeeds."""
        return cls(_core.FAULT_DELAY, nanoseconds(seconds), **where)

    @classmethod
    def swallowed(cls, **where: Any) -> Fault:
        """A lie: the operation succeeds, and nothing was done."""
        return cls(_core.FAULT_SWALLOW, 0, **where)

    @classmethod
    def flipped(cls, index: int, **where: Any) -> Fault:
        """A lie: the write succeeds, and one bit of byte `index` of it is wrong on the medium."""
        return cls(_core.FAULT_FLIP, index, **{"kind": Phase.WRITE, **where})

    @classmethod
    def misdirected(cls, shift: int, **where: Any) -> Fault:
        """A lie: the write succeeds, and its bytes lie `shift` bytes further on."""
        return cls(_core.FAULT_SHIFT, shift, **{"kind": Phase.WRITE, **where})

    def _record(self) -> tuple[int, int, int, int, int, int]:
        target = _core.ANY_TARGET if self.target is None else self.target.id
        count = _core.FOREVER if self.count is None else self.count
        return (target, self.kind or 0, self.nth, count, self.action, self.value)


@dataclass(frozen=True, slots=True)
class Request:
    """One operation outside of any stream.

    Attributes:
        kind: WRITE, READ, FLUSH, ALLOCATE, TRUNCATE or DIRSYNC.
        target: where.
        offset: for WRITE and READ a multiple of the granule.
        length: for ALLOCATE and TRUNCATE; WRITE and READ take the length of `data`, at most a slot.
        data: WRITE: what to write, a multiple of the granule; READ: a writable buffer to fill.
    """

    kind: Phase
    target: Target
    offset: int = 0
    length: int = 0
    data: Buffer | None = field(default=None, repr=False)

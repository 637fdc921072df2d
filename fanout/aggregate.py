"""Writes one aggregate: objects into spans, spans onto streams, the host's framing around them. It knows no rules.

::

    AggregateWriter     one run of objects on one primary
      ├─ written        spans that are finished: head │ data │ foot │ padding
      ├─ current span   objects go here, one fragment each
      ├─ ahead          reserved, not yet entered
      └─ stretches      the streams that carry the spans; all but the last are sealed

A stream has a fixed set of targets, so a span on other targets begins a new stretch; the digest of an object that crosses over is
handed on. A span is left only when more data comes or the aggregate ends, so that an object which ends exactly at its end is final
there.

What it promises:

1. What `capacity` says fits, fits, footers included.
2. A leg's failure is raised as `LegFailed` at the first write that sees it.
3. Every span that was added is in exactly one of: written, current, ahead.
"""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

from fanout.errors import InterfaceError
from fanout.host import Fragment, SyncProof, WrittenSpan
from fanout.types import FaultClass, Member, Outcome, OutcomeCode, Phase

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fanout.engine import Engine, Stream, Target
    from fanout.host import Framing, Host, ReserveRequest, Span

# How long one wait for a flush lasts before the legs are looked at, and how long the legs of a failed
# attempt may take to show their own failures, so that they are judged together. Seconds.
SETTLE_SLICE = 0.25
# Streams of one transaction that are sealed and still being synced. Beyond it the oldest is waited for.
MAX_SEALED = 4
# For so many objects at a time the footer's growth is counted ahead, with the longest names: asking the framing once for each
# would cost as much as writing it.
COUNTED_AHEAD = 64
MAX_NAME_BYTES = 1024

_new = tuple.__new__

_GONE = Outcome(OutcomeCode.NOT_SUBMITTED, Phase.WRITE, errno=errno.ENXIO, cls=FaultClass.TRANSPORT)
_TOO_LATE = Outcome(
    OutcomeCode.TIMED_OUT, Phase.FLUSH, errno=errno.ETIMEDOUT, cls=FaultClass.TRANSPORT
)


class LegFailed(Exception):
    """A target that the data must reach has failed: stop feeding and look at the legs."""


class Starved(Exception):
    """The engine could not serve the stream in time: this host is short of something."""


class Unwritten(Exception):
    """The legs cannot say it: these targets got nothing, or did not answer in time.

    Attributes:
        targets: (pool, target) pairs.
        outcome: what to say about each.
    """

    def __init__(self, targets: Sequence[tuple[str, Target]], outcome: Outcome) -> None:
        self.targets, self.outcome = tuple(targets), outcome
        super().__init__(", ".join(target.path for _, target in targets))


Signal = LegFailed | Starved | Unwritten


class Reserved(NamedTuple):
    """A span, the request that it answers, and its number in the aggregate."""

    request: ReserveRequest
    number: int
    span: Span


@dataclass(slots=True)
class Stretch:
    """A stream and the spans that were placed on it.

    Attributes:
        stream: sealed unless it is the last of its writer.
        spans: the regions that it may write to.
        pools: which pool each target stands for.
        released: (span index, pool) pairs that the host got back.
        settled: every target has made the bytes durable, and the stream is closed.
        drained: nothing is in flight any more on a target that was not let go, and the stream is closed.
        proofs: of that.
    """

    stream: Stream
    spans: list[Span]
    pools: dict[Target, str]
    released: set[tuple[int, str]] = field(default_factory=set)
    settled: bool = False
    drained: bool = False
    proofs: tuple[SyncProof, ...] = ()

    def settle(self, timeout: float | None) -> None:
        """Wait until every target has made its bytes durable, and shown them where that is asked for; end the stream.

        Raises:
            LegFailed: a target failed. Others may still be waiting.
            Unwritten: some did not answer within `timeout` seconds.
        """
        left = timeout
        while not self.settled:
            step = SETTLE_SLICE if left is None else min(SETTLE_SLICE, left)
            try:
                outcomes = self.stream.sync(timeout=step)
            except TimeoutError:
                # One that failed must not wait for another that hangs.
                if self.stream.failures():
                    raise LegFailed from None
                left = None if left is None else max(0.0, left - step)
                # If it has ended meanwhile, nobody is late: the next look says how.
                if left is not None and left <= 0 and (late := self._late()):
                    raise Unwritten(late, _TOO_LATE) from None
                continue
            if not all(outcome.ok for outcome in outcomes.values()):
                raise LegFailed
            self.proofs = tuple(
                SyncProof(self.pools[leg.target], leg.target, leg.accepted, leg.synced)
                for leg in self.stream.legs()
            )
            self.settled = True
            self.stream.close()

    def _late(self) -> list[tuple[str, Target]]:
        return [
            (self.pools[leg.target], leg.target)
            for leg in self.stream.legs()
            if leg.state == "active"
        ]

    def failures(self) -> dict[Target, Outcome]:
        """The targets that failed so far."""
        return {} if self.settled else self.stream.failures()

    def holds(self, pool: str) -> bool:
        """Whether it has regions of a pool that will go back once nothing is in flight there."""
        there = any(name == pool and t.state != "detached" for t, name in self.pools.items())
        return there and any((at, pool) not in self.released for at in range(len(self.spans)))

    def release(self, host: Host, *, timeout: float = 0.0) -> bool:
        """Give the regions back that nothing is in flight on.

        A target that was let go may still write: its regions are never given back, whatever its last completion says.

        Returns:
            Whether there is nothing left to wait for.
        """
        everyone = frozenset(self.pools)
        over = self.settled or self.drained
        drained = everyone if over else self.stream.drained(timeout=timeout)
        stuck = [t for t in self.pools if t not in drained]
        free = {self.pools[t] for t in drained if t.state != "detached"}
        for index, span in enumerate(self.spans):
            pools = [p.pool for p in span.placements if p.pool in free]
            pools = [pool for pool in pools if (index, pool) not in self.released]
            if pools:
                self.released.update((index, pool) for pool in pools)
                host.release(span, pools)
        if any(target.state != "detached" for target in stuck):
            return False
        self.drained = True  # an interrupt before the end of this, and it is asked again
        self.stream.close()
        return True


class AggregateWriter:
    """The aggregate that a transaction is writing, or has written.

    Args:
        engine: makes the streams.
        framing: what the host wants around the data; None: nothing.
        aggregate: 16 bytes.
        primary: name of the primary pool.
        stretches: of the whole transaction; new ones are appended.
        timeout: seconds for admission, slots and flushes; None: for ever.
        keep: pools that are not ejected for being slow.
        verify: pools that are read back before they count as synced.
    """

    def __init__(
        self,
        engine: Engine,
        framing: Framing | None,
        *,
        aggregate: bytes,
        primary: str,
        stretches: list[Stretch],
        timeout: float | None,
        keep: Collection[str] = (),
        verify: Collection[str] = (),
    ) -> None:
        self.aggregate, self.primary = aggregate, primary
        self.members: list[Member] = []
        self.size = 0  # client bytes
        self.written: list[WrittenSpan] = []
        self.ahead: deque[Reserved] = deque()
        self.stretches: list[Stretch] = []
        self._all_stretches = stretches
        self.numbers = 0  # spans added so far
        self._engine, self._framing, self._timeout = engine, framing, timeout
        self._keep, self._verify = keep, verify
        self._head_size = 0 if framing is None else framing.head_size()
        # The current span.
        self._current: Reserved | None = None
        self._stream: Stream | None = None
        self._length = 0
        self._start = 0  # in the aggregate: where the span's data starts
        self._first = 0  # of the members: the first that ends in the span
        self._names = 0  # bytes of the names of those
        # So many more objects fit for certain, as long as they have no more bytes than this together.
        self._sure_objects = self._sure_bytes = 0
        # The current object.
        self._name = b""
        self._began = self._left = 0

    # -- room

    def add(self, request: ReserveRequest, spans: Sequence[Span]) -> None:
        """Take what the host reserved.

        Raises:
            InterfaceError: the host's answer does not fit its contract.
        """
        numbered = enumerate(spans, self.numbers)
        self.ahead.extend([Reserved(request, number, span) for number, span in numbered])
        self.numbers += len(spans)
        for span in spans:
            self._check(request, span)

    def _check(self, request: ReserveRequest, span: Span) -> None:
        asked = (request.primary, *request.secondaries)
        given = tuple(placement.pool for placement in span.placements)
        if given != asked:
            raise InterfaceError(f"the host was asked for places on {asked} and gave {given}")
        coarse = max(placement.target.granule for placement in span.placements)
        if span.length <= 0 or span.length % coarse:
            raise InterfaceError(f"a span of {span.length} bytes is no multiple of {coarse}")

    def room(self, name: bytes) -> int:
        """Client bytes that the current span still takes of an object of that name; below 0: none, not even the name."""
        if self._current is None:
            return -1
        return self._room_beside(1, len(name))

    def _room_beside(self, objects: int, name_bytes: int) -> int:
        """What the current span has left when its footer names so many objects more."""
        length = self._length
        left = length - self._head_size - (self.size - self._start)
        if self._framing is None:
            return left
        count = len(self.members) - self._first + objects
        # The span's whole length stands for its data: a few bytes of sums too many, and one number for all objects.
        return left - self._framing.foot_size(count, self._names + name_bytes, length)

    def _count_ahead(self) -> None:
        """See how much the next objects can have together, whatever they are called."""
        self._sure_objects = COUNTED_AHEAD
        self._sure_bytes = self._room_beside(COUNTED_AHEAD, COUNTED_AHEAD * MAX_NAME_BYTES)

    def capacity(self, name: bytes) -> int:
        """Client bytes that all reserved spans take of one object of that name; below 0: none, not even the name."""
        total = self.room(name)
        for reserved in self.ahead:
            room = self._fresh_room(reserved.span, name)
            total = room if total < 0 else total + max(0, room)
        return total

    def _fresh_room(self, span: Span, name: bytes) -> int:
        foot = 0 if self._framing is None else self._framing.foot_size(1, len(name), span.length)
        return span.length - self._head_size - foot

    @property
    def left(self) -> int:
        """Client bytes that the current span still takes of the current object."""
        return self._left

    # -- objects

    def whole(self, name: bytes, data: bytes) -> bool:
        """A whole object into the current span; False: it does not fit there, and nothing has happened.

        The same as `begin`, `feed` and `end`, in one call for the many small objects of a file tree.

        Raises:
            LegFailed, Starved: the attempt is over.
        """
        length = len(data)
        if self._sure_objects == 0 or length > self._sure_bytes:
            if self.room(name) < length:
                return False
            self._count_ahead()
        stream = self._stream
        assert stream is not None
        try:
            digest = stream.write_object(data)
        except TimeoutError as error:
            raise Starved from error
        if isinstance(digest, int):
            raise LegFailed
        self._sure_objects -= 1
        self._sure_bytes -= length
        # As Member(…), at a third of the price.
        self.members.append(_new(Member, (name, self.size, length, digest)))
        self._names += len(name)
        self.size += length
        return True

    def begin(self, name: bytes) -> None:
        """Begin an object. `capacity` must have said that it fits."""
        room = self.room(name)
        while room < 0 or (room == 0 and self.ahead):
            self._enter(cut=False)
            room = self.room(name)
        self._sure_objects = 0
        self._name, self._began, self._left = name, self.size, room

    def feed(self, data: bytes | memoryview) -> int:
        """Write bytes of the object; they go on in the spans ahead.

        Args:
            data: a `bytes`, or a one-dimensional memoryview of bytes.

        Returns:
            How many were taken: fewer than given when no span is ahead.

        Raises:
            LegFailed, Unwritten, Starved: the attempt is over.
        """
        length = len(data)
        if length <= self._left:
            self._accept(data, length)
            return length
        taken = 0
        with memoryview(data) as view:
            while taken < length:
                if self._left <= 0:
                    if not self.ahead:
                        break
                    self._cross()
                    continue
                part = view[taken : taken + self._left]
                self._accept(part, len(part))
                taken += len(part)
        return taken

    def _accept(self, data: bytes | memoryview, length: int) -> None:
        assert self._stream is not None
        try:
            failed = self._stream.write(data)
        except TimeoutError as error:
            raise Starved from error
        self._left -= length
        self.size += length
        if failed:
            raise LegFailed

    def _cross(self) -> None:
        """The object goes on in the next span."""
        self._enter(cut=True)
        self._left = self.room(self._name)

    def end(self) -> Member:
        """End the object."""
        assert self._stream is not None
        digest = self._stream.digest()
        member = Member(self._name, self._began, self.size - self._began, digest)
        self.members.append(member)
        self._names += len(self._name)
        return member

    # -- spans

    def finish(self) -> None:
        """No more objects: end the last span and seal. Does not wait.

        Raises:
            LegFailed, Starved: the attempt is over.
        """
        try:
            self._leave(cut=False, final=True)
        except TimeoutError as error:
            raise Starved from error

    def _enter(self, *, cut: bool) -> None:
        """Go on to the next reserved span, on a new stretch when it lies on other targets; `cut`: in the middle of an object."""
        try:
            self._leave(cut=cut, final=False)
            self._go_on(self.ahead[0])
        except TimeoutError as error:
            raise Starved from error

    def _go_on(self, reserved: Reserved) -> None:
        request, number, span = reserved
        targets = tuple(placement.target for placement in span.placements)
        if self._stream is None or self._stream.targets != targets:
            self._begin_stretch(span, targets)
        else:
            self.stretches[-1].spans.append(span)
        # From here on the span is the stretch's: an abort waits until nothing is in flight on it.
        self.ahead.popleft()
        self._current = reserved
        assert self._stream is not None
        self._stream.place([placement.offset for placement in span.placements], span.length)
        self._length, self._start, self._first = span.length, self.size, len(self.members)
        self._names = self._sure_objects = 0
        if self._framing is not None:
            head = self._framing.head(request, number, span, self.size)
            self._write_raw(head, self._head_size, "head")

    def _begin_stretch(self, span: Span, targets: tuple[Target, ...]) -> None:
        _refuse_gone(span)
        begun = None
        if self._stream is not None:
            begun = self._stream.suspend()
            self._stream.seal()
        stream = self._admitted(span, targets)
        pools = {placement.target: placement.pool for placement in span.placements}
        self._all_stretches.append(Stretch(stream, [span], pools))
        self.stretches.append(self._all_stretches[-1])
        if begun is not None:
            stream.resume(begun)
        self._stream = stream

    def _admitted(self, span: Span, targets: tuple[Target, ...]) -> Stream:
        """A stream to these targets. Who waits for one holds none: else all could wait for each other."""
        unsettled = [stretch for stretch in self._all_stretches if not stretch.settled]
        for stretch in unsettled[:-MAX_SEALED]:
            stretch.settle(self._timeout)
        try:
            return self._open_stream(span, targets, at_once=True)
        except TimeoutError:
            for stretch in unsettled:
                stretch.settle(self._timeout)
        return self._open_stream(span, targets, at_once=False)

    def _open_stream(self, span: Span, targets: tuple[Target, ...], *, at_once: bool) -> Stream:
        try:
            return self._engine.stream(
                targets,
                timeout=self._timeout,
                at_once=at_once,
                keep=[p.target for p in span.placements if p.pool in self._keep],
                verify=[p.target for p in span.placements if p.pool in self._verify],
            )
        except InterfaceError:
            _refuse_gone(span)  # one of them was lost while the stream waited for its turn
            raise

    def _leave(self, *, cut: bool, final: bool) -> None:
        if self._current is None:
            return
        assert self._stream is not None
        request, number, span = self._current
        data_length = self.size - self._start
        if self._framing is not None:
            sums = self._stream.sums()
            fragments = self._fragments(cut=cut)
            foot = self._framing.foot(
                request, number, span, fragments, sums, self._start, data_length, final
            )
            self._write_raw(foot, None, "foot")
        if final:
            self._stream.seal()  # which pads; the engine is woken once for both
        else:
            self._stream.pad()
        used = self._stream.position
        self.written.append(WrittenSpan(number, span, used, self._start, data_length))
        self._current = None

    def _fragments(self, *, cut: bool) -> list[Fragment]:
        """The pieces of objects in the current span; `cut`: the current object goes on in the next."""
        start = self._start
        members = self.members[self._first :]
        if start == 0:
            # In the aggregate's first span a member is its own fragment, to the letter: there may be thousands of them.
            made = cast("list[Fragment]", members)
        else:
            made = [
                _new(Fragment, (name, offset - start, length, digest))
                for name, offset, length, digest in members
            ]
        if made and made[0].offset < 0:  # it began in a span before
            name, before, length, digest = made[0]
            made[0] = Fragment(name, 0, before + length, digest)
        began = max(self._began, start)
        if cut and self.size > began:
            made.append(Fragment(self._name, began - start, self.size - began, None))
        return made

    def _write_raw(self, data: bytes, size: int | None, what: str) -> None:
        assert self._stream is not None
        if size is not None and len(data) != size:
            raise InterfaceError(f"the host's {what} has {len(data)} bytes, it said {size}")
        if self._stream.write(data, raw=True):
            raise LegFailed


def _refuse_gone(span: Span) -> None:
    """Raise `Unwritten` for the targets that nothing can be written to any more."""
    gone = [(p.pool, p.target) for p in span.placements if p.target.state != "active"]
    if gone:
        raise Unwritten(gone, _GONE)

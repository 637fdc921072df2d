"""Writes copies that are made later: runs of an aggregate's members, read from any good copy, into one pool.

::

    CopyReader ──checked pieces──> Batch.copy ──> spans on the pool's volumes, one stream per volume
                                        │
                       finish: seal, sync, proofs ──> what may be committed; the rest goes back

The spans have their own numbers and headers that name the new place; where a run belongs in the aggregate, its `data_start` says.
Every member's digest is computed anew while it is written, in the core, and compared with the catalog's.

What it promises:

1. What `finish` hands out is durable in the pool, and every member of it has the digest that it was accepted with.
2. A member that no copy can give, or that is wrong, is named, with all others of its aggregate that are bad, too.
3. A region that may still be written to is not given back.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from fanout.catalog import MemberSet
from fanout.errors import FanoutError, PoolFull, PoolUnavailable
from fanout.host import Fragment, ReserveRequest, WrittenSpan
from fanout.read import Unreadable
from fanout.types import FaultClass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.catalog import AggregateEntry, MemberEntry
    from fanout.engine import Stream, Target
    from fanout.host import Framing, Span
    from fanout.read import CopyReader, Fault, Rest
    from fanout.store import Store
    from fanout.types import Outcome

DRAIN_TIMEOUT = 5.0  # seconds to wait for what an aborted batch has in flight
STREAM_TIMEOUT = 60.0  # seconds to wait for an admission or a slot


class DestinationFailed(FanoutError):
    """The pool cannot take the batch: full, not writable, or an error while writing.

    Attributes:
        errno: of the first fault; 0 for none.
    """

    def __init__(self, message: str, *, errno: int = 0) -> None:
        self.errno = errno
        super().__init__(message)


class DestinationFull(DestinationFailed):
    """The pool has no room for the batch; for less it may have."""


class BadMember(NamedTuple):
    """A member that the copies that were asked cannot give, and why.

    Attributes:
        member: what the catalog says of it.
        reason: for people.
        damage: each is wrong, or its medium refuses; False: one could not be asked.
        refused: the medium of one refuses some of the bytes, and may give them another day.
    """

    member: MemberEntry
    reason: str
    damage: bool = True
    refused: bool = False

    @property
    def proven(self) -> bool:
        """Whether all of its bytes were read, and are wrong, in each of them."""
        return self.damage and not self.refused


class Run(NamedTuple):
    """Members that follow one another without a hole, in their data too."""

    members: tuple[MemberEntry, ...]

    @property
    def start(self) -> int:
        """Of the first one, in the aggregate's data."""
        return self.members[0].start

    @property
    def length(self) -> int:
        """Of the data of all."""
        return self.members[-1].start + self.members[-1].length - self.start


@dataclass(slots=True)
class Copied:
    """Members of one aggregate that were written, and where."""

    entry: AggregateEntry
    members: MemberSet
    spans: list[WrittenSpan]


class SourcesBad(Exception):
    """Members that no copy can give. Nothing of the batch can be committed: leave them out, and write it again.

    Attributes:
        bad: at least one.
    """

    def __init__(self, bad: Sequence[BadMember]) -> None:
        self.bad = tuple(bad)
        super().__init__("; ".join(found.reason for found in bad))


class Batch:
    """Copies of some aggregates on their way into one pool. One thread.

    Args:
        store: open for writing.
        pool: the destination.
        on_bytes: called with the bytes of each piece that was written.
    """

    def __init__(self, store: Store, pool: str, *, on_bytes: Callable[[int], None]) -> None:
        assert store.framing is not None
        self.pool = pool
        self._store, self._on_bytes = store, on_bytes
        self._framing: Framing = store.framing
        self._streams: dict[Target, Stream] = {}
        self._spans: list[Span] = []  # everything that was reserved
        self.copied: list[Copied] = []

    # ---- writing ---------------------------------------------------------------------------------

    def copy(
        self,
        entry: AggregateEntry,
        members: Sequence[MemberEntry],
        reader: CopyReader,
        *,
        first_span: int,
        end: int,
    ) -> Copied:
        """Write members of an aggregate.

        Args:
            entry: the aggregate.
            members: to be copied, by number.
            reader: of its copies.
            first_span: number of the first span: above those that the pool holds of it.
            end: where the last member that was not deleted ends, in the aggregate's data: the span that reaches it is the final one.

        Raises:
            SourcesBad: some members cannot be had; all of them were looked at.
            DestinationFailed: the pool cannot take them.
        """
        spans: list[WrittenSpan] = []
        for run in runs_of(members):
            writer = _RunWriter(self, entry, run, first_span + len(spans), end)
            broken = self._feed(writer, run, reader)
            if broken is not None:
                # Look at all, so that an aggregate with many bad members is not begun many times.
                raise SourcesBad(list(bad_members(members, reader)) or [broken])
            spans += writer.written
        copied = Copied(entry, MemberSet.of(member.member for member in members), spans)
        self.copied.append(copied)
        return copied

    def _feed(self, writer: _RunWriter, run: Run, reader: CopyReader) -> BadMember | None:
        """Write a run; the member at which it broke off, if one is bad."""
        pieces = reader.stream(run.start, run.length)
        left = memoryview(b"")
        for member in run.members:
            writer.begin(member.name)
            wanted, checked = member.length, True
            while wanted:
                try:
                    left = left or next(pieces)
                except Unreadable as error:
                    rest = _by_itself(member, reader) if checked else None
                    if rest is None:
                        return BadMember(member, str(error))
                    checked, end = False, member.start + member.length
                    behind = reader.stream(end, run.start + run.length - end)
                    pieces = chain(rest(end - wanted), behind)
                    continue
                part, left = left[:wanted], left[wanted:]
                writer.feed(part)
                wanted -= len(part)
                self._on_bytes(len(part))
            digest = writer.end()
            if digest != member.digest:
                return BadMember(member, _wrong(digest, member))
        writer.finish()
        return None

    # ---- room ------------------------------------------------------------------------------------

    def reserve(self, request: ReserveRequest) -> Sequence[Span]:
        """Room in the pool.

        Raises:
            DestinationFull: there is none.
            DestinationFailed: nothing of it can be written.
        """
        try:
            spans = self._store.pools.reserve(request)
        except PoolFull as error:
            raise DestinationFull(str(error)) from error
        except PoolUnavailable as error:
            raise DestinationFailed(str(error)) from error
        self._spans += spans
        return spans

    def stream(self, target: Target) -> Stream:
        """The batch's stream to a volume."""
        stream = self._streams.get(target)
        if stream is None:
            stream = self._streams[target] = self._admitted(target)
        return stream

    def _admitted(self, target: Target) -> Stream:
        """A stream to this target. Who waits for one holds none: else all could wait for each other."""
        verify = [target] if self.pool in self._store.config.verified else []
        engine, timeout = self._store.engine, STREAM_TIMEOUT
        try:
            return engine.stream([target], timeout=timeout, at_once=True, verify=verify)
        except TimeoutError:
            self._settle()
        return engine.stream([target], timeout=timeout, verify=verify)

    def failed(self) -> DestinationFailed:
        """What went wrong, from the streams' legs."""
        for target, stream in self._streams.items():
            for outcome in stream.failures().values():
                return _failure(target, outcome)
        return DestinationFailed(f"{self.pool}: writing failed")

    # ---- ending ----------------------------------------------------------------------------------

    def finish(self) -> list[Copied]:
        """Make everything durable.

        Returns:
            What may be committed. What was reserved and is not in it was given back.

        Raises:
            DestinationFailed: nothing of the batch can be committed; call `abort`.
        """
        self._settle()
        kept = {id(span.span) for copied in self.copied for span in copied.spans}
        for span in self._spans:
            if id(span) not in kept:
                self._store.release(span, [self.pool])
        return self.copied

    def _settle(self) -> None:
        """Make durable what was written so far, and end the streams."""
        for stream in self._streams.values():
            stream.seal()
        while self._streams:
            target, stream = next(iter(self._streams.items()))
            for outcome in stream.sync().values():
                if not outcome.ok:
                    raise _failure(target, outcome)
            for leg in stream.legs():
                # The same assertion that the ledger makes for sessions.
                if not leg.accepted == leg.synced:
                    raise AssertionError(f"{target.path}: synced {leg.synced} of {leg.accepted}")
            stream.close()
            del self._streams[target]

    def abort(self) -> None:
        """Give the batch up: stop, wait a little, and give back what nothing is in flight on. Idempotent."""
        drained: set[Target] = set()
        for stream in self._streams.values():
            with suppress(FanoutError, TimeoutError):
                stream.abort()
                drained |= stream.drained(timeout=DRAIN_TIMEOUT)
                stream.close()
        for span in self._spans:
            target = span.placements[0].target
            if target in drained or target not in self._streams:
                self._store.release(span, [self.pool])
            else:
                self._store.pools.quarantine(span, [self.pool])
        self._spans, self._streams, self.copied = [], {}, []


class _RunWriter:
    """Writes one run into as many spans as it takes: head, data, foot, padding."""

    def __init__(
        self, batch: Batch, entry: AggregateEntry, run: Run, number: int, end: int
    ) -> None:
        self._batch, self._entry, self._run, self._end = batch, entry, run, end
        self._framing = batch._framing
        self._number = number
        self._ahead: deque[Span] = deque()
        self._request: ReserveRequest | None = None
        self.written: list[WrittenSpan] = []
        self._span: Span | None = None
        self._stream: Stream | None = None
        self._at = 0  # in the span
        self._start = self._position = run.start  # of the span, and now, in the aggregate's data
        self._fragments: list[Fragment] = []
        self._names = 0
        self._name = b""
        self._piece = 0

    # -- objects

    def begin(self, name: bytes) -> None:
        if self._span is None or self._room(name) < 0:
            self._enter(name)
        self._name, self._piece = name, self._at

    def feed(self, data: memoryview) -> None:
        while data:
            room = self._room(self._name)
            if room <= 0:
                if self._at > self._piece:
                    self._end_piece(None)
                self._enter(self._name)
                self._piece = self._at
                continue
            part = data[:room]
            assert self._stream is not None
            if self._stream.write(part):
                raise self._batch.failed()
            self._at += len(part)
            self._position += len(part)
            data = data[len(part) :]

    def end(self) -> bytes:
        assert self._stream is not None
        digest = self._stream.digest()
        self._end_piece(digest)
        return digest

    def finish(self) -> None:
        self._leave(last=True)
        for span in self._ahead:
            self._batch._store.release(span, [self._batch.pool])
        self._ahead.clear()

    def _room(self, name: bytes) -> int:
        if self._span is None:
            return -1
        length, count = self._span.length, len(self._fragments) + 1
        return length - self._at - self._framing.foot_size(count, self._names + len(name), length)

    def _end_piece(self, digest: bytes | None) -> None:
        offset = self._piece - self._framing.head_size()
        self._fragments.append(Fragment(self._name, offset, self._at - self._piece, digest))
        self._names += len(self._name)

    # -- spans

    def _enter(self, name: bytes) -> None:
        """Go on in the next span, reserved for all that is still to come."""
        self._leave(last=False)
        if not self._ahead:
            self._request = self._ask(name)
            self._ahead.extend(self._batch.reserve(self._request))
        span = self._ahead.popleft()
        placement = span.placements[0]
        begun = None if self._stream is None else self._stream.suspend()
        self._stream = self._batch.stream(placement.target)
        if begun is not None:
            self._stream.resume(begun)
        self._stream.place([placement.offset], span.length)
        self._span, self._start = span, self._position
        head = self._framing.head(self._header(), self._number, span, self._start)
        if self._stream.write(head, raw=True):
            raise self._batch.failed()
        self._at, self._fragments, self._names = len(head), [], 0

    def _ask(self, name: bytes) -> ReserveRequest:
        entry, run = self._entry, self._run
        return ReserveRequest(
            transaction=entry.transaction,
            attempt=entry.attempt,
            aggregate=entry.aggregate,
            primary=self._batch.pool,
            secondaries=(),
            required=(),
            length=run.start + run.length - self._position,
            members=len(run.members),
            first_span=self._number,
            name_bytes=sum(len(member.name) for member in run.members),
            ordinal=entry.ordinal,
        )

    def _header(self) -> ReserveRequest:
        """What the header says: the primary and all that the rules demanded, not where this copy goes."""
        assert self._request is not None
        entry = self._entry
        return replace(
            self._request, primary=entry.primary, required=(entry.primary, *entry.required)
        )

    def _leave(self, *, last: bool) -> None:
        if self._span is None:
            return
        assert self._stream is not None
        length = self._position - self._start
        final = last and self._position == self._end
        foot = self._framing.foot(
            self._header(),
            self._number,
            self._span,
            tuple(self._fragments),
            self._stream.sums(),
            self._start,
            length,
            final,
        )
        if self._stream.write(foot, raw=True):
            raise self._batch.failed()
        self._stream.pad()
        written = WrittenSpan(self._number, self._span, self._stream.position, self._start, length)
        self._batch._store.pools.trim(written, self._batch.pool)
        self.written.append(written)
        self._number += 1
        self._span = None


def bad_members(
    members: Sequence[MemberEntry],
    reader: CopyReader,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Iterator[BadMember]:
    """Read members, by number, and compare their digests; yields those that cannot be had, or are wrong.

    Args:
        members: of one aggregate.
        reader: of the copies that may be asked.
        on_bytes: called with the bytes of each piece that was read and belongs to a good member so far.
    """
    for run in runs_of(members):
        rest = list(run.members)
        while rest:
            pieces = reader.stream(rest[0].start, run.start + run.length - rest[0].start)
            left = memoryview(b"")
            while rest:
                member = rest.pop(0)
                hasher, wanted = xxhash.xxh3_128(), member.length
                try:
                    while wanted:
                        left = left or next(pieces)
                        part, left = left[:wanted], left[wanted:]
                        hasher.update(part)
                        on_bytes(len(part))
                        wanted -= len(part)
                except Unreadable as error:
                    # Of which frame or block sums are wrong may have bytes that cannot be asked for now.
                    faults = list(error.faults)
                    if _by_itself(member, reader, faults) is None:
                        damage = all(fault.damage for fault in faults)
                        refused = any(fault.refused for fault in faults)
                        yield BadMember(member, str(error), damage, refused)
                    else:
                        on_bytes(wanted)
                    break  # the stream has ended: go on behind this member with a new one
                if hasher.digest() != member.digest:
                    yield BadMember(member, _wrong(hasher.digest(), member))


def _by_itself(
    member: MemberEntry, reader: CopyReader, faults: list[Fault] | None = None
) -> Rest | None:
    return reader.by_itself(member.start, member.length, member.digest, faults=faults)


def runs_of(members: Sequence[MemberEntry]) -> Iterator[Run]:
    """Members, by number, as runs without holes."""
    run: list[MemberEntry] = []
    for member in members:
        if run and (
            member.member != run[-1].member + 1 or member.start != run[-1].start + run[-1].length
        ):
            yield Run(tuple(run))
            run = []
        run.append(member)
    if run:
        yield Run(tuple(run))


def _wrong(digest: bytes, member: MemberEntry) -> str:
    return f"its bytes have digest {digest.hex()}, stored was {member.digest.hex()}"


def _failure(target: Target, outcome: Outcome) -> DestinationFailed:
    target.faults += outcome.cls is not FaultClass.HOST
    return DestinationFailed(f"{target.path}: {outcome}", errno=outcome.errno)

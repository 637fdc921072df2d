"""One attempt of a transaction: objects in, visible in every pool together or nowhere.

::

          put           commit: all streams synced, host says yes
    OPEN ─────> OPEN ───────────────────────────────────────────> COMMITTED
      │                    │
      │ abort, caller's    │ a target or the catalog failed,       host does not know
      │ exception          │ or no room                          ──────────────────> UNKNOWN
      v                    v
    ABORTED              FAILED      (TransactionRetry, TransactionFailed)

What it promises:

1. A source that raises, also KeyboardInterrupt, aborts the attempt and is not wrapped.
2. Every region that was reserved is committed, given back, on the session's pending list until nothing
   is in flight on it, or (unknown commit, hung target) never given back.
3. The lists of the session change only by a verdict of `fanout.policy`.
4. What goes wrong before an object's first byte (a missing file, a bad name) leaves the attempt open.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
from dataclasses import dataclass, field
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from fanout import policy
from fanout.aggregate import MAX_NAME_BYTES, SETTLE_SLICE, Signal, Stretch
from fanout.blame import beside, one_for_each, stop_and_look
from fanout.errors import (
    CatalogError,
    InterfaceError,
    SourceLengthError,
    TransactionFailed,
    TransactionRetry,
)
from fanout.host import AggregateRecord, TransactionRecord
from fanout.placing import Forbidden, NoRoom, Placing, Refused
from fanout.policy import Action
from fanout.sources import OnceSource, ReaderSource, as_source, length_of
from fanout.types import Receipt, StoredObject
from fanout.units import name_bytes, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Any, Self

    from typing_extensions import Buffer

    from fanout.aggregate import AggregateWriter
    from fanout.blame import Blamed
    from fanout.engine import Engine
    from fanout.host import Host
    from fanout.policy import Lists, Verdict
    from fanout.sources import Source
    from fanout.types import ObjectKind

# Unknown length: the next span is reserved when less than this is left of the last one.
AHEAD_BYTES = 4 << 20
# Transactions of a session whose attempts are remembered, for a caller that drives several by hand; beyond it the one that was tried
# longest ago begins anew.
MAX_UNFINISHED = 1024


class State(enum.Enum):
    """Where an attempt stands; only OPEN takes objects."""

    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"
    FAILED = "failed"
    UNKNOWN = "in doubt: the host does not know whether it committed"


_OPEN = State.OPEN  # for every object: looking a member up in its enum takes ten times as long


@dataclass(slots=True)
class Progress:
    """What the attempts of one transaction hand on.

    Attributes:
        spent: plain retries so far.
        floor: where in the chain objects of unknown length begin; those above were outgrown.
    """

    spent: int = 0
    floor: int = 0


@dataclass(slots=True)
class Shared:
    """What a session shares with its transactions."""

    engine: Engine
    host: Host
    node: str
    lists: Lists
    primary_retries: int
    ids: Callable[[], bytes]
    clock: Callable[[], float]
    timeout: float | None
    verify: frozenset[str] = frozenset()
    unfinished: dict[bytes, Progress] = field(default_factory=dict)  # by transaction
    pending: list[Stretch] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)  # by the last transaction, of each primary
    receipt: Receipt | None = None
    busy: Lock = field(default_factory=Lock)

    def alone(self, what: str) -> Lock:
        """The session for one call, to be taken by ``with``: an interrupt behind `acquire` would leave it taken for ever.

        Raises:
            InterfaceError: another thread, or a source, is inside.
        """
        if self.busy.locked():
            raise InterfaceError(
                f"{what}: another call of this session is in progress; one caller at a time"
            )
        return self.busy

    def progress_of(self, transaction: bytes) -> Progress:
        """What earlier attempts of a transaction left, also when the caller tried others between them."""
        found = self.unfinished.pop(transaction, None) or Progress()
        self.unfinished[transaction] = found
        if len(self.unfinished) > MAX_UNFINISHED:
            del self.unfinished[next(iter(self.unfinished))]
        return found

    def sweep(self, *, timeout: float = 0.0) -> None:
        """Give back what has drained, waiting at most `timeout` seconds for all of it.

        A closed engine has let go of everything, and nobody can say any more what drained. What breaks off leaves the others pending.
        """
        end = self.clock() + timeout
        for stretch in self.pending[::-1]:
            if self.engine.closed:
                break
            left = max(0.0, end - self.clock()) if timeout else 0.0
            if stretch.release(self.host, timeout=left):
                self.pending.remove(stretch)

    def regain(self, pool: str) -> bool:
        """Wait for the regions that aborted attempts of this session still have in a pool; whether any went back.

        Without them the pool would look full to a resend, for want of what the session itself has there.
        """
        held, left = [s for s in self.pending if s.holds(pool)], self.timeout
        still = held
        while still and not self.engine.closed and (left is None or left > 0):
            self.sweep(timeout=SETTLE_SLICE)
            left = None if left is None else left - SETTLE_SLICE
            still = [stretch for stretch in held if stretch.holds(pool)]
        return len(still) < len(held)


class Transaction:
    """A group of objects that becomes visible together; made by `Session.begin` or an attempt.

    A context manager: commits at a clean exit, aborts at an exception. One caller at a time.

    Attributes:
        given_up: the caller has said so, with `abort`.
    """

    def __init__(
        self, shared: Shared, *, transaction: bytes, attempt: int, kind: ObjectKind
    ) -> None:
        self._shared, self._id, self._attempt, self._kind = shared, transaction, attempt, kind
        self._progress = shared.progress_of(transaction)
        self._began = shared.clock()
        self._state = State.OPEN
        self._failure: TransactionRetry | TransactionFailed | None = None
        self._receipt: Receipt | None = None
        self._placing = Placing(
            shared.engine,
            shared.host,
            shared.lists,
            kind=kind,
            transaction=transaction,
            attempt=attempt,
            ids=shared.ids,
            timeout=shared.timeout,
            verify=shared.verify,
            expected=shared.taken,
            regain=shared.regain,
        )
        self._broke = ""  # what ended the attempt, and was raised
        self.given_up = False
        self._final = False  # a source was read that cannot be read again
        self._rewinds: list[ReaderSource] = []

    # -- what the caller sees

    @property
    def transaction(self) -> bytes:
        """The id, 16 bytes; a resend carries it."""
        return self._id

    @property
    def attempt(self) -> int:
        """1-based."""
        return self._attempt

    @property
    def state(self) -> State:
        """Open, committed, aborted, failed or unknown."""
        return self._state

    @property
    def receipt(self) -> Receipt | None:
        """What was committed; None before."""
        return self._receipt

    @property
    def failure(self) -> TransactionRetry | TransactionFailed | None:
        """Why it failed; None while it has not."""
        return self._failure

    def put(self, name: str | bytes, source: Any) -> None:
        """Send one object to every pool.

        Args:
            name: 1 to 1,024 bytes; text is UTF-8 with surrogate escapes. The same name may be put again:
                that is another version.
            source: a path, bytes-like object, binary reader, iterable of bytes-like objects, or a
                `Source`; empty is fine.

        Raises:
            TransactionRetry: a pool failed; nothing is stored, send the transaction again. Its cause is an
                `ExceptionGroup`, also of one: a `TargetError` for each target that failed, a `PoolError`
                for each pool that refused room, a `TimeoutError` when this host was short of slots.
            TransactionFailed: nothing is stored, and sending it again is no use. Its cause is the group
                too; with reason ``budget`` it is the `TransactionRetry` that was not granted.
            SourceNotRereadable: the source could not be sent again; says so before the first byte.
            InterfaceError: not open, a bad name, or another call is in progress.
            CatalogError: the store takes nothing now; the attempt is aborted.
            Exception: whatever the source raises, unchanged. Once a byte was taken the attempt is
                aborted; before that it stays open.
        """
        with self._shared.alone("put"):
            if self._state is not _OPEN:
                raise InterfaceError(f"put: the transaction is {self._state.value}")
            encoded = _encoded(name)
            if type(source) is bytes:
                self._put_bytes(encoded, source)
            else:
                self._put_source(encoded, as_source(source))

    def commit(self) -> Receipt:
        """Make the objects durable in every pool and visible together.

        Raises:
            TransactionRetry: a pool or the catalog failed; nothing is visible.
            TransactionFailed: nothing is visible, and sending it again is no use.
            CommitUnknown: the host does not know.
            InterfaceError: not open.
        """
        with self._shared.alone("commit"):
            if self._state is not State.OPEN:
                raise InterfaceError(f"commit: the transaction is {self._state.value}")
            return self._commit()

    def abort(self) -> None:
        """Undo everything; idempotent, and no failure of any pool. Behind an error that was caught: the caller gives up.

        Raises:
            InterfaceError: it is committed, or nobody knows.
        """
        with self._shared.alone("abort"):
            if self._state in (State.COMMITTED, State.UNKNOWN):
                raise InterfaceError(f"abort: the transaction is {self._state.value}")
            self.given_up = True
            if self._state is State.OPEN:
                self._stop(State.ABORTED)

    def __enter__(self) -> Self:
        if self._state is not State.OPEN:
            raise InterfaceError(f"with: the transaction is {self._state.value}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            if self._state is State.OPEN:
                self.abort()
        elif self._failure is not None:
            # The block caught the signal and went on: leaving it quietly would look like success.
            raise self._failure
        elif self._broke and not self.given_up:
            raise InterfaceError(
                f"with: nothing of the transaction is stored, since it was aborted by what the block caught: {self._broke}"
            )
        elif self._state is State.OPEN:
            self.commit()

    # -- objects

    def _put_bytes(self, name: bytes, data: bytes) -> None:
        placing = self._placing
        try:
            if len(data) <= placing.easy:
                assert placing.writer is not None
                if placing.writer.whole(name, data):
                    return
            writer = placing.place(name, len(data))
            writer.begin(name)
            writer.feed(data)
            writer.end()
        except BaseException as error:
            self._broken(name, len(data), error)
            raise

    def _put_source(self, name: bytes, source: Source) -> None:
        length, begun = length_of(source), False
        try:
            with source.open() as given:
                chunks = _named(name, given)
                # The first chunk is fetched before the object begins: a file that cannot be opened costs
                # the caller that file, not the attempt.
                first = next(chunks, None)
                begun = True
                self._final = self._final or isinstance(source, OnceSource)
                if isinstance(source, ReaderSource) and source.rereadable:
                    self._rewinds.append(source)
                data = _flat(itertools.chain(() if first is None else (first,), chunks))
                self._feed(name, length, data)
        except BaseException as error:
            # A source may say at the very end that its bytes were no good: a sum that differs, a process that failed. One whose first
            # chunk is longer than all that it promised has been read.
            if (begun or isinstance(error, SourceLengthError)) and self._state is State.OPEN:
                self._abort_for(error)
            raise

    def _feed(self, name: bytes, length: int | None, data: Iterable[bytes | memoryview]) -> None:
        try:
            if length is None:
                self._feed_unknown(name, data)
            else:
                self._feed_known(name, length, data)
        except BaseException as error:
            self._broken(name, length, error)
            raise

    def _feed_known(self, name: bytes, length: int, chunks: Iterable[bytes | memoryview]) -> None:
        writer = self._placing.place(name, length)
        writer.begin(name)
        given = 0
        for data in chunks:
            given += len(data)
            if given > length:
                raise SourceLengthError(
                    f"{quoted(name)}: gave more than the {length} bytes that it said"
                )
            taken = writer.feed(data)
            assert taken == len(data), "room was reserved for all of it"
        if given < length:
            raise SourceLengthError(
                f"{quoted(name)}: gave {given} of the {length} bytes that it said"
            )
        writer.end()

    def _feed_unknown(self, name: bytes, chunks: Iterable[bytes | memoryview]) -> None:
        placing = self._placing
        writer = placing.place(name, None, start=self._progress.floor)
        limit = placing.max_size
        writer.begin(name)
        given, look_ahead = 0, True
        for data in chunks:
            given += len(data)
            if limit is not None and given > limit:
                self._outgrown(name, given)
            taken = writer.feed(data)
            while taken < len(data):
                if not placing.more(name, ahead=False):
                    self._outgrown(name, given)
                taken += writer.feed(memoryview(data)[taken:])
            if look_ahead and not writer.ahead and writer.left < AHEAD_BYTES:
                # One span ahead, so that the object rarely waits for a reservation.
                look_ahead = placing.more(name, ahead=True)
        writer.end()

    # -- failing

    def _broken(self, name: bytes, length: int | None, error: BaseException) -> None:
        """What was raised while an object was sent: signals get their verdict, all else is undone and rises."""
        if isinstance(error, Signal):
            writer = self._placing.writer
            assert writer is not None
            self._fail(stop_and_look(self._placing.stretches, error, primary=writer.primary))
        if isinstance(error, Refused):
            # A target may have failed meanwhile; both are judged together (rules R13 and R14).
            self._fail([*error.blamed, *beside(self._placing.stretches)])
        if isinstance(error, Forbidden):
            self._stop(State.FAILED)
            self._signal(error.verdict, [each for _, each in error.blamed])
        if isinstance(error, NoRoom):
            self._no_room(name, length, error)
        if self._state is State.OPEN:
            self._abort_for(error)

    def _abort_for(self, error: BaseException) -> None:
        self._broke = repr(error)
        self._stop(State.ABORTED)

    def _no_room(self, name: bytes, length: int | None, error: NoRoom) -> NoReturn:
        size = "an unknown number of" if length is None else str(length)
        chain = " -> ".join(primary.pool for primary in self._placing.destination.chain)
        message = f"no pool of {chain} takes {quoted(name)} of {size} bytes ({error})"
        self._hopeless(f"{message}; {error.mend}", error.refusals)

    def _hopeless(self, message: str, refusals: Sequence[Exception] = ()) -> NoReturn:
        """No primary takes an object (rule R7). What has failed meanwhile leaves all the same, and R3 wins."""
        blamed = beside(self._placing.stretches)
        self._stop(State.FAILED)
        removed: tuple[str, ...] = ()
        if blamed:
            verdict = policy.judge(self._shared.lists, one_for_each(blamed), retries_left=0)
            if verdict.reason == "copy_continue":
                self._signal(verdict, [each for _, each in blamed])
            self._shared.lists, removed = verdict.lists, verdict.removed
        errors = [*refusals, *(each for _, each in blamed)]
        group = ExceptionGroup("what refused, and what failed", errors) if errors else None
        raise self._failed("space", message, removed=removed) from group

    def _outgrown(self, name: bytes, given: int) -> NoReturn:
        """An object of unknown length does not fit its primary: begin again lower in the chain (rule R6).

        A target that has failed meanwhile is judged all the same (rules R2 to R5): it is not for the resend to find that out, or not.
        """
        placing = self._placing
        chain = placing.destination.chain
        outgrew = f"{quoted(name)} outgrew {chain[placing.index].pool} at {given} bytes"
        lower = policy.next_primary(placing.destination, given, {}, start=placing.index + 1)
        if lower is None:
            self._hopeless(f"{outgrew}, and no pool below takes it")
        self._progress.floor = lower
        if blamed := beside(placing.stretches):
            self._fail(blamed)
        self._stop(State.FAILED)
        message = f"{outgrew}; sent again it goes to {chain[lower].pool}"
        if self._final:
            message += ", but its source cannot be read again: say its length, or spool it"
            raise self._failed("source", message)
        self._rewind()
        raise self._retry("space", message, min_bytes=given)

    def _fail(self, blamed: Sequence[Blamed]) -> NoReturn:
        """Undo, judge, signal."""
        self._stop(State.FAILED)
        shared = self._shared
        left = shared.primary_retries - self._progress.spent
        verdict = policy.judge(shared.lists, one_for_each(blamed), retries_left=left)
        self._signal(verdict, [error for _, error in blamed])

    def _signal(self, verdict: Verdict, errors: Sequence[Exception]) -> NoReturn:
        shared = self._shared
        shared.lists = verdict.lists
        self._progress.spent += verdict.spends
        cause = ExceptionGroup("what failed", list(errors))
        what = "; ".join(str(error) for error in errors)
        undone = "nothing of the transaction is stored"
        if verdict.action is Action.RETRY:
            gone = (
                f", and {', '.join(verdict.removed)} left this session" if verdict.removed else ""
            )
            if self._final:
                message = f"{what}; {undone}{gone}. A source of it cannot be read again"
                raise self._failed("source", message, removed=verdict.removed) from cause
            self._rewind()
            message = f"{what}; {undone}{gone}. Send it again"
            raise self._retry(verdict.reason, message, removed=verdict.removed) from cause
        if verdict.reason == "copy_continue":
            message = f"{what}; {undone}: copy_continue is false. Mend the copy pool and start over"
            raise self._failed("copy_continue", message) from cause
        retry = self._retry(verdict.behind, f"{what}; {undone}", removed=verdict.removed)
        retry.__cause__ = cause
        tries = shared.primary_retries
        message = (
            f"{what}; {undone}. Given up after {tries} retries that nobody could be removed for"
        )
        raise self._failed("budget", message, removed=verdict.removed) from retry

    def _retry(
        self,
        reason: str,
        message: str,
        *,
        removed: Sequence[str] = (),
        min_bytes: int | None = None,
    ) -> TransactionRetry:
        self._failure = TransactionRetry(
            reason,
            message,
            transaction=self._id.hex(),
            attempt=self._attempt,
            removed=removed,
            min_bytes=min_bytes,
        )
        return self._failure

    def _failed(
        self, reason: str, message: str, *, removed: Sequence[str] = ()
    ) -> TransactionFailed:
        self._failure = TransactionFailed(
            reason, message, transaction=self._id.hex(), attempt=self._attempt, removed=removed
        )
        return self._failure

    def _rewind(self) -> None:
        """Take seekable readers back to where they stood, the first one last."""
        for source in reversed(self._rewinds):
            # A caller that closed its file will open it anew for the resend.
            with contextlib.suppress(OSError, ValueError):
                source.open().close()

    def _stop(self, state: State) -> None:
        """Stop feeding; what is not in flight goes back now, the rest when it has drained."""
        self._state = state
        shared, placing = self._shared, self._placing
        shared.lists = placing.lists
        # First of all: whatever breaks off here, the session sweeps them later.
        shared.pending += placing.stretches
        for stretch in placing.stretches:
            if not stretch.settled:
                stretch.stream.abort()
        placing.give_back()
        shared.sweep()

    # -- committing

    def _commit(self) -> Receipt:
        placing, shared = self._placing, self._shared
        if placing.writer is None:
            return self._committed(0, (), ())
        try:
            placing.writer.finish()
            objects = self._objects()  # while the pools make it durable
            for stretch in placing.stretches:
                stretch.settle(shared.timeout)
        except BaseException as error:
            self._broken(b"", None, error)
            raise
        records = tuple(self._record(writer) for writer in placing.writers)
        record = TransactionRecord(
            transaction=self._id,
            attempt=self._attempt,
            node=shared.node,
            kind=self._kind,
            destination=placing.destination.pool,
            required=placing.required,
            aggregates=records,
        )
        # Until the host has answered, whatever breaks off: perhaps it is committed, so nothing is given back.
        self._state = State.UNKNOWN
        try:
            csn = shared.host.commit(record)
        except CatalogError as error:
            self._stop(State.FAILED)
            left = shared.primary_retries - self._progress.spent
            self._signal(policy.judge_catalog(shared.lists, retries_left=left), [error])
        except TransactionFailed as error:
            self._stop(State.FAILED)
            self._failure = error
            raise
        try:
            receipt = self._committed(csn, records, objects)
        finally:
            placing.give_back()
        shared.taken = placing.taken()
        return receipt

    def _objects(self) -> tuple[StoredObject, ...]:
        new, objects = tuple.__new__, list[StoredObject]()
        for writer in self._placing.writers:
            primary, pools = writer.primary, self._pools(writer)
            objects += [
                new(StoredObject, (name, length, digest, primary, pools))
                for name, _, length, digest in writer.members
            ]
        return tuple(objects)

    def _pools(self, writer: AggregateWriter) -> tuple[str, ...]:
        """Where an aggregate is to be."""
        return (writer.primary, *self._placing.listed)

    def _record(self, writer: AggregateWriter) -> AggregateRecord:
        pools = self._pools(writer)
        return AggregateRecord(
            aggregate=writer.aggregate,
            primary=writer.primary,
            members=writer.members,
            spans=tuple(writer.written),
            pools=pools,
            gaps=policy.gaps(
                self._placing.lists,
                self._kind,
                aggregate=writer.aggregate,
                primary=writer.primary,
                held=pools,
                objects=len(writer.members),
                size=writer.size,
            ),
            proofs=tuple(proof for stretch in writer.stretches for proof in stretch.proofs),
        )

    def _committed(
        self, csn: int, records: tuple[AggregateRecord, ...], objects: tuple[StoredObject, ...]
    ) -> Receipt:
        self._state = State.COMMITTED
        shared = self._shared
        shared.unfinished.pop(self._id, None)
        shared.lists = self._placing.lists
        self._receipt = shared.receipt = Receipt(
            transaction=self._id.hex(),
            attempt=self._attempt,
            csn=csn,
            objects=objects,
            gaps=tuple(gap for r in records for gap in r.gaps),
            removed=MappingProxyType({r.pool: r.reason for r in shared.lists.removed}),
            bytes=sum(writer.size for writer in self._placing.writers),
            seconds=shared.clock() - self._began,
        )
        return self._receipt


# ---- small things ----------------------------------------------------------------------------------------


def _encoded(name: str | bytes) -> bytes:
    encoded = name_bytes(name)
    if not 1 <= len(encoded) <= MAX_NAME_BYTES:
        raise InterfaceError(
            f"put: a name has 1 to {MAX_NAME_BYTES} bytes, this has {len(encoded)}"
        )
    return encoded


def _named(name: bytes, chunks: Iterator[Buffer]) -> Iterator[Buffer]:
    """Chunks of an object. A source knows its own name, if it has one: which of a thousand objects it was it cannot say."""
    try:
        yield from chunks
    except SourceLengthError as error:
        raise SourceLengthError(f"{quoted(name)}: {error}") from error


def _flat(chunks: Iterable[Buffer]) -> Iterator[bytes | memoryview]:
    """Chunks of any shape as plain bytes, without copying; empty ones are left out."""
    for chunk in chunks:
        if isinstance(chunk, bytes):
            yield chunk
            continue
        view = memoryview(chunk)
        if view.nbytes:
            yield view if view.format == "B" and view.ndim == 1 else view.cast("B")

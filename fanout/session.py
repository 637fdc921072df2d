"""The second door: one client's conversation with its pools.

::

    with Session(engine, host, destination, node="N1") as session:
        for attempt in session.attempts():          # again without the pool that failed, while the budgets last
            with attempt as transaction:            # visible in every pool together, or nowhere
                transaction.put("report", "/home/ann/report.odt")
        print(session.receipt)

A session owns the pool lists: what fails is removed for its whole life and for every primary of the chain (rules R2, R4, R17). It
drives an engine and a `Host`, which knows where bytes go and what is committed. Bytes and failures are the business of
`fanout.transaction`; what a failure means is decided in `fanout.policy`.

Threads: one caller at a time; a second one gets `InterfaceError`. Sessions do not know of each other (R18).
"""

from __future__ import annotations

import operator
import os
import time
from types import MappingProxyType
from typing import TYPE_CHECKING

from fanout import policy
from fanout.errors import InterfaceError, TransactionRetry
from fanout.policy import PRIMARY_RETRIES, Lists
from fanout.transaction import Shared, State, Transaction
from fanout.types import ObjectKind, checked_kind
from fanout.units import checked_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from fanout.engine import Engine
    from fanout.host import Host
    from fanout.types import Destination, Receipt

ID_BYTES = 16
MAX_ATTEMPT = (1 << 32) - 1  # what headers and directories keep
# How long `close` waits for aborted writes to drain, in seconds, before it leaves their regions reserved.
CLOSE_DRAIN = 1.0


def _random_ids() -> Callable[[], bytes]:
    """Gives a new id at every call. Drawn many at a time: asking the system gives the GIL away."""
    drawn: list[bytes] = []

    def one() -> bytes:
        if not drawn:
            many = os.urandom(64 * ID_BYTES)
            drawn.extend(many[at : at + ID_BYTES] for at in range(0, len(many), ID_BYTES))
        return drawn.pop()

    return one


class Session:
    """One client's conversation; a context manager.

    Args:
        engine: stays open after the session.
        host: where bytes go, and the catalog.
        destination: the chain of primaries and the lists; from `Config.destination`, or your own.
        node: the client's name; goes into every record.
        kind: of its objects, unless `begin` says otherwise. Only backup versions go to active-data pools.
        primary_retries: retries of a transaction for which no pool can be removed.
        ids: gives a new 16-byte id at every call; None: random ones.
        clock: seconds, monotonic.
        timeout: seconds to wait for a slot, an admission or a flush; None: for ever, which the engine's hard
            deadline bounds for every target that hangs.
        verify: pools whose targets are read back after the flush and compared before the commit; what differs is a failure
            of that pool.
    """

    def __init__(
        self,
        engine: Engine,
        host: Host,
        destination: Destination,
        *,
        node: str,
        kind: ObjectKind = ObjectKind.BACKUP,
        primary_retries: int = PRIMARY_RETRIES,
        ids: Callable[[], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
        timeout: float | None = None,
        verify: Collection[str] = (),
    ) -> None:
        if primary_retries < 0:
            raise ValueError(f"primary_retries must not be negative: {primary_retries}")
        strangers = set(verify) - destination.pools
        if strangers:
            raise ValueError(f"verify: not of this destination: {', '.join(sorted(strangers))}")
        self.node, self.kind, self.destination = node, checked_kind(kind), destination
        self._shared = Shared(
            engine=engine,
            host=host,
            node=node,
            lists=Lists(destination),
            primary_retries=primary_retries,
            ids=_random_ids() if ids is None else ids,
            clock=clock,
            timeout=timeout,
            verify=frozenset(verify),
        )
        self._transaction: Transaction | None = None
        # Its `TransactionRetry` was kept back by the loop, and it was not sent again.
        self._unsent: Transaction | None = None
        self._closed, self._process = False, os.getpid()

    @property
    def removed(self) -> Mapping[str, str]:
        """The pools that left this session's lists, with the reason, in the order of leaving."""
        lists = self._shared.lists
        return MappingProxyType({removal.pool: removal.reason for removal in lists.removed})

    @property
    def receipt(self) -> Receipt | None:
        """Of the last commit; None since a transaction began and while none has committed."""
        return self._shared.receipt

    @property
    def draining(self) -> int:
        """Streams of failed or aborted attempts whose regions the host has not got back yet."""
        return len(self._shared.pending)

    def attempts(self) -> Iterator[Attempt]:
        """One transaction, tried until it commits or cannot: loop over it, and send everything in each round.

        Yields:
            Attempts, each to be entered by ``with``. A `TransactionRetry` inside it ends the round quietly; the
            loop ends after a commit or an `abort`. The transaction's id stays the same. Where the loop is left before
            (``return`` and ``break`` in a round are, when its commit fails), the session raises the `TransactionRetry` at
            its own end, unless an `abort` has said that the caller gives up.

        Raises:
            InterfaceError: closed, a transaction is open, or an attempt was not entered.
            TransactionFailed: from the ``with``: no further attempt is of use. Its `reason` is ``budget`` when the
                retries are used up.
        """
        transaction = self._shared.ids()
        bound = policy.max_attempts(self.destination, retries=self._shared.primary_retries)
        for number in range(1, bound + 1):
            attempt = Attempt(self, transaction, number)
            yield attempt
            if attempt.transaction is None:
                raise InterfaceError(
                    "attempts: the attempt was not entered; write `with attempt as …`"
                )
            if attempt.transaction.state is State.OPEN:
                raise InterfaceError("attempts: the attempt was not left")
            if not isinstance(attempt.transaction.failure, TransactionRetry):
                return
        raise AssertionError("the policy allowed more attempts than it can")

    def begin(
        self,
        *,
        transaction: bytes | None = None,
        attempt: int = 1,
        kind: ObjectKind | None = None,
    ) -> Transaction:
        """Begin one attempt by hand: the caller sees `TransactionRetry` and drives the resend.

        Args:
            transaction: the id of a transaction that is sent again; None: a new one.
            attempt: which try of it this is, from 1.
            kind: of its objects; None: the session's.

        Raises:
            InterfaceError: closed, another transaction is open, or the arguments do not fit each other.
            TypeError: an id that is not `bytes`, an attempt that is no whole number.
        """
        shared, attempt = self._shared, operator.index(attempt)
        with shared.alone("begin"):
            self._may_begin(transaction, attempt)
            shared.sweep()
            shared.receipt = None
            if self._unsent is not None and self._unsent.transaction == transaction:
                self._unsent = None
            identity = checked_id(shared.ids() if transaction is None else transaction)
            if len(identity) != ID_BYTES:
                raise InterfaceError(f"begin: a transaction id has {ID_BYTES} bytes: {identity!r}")
            self._transaction = Transaction(
                shared,
                transaction=identity,
                attempt=attempt,
                kind=self.kind if kind is None else checked_kind(kind),
            )
            return self._transaction

    def _may_begin(self, transaction: bytes | None, attempt: int) -> None:
        if self._closed:
            raise InterfaceError("begin: the session is closed")
        before = self._transaction
        if before is not None and before.state is State.OPEN:
            raise InterfaceError(
                f"begin: transaction {before.transaction.hex()} is still open; commit or abort it first"
            )
        if attempt > MAX_ATTEMPT:
            raise InterfaceError(f"begin: attempt {attempt} has more than 32 bits")
        if attempt < 1 or (attempt > 1 and transaction is None):
            raise InterfaceError(
                f"begin: attempt {attempt} {'needs its transaction id' if attempt > 1 else 'is below 1'}"
            )

    def close(self) -> None:
        """End the session: an open transaction is aborted, drained regions go back; idempotent.

        Regions that writes are still in flight on, after a short wait, stay reserved at the host: nobody
        knows when those writes land. In a forked child there is nothing to end: it is all the parent's.
        """
        if os.getpid() != self._process:
            return
        if self._transaction is not None and self._transaction.state is State.OPEN:
            self._transaction.abort()
        shared = self._shared
        with shared.alone("close"):
            self._closed = True
            shared.sweep(timeout=CLOSE_DRAIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        left = self._unsent
        if error is None and left is not None and not left.given_up:
            assert left.failure is not None
            left.failure.add_note("The loop of its attempts was left before it was sent again.")
            raise left.failure

    def _keep_back(self, transaction: Transaction) -> None:
        """The loop will send it again; if not, somebody must say that it is not stored."""
        self._unsent = self._unsent or transaction


class Attempt:
    """One round of `Session.attempts`: entering begins it, leaving commits it.

    Attributes:
        number: 1-based.
        transaction: what entering gave; None before.
    """

    def __init__(self, session: Session, transaction: bytes, number: int) -> None:
        self.number = number
        self.transaction: Transaction | None = None
        self._session, self._identity = session, transaction

    def __enter__(self) -> Transaction:
        if self.transaction is not None:
            raise InterfaceError("an attempt is entered once; take the next one from the loop")
        self.transaction = self._session.begin(transaction=self._identity, attempt=self.number)
        return self.transaction

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        assert self.transaction is not None
        try:
            self.transaction.__exit__(kind, error, trace)
            again = error is self.transaction.failure and isinstance(error, TransactionRetry)
        except TransactionRetry:
            again = True
        if again:
            self._session._keep_back(self.transaction)
        return again

"""Where an object goes: which primary of the chain, in which aggregate, with how much room reserved (rules R6 and R7).

One `Placing` serves one attempt. It asks the host, finds every secondary that refuses, and owns the aggregates. It moves no bytes.

What it promises:

1. An object of known length has all its room before its first byte, so that an overflow is invisible.
2. Every object begins its search at the top of the chain; a pool that refused a size is not asked for as much again.
3. Secondaries that refuse one reservation are all found before anybody is judged (rule R13).
4. Every span that the host granted is in an aggregate, or was given back.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from fanout import policy
from fanout.aggregate import AggregateWriter
from fanout.blame import of_refusal
from fanout.errors import InterfaceError, PoolFull, PoolUnavailable
from fanout.host import ReserveRequest
from fanout.policy import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from fanout.aggregate import Stretch
    from fanout.blame import Blamed
    from fanout.engine import Engine
    from fanout.host import Host
    from fanout.policy import Lists, Verdict
    from fanout.types import ObjectKind, Primary

# Reservations for small objects: the first wishes for what the session's last transaction took, each further one for as much as
# the aggregate holds already, so that their number grows with the logarithm, within these bounds. What is not used goes back
# at the commit.
MIN_WISH_BYTES = 1 << 20
MAX_FIRST_WISH_BYTES = 16 << 20
MAX_WISH_BYTES = 64 << 20


class NoRoom(Exception):
    """No pool of the chain takes the object (rule R7); says why, pool by pool.

    Attributes:
        refusals: of the pools that were asked.
        mend: what would let one of them take it.
    """

    def __init__(
        self,
        chain: Sequence[Primary],
        size: int,
        refused: Mapping[str, PoolFull | PoolUnavailable],
    ) -> None:
        self.refusals = [refused[primary.pool] for primary in chain if primary.pool in refused]
        told: list[str] = []
        mends: dict[str, None] = {}
        for primary in chain:
            if not primary.accepts:
                told.append(f"{primary.pool}: nothing new may go there")
                mends["set access to readwrite"] = None
            elif primary.max_size is not None and size > primary.max_size:
                told.append(f"{primary.pool}: its max_size is {primary.max_size} bytes")
                mends["raise max_size"] = None
            elif (refusal := refused.get(primary.pool)) is not None:
                told.append(str(refusal))
                full = isinstance(refusal, PoolFull)
                mends["add a volume" if full else "bring a volume back"] = None
        self.mend = " or ".join(mends) or "add a volume"
        super().__init__("; ".join(told) or "none that may be asked is left")


class Refused(Exception):
    """Secondaries refused a reservation; it counts as their write error (rules R2 to R4). Or this host was short of something."""

    def __init__(self, blamed: Sequence[Blamed]) -> None:
        self.blamed = tuple(blamed)
        super().__init__("; ".join(str(error) for _, error in blamed))


class Forbidden(Exception):
    """A secondary was missing when the attempt began, and must not be done without (rule R3)."""

    def __init__(self, verdict: Verdict, blamed: Sequence[Blamed]) -> None:
        self.verdict, self.blamed = verdict, tuple(blamed)
        super().__init__("; ".join(str(error) for _, error in blamed))


class Placing:
    """The aggregates of one attempt, and the reservations for them.

    Args:
        engine: for the aggregates' streams.
        host: gives and takes back room.
        lists: the session's; `lists` of this object has what was found missing at the beginning removed.
        kind: of the objects.
        transaction: 16 bytes.
        attempt: 1-based.
        ids: gives a new 16-byte id at every call.
        timeout: of the streams, in seconds; None: for ever.
        verify: pools that are read back before the commit.
        expected: bytes that it will perhaps take of a primary.
        regain: waits for what earlier attempts still have in a pool, and says whether any of it went back.
    """

    def __init__(
        self,
        engine: Engine,
        host: Host,
        lists: Lists,
        *,
        kind: ObjectKind,
        transaction: bytes,
        attempt: int,
        ids: Callable[[], bytes],
        timeout: float | None,
        verify: Collection[str] = (),
        expected: Mapping[str, int] = MappingProxyType({}),
        regain: Callable[[str], bool] = lambda pool: False,
    ) -> None:
        self.lists = lists
        self.writers: list[AggregateWriter] = []
        self.stretches: list[Stretch] = []
        self.writer: AggregateWriter | None = None
        self.index = -1  # of the writer's primary in the chain
        self.destination = lists.destination
        self.listed = tuple(s.pool for s in lists.listed(kind))
        self.required = tuple(s.pool for s in policy.required(lists.destination, kind))
        self._engine, self._host, self._kind = engine, host, kind
        self._transaction, self._attempt = transaction, attempt
        self._ids, self._timeout = ids, timeout
        self._keep, self._verify = policy.waits_for(lists.destination), verify
        self._expected, self._regain = expected, regain
        # Objects up to this size belong to the current writer without a further look.
        self.easy = -1
        self._refused: dict[str, int] = {}  # smallest size that a primary refused in this attempt
        self._refusals: dict[str, PoolFull | PoolUnavailable] = {}  # the last of each primary
        self._untouched = True  # no reservation was granted yet

    @property
    def max_size(self) -> int | None:
        """The largest object that the current primary takes."""
        return self.destination.chain[self.index].max_size

    def place(self, name: bytes, length: int | None, *, start: int = 0) -> AggregateWriter:
        """The writer for an object, with room for all of it.

        Args:
            name: of the object.
            length: bytes; None: unknown, and there is room to begin.
            start: where in the chain to begin the search.

        Raises:
            NoRoom, Refused, Forbidden: the attempt is over.
            InterfaceError: the host does not keep its contract.
        """
        if length is not None and length <= self.easy:
            writer = self.writer
            assert writer is not None
            if writer.room(name) >= length:
                return writer
        size = length or 0
        while True:
            index = policy.next_primary(self.destination, size, self._refused, start=start)
            if index is None:
                raise NoRoom(self.destination.chain, size, self._refusals)
            if self._try(index, name, length):
                assert self.writer is not None
                return self.writer
            self._refused[self.destination.chain[index].pool] = size

    def more(self, name: bytes, *, ahead: bool) -> bool:
        """Reserve another span for the current object, of unknown length; False: its primary has none.

        Args:
            name: of the object.
            ahead: the object may end before it is needed, so that a secondary's refusal is no failure yet.

        Raises:
            Refused: a secondary has none.
        """
        assert self.writer is not None
        return self._reserve(self.writer, name, None, ahead=ahead)

    def taken(self) -> dict[str, int]:
        """Bytes that were written to each primary, framing and all."""
        taken: dict[str, int] = {}
        for writer in self.writers:
            used = sum(written.used for written in writer.written)
            taken[writer.primary] = taken.get(writer.primary, 0) + used
        return taken

    def give_back(self) -> None:
        """Release every span that was not entered; each is tried once, also when the host raises."""
        with ExitStack() as every:
            for writer in reversed(self.writers):
                every.callback(self._give_back, writer)

    def _try(self, index: int, name: bytes, length: int | None) -> bool:
        """Whether this primary takes the object; if so its aggregate is the current one."""
        if index == self.index:
            assert self.writer is not None
            return self._stock(self.writer, name, length)
        writer = self._new_writer(index)
        enough = False
        try:
            enough = self._stock(writer, name, length)
        finally:
            if not enough:
                self._give_back(writer)
        if enough:
            self._switch(writer, index)
        return enough

    def _stock(self, writer: AggregateWriter, name: bytes, length: int | None) -> bool:
        """Reserve until the object fits, or can begin; False: the primary has no room."""
        need = 1 if length is None else length
        while (have := writer.capacity(name)) < need or have < 0:
            if not self._reserve(writer, name, None if length is None else need - max(0, have)):
                return False
            if writer.capacity(name) <= have:
                raise InterfaceError(
                    f"the host's spans are too small for its framing and {len(name)} bytes of name"
                )
        return True

    def _new_writer(self, index: int) -> AggregateWriter:
        return AggregateWriter(
            self._engine,
            self._host.framing,
            aggregate=self._ids(),
            primary=self.destination.chain[index].pool,
            stretches=self.stretches,
            timeout=self._timeout,
            keep=self._keep,
            verify=self._verify,
        )

    def _switch(self, writer: AggregateWriter, index: int) -> None:
        """Go on with another aggregate; the one before is sealed, and synced beside it."""
        before, self.writer, self.index = self.writer, writer, index
        self.writers.append(writer)
        self.easy = -1
        if policy.next_primary(self.destination, 0, {}) == index:
            limit = self.max_size
            self.easy = sys.maxsize if limit is None else limit
        if before is not None:
            before.finish()

    def _reserve(
        self, writer: AggregateWriter, name: bytes, length: int | None, *, ahead: bool = False
    ) -> bool:
        """Ask the host for room; False: the primary has none, or (ahead) somebody has none."""
        refused: list[Blamed] = []
        while True:
            request = self._request(writer, name, length, {failure.pool for failure, _ in refused})
            try:
                spans = self._host.reserve(request)
            except (PoolFull, PoolUnavailable) as error:
                full = isinstance(error, PoolFull) and not error.of_host
                if full and not ahead and self._regain(error.pool):
                    continue
                if error.pool == writer.primary:
                    if error.of_host and not ahead:  # the next one is no answer
                        self._over(writer, Refused([of_refusal(error)]))
                    self._refusals[error.pool] = error
                    return False
                if error.pool not in request.secondaries:
                    raise InterfaceError(
                        f"the host refused {error.pool}, which it was not asked for"
                    ) from error
                if ahead:
                    return False
                refused.append(of_refusal(error))
                continue
            writer.add(request, spans)
            if refused:
                self._go_without(writer, refused)
            self._untouched = False
            return True

    def _request(
        self, writer: AggregateWriter, name: bytes, length: int | None, without: set[str]
    ) -> ReserveRequest:
        return ReserveRequest(
            transaction=self._transaction,
            attempt=self._attempt,
            aggregate=writer.aggregate,
            primary=writer.primary,
            secondaries=tuple(pool for pool in self.listed if pool not in without),
            required=(writer.primary, *self.required),
            length=length,
            members=1,
            first_span=writer.numbers,
            wish=max(self._wish(writer), length or 0),
            name_bytes=len(name),
            # A writer that is not the current one is about to be the next.
            ordinal=len(self.writers) - (writer is self.writer),
        )

    def _wish(self, writer: AggregateWriter) -> int:
        if writer.numbers == 0:
            likely = min(self._expected.get(writer.primary, 0), MAX_FIRST_WISH_BYTES)
        else:
            likely = min(writer.size, MAX_WISH_BYTES)
        return max(MIN_WISH_BYTES, likely)

    def _go_without(self, writer: AggregateWriter, refused: Sequence[Blamed]) -> None:
        """Secondaries refused: missing when the attempt began they count as removed, later as failed."""
        absent = all(
            isinstance(error, PoolUnavailable) and not error.of_host for _, error in refused
        )
        if not (self._untouched and absent):
            self._over(writer, Refused(refused))
        verdict = policy.judge_absent(self.lists, [failure for failure, _ in refused])
        if verdict.action is Action.FAIL:
            self._over(writer, Forbidden(verdict, refused))
        self.lists = verdict.lists
        self.listed = tuple(s.pool for s in self.lists.listed(self._kind))

    def _over(self, writer: AggregateWriter, why: Exception) -> NoReturn:
        self._give_back(writer)
        raise why

    def _give_back(self, writer: AggregateWriter) -> None:
        # An interrupt can strike while a span is entered, when it is its stretch's already: that gives it back.
        entered = self.stretches[-1].spans[-1] if self.stretches else None
        with ExitStack() as every:
            while writer.ahead:
                span = writer.ahead.popleft().span
                pools = [placement.pool for placement in span.placements]
                if span is not entered:
                    every.callback(self._host.release, span, pools)

"""Group commit: the one thread that writes to the catalog.

::

    session A ──┐                     ┌── settled(commit, csn)   regions become live, or stay reserved
    session B ──┤ commit()   queue    │
    session C ──┘ and wait ──────> committer ── one database transaction for all that wait
                                      │
                                      ├── durable(group)         only if the directories are flushed before the acknowledgement
                                      ├── wake A, B, C           the acknowledgement
                                      └── appended(group)        directory records, behind everybody's back

What it promises:

1. Nobody is woken with a number before the catalog has made that commit durable.
2. After an error from COMMIT nobody is woken and nothing is released until the fence has said, for every member of the group,
   whether it has committed. If the fence fails too, the store is read-only from then on: members get `CommitUnknown`,
   what they wrote is neither live nor free, and the next opening decides.
3. `settled` runs for every commit that was handed in and whose outcome is known, exactly once, also when its caller was
   interrupted while it waited.
4. One member that cannot be committed (a key that is taken) does not take the rest of its group with it.
5. Nobody waits for a catalog that has not answered for `deadline` seconds, those not counted for which this process was stopped. Whose commit it has been given gets `CommitUnknown`, the
   others `CatalogError`, and the store is read-only from then on. The write itself cannot be called back: this thread stays behind
   with it. Should it end after all, its outcome is known, and promise 3 is kept. Nor for this thread, should it have ended.

Why a thread of its own and not a leader among the callers: a `KeyboardInterrupt` strikes the main thread at any point. A caller
that led the group could be struck between COMMIT and the others' acknowledgement. It costs two switches between
threads for each group; groups grow meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING

from fanout.catalog import CommitDoubt
from fanout.errors import CatalogError, CommitUnknown, InterfaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.catalog import Catalog, Commit

    Committed = tuple[Commit, int]

MAX_WAITING = 1024  # commits in the queue; further callers wait at its door
MAX_GROUP = 64  # commits in one transaction
PART = 1.0  # seconds; waits come in parts, so that it is known when this process did not run
MAX_GROUP_OBJECTS = 16_384  # stop collecting here: about 80 ms for the last one to wait

_log = logging.getLogger("fanout.committer")


class _Ticket:
    """One commit on its way. Written by the committer alone until `done` is set."""

    __slots__ = ("begun", "commit", "csn", "done", "error", "objects")

    def __init__(self, commit: Commit) -> None:
        self.commit = commit
        self.objects = sum(len(aggregate.members) for aggregate in commit.aggregates)
        self.begun = False  # the catalog has been given it
        self.done = threading.Event()
        self.csn: int | None = None
        self.error: Exception | None = None


def _nothing(_: object) -> None:
    """The default of the hooks."""


class Committer:
    """Commits what any number of threads hand in, in groups.

    Args:
        catalog: open for writing; nobody else may write to it while this is open.
        settled: called with (commit, csn) or, when it did not happen, (commit, None), before the caller is woken.
        durable: called with the group before the callers are woken; may take its time.
        appended: called with the group after the callers were woken; must not take its time.
        deadline: seconds that one call of the catalog may take.

    The hooks run on the committer's thread. One that raises makes the committer read-only: the store's books would be wrong.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        settled: Callable[[Commit, int | None], None],
        durable: Callable[[Sequence[Committed]], None] = _nothing,
        appended: Callable[[Sequence[Committed]], None] = _nothing,
        deadline: float,
    ) -> None:
        self._catalog = catalog
        self._settled, self._durable, self._appended = settled, durable, appended
        self._queue: queue.Queue[_Ticket | None] = queue.Queue(MAX_WAITING)
        self._gate = threading.Lock()  # so that nothing is queued behind the end
        self._closed = False
        self._refusal: str | None = None
        self._deadline = deadline
        self._asking = threading.Lock()  # for what follows, and `begun`
        self._asked_at: float | None = None  # since when the catalog has not answered
        self._resumed_at = 0.0  # when this process was last seen to go on
        self._hung = False
        self._thread = threading.Thread(target=self._run, name="fanout-committer", daemon=True)
        self._thread.start()

    @property
    def refusal(self) -> str | None:
        """Why nothing can be committed any more; None: all is well."""
        return self._refusal

    def commit(self, commit: Commit) -> int:
        """Hand a commit in and wait for it. Any thread.

        Returns:
            Its commit sequence number: it is durable.

        Raises:
            CatalogError: it did not happen.
            CommitUnknown: nobody knows; the store is read-only until it is opened again.
            InterfaceError: closed.
        """
        ticket = _Ticket(commit)
        with self._gate:
            if self._closed:
                raise InterfaceError("the store is closed")
            if self._hung:  # what it holds stays reserved, as if it were waiting
                raise CatalogError(self._catalog.path, str(self._refusal))
            self._enqueue(ticket)
        while True:
            with self._part() as seconds:
                if ticket.done.wait(seconds):
                    break
            self._give_up_if_hung(ticket)
        if ticket.error is not None:
            raise ticket.error
        assert ticket.csn is not None
        return ticket.csn

    def close(self) -> None:
        """Commit what waits, then end; idempotent."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._enqueue(None)
        while self._thread.is_alive():
            with self._part() as seconds:
                self._thread.join(seconds)
            if self._patience() == 0:
                _log.error("%s: closed without waiting for a write that hangs", self._catalog.path)
                return

    # ---- a catalog that does not answer ----------------------------------------------------------

    def _patience(self) -> float:
        """How long the catalog still has to answer, in seconds; 0: it hangs."""
        with self._asking:
            return self._left()

    @contextlib.contextmanager
    def _part(self) -> Iterator[float]:
        """So many seconds to wait now. When they end far too late this process was stopped, and nobody has waited for the catalog."""
        began, seconds = time.monotonic(), min(self._patience(), PART)
        try:
            yield seconds
        finally:
            now = time.monotonic()
            if now - began > seconds + PART:
                with self._asking:
                    if self._asked_at is not None:
                        self._asked_at += max(
                            0.0, now - max(began, self._asked_at, self._resumed_at)
                        )
                    self._resumed_at = now

    def _left(self) -> float:
        waited = 0.0 if self._asked_at is None else time.monotonic() - self._asked_at
        return max(0.0, self._deadline - waited)

    def _enqueue(self, ticket: _Ticket | None) -> None:
        """Behind the others, once there is room; not in a queue that nobody empties any more."""
        while True:
            try:
                with self._part() as seconds:
                    return self._queue.put(ticket, timeout=seconds)
            except queue.Full:
                if ticket is not None:
                    self._give_up_if_hung(ticket)
                elif self._patience() == 0 or not self._thread.is_alive():
                    break
        return None

    def _give_up_if_hung(self, ticket: _Ticket) -> None:
        """Promise 5."""
        with self._asking:
            alive = self._thread.is_alive()
            if ticket.done.is_set() or (self._left() > 0 and alive):
                return  # it has answered meanwhile
            if not self._hung:
                self._hung = True
                why = (
                    f"the catalog has not answered for {self._deadline:g} s; mend what keeps it from being written (its disk hangs?)"
                    if alive
                    else "the thread that writes to the catalog has ended (out of memory?)"
                )
                self._refusal = f"read-only: {why}, end this process, then open the store again"
                _log.error("%s: %s", self._catalog.path, self._refusal)
            begun = ticket.begun
        if begun:
            raise self._unknown(ticket, TimeoutError("the write has not ended"))
        raise CatalogError(self._catalog.path, f"nothing was committed: {self._refusal}")

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Round a call of the catalog on this thread, also in a hook."""
        with self._asking:
            self._asked_at = time.monotonic()
        try:
            yield
        finally:
            with self._asking:
                self._asked_at = None

    def _may_begin(self, group: list[_Ticket]) -> bool:
        """From here on its outcome is the catalog's. No: the store is read-only."""
        with self._asking:
            for ticket in group:
                ticket.begun = self._refusal is None
            return self._refusal is None

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            group, last = self._collect(first)
            self._commit_group(group)
            if last:
                return

    def _collect(self, first: _Ticket) -> tuple[list[_Ticket], bool]:
        """Whatever is ready, without waiting for more; and whether the end was among it."""
        group, objects = [first], first.objects
        with contextlib.suppress(queue.Empty):
            while len(group) < MAX_GROUP and objects < MAX_GROUP_OBJECTS:
                ticket = self._queue.get_nowait()
                if ticket is None:
                    return group, True
                group.append(ticket)
                objects += ticket.objects
        return group, False

    def _commit_group(self, group: list[_Ticket]) -> None:
        if not self._may_begin(group):
            refusal = CatalogError(self._catalog.path, str(self._refusal))
            return self._finish(group, dict.fromkeys(map(_key, group)), refusal)
        try:
            with self.asked():
                csns = self._catalog.commit([ticket.commit for ticket in group])
        except CommitDoubt as doubt:
            return self._settle_doubt(group, doubt)
        except Exception as error:
            return self._after_refusal(group, error)
        return self._finish(group, dict(zip(map(_key, group), csns, strict=True)), None)

    def _after_refusal(self, group: list[_Ticket], error: Exception) -> None:
        """Nothing was committed. Alone, it is this one's fault; in a group, find out whose (promise 4)."""
        if len(group) > 1:
            for ticket in group:
                self._commit_group([ticket])
            return
        if not isinstance(error, CatalogError):
            wrapped = CatalogError(self._catalog.path, f"nothing was committed: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._finish(group, {_key(group[0]): None}, error)

    def _settle_doubt(self, group: list[_Ticket], doubt: CommitDoubt) -> None:
        """Promise 2."""
        _log.warning("a commit is in doubt, fencing: %s", doubt)
        keys = [_key(ticket) for ticket in group]
        try:
            with self.asked():
                csns = self._catalog.fence(keys)
        except Exception as error:  # whatever it was: this thread must live, and its callers wait
            self._refusal = (
                "read-only: the outcome of a commit is unknown, and the catalog takes no fence; "
                f"mend what keeps it from being written, then open the store again ({error})"
            )
            _log.error("%s: %s", self._catalog.path, self._refusal)
            for ticket in group:
                ticket.error = self._unknown(ticket, doubt)
                ticket.done.set()
            return
        # A lower number is that of an earlier commit: somebody handed its key in again.
        csns = {key: csn if csn and csn >= doubt.first else None for key, csn in csns.items()}
        failure = CatalogError(self._catalog.path, f"nothing was committed: {doubt}")
        failure.__cause__ = doubt
        self._finish(group, csns, failure)

    def _unknown(self, ticket: _Ticket, doubt: Exception) -> CommitUnknown:
        error = CommitUnknown(
            "commit",
            f"may or may not be committed: {doubt}. {self._refusal}",
            transaction=ticket.commit.transaction.hex(),
            attempt=ticket.commit.attempt,
        )
        error.__cause__ = doubt
        return error

    def _finish(
        self,
        group: list[_Ticket],
        csns: dict[tuple[bytes, int], int | None],
        failure: Exception | None,
    ) -> None:
        """Books, acknowledgement, directories: in this order."""
        committed: list[Committed] = []
        for ticket in group:
            ticket.csn = csns[_key(ticket)]
            if ticket.csn is None:
                ticket.error = failure
            else:
                committed.append((ticket.commit, ticket.csn))
            self._hook(self._settled, ticket.commit, ticket.csn)
        if committed:
            self._hook(self._durable, committed)
        for ticket in group:
            ticket.done.set()
        if committed:
            self._hook(self._appended, committed)

    def _hook(self, hook: Callable[..., None], *arguments: object) -> None:
        try:
            hook(*arguments)
        except Exception as error:
            _log.exception("a hook of the committer failed")
            self._refusal = f"read-only: the store's books are wrong after {error!r}; open it again"


def _key(ticket: _Ticket) -> tuple[bytes, int]:
    return ticket.commit.transaction, ticket.commit.attempt

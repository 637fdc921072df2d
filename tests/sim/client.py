"""A client: sends a transaction as a plan says, believes what it is told, and checks that it was told the truth."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING, Any

import xxhash

from fanout.errors import (
    CatalogError,
    CommitUnknown,
    FanoutError,
    PoolError,
    TargetError,
    TransactionFailed,
    TransactionRetry,
)
from fanout.sources import once
from fanout.transaction import State
from fanout.types import OutcomeCode
from tests.sim import threads
from tests.sim.oracle import Fate, Sent, demand, required, verdict
from tests.sim.plan import NOISE_BYTES

if TYPE_CHECKING:
    from fanout.session import Attempt, Session
    from fanout.transaction import Transaction
    from tests.sim import plan as plans
    from tests.sim.world import World

NOISE = random.Random("noise").randbytes(NOISE_BYTES)
JUDGED = ("copy_continue", "secondary", "primary", "host", "budget", "source")
WAITED = (OutcomeCode.DETACHED, OutcomeCode.TIMED_OUT, OutcomeCode.SLOW)
PLAIN = ("primary", "host", "catalog")  # retries that nobody is removed for
PIECE = 5000  # of a source that gives its bytes in pieces


class GiveUp(Exception):
    """A client's own error."""


class Sending:
    """One transaction on its way.

    Args:
        world: that it happens in.
        session: of the client.
        planned: the session's plan.
        transaction: what is sent.
    """

    def __init__(
        self,
        world: World,
        session: Session,
        planned: plans.Session,
        transaction: plans.Transaction,
    ) -> None:
        self.world, self.session, self.planned, self.plan = world, session, planned, transaction
        self.sent = Sent(planned.node, planned.kind.value)
        self._once = False
        self._spent = 0

    def send(self) -> None:
        """All attempts."""
        for attempt in self.session.attempts():
            self._attempt(attempt)

    def again(self, transaction: bytes, number: int) -> None:
        """By hand, under a known id: what was stored must not be stored twice."""
        world = self.world
        before = world.history[transaction.hex()]
        stored = before.fate is Fate.STORED
        try:
            receipt = world.store.receipt(transaction)
        except CatalogError as error:
            world.note(f"no answer: {error!r}")
            demand(world.script, "V6", f"an error that nothing explains: {error!r}")
            return
        demand(
            (receipt is not None) == stored, "V3", "the receipt says something else than the rows"
        )
        self.sent, known = before, before.objects
        try:
            with self.session.begin(transaction=transaction, attempt=number) as txn:
                if stored:
                    before.objects = []
                else:
                    before.anew()
                self._puts(txn)
                before.fate = Fate.MAYBE
            demand(not stored or not before.objects, "V3", "a transaction was stored twice")
            before.fate = Fate.STORED
            self._check_receipt(txn)
        except TransactionFailed as error:
            self._told(Fate.STORED if stored else Fate.ABSENT, error)
        except (TransactionRetry, CatalogError) as error:
            self._told(Fate.STORED if stored else Fate.ABSENT, error)
        except CommitUnknown as error:
            self._told(Fate.STORED if stored else Fate.MAYBE, error)
        except FanoutError as error:
            self._told(Fate.STORED if stored else Fate.ABSENT, error)
            demand(not world.powered(), "V6", f"an error that nothing explains: {error!r}")
        finally:
            if stored:
                before.objects = known  # there was perhaps no room to send all of them again

    # ---- one attempt -----------------------------------------------------------------------------------

    def _attempt(self, attempt: Attempt) -> None:
        before = set(self.session.removed)
        self._once, unknown = False, self.world.unknown
        try:
            with attempt as txn:
                self._begin(txn)
                self._puts(txn)
                if self.plan.end == "abort":
                    txn.abort()
                elif self.plan.end == "raise":
                    raise GiveUp
                else:
                    self.sent.fate = Fate.MAYBE
        except (TransactionFailed, GiveUp, CatalogError) as error:
            self._told(Fate.ABSENT, error)
        except CommitUnknown as error:
            self.world.unknown = True
            self._told(Fate.MAYBE, error)
        except FanoutError as error:
            self._told(self.sent.fate, error)
            demand(not self.world.powered(), "V6", f"an error that nothing explains: {error!r}")
        made = attempt.transaction
        assert made is not None
        if made.failure is not None:
            self._told(Fate.ABSENT, made.failure)
            self._check_failure(made.failure, before)
        elif made.state is State.COMMITTED:
            self._told(Fate.STORED, None)
            what = "it was begun when a commit was in doubt, and committed before the store was opened again"
            demand(not unknown or not self.sent.objects, "U", what)
            self._check_receipt(made)
        if self.sent.fate is Fate.MAYBE:
            self.world.cut_off[made.transaction.hex()] = (self.planned, self.plan, attempt.number)

    def _begin(self, txn: Transaction) -> None:
        self.sent.anew()
        self.sent.fate = Fate.ABSENT
        self.world.history[txn.transaction.hex()] = self.sent
        self.world.counts["attempts"] += 1

    def _puts(self, txn: Transaction) -> None:
        for put in self.plan.puts:
            data = NOISE[put.at : put.at + put.size]
            self.sent.objects.append((put.name, put.size, xxhash.xxh3_128_digest(data)))
            self._once = self._once or put.source == "once"
            source: Any = data
            if put.source == "bytearray":
                source = bytearray(data)
            elif put.source == "reader":
                source = io.BytesIO(data)
            elif put.source in ("list", "once"):
                pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
                source = once(iter(pieces)) if put.source == "once" else pieces
            txn.put(put.name, source)
            if isinstance(source, bytearray):
                source[:] = bytes(len(source))  # the bytes were taken: V9
            threads.current().breathe()

    def _told(self, fate: Fate, error: BaseException | None) -> None:
        self.sent.fate = fate
        self.world.note(f"txn {self.plan.id}: {fate.value} {'' if error is None else repr(error)}")

    # ---- was it the truth? ------------------------------------------------------------------------------

    def _check_receipt(self, txn: Transaction) -> None:
        receipt, world = txn.receipt, self.world
        assert receipt is not None
        world.counts["committed"] += 1
        told = [(each.name, each.length, each.digest) for each in receipt.objects]
        demand(told == self.sent.objects, "V9", "the receipt names other bytes than were sent")
        limits = dict(world.site.chain)
        rules = set(required(world.site, self.sent.node, self.sent.kind))
        gone = set(self.session.removed)
        for each in receipt.objects:
            limit = limits[each.primary]
            demand(
                limit is None or each.length <= limit, "R6", f"{each.primary} took {each.length}"
            )
            demand(
                set(each.pools) == {each.primary, *rules} - gone, "R4", f"it went to {each.pools}"
            )
        gaps = {gap.pool for gap in receipt.gaps}
        demand(gaps == (rules & gone if told else set()), "V4", f"the receipt has gaps {gaps}")

    def _check_failure(
        self, failure: TransactionRetry | TransactionFailed, before: set[str]
    ) -> None:
        cause = failure.__cause__
        told = cause.__cause__ if isinstance(cause, TransactionRetry) else cause
        errors = told.exceptions if isinstance(told, ExceptionGroup) else ()
        blamed = [self._blamed(error) for error in errors]
        removed = dict(self.session.removed)
        # Who could not be written when the attempt began is removed without a word.
        absent = {
            pool for pool in removed if pool not in before and removed[pool].startswith("reserve:")
        }
        self.world.counts["retries" if isinstance(failure, TransactionRetry) else "failed"] += 1
        if (
            failure.reason in (*JUDGED, "space")
            and errors
            and not any(isinstance(e, CatalogError) for e in errors)
        ):
            reason, after = verdict(
                self.world.site, before, blamed, spent=self._spent, once=self._once
            )  # fmt: skip
            # No primary takes an object: that is final anyhow, unless a copy pool must not be missed.
            right = (
                reason != "copy_continue" if failure.reason == "space" else failure.reason == reason
            )
            demand(right, "R", f"{failure.reason}, by the rules {reason}: {errors}")
            extra = set(removed) - after
            demand(
                set(removed) >= after and extra <= absent, "V13", f"removed {removed}, not {after}"
            )
        else:
            demand(set(removed) - before <= absent, "V13", f"removed for no reason: {removed}")
        if isinstance(failure, TransactionRetry) and failure.reason in PLAIN:
            self._spent += 1

    def _blamed(self, error: Exception) -> tuple[str, int]:
        """Pool and errno; V6: what a target is blamed for was injected there."""
        world = self.world
        if isinstance(error, TargetError):
            pool, outcome = world.ground.pool_of[error.target], error.outcome
            world.take()
            known = [carried for path, carried in world.medium.faults if path == error.target]
            # A target that was let go before gets nothing: its fault is not among those that were carried out.
            hung = outcome.code in WAITED or (
                outcome.code is OutcomeCode.NOT_SUBMITTED and pool in world.hanging
            )
            told = any(
                # Nothing written at all is an error, too; it has no number of its own.
                outcome.code is not OutcomeCode.ERROR
                or -carried.result == outcome.errno
                or carried.result == 0
                for carried in known
            )
            demand(
                told or hung or not world.powered(), "V6", f"nothing was injected there: {error}"
            )
            demand(not hung or pool in world.hanging, "V6", f"nothing hangs there: {error}")
            return pool, outcome.errno
        if isinstance(error, PoolError):
            return error.pool, 0
        return world.site.chain[0][0], 23  # a shortage of the host

"""A caller's bytes on their way, and memory lent to those who fill it themselves."""

from __future__ import annotations

import contextlib
import errno
import sys
from array import array
from typing import TYPE_CHECKING, NamedTuple

from fanout import _core
from fanout.engine.status import (
    checked,
    checked_size,
    fail,
    nanoseconds,
    outcome_of,
    verdict_of,
)
from fanout.engine.values import Leg
from fanout.errors import InterfaceError, TargetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from fanout.engine.target import Target
    from fanout.types import Outcome

MAX_TARGETS = _core.MAX_LEGS  # of one stream
_PROOF_BYTES = 64 << 20  # read back at once: signals are looked at in between
_LEG_STATES = ("active", "failed", "ejected", "synced")
_OUT = ("failed", "ejected")


class Stream:
    """A caller's bytes on their way to a set of targets; made by `Engine.stream`. A context manager.

    Call `place` before the first byte and again for each further region. Leaving the context before `sync` aborts.

    Attributes:
        targets: in the order of `place`'s offsets and of the bits of `write`'s mask.
        granule: the largest of the targets', in bytes.
        id: the number that events carry.
    """

    def __init__(
        self,
        core: _core.Stream,
        targets: tuple[Target, ...],
        timeout_ns: int,
        verify: frozenset[Target] = frozenset(),
    ) -> None:
        self._core, self._timeout_ns, self.targets = core, timeout_ns, targets
        # What will be read back: the offsets of the current place, and what was written at those before it.
        self._verify = verify
        self._offsets: tuple[int, ...] = ()
        self._unproven: list[_Region] = []
        self._lies: dict[Target, Outcome] = {}
        self._by_id = {target.id: target for target in targets}
        self._all_failed = (1 << len(targets)) - 1
        self.granule, self.id = core.granule, core.ident

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def place(self, offsets: Sequence[int], length: int | None = None) -> None:
        """Say where the next bytes go. Block sums start anew.

        Args:
            offsets: one per target, multiples of `granule`.
            length: how many bytes may follow, a multiple of `granule`; None: no limit.

        Raises:
            InterfaceError: not at the end of a slot (`pad` first), or numbers that do not fit.
        """
        limit = _core.FOREVER if length is None else length
        if self._verify and length is None:
            raise InterfaceError("place: what is to be read back needs a length")
        proven = len(self._unproven)
        self._unproven.extend(
            self._written()
        )  # before: an interrupt after the call must not lose it
        try:
            status = self._core.place(list(offsets), limit)
        except OverflowError as error:
            del self._unproven[proven:]
            raise InterfaceError(f"place: an offset or a length of no file: {error}") from error
        if status < 0:
            del self._unproven[proven:]
            fail(status, "place")
        self._offsets = tuple(offsets) if self._verify else ()

    def write(self, data: Buffer, *, raw: bool = False) -> int:
        """Accept bytes for every target that has not failed: copy, hash, queue. Nothing is durable yet.

        The copy is what is hashed and written, so the caller may reuse its buffer at once.

        Args:
            data: any C-contiguous buffer, also an empty one.
            raw: framing: counts for the block sums, not for `digest`.

        Returns:
            Bit mask of the targets that have failed so far, bit 0 for the first; 0: all well. When every bit is set the bytes
            are dropped.

        Raises:
            TimeoutError: no slot came free in time. `position` says how much was accepted.
            InterfaceError: closed, aborted, sealed, past the placed length, or another thread is inside.
            BufferError: the buffer is not C-contiguous.
        """
        mask = self._core.write(data, _core.WRITE_RAW if raw else 0, self._timeout_ns)
        return mask if mask >= 0 else self._mask(mask)

    def write_object(self, data: Buffer) -> bytes | int:
        """`write` all of an object and ask for its `digest`, in one call for the many small ones.

        Returns:
            The digest; or, when a target has failed, the mask that `write` gives.

        Raises:
            TimeoutError, InterfaceError, BufferError: as for `write`.
        """
        found = self._core.write_object(data, self._timeout_ns)
        return found if isinstance(found, bytes) or found > 0 else self._mask(found)

    def _write_now(self, data: Buffer, raw: bool) -> int:
        """As `write` without any wait: the core's status, -ETIMEDOUT when only a part (see `position`) found room."""
        return self._core.write(data, _core.WRITE_RAW if raw else 0, 0)

    def _mask(self, status: int) -> int:
        """What a status of the core comes to as the answer of `write`."""
        if status == -errno.EPIPE:
            return self._all_failed
        return checked(status, "write")

    def lease(self, size: int | None = None) -> Lease:
        """Borrow memory of the next slot, to be filled by ``recv_into``, ``readinto`` and the like: a `write` without its copy.

        Nothing else that moves bytes goes on this stream until the lease has ended.

        Args:
            size: bytes, up to a slot less a granule; None: what the current slot has left.

        Raises:
            TimeoutError: no slot came free in time.
            TargetError: no target is left; the first one's fault.
            InterfaceError: as for `write`, a `size` that does not fit a slot or the placed length, or a lease is out already.
        """
        return self._lent(self._core.lease(checked_size(size), self._timeout_ns))

    def _lent(self, core: _core.Lease | int) -> Lease:
        if not isinstance(core, int):
            return Lease(core, self._all_failed)
        if core == -errno.EPIPE:
            target, outcome = next(iter(self.failures().items()))
            raise TargetError(target.path, outcome)
        return fail(core, "lease")

    def pad(self) -> None:
        """Fill up to the granule with zeros, so that `place` may follow. The zeros count for the block sums only.

        Raises:
            TimeoutError: no slot came free in time.
        """
        self._check_or_dead(self._core.pad(self._timeout_ns), "pad")

    @property
    def position(self) -> int:
        """Bytes accepted since the last `place`, padding included."""
        return self._core.position

    def digest(self) -> bytes:
        """XXH3-128 (16 bytes, canonical order) of the bytes since the last call, framing left out; starts anew."""
        found = self._core.digest()
        return found if isinstance(found, bytes) else fail(found, "digest")

    def suspend(self) -> _core.Unfinished:
        """Take the digest of the current object away, for one that goes on on other targets: another stream resumes it.

        This one may be closed before that; its own digest starts anew.

        Raises:
            InterfaceError: closed, or another thread is inside.
        """
        begun = self._core.suspend()
        if isinstance(begun, int):
            fail(begun, "suspend")
        return begun

    def resume(self, begun: _core.Unfinished) -> None:
        """Go on with a digest that another stream of this process has begun.

        Raises:
            InterfaceError: closed, or another thread is inside.
        """
        checked(self._core.resume(begun), "resume")

    def sums(self) -> bytes:
        """XXH3-64 of each slot-sized block since `place`, the last one partial; 8 bytes each, little endian.

        Summing stops here until the next `place`: a footer that holds the sums is not summed itself.
        """
        found = self._core.sums()
        if not isinstance(found, bytes):
            fail(found, "sums")
        if sys.byteorder == "little":
            return found
        values = array("Q", found)
        values.byteswap()
        return values.tobytes()

    def seal(self) -> None:
        """Say that no bytes follow: pads, writes what is left, and asks for the flushes, without waiting for them.

        Raises:
            TimeoutError: no slot came free in time.
        """
        self._check_or_dead(self._core.seal(self._timeout_ns), "seal")

    def sync(self, *, timeout: float | None = None) -> dict[Target, Outcome]:
        """Wait until every target has made the bytes durable, or has failed; seals first if need be.

        Targets that are to be verified are then read back. `timeout` does not bound that: the deadlines of their reads do.

        Returns:
            For each target its outcome: ok, or its first fault.

        Raises:
            TimeoutError: not within `timeout` seconds; call again.
            InterfaceError: closed or aborted.
        """
        self._check_or_dead(self._core.sync(nanoseconds(timeout)), "sync")
        if self._verify:
            self._unproven.extend(self._written())
            self._offsets = ()
            self._read_back()
        return {leg.target: self._lies.get(leg.target) or verdict_of(leg) for leg in self.legs()}

    def _written(self) -> list[_Region]:
        """What should be on the media since `place`, in pieces; nothing when nobody will ask."""
        if not self._offsets or not self.position:
            return []
        sums = self._core.media()
        if not isinstance(sums, bytes):
            fail(sums, "verify")
        whole = _Region(self._offsets, self.position, sums)
        return whole.pieces(self.targets[0].engine.slot_size)

    def _read_back(self) -> None:
        """Read all regions from the targets that have synced, and compare. Goes on where it was interrupted.

        A `sync` on an event loop that was cancelled may still be doing so in its thread: each reads all that it finds unproven.
        """
        synced = {leg.target for leg in self.legs() if leg.state == "synced"} & self._verify
        for piece in list(self._unproven):
            targets = [t for t in self.targets if t in synced and t not in self._lies]
            if not targets:
                return
            pieces = [
                (t.id, offset, piece.length, piece.sums)
                for t, offset in zip(self.targets, piece.offsets, strict=True)
                if t in targets
            ]
            status, found = targets[0].engine._core.read_back(pieces, _core.FOREVER)
            checked(status, "verify")
            outcomes = zip(targets, map(outcome_of, found), strict=True)
            self._lies |= {target: outcome for target, outcome in outcomes if not outcome.ok}
            with contextlib.suppress(ValueError):  # the other one was faster
                self._unproven.remove(piece)

    def legs(self) -> list[Leg]:
        """How far each target has come."""
        return [self._leg(record) for record in self._records()]

    def _records(self) -> list[_core._Leg]:
        found = self._core.legs()
        return fail(found, "legs") if isinstance(found, int) else found

    def _leg(self, record: _core._Leg) -> Leg:
        number, state, drained, inflight, accepted, submitted, completed, synced, first = record
        return Leg(
            target=self._by_id[number],
            state=_LEG_STATES[state],
            drained=bool(drained),
            inflight=inflight,
            accepted=accepted,
            submitted=submitted,
            completed=completed,
            synced=synced,
            first=outcome_of(first) if first[0] else None,
        )

    def failures(self) -> dict[Target, Outcome]:
        """The targets that are out, each with its first fault; an ejected one without a fault is NOT_SUBMITTED.

        Those that synced and were found to hold something else are among them.
        """
        # Who waits for a flush asks this over and over, and mostly there is none.
        out = [record for record in self._records() if _LEG_STATES[record[1]] in _OUT]
        return self._lies | {leg.target: verdict_of(leg) for leg in map(self._leg, out)}

    def eject(self, target: Target) -> None:
        """Drop a target from the stream: what is queued is not submitted, what is in flight drains.

        Raises:
            InterfaceError: not a target of this stream.
        """
        if target not in self.targets:  # its number alone could be that of another engine's
            raise InterfaceError(f"{target.path}: is not a target of this stream")
        checked(self._core.eject(target._live_id()), "eject")

    def abort(self) -> None:
        """Stop everything; idempotent. What is in flight drains; see `drained`."""
        status = self._core.abort()
        if status != -errno.EBADF:  # closed is aborted enough
            checked(status, "abort")

    def drained(self, *, timeout: float | None = 0.0) -> frozenset[Target]:
        """The targets on which nothing of this stream is in flight; waits at most `timeout` seconds for all of them.

        A region of a target that is not among them must not be written again.
        """
        status = self._core.drained(nanoseconds(timeout))
        if status != -errno.ETIMEDOUT:
            checked(status, "drained")
        return frozenset(
            self._by_id[number] for number, _, drained, *_ in self._records() if drained
        )

    def close(self) -> None:
        """End the stream; idempotent. Before `sync` has returned it aborts.

        Raises:
            InterfaceError: another thread is inside.
        """
        checked(self._core.close(), "close")

    def _check_or_dead(self, status: int, what: str) -> None:
        """Raise for a status, except that no target is left: the legs say that better than an exception."""
        if status != -errno.EPIPE:
            checked(status, what)


class _Region(NamedTuple):
    """What a stream wrote after one `place`: an offset for each target, and the sums of slot-sized blocks, 8 bytes each."""

    offsets: tuple[int, ...]
    length: int
    sums: bytes

    def pieces(self, slot_size: int) -> list[_Region]:
        """The same in pieces that are read back at once."""
        size = max(slot_size, _PROOF_BYTES)
        return [
            _Region(
                tuple(offset + at for offset in self.offsets),
                min(size, self.length - at),
                self.sums[at // slot_size * 8 : (at + size) // slot_size * 8],
            )
            for at in range(0, self.length, size)
        ]


class Lease:
    """A piece of a slot, lent to its caller; made by `Stream.lease`. A context manager.

    ::

        with stream.lease() as lease:
            count = socket.recv_into(lease.view)
            failed = lease.commit(count)

    A lease that is not committed changes nothing. What still exports the memory (a slice, an array, a read in another thread) keeps
    it valid and keeps the stream from going on, also after abort and close.
    """

    __slots__ = ("_all_failed", "_core")

    def __init__(self, core: _core.Lease, all_failed: int) -> None:
        self._core, self._all_failed = core, all_failed

    def __len__(self) -> int:
        """Bytes that are lent."""
        return len(self._core)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def view(self) -> memoryview:
        """The memory, writable; `commit` and `close` release this view.

        Raises:
            BufferError: the lease has ended.
        """
        return self._core.view

    def commit(self, length: int, *, raw: bool = False) -> int:
        """Accept the first `length` bytes as they are now, and end the lease. As `Stream.write` otherwise.

        Returns:
            Bit mask of the targets that have failed so far.

        Raises:
            BufferError: something else still exports the memory: release slices first. The lease goes on.
            InterfaceError: more than was lent, or ended, aborted or closed.
        """
        mask = self._core.commit(length, _core.WRITE_RAW if raw else 0)
        if mask >= 0:
            return mask
        return self._all_failed if mask == -errno.EPIPE else fail(mask, "commit")

    def close(self) -> None:
        """Give back what was not committed; idempotent. Takes effect when nothing exports the memory any more."""
        self._core.end()

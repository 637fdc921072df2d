"""Every exception that fanout raises, and nothing else.

::

    FanoutError
    ├─ InterfaceError (RuntimeError)    the caller's mistake: closed, wrong state, two callers at once
    ├─ ConfigError (ValueError)         a bad setting: file, key, value, what is allowed
    ├─ TargetError (OSError)            what happened on one target: carries the outcome
    ├─ SourceError                      the client's bytes
    │   ├─ SourceNotRereadable          cannot be sent again after a failure, and nobody said that is fine
    │   └─ SourceLengthError            gave fewer or more bytes than it said
    ├─ PoolError                        a pool cannot take part
    │   ├─ UnknownPool                  no such pool (or volume, node, domain): names what there is
    │   ├─ PoolFull                     no room for the reservation
    │   └─ PoolUnavailable              no volume of it can be written
    ├─ VolumeError                      one volume: carries its path and how to mend it
    │   ├─ VolumeBusy                   another process, or a write of a killed one, holds the lock
    │   ├─ VolumeForeign                not ours: other store, other pool, no superblock
    │   ├─ VolumeTorn                   ours, but what is on it cannot be trusted
    │   ├─ VolumeStale                  its epoch and the catalog's do not fit
    │   └─ VolumeFull                   no room, in its space or in its directory
    ├─ CatalogError                     the catalog: carries its path
    │   ├─ CatalogBusy                  another writer has the store open (transient)
    │   ├─ CatalogVersion               written by a newer fanout, or not a catalog
    │   └─ CatalogStale                 older than what stands on a volume: never allocates
    ├─ TransactionError                 carries transaction, attempt and reason
    │   ├─ TransactionRetry             failed everywhere, nothing is visible, send it again
    │   ├─ TransactionFailed            failed everywhere, nothing is visible, sending it again is no use
    │   └─ CommitUnknown                may or may not be committed: the store is read-only until it knows
    ├─ ObjectNotFound (LookupError)     no such object, or no such version
    └─ IntegrityError                   bytes differ from what was accepted: expected, actual, place

When several targets fail at once, their `TargetError` are the members of an `ExceptionGroup`, which is the ``__cause__`` of the
`TransactionError`. Every message says what happened, where, and what mends it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.types import Outcome


class FanoutError(Exception):
    """Base of everything that fanout raises."""


class InterfaceError(FanoutError, RuntimeError):
    """The caller used an object in a state or a way that it does not allow."""


class ConfigError(FanoutError, ValueError):
    """A setting is wrong.

    Args:
        message: what is wrong and what is allowed.
        path: the configuration file.
        key: dotted place in it, as ``pools.DISKPOOL.next``.
    """

    def __init__(self, message: str, *, path: str = "", key: str = "") -> None:
        self.path, self.key = path, key
        place = ": ".join(part for part in (path, key) if part)
        super().__init__(f"{place}: {message}" if place else message)


class TargetError(FanoutError, OSError):
    """What happened on one target.

    Attributes:
        target: path of the target.
        outcome: the whole record: code, phase, offset, length, bytes done, errno, class, attempts, latency.
    """

    def __init__(self, target: str, outcome: Outcome) -> None:
        self.target, self.outcome = target, outcome
        OSError.__init__(self, outcome.errno, f"{outcome}", target)

    def __str__(self) -> str:
        text = os.strerror(self.outcome.errno) if self.outcome.errno else "no error number"
        return f"{self.target}: {self.outcome} ({text})"

    def __reduce__(self) -> tuple[type[TargetError], tuple[str, Outcome]]:
        return type(self), (self.target, self.outcome)


class SourceError(FanoutError):
    """The client's bytes could not be taken."""


class SourceNotRereadable(SourceError):
    """The source cannot be read twice, so a failed attempt could not be sent again."""


class SourceLengthError(SourceError):
    """The source gave fewer or more bytes than it had said."""


class PoolError(FanoutError):
    """A pool cannot take part in what was asked.

    Args:
        pool: name.
        message: what is wrong and how to mend it.
        of_host: this machine, or the catalog, was short of something: the pool is not to blame.
    """

    def __init__(self, pool: str, message: str, *, of_host: bool = False) -> None:
        self.pool, self.message, self.of_host = pool, message, of_host
        super().__init__(f"{pool}: {message}")


class UnknownPool(PoolError):
    """There is no pool of that name."""


class PoolFull(PoolError):
    """The pool has no room for the reservation."""

    NO_ROOM: Final = "no room for"  # begins the messages of fanout's store

    @classmethod
    def explains(cls, reason: str) -> bool:
        """Whether such an error stands behind the reason of a gap, a removal or a repair that failed, which are text."""
        return cls.NO_ROOM in reason


class PoolUnavailable(PoolError):
    """No volume of the pool can be written."""


class VolumeError(FanoutError):
    """One volume cannot be used.

    Args:
        path: file or device.
        message: what is wrong and how to mend it.
    """

    def __init__(self, path: str, message: str) -> None:
        self.path, self.message = path, message
        super().__init__(f"{path}: {message}")


class VolumeBusy(VolumeError):
    """Another process, or a write of a killed one that is still in flight, holds the volume's lock."""


class VolumeForeign(VolumeError):
    """The volume belongs to another store or pool, or holds no superblock at all."""


class VolumeTorn(VolumeError):
    """The volume is ours, but a structure on it fails its checks."""


class VolumeStale(VolumeError):
    """The volume's epoch and the catalog's do not fit.

    Args:
        path: file or device.
        message: what is wrong and how to mend it.
        catalog_is_older: the catalog was restored from the past, and must not allocate anywhere; else the volume was.
    """

    def __init__(self, path: str, message: str, *, catalog_is_older: bool = False) -> None:
        self.catalog_is_older = catalog_is_older
        super().__init__(path, message)


class VolumeFull(VolumeError):
    """No room is left on the volume: in its space, or for one more record in its directory."""


class CatalogError(FanoutError):
    """The catalog cannot do what was asked."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(f"{path}: {message}")


class CatalogBusy(CatalogError):
    """Another process has the store open for writing."""


class CatalogVersion(CatalogError):
    """The file is not a catalog, or was written by a newer fanout."""


class CatalogStale(CatalogError):
    """The catalog is older than a volume's directory or epoch: it must not allocate."""


class TransactionError(FanoutError):
    """A transaction did not commit, or nobody knows yet.

    Args:
        reason: one stable word. Of a retry: ``secondary`` or ``primary`` (a pool failed), ``space`` (`min_bytes` will do), ``catalog``, ``host``
            (this machine is short of something). Of a failure: ``space``, ``copy_continue``, ``source``, ``budget`` (no retry is
            left), ``duplicate`` (it has committed already). A host of your own may have others.
        message: what happened and what mends it.
        transaction: hexadecimal transaction id (a resend carries it).
        attempt: 1-based.
        removed: pools that this failure removed from the session.
        min_bytes: with ``space``: how many bytes the next attempt should announce.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        transaction: str = "",
        attempt: int = 0,
        removed: Sequence[str] = (),
        min_bytes: int | None = None,
    ) -> None:
        self.reason, self.transaction, self.attempt = reason, transaction, attempt
        self.removed, self.min_bytes = tuple(removed), min_bytes
        super().__init__(message)


class TransactionRetry(TransactionError):
    """The transaction failed everywhere and nothing of it is visible; send it again."""


class TransactionFailed(TransactionError):
    """The transaction failed everywhere and nothing of it is visible; sending it again is no use."""


class CommitUnknown(TransactionError):
    """The commit may or may not have happened; the store is read-only until the next clean open decides."""


class ObjectNotFound(FanoutError, LookupError):
    """There is no such object, or no such version of it."""


class IntegrityError(FanoutError):
    """Bytes read back differ from what was accepted.

    Args:
        place: where, in words (pool, volume, offset, object).
        expected: hexadecimal digest or sum that was recorded.
        actual: hexadecimal digest or sum of what was read.
    """

    def __init__(self, place: str, *, expected: str, actual: str) -> None:
        self.place, self.expected, self.actual = place, expected, actual
        super().__init__(f"{place}: expected {expected}, found {actual}")

"""Rules of the fault file system: which operation is hit, and what happens to it.

Pure: shared by the client (which writes rules) and the daemon (which obeys them). A rule matches by operation, path pattern and
byte range. Each rule counts every operation that matches it, whether or not another rule fires; the first rule of the list
whose own count lies in `nth … nth + count - 1` is the one that fires. Counts start anew when rules are set.
"""

from __future__ import annotations

import fnmatch
import math
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OPERATIONS = frozenset(
    {
        "open",  # without O_CREAT, or of an existing file
        "create",
        "read",
        "write",
        "fsync",
        "fsyncdir",
        "flush",  # close(2) of a descriptor: one per descriptor, so dup() and fork() add some
        "truncate",
        "fallocate",
        "rename",  # path: the old name
        "unlink",
        "link",  # path: the new name
        "mkdir",
        "rmdir",
    }
)
_SWALLOWED = frozenset({"write", "fsync", "fsyncdir"})
_FLIPPED = frozenset({"read", "write"})

# As a delay: until `FaultFS.release`, and at most half a minute, so that no test hangs for ever.
FOR_EVER = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One scripted fault.

    Attributes:
        op: the operation, one of `OPERATIONS`.
        path: shell pattern of the path inside the mount, e.g. "/disk" or "/*-wal".
        start: first byte of the range; an operation with a range matches when it touches [start, end).
        end: first byte behind the range; None: no end.
        nth: the first matching operation that is hit, from 1.
        count: how many in a row are hit; None: all further ones.
        errno: the error that is reported; 0: none.
        after_io: the operation is done all the same ("reported failed, was written").
        delay: seconds to wait before the operation is done; FOR_EVER: until `FaultFS.release`.
        delay_after: seconds to wait after it was done and before it is reported.
        short: bytes that are written and reported; the rest is not. (Only pwrite sees the count, and only without page cache: a
            ring or a loop device turns it into EIO.)
        noop: nothing is done, success is reported: a swallowed write, a lying flush.
        flip: index in the request of a byte whose lowest bit is inverted (write: on the medium, read: on the way up).
        shift: bytes by which a write misses its place.
        cut: the power goes off in front of this operation; everything gets EIO until `FaultFS.crash`.
        kill: process that gets SIGKILL in front of the operation, which is done all the same (with `errno`: is not).
        kill_after: process that gets SIGKILL when the operation was done, and before that is reported.
        forget: of a failing fsync: what it should have made durable can never become durable again, as on ext4, where the
            pages are marked clean and the next fsync answers 0.
    """

    op: str
    path: str = "*"
    start: int = 0
    end: int | None = None
    nth: int = 1
    count: int | None = 1
    errno: int = 0
    after_io: bool = False
    delay: float = 0.0
    delay_after: float = 0.0
    short: int | None = None
    noop: bool = False
    flip: int | None = None
    shift: int = 0
    cut: bool = False
    kill: int = 0
    kill_after: int = 0
    forget: bool = True

    def __post_init__(self) -> None:
        if self.op not in OPERATIONS:
            raise ValueError(f"no operation {self.op!r}; there are {', '.join(sorted(OPERATIONS))}")
        if self.nth < 1 or (self.count is not None and self.count < 1):
            raise ValueError("nth and count begin at 1")
        if self.after_io and not self.errno:
            raise ValueError("after_io needs an errno")
        if self.noop and self.op not in _SWALLOWED:
            raise ValueError(f"{self.op} cannot be swallowed")
        if (self.short is not None or self.shift) and self.op != "write":
            raise ValueError("only a write can be short or misdirected")
        if self.flip is not None and self.op not in _FLIPPED:
            raise ValueError("only a read or a write can flip a bit")

    def matches(self, op: str, path: str, offset: int, size: int) -> bool:
        """Whether this operation is one that the rule counts."""
        if op != self.op or not fnmatch.fnmatchcase(path, self.path):
            return False
        if size == 0:
            return True
        return offset + size > self.start and (self.end is None or offset < self.end)

    def fires(self, hits: int) -> bool:
        """Whether the rule acts on its `hits`-th match."""
        return hits >= self.nth and (self.count is None or hits < self.nth + self.count)


def encode(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """Rules as JSON values."""
    return [asdict(rule) for rule in rules]


def decode(values: Iterable[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """The rules that `encode` wrote."""
    return tuple(Rule(**value) for value in values)


class RuleBook:
    """The rules in force and their counters. Thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._rules: tuple[Rule, ...] = ()
        self._hits: list[int] = []

    def replace(self, rules: Iterable[Rule]) -> None:
        """Put other rules in force; all counters start anew."""
        with self._mutex:
            self._rules = tuple(rules)
            self._hits = [0] * len(self._rules)

    def take(self, op: str, path: str, offset: int = 0, size: int = 0) -> tuple[int, Rule] | None:
        """Count one operation and return the rule that fires on it with its index, or None."""
        fired = None
        with self._mutex:
            for index, rule in enumerate(self._rules):
                if not rule.matches(op, path, offset, size):
                    continue
                self._hits[index] += 1
                if fired is None and rule.fires(self._hits[index]):
                    fired = index, rule
        return fired

    def hits(self) -> list[int]:
        """How often each rule matched, in the order of the rules."""
        with self._mutex:
            return list(self._hits)

"""The fault matrix of a store on real devices: one table, from which the cases are generated, and which is their documentation.

    python -m tests.crash.matrix        prints it as Markdown, with the number of cases

A row is a fault in a phase; its columns say what a client sees when the pool in that role has it. Roles: **P** primary, **CY** copy
pool with `copy_continue = true`, **CN** with `false`, **AD** active-data pool, **–** none of them (the catalog).

| code | what the client sees |
| --- | --- |
| OK | nothing; nobody is removed |
| X | the pool is missing when the transaction begins: it goes on at once without it, and the session goes without it; a gap |
| RX | the attempt fails everywhere, is asked for again, and succeeds without the pool; the session goes without it; a gap |
| R | the attempt fails everywhere, is asked for again, and succeeds; nobody is removed |
| B | as R, until the retries are used up: the transaction fails, and nothing is stored |
| F | the transaction fails at once (`copy_continue`); nothing is stored, no gap |
| NX | the next primary of the chain takes the objects; nobody is removed |
| U | `CommitUnknown`; the store takes nothing more until it is opened again |
| S | the store does not open: a typed error |
| D | as OK; the damage is found by the next reader, by `check` or at the next opening, and no wrong byte is served |
| G | the repair goes round it: all gaps close |
| L | the repair says what it could not do; the gap stays, and the next run closes it |

After every case the devices are healed, a new session must find all its pools again, and the oracle judges the store.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROLES = ("P", "CY", "CN", "AD")
BACKENDS = ("io_uring", "threads")
POOL_OF = {"P": "DISKPOOL", "CY": "COPYPOOL1", "CN": "COPYPOOL1", "AD": "ACTIVEDATAPOOL", "–": ""}
ALL = {"P": "R/B", "CY": "RX", "CN": "F", "AD": "RX"}  # once / for ever, where they differ
DEADLINE_SECONDS = 1.5  # of the rows that hang


@dataclass(frozen=True, slots=True)
class Row:
    """One fault.

    Attributes:
        key: of the row.
        phase: when it is there: open (all the time from the opening on), write (while the session works), close, or repair.
        fault: in words.
        codes: role: code, or "once/for ever".
        rule: fields of `faults.rules.Rule`; what is not here comes from the variant.
        errnos: names, one variant each.
        times: once, ever.
        places: which of the writes of a transaction: first, middle, last. Errors beside the first one are tried in the middle.
        devices: loop (a loop device over the fault file system), file (on it), zram.
        made_by: a function of the rig, instead of a rule.
        note: why it is as it is, where that is not obvious.
        hangs: needs the short deadline.
    """

    key: str
    phase: str
    fault: str
    codes: Mapping[str, str] = field(default_factory=lambda: ALL)
    rule: Mapping[str, Any] = field(default_factory=dict)
    errnos: tuple[str, ...] = ("",)
    times: tuple[str, ...] = ("ever",)
    places: tuple[str, ...] = ("first",)
    devices: tuple[str, ...] = ("loop", "file")
    made_by: str = ""
    note: str = ""
    hangs: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    row: Row
    role: str
    device: str
    backend: str
    errno: str
    times: str
    place: str

    @property
    def code(self) -> str:
        """What is expected."""
        once, _, ever = self.row.codes[self.role].partition("/")
        return ever if ever and self.times == "ever" else once

    @property
    def name(self) -> str:
        """For pytest."""
        parts = [self.row.key, self.role, self.device, self.backend]
        parts += [self.errno] if self.errno else []
        parts += [self.times] if len(self.row.times) > 1 else []
        parts += [self.place] if len(self.row.places) > 1 else []
        return "-".join(parts)


EVERYWHERE = ("first", "middle", "last")
BOTH = ("once", "ever")
LET_GO = {"P": "NX", "CY": "RX", "CN": "F", "AD": "RX"}
MISSING = {"P": "NX", "CY": "X", "CN": "F", "AD": "X"}
ABSENT_NOTE = (
    "Nothing was written when the pool is found missing, so there is nothing to undo and nothing to ask for again: X instead of RX. A "
    "missing primary is passed over, as one whose access says so."
)

ROWS = (
    Row("O1-locked", "open", "another process holds the volume", MISSING, made_by="locked", note=ABSENT_NOTE),
    Row("O1-missing", "open", "the file is not there", MISSING, devices=("file",), made_by="missing"),
    Row(
        "O1-refused",
        "open",
        "open(2) fails",
        MISSING,
        {"op": "open"},
        errnos=("EACCES", "EIO", "EBADE", "ENODEV"),
        devices=("file",),
    ),
    Row("O2-torn", "open", "both superblocks are torn", MISSING, made_by="torn"),
    Row("O2-zeros", "open", "the medium is blank", MISSING, made_by="blank"),
    Row("O2-foreign", "open", "a volume of another pool lies there", MISSING, made_by="foreign"),
    Row("O2-newer", "open", "superblocks of a newer format", MISSING, made_by="newer"),
    Row("O2-short", "open", "the medium became smaller", MISSING, devices=("file",), made_by="short"),
    Row("O2-one", "open", "one superblock is torn", dict.fromkeys(ROLES, "OK"), made_by="half_torn"),
    Row("O5-uring", "open", "io_uring is refused, backend auto", {"–": "OK"}, devices=("file",), made_by="no_uring"),
    Row("O6-hang", "open", "open(2) hangs", MISSING, {"op": "open", "delay": 20.0}, devices=("file",), hangs=True),
    Row(
        "O7-claim",
        "open",
        "the superblock cannot be written or flushed",
        MISSING,
        {"op": "write"},
        errnos=("EIO", "ENOSPC"),
    ),
    Row(
        "W1",
        "write",
        "errors of the medium and the device",
        rule={"op": "write"},
        errnos=("EIO", "ENODATA", "EREMOTEIO", "EILSEQ"),
        times=BOTH,
        places=EVERYWHERE,
    ),
    Row("W1-zram", "write", "the device runs out of memory: EIO", made_by="zram_full", devices=("zram",)),
    Row(
        "W2",
        "write",
        "the device vanishes: every later request fails",
        made_by="vanished",
        errnos=("ENODEV", "ENOLINK", "ETIMEDOUT"),
    ),
    Row(
        "W3",
        "write",
        "no space in the middle of a reserved region",
        rule={"op": "write"},
        errnos=("ENOSPC", "EDQUOT", "EFBIG"),
        times=BOTH,
        places=EVERYWHERE,
        note="Regions are reserved and preallocated, so this is a fault of the volume and not an overflow: R/B for the primary, never NX.",
    ),
    Row(
        "W5",
        "write",
        "short, then an error",
        rule={"op": "write", "short": 4096},
        made_by="short_then_error",
        places=EVERYWHERE,
        devices=("file",),
    ),
    Row(
        "W6-heals",
        "write",
        "transient errors, once",
        dict.fromkeys(ROLES, "OK"),
        {"op": "write"},
        errnos=("EAGAIN", "EBUSY"),
        times=("once",),
        places=EVERYWHERE,
    ),
    Row("W6-intr", "write", "interrupted, once", dict.fromkeys(ROLES, "OK"), {"op": "write"}, errnos=("EINTR",), times=("once",), places=EVERYWHERE, devices=("file",)),
    Row(
        "W6",
        "write",
        "transient errors, for ever",
        LET_GO,
        {"op": "write"},
        errnos=("EAGAIN", "EBUSY"),
        hangs=True,
        note="Tried again until the hard deadline. A primary that timed out is missing for the resend: NX. If its last try came back with the error before that, it is not: B.",
    ),
    Row(
        "W6-host",
        "write",
        "this machine is short of memory, for ever",
        dict.fromkeys(ROLES, "B"),
        {"op": "write"},
        errnos=("ENOMEM",),
        hangs=True,
        note="Nobody is removed for what the host lacks; CN: R until the budget is spent, for it is not the copy's failure.",
    ),
    Row(
        "W7",
        "write",
        "slow, below the deadline",
        dict.fromkeys(ROLES, "OK"),
        {"op": "write", "delay": 0.05},
    ),
    Row(
        "W8",
        "write",
        "past the deadline, and then done after all",
        LET_GO,
        {"op": "write", "delay": 2.5 * DEADLINE_SECONDS},
        times=("once",),
        hangs=True,
        note="The engine lets a hung target go, so for the resend the primary is missing: NX.",
    ),
    Row(
        "W9",
        "write",
        "never done; the process is killed, and the next one starts",
        LET_GO,
        {"op": "write", "delay": float("inf")},
        hangs=True,
    ),
    Row("W10", "write", "the device turns read-only: EPERM", made_by="read_only", devices=("loop",)),
    Row("W10-file", "write", "the file system turns read-only", rule={"op": "write"}, errnos=("EROFS",), devices=("file",)),
    Row(
        "W11",
        "write",
        "reported failed, was written",
        rule={"op": "write", "after_io": True},
        errnos=("EIO",),
        times=BOTH,
        places=EVERYWHERE,
    ),
    Row("W12-flip", "write", "one bit is flipped on its way", dict.fromkeys(ROLES, "D"), {"op": "write", "flip": 5000}, times=("once",), places=EVERYWHERE),
    Row("W12-lost", "write", "a write is swallowed", dict.fromkeys(ROLES, "D"), {"op": "write", "noop": True}, times=("once",), places=EVERYWHERE),
    Row("W12-misdirected", "write", "a write lands elsewhere", dict.fromkeys(ROLES, "D"), {"op": "write", "shift": 8192}, times=("once",), places=EVERYWHERE),
    Row("S1", "write", "a flush fails, the next one says it is fine", LET_GO, {"op": "fsync"}, errnos=("EIO",), times=BOTH, note="A failed flush is final: the volume is out until the next session, so for the resend the primary is missing: NX."),
    Row("S2", "write", "no space at the flush", LET_GO, {"op": "fsync"}, errnos=("ENOSPC", "EDQUOT"), times=BOTH, devices=("file",), note="As S1."),
    Row(
        "S2-hang",
        "write",
        "a flush hangs",
        LET_GO,
        {"op": "fsync", "delay": 2.5 * DEADLINE_SECONDS},
        times=("once",),
        hangs=True,
    ),
    Row("S3", "write", "flushes lie, then the power fails", dict.fromkeys(ROLES, "D"), {"op": "fsync", "noop": True}),
    Row("W13-copies", "write", "a copy pool and the active-data pool fail in one attempt", {"CY": "RX", "CN": "F"}, {"op": "write"}, errnos=("EIO",), devices=("file",), made_by="both_copies", note="What fails at the same moment is judged together. One that fails a moment later is judged in the next attempt."),
    Row("W13-primary", "write", "the primary and a copy pool fail in one attempt", {"CY": "RX", "CN": "F"}, {"op": "write"}, errnos=("EIO",), devices=("file",), made_by="with_primary", note="The primary fails once. What fails at the same moment is judged together: F before R before RX. A copy pool that fails a moment later is judged in the next attempt."),
    Row("W14", "write", "every secondary fails", {"CY": "RX", "CN": "F"}, {"op": "write"}, errnos=("EIO",), devices=("file",), made_by="all_secondaries"),
    Row("C1-short", "write", "somebody else writes to the catalog for a second", {"–": "OK"}, devices=("file",), made_by="catalog_locked"),
    Row("C2", "write", "no space for the catalog's log", {"–": "OK/U"}, {"op": "write", "path": "/catalog.db-wal"}, errnos=("ENOSPC",), times=BOTH, devices=("file",), note="Once: recorded in the space of the ballast."),
    Row("C2-io", "write", "the catalog's log cannot be written", {"–": "R/U"}, {"op": "write", "path": "/catalog.db-wal"}, errnos=("EIO",), times=BOTH, devices=("file",)),
    Row("C3", "write", "the catalog's log cannot be flushed", {"–": "R/U"}, {"op": "fsync", "path": "/catalog.db-wal"}, errnos=("EIO", "ENOSPC"), times=BOTH, devices=("file",)),
    Row("C4", "open", "the catalog is damaged", {"–": "S"}, devices=("file",), made_by="catalog_damaged"),
    Row("C5", "write", "the catalog's device hangs for a while", {"–": "OK"}, {"op": "fsync", "path": "/catalog.db-wal", "delay": 1.0}, times=("once",), devices=("file",), note="No receipt is given while it hangs. After `commit_deadline` it is given up, the outcome unknown (tests/store/test_hanging.py)."),
    Row("K1", "close", "closing the volume fails after a good flush", dict.fromkeys(ROLES, "OK"), {"op": "flush"}, errnos=("EIO", "EDQUOT"), devices=("file",)),
    Row("K2", "close", "folding the catalog's log fails", {"–": "OK"}, {"op": "write", "path": "/catalog.db"}, errnos=("EIO", "ENOSPC"), devices=("file",)),
    Row("G1", "repair", "the source cannot be read; another copy can", {"P": "G"}, {"op": "read"}, errnos=("EIO", "ENODATA")),
    Row("G1-flip", "repair", "the source gives wrong bytes", {"P": "G"}, {"op": "read", "flip": 5000}),
    Row("G2", "repair", "the destination fails", {"CY": "L"}, {"op": "write"}, errnos=("EIO", "ENOSPC"), times=BOTH, places=("first",)),
    Row("G2-flush", "repair", "the destination cannot be flushed", {"CY": "L"}, {"op": "fsync"}, errnos=("EIO",), times=BOTH),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """Every case of the table."""
    for row in ROWS:
        for errno, times, place in _variants(row):
            for role, device, backend in itertools.product(row.codes, row.devices, BACKENDS):
                yield Case(row, role, device, backend, errno, times, place)


def _variants(row: Row) -> Iterator[tuple[str, str, str]]:
    for number, errno in enumerate(row.errnos):
        places = row.places if number == 0 or len(row.places) == 1 else ("middle",)
        for times in row.times:
            for place in places:
                yield errno, times, place


def some() -> Iterator[Case]:
    """One case of each row, and of the first write error one for each role; which one follows from their names."""
    by_cell: dict[str, list[Case]] = {}
    for case in cases():
        cell = f"{case.row.key} {case.role}" if case.row.key == "W1" else case.row.key
        by_cell.setdefault(cell, []).append(case)
    for cell, found in by_cell.items():
        yield found[zlib.crc32(cell.encode()) % len(found)]


def markdown() -> Iterator[str]:
    """The table, line by line."""
    yield "| row | phase | fault | " + " | ".join([*ROLES, "–"]) + " | cases |"
    yield "| --- | --- | --- |" + " --- |" * (len(ROLES) + 1) + " ---: |"
    for row in ROWS:
        count = sum(case.row is row for case in cases())
        codes = [row.codes.get(role, "") for role in (*ROLES, "–")]
        errnos = f" ({', '.join(row.errnos)})" if row.errnos != ("",) else ""
        yield f"| {row.key} | {row.phase} | {row.fault}{errnos} | {' | '.join(codes)} | {count} |"
    yield ""
    yield from (f"* {row.key}: {row.note}" for row in ROWS if row.note)
    yield ""
    yield f"{sum(1 for _ in cases())} cases, {sum(1 for _ in some())} of them by default."


if __name__ == "__main__":
    print("\n".join(markdown()))

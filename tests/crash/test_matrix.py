"""The fault matrix on real devices: for every row of `matrix`, what the client sees, and what the oracle says when all is mended.

What could break: a fault that removes the wrong pool, or nobody, or everybody; a retry that never ends; a gap that is not noted or noted
twice; a receipt for what is not there; a session that does not find its pools again.

By default one case of each row, and of W1 one for each role. With `-m long` a quarter of all cases, another one with another
FANOUT_SEED; FANOUT_MATRIX=all: all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import SEED
from tests.crash import matrix, oracle
from tests.crash.clients import Seen
from tests.crash.media import StoreOnMedia
from tests.crash.rig import Rig, pool_of
from tests.crash.site import SECONDARIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.crash.matrix import Case
    from tests.crash.nursery import Child

SHARE = 4
# What a loop device makes of errors that the block layer has no words for.
THROUGH_LOOP = {"EDQUOT": "EIO", "EFBIG": "EIO", "EROFS": "EIO", "ENXIO": "EIO"}
REPAIRED_EVERY = 4  # cases whose oracle also rebuilds and repairs


def in_order(cases: Iterator[Case]) -> list[Any]:
    """By device and pool, so that each rig is made once."""
    found = sorted(cases, key=lambda case: (case.device, pool_of(case)))
    return [pytest.param(case, id=case.name, marks=_marks(case)) for case in found]


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    return [] if case.device == "file" else [pytest.mark.loop]


def test_the_document_has_the_table() -> None:
    """docs/reliability.md shows what is run, and nothing else."""
    text = (oracle.ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert "\n".join(matrix.markdown()) in text, "python -m tests.crash.matrix prints the table"


def share() -> Iterator[Case]:
    """Those of a long run."""
    for case in matrix.cases():
        mine = (zlib.crc32(case.name.encode()) + SEED) % SHARE == 0
        if mine or os.environ.get("FANOUT_MATRIX") == "all":
            yield case


class Rigs:
    """The rig of the present device and pool."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._key: tuple[str, str] | None = None
        self._rig: Rig | None = None

    def get(self, device: str, pool: str) -> Rig:
        """The one for these; another one is undone."""
        if self._key != (device, pool) or self._rig is None:
            self.close()
            self._rig = self._stack.enter_context(Rig.made(device, pool))
            self._key = device, pool
        return self._rig

    def close(self) -> None:
        """Undo."""
        self._key = None
        self._stack.close()


@pytest.fixture(scope="module")
def rigs() -> Iterator[Rigs]:
    """One at a time."""
    made = Rigs()
    yield made
    made.close()


@pytest.mark.parametrize("case", in_order(matrix.some()))
def test_some_cases(rigs: Rigs, case: Case) -> None:
    """One of each row."""
    run(rigs.get(case.device, pool_of(case)), case)


@pytest.mark.long
@pytest.mark.parametrize("case", in_order(share()))
def test_many_cases(rigs: Rigs, case: Case) -> None:
    """A share of all."""
    run(rigs.get(case.device, pool_of(case)), case)


# ---- one case ----------------------------------------------------------------------------------------


def run(rig: Rig, case: Case) -> None:
    """Break, let a client work, look at what it saw, mend, judge."""
    rig.begin(case)
    try:
        (repairs if case.row.phase == "repair" else sessions)(rig, case)
    except BaseException:
        rig.harness.bury()
        raise
    full = zlib.crc32(case.name.encode()) % REPAIRED_EVERY == 0
    if case.code == "D":
        detected(rig, case)
    else:
        rig.harness.judge(case.name, quick=not full, repair=full)


def start(rig: Rig, case: Case, client: str, stack: contextlib.ExitStack) -> Child:
    """A client whose store is open, with the fault made before it or after."""
    if case.row.phase == "open":
        rig.break_for(case, stack)
    refused = {"io_uring_setup": errno.EPERM} if case.row.made_by == "no_uring" else {}
    more = {"refused": refused} if refused else {}
    child = rig.harness.start(f"clients:{client}", seed=11, **more)
    child.go()
    child.wait_for("open")
    if case.row.phase in ("write", "repair"):
        rig.break_for(case, stack)
    return child


def sessions(rig: Rig, case: Case) -> None:
    """Two transactions while it is broken, one when it is mended."""
    harness = rig.harness
    with contextlib.ExitStack() as stack:
        child = start(rig, case, "under_fault", stack)
        if case.code != "S":
            child.go()
            child.wait_for("over")
        if case.row.key == "W9":  # still held: killed in the middle of it
            child.kill()
        if case.row.key == "S3":
            harness.bury()
            harness.fs.crash()
        elif case.row.phase != "close":
            harness.heal()
    if case.code not in ("S",) and case.row.key not in ("W9", "S3"):
        child.go()
        child.wait_for("again")
        if case.row.phase == "close":
            rig.break_for(case, contextlib.ExitStack())
        child.go()
    status = child.wait()
    harness.heal()
    if case.row.key not in ("W9", "S3"):
        assert status == 0, child.errors
    CHECKS[case.code](case, *reports(child))
    if case.row.phase == "write" and case.errno and case.code in ("RX", "R", "B", "F"):
        blamed(rig, case, child)


def reports(child: Child) -> tuple[dict[str, Any], list[Seen]]:
    """What the client said: of the opening, and of each transaction."""
    found = [
        json.loads(word.partition("=")[2])
        for word in child.journal.words
        if word.startswith("report=")
    ]
    mine = [report for report in found if "open" in report]
    return mine[-1], [Seen(**report) for report in found if "retries" in report]


def blamed(rig: Rig, case: Case, child: Child) -> None:
    """V6: the errno that was injected, on the target that it was injected on, and on no other."""
    if case.role == "–" or case.row.made_by in ("both_copies", "with_primary", "all_secondaries"):
        return
    wanted = {THROUGH_LOOP.get(case.errno, case.errno) if case.device == "loop" else case.errno}
    if case.row.key == "W6":
        wanted.add("ETIMEDOUT")  # whichever ended the last try
    seen = reports(child)[1][0]
    assert {path for path, _ in seen.errnos} == {str(rig.path)}, seen
    assert {name for _, name in seen.errnos} <= wanted, seen


# ---- what each code means ----------------------------------------------------------------------------


def ok(case: Case, opened: dict[str, Any], seen: list[Seen]) -> None:
    """Nothing happened, and nobody left."""
    assert not opened["open"]
    for one in seen:
        assert (one.end, one.retries, one.removed, one.gaps) == ("receipt", [], [], []), one
    if case.row.made_by == "no_uring":
        assert opened["backend"] == "threads"


def without(case: Case, seen: Seen, retries: list[Any]) -> None:
    """A transaction that went without the failing pools."""
    pools = sorted(failing(case))
    assert seen.end == "receipt", seen
    assert seen.retries == retries, seen
    assert (seen.removed, seen.gaps) == (pools, pools), seen


def failing(case: Case) -> list[str]:
    """The secondaries that fail."""
    if case.row.made_by == "all_secondaries":
        return list(SECONDARIES)
    return [pool_of(case), *(["ACTIVEDATAPOOL"] if case.row.made_by == "both_copies" else [])]


def removed_at_once(case: Case, opened: dict[str, Any], seen: list[Seen]) -> None:
    """X."""
    assert not opened["open"]
    without(case, seen[0], [])
    without(case, seen[1], [])
    healthy(seen[2])


def removed_and_retried(case: Case, opened: dict[str, Any], seen: list[Seen]) -> None:
    """RX. A pool that fails a moment after another is judged in the next attempt. None leaves twice."""
    retries = seen[0].retries
    if case.row.made_by == "with_primary":
        # Together, or whichever came first; a primary that fails in an attempt that is over is not heard of.
        (pool,) = failing(case)
        alone, after = ["secondary", [pool]], ["primary", []]
        assert retries in ([["primary", [pool]]], [after, alone], [alone, after], [alone]), seen[0]
    else:
        assert {why for why, _ in retries} == {"secondary"}, seen[0]
        assert sorted(pool for _, pools in retries for pool in pools) == sorted(failing(case))
    without(case, seen[0], retries)
    without(case, seen[1], [])
    if case.row.key != "W9":
        healthy(seen[2])


def retried(case: Case, opened: dict[str, Any], seen: list[Seen]) -> None:
    """R."""
    first = seen[0]
    reason = {"–": "catalog", "P": "primary"}.get(case.role, "host")
    assert (first.end, first.removed, first.gaps) == ("receipt", [], []), first
    assert first.retries == [[reason, []]], first
    healthy(seen[2])


def given_up(case: Case, opened: dict[str, Any], seen: list[Seen]) -> None:
    """B."""
    reason = {"–": "catalog", "P": "primary"}.get(case.role, "host")
    if case.row.key == "W6-host":
        reason = "host"
    assert seen[0].end == "failed: budget", seen[0]
    assert seen[0].retries == [[reason, []]] * 2, seen[0]
    assert seen[0].removed == []
    healthy(seen[2])


def forbidden(case: Case, opened: dict[str, Any], seen: list[Seen]) -> None:
    """F; and again, if the fault is still there or the engine has let the target go."""
    if case.row.made_by == "with_primary" and seen[0].retries:
        assert seen[0].retries.pop() == ["primary", []]
    stays = case.times == "ever" or case.row.hangs or case.row.rule.get("op") == "fsync"
    # It may fail a moment before the copy pool, and is judged by itself then; the next session may find it missing.
    active_data = ["ACTIVEDATAPOOL"] if "ACTIVEDATAPOOL" in failing(case) else []
    for one in seen[: 1 + stays]:
        if one.removed == active_data != []:
            assert one.retries in ([], [["secondary", active_data]]), one
            one.retries.clear()
            one.removed.clear()
        assert (one.end, one.retries, one.removed) == ("failed: copy_continue", [], []), one
    if not stays:
        healthy(seen[1])
    if case.row.key != "W9":
        healthy(seen[2])


def next_primary(case: Case, opened: dict[str, Any], seen: list[Seen]) -> None:
    """NX: at once when it is missing, with a retry when it goes missing."""
    first = seen[0]
    if case.row.key == "W6" and first.end != "receipt":  # see its note
        given_up(case, opened, seen)
        return
    assert (first.end, first.removed, first.gaps) == ("receipt", [], []), first
    assert first.primaries == ["TAPEPOOL"], first
    assert first.retries == ([] if case.row.phase == "open" else [["primary", []]]), first
    if case.row.key != "W9":
        healthy(seen[2])
        assert seen[2].primaries == ["DISKPOOL"], seen[2]


def unknown(case: Case, opened: dict[str, Any], seen: list[Seen]) -> None:
    """U, and nothing more is taken, not even when the catalog is well again."""
    assert seen[0].end == "unknown", seen[0]
    for one in seen[1:]:
        assert one.end not in ("receipt", "unknown"), one
        assert "read-only" in one.message


def refused(case: Case, opened: dict[str, Any], seen: list[Seen]) -> None:
    """S."""
    assert opened["open"].startswith(("CatalogVersion", "CatalogError")), opened
    assert seen == []


def healthy(seen: Seen) -> None:
    """A new session, with full lists."""
    assert (seen.end, seen.retries, seen.removed, seen.gaps) == ("receipt", [], [], []), seen


CHECKS: dict[str, Callable[[Case, dict[str, Any], list[Seen]], None]] = {
    "OK": ok,
    "D": ok,
    "X": removed_at_once,
    "RX": removed_and_retried,
    "R": retried,
    "B": given_up,
    "F": forbidden,
    "NX": next_primary,
    "U": unknown,
    "S": refused,
}


# ---- silent damage -----------------------------------------------------------------------------------


def detected(rig: Rig, case: Case) -> None:
    """The damage lies on the failing pool's volume alone; reading goes round it, and `check` names it."""
    harness = rig.harness
    findings = oracle.look(harness.site.path, harness.journal, opened=False)
    assert findings, "nothing was damaged"
    with StoreOnMedia.look(harness.site.path) as there:
        mine = {row["path"] for row in there.catalog.volumes.values() if row["pool"] == rig.pool}
    for finding in findings:
        assert finding.startswith(("V1", "V5")), findings
        assert rig.pool in finding or any(path in finding for path in mine), findings
    kept = harness.kept / "sent"
    harness.journal.save(kept)
    told = json.loads(harness.say("clients:read_all", journal=str(kept))["report"])
    assert told["wrong"] == []
    assert told["unreadable"] == []
    assert any(path in problem for problem in told["check"] for path in mine), told["check"]


# ---- repairs -----------------------------------------------------------------------------------------


def repairs(rig: Rig, case: Case) -> None:
    """A repair while it is broken, and one when it is mended."""
    with contextlib.ExitStack() as stack:
        child = start(rig, case, "repair_under_fault", stack)
        child.go()
        child.wait_for("over")
        rig.harness.heal()
    child.go()
    child.wait_for("over")
    child.go()
    assert child.wait() == 0, child.errors
    first, second = (
        json.loads(word.partition("=")[2])
        for word in child.journal.words
        if word.startswith("report=")
    )
    if case.code == "G":
        assert first == {"left": 0, "failed": 0}
    else:
        assert first["left"] > 0
        assert first["failed"] > 0
    assert second == {"left": 0, "failed": 0}

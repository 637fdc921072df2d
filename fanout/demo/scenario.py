"""The phases of the demo.

1. Two clients store real files: every pool that should hold them does.
2. The same in a new store while COPYPOOL1 fails: the transaction fails everywhere, the client is
   asked again, COPYPOOL1 is out for the rest of that session, and the gaps are on record.
3. The same in a new store while ACTIVEDATAPOOL fails.
4. The repair commands close the gaps.
5. Every object is read back from every pool, and its digest compared with one that other hands made.
6. What would have been lost, had the primaries and COPYPOOL2 burnt down before the repair.

The clients and the groups: N1, in domain FASTRESTORE, stores A and B; N2, in domain NORMAL, stores
C, D and E. E does not fit into DISKPOOL and goes to TAPEPOOL, with the lists of DISKPOOL.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fanout.demo import devices, inputs
from fanout.demo.report import (
    FaultReport,
    GapReport,
    Holding,
    InputReport,
    LossReport,
    PhaseReport,
    ProofReport,
    RepairReport,
    Report,
    Retry,
    SessionReport,
)
from fanout.demo.signals import terminable, undisturbed
from fanout.demo.site import (
    ACTIVE,
    COPY1,
    COPY2,
    DISK,
    FAST,
    FAST_DOMAIN,
    NORMAL,
    NORMAL_DOMAIN,
    POOLS,
    TAPE,
    Sizes,
    kind_of_targets,
    site,
)
from fanout.errors import FanoutError
from fanout.reconcile import backup_stgpool, copy_activedata
from fanout.store import Store
from fanout.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.demo.inputs import Inputs
    from fanout.demo.site import Fault, Site
    from fanout.reconcile import ReconcileReport

MIB = 1 << 20
DEFAULT_BYTES = 200 * MIB
LEAST_BYTES = 32 * MIB
LARGE_SHARE = 4  # E is a quarter of the rest, or what it must have so as not to fit
SESSIONS = ((FAST, FAST_DOMAIN, ("A", "B")), (NORMAL, NORMAL_DOMAIN, ("C", "D", "E")))
HEALTHY, COPY_FAILS, ACTIVE_FAILS = "healthy", "copy pool fails", "active-data pool fails"


class Narrator(Protocol):
    """Who tells the story. Every call but `progress` is made when the fact is known."""

    def progress(
        self, what: str, total_bytes: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Something long begins; the function it gives is told how many bytes more are done."""

    def prepared(self, report: InputReport, targets: str, why: str) -> None:
        """The input is chosen."""

    def phase(self, number: int, report: PhaseReport) -> None:
        """A phase is over."""

    def repaired(self, report: RepairReport) -> None:
        """A repair command has run."""

    def proven(self, report: ProofReport) -> None:
        """Everything in one store has been read back."""

    def lost(self, report: LossReport) -> None:
        """What would have been lost."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do it with.

    Attributes:
        directory: for everything that is made; a new one in it is removed at the end.
        targets: ``auto``, ``devices`` or ``files``.
        size_bytes: of real files.
        roots: where they are looked for.
    """

    directory: Path
    targets: str = "auto"
    size_bytes: int = DEFAULT_BYTES
    roots: tuple[str, ...] = inputs.ROOTS

    @property
    def needed_bytes(self) -> int:
        """Room that is needed at the same time: the generated file and two stores."""
        # Each store holds the input in a primary pool and two copy pools, half of it in the active-
        # data pool, and some room beside; see `Sizes`.
        return self.size_bytes // LARGE_SHARE + 2 * (self.size_bytes * 5)


def run(plan: Plan, narrator: Narrator) -> Report:
    """Run the demo. Nothing is left behind, whatever happens."""
    began = time.monotonic()
    kind = kind_of_targets(plan.targets)
    why = "root" if kind == "devices" else devices.why_no_devices() or "asked for"
    with terminable(), undisturbed() as stack:
        made = tempfile.TemporaryDirectory(prefix="fanout-demo-", dir=plan.directory)
        base = Path(stack.enter_context(made))
        chosen = _choose(plan, base, narrator)
        sizes = Sizes.for_inputs(chosen)
        narrator.prepared(_input_report(chosen), kind, why)
        story = _Story(chosen, sizes, kind, base, narrator)
        with undisturbed() as first:
            place, store = first.enter_context(story.store("1", None))
            backend = store.engine.info.backend
            healthy = story.phase(1, HEALTHY, place, store)
        # Both stores that lost something stay open until they are whole again and proven.
        sick_copy = stack.enter_context(story.store("2", COPY1))
        copy_fails = story.phase(2, COPY_FAILS, *sick_copy)
        loss = story.loss(copy_fails.name, sick_copy[1])
        sick_active = stack.enter_context(story.store("3", ACTIVE))
        active_fails = story.phase(3, ACTIVE_FAILS, *sick_active)
        repairs = [
            story.repair(sick_copy[1], f"backup stgpool {DISK} {COPY1}", DISK, COPY1),
            story.repair(sick_copy[1], f"backup stgpool {TAPE} {COPY1}", TAPE, COPY1),
            story.repair(sick_active[1], f"copy activedata {DISK} {ACTIVE}", DISK, ACTIVE),
        ]
        proofs = [
            story.prove(copy_fails.name, sick_copy[1]),
            story.prove(active_fails.name, sick_active[1]),
        ]
        narrator.lost(loss)
        phases = (healthy, copy_fails, active_fails)
        ok = (
            all(phase.as_expected for phase in phases)
            and not any(repair.failed or repair.gaps_left for repair in repairs)
            and not any(proof.wrong for proof in proofs)
            and loss.gap_query_said
        )
        return Report(
            ok=ok,
            targets=kind,
            why_targets=why,
            backend=backend,
            input=_input_report(chosen),
            phases=phases,
            repairs=tuple(repairs),
            proofs=tuple(proofs),
            loss=loss,
            seconds=time.monotonic() - began,
            sentence=_sentence(ok, phases, repairs, proofs),
        )


# ---- the input ----------------------------------------------------------------------------------


def _choose(plan: Plan, base: Path, narrator: Narrator) -> Inputs:
    with narrator.progress("choosing files", plan.size_bytes) as advance:
        groups = inputs.choose(total_bytes=plan.size_bytes, roots=plan.roots, on_progress=advance)
    small = [one for files in groups.values() for one in files]
    share = sum(one.length for one in small) // LARGE_SHARE // MIB * MIB
    length = max(share, Sizes.least_large(small))
    large = inputs.generate(str(base / inputs.LARGE_NAME), length)
    return inputs.Inputs({**groups, inputs.LARGE_NAME: (large,)})


def _input_report(chosen: Inputs) -> InputReport:
    groups = {
        group: Holding(len(files), sum(one.length for one in files))
        for group, files in chosen.groups.items()
    }
    return InputReport(
        files=sum(one.objects for one in groups.values()),
        bytes=sum(one.bytes for one in groups.values()),
        groups=groups,
    )


# ---- the phases ---------------------------------------------------------------------------------


class _Story:
    """The phases over one choice of input."""

    def __init__(
        self, chosen: Inputs, sizes: Sizes, kind: str, base: Path, narrator: Narrator
    ) -> None:
        self._inputs, self._sizes, self._kind = chosen, sizes, kind
        self._base, self._narrator = base, narrator

    @contextlib.contextmanager
    def store(self, name: str, failing: str | None) -> Iterator[tuple[Site, Store]]:
        """A new store on new places; both gone when the block ends."""
        directory = self._base / f"store{name}"
        with undisturbed() as stack:
            made = site(directory, self._sizes, kind=self._kind, failing=failing)
            place = stack.enter_context(made)
            Store.create(place.config)
            yield place, stack.enter_context(Store.open(place.config))

    def phase(self, number: int, name: str, place: Site, store: Store) -> PhaseReport:
        """Both clients store their files; the fault, if there is one, strikes in each session."""
        retries: list[Retry] = []
        total = self._inputs.bytes_of(*self._inputs.groups)
        if place.fault:
            place.fault.arm()
        try:
            with self._narrator.progress(f"phase {number}: {name}", total) as advance:
                sessions = [
                    self._session(store, node, domain, groups, retries, advance)
                    for node, domain, groups in SESSIONS
                ]
        finally:
            if place.fault:
                place.fault.heal()
        report = self._report(name, place, store, sessions, retries)
        self._narrator.phase(number, report)
        return report

    def _session(
        self,
        store: Store,
        node: str,
        domain: str,
        groups: tuple[str, ...],
        retries: list[Retry],
        advance: Callable[[int], None],
    ) -> SessionReport:
        began, attempts, written = time.monotonic(), 0, 0
        degraded = False
        with store.session(node) as session:
            for group in groups:
                before = dict(session.removed)
                for attempt in session.attempts():
                    attempts += 1
                    retries += _new_removals(node, group, before, session.removed)
                    before = dict(session.removed)
                    with attempt as transaction:
                        for one in self._inputs.of(group):
                            transaction.put(one.name, one.path)
                receipt = session.receipt
                assert receipt is not None, "a transaction that was not committed raises"
                degraded |= receipt.degraded
                written += sum(one.length * len(one.pools) for one in receipt.objects)
                advance(receipt.bytes)
            removed = dict(session.removed)
        return SessionReport(
            node=node,
            domain=domain,
            groups=groups,
            objects=len(self._inputs.of(*groups)),
            bytes=self._inputs.bytes_of(*groups),
            written_bytes=written,
            seconds=time.monotonic() - began,
            attempts=attempts,
            removed=removed,
            degraded=degraded,
        )

    def _report(
        self,
        name: str,
        place: Site,
        store: Store,
        sessions: list[SessionReport],
        retries: list[Retry],
    ) -> PhaseReport:
        fault = place.fault
        seconds = sum(session.seconds for session in sessions)
        pools = _holdings(store)
        gaps = _gaps(store)
        return PhaseReport(
            name=name,
            fault=FaultReport(fault.pool, fault.cause, fault.errno) if fault else None,
            targets=place.kinds,
            sessions=tuple(sessions),
            retries=tuple(retries),
            pools=pools,
            gaps=gaps,
            as_expected=self._as_expected(pools, gaps, retries, fault),
            client_bytes_per_second=sum(session.bytes for session in sessions) / seconds,
            written_bytes_per_second=sum(session.written_bytes for session in sessions) / seconds,
        )

    def _as_expected(
        self,
        pools: dict[str, dict[str, Holding]],
        gaps: tuple[GapReport, ...],
        retries: list[Retry],
        fault: Fault | None,
    ) -> bool:
        """Exactly what the rules demand: not one object more or less, every gap on record.

        And each retry for the pool that was made to fail, with the errno that the kernel was to answer.
        """
        failed = fault.pool if fault else None
        wanted = {pool: self._expected(pool) if pool != failed else {} for pool in POOLS}
        if pools != wanted or bool(retries) != bool(fault):
            return False
        if fault and any(one.pool != failed or fault.errno not in one.reason for one in retries):
            return False
        missing: dict[tuple[str, str], int] = {}
        if failed:
            for group, holding in self._expected(failed).items():
                key = (_primary(group), failed)
                missing[key] = missing.get(key, 0) + holding.objects
        return {(gap.primary, gap.pool): gap.objects for gap in gaps} == missing

    def _expected(self, pool: str) -> dict[str, Holding]:
        """What a healthy pool holds."""
        groups = {
            DISK: "ABCD",
            TAPE: "E",
            COPY1: "ABCDE",
            COPY2: "ABCDE",
            ACTIVE: "AB",
        }[pool]
        return {
            group: Holding(len(self._inputs.of(group)), self._inputs.bytes_of(group))
            for group in groups
        }

    # ---- repair and proof -----------------------------------------------------------------------

    def repair(self, store: Store, command: str, primary: str, pool: str) -> RepairReport:
        """One repair command, told as it would be typed."""
        work = copy_activedata if pool == ACTIVE else backup_stgpool
        done: ReconcileReport = work(store, primary, pool)
        report = RepairReport(
            command=command,
            copied_objects=done.copied_objects,
            copied_bytes=done.copied_bytes,
            gaps_left=done.gaps_left,
            failed=tuple((os.fsdecode(name), reason) for name, reason in done.failed),
            seconds=done.seconds,
        )
        self._narrator.repaired(report)
        return report

    def prove(self, phase: str, store: Store) -> ProofReport:
        """Read every object from every pool that must hold it by now, and compare digests."""
        began, read, wrong = time.monotonic(), 0, []
        pools: dict[str, int] = dict.fromkeys(POOLS, 0)
        tasks = [
            (pool, node, one)
            for pool in POOLS
            for node, _, groups in SESSIONS
            for group in groups
            if group in self._expected(pool)
            for one in self._inputs.of(group)
        ]
        total = sum(one.length for _, _, one in tasks)
        with self._narrator.progress(f"reading back: {phase}", total) as advance:
            for pool, node, one in tasks:
                problem = _differs(store, pool, node, one)
                if problem:
                    wrong.append(problem)
                else:
                    pools[pool] += 1
                read += one.length
                advance(one.length)
        report = ProofReport(
            phase=phase,
            reads=len(tasks),
            bytes=read,
            wrong=tuple(wrong),
            pools=pools,
            seconds=time.monotonic() - began,
        )
        self._narrator.proven(report)
        return report

    def loss(self, phase: str, store: Store) -> LossReport:
        """Count what only the primaries and COPYPOOL2 hold, and see whether the gap query knows."""
        burnt = {DISK, TAPE, COPY2}
        left = {pool: _names(store, pool) for pool in POOLS if pool not in burnt}
        known = _gap_names(store)
        lost: dict[str, Holding] = {}
        saved: dict[str, str] = {}
        said = True
        for group, files in self._inputs.groups.items():
            gone = [one for one in files if not any(one.name in names for names in left.values())]
            if gone:
                lost[group] = Holding(len(gone), sum(one.length for one in gone))
                said &= all(one.name in known for one in gone)
            else:
                first = files[0].name
                saved[group] = next(pool for pool, names in left.items() if first in names)
        return LossReport(phase, lost, saved, said)


def _new_removals(node: str, group: str, before: dict[str, str], now: object) -> Iterator[Retry]:
    assert hasattr(now, "items")
    for pool, reason in now.items():
        if pool not in before:
            yield Retry(node, group, pool, reason)


def _primary(group: str) -> str:
    return TAPE if group == inputs.LARGE_NAME else DISK


def _differs(store: Store, pool: str, node: str, one: inputs.Input) -> str | None:
    """What is wrong with an object in a pool; None: it is the source, byte for byte."""
    place = f"{pool}: {one.name!r}"
    try:
        with store.get(node, one.name, pool=pool) as reader:
            length, digest = inputs.digest_of(reader)
    except FanoutError as error:
        return f"{place}: {error}"
    if (length, digest) != (one.length, one.digest):
        return f"{place}: {digest.hex()} ({length} bytes), source {one.digest.hex()}"
    return None


# ---- what the catalog says ----------------------------------------------------------------------


def _holdings(store: Store) -> dict[str, dict[str, Holding]]:
    """Pool to group to what it holds."""
    found: dict[str, dict[str, Holding]] = {}
    for pool in POOLS:
        groups: dict[str, Holding] = {}
        for entry in store.query_objects(pool=pool):
            group = entry.name[:1].decode()
            old = groups.get(group, Holding(0, 0))
            groups[group] = Holding(old.objects + 1, old.bytes + entry.length)
        found[pool] = dict(sorted(groups.items()))
    return found


def _names(store: Store, pool: str) -> set[bytes]:
    return {entry.name for entry in store.query_objects(pool=pool)}


def _gaps(store: Store) -> tuple[GapReport, ...]:
    """The gap query's rows, added up by primary and pool."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    reasons: dict[tuple[str, str], str] = {}
    for gap in store.query_gaps():
        key = (gap.primary, gap.pool)
        sums[key][0] += gap.objects
        sums[key][1] += gap.bytes
        reasons.setdefault(key, gap.reason)
    return tuple(
        GapReport(*key, objects=objects, bytes=size, reason=reasons[key])
        for key, (objects, size) in sums.items()
    )


def _gap_names(store: Store) -> set[bytes]:
    """Names of all objects that the gap query says are missing somewhere."""
    names: set[bytes] = set()
    for gap in store.query_gaps():
        for member in store.catalog.members(gap.aggregate):
            if gap.missing is None or member.member in gap.missing:
                names.add(member.name)
    return names


# ---- the end ------------------------------------------------------------------------------------


def _sentence(
    ok: bool,
    phases: tuple[PhaseReport, ...],
    repairs: list[RepairReport],
    proofs: list[ProofReport],
) -> str:
    if not ok:
        wrong = sum(len(proof.wrong) for proof in proofs)
        odd = [phase.name for phase in phases if not phase.as_expected]
        return (
            f"NOT as it should be: {wrong} objects differ, "
            f"phases that ended otherwise than expected: {', '.join(odd) or 'none'}."
        )
    retries = sum(len(phase.retries) for phase in phases)
    copied = sum(repair.copied_objects for repair in repairs)
    reads = sum(proof.reads for proof in proofs)
    size = format_size(sum(proof.bytes for proof in proofs))
    return (
        f"Two pools failed with real errors, {retries} transactions were sent again and no client "
        f"lost anything; every gap was on record, the repairs copied {copied:,} objects, and all "
        f"{reads:,} reads ({size}) from all five pools agree with the source."
    )

"""The canonical workloads: small stores' lives that loops and crash states go through step by step. Each is a plan without faults."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fanout.types import ObjectKind
from tests.sim.beside import Mend
from tests.sim.coming import Grow
from tests.sim.plan import (
    HEAD,
    KIB,
    SITES,
    SLOT,
    CatalogFault,
    Cut,
    Episode,
    Fault,
    Plan,
    Put,
    Session,
    Site,
    Transaction,
)  # fmt: skip
from tests.sim.steps import Audit, Delete, Retire, Spot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sim.steps import Step

LARGE = 150 * KIB


def _site(
    *, chain: int, secondaries: Sequence[str], copy_continue: bool, limit: int | None = None
) -> Site:
    found = [
        site
        for site in SITES
        if len(site.chain) == chain
        and site.secondaries == tuple(secondaries)
        and site.copy_continue == copy_continue
        and (limit is None or site.chain[0][1] == limit)
    ]
    return found[0]


WIDE = _site(chain=1, secondaries=("C1", "C2", "A1"), copy_continue=True)
STRICT = next(s for s in SITES if not s.copy_continue and "C1" in s.secondaries)
LOW = next(
    s
    for s in SITES
    if s.chain[0][1] is not None and s.secondaries and s.copy_continue and not s.tight
)
BARE = next(s for s in SITES if not s.secondaries and len(s.chain) == 1)


class _Maker:
    """Numbers the parts."""

    def __init__(self, first: int = 1) -> None:
        self.ids = itertools.count(first)

    def put(self, size: int, *, name: bytes = b"A", source: str = "bytes") -> Put:
        return Put(next(self.ids), name, size, 1000 * next(self.ids) % 4096, source)

    def txn(self, *puts: Put, end: str = "commit") -> Transaction:
        return Transaction(next(self.ids), puts, end)

    def session(
        self, *txns: Transaction, node: str = "N1", kind: ObjectKind = ObjectKind.BACKUP
    ) -> Session:
        return Session(next(self.ids), node, kind, txns, (), ())

    def episode(
        self,
        *sessions: Session,
        together: bool = False,
        flush_first: bool = False,
        reconcile: bool = False,
        steps: tuple[Step, ...] = (),
    ) -> Episode:
        return Episode(
            next(self.ids), sessions, together, flush_first, reconcile, None, steps=steps
        )

    def delete(self, how: str, *, keep: int = 0) -> Delete:
        """After the first session."""
        return Delete(next(self.ids), (), (), 1, how, keep, preview=False)


def _make() -> dict[str, Plan]:
    m = _Maker()

    def small(*, node: str = "N1", kind: ObjectKind = ObjectKind.BACKUP) -> Session:
        return m.session(m.txn(m.put(700)), node=node, kind=kind)

    lives: dict[str, tuple[Site, Episode]] = {
        "one small object": (WIDE, m.episode(small())),
        "an empty object": (WIDE, m.episode(m.session(m.txn(m.put(0))))),
        "a group": (WIDE, m.episode(m.session(m.txn(*(m.put(n, name=b"%d" % n) for n in (1, 5000, HEAD)))))),
        "a slot to the byte": (WIDE, m.episode(m.session(m.txn(m.put(SLOT - HEAD), m.put(SLOT, name=b"B"))))),
        "several slots": (WIDE, m.episode(m.session(m.txn(m.put(LARGE))))),
        "a new version": (WIDE, m.episode(m.session(m.txn(m.put(900)), m.txn(m.put(800))))),
        "given up": (WIDE, m.episode(m.session(m.txn(m.put(9000), end="abort"), m.txn(m.put(50))))),
        "unknown length": (WIDE, m.episode(m.session(m.txn(m.put(70 * KIB, source="reader"), m.put(9, source="list"))))),
        "overflow to the next primary": (LOW, m.episode(m.session(m.txn(m.put(100), m.put(LARGE, name=b"B"))))),
        "copies that must be": (STRICT, m.episode(small(), small(kind=ObjectKind.ARCHIVE))),
        "no copies at all": (BARE, m.episode(small())),
        "two sessions at once": (WIDE, m.episode(small(), small(node="N2"), together=True)),
        "evidence first": (WIDE, m.episode(small(), flush_first=True)),
        "deletions": (
            WIDE,
            m.episode(
                m.session(m.txn(m.put(700), m.put(0, name=b"B")), m.txn(m.put(900))),
                steps=(m.delete("version"), m.delete("active"), m.delete("expire")),
            ),
        ),
        "repairs": (WIDE, m.episode(small(), reconcile=True)),
    }  # fmt: skip
    return {
        name: Plan(number, site, (episode,))
        for number, (name, (site, episode)) in enumerate(lives.items())
    }


WORKLOADS = _make()


@dataclass(frozen=True, slots=True)
class Workload:
    """One that loops go through.

    Attributes:
        site: that it runs on.
        before: episodes in which nothing fails; what they leave is made once.
        episode: in which something does.
        where: from when on: ``opening`` of the store, first ``session``, or last ``step``; ``catalog``: from there on, but nothing of the engine's.
    """

    number: int
    site: Site
    before: tuple[Episode, ...]
    episode: Episode
    where: str

    @property
    def plan(self) -> Plan:
        """Without a fault."""
        return Plan(self.number, self.site, (self.episode,))

    def struck_by(self, fault: Fault | CatalogFault, *, opening: bool) -> Plan:
        """With one; `opening`: from the opening on, wherever it is counted from else."""
        if self.where not in ("step", "catalog"):
            return with_fault(self.plan, fault, opening=opening or self.where == "opening")
        engine = (fault,) if isinstance(fault, Fault) else ()
        catalog = (fault,) if isinstance(fault, CatalogFault) else ()
        episode = self.episode
        many = episode.steps or episode.before
        ill = (*many[:-1], replace(many[-1], faults=engine, catalog_faults=catalog))
        struck = replace(episode, steps=ill) if episode.steps else replace(episode, before=ill)
        return replace(self.plan, episodes=(struck,))


def _longer() -> dict[str, Workload]:
    """Those that begin with a store that has been used."""
    m = _Maker(1000)
    put, txn, session, episode = m.put, m.txn, m.session, m.episode

    def two() -> Session:
        return session(txn(put(700), put(9000, name=b"B")), txn(put(900)))

    def mend(how: str, *ways: tuple[str, str]) -> Mend:
        return Mend(next(m.ids), (), (), 0, how, ways)

    def lacking(pool: str) -> Episode:
        """What is sent lacks there."""
        gone = Fault(next(m.ids), pool, "errno", 1, 5, 1, forever=True)
        return episode(replace(two(), faults=(gone,)))

    def audit(*parts: str) -> Audit:
        spots = tuple(Spot(n / len(parts), part, 0.3, 600) for n, part in enumerate(parts))
        return Audit(next(m.ids), (), (), "C1", spots, mend=False)

    def lost(pool: str, *, anew: bool) -> Retire:
        return Retire(next(m.ids), (), (), pool, 0, anew, back=False, cut=False)

    cut = Cut(next(m.ids), "sync", 2, "all", opening=False)
    everywhere = (("P1", "C1"), ("P1", "C2"), ("P1", "A1"))
    nothing = episode()
    found: dict[str, tuple[Site, tuple[Episode, ...], Episode, str]] = {
        "the opening, wide": (WIDE, (), episode(session(txn(put(700)))), "opening"),
        "the opening, two primaries": (LOW, (), episode(session(txn(put(100)))), "opening"),
        "the opening, strict": (STRICT, (), episode(session(txn(put(700)))), "opening"),
        "the opening, bare": (BARE, (), episode(session(txn(put(700)))), "opening"),
        "opened again": (WIDE, (episode(two()),), nothing, "opening"),
        "opened after a power loss": (WIDE, (replace(episode(two(), two()), cut=cut),), nothing, "opening"),
        "opened after a power loss, two primaries": (
            LOW, (replace(episode(two(), session(txn(put(100), put(LARGE, name=b"B")))), cut=cut),), nothing, "opening",
        ),
        "gaps closed": (WIDE, (lacking("C1"),), episode(steps=(mend("repair", *everywhere),)), "opening"),
        "a pool filled again": (
            WIDE,
            (episode(two()), replace(nothing, before=(lost("P1", anew=True),))),
            episode(steps=(mend("repair", ("P1", "P1")),)),
            "opening",
        ),
        "a session beside a repair": (
            WIDE, (lacking("C1"),), episode(session(txn(put(800))), together=True, steps=(mend("repair", *everywhere),)), "session",
        ),
        "deletions beside a repair": (
            WIDE, (lacking("C1"),),
            episode(together=True, steps=(mend("repair", *everywhere), replace(m.delete("version"), after=0))), "opening",
        ),
        "space that is used again": (
            BARE, (episode(two(), steps=(m.delete("expire"),)),), episode(session(txn(put(9000)), txn(put(700)))), "session",
        ),
        "an audit": (WIDE, (episode(two()),), episode(steps=(audit("data", "foot"),)), "catalog"),
        "a disk given up": (WIDE, (episode(two()),), replace(nothing, before=(lost("C1", anew=True),)), "step"),
        "a volume more": (
            WIDE, (episode(two()),), replace(nothing, before=(Grow(next(m.ids), (), (), "C1", cut=True),)), "step",
        ),
    }  # fmt: skip
    return {
        name: Workload(100 + number, *workload)
        for number, (name, workload) in enumerate(found.items())
    }


# All that the loops go through; the crash states go through those above.
LOOPED = {
    name: Workload(plan.seed, plan.site, (), plan.episodes[0], "session")
    for name, plan in WORKLOADS.items()
} | _longer()


def with_fault(plan: Plan, fault: Fault | CatalogFault, *, opening: bool = False) -> Plan:
    """The workload with one fault, counted from the opening of the store or from its first session."""
    episode = plan.episodes[0]
    engine = (fault,) if isinstance(fault, Fault) else ()
    catalog = (fault,) if isinstance(fault, CatalogFault) else ()
    if opening:
        return replace(plan, episodes=(replace(episode, faults=engine, catalog_faults=catalog),))
    # Sessions that begin later take the fault away, so that what follows is seen as well; of those at once nobody knows which is the later.
    struck = len(episode.sessions) if episode.together else 1
    ill = [replace(each, faults=engine, catalog_faults=catalog) for each in episode.sessions]
    sessions = (*ill[:struck], *episode.sessions[struck:])
    return replace(plan, episodes=(replace(episode, sessions=sessions),))


def with_cut(plan: Plan, cut: Cut) -> Plan:
    """The workload with a power loss."""
    return replace(plan, episodes=(replace(plan.episodes[0], cut=cut),))

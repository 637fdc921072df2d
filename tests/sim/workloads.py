"""The canonical workloads: small stores' lives that loops and crash states go through step by step. Each is a plan without faults."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from fanout.types import ObjectKind
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
from tests.sim.steps import Delete

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

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def put(self, size: int, *, name: bytes = b"A", source: str = "bytes") -> Put:
        return Put(next(self._ids), name, size, 1000 * next(self._ids) % 4096, source)

    def txn(self, *puts: Put, end: str = "commit") -> Transaction:
        return Transaction(next(self._ids), puts, end)

    def session(
        self, *txns: Transaction, node: str = "N1", kind: ObjectKind = ObjectKind.BACKUP
    ) -> Session:
        return Session(next(self._ids), node, kind, txns, (), ())

    def episode(
        self,
        *sessions: Session,
        together: bool = False,
        flush_first: bool = False,
        reconcile: bool = False,
        steps: tuple[Step, ...] = (),
    ) -> Episode:
        return Episode(
            next(self._ids), sessions, together, flush_first, reconcile, None, steps=steps
        )

    def delete(self, how: str, *, keep: int = 0) -> Delete:
        """After the first session."""
        return Delete(next(self._ids), (), (), 1, how, keep, preview=False)


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

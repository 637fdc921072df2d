"""Verifies a whole store, and changes nothing: catalog, superblocks, directories, spans, bytes, gaps.

::

    catalog ──> its own structure          volumes ──> both superblocks, every directory block
       └── against each directory: the same aggregates, at the same commits, at the same places
       └── each aggregate ──> each copy ──> header, footer, sums, digests ──> is every object somewhere good?
                          └─> gaps: what the headers demand, less what the copies hold; then compared with the gap rows

What it promises:

1. Nothing is written, neither to a volume nor to the catalog.
2. Nobody writes meanwhile: it holds the locks of catalog and volumes, and refuses to run beside a writer.
3. One thing that is wrong hides nothing else: it is noted, and the check goes on.
4. Gaps are computed without a look at the gap rows.

Every problem says where it is, what is wrong, and what mends it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from fanout import config as configuration
from fanout.catalog import CatalogReader, writer_lock
from fanout.check.copies import CopyCheck
from fanout.check.findings import RECONCILE, SEND, CheckReport, Findings, Problem, found_again
from fanout.check.volumes import VolumeCheck
from fanout.config import Access, Config
from fanout.copying import bad_members
from fanout.errors import CatalogError, InterfaceError, PoolUnavailable
from fanout.evidence import Coverage
from fanout.read import CopyReader
from fanout.store import LOCK_WAIT, Store, open_engine
from fanout.types import PoolKind

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from fanout.catalog import AggregateEntry, Contents, CopyEntry, MemberEntry
    from fanout.check.findings import Progress
    from fanout.engine import Engine
    from fanout.volume import Volume

__all__ = ["CheckReport", "Problem", "check_store"]


def check_store(
    config_or_store: Config | str | os.PathLike[str] | Store,
    *,
    data: bool = True,
    lock_wait: float = LOCK_WAIT,
    on_progress: Progress | None = None,
) -> CheckReport:
    """Verify everything that a store has.

    Args:
        config_or_store: a configuration, the path of one, or a store that is open read-only.
        data: read every byte of every copy, and compare sums and digests. Without it: headers, footers, directories, catalog.
        lock_wait: seconds to wait for the locks.
        on_progress: called with bytes done and bytes in all.

    Raises:
        CatalogBusy, VolumeBusy: somebody writes to the store, or has it open for writing.
        InterfaceError: the store that was given is open for writing.
        CatalogError: there is no catalog, or it cannot be opened.
    """
    if isinstance(config_or_store, Store):
        if not config_or_store.read_only:
            raise InterfaceError("a store cannot be checked while it is open for writing; close it")
        config = config_or_store.config
    elif isinstance(config_or_store, Config):
        config = config_or_store
    else:
        config = configuration.load(config_or_store)
    with ExitStack() as closing:
        path = config.store.catalog
        closing.enter_context(writer_lock(path, wait=lock_wait))
        catalog = closing.enter_context(CatalogReader(path))
        engine = closing.enter_context(open_engine(config))
        check = _Check(config, catalog, engine, data=data, on_progress=on_progress)
        closing.callback(check.close)
        return check.run(lock_wait)


class _Check:
    """One check. Single use, one thread."""

    def __init__(
        self,
        config: Config,
        catalog: CatalogReader,
        engine: Engine,
        *,
        data: bool,
        on_progress: Progress | None,
    ) -> None:
        self._config, self._catalog, self._engine = config, catalog, engine
        self._findings = Findings(catalog.path, data=data, on_progress=on_progress)
        self._volumes: dict[bytes, Volume] = {}
        self._kinds: dict[str, PoolKind] = {}
        self._aggregates = self._objects = 0
        self._catalog_is_older = False

    def close(self) -> None:
        """Let the volumes go."""
        for volume in self._volumes.values():
            volume.close()

    def run(self, lock_wait: float) -> CheckReport:
        """Look at everything.

        Raises:
            VolumeBusy: somebody has a volume locked.
        """
        began, found = time.monotonic(), self._findings
        try:
            for what in self._catalog.verify():
                found.of_catalog(what)
            self._check_volumes(lock_wait)
            self._check_aggregates()
        except CatalogError as error:
            found.of_catalog(f"it cannot be read any further: {error}")
        return CheckReport(
            problems=tuple(found.problems),
            more=found.more,
            volumes=len(self._volumes),
            aggregates=self._aggregates,
            objects=self._objects,
            spans=found.spans,
            bytes=found.bytes,
            seconds=time.monotonic() - began,
        )

    def _check_volumes(self, lock_wait: float) -> None:
        self._kinds = {pool.name: pool.kind for pool in self._catalog.pools()}
        self._findings.total = sum(usage.live_bytes for usage in self._catalog.usage())
        moved = {pool.name for pool in self._config.pools.values() if pool.moved}
        written = {p.name for p in self._config.pools.values() if p.access is Access.READWRITE}
        checker = VolumeCheck(
            self._catalog, self._engine, self._findings, moved=moved, written=written
        )
        for entry in self._catalog.volumes():
            volume = checker.check(entry, lock_wait)
            if volume is not None:
                self._volumes[entry.volume] = volume
        self._catalog_is_older = checker.catalog_is_older

    # ---- aggregates --------------------------------------------------------------------------------

    def _check_aggregates(self) -> None:
        for entry, contents in self._catalog.contents_of(self._catalog.aggregates()):
            self._check_aggregate(entry, contents)
        self._findings.finish()

    def _check_aggregate(self, entry: AggregateEntry, contents: Contents) -> None:
        self._aggregates += 1
        members, copies, _ = contents
        self._objects += len(members)
        objects = entry.objects - len(entry.erased)
        if len(members) != objects:
            self._findings.of_catalog(
                f"has {len(members)} of the {objects} objects of aggregate "
                f"{entry.aggregate.hex()}: the others are lost to it",
                mend=found_again(entry.node, entry.kind),
            )
        good: set[int] = set()
        demanded: tuple[str, ...] = ()
        for copy in copies:
            checked = CopyCheck(self._findings, self._volumes, entry, members, copy)
            good |= checked.check()
            demanded = demanded or checked.required
        doubtful = [member for member in members if member.member not in good]
        for member, pools in self._unreadable(entry, doubtful, copies):
            self._no_good_copy(member, entry, pools)
        self._check_gaps(entry, contents, demanded)

    def _unreadable(
        self, entry: AggregateEntry, members: Sequence[MemberEntry], copies: Sequence[CopyEntry]
    ) -> Iterator[tuple[MemberEntry, str]]:
        """Those that nobody can read, with the pools that are said to hold them.

        Of what is damaged in every copy an object can still be good by its own bytes, or in one copy here and in another there.
        """
        by_holders: dict[tuple[str, ...], list[MemberEntry]] = {}
        for member in members:
            holders = tuple(copy.pool for copy in copies if copy.holds(member.member))
            by_holders.setdefault(holders, []).append(member)
        for holders, some in by_holders.items():
            asked = [copy for copy in copies if copy.pool in holders]
            reader = CopyReader(entry.aggregate, asked, volumes=self._volume)
            lost = {bad.member for bad in bad_members(some, reader)} if asked else some
            yield from ((member, ", ".join(holders)) for member in some if member in lost)

    def _volume(self, identity: bytes) -> Volume:
        if identity not in self._volumes:
            raise PoolUnavailable("", "its volume cannot be opened")
        return self._volumes[identity]

    def _no_good_copy(self, member: MemberEntry, entry: AggregateEntry, pools: str) -> None:
        if self._catalog_is_older:
            return  # it may be where nobody looked: nobody is told to look for a lost medium, or to send it again
        what = f"no pool has a good copy of version {member.version} of {entry.node}"
        held = f"; said to hold it: {pools}" if pools else ", and none is said to hold it"
        self._findings.note(Problem(what + held, SEND, entry.primary, "", None, member.name))

    def _check_gaps(
        self, entry: AggregateEntry, contents: Contents, demanded: tuple[str, ...]
    ) -> None:
        """Promise 4: required, less held, is what the rows should say; counted as `query gap` counts."""
        known = (entry.primary, *entry.required)
        if demanded and demanded != known:
            self._findings.of_catalog(
                f"says that aggregate {entry.aggregate.hex()} belongs in {', '.join(known)}; its "
                f"headers say {', '.join(demanded)}"
            )
        held = {copy.pool: _held(copy, contents.members) for copy in contents.copies}
        for pool in dict.fromkeys((*(demanded or known), *contents.gaps)):
            if pool not in self._kinds:
                continue  # a rebuild found it in no configuration: there is nothing that could lack it
            count = {
                m.member
                for m in contents.members
                if m.active or self._kinds.get(pool) is not PoolKind.ACTIVE_DATA
            }
            lacking = count - held.get(pool, set())
            noted = _noted(contents, pool, count)
            self._compare_gap(entry, pool, noted, lacking, required=pool in known)

    def _compare_gap(
        self,
        entry: AggregateEntry,
        pool: str,
        noted: set[int] | None,
        lacking: set[int],
        *,
        required: bool,
    ) -> None:
        said = noted or set()
        if said == lacking or (not required and said <= lacking):
            # Of a pool that was not demanded a repair may have noted less than all.
            return
        name = f"aggregate {entry.aggregate.hex()} of {entry.node}"
        if noted is None:
            what = f"{pool} lacks {len(lacking)} objects of {name}, and no gap says so"
        elif not lacking:
            what = f"a gap says that {pool} lacks {len(said)} objects of {name}; it lacks none"
        else:
            what = f"a gap says that {pool} lacks {len(said)} objects of {name}; it lacks {len(lacking)}"
        self._findings.note(Problem(what, RECONCILE, pool, self._catalog.path))


def _held(copy: CopyEntry, members: Sequence[MemberEntry]) -> set[int]:
    """Members that a copy really has bytes of."""
    coverage = Coverage(copy.places)
    return {m.member for m in members if copy.holds(m.member) and coverage.holds(m.start, m.length)}


def _noted(contents: Contents, pool: str, count: set[int]) -> set[int] | None:
    """Which of the members that count a gap names; None: there is no gap."""
    if pool not in contents.gaps:
        return None
    missing = contents.gaps[pool]
    return {index for index in count if missing is None or index in missing}

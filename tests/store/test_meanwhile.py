"""Seeded histories in which things happen in the middle of other things: of an audit, a repair, a long read.

Whoever is told of the progress of an audit or a repair stores, deletes, reads, and repairs other pools, at places that are the same each time.
Between the commands media rot, volumes are given up and the catalog is made anew. Batches and pages are short, so that their borders are met.

What could break: an answer of the catalog that is used after it has changed; a border between two batches at which something is passed over.
"""

from __future__ import annotations

import itertools
import os
import random
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from fanout import audit_stgpool, check_store, rebuild_catalog, retire_volume
from fanout.catalog import Catalog, CatalogReader
from fanout.errors import (
    CatalogError,
    IntegrityError,
    ObjectNotFound,
    PoolUnavailable,
    TransactionFailed,
)
from fanout.store import Store
from tests.faults.devices import scratch

from .histories import POOLS
from .test_delete import sound
from .test_rot import REPAIRS, Rot, key, settle

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.read import ObjectReader
    from fanout.reconcile import ReconcileReport

    from .test_rot import Key


class Meanwhile(Rot):
    """A site where one thing is begun before another has ended."""

    def __init__(self, base: Path, rng: random.Random) -> None:
        super().__init__(base, rng)
        self.busy: list[str] = []  # pools that somebody repairs, "audit" for one of any
        self.readers: list[tuple[Any, ObjectReader, bytes, bytearray]] = []
        self.rotten = self.dying = False
        self.eager = rng.choice((0.05, 0.15, 0.5))
        self.failing = rng.choice((0.0, 0.0, 0.1))
        self.failed: list[Any] = []
        self.clean = rng.random() < 0.4  # nothing rots
        self.lossy = False
        self.reader: Store | None = None  # in another process, for all that it knows

    # ---- in the middle of others -----------------------------------------------------------------

    def meanwhile(self, store: Store) -> Any:
        def progress(_done: int, _total: int) -> None:
            if self.rng.random() < self.eager and len(self.busy) < 4:
                self.something(store)

        return progress

    def something(self, store: Store) -> None:
        if self.rng.random() < self.failing:
            self.fail_or_heal(store)
            return
        what = self.rng.random()
        if what < 0.25 and not self.dying and self.has_room():
            try:
                self.put_some(store)
            except TransactionFailed:  # no primary is left
                assert self.failed
        elif what < 0.5:
            if self.deletes:
                self.delete_some(store)
        elif what < 0.7:
            self.read_on(store)
        elif what < 0.85:
            repair = self.rng.choice(REPAIRS)
            if repair[-1] not in self.busy:
                self.run(store, *repair)
        elif "audit" not in self.busy:
            pool = self.rng.choice(POOLS)
            if pool not in self.busy:
                self.audit(store, pool)

    def has_room(self) -> bool:
        """Whether what is there may become more: a pool that is full is another story."""
        return sum(map(len, self.objects.values())) < 5 << 20

    def fail_or_heal(self, store: Store) -> None:
        """A volume can be written no more, or again."""
        if self.failed and self.rng.random() < 0.5:
            self.failed.pop().next_try = 0.0
            return
        member = self.rng.choice([m for p in store.pools.pools.values() for m in p.members])
        if member.volume is not None:
            member.volume.fail("a test")
            member.next_try = 1e12
            self.failed.append(member)

    def audit(self, store: Store, pool: str) -> int:
        self.read_beside()
        self.busy += [pool, "audit"]
        try:
            report = audit_stgpool(store, pool, fix=True, on_progress=self.meanwhile(store))
        finally:
            del self.busy[-2:]
        self.told.append(f"audit {pool}: {report.marked} marked, {report.mended} mended")
        return report.marked + report.mended

    def run(self, store: Store, work: Any, *pools: str) -> ReconcileReport:
        self.busy.append(pools[-1])
        try:
            report: ReconcileReport = work(store, *pools, on_progress=self.meanwhile(store))
        finally:
            self.busy.pop()
        copied, failed = report.copied_objects, len(report.failed)
        self.told.append(f"{work.__name__} {' '.join(pools)}: {copied} copied, {failed} not")
        return report

    def read_on(self, store: Store) -> None:
        """One reader more, or a piece more of one."""
        rng = self.rng
        if len(self.readers) < 5 and rng.random() < 0.5:
            there = list(store.query_objects())
            if there:
                entry = rng.choice(there)
                made = store.get(entry.node, entry.name, version=entry.version)
                self.readers.append((key(entry), made, self.objects[key(entry)], bytearray()))
            return
        if not self.readers:
            return
        at = rng.randrange(len(self.readers))
        whose, made, data, got = self.readers[at]
        try:
            got += next(made)
            assert data.startswith(got)
            return
        except StopIteration:
            assert bytes(got) == data
        except ObjectNotFound:
            assert whose not in self.objects
        except (IntegrityError, PoolUnavailable):
            assert self.rotten
        del self.readers[at]

    # ---- between ---------------------------------------------------------------------------------

    def give_a_volume_up(self) -> set[bytes]:
        """Whichever, with what it holds; names of what was nowhere else."""
        with self.open(read_only=True) as store:
            paths = [v.path for v in store.query_volumes() if v.live]
        if not paths:
            return set()
        path = self.rng.choice(paths)
        report = retire_volume(self.path, path, force=True)
        self.told.append(f"{os.path.basename(path)} given up, {len(report.lost)} lost")
        os.rename(path, f"{path}.away{len(self.told)}")
        Store.extend(self.path)
        self.lossy |= bool(report.lost)
        return set(report.lost)

    def make_the_catalog_anew(self) -> None:
        readable = self.readable()
        self.end_reader()  # it has the old one
        try:
            report = rebuild_catalog(self.path, force=True)
        except CatalogError as error:
            if "would lose" not in str(error):
                raise
            self.told.append("not rebuilt")
            return
        self.told.append(
            f"rebuilt: {len(report.lost)} lost, {len(report.in_doubt)} in doubt, {len(report.skipped)} skipped"
        )
        # Of what was given up with the last volume that had it nobody knows any more.
        there = self.there()
        assert there <= self.objects.keys()
        for lost in self.objects.keys() - there:
            if lost not in readable or not self.objects[lost]:
                del self.objects[lost]

    def there(self) -> set[Key]:
        with CatalogReader(self.catalog) as catalog:
            return {key(entry) for entry in catalog.objects()}

    def be_killed(self) -> None:
        """A process that does some things ends in the middle of one: before a commit, or behind it."""
        rng, before = self.rng, self.there()
        seed, countdown, behind = rng.random(), rng.randint(1, 12), rng.random() < 0.5
        self.end_reader()
        child = os.fork()
        if child == 0:  # pragma: no cover
            try:
                self.rng, self.dying = random.Random(seed), True
                commit, count = Catalog.commit, itertools.count(1)

                def commit_or_die(catalog: Catalog, group: Any) -> list[int]:
                    last = next(count) == countdown
                    if last and not behind:
                        os._exit(9)
                    numbers = commit(catalog, group)
                    if last:
                        os._exit(9)
                    return numbers

                Catalog.commit = commit_or_die  # type: ignore[assignment, method-assign]
                with self.open() as store:
                    for _ in range(20):
                        self.something(store)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 9)
        self.told.append(f"a process was killed at commit {countdown}" if status else "a process")
        with self.open():
            pass  # else a rebuild would not know of the last commits
        for gone in self.objects.keys() & before - self.there():
            assert self.deletes
            del self.objects[gone]

    def read_beside(self) -> None:
        """By one who has the store open read-only, for long."""
        if self.reader is None:
            self.reader = self.open(read_only=True)
        there = list(self.reader.query_objects())
        for entry in self.rng.sample(there, min(3, len(there))):
            try:
                data = self.reader.get(entry.node, entry.name, version=entry.version).read()
                assert data == self.objects[key(entry)]
            except (IntegrityError, PoolUnavailable):
                assert self.rotten or self.lossy

    def end_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
        self.reader = None

    def step(self) -> None:
        rng = self.rng
        self.read_beside()
        what = rng.random()
        if what < 0.15 and self.there() and not self.clean:
            self.rot()
            self.rotten = True
            self.replace_dead_volumes()
            return
        before = self.readable()
        lost: set[bytes] | None = None
        if what < 0.6:
            with self.open() as store:
                for _ in range(rng.randint(1, 8)):
                    self.something(store)
                    if not self.failed:
                        self.count(store)
                self.readers.clear()
                self.failed.clear()
        elif what < 0.7 and self.has_room():
            self.live(1, transactions=3)
        elif what < 0.78:
            self.be_killed()
        elif what < 0.85:
            lost = self.give_a_volume_up()
        else:
            self.make_the_catalog_anew()
        if not self.rotten and not self.lossy:
            with self.open():
                pass  # directories are brought up to date
            sound(self)
        after = self.readable()
        gone = {one for one in (before & self.objects.keys()) - after if self.objects[one]}
        given_up = self.rotten and lost is not None  # what others hold of it may be damaged
        assert given_up or {name for _, name, _ in gone} <= (lost or set()), gone

    def is_well(self) -> None:
        """Of an aggregate that is not given up a rebuild may have lost what a volume had that was."""
        found = check_store(self.path).problems
        assert [one for one in found if not one.what.endswith(" are lost to it")] == []
        with self.open() as store:
            self.read_everything(store)
            assert store.query_gaps() == []


def borders(rng: random.Random, patch: pytest.MonkeyPatch) -> None:
    """Short batches and pages."""
    for where, values in {
        "fanout.read.WHOLE_BYTES": (8 << 10, 64 << 10, 4 << 20),
        "fanout.read.BATCH_BLOCKS": (2, 8),
        "fanout.reconcile.BATCH_AGGREGATES": (1, 2, 3, 256),
        "fanout.reconcile.BATCH_BYTES": (1, 100_000, 64 << 20),
        "fanout.audit.BATCH_MEMBERS": (1, 2, 5, 4096),
        "fanout.deletion.BATCH_OBJECTS": (1, 2, 3, 4096),
        "fanout.catalog.contents.MOST_AGGREGATES": (1, 2, 3, 256),
        "fanout.catalog.contents.MOST_OBJECTS": (1, 5, 8192),
        "fanout.catalog.reader.PAGE_ROWS": (1, 2, 3, 5000),
        "fanout.scribe.CATCH_UP_BATCH": (1, 2, 512),
        "fanout.scribe.BATCH": (1, 3, 1024),
        "fanout.ahead.LEAST": (4 << 10, 64 << 10),
    }.items():
        patch.setattr(where, rng.choice(values))


def _seeds() -> range:
    """FANOUT_MEANWHILE=100:150 tries those instead."""
    first, _, end = os.environ.get("FANOUT_MEANWHILE", "1:3").partition(":")
    return range(int(first), int(end))


@pytest.mark.parametrize("seed", _seeds())
def test_one_in_the_middle_of_the_other(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    borders(rng, monkeypatch)
    with scratch() as base:  # no power fails: what is flushed need not reach a disk
        site = Meanwhile(base, rng)
        site.deletes = 0.3 * (seed % 2)
        try:
            site.live(1, transactions=5)
            for _ in range(rng.choice((6, 12, 18))):
                site.step()
            site.deletes = 0.0
            monkeypatch.undo()  # read whole, no object has a fault from a damaged neighbour
            settle_quietly(site)
        except BaseException:
            print("\n".join(site.told))
            raise
        finally:
            site.end_reader()


def settle_quietly(site: Meanwhile) -> None:
    site.busy = [""] * 4  # nothing happens meanwhile any more
    settle(site)

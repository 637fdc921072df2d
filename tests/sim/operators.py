"""What operators do, and whether it did what it should: repairs, audits of damage, volumes that are given up, a catalog made anew.

Damage is done here as well, right before: so it is known what must be found, and what must not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanout.audit import audit_stgpool
from fanout.config import Access
from fanout.errors import CommitUnknown, FanoutError
from fanout.rebuild import rebuild_catalog
from fanout.reconcile import backup_stgpool, copy_activedata, restore_stgpool
from fanout.retire import retire_volume
from fanout.store import Store
from tests import independent_reader
from tests.sim import holdings, losses, threads
from tests.sim.beside import Audits, audit_at_once
from tests.sim.coming import Grow, grow
from tests.sim.deleting import Deleting, versions
from tests.sim.oracle import DELETE, Books, check_gaps, comparable, demand
from tests.sim.oracle import audit as judge
from tests.sim.steps import Audit, GiveUp, Rebuild, Retire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fanout.audit import AuditReport
    from fanout.reconcile import ReconcileReport
    from fanout.retire import RetireReport
    from tests.sim.losses import Blocks
    from tests.sim.plan import Episode
    from tests.sim.steps import Spot
    from tests.sim.world import World

CROWDED = 100  # aggregates that the directories of a secondary's volumes have room for, however they came to be there
PAUSE = 100.0  # simulated seconds before a run
LEFT_ASIDE = 0.4  # of the rebuilds at which volumes have come back
MOST_MEMBERS = 100  # of an aggregate


@dataclass(slots=True)
class Away:
    """A volume that was given up, none in its place.

    Attributes:
        kept: what is on it if it comes back; None: it does not.
        named: members of each aggregate that its directory says it holds.
    """

    kept: Blocks | None
    named: set[tuple[str, int]]


class Operators:
    """The operators of one world.

    Attributes:
        away: volumes by path.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.away: dict[str, Away] = {}

    # ---- when ----------------------------------------------------------------------------------------------

    def before(self, episode: Episode | None) -> None:
        """What happens to the closed store."""
        if episode is None and self.away:
            self._make_anew()
        for step in episode.before if episode else ():
            if isinstance(step, Retire):
                self._retire(step)
            elif isinstance(step, Rebuild):
                self._lose_catalog(step)
            elif isinstance(step, Grow):
                grow(self.world, step)

    def work(self, episode: Episode) -> None:
        """What operators do when the clients are done."""
        if episode.reconcile:
            self._reconcile()
        for step in episode.steps:
            if isinstance(step, Audit):
                self._rot_and_audit(step)
            elif isinstance(step, GiveUp):
                self._give_up_what_is_lost()
            elif isinstance(step, Audits):
                audit_at_once(self.world, step, self._rot)

    def come_right(self) -> None:
        """V17: nothing fails any more, so every gap can be closed, and a second run finds nothing to do."""
        world = self.world
        for status in world.store.query_volumes():
            good = status.state in ("available", "full")
            demand(good, "V17", f"{status.path} stays {status.state}: {status.reason}")
        if world.known.rot:
            for pool in world.site.pools:
                self._audit(pool)
        self._give_up_what_is_lost()
        _, left, failed = self._reconcile()
        books = world.books()
        full = [name for name, reason in failed if "no room" in reason or "free" in reason]
        # What was lost may find its place taken by what came later.
        if not (world.site.tight or world.known.hurt) and len(books.aggregates) < CROWDED:
            demand(not failed, "V17", f"could not be copied: {failed}")
            demand(not left, "V17", f"{left} gaps are left")
        demand(len(full) == len(failed), "V17", f"could not be copied: {failed}")
        demand(not books.dead, "V17", f"what was deleted keeps its space: {books.dead}")
        copied, _, _ = self._reconcile()
        demand(not copied, "V17", f"a second run copied {copied} objects")

    # ---- repairs -------------------------------------------------------------------------------------------

    def _reconcile(self) -> tuple[int, int, list[tuple[bytes, str]]]:
        """Primaries from any copy, and every primary into every secondary: copied objects, gaps left, what could not be copied."""
        copied = left = 0
        failed: list[tuple[bytes, str]] = []
        self.world.seconds += PAUSE
        for primary, pool in self._ways():
            report = self._repair(primary, pool)
            if report is not None:
                copied += report.copied_objects
                left += report.gaps_left
                failed += report.failed
        return copied, left, failed

    def _ways(self) -> Iterator[tuple[str, str]]:
        primaries = [name for name, _ in self.world.site.chain]
        if self.world.known.hurt:
            yield from ((primary, primary) for primary in primaries)
        yield from (
            (primary, pool) for primary in primaries for pool in self.world.site.secondaries
        )

    def _repair(self, primary: str, pool: str) -> ReconcileReport | None:
        world = self.world
        try:
            if primary == pool:
                report = restore_stgpool(world.store, primary)
            elif pool[0] == "C":
                report = backup_stgpool(world.store, primary, pool)
            else:
                report = copy_activedata(world.store, primary, pool)
        except FanoutError as error:
            world.note(f"{primary} into {pool}: {error!r}")
            demand(self._excused(), "reconcile", f"{error!r}")
            return None
        world.note(f"{primary} into {pool}: {report.copied_objects}, {report.gaps_left} left")
        return report

    def _excused(self) -> bool:
        world = self.world
        return not world.powered() or bool(world.script) or world.store.refusal is not None

    def _give_up_what_is_lost(self) -> None:
        """Delete what no pool holds any more."""
        world = self.world
        if not world.powered() or any(away.kept is not None for away in self.away.values()):
            return  # it may come back
        lost = {row["id"] for _, _, row in world.books().unheld()}
        for version in versions(world.books()) if lost else ():
            if version.id in lost:
                world.counts["lost for good"] += 1
                Deleting(world, None).one(version)

    # ---- damage --------------------------------------------------------------------------------------------

    def _rot_and_audit(self, step: Audit) -> None:
        world = self.world
        world.thaw()
        if not world.powered():
            return
        held = world.books().places.items()
        places = [place for (_, pool), some in held if pool == step.pool for place in some]
        for spot in step.spots:
            self._rot(step.pool, spot, places)
        if step.catalog_faults:
            world.break_down(step)
        self._audit(step.pool)
        if step.mend:
            self._reconcile()

    def _rot(self, pool: str, spot: Spot, places: Sequence[dict[str, Any]]) -> None:
        world, known = self.world, self.world.known
        found = sorted(places, key=lambda place: (place["path"], place["offset"]))
        if not found:
            return
        place = found[int(spot.span * len(found))]
        foot = holdings.HEAD + place["data_length"]
        first, last = {
            "data": (holdings.HEAD, foot),
            "head": (0, holdings.HEAD),
            "foot": (foot, place["used"]),
        }[spot.part]
        begin = place["offset"] + first + int(spot.at * (last - first))
        end = min(begin + spot.length, place["offset"] + last)
        path = place["path"]
        taken = holdings.overlaps(known.rot, path, begin, end)
        if begin == end or taken or world.medium.unsynced(path, [(begin, end)]):
            return
        world.note(f"{pool}: {begin} to {end} rot, {spot.part} of a span")
        losses.rot(world.medium.disks[path], begin, end)
        known.rot.setdefault(path, []).append((begin, end))
        known.hurt.add(pool)  # if it is marked nobody may hear of it
        world.proved.clear()
        world.counts["rotten"] += 1

    def _audit(self, pool: str) -> None:
        """A pool, with `fix`: what has rotted there is given up, and nothing else."""
        world = self.world
        before = world.books()
        report: AuditReport | None = None
        try:
            report = audit_stgpool(world.store, pool, fix=True)
        except FanoutError as error:
            world.note(f"audit {pool}: {error!r}")
            demand(self._excused(), "audit", f"{error!r}")
            world.unknown = world.unknown or isinstance(error, CommitUnknown)
        after = world.books()
        marked = self._check_audit(pool, before, after, complete=report and not report.unasked)
        world.counts["marked"] += marked
        if report is not None:
            world.note(f"audit {pool}: {report.marked} marked")
            demand(report.marked == marked, "audit", f"{marked} are gaps, told was {report.marked}")
            mine = [volume for volume in world.store.pools.volumes() if volume.pool == pool]
            there = world.store.config.pools[pool].access is not Access.UNAVAILABLE
            good = there and all(volume.writable for volume in mine) and not self.away
            good = good and world.powered()  # a disk without power gives nothing
            demand(not good or not report.unasked, "audit", f"not asked: {report.unasked}")

    def _check_audit(self, pool: str, before: Books, after: Books, *, complete: object) -> int:
        was, now = holdings.held(before), holdings.held(after)
        where = holdings.as_they_were(before, after, but=[pool])
        demand(where, "audit", "spans have gone elsewhere")
        demand(after.objects == before.objects, "audit", "objects have changed")
        marked = 0
        for copy in before.copies:
            key = copy["aggregate"], copy["pool_name"]
            gone = was[key] - now.get(key, set())
            demand(not now.get(key, set()) - was[key], "audit", f"{key} holds more")
            if key[1] != pool:
                demand(not gone, "audit", f"{key} holds less")
                continue
            wrong, frail = holdings.damaged(before, copy, self.world.known.rot)
            rows = before.members(key[0])
            others = [
                c for c in before.copies if c["aggregate"] == key[0] and c["pool_name"] != pool
            ]
            elsewhere = set().union(*(was[key[0], other["pool_name"]] for other in others))
            frail &= elsewhere  # nobody gives up the last good bytes
            doubtful = wrong | {member for member in frail if rows[member]["length"]}
            # What no other pool can show is kept: it may be one's part of an object that they have between them.
            must = (doubtful & self._shown_by(before, others)) | (wrong - elsewhere)
            what = f"{key}: {sorted(gone)} are gaps now, damaged are {sorted(must)}"
            demand(gone <= wrong | frail, "audit", what)
            demand(must <= gone or not complete, "audit", what)
            marked += len(gone)
        return marked

    def _shown_by(self, books: Books, copies: Sequence[dict[str, Any]]) -> set[int]:
        """Members that one of these copies has undamaged, on volumes that can be asked."""
        ill = {one.pool for one in self.world.store.pools.volumes() if not one.writable}
        shown = set[int]()
        for copy in copies:
            if copy["pool_name"] not in ill and not self.away:
                wrong, frail = holdings.damaged(books, copy, self.world.known.rot)
                shown |= holdings.held(books)[copy["aggregate"], copy["pool_name"]] - wrong - frail
        return shown

    # ---- volumes that are lost -------------------------------------------------------------------------------

    def begin_closed(self, salt: object) -> None:
        """The store is closed, and a command works on it."""
        world = self.world
        threads.use(threads.Scheduler(world.rng("threads", "closed", salt)))
        world.medium.begin()
        world.disarm()
        world.proved.clear()

    def end_closed(self) -> None:
        self.world.take()
        self.world.struck = self.world.struck or self.world.medium.struck
        self.world.live = self.world.books().live()
        self.world.look_away()

    def _retire(self, step: Retire) -> None:
        world = self.world
        path = str(world.config.pools[step.pool].volumes[step.volume].path)
        self.begin_closed(step.id)
        before = world.books()
        if path not in {volume["path"] for volume in before.volumes}:
            world.look_away()
            return
        world.note(f"{path} is lost")
        named = _named(path, before)
        kept = losses.lose_disk(world.medium.disks[path])
        back = step.back and not world.known.rot.pop(path, None)
        self.away[path] = Away(kept if back else None, named)
        world.known.hurt.add(step.pool)
        world.ail(step)
        report = self._give_up_volume(path)
        world.disarm()
        self._perhaps_lose_power(step)
        after = world.books()
        if report is None and path in {volume["path"] for volume in after.volumes}:
            demand(_all_of(after) == _all_of(before), "retire", "it failed, and changed something")
            report = self._give_up_volume(path)
            after = world.books()
        self._check_retired(path, step.pool, before, after, report)
        world.counts["retired"] += 1
        self.end_closed()
        if step.anew:
            self._make_anew()

    def _perhaps_lose_power(self, step: Retire) -> None:
        world = self.world
        if step.cut:
            world.lose_all(step.id)

    def _give_up_volume(self, path: str) -> RetireReport | None:
        world = self.world
        world.look_away()
        try:
            report = retire_volume(world.config, path, lock_wait=0)
        except FanoutError as error:
            world.note(f"{path} is not given up: {error!r}")
            demand(world.ailing, "retire", f"{error!r}")
            return None
        world.note(f"{path} is given up: {report.objects} objects")
        return report

    def _check_retired(
        self, path: str, pool: str, before: Books, after: Books, report: RetireReport | None
    ) -> None:
        """What the volume served is held no more, and nothing else has changed. The gaps are checked by V4."""
        was, now = holdings.held(before), holdings.held(after)
        known = {volume["path"] for volume in after.volumes}
        demand(known == {v["path"] for v in before.volumes} - {path}, "retire", f"{known} are left")
        demand(after.objects == before.objects, "retire", "objects have changed")
        due = {
            key: [place for place in places if place["path"] != path]
            for key, places in before.places.items()
        }
        left = {key: places for key, places in due.items() if places}
        demand(after.places == left, "retire", "spans have gone elsewhere")
        count = 0
        for copy in before.copies:
            key = copy["aggregate"], copy["pool_name"]
            gone = was[key] - now.get(key, set())
            must, may = holdings.served_by(before, copy, path)
            what = f"{key}: {sorted(gone)} are gaps now, served were {sorted(must)}"
            demand(must <= gone <= must | may, "retire", what)
            demand(not now.get(key, set()) - was[key], "retire", f"{key} holds more")
            count += len(gone)
        check_gaps(self.world.site, after, self.world.known.hurt)
        if report is not None:
            demand((report.pool, report.objects) == (pool, count), "retire", f"told was {report}")
            lost = Counter(row["name"] for _, _, row in after.unheld())
            lost -= Counter(row["name"] for _, _, row in before.unheld())
            demand(Counter(report.lost) == lost, "retire", f"lost are {lost}, told was {report}")

    def _make_anew(self) -> None:
        """Other volumes take the places of those that were given up."""
        world = self.world
        self.begin_closed("extend")
        made = Store.extend(world.config, force=True, lock_wait=0)
        demand({entry.path for entry in made} == set(self.away), "extend", f"{made}")
        self.away.clear()
        self.end_closed()

    # ---- a lost catalog --------------------------------------------------------------------------------------

    def _lose_catalog(self, step: Rebuild) -> None:
        """V16: what was deleted does not come back, and what lay on volumes that have come back is held again."""
        world = self.world
        world.quietly(step.id)
        self.begin_closed(step.id)
        was = world.books()
        world.look_away()
        found = {path: away for path, away in self.away.items() if away.kept is not None}
        aside = self._is_left_aside(step, was, found)
        back = {} if aside else found
        none = not back and len(self.away) == world.volumes
        if none or holdings.ill(was, world.known.rot) or not self._all_is_told(was, back):
            world.note("the catalog is not lost: the volumes know less")
            return
        for path, away in found.items():
            assert away.kept is not None
            losses.find_disk(world.medium.disks[path], away.kept)
        losses.lose_catalog(world.medium)
        report = rebuild_catalog(world.config, take_retired=not aside, lock_wait=0)
        losses.adopt_catalog(world.medium)
        now = world.books()
        words = "left aside" if aside else "come back"
        world.note(f"the catalog was lost; {len(found)} volumes have {words}")
        world.counts["catalogs lost"] += 1
        world.counts["left aside" if aside else "found again"] += len(found)
        skipped = {volume.path for volume in report.skipped}
        retired = {volume.path for volume in report.retired}
        empty = self.away.keys() - found.keys()
        demand((skipped, retired) == (empty, found.keys() - back.keys()), "V16", f"{report}")
        demand(not report.lost, "V16", f"{report}")
        for path in back:
            del self.away[path]
        self._check_rebuilt(was, now, back)
        self.end_closed()

    def _is_left_aside(self, step: Rebuild, was: Books, found: Mapping[str, Away]) -> bool:
        """Whether volumes that have come back stay away for the rebuild. It needs others, which know what is held and that these were given up."""
        others = len(self.away) < self.world.volumes
        wanted = self.world.rng("aside", step.id).random() < LEFT_ASIDE
        return bool(found) and wanted and others and self._all_is_told(was, {})

    def _all_is_told(self, was: Books, found: Mapping[str, Away]) -> bool:
        """Whether the volumes know of every object: also of what nobody holds, if what held it comes back whole."""
        lost = {(was.aggregates[row["aggregate"]]["uuid"], n) for _, n, row in was.unheld()}
        named = set[tuple[str, int]]().union(*(away.named for away in found.values()))
        return not lost or (lost <= named and len(found) == len(self.away))

    def _check_rebuilt(self, was: Books, now: Books, found: Mapping[str, Away]) -> None:
        """What was deleted comes back only with a volume that nobody waited for any more."""
        world = self.world
        back = _places(now) - _places(was)
        named = set[tuple[str, int]]().union(*(away.named for away in found.values()))
        demand(back <= named, "V2", f"what was deleted is there again: {sorted(back - named)}")
        for sent in world.history.values():
            sent.gone -= {number for number in sent.gone if sent.where[number] in back}
        world.counts["came back"] += len(back)
        # The volume that came back has it alone.
        uuids = {uuid for uuid, _ in back}
        world.known.hurt |= {
            a["primary_pool"] for a in now.aggregates.values() if a["uuid"] in uuids
        }
        judge(world.site, now, world.known, decided=False, proved=world.proved)
        pools = {world.ground.pool_of[path] for path in found}
        same = back or comparable(now, without=pools) == comparable(was, without=pools)
        demand(same, "V16", "the rebuilt catalog is another one")
        held = _held_places(now)
        for pool, members in _held_places(was).items():
            less = members - held.get(pool, set())
            demand(not less, "V16", f"{pool} holds less than before")

    def check_rebuild(self) -> None:
        """V16: from the volumes alone comes the same catalog; nothing is in doubt after a clean end."""
        world = self.world
        path = world.ground.base / "rebuilt.db"
        threads.use(threads.Scheduler(world.rng("rebuild")))
        world.medium.begin()
        try:
            was = world.books()
            if not world.history or not was.aggregates or holdings.ill(was, world.known.rot):
                return
            report = rebuild_catalog(world.config, into=path, lock_wait=0)
            demand(not report.skipped and not report.lost, "V16", f"{report}")
            now = Books.of(str(path))
            demand(comparable(now) == comparable(was), "V16", "the rebuilt catalog is another one")
            check_gaps(world.site, now, world.known.hurt)
            world.counts["rebuilds"] += 1
        finally:
            for name in world.ground.base.glob("rebuilt.db*"):
                name.unlink()


def _held_places(books: Books) -> dict[str, set[tuple[str, int]]]:
    found: dict[str, set[tuple[str, int]]] = {}
    for (number, pool), members in holdings.held(books).items():
        uuid = books.aggregates[number]["uuid"]
        found.setdefault(pool, set()).update((uuid, member) for member in members)
    return found


def _places(books: Books) -> set[tuple[str, int]]:
    return {version.place for version in versions(books)}


def _named(path: str, books: Books) -> set[tuple[str, int]]:
    """Members of which the directory of a volume says that it holds them, or a part of them; and that it deletes nothing of."""
    numbers = {aggregate["uuid"]: aggregate["objects"] for aggregate in books.aggregates.values()}
    named: set[tuple[str, int]] = set()
    with open(path, "rb") as file:
        for uuid, record in independent_reader.Volume(file).records.items():
            runs = record["ranges"]
            if record["all"]:
                runs = [(0, numbers.get(uuid.hex(), MOST_MEMBERS))]
            for first, count in runs if record["op"] != DELETE else ():
                named |= {(uuid.hex(), first + n) for n in range(count)}
            for first, count in record["deleted"]:
                named -= {(uuid.hex(), first + n) for n in range(count)}
    return named


def _all_of(books: Books) -> tuple[Any, ...]:
    return books.aggregates, books.objects, books.copies, books.places, books.gaps, books.volumes

"""Deletes versions of objects as a plan says; the model chooses by itself which these are, and remembers what it was told."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout.errors import CatalogError, CommitUnknown, FanoutError
from fanout.types import ObjectKind
from tests.sim import threads
from tests.sim.oracle import KINDS, Doubt, Fate, demand, learn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fanout.deletion import DeleteReport
    from tests.sim.oracle import Books
    from tests.sim.steps import Delete
    from tests.sim.world import World


class Version(NamedTuple):
    """One version that is there: its number, transaction and place."""

    id: int
    node: str
    kind: str
    name: bytes
    length: int
    tx: str
    place: tuple[str, int]


def versions(books: Books) -> list[Version]:
    """All, the oldest first."""
    return sorted(
        Version(
            row["id"], aggregate["node_name"], KINDS[aggregate["kind"]], row["name"], row["length"],
            aggregate["tx"], (aggregate["uuid"], member),
        )
        for number, aggregate in books.aggregates.items()
        for member, row in books.members(number).items()
    )  # fmt: skip


class Deleting:
    """One deletion.

    Args:
        world: that it happens in.
        step: of the plan; None: see `one`.
        alone: nobody else does anything meanwhile; else one version goes whose transaction was acknowledged.
    """

    def __init__(self, world: World, step: Delete | None, *, alone: bool = True) -> None:
        self.world, self.step, self.alone = world, step, alone

    def run(self) -> None:
        """As the plan says."""
        world, step = self.world, self.step
        assert step is not None
        for _ in range(0 if self.alone else step.after):
            threads.current().breathe()
        if not world.powered():
            return
        if self.alone and (step.faults or step.catalog_faults):
            world.break_down(step)
        books = world.books()
        there = self._known(versions(books))
        if not there:
            return
        rng = world.rng("delete", step.id)
        one = rng.choice(there)
        how = step.how if self.alone else "version"
        wanted, options = _selection(how, one, there, step.keep)
        if not wanted:
            return
        names = None if how == "expire" else one.name
        if step.preview and self.alone:
            self._preview(one, names, wanted, options)
        self._delete(one, names, wanted, options)

    def one(self, version: Version) -> None:
        """Delete this version."""
        self._learn([version])
        self._delete(version, version.name, [version], {"version": version.id})

    # ---- which -------------------------------------------------------------------------------------------

    def _known(self, there: Sequence[Version]) -> list[Version]:
        """Those that may be chosen: no one else is at them."""
        self._learn(there)
        taken = set().union(*self.world.known.doubts)
        return [
            version
            for version in there
            if self.alone
            or (
                self.world.history[version.tx].fate is Fate.STORED
                and self._number(version) not in taken
            )
        ]

    def _learn(self, there: Iterable[Version]) -> None:
        found: dict[str, list[Version]] = defaultdict(list)
        for version in there:
            found[version.tx].append(version)
        by_id = {
            row["id"]: row for rows in self.world.books().objects.values() for row in rows.values()
        }
        for tx, mine in found.items():
            sent = self.world.history[tx]
            if not sent.where:
                rows = [by_id[version.id] for version in mine]
                objects = [(row["name"], row["length"], row["digest"]) for row in rows]
                learn(sent, dict(zip([v.place for v in mine], objects, strict=True)))

    def _number(self, version: Version) -> tuple[str, int]:
        return version.tx, self.world.history[version.tx].where.index(version.place)

    # ---- doing it ----------------------------------------------------------------------------------------

    def _preview(
        self, one: Version, names: bytes | None, wanted: Sequence[Version], options: dict[str, Any]
    ) -> None:
        store, kind = self.world.store, ObjectKind(one.kind)
        try:
            told = store.delete(one.node, names, kind=kind, preview=True, **options)
        except FanoutError as error:
            self.world.note(f"no preview: {error!r}")
            demand(self._excused(), "delete", f"{error!r}")
            return
        size = sum(version.length for version in wanted)
        good = (told.objects, told.object_bytes) == (len(wanted), size)
        demand(good, "V3", f"a preview says {told}, {len(wanted)} of {size} bytes would go")

    def _excused(self) -> bool:
        return not self.world.powered() or bool(self.world.script)

    def _delete(
        self, one: Version, names: bytes | None, wanted: Sequence[Version], options: dict[str, Any]
    ) -> None:
        world, known = self.world, self.world.known
        doubt: Doubt = frozenset(map(self._number, wanted))
        known.doubts.append(doubt)
        unknown, away = world.unknown, self._one_is_away()
        world.note(f"delete {sorted(v.id for v in wanted)} of {one.node}: {options}")
        try:
            report = world.store.delete(one.node, names, kind=ObjectKind(one.kind), **options)
        except CatalogError as error:
            self._failed(error)
            known.doubts.remove(doubt)
        except CommitUnknown as error:
            self._failed(error)
            world.unknown = True
        except FanoutError as error:
            world.note(f"{error!r}")
            demand(not world.powered(), "V6", f"an error that nothing explains: {error!r}")
        else:
            known.doubts.remove(doubt)
            self._told(wanted, report, unknown=unknown, away=away)

    def _failed(self, error: FanoutError) -> None:
        self.world.note(f"{error!r}")
        # Of several that commit together each hears of a fault that another one brought along.
        excused = self._excused() or self.world.store.refusal is not None or not self.alone
        demand(excused, "V6", f"an error that nothing explains: {error!r}")

    def _one_is_away(self) -> bool:
        """Whether there is a volume that nobody can write to."""
        volumes = list(self.world.store.pools.volumes())
        missing = len(volumes) < self.world.volumes
        return missing or not all(volume.writable for volume in volumes)

    def _told(
        self, wanted: Sequence[Version], report: DeleteReport, *, unknown: bool, away: bool
    ) -> None:
        world = self.world
        books = world.books()
        left = {version.id for version in versions(books)}
        gone = [version for version in wanted if version.id not in left]
        world.note(f"gone are {len(gone)}, postponed {len(report.postponed)}")
        demand(not (unknown and gone), "U", "deleted while a commit was in doubt")
        told = (report.objects, report.object_bytes, len(report.postponed))
        true = (len(gone), sum(v.length for v in gone), len(wanted) - len(gone))
        demand(told == true, "V3", f"deleted, bytes, postponed are {true}, told was {told}")
        names = sorted(version.name for version in wanted if version.id in left)
        demand(names == sorted(name for name, _ in report.postponed), "V3", f"postponed: {names}")
        if any(reason.startswith("no volume") for _, reason in report.postponed):
            # It may be back by now: beside a deletion sessions open what failed before.
            some = away or self._one_is_away()
            demand(some, "delete", f"volumes are there: {report.postponed}")
        for version in gone:
            sent = world.history[version.tx]
            sent.fate = Fate.STORED
            sent.gone.add(self._number(version)[1])
        world.counts["deleted"] += len(gone)


def _selection(
    how: str, one: Version, there: Sequence[Version], keep: int
) -> tuple[list[Version], dict[str, Any]]:
    """The versions that must go, and what to say."""
    same = [v for v in there if (v.node, v.kind) == (one.node, one.kind)]
    by_name: dict[bytes, list[Version]] = defaultdict(list)
    for version in same:
        by_name[version.name].append(version)
    beyond = {name: mine[: max(0, len(mine) - keep)] for name, mine in by_name.items()}
    match how:
        case "active":
            return by_name[one.name][-1:], {}
        case "version":
            return [one], {"version": one.id}
        case "keep":
            return beyond[one.name], {"keep": keep}
        case _:
            return [version for mine in beyond.values() for version in mine], {"keep": keep}

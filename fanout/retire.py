"""Gives a lost volume up: all that it served becomes gaps, so that a repair can close them, and the catalog forgets it.

As in an audit the copies shrink and their gaps appear in one commit, and what no pool holds any more is named. The modelled system
has RESTORE VOLUME for it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout import config as configuration
from fanout.audit import gap_of, held_by, wants_only_active
from fanout.catalog import Catalog, MemberSet, Shrunk
from fanout.config import Config
from fanout.errors import (
    CatalogStale,
    FanoutError,
    TargetError,
    VolumeBusy,
    VolumeError,
    VolumeStale,
)
from fanout.making import probe, volume_sites
from fanout.opening import is_the_hosts
from fanout.store import LOCK_WAIT, open_engine
from fanout.types import FaultClass
from fanout.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.catalog import CopyEntry, MemberEntry, VolumeEntry
    from fanout.engine import Engine


@dataclass(frozen=True, slots=True)
class RetireReport:
    """What a volume took along.

    Attributes:
        pool: that it belonged to.
        objects: versions that the pool lacks now.
        object_bytes: of these.
        lost: names of those that no pool holds any more.
    """

    pool: str
    objects: int
    object_bytes: int
    lost: tuple[bytes, ...]


def retire_volume(
    config: Config | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    lock_wait: float = LOCK_WAIT,
) -> RetireReport:
    """Give a lost volume of a closed store up: what it served becomes gaps, and the catalog forgets it.

    If its path stays in the configuration, `Store.extend` makes a new volume there.

    Args:
        config: a configuration, or the path of one.
        path: of the volume, as the catalog knows it.
        force: also a volume that can be opened and is what the catalog says, or of which nobody can say now whether it is.
        lock_wait: seconds to wait for a writer that is on its way out.

    Raises:
        CatalogBusy: the store is open for writing.
        CatalogError: there is no catalog, or it could not be changed. Try again: if it was changed all the same, it knows no such volume.
        CatalogStale: (without `force`) the volume is newer than the catalog.
        VolumeBusy: (without `force`) somebody has the volume open.
        VolumeError: the catalog knows no volume at that path; or (without `force`) it is well, here or at another path, or this machine is short of something.
    """
    loaded = config if isinstance(config, Config) else configuration.load(config)
    where = os.path.abspath(os.fspath(path))
    with Catalog.open(loaded.store.catalog, lock_wait=lock_wait) as catalog:
        known = {entry.path: entry for entry in catalog.volumes()}
        if where not in known:
            there = ", ".join(known) or "none"
            raise VolumeError(where, f"the catalog knows no volume at this path; it knows: {there}")
        entry = known[where]
        if not force and _is_well(loaded, catalog, entry, lock_wait):
            raise VolumeError(
                where, "it is well; say force (--force) to give up what it holds all the same"
            )
        objects, size, lost, shrunk = _losses(catalog, entry)
        catalog.retire(entry.volume, shrunk)
    return RetireReport(entry.pool, objects, size, tuple(lost))


def _is_well(config: Config, catalog: Catalog, entry: VolumeEntry, lock_wait: float) -> bool:
    """Whether the volume can be opened and is what the catalog knows. Writes nothing.

    Raises:
        VolumeBusy, VolumeError, CatalogStale: it cannot be opened, and for all that is known it is not lost.
    """
    with open_engine(config) as engine:
        try:
            Volume.open(
                engine,
                entry.path,
                store=catalog.store_id,
                pool=entry.pool,
                volume=entry.volume,
                catalog_epoch=entry.epoch,
                size=entry.size,
                lock_wait=lock_wait,
                moved=entry.pool in config.pools and config.pools[entry.pool].moved,
                claim=False,
                vouched=True,
            ).close()
        except VolumeBusy:
            raise
        except VolumeStale as error:
            if error.catalog_is_older:
                raise CatalogStale(catalog.path, f"is no judge of what is lost: {error}") from error
            return False
        except FanoutError as error:
            if is_the_hosts(error) or _is_forbidden(error):
                why = error.message if isinstance(error, VolumeError) else str(error)
                message = f"{why}: that does not make it lost; mend that, or say force (--force)"
                raise VolumeError(entry.path, message) from error
            place = _elsewhere(config, catalog, engine, entry)
            if place is not None:
                message = (
                    f"the volume lies at {place}: that does not make it lost; put it back in its place, or take the places as they are "
                    "with 'fanout rebuild catalog --force', or say force (--force)"
                )
                raise VolumeError(entry.path, message) from error
            return False
        return True


def _elsewhere(config: Config, catalog: Catalog, engine: Engine, entry: VolumeEntry) -> str | None:
    """Another path of the store's at which a volume lies."""
    named = [path for _, path in volume_sites(config)]
    for path in dict.fromkeys([*named, *(one.path for one in catalog.volumes())]):
        with suppress(FanoutError, OSError):
            block = probe(engine, path) if path != entry.path else None
            if block is not None and block.volume == entry.volume:
                return path
    return None


def _is_forbidden(error: FanoutError) -> bool:
    """Whether it is there, and this user, or nobody for now, may write to it."""
    return isinstance(error.__cause__, TargetError) and (
        error.__cause__.outcome.cls is FaultClass.ACCESS
    )


def _losses(catalog: Catalog, volume: VolumeEntry) -> tuple[int, int, list[bytes], list[Shrunk]]:
    """What the volume serves: objects, bytes, names of what nobody else has, and how each copy shrinks."""
    count = size = 0
    gone: list[bytes] = []
    shrunk: list[Shrunk] = []
    reason = f"volume {volume.path} was lost"
    active = wants_only_active(catalog, volume.pool)
    for entry, contents in catalog.contents_of(catalog.aggregates(volume=volume.volume)):
        copy = contents.copy_in(volume.pool)
        if copy is None:
            continue
        served = _served_by(volume.volume, copy, contents.members)
        lost = {member.member for member in served}
        left = held_by(entry, copy) - MemberSet.of(lost) if lost else copy.present
        if all(place.volume == volume.volume for place in copy.places):
            left = (held_by(entry, copy) if left is None else left) - entry.erased
        gap = gap_of(entry, contents, copy.pool, lost, reason, active=active) if lost else None
        shrunk.append(Shrunk(entry.aggregate, copy.pool, left, gap))
        count, size = count + len(served), size + sum(member.length for member in served)
        others = [other for other in contents.copies if other is not copy]
        gone += [m.name for m in served if not any(o.holds(m.member) for o in others)]
    return count, size, gone, shrunk


def _served_by(volume: bytes, copy: CopyEntry, members: Sequence[MemberEntry]) -> list[MemberEntry]:
    """The members that a copy gives from a volume, all of them or a part."""
    return [
        member
        for member in members
        if copy.holds(member.member)
        and any(place.volume == volume for place in copy.servers(member.start, member.length))
    ]

"""What can be asked of a store that is open, also read-only: objects, and how it stands.

Answers come from the catalog, and about space from the volumes that are open.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fanout.config import Access, DeviceType
from fanout.errors import InterfaceError, ObjectNotFound, PoolUnavailable, UnknownPool
from fanout.pool import UNUSED
from fanout.read import CopyReader, ObjectReader
from fanout.types import PoolKind, checked_kind
from fanout.units import name_bytes, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout import config as configuration
    from fanout.ahead import ReadAhead
    from fanout.catalog import CatalogReader, CopyEntry, GapEntry, ObjectEntry, OccupancyEntry
    from fanout.config import Config
    from fanout.engine import Engine
    from fanout.pool import VolumeStatus
    from fanout.pools import PoolSet
    from fanout.types import ObjectKind
    from fanout.volume import Volume

_log = logging.getLogger("fanout.store")

# Order in which copies are asked; see fanout/read.py.
_DEVICE_RANK = {DeviceType.DISK: 0, DeviceType.FILE: 1}
_KIND_RANK = {PoolKind.PRIMARY: 0, PoolKind.ACTIVE_DATA: 1, PoolKind.COPY: 2}


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool as `query stgpool` shows it; sizes in bytes.

    Attributes:
        name: of the pool.
        kind: primary, copy or active-data.
        device_class: name.
        access: readwrite, readonly or unavailable.
        size: of its volumes.
        live: committed.
        free: of the volumes that can be written.
        volumes: how many it has.
        writable: how many of them can be written now.
        objects: versions that it holds.
        bytes: of these.
        lacks_objects: what the rules demand that it should hold and does not; see `query_gaps`.
        lacks_bytes: of these.
    """

    name: str
    kind: PoolKind
    device_class: str
    access: Access
    size: int
    live: int
    free: int
    volumes: int
    writable: int
    objects: int
    bytes: int
    lacks_objects: int
    lacks_bytes: int


class StoreReader:
    """The half of a `Store` that changes nothing.

    Attributes:
        config: as it was loaded.
        engine: that does all I/O.
        catalog: a `Catalog`, or a `CatalogReader` of a read-only store.
        pools: the pools and their volumes.
    """

    def __init__(
        self,
        config: Config,
        catalog: CatalogReader,
        engine: Engine,
        pools: PoolSet,
        *,
        unused: Sequence[VolumeStatus] = (),
    ) -> None:
        self.config, self.catalog, self.engine, self.pools = config, catalog, engine, pools
        self._unused = unused
        self._closed, self._process = False, os.getpid()

    def _must_be_open(self) -> None:
        if os.getpid() != self._process:
            raise InterfaceError(
                f"{self.config.path}: this is a forked child of process {self._process}, which opened the store: fork before, or start processes with 'spawn'"
            )
        if self._closed:
            raise InterfaceError(f"{self.config.path}: the store is closed")

    # ---- reading -----------------------------------------------------------------------------------

    def get(
        self,
        node: str,
        name: str | bytes,
        *,
        kind: ObjectKind | None = None,
        version: int | None = None,
        pool: str | None = None,
    ) -> ObjectReader:
        """Read an object: from the copy that is best to read, and from the others when it fails.

        Args:
            node: whose object.
            name: bytes, or text (UTF-8, with surrogate escapes).
            kind: None: whichever is the newest.
            version: None: the newest.
            pool: only from this one; None: from any, in the order that fanout/read.py gives.

        Returns:
            An iterator of buffers. Its bytes are checked before they are handed out; a large object's digest at its end.

        Raises:
            ObjectNotFound: no such object or version, or not in that pool.
            UnknownPool: no such pool or node.
            InterfaceError: the store is closed.
        """
        self._must_be_open()
        encoded = name_bytes(name)
        owner = self.node_name(node)
        wanted_kind = None if kind is None else checked_kind(kind)
        entry = self.catalog.find(owner, encoded, kind=wanted_kind, version=version)
        if entry is None:
            which = "" if version is None else f"version {version} of "
            raise ObjectNotFound(f"{owner} has no {which}object {quoted(encoded)}")
        wanted = None if pool is None else self.pool_name(pool)
        copies = [
            copy
            for copy in self.catalog.copies(entry.aggregate)
            if copy.holds(entry.member) and wanted in (None, copy.pool)
        ]
        if not copies and wanted is not None:
            raise ObjectNotFound(
                f"{wanted} does not hold {quoted(encoded)}, version {entry.version}"
            )

        def there() -> bool:
            self._must_be_open()  # else nothing can be said of the object
            return self.catalog.find(owner, encoded, version=entry.version) is not None

        return ObjectReader(entry, self.reader(entry.aggregate, copies), there=there)

    def reader(
        self, aggregate: bytes, copies: Sequence[CopyEntry], *, ahead: ReadAhead | None = None
    ) -> CopyReader:
        """Reads an aggregate's data from these copies, in the order of preference."""
        best_first = sorted(copies, key=self._preference)
        return CopyReader(aggregate, best_first, volumes=self._readable, ahead=ahead)

    def _preference(self, copy: CopyEntry) -> tuple[int, int, int]:
        pool = self.config.pools.get(copy.pool)
        if pool is None:
            return 9, 9, 9  # not configured any more: asked last, and says so
        device = self.config.device_classes[pool.device_class].type
        names = list(self.config.pools)
        return _DEVICE_RANK[device], _KIND_RANK[pool.kind], names.index(pool.name)

    def _readable(self, identity: bytes) -> Volume:
        """The open volume, or why it cannot be read."""
        volume = self.pools.volume(identity)
        if volume is None:
            self.pools.meet()
            volume = self.pools.volume(identity)
        if volume is not None:
            access = self.config.pools[volume.pool].access
            if access is Access.UNAVAILABLE:
                raise PoolUnavailable(volume.pool, "its access is unavailable")
            return volume
        for status in self.pools.status():
            if status.volume == identity:
                why = f"{status.path}: {status.reason or 'is not open'}"
                raise PoolUnavailable(status.pool, why)
        for entry in self.catalog.volumes():
            if entry.volume == identity:
                raise PoolUnavailable(entry.pool, f"{entry.path}: its pool is not configured")
        raise PoolUnavailable("?", f"the catalog knows no volume {identity.hex()}")

    def older_than(self) -> str:
        """Why the catalog is an old one; empty: no volume says so. It then lacks what was stored since, and knows of no gap in it."""
        self._must_be_open()
        return next(iter(self.pools.older), "")

    # ---- questions -----------------------------------------------------------------------------------

    def query_stgpools(self) -> list[PoolStatus]:
        """Every pool: what it is, how full it is, what it holds, and what it lacks."""
        self._must_be_open()
        held: dict[str, tuple[int, int]] = {}
        for entry in self.catalog.occupancy():
            objects, size = held.get(entry.pool, (0, 0))
            held[entry.pool] = objects + entry.objects, size + entry.bytes
        lacks: dict[str, tuple[int, int]] = {}
        for gap in self.catalog.gaps():
            objects, size = lacks.get(gap.pool, (0, 0))
            lacks[gap.pool] = objects + gap.objects, size + gap.bytes
        volumes = self.query_volumes()
        return [
            _pool_status(pool, volumes, held.get(pool.name, (0, 0)), lacks.get(pool.name, (0, 0)))
            for pool in self.config.pools.values()
        ]

    def query_volumes(self) -> list[VolumeStatus]:
        """Every volume, open or not, with its state, the reason for it, and its space; also those that are in use by no pool."""
        self._must_be_open()
        self.pools.meet()
        # Asking a volume is what notices that the engine has let its target go.
        dead = [volume.path for volume in self.pools.volumes() if not volume.writable]
        _log.debug("volumes that cannot be written: %s", dead)
        live = {usage.volume: usage.live_bytes for usage in self.catalog.usage()}
        return [
            # Only a volume that is open for writing knows its regions; of the others the catalog knows what is live.
            status if status.live else replace(status, live=live.get(status.volume, 0))
            for status in (*self.pools.status(), *self._unused)
        ]

    def query_objects(
        self,
        *,
        node: str | None = None,
        name: str | bytes | None = None,
        pool: str | None = None,
        active_only: bool = False,
    ) -> Iterator[ObjectEntry]:
        """Objects and versions that fit, in the order in which they were stored.

        Raises:
            UnknownPool: no such pool or node, neither now nor in the catalog; so do the other questions.
        """
        self._must_be_open()
        return self.catalog.objects(
            node=None if node is None else self.node_name(node),
            name=None if name is None else name_bytes(name),
            pool=None if pool is None else self.pool_name(pool),
            active_only=active_only,
        )

    def query_occupancy(
        self, *, node: str | None = None, pool: str | None = None
    ) -> list[OccupancyEntry]:
        """How much of each node lies in each pool: the way to compare pools by counts."""
        self._must_be_open()
        return self.catalog.occupancy(
            node=None if node is None else self.node_name(node),
            pool=None if pool is None else self.pool_name(pool),
        )

    def query_gaps(
        self, *, pool: str | None = None, primary: str | None = None, node: str | None = None
    ) -> list[GapEntry]:
        """What is missing where: which pool lacks how many objects and bytes, since when, and why. The oldest first."""
        self._must_be_open()
        return self.catalog.gaps(
            pool=None if pool is None else self.pool_name(pool),
            primary=None if primary is None else self.pool_name(primary),
            node=None if node is None else self.node_name(node),
        )

    # ---- names ---------------------------------------------------------------------------------------

    def pool_name(self, name: str) -> str:
        """A pool's own name, found in any case; also of one that only the catalog knows.

        Raises:
            InterfaceError: the store is closed.
            UnknownPool: nobody knows it: it has no answer, rather than an empty one.
        """
        self._must_be_open()
        try:
            return self.config.pool(name).name
        except UnknownPool:
            if (known := self._pool_of_the_catalog(name)) is None:
                raise
            return known

    def node_name(self, name: str) -> str:
        """A node's own name, found in any case; also of one that is not configured any more and has stored something.

        Raises:
            InterfaceError: the store is closed.
            UnknownPool: nobody knows it.
        """
        self._must_be_open()
        try:
            return self.config.node(name).name
        except UnknownPool:
            if (known := _in_any_case(name, self.catalog.nodes())) is None:
                raise
            return known

    def configured_pool(self, name: str) -> configuration.Pool:
        """What the configuration says of a pool, whose name is found in any case.

        Raises:
            UnknownPool: nothing; of a pool that the catalog knows the mend is another.
        """
        try:
            return self.config.pool(name)
        except UnknownPool:
            if (known := self._pool_of_the_catalog(name)) is None:
                raise
            message = f"the catalog knows this pool, and {self.config.path} does not; write [pools.{known}] there again"
            raise UnknownPool(known, message) from None

    def _pool_of_the_catalog(self, name: str) -> str | None:
        return _in_any_case(name, [entry.name for entry in self.catalog.pools()])


def _in_any_case(name: str, known: Iterable[str]) -> str | None:
    return next((one for one in known if one.lower() == name.lower()), None)


def _pool_status(
    pool: configuration.Pool,
    volumes: Sequence[VolumeStatus],
    held: tuple[int, int],
    lacks: tuple[int, int],
) -> PoolStatus:
    mine = [one for one in volumes if one.pool == pool.name and one.state != UNUSED]
    writable = [volume for volume in mine if volume.state == "available"]
    return PoolStatus(
        name=pool.name,
        kind=pool.kind,
        device_class=pool.device_class,
        access=pool.access,
        size=sum(volume.size for volume in mine),
        live=sum(volume.live for volume in mine),
        free=sum(volume.free for volume in writable),
        volumes=len(mine),
        writable=len(writable),
        objects=held[0],
        bytes=held[1],
        lacks_objects=lacks[0],
        lacks_bytes=lacks[1],
    )

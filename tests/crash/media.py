"""A store as it lies there: configuration, catalog and volumes, read without a line of fanout.

The catalog is copied (database and log) and the copy is opened, so that looking at it changes nothing. Volumes are read with plain
`os.pread` through `tests/independent_reader.py`. The locks of all of them are taken first: the kernel grants them only when
the last write of whoever died has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tests.independent_reader import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

KINDS = ("backup", "archive", "space-managed")
LOCK_SECONDS = 45.0  # longer than the fault file system holds anything
_POLL_SECONDS = 0.002


class Locked(Exception):
    """A lock was not free in time."""


# ---- configuration ---------------------------------------------------------------------------------


class Rules:
    """What a `fanout.toml` demands, by a model of its own (rules R6 and R19)."""

    def __init__(self, path: Path) -> None:
        self.base = path.parent
        self.text: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        self.pools: dict[str, dict[str, Any]] = self.text["pools"]

    @property
    def catalog(self) -> Path:
        """Of the database."""
        return self.base / str(self.text["store"]["catalog"])

    def chain(self, node: str) -> list[str]:
        """The primaries that a node's objects may end on."""
        name: str | None = self._domain(node)["destination"]
        found = []
        while name is not None:
            found.append(name)
            name = self.pools[name].get("next")
        return found

    def demanded(self, node: str, kind: str) -> list[str]:
        """The secondaries that must hold a node's objects: the destination's, wherever in the chain they end."""
        first = self.pools[self.chain(node)[0]]
        allowed = self._domain(node).get("active_destinations", [])
        active = [pool for pool in first.get("active_data_pools", []) if pool in allowed]
        return [*first.get("copy_pools", []), *(active if kind == "backup" else [])]

    def repairs(self) -> Iterator[tuple[str, str, bool]]:
        """(primary, pool, whether it is an active-data pool): every repair that closes gaps."""
        seen = set()
        for node in self.text["nodes"]:
            for kind in KINDS:
                for pool in self.demanded(node, kind):
                    for primary in self.chain(node):
                        if (primary, pool) not in seen:
                            seen.add((primary, pool))
                            yield primary, pool, self.is_active(pool)

    def primaries(self) -> set[str]:
        """Names of the primary pools."""
        return {name for name, pool in self.pools.items() if pool["type"] == "primary"}

    def is_active(self, pool: str) -> bool:
        """Whether it is an active-data pool."""
        return bool(self.pools[pool]["type"] == "active-data")

    def _domain(self, node: str) -> dict[str, Any]:
        domain: dict[str, Any] = self.text["domains"][self.text["nodes"][node]["domain"]]
        return domain


# ---- volumes ---------------------------------------------------------------------------------------


class Pread:
    """A file that `independent_reader` can read: every read is one `os.pread`."""

    def __init__(self, fd: int) -> None:
        self._fd, self._at = fd, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Only from the beginning, or to the end."""
        self._at = offset if whence == os.SEEK_SET else os.lseek(self._fd, 0, os.SEEK_END)
        return self._at

    def read(self, length: int) -> bytes:
        """Up to so many bytes."""
        return os.pread(self._fd, length, self._at)


@contextlib.contextmanager
def locked(path: str | Path, *, medium: Path | None = None) -> Iterator[int]:
    """A descriptor to read from, while the file or device is locked. `medium`: read this instead. Raises `Locked`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Locked(f"{path}: locked for more than {LOCK_SECONDS} s") from None
                time.sleep(_POLL_SECONDS)
        # What the kernel cached before the power failed is not what is on the medium.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if medium is None:
            yield fd
            return
        below = os.open(medium, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield below
        finally:
            os.close(below)
    finally:
        os.close(fd)


# ---- the catalog -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Place:
    """A span of a copy, as the catalog has it. `volume`: UUID."""

    number: int
    volume: bytes
    offset: int
    length: int
    used: int
    data_start: int
    data_length: int


@dataclass(slots=True)
class Copy:
    """What a pool holds of an aggregate. `members`: their indexes."""

    pool: str
    csn: int
    members: frozenset[int]
    places: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class Member:
    """An object of an aggregate."""

    index: int
    version: int
    name: bytes
    start: int
    length: int
    digest: bytes
    active: bool


@dataclass(slots=True)
class Aggregate:
    """One aggregate with all that hangs on it. `gaps`: missing members by pool; `erased`: members that were deleted."""

    uuid: bytes
    transaction: bytes
    attempt: int
    csn: int
    node: str
    kind: str
    primary: str
    bytes: int
    required: list[str]
    first_object: int
    objects: int
    members: dict[int, Member] = field(default_factory=dict)
    copies: dict[str, Copy] = field(default_factory=dict)
    gaps: dict[str, frozenset[int]] = field(default_factory=dict)
    erased: frozenset[int] = frozenset()

    @property
    def everything(self) -> frozenset[int]:
        """All members that are left."""
        return frozenset(range(self.objects)) - self.erased


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory in memory, if there is one."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="oracle-", dir=memory) as directory:
        yield Path(directory)


class CatalogCopy:
    """A private copy of a catalog, read with plain SQL.

    Attributes:
        csn: of the last commit.
        volumes: rows by UUID: pool, path, size, granule, epoch.
        aggregates: by UUID, in order of commit.
        dead: commit that deleted each aggregate that a directory may still name.
        dead_regions: (volume, offset, length, aggregate) that these keep.
        complaints: what SQLite itself finds wrong.
    """

    def __init__(self, path: Path) -> None:
        with scratch() as directory:
            copy = directory / "copy.db"
            shutil.copyfile(path, copy)
            if Path(f"{path}-wal").exists():
                shutil.copyfile(f"{path}-wal", f"{copy}-wal")
            with contextlib.closing(sqlite3.connect(copy)) as db:
                self._load(db)

    def _load(self, db: sqlite3.Connection) -> None:
        db.row_factory = sqlite3.Row
        integrity = [row[0] for row in db.execute("PRAGMA integrity_check")]
        self.complaints = [text for text in integrity if text != "ok"]
        self.complaints += [
            f"foreign key of {row[0]}" for row in db.execute("PRAGMA foreign_key_check")
        ]
        self.store = bytes.fromhex(db.execute("SELECT uuid FROM store").fetchone()[0])
        self.csn = int(db.execute("SELECT csn FROM store").fetchone()[0])
        self._pools = {row["id"]: row["name"] for row in db.execute("SELECT id, name FROM pool")}
        self._nodes = {row["id"]: row["name"] for row in db.execute("SELECT id, name FROM node")}
        rows = db.execute("SELECT * FROM volume ORDER BY id").fetchall()
        self.volumes = {
            bytes.fromhex(row["uuid"]): {**dict(row), "pool": self._pools[row["pool"]]}
            for row in rows
        }
        self._volume_ids = {row["id"]: bytes.fromhex(row["uuid"]) for row in rows}
        self.attempts = [
            (bytes.fromhex(row["tx"]), row["attempt"], row["state"])
            for row in db.execute("SELECT tx, attempt, state FROM attempt")
        ]
        self._ids: dict[int, Aggregate] = {}
        self._load_aggregates(db)
        self._load_deletions(db)
        self._load_members(db)
        self._load_copies(db)
        self.aggregates = {one.uuid: one for one in self._ids.values()}

    def _load_aggregates(self, db: sqlite3.Connection) -> None:
        rows = db.execute(
            """SELECT g.*, a.required FROM aggregate AS g
               LEFT JOIN attempt AS a ON a.tx = g.tx AND a.attempt = g.attempt ORDER BY g.id"""
        )
        for row in rows:
            self._ids[row["id"]] = Aggregate(
                uuid=bytes.fromhex(row["uuid"]),
                transaction=bytes.fromhex(row["tx"]),
                attempt=row["attempt"],
                csn=row["csn"],
                node=self._nodes[row["node"]],
                kind=KINDS[row["kind"]],
                primary=self._pools[row["pool"]],
                bytes=row["bytes"],
                required=json.loads(row["required"] or "[]"),
                first_object=row["first_object"],
                objects=row["objects"],
            )

    def _load_deletions(self, db: sqlite3.Connection) -> None:
        """What is left of an aggregate that was deleted is its row: it is none."""
        for row in db.execute("SELECT aggregate, members FROM erased"):
            one = self._ids[row["aggregate"]]
            one.erased = _members(row["members"], one.objects)
        regions = db.execute("SELECT volume, offset, length, aggregate FROM dead_region").fetchall()
        self.dead_regions = [
            (self._volume_ids[row[0]], row[1], row[2], self._ids[row[3]].uuid) for row in regions
        ]
        self.dead: dict[bytes, int] = {}
        for row in db.execute("SELECT aggregate, csn FROM deletion"):
            self.dead[self._ids.pop(row["aggregate"]).uuid] = row["csn"]

    def _load_members(self, db: sqlite3.Connection) -> None:
        rows = db.execute("SELECT * FROM object ORDER BY id").fetchall()
        newest = {(row["node"], row["kind"], bytes(row["name"])): row["id"] for row in rows}
        for row in rows:
            aggregate = self._ids[row["aggregate"]]
            index = row["id"] - aggregate.first_object
            aggregate.members[index] = Member(
                index,
                row["id"],
                bytes(row["name"]),
                row["start"],
                row["length"],
                bytes(row["digest"]),
                newest[row["node"], row["kind"], bytes(row["name"])] == row["id"],
            )

    def _load_copies(self, db: sqlite3.Connection) -> None:
        for row in db.execute("SELECT * FROM copy"):
            aggregate, pool = self._ids[row["aggregate"]], self._pools[row["pool"]]
            aggregate.copies[pool] = Copy(
                pool, row["csn"], _members(row["present"], aggregate.objects) - aggregate.erased
            )
        for row in db.execute("SELECT * FROM placement ORDER BY span"):
            copy = self._ids[row["aggregate"]].copies.get(self._pools[row["pool"]])
            if copy is None:
                continue  # one of the complaints
            copy.places.append(
                Place(
                    row["span"],
                    self._volume_ids[row["volume"]],
                    row["offset"],
                    row["length"],
                    row["used"],
                    row["data_start"],
                    row["data_length"],
                )
            )
        for row in db.execute("SELECT * FROM gap"):
            aggregate = self._ids[row["aggregate"]]
            missing = _members(row["missing"], aggregate.objects) - aggregate.erased
            aggregate.gaps[self._pools[row["pool"]]] = missing


def _members(runs: str | None, count: int) -> frozenset[int]:
    """Indexes of [[first, count], …]; None is all of them."""
    if runs is None:
        return frozenset(range(count))
    return frozenset(i for first, size in json.loads(runs) for i in range(first, first + size))


# ---- all of it -------------------------------------------------------------------------------------


@dataclass(slots=True)
class StoreOnMedia:
    """Everything of a store, looked at under all its locks.

    Attributes:
        rules: of the configuration.
        catalog: a copy.
        volumes: by UUID; what cannot be read is in `unreadable`, with the reason.
    """

    rules: Rules
    catalog: CatalogCopy
    volumes: dict[bytes, Volume]
    unreadable: dict[bytes, str]

    @classmethod
    @contextlib.contextmanager
    def look(cls, config: Path, *, below: Path | None = None) -> Iterator[StoreOnMedia]:
        """Wait for the locks, look, and hold them meanwhile.

        Args:
            config: path of the store's `fanout.toml`.
            below: where the files of a fault file system lie that is mounted where the configuration is: volumes are
                read there, past all requests.

        Raises:
            Locked: somebody holds a lock for too long.
        """
        rules = Rules(config)

        def at(path: str) -> Path | None:
            inside = below is not None and Path(path).is_relative_to(config.parent)
            return below / Path(path).relative_to(config.parent) if below and inside else None

        with contextlib.ExitStack() as stack:
            lock = Path(f"{rules.catalog}.lock")
            if lock.exists():
                stack.enter_context(locked(lock))
            catalog = CatalogCopy(rules.catalog)
            volumes, unreadable = {}, {}
            for uuid, row in catalog.volumes.items():
                try:
                    file = Pread(stack.enter_context(locked(row["path"], medium=at(row["path"]))))
                    volumes[uuid] = Volume(cast("BinaryIO", file))
                except Locked:
                    raise
                except (
                    Exception
                ) as error:  # whatever a damaged volume makes of the reader is a finding
                    unreadable[uuid] = f"{row['path']}: {type(error).__name__}: {error}"
            yield cls(rules, catalog, volumes, unreadable)

"""Connections to the catalog's file: what is opened, what is refused, and SQLite's errors in our words.

A database is data until it has a schema; a trigger or a view is code that runs when we ask or write. So what is opened is
compared with `schema.sql` before anything of it can run.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sqlite3
import stat
from contextlib import closing, contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fanout.errors import CatalogError, CatalogVersion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SIDES = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database, as ends of its name
APPLICATION_ID = 0x464E4F54  # "FNOT", in the database header: what `file` shows
SCHEMA_VERSION = 4
# What a schema of an older version must be, as `_digest` says it: a trigger or a view of somebody else's is refused there, too.
OLDER = {
    1: "1ff90abd620b5efbe7c2a4e41c287c0ddbd4a89fc9ed90d6d14327d39aa57af4",
    2: "503a92ea7df59fdbf14e9642e7c25a3430819f5a20e84568dde30eed60c77ef0",
    3: "771e1f7b3b682f10d6817ea5b617d193cf5ed9c38845c807c547311a7499cc77",
}
MINIMUM_SQLITE = (3, 37, 0)  # STRICT tables
# The writer's page cache: the inner pages of an index over some ten million objects.
CACHE_KIB = 32 << 10
BUSY_TIMEOUT = 5.0  # seconds; readers and the writer do not wait for each other, only recovery and checkpoints do


# Real paths of catalogs that were open when this process was forked: SQLite believes that it has its parent's locks, and takes none.
INHERITED: set[str] = set()


def connect(path: str, *, read_only: bool) -> sqlite3.Connection:
    """One connection without implicit transactions. Never creates a file."""
    if os.path.realpath(path) in INHERITED:
        raise CatalogError(
            path,
            "was open when this process was forked, so it cannot be opened here: fork before, or start processes with 'spawn'",
        )
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        wanted = ".".join(map(str, MINIMUM_SQLITE))
        raise CatalogVersion(path, f"SQLite {wanted} is needed, this is {sqlite3.sqlite_version}")
    uri = f"file:{quote(os.fsencode(path))}?mode={'ro' if read_only else 'rw'}"
    if read_only and _at_rest(path):
        uri += "&immutable=1"
    db = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT
    )
    # Damage is noticed before it is used. (`trusted_schema = OFF` would forbid our own checks, which call json_valid; instead
    # `check_identity` refuses every schema but ours.)
    db.execute("PRAGMA cell_size_check = ON")
    if read_only:
        db.execute("PRAGMA query_only = ON")
    return db


def _at_rest(path: str) -> bool:
    """Whether nobody can write it: on a file system that went read-only, where SQLite could not make its index of the log.

    That is the day on which what is there has to be read. What the log holds is not passed over: then SQLite refuses.
    """
    if not os.statvfs(path).f_flag & os.ST_RDONLY or not _is_read_only_for_all(path):
        return False
    try:
        return os.stat(f"{path}-wal").st_size == 0
    except FileNotFoundError:
        return True


def _is_read_only_for_all(path: str) -> bool:
    """Whether the file system itself is read-only, not only this mount of it, beside which another may be writable."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            mount, _, file_system = line.partition(" - ")
            if mount.split()[2] == number:
                return "ro" in file_system.split()[2].split(",")
    return False


def connect_writer(path: str) -> sqlite3.Connection:
    """The one that commits: durable, and in nobody else's way."""
    db = connect(path, read_only=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA recursive_triggers = OFF")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        # Not in anybody's commit: see `Catalog.checkpoint`.
        db.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        db.close()
        raise
    return db


def check_identity(db: sqlite3.Connection, path: str) -> int:
    """The version of a catalog's schema. Refuses what is not a catalog of a version that this code knows.

    Raises:
        CatalogVersion: with what it is instead.
    """
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise CatalogVersion(path, "this database is not a fanout catalog")
    if version != SCHEMA_VERSION and version not in OLDER:
        raise CatalogVersion(
            path,
            f"written by another fanout: schema {version}, this one knows {SCHEMA_VERSION}",
        )
    # A trigger or a view is code that runs when we ask or write; statistics are what an operator's ANALYZE leaves.
    if version in OLDER:
        if _digest(_schema_of(db)) != OLDER[version]:
            raise CatalogVersion(path, f"its schema is not fanout's of version {version}")
        return int(version)
    try:
        expected = expected_schema()
    except OSError as error:  # no descriptor left to read ours with
        raise CatalogError(path, f"cannot be compared with its schema: {error.strerror}") from error
    found = _rows_of(db)
    if found == expected:
        return SCHEMA_VERSION  # to the letter
    foreign = (_plain(found) ^ _plain(expected)) - _STATISTICS
    if foreign:
        names = ", ".join(sorted({str(row[1]) for row in foreign}))
        raise CatalogVersion(path, f"its schema is not fanout's: {names:.200}")
    return SCHEMA_VERSION


def imitate(db: sqlite3.Connection, version: int) -> None:
    """Let a catalog of an older version be read: what it has not is there, empty, and of this connection alone."""
    db.execute("PRAGMA query_only = OFF")
    db.execute("PRAGMA temp_store = MEMORY")
    for name, statement in _statements():
        if NEWER.get(name, 0) > version:
            db.execute(statement.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))
    db.execute("PRAGMA query_only = ON")


def upgrade(path: str) -> None:
    """Make a catalog of an older version one of this, in one transaction.

    Raises:
        CatalogVersion: it is no catalog, or of a version that this code does not know.
        CatalogError: it cannot be written.
    """
    with translated(path), closing(connect(path, read_only=False)) as db:
        version = check_identity(db, path)
        if version == SCHEMA_VERSION:
            return
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        db.execute("DROP VIEW intake")  # and its trigger with it
        if version == 1:
            db.execute("ALTER TABLE placement RENAME TO placement_1")  # its key knew no volume
            db.execute("DROP INDEX placement_place")
        known = {name for _, name, _, _ in _schema_of(db)}
        for name, statement in _statements():
            if name not in known:
                db.execute(statement)
        if version == 1:
            db.execute("INSERT INTO placement SELECT * FROM placement_1")
            db.execute("DROP TABLE placement_1")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        db.execute("COMMIT")


_STATISTICS = {
    ("table", name, name, f"CREATE TABLE {name}({columns})")
    for name, columns in (
        ("sqlite_stat1", "tbl,idx,stat"),
        ("sqlite_stat4", "tbl,idx,neq,nlt,ndlt,sample"),
    )
}


def _rows_of(db: sqlite3.Connection) -> frozenset[tuple[Any, ...]]:
    """What a database is made of, with the comments and the spacing that SQLite keeps."""
    return frozenset(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall())


def _plain(rows: Iterable[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """The same without comments and spacing."""
    return {(*row[:3], row[3] and " ".join(_COMMENT.sub("", str(row[3])).split())) for row in rows}


def _schema_of(db: sqlite3.Connection) -> set[tuple[Any, ...]]:
    """What a database is made of; comments and spacing are left out."""
    return _plain(_rows_of(db))


_COMMENT = re.compile(r"--[^\n]*")
# Tables that older versions had not, and the version that had them first.
NEWER = {"erased": 2, "deletion": 2, "dead_region": 2, "retired": 3}


def _digest(schema: set[tuple[Any, ...]]) -> str:
    """What a schema is, in short."""
    return hashlib.sha256(repr(sorted(map(repr, schema - _STATISTICS))).encode()).hexdigest()


def _statements() -> list[tuple[str, str]]:
    """Name and statement of all that the schema makes, in its order."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema_text())
        return db.execute(
            "SELECT name, sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY rowid"
        ).fetchall()


def schema_text() -> str:
    """The statements of `schema.sql`."""
    return files("fanout.catalog").joinpath("schema.sql").read_text(encoding="utf-8")


@functools.cache
def expected_schema() -> frozenset[tuple[Any, ...]]:
    """What SQLite says of a catalog's schema."""
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(schema_text())
        return _rows_of(db)
    finally:
        db.close()


def refuse_links(path: str) -> None:
    """The catalog holds names of everybody's files: it must be where it seems to be, a plain file.

    Raises:
        CatalogError: missing, a symbolic link, or not a regular file.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        raise CatalogError(
            path,
            "there is no catalog here: is it mounted, is the path right? 'fanout rebuild catalog' makes one that was lost from its volumes, "
            "'fanout init' a new store",
        ) from None
    except OSError as error:
        raise CatalogError(path, f"cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
        raise CatalogError(path, f"is {what}, which is refused")
    if not os.access(path, os.R_OK):
        raise CatalogError(path, "cannot be read by this user; run as the owner of the store")


# What SQLite says of a file system that is full (of the log's index, too, which an opening makes) or may not be written.
_FULL = "; its file system is full: make room there"
_FORBIDDEN = (
    "; may this user write it, and its directory? Where the file system is read-only, copy it and its -wal to another one, and name "
    "that in a copy of fanout.toml"
)
_MENDS = {
    "SQLITE_FULL": _FULL,
    "SQLITE_IOERR_SHMSIZE": _FULL,
    "SQLITE_CANTOPEN": _FORBIDDEN,
    "SQLITE_READONLY": _FORBIDDEN,
    "SQLITE_READONLY_DIRECTORY": _FORBIDDEN,
}


@contextmanager
def translated(path: str) -> Iterator[None]:
    """SQLite's errors as `CatalogError`, with the path."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            raise CatalogVersion(path, f"not a catalog, or a damaged one: {error}") from error
        told = f"{error} ({name}){_MENDS.get(name, '')}" if name else str(error)
        raise CatalogError(path, told) from error
    except MemoryError as error:  # SQLite's own has no class of its own
        raise CatalogError(path, "out of memory") from error
    except UnicodeDecodeError as error:  # a text column of a damaged page
        raise CatalogVersion(path, f"not a catalog, or a damaged one: {error}") from error

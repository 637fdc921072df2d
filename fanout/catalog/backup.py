"""Copies a catalog while it is in use: one moment of it, whole, verified, private.

What it promises:

1. The copy is the catalog at one commit. Its writer goes on meanwhile; only the folding of the log waits.
2. The copy has its name only when it is complete, verified and durable. What stood there is kept until then.
3. It is refused where it would do harm: on a catalog that is in use, through a link, on anything without `force`.

Never copy the file of a catalog that is open: what is in the log is not in it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.catalog.connection import check_identity, connect, refuse_links, translated
from fanout.catalog.drafts import draft_of
from fanout.catalog.locks import sync_directory
from fanout.catalog.reader import CatalogReader
from fanout.errors import CatalogError

if TYPE_CHECKING:
    from collections.abc import Callable

PAGES = 256  # of 4 KiB, between two reports of progress


@dataclass(frozen=True, slots=True)
class CatalogBackup:
    """A copy of a catalog that was made.

    Attributes:
        path: of the copy.
        store: id of the store.
        csn: of the last commit that is in it.
        bytes: of the copy.
    """

    path: str
    store: bytes
    csn: int
    bytes: int


def backup(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> CatalogBackup:
    """Copy a catalog, beside its writer or without one.

    Args:
        source: path of the catalog.
        target: path of the copy.
        force: replace a file that stands there.
        on_progress: called with bytes done and bytes in all.

    Raises:
        CatalogError: the catalog cannot be read or is damaged, or the copy cannot be made there. What stood there still does.
    """
    source, target = os.path.abspath(source), os.path.abspath(target)
    _refuse_target(source, target, force=force)
    try:
        with draft_of(target) as draft:
            _copy(source, draft, on_progress)
            made = _verified(draft, target)
            _sync_file(draft)
            if force:
                os.replace(draft, target)
            else:
                os.link(draft, target)  # unlike a rename, it fails when there is something
            sync_directory(target)
    except FileExistsError:
        raise CatalogError(
            target, "there is something here already; nothing is overwritten"
        ) from None
    except OSError as error:
        raise CatalogError(target, f"cannot be made: {error.strerror}") from error
    return made


def _refuse_target(source: str, target: str, *, force: bool) -> None:
    """Raise if the copy must not appear there."""
    # Readers leave an empty log behind; one with something in it would be played into the copy.
    if os.path.lexists(f"{target}.lock") or _size(f"{target}-wal") or _size(f"{target}-journal"):
        raise CatalogError(
            target, "is the catalog of a store, or its log lies here: copy to another name"
        )
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CatalogError(target, f"cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CatalogError(target, "is not a regular file, which is refused")
    if not force:
        raise CatalogError(target, "there is something here already; nothing is overwritten")
    with suppress(OSError):
        if os.path.samestat(status, os.stat(source)):
            raise CatalogError(target, "is the catalog itself")


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _copy(source: str, draft: str, on_progress: Callable[[int, int], None] | None) -> None:
    def report(_: int, remaining: int, total: int) -> None:
        if on_progress is not None:
            on_progress((total - remaining) * page, total * page)

    refuse_links(source)
    with translated(source), closing(connect(source, read_only=True)) as reading:
        check_identity(reading, source)
        (page,) = reading.execute("PRAGMA page_size").fetchone()
        # One read transaction for the whole of it: else every commit of the writer would begin the copy anew.
        reading.execute("BEGIN")
        reading.execute("SELECT csn FROM store").fetchone()
        with closing(sqlite3.connect(draft, isolation_level=None)) as writing:
            reading.backup(writing, pages=PAGES, progress=report)
        reading.execute("ROLLBACK")


def _verified(draft: str, target: str) -> CatalogBackup:
    with CatalogReader(draft) as copy:
        wrong = copy.verify()
        if wrong:
            raise CatalogError(target, f"was not made: the catalog is damaged: {wrong[0]}")
        return CatalogBackup(target, copy.store_id, copy.last_csn(), os.path.getsize(draft))


def _sync_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

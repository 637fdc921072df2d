"""File trees as objects to store: names, sources, groups."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout.catalog import Catalog
from fanout.errors import SourceError
from fanout.format import MAX_NAME
from fanout.sources import Chunks, as_source, naming, once

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator

    from typing_extensions import Buffer

    from fanout.config import Config
    from fanout.sources import Source


OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # this machine's trouble, and no file's


class Item(NamedTuple):
    """One object to store: its name, anything that `as_source` takes, its expected length."""

    name: bytes
    source: Any
    length: int


@dataclass(slots=True)
class Found:
    """What a walk found.

    Attributes:
        items: to store.
        left_out: what should be stored but cannot be read, and why.
        skipped: kind of what is no file, and how many of it there are in the trees.
    """

    items: list[Item]
    left_out: list[tuple[str, str]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of all items together."""
        return sum(item.length for item in self.items)

    def skip(self, kind: str) -> None:
        """Count what is not stored; `kind` in the plural."""
        self.skipped[kind] = self.skipped.get(kind, 0) + 1


def own_files(config: Config) -> frozenset[tuple[int, int]]:
    """Device and inode of the files of a store: stored in itself it would fill itself."""
    places = [Path(name) for name in Catalog.files(config.store.catalog)]
    places += [volume.path for pool in config.pools.values() for volume in pool.volumes]
    for kind in config.device_classes.values():
        if kind.directory is not None:
            with contextlib.suppress(OSError):  # a mount that has died
                places += kind.directory.glob("*.fanout")
    found = set()
    for place in places:
        with contextlib.suppress(OSError):
            status = place.stat()
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def walk(
    paths: Iterable[str],
    *,
    name: str | None = None,
    own: Collection[tuple[int, int]] = (),
) -> Found:
    """Find the regular files of some files and trees, in sorted order.

    Objects are named by the path as it was given, without ``.`` and doubled slashes. In trees,
    symbolic links are not followed, and what is no regular file is skipped.

    Args:
        paths: files and directories.
        name: to use instead of the (one) path.
        own: device and inode of files that are skipped in trees; see `own_files`.

    Raises:
        OSError: a path that was named does not exist or cannot be read.
        SourceError: it is a pipe or something else that has no end.
    """
    found = Found([])
    for path in paths:
        base = os.path.normpath(path) if name is None else name
        if stat.S_ISDIR(Path(path).stat().st_mode):
            for inner, status in _files(path, found):
                if (status.st_dev, status.st_ino) in own:
                    found.skip("store files")
                    continue
                relative = os.path.relpath(inner, path)
                _add(found, os.path.normpath(f"{base}/{relative}"), inner, status)
        else:
            found.items.append(_named(base, path))
    return found


def _files(root: str, found: Found) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below that is no directory. Directories are gone through by descriptors: none becomes a link on the way."""

    def complain(error: OSError) -> None:
        found.left_out.append((str(error.filename), error.strerror or str(error)))

    # With the slash the root itself may be a link: the operator named it.
    for directory, names, files, fd in os.fwalk(os.path.join(root, ""), onerror=complain):
        names.sort()
        for file in sorted(files):
            path = os.path.join(directory, file)
            try:
                status = os.stat(file, dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                found.left_out.append((path, error.strerror or str(error)))
            else:
                yield path, status


def _add(found: Found, name: str, path: str, status: os.stat_result) -> None:
    """A file of a tree."""
    if not stat.S_ISREG(status.st_mode):
        found.skip("symbolic links" if stat.S_ISLNK(status.st_mode) else "special files")
    elif not os.access(path, os.R_OK):
        found.left_out.append((path, "may not be read by this user"))
    elif len(os.fsencode(name)) > MAX_NAME:
        size = len(os.fsencode(name))
        found.left_out.append((path, f"its name has {size:,} bytes, at most {MAX_NAME:,} are kept"))
    else:
        found.items.append(Item(os.fsencode(name), _TreeFile(path, status), status.st_size))


def _named(name: str, path: str) -> Item:
    """A file or device that was named: it is stored or refused, never left out."""
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise SourceError(f"{path}: is no file, tree or block device; pipe it into '-' instead")
    with open(path, "rb", buffering=0) as file:  # a device tells its length only like this
        try:
            length = file.seek(0, os.SEEK_END)
        except OSError as error:
            message = (
                f"{path}: does not say how long it is ({error.strerror}); pipe it into '-' instead"
            )
            raise SourceError(message) from error
    return Item(os.fsencode(name), path, length)


def groups(items: Iterable[Item], *, objects: int, bytes_: int) -> Iterator[list[Item]]:
    """Cut a list into groups, one transaction each.

    Args:
        items: in order.
        objects: most of them in a group.
        bytes_: a group ends when it holds so many.
    """
    group: list[Item] = []
    held = 0
    for item in items:
        group.append(item)
        held += item.length
        if len(group) == objects or held >= bytes_:
            yield group
            group, held = [], 0
    if group:
        yield group


class _TreeFile:
    """A file that a walk has found, stored only if it is still that very file.

    Whoever owns the tree may put another in its place meanwhile, or a link to somebody else's.

    Args:
        path: of the file.
        status: what the walk saw.

    Attributes:
        trouble: why a pass broke off; empty: none did.
    """

    rereadable = True
    trouble = ""

    def __init__(self, path: str, status: os.stat_result) -> None:
        self.name, self.length = path, status.st_size
        self._identity = status.st_dev, status.st_ino

    def open(self) -> Chunks:
        """Begin a pass."""
        return Chunks(self._read())

    def look(self) -> str:
        """Why it cannot be stored as the walk found it; empty: it can, as far as can be seen."""
        if self.trouble:
            return self.trouble
        try:
            status = os.lstat(self.name)
        except OSError as error:
            return error.strerror or str(error)
        same = (status.st_dev, status.st_ino, status.st_size) == (*self._identity, self.length)
        return "" if same else "was changed while the tree was stored"

    def _read(self) -> Generator[Buffer, None, None]:
        try:
            yield from self._pass()
        except (OSError, SourceError) as error:
            if getattr(error, "errno", None) not in OURS:
                said = error.strerror if isinstance(error, OSError) else None
                self.trouble = said or str(error).removeprefix(f"{self.name}: ")
            raise

    def _pass(self) -> Generator[Buffer, None, None]:
        # Not blocking: it may be a pipe by now.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self.name, flags)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise SourceError(f"{self.name}: became a link while the tree was stored") from error
        # With an opener it keeps its path as its name; errors called it by the number of the descriptor.
        with open(self.name, "rb", buffering=0, opener=lambda *_: fd) as file:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != self._identity:
                raise SourceError(f"{self.name}: was replaced while the tree was stored")
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            with (
                naming(self.name),
                as_source(file, length_hint=self.length, resend=False).open() as chunks,
            ):
                yield from chunks


def changed(items: Iterable[Item]) -> list[tuple[Item, str]]:
    """The files of trees that cannot be stored as the walk found them, and why, once a pass over one of them broke off."""
    files = [(item, item.source) for item in items if isinstance(item.source, _TreeFile)]
    if not any(file.trouble for _, file in files):
        return []
    return [(item, why) for item, file in files if (why := file.look())]


def counted(value: Any, tell: Callable[[int], None]) -> Source:
    """A source of anything that `as_source` takes; it tells how many bytes have gone through it.

    What cannot be read again is taken all the same: the caller has asked about that before.
    """
    inner = as_source(value, resend=False)
    source = _Counted(inner, tell)
    return source if inner.rereadable else once(source)


class _Counted:
    def __init__(self, inner: Source, tell: Callable[[int], None]) -> None:
        self._inner, self._tell = inner, tell

    @property
    def length(self) -> int | None:
        return self._inner.length

    @property
    def rereadable(self) -> bool:
        return self._inner.rereadable

    def open(self) -> Chunks:
        return Chunks(self._read())

    def _read(self) -> Generator[Buffer, None, None]:
        with self._inner.open() as chunks:
            for chunk in chunks:
                yield chunk
                self._tell(memoryview(chunk).nbytes)

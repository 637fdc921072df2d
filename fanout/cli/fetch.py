"""Objects to files, verified before they get their name. Names come from clients: none leads out of the directory that was asked for."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from fanout.cli.exits import Exit, Refused, judge
from fanout.cli.screen import OUTPUT
from fanout.errors import FanoutError, ObjectNotFound
from fanout.sources import naming
from fanout.units import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.catalog import ObjectEntry
    from fanout.store import Store


@dataclass(frozen=True, slots=True)
class Failed:
    """An object that was not read."""

    name: str
    reason: str
    code: Exit


@dataclass(slots=True)
class Done:
    """What a run has written."""

    written: list[tuple[str, str, int, str]] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "ok": not self.failed,
            "objects": [
                {"name": name, "path": path, "bytes": length, "digest": digest}
                for name, path, length, digest in self.written
            ],
            "bytes": self.bytes,
            "seconds": round(self.seconds, 6),
            "failed": [
                {"name": one.name, "reason": one.reason, "exit_code": int(one.code)}
                for one in self.failed
            ],
        }


def find(
    store: Store, node: str, names: Sequence[bytes], *, version: int | None
) -> list[ObjectEntry]:
    """The objects of some names; a name without an object stands for the tree under it.

    Raises:
        ObjectNotFound: neither an object nor a tree.
    """
    found: list[ObjectEntry] = []
    node = store.node_name(node)
    for name in names:
        exact = store.catalog.find(node, name, version=version)
        if exact is not None:
            found.append(exact)
            continue
        prefix = name.rstrip(b"/") + b"/"
        tree = [
            entry
            for entry in store.query_objects(node=node, active_only=True)
            if entry.name.startswith(prefix)
        ]
        if not tree or version is not None:
            number = "" if version is None else f", version {version}"
            raise ObjectNotFound(f"{node} has no object and no tree {quoted(name)}{number}")
        found += tree
    return found


class Goal(NamedTuple):
    """Where an object goes: below `root`, which the operator named, by `parts`, which a client chose."""

    entry: ObjectEntry
    root: Path
    parts: tuple[str, ...]

    @property
    def path(self) -> Path:
        """For people."""
        return self.root.joinpath(*self.parts)


def plan(wanted: Sequence[ObjectEntry], *, to: Path, output: str | None) -> list[Goal]:
    """Where each object goes.

    Raises:
        Refused: a name would leave the directory, or two would become one file.
    """
    if output is not None:
        file = Path(output)
        return [Goal(wanted[0], file.parent, (file.name,))]
    goals = [Goal(entry, to, inside(entry.name)) for entry in wanted]
    seen: dict[tuple[str, ...], Goal] = {}
    for goal in goals:
        other = seen.setdefault(goal.parts, goal)
        if other is not goal:
            names = " and ".join(repr(os.fsdecode(one.entry.name)) for one in (other, goal))
            message = f"{names} would become one file; read them one by one, with --output"
            raise Refused(message, mend="")
    return goals


def inside(name: bytes) -> tuple[str, ...]:
    """An object's name as the parts of a relative path that cannot leave its directory."""
    parts = tuple(part for part in os.fsdecode(name).split("/") if part not in {"", "."})
    if not parts or ".." in parts or "\0" in os.fsdecode(name):
        raise Refused(f"{os.fsdecode(name)!r} is no name of a file; use --output FILE", mend="")
    return parts


def to_stream(store: Store, entry: ObjectEntry, stream: BinaryIO, *, pool: str | None) -> None:
    """Write one object to standard output. An error at the end says that what was written cannot be trusted."""
    with store.get(entry.node, entry.name, version=entry.version, pool=pool) as reader:
        for piece in reader:
            with naming(OUTPUT):
                stream.write(piece)
    with naming(OUTPUT):
        stream.flush()


def run(
    store: Store,
    planned: Sequence[Goal],
    *,
    pool: str | None,
    force: bool,
    on_bytes: Callable[[int], None],
) -> Done:
    """Write every object to its file; one that fails does not stop the others.

    Args:
        store: to read from.
        planned: what goes where.
        pool: to read from; None: the best.
        force: replace files that exist.
        on_bytes: called with bytes written.
    """
    done, began = Done(), time.monotonic()
    for goal in planned:
        entry, path = goal.entry, goal.path
        name = os.fsdecode(entry.name)
        try:
            _write(store, goal, pool, on_bytes, force=force)
        except (FanoutError, OSError) as error:
            if not isinstance(error, FanoutError):
                # It is of a neighbour with another name, or without any.
                error.filename, error.filename2 = str(path), None
            verdict = judge(error)
            long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
            mend = "; --output FILE gives it another name" if long else ""
            done.failed.append(Failed(name, verdict.line + mend, verdict.code))
        else:
            done.written.append((name, str(path), entry.length, entry.digest.hex()))
            done.bytes += entry.length
    done.seconds = time.monotonic() - began
    return done


def _write(
    store: Store, goal: Goal, pool: str | None, on_bytes: Callable[[int], None], *, force: bool
) -> None:
    """To a neighbour of another name first: half a file, or a wrong one, never has the right name."""
    entry = goal.entry
    with _directory(goal) as directory:
        temporary = f".fanout-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with (
                open(fd, "wb") as file,
                store.get(entry.node, entry.name, version=entry.version, pool=pool) as reader,
            ):
                for piece in reader:
                    file.write(piece)
                    on_bytes(len(piece))
            _give_name(directory, temporary, goal, force=force)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)


@contextlib.contextmanager
def _directory(goal: Goal) -> Iterator[int]:
    """The directory that the file goes to, opened step by step, so that no link below the root leads elsewhere.

    Raises:
        Refused: a symbolic link, or something that is no directory, stands in the way.
        OSError: it cannot be made or opened.
    """
    goal.root.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(goal.root, flags)
    try:
        for part in goal.parts[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=fd)
            try:
                inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                message = f"{goal.path}: {part!r} on its way is a link or no directory"
                raise Refused(message, mend="") from error
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _give_name(directory: int, temporary: str, goal: Goal, *, force: bool) -> None:
    """Raises `Refused` when something has the name meanwhile, and nobody said that it may be replaced."""
    name = goal.parts[-1]
    if force:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        return
    try:
        # Unlike a rename it fails when there is something.
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError as error:
        raise Refused(f"{goal.path} exists and would be replaced") from error

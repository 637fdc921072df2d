"""Objects to files, verified before they get their name."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fanout.cli.exits import Exit, Refused, judge
from fanout.errors import FanoutError, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    node = store.config.node(node).name
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
            what = os.fsdecode(name)
            number = "" if version is None else f", version {version}"
            raise ObjectNotFound(f"{node} has no object and no tree {what!r}{number}")
        found += tree
    return found


def plan(
    wanted: Sequence[ObjectEntry], *, to: Path, output: str | None
) -> list[tuple[ObjectEntry, Path]]:
    """Where each object goes.

    Raises:
        Refused: a name would leave the directory.
    """
    if output is not None:
        return [(wanted[0], Path(output))]
    return [(entry, to / inside(entry.name)) for entry in wanted]


def inside(name: bytes) -> str:
    """An object's name as a relative path that cannot leave its directory."""
    parts = [part for part in os.fsdecode(name).split("/") if part not in {"", "."}]
    if not parts or ".." in parts or "\0" in os.fsdecode(name):
        raise Refused(f"{os.fsdecode(name)!r} is no name of a file; use --output FILE")
    return "/".join(parts)


def to_stream(store: Store, entry: ObjectEntry, stream: BinaryIO, *, pool: str | None) -> None:
    """Write one object to a stream. An error at the end says that what was written cannot be trusted."""
    with store.get(entry.node, entry.name, version=entry.version, pool=pool) as reader:
        for piece in reader:
            stream.write(piece)
    stream.flush()


def run(
    store: Store,
    planned: Sequence[tuple[ObjectEntry, Path]],
    *,
    pool: str | None,
    on_bytes: Callable[[int], None],
) -> Done:
    """Write every object to its file; one that fails does not stop the others."""
    done, began = Done(), time.monotonic()
    for entry, path in planned:
        name = os.fsdecode(entry.name)
        try:
            _write(store, entry, path, pool, on_bytes)
        except (FanoutError, OSError) as error:
            verdict = judge(error)
            done.failed.append(Failed(name, verdict.line, verdict.code))
        else:
            done.written.append((name, str(path), entry.length, entry.digest.hex()))
            done.bytes += entry.length
    done.seconds = time.monotonic() - began
    return done


def _write(
    store: Store,
    entry: ObjectEntry,
    path: Path,
    pool: str | None,
    on_bytes: Callable[[int], None],
) -> None:
    """To a nameless neighbour first: half a file, or a wrong one, never has the right name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=".fanout-", dir=path.parent)
    try:
        with (
            open(fd, "wb") as file,
            store.get(entry.node, entry.name, version=entry.version, pool=pool) as reader,
        ):
            for piece in reader:
                file.write(piece)
                on_bytes(len(piece))
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise

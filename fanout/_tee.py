"""`fanout.tee`: one source to several files or devices, checksummed, with an outcome for each.

The module has an underscore because the function has the name.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanout.engine import Engine
from fanout.engine.stream import MAX_TARGETS
from fanout.errors import TargetError
from fanout.sources import as_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Buffer

    from fanout.engine import Stream, Target
    from fanout.types import Outcome


@dataclass(frozen=True, slots=True)
class TeeResult:
    """What `tee` did.

    Attributes:
        bytes: length of the source.
        digest: XXH3-128 of the source, hexadecimal, as ``xxhsum -H2`` prints it.
        seconds: from the first open to the last close.
        outcomes: for each target path what happened there: ok and durable, or the first fault.
    """

    bytes: int
    digest: str
    seconds: float
    outcomes: Mapping[str, Outcome]

    @property
    def ok(self) -> bool:
        """Whether every target holds all the bytes, durably."""
        return all(outcome.ok for outcome in self.outcomes.values())


def tee(
    source: Any,
    targets: Sequence[str | os.PathLike[str]],
    *,
    size: int | None = None,
    engine: Engine | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> TeeResult:
    """Write one source to every target at the same time.

    Existing files are overwritten in place and cut to length; devices are overwritten from their first byte; new files appear
    with mode 0600. Each target is locked while it is written. One that fails is left as it is, in pieces, and the others go on;
    a target named twice is refused.

    Args:
        source: a path, bytes-like object, binary reader or iterable of bytes-like objects. It is read once.
        targets: paths of 1 to 16 files or block devices.
        size: bytes to come, if the source does not know; for preallocation, and the source is held to it.
        engine: the engine to use; None: one of its own for this call.
        on_progress: called in this thread after each chunk with the bytes accepted so far and the expected total or None.

    Returns:
        The outcome of every target: failing ones are reported, not raised.

    Raises:
        OSError: the source cannot be read.
        SourceLengthError: the source gave another number of bytes than it said; the targets hold a part.
        ValueError: no targets or too many, one of them twice, or the source among them. Nothing was touched.
    """
    if isinstance(targets, str | bytes | os.PathLike):
        raise TypeError(f"targets is a list of paths, not one path: {targets!r}")
    paths = [os.fspath(path) for path in targets]
    if not 1 <= len(paths) <= MAX_TARGETS:
        raise ValueError(f"tee takes 1 to {MAX_TARGETS} targets, found {len(paths)}")
    taken = as_source(source, length_hint=size, resend=False)
    _check_distinct(source, paths)
    began = time.monotonic()
    with ExitStack() as stack:
        if engine is None:
            engine = stack.enter_context(Engine())
        opened, outcomes = _open_all(engine, paths, taken.length, stack)
        length, digest = 0, ""
        chunks = stack.enter_context(taken.open())
        if opened:
            stream = stack.enter_context(engine.stream(list(opened.values())))
            length = _pour(stream, chunks, taken.length, on_progress)
            digest = stream.digest().hex()
            synced = stream.sync()
            stream.close()
            outcomes |= {
                path: target.finish(length) if synced[target].ok else synced[target]
                for path, target in opened.items()
            }
    return TeeResult(
        bytes=length,
        digest=digest,
        seconds=time.monotonic() - began,
        outcomes={path: outcomes[path] for path in paths},
    )


def _check_distinct(source: Any, paths: list[str]) -> None:
    """Refuse to overwrite the source, or one target by another: also by another name, as far as can be seen.

    A target that cannot be looked at is left to the opening, which reports it. That no two targets are one is made sure by the
    lock that each of them takes; here it is said beforehand.
    """
    seen: dict[tuple[object, ...], str] = {}
    named = [os.fspath(source)] if isinstance(source, str | os.PathLike) else []
    for path in [*named, *paths]:
        try:
            found = os.stat(path)
        except OSError:
            key: tuple[object, ...] = (os.path.abspath(path),)
        else:
            block = stat.S_ISBLK(found.st_mode)
            key = ("device", found.st_rdev) if block else (found.st_dev, found.st_ino)
        if key in seen:
            raise ValueError(
                f"{path} and {seen[key]} are the same: the target would be overwritten while it is in use"
            )
        seen[key] = path


def _open_all(
    engine: Engine, paths: list[str], length: int | None, stack: ExitStack
) -> tuple[dict[str, Target], dict[str, Outcome]]:
    """Open what can be opened; the rest has its outcome already."""
    opened: dict[str, Target] = {}
    failed: dict[str, Outcome] = {}
    for path in paths:
        try:
            target = engine.open(path, replace=True, named=True, lock=True, size=length or 0)
        except TargetError as error:
            failed[path] = error.outcome
        else:
            opened[path] = target
            stack.callback(target.close)
    return opened, failed


def _pour(
    stream: Stream,
    chunks: Iterable[Buffer],
    total: int | None,
    on_progress: Callable[[int, int | None], None] | None,
) -> int:
    """Write all chunks; stops early when no target is left. Returns the bytes accepted."""
    stream.place([0] * len(stream.targets))
    all_failed = (1 << len(stream.targets)) - 1
    accepted = 0
    for chunk in chunks:
        mask = stream.write(chunk)
        accepted += memoryview(chunk).nbytes
        if on_progress is not None:
            on_progress(accepted, total)
        if mask == all_failed:
            break
    return accepted

"""What lies on a file or block device: opening it without being led astray, and finding what a volume says of itself.

What it promises:

1. A symbolic link leads to a block device or nowhere.
2. The newest superblock that can be trusted is found, also when the other one, or the end of the device, is damaged.
3. What a target says becomes what a volume says: a `VolumeError` with the path.

Nothing is written here.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout import format as fmt
from fanout.errors import TargetError, VolumeBusy, VolumeError, VolumeForeign, VolumeTorn
from fanout.types import Phase

if TYPE_CHECKING:
    from fanout.engine import Engine, Target
    from fanout.format import Superblock

OPEN_TIMEOUT = 60.0  # seconds, beside what waiting for the lock takes
CLOSE_TIMEOUT = 5.0
LOOK_BYTES = 1 << 20  # at either end of a device, when it is looked at as a whole


class Found(NamedTuple):
    """The superblocks of a volume: the winner, and which copy it is."""

    superblock: Superblock
    copy: int


# ---- opening targets -----------------------------------------------------------------------------


def open_target(engine: Engine, path: str, **options: Any) -> Target:
    """What is at `path`.

    A symbolic link may lead to a block device (/dev/disk/by-id), never to a file: who can plant a link beside the volumes could
    else have any file written.

    Raises:
        TargetError: it cannot be opened.
        VolumeForeign: it is a link to a file.
    """
    try:
        return engine.open(path, follow_links=False, **options)
    except TargetError as error:
        if error.outcome.phase is not Phase.OPEN or error.outcome.errno != errno.ELOOP:
            raise
    target = engine.open(path, **{**options, "size": 0})
    if not target.geometry.is_block:
        target.close(timeout=CLOSE_TIMEOUT)
        raise VolumeForeign(path, "is a symbolic link to a file, which is refused: name the file")
    return target


# ---- finding superblocks -------------------------------------------------------------------------


def find_superblock(engine: Engine, target: Target, known: int | None = None) -> Found:
    """The newest valid superblock.

    Args:
        engine: that reads.
        target: the volume.
        known: its size, if somebody knows it.

    Raises:
        VolumeForeign: there is none.
        VolumeTorn: there is one that cannot be trusted, and no other; or they are of different volumes.
    """
    size = target.geometry.size
    if size < fmt.BLOCK:
        raise VolumeForeign(target.path, "is empty: no volume was made here")
    found: list[Found] = []
    problem: VolumeError | None = None
    try:
        found.append(Found(_superblock_at(engine, target, 0), 0))
    except (VolumeForeign, VolumeTorn) as error:
        problem = error
    for offset in _places_of_b(size, known, found[0].superblock if found else None):
        with suppress(VolumeForeign, VolumeTorn):
            found.append(Found(_superblock_at(engine, target, offset), 1))
            break
    if not found:
        assert problem is not None
        raise problem
    if len({entry.superblock.volume for entry in found}) > 1:
        raise VolumeTorn(
            target.path, "its superblocks are of different volumes: its creation was cut short"
        )
    return max(found, key=lambda entry: entry.superblock.sequence)


def _superblock_at(engine: Engine, target: Target, offset: int) -> Superblock:
    try:
        data = engine.read(target, offset, fmt.BLOCK)
    except TargetError as error:
        # A medium error under one superblock is what the other one is for.
        raise VolumeTorn(target.path, f"superblock at {offset} cannot be read: {error}") from error
    return fmt.decode_superblock(data, path=target.path, offset=offset)


def _places_of_b(size: int, known: int | None, first: Superblock | None) -> list[int]:
    """Where superblock B may lie on a target of `size` bytes, whose volume perhaps has `known` bytes."""
    if first is not None:
        return [first.copy_offset(1)] if first.size <= size else []
    granules = [fmt.BLOCK << shift for shift in range(9)]
    ends = [known, size] if known is not None and known <= size else [size]
    places = [end - end % granule - granule for end in ends for granule in granules]
    return [place for place in dict.fromkeys(places) if place > 0]


# ---- a look at the whole -------------------------------------------------------------------------


def ends(engine: Engine, target: Target) -> tuple[bytes, bytes]:
    """The first and the last MiB of a target."""
    size = target.geometry.size
    length = min(LOOK_BYTES, size)
    return engine.read(target, 0, length), engine.read(target, size - length, length)


def nothing_there(engine: Engine, target: Target) -> bool:
    """Whether both ends are zero."""
    return not any(any(end) for end in ends(engine, target))


# ---- errors --------------------------------------------------------------------------------------


class translated:  # noqa: N801  (reads as the verb that it is)
    """Turn what a target says into what a volume says."""

    def __init__(self, path: str, what: str) -> None:
        self._path, self._what = path, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, TargetError):
            raise self._translate(error) from error
        if isinstance(error, TimeoutError):
            raise VolumeError(self._path, f"{self._what}: no answer in time") from error

    def _translate(self, error: TargetError) -> VolumeError:
        outcome = error.outcome
        busy = (errno.EBUSY, errno.EWOULDBLOCK, errno.ETXTBSY)
        if outcome.phase is Phase.OPEN and outcome.errno in busy:
            return VolumeBusy(
                self._path,
                "is locked: another process has it open, or a killed one still has writes in flight",
            )
        if outcome.errno == errno.ENOENT:
            return VolumeError(self._path, "does not exist: is it mounted, is the path right?")
        detail = os.strerror(outcome.errno) if outcome.errno else outcome.code.name.lower()
        return VolumeError(self._path, f"{self._what}: {detail} ({outcome})")

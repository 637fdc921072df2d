"""Whether there is room, before anything is written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fanout.cli.exits import Unsuitable
from fanout.units import format_size

if TYPE_CHECKING:
    from pathlib import Path


def require(directory: Path, needed: int, *, mend: str) -> None:
    """Make sure that a directory has room.

    Args:
        directory: where it will be needed.
        needed: bytes; an eighth more is asked for, because others write as well.
        mend: what else the operator may do.

    Raises:
        Unsuitable: there is too little.
    """
    figures = os.statvfs(directory)
    free = figures.f_bavail * figures.f_frsize
    if free < needed + needed // 8:
        raise Unsuitable(
            f"{directory}: {format_size(free)} free, but {format_size(needed)} are needed; {mend}"
        )

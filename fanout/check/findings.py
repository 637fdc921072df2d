"""What a check has found, and what mends it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fanout.types import ObjectKind
from fanout.units import quoted

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.volume import Volume

    # Bytes done, and bytes in all.
    Progress = Callable[[int, int], None]

MAX_PROBLEMS = 10_000  # kept in a report; beyond it they are only counted

REBUILD: Final = "keep the catalog, and make it anew: 'fanout rebuild catalog --force'"
RECONCILE: Final = (
    "'fanout backup stgpool' or 'fanout copy activedata' into that pool compares and mends"
)
REFILL: Final = (
    "'get' goes round it while another copy is good; 'fanout audit stgpool POOL --fix' makes it a gap, and "
    "'fanout backup stgpool', 'copy activedata' or 'restore stgpool' closes that"
)
APPEND: Final = "the next opening for writing appends what is missing"
REWRITE: Final = "the next opening for writing writes it anew"
RESTING: Final = "once the configuration has the pool with access readwrite, "
SEND: Final = "look for the medium that was lost; or send the object again, and give this version up with 'fanout delete NODE NAME --version V'"


def replace_volume(path: str) -> str:
    """The mend of a volume that cannot be opened."""
    retire = f"fanout retire volume {shlex.quote(path)}"
    return f"mend or mount what is there; if it is lost, '{retire}' makes what it held gaps that can be closed"


def found_again(node: str, kind: ObjectKind) -> str:
    """The mend of objects that the catalog counts and cannot name."""
    which = "" if kind is ObjectKind.BACKUP else f" --kind {kind.value}"
    delete = f"fanout delete {shlex.quote(node)} --unnamed{which}"
    return f"{REBUILD}; what that does not find either is lost until a volume, or a block, that could not be read then can be read; or give it up: '{delete}'"


def give_up(path: str) -> str:
    """The mend of a volume whose damaged directory has lost what it knew of deletions, as far as the catalog can tell."""
    retire = f"fanout retire volume --force {shlex.quote(path)}"
    return f"'{retire}', and a repair fills the pool again; a catalog made anew from this volume could bring back what was deleted"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        what: is wrong.
        mend: what mends it.
        pool: name, if it is about one.
        path: of the volume, or of the catalog.
        offset: on the volume; None: it is about no place.
        object: name, if it is about one; others may share its fate, then `what` says how many.
    """

    what: str
    mend: str
    pool: str = ""
    path: str = ""
    offset: int | None = None
    object: bytes = b""

    def __str__(self) -> str:
        place = self.path + (f" at {self.offset}" if self.offset is not None else "")
        named = f"{quoted(self.object)}: " if self.object else ""
        return ": ".join(part for part in (self.pool, place) if part) + f": {named}{self.what}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was looked at, and what was found.

    Attributes:
        problems: the first `MAX_PROBLEMS` of them.
        more: how many further ones.
        volumes: how many were checked.
        aggregates: how many.
        objects: how many versions.
        spans: how many copies of spans.
        bytes: that were read and compared; 0 without `data`.
        seconds: it took.
    """

    problems: tuple[Problem, ...]
    more: int
    volumes: int
    aggregates: int
    objects: int
    spans: int
    bytes: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class Findings:
    """What one check has found so far, and how far it is.

    Args:
        catalog: path of it.
        data: whether every byte is read.
        on_progress: called with bytes done and bytes in all.

    Attributes:
        data: as it was said.
        problems: those that are kept.
        more: how many further ones.
        total: bytes that are live.
        spans: copies of spans that were looked at.
        bytes: that were read and compared.
    """

    def __init__(self, catalog: str, *, data: bool, on_progress: Progress | None) -> None:
        self._catalog, self.data, self._on_progress = catalog, data, on_progress
        self.problems: list[Problem] = []
        self.more = self.total = self.spans = self.bytes = 0
        self._done = 0

    def note(self, problem: Problem) -> None:
        """One thing is wrong."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        else:
            self.more += 1

    def of_catalog(
        self, what: str, *, name: bytes = b"", pool: str = "", mend: str = REBUILD
    ) -> None:
        """The catalog is wrong, or contradicts the volumes."""
        self.note(Problem(what, mend, pool=pool, path=self._catalog, object=name))

    def of_volume(
        self, volume: Volume, offset: int | None, what: str, mend: str, name: bytes = b""
    ) -> None:
        """Something is wrong on a volume."""
        self.note(Problem(what, mend, volume.pool, volume.path, offset, name))

    def advance(self, size: int) -> None:
        """So many bytes more are done."""
        self._done += size
        if self._on_progress is not None:
            self._on_progress(min(self._done, self.total), self.total)

    def finish(self) -> None:
        """All bytes are done, whatever was not there to be read."""
        if self._on_progress is not None:
            self._on_progress(self.total, self.total)


def without_path(error: BaseException, volume: Volume) -> str:
    """What an error says, without the path that stands beside it."""
    return str(error).removeprefix(f"{volume.path}: ")

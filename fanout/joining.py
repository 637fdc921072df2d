"""Puts bytes together from copies that are damaged at different places; what they should come to is known by a sum.

Where all that can be read agrees there is nothing to choose. Each stretch where copies differ is taken from one of them; if that is not it,
one stretch is begun with one copy and ended with another, as when the damage of one follows that of the other.
"""

from __future__ import annotations

from itertools import islice, permutations, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PIECE = 4096  # bytes that are taken from one copy: what a medium loses at once
TRIES = 2048  # that are made before it is given up: 0.2 s for a block of 1 MiB


def join(copies: Sequence[Sequence[bytes | None]], proves: Callable[[bytes], bool]) -> bytes | None:
    """The bytes that the copies have between them; None: not found.

    Args:
        copies: the same bytes, cut into the same pieces; None: one that cannot be read.
        proves: whether bytes are what they should be.
    """
    base: list[bytes] = []
    doubtful: list[int] = []
    for at, variants in enumerate(zip(*copies, strict=True)):
        different = list(dict.fromkeys(piece for piece in variants if piece is not None))
        if not different:
            return None
        base.append(different[0])
        if len(different) > 1:
            doubtful.append(at)
    for choice in islice(_choices(copies, doubtful), TRIES):
        for at, piece in choice:
            base[at] = piece
        data = b"".join(base)
        if proves(data):
            return data
    return None


def _choices(
    copies: Sequence[Sequence[bytes | None]], doubtful: Sequence[int]
) -> Iterator[list[tuple[int, bytes]]]:
    """Pieces for all doubtful places, the likelier ones first."""
    runs = _runs(doubtful)
    whole = [
        [taken for copy in copies if (taken := _taken((copy, at) for at in run))] for run in runs
    ]
    for some in product(*whole):
        yield [piece for taken in some for piece in taken]
    for number, run in enumerate(runs):
        others = [*whole[:number], *whole[number + 1 :]]
        for turn, pair in product(range(1, len(run)), permutations(copies, 2)):
            mixed = _taken((pair[at >= run[turn]], at) for at in run)
            if mixed:
                for some in product(*others):
                    yield [*mixed, *(piece for taken in some for piece in taken)]


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Numbers that follow one another, together."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] + 1 == number:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _taken(
    sources: Iterator[tuple[Sequence[bytes | None], int]],
) -> list[tuple[int, bytes]] | None:
    """The pieces; None: one of them cannot be read."""
    taken: list[tuple[int, bytes]] = []
    for copy, at in sources:
        piece = copy[at]
        if piece is None:
            return None
        taken.append((at, piece))
    return taken

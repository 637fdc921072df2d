"""What can be measured, a module for each kind of ``[[measure]]``; `run` in each returns a `Found`.

``stream``   as fast as it goes, beside the peers, swept over targets, chunks, streams, slots, depths
``latency``  one chunk at a time until it is durable on every target
``slow``     a target slows down in the middle of a stream
``hang``     a target stops answering
``small``    small objects, committed durably to three pools
``memory``   how much a process grows while it streams
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanout.bench.figures import Figure

Tell = Callable[[str], None]
"""Told what runs now."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a measure found.

    Attributes:
        record: plain values for JSON.
        figures: those that could be made; a peer that is absent makes none.
        absent: who or what is missing, and why.
    """

    record: Mapping[str, object]
    figures: tuple[Figure, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)

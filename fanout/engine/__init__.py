"""The first door: bytes to several files or devices at once, and what happened on each. No pools, no catalog.

::

    with Engine() as engine:
        targets = [engine.open(path, replace=True) for path in paths]
        with engine.stream(targets) as stream:
            stream.place([0] * len(targets), None)
            for chunk in chunks:
                stream.write(chunk)
            length = stream.position
            outcomes = stream.sync()            # {target: Outcome}
        ends = [target.finish(length) for target in targets]    # cut to length, flushed, the name as well, closed

An engine owns one fixed arena of slots. A stream copies the caller's bytes once, hashes them in the same pass, and the engine writes
that one slot to every target. A target that fails stops receiving; the healthy ones go on, and the stream says who failed and why.

Durability: `Stream.write` only *accepts* bytes. They are durable on a target when `Stream.sync` reports that target ok; for a file
that the engine created, when `Target.finish` does (it also makes the name durable).

Threads: any thread may call anything. A stream serves one caller at a time; a second one gets `InterfaceError`.

Times are in seconds, sizes and offsets in bytes. ``timeout=None`` waits for ever, which the engine's hard deadline bounds: a target
that does not answer in that time is let go. Neither counts the time for which the process was stopped.

This package is the only one that imports ``fanout._core``.
"""

from __future__ import annotations

try:
    from fanout import _core as _core
except ImportError as error:
    raise ImportError(
        f"fanout's native core cannot be loaded ({error}): in a checkout run `make build`, elsewhere `pip install .`;"
        " if you are in a checkout but meant an installed fanout, start Python elsewhere or with -P"
    ) from error

from fanout.engine.engine import Engine
from fanout.engine.status import fault_class
from fanout.engine.stream import Lease, Stream
from fanout.engine.target import Target
from fanout.engine.values import EngineInfo, Event, EventKind, Fault, Geometry, Leg, Request

__all__ = [
    "Engine",
    "EngineInfo",
    "Event",
    "EventKind",
    "Fault",
    "Geometry",
    "Lease",
    "Leg",
    "Request",
    "Stream",
    "Target",
    "fault_class",
]

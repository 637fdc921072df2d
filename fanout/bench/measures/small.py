"""Small objects, committed durably to three pools: how many a second, by the number that share a transaction.

A whole store with its catalog, one primary and two copy pools on files that were written once. Beside a busy neighbour as well: a Python
thread that never lets go of the interpreter by itself, as a daemon has when it parses or encrypts.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.bench.figures import Figure, rounded
from fanout.bench.measures import Found
from fanout.bench.plan import named
from fanout.bench.rounds import Spread
from fanout.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.bench.measures import Tell
    from fanout.bench.places import Place
    from fanout.bench.plan import SmallMeasure

MIB = 1 << 20
NODE = "N1"
POOLS = ("PRIMARY", "COPY1", "COPY2")
# What an object and a transaction take beside the bytes: footer, header, rounding to the granule.
OBJECT_EXTRA, TRANSACTION_EXTRA = 256, 16 << 10

CONFIG = """
[store]
catalog = "catalog.db"
[engine]
backend = "{backend}"
[device_classes.disk]
type = "disk"
[pools.PRIMARY]
type = "primary"
device_class = "disk"
volumes = [{{ path = "primary.vol", size = "{size} MiB" }}]
copy_pools = ["COPY1", "COPY2"]
[pools.COPY1]
type = "copy"
device_class = "disk"
volumes = [{{ path = "copy1.vol", size = "{size} MiB" }}]
[pools.COPY2]
type = "copy"
device_class = "disk"
volumes = [{{ path = "copy2.vol", size = "{size} MiB" }}]
[domains.D]
destination = "PRIMARY"
[nodes.N1]
domain = "D"
"""


@contextlib.contextmanager
def site(directory: Path, size_mib: int, *, backend: str = "auto") -> Iterator[Path]:
    """A new store in a directory of its own, removed afterwards; yields the path of its configuration.

    Args:
        directory: where.
        size_mib: of each volume; there is one in each pool.
        backend: of its engine.
    """
    with tempfile.TemporaryDirectory(prefix="fanout-store-", dir=directory) as made:
        config = Path(made, "fanout.toml")
        config.write_text(CONFIG.format(size=size_mib, backend=backend), encoding="utf-8")
        Store.create(config, write_once=True)
        yield config


@contextlib.contextmanager
def store(directory: Path, size_mib: int, *, backend: str = "auto") -> Iterator[Store]:
    """The same, open."""
    with site(directory, size_mib, backend=backend) as config, Store.open(config) as opened:
        yield opened


def put_many(opened: Store, count: int, group: int, size: int, label: str) -> float:
    """Objects per second, committed durably in all three pools, in transactions of `group`."""
    data = os.urandom(size)
    began = time.monotonic()
    with opened.session(NODE) as session:
        for first in range(0, count, group):
            for attempt in session.attempts():
                with attempt as transaction:
                    for number in range(first, min(first + group, count)):
                        transaction.put(f"{label}/{number}", data)
    return count / (time.monotonic() - began)


@contextlib.contextmanager
def busy_neighbour() -> Iterator[None]:
    """A Python thread that never lets go of the interpreter by itself."""
    stop = threading.Event()

    def spin() -> None:
        count = 0
        while not stop.is_set():
            count += 1

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run(measure: SmallMeasure, place: Place, *, backend: str, tell: Tell) -> Found:
    """Every group, alone and beside the neighbour, in turns."""
    assert place.directory is not None
    counts = {group: _count(measure, group) for group in measure.groups}
    beside = ("alone", "busy") if measure.busy else ("alone",)
    rates: dict[tuple[int, str], list[float]] = {
        (group, how): [] for group in measure.groups for how in beside
    }
    tell(f"{measure.title}: making the store")
    with store(
        place.directory, _volume_mib(measure, counts, len(beside)), backend=backend
    ) as opened:
        for number in range(-1, measure.rounds):
            step = f"{measure.title}: round {number + 1} of {measure.rounds}"
            for (group, how), found in rates.items():
                tell(f"{step}: {group} a transaction, {how}")
                label = f"{number}/{group}/{how}"
                with busy_neighbour() if how == "busy" else contextlib.nullcontext():
                    rate = put_many(opened, counts[group], group, measure.object_bytes, label)
                if number >= 0:
                    found.append(rate)
        held = {pool.name: pool.objects for pool in opened.query_stgpools()}
    record = {
        "object_bytes": measure.object_bytes,
        "pools_hold": held,
        "objects_per_second": {
            how: {str(group): Spread.of(rates[group, how]).rounded(1) for group in measure.groups}
            for how in beside
        },
        "objects_a_round": {str(group): count for group, count in counts.items()},
    }
    figures = tuple(
        Figure(
            named(measure, how, f"group={group}"),
            f"objects committed, {group:,} a transaction"
            + (", beside a busy thread" if how == "busy" else ""),
            "/s",
            more_is_better=True,
            relative=False,
            rounds=tuple(rounded(value) for value in values),
        )
        for (group, how), values in rates.items()
    )
    return Found(record, figures)


def _count(measure: SmallMeasure, group: int) -> int:
    """Objects of one round: whole transactions, one at least."""
    most = max(1, measure.most_objects // group)
    return group * min(measure.most_transactions, most)


def _volume_mib(measure: SmallMeasure, counts: dict[int, int], times: int) -> int:
    used = sum(
        count * (measure.object_bytes + OBJECT_EXTRA) + count // group * TRANSACTION_EXTRA
        for group, count in counts.items()
    )
    return used * times * (measure.rounds + 1) * 5 // 4 // MIB + 64

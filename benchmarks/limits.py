"""What a whole store takes: sizes, counts, stalled clients, a busy neighbour. Prints one JSON object.

    python benchmarks/limits.py [--directory DIR] [--quick] > benchmarks/results/limits.json

Real files that were written once, real catalog, one primary and two copy pools; nothing is left behind. Speeds depend on the disk and on who else uses the
machine; what must hold everywhere is under `holds`, and the exit code says whether it did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

import fanout
from fanout.bench.measures.small import NODE, POOLS, busy_neighbour, put_many, site, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20
SMALL_BYTES = 4096
STALL_SECONDS = 3.0
SESSIONS, STALLED = 8, 2
# What four times the work may take, in units of four times as long: machines are noisy.
LINEAR = 2.0


def peak_rss() -> int:
    """Bytes, of this process since its start."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held(opened: fanout.Store) -> set[int]:
    """How many objects each pool holds; one number when they agree."""
    return {pool.objects for pool in opened.query_stgpools()}


def edges(opened: fanout.Store) -> dict[str, Any]:
    """0 bytes, 1 byte, and names that are not UTF-8."""
    wanted = {b"empty": b"", b"one": b"x", b"\xff\xfe/\x80": b"not UTF-8"}
    with opened.session(NODE) as session:
        for attempt in session.attempts():
            with attempt as transaction:
                for name, data in wanted.items():
                    transaction.put(name, data)
    same = all(
        b"".join(opened.get(NODE, name, pool=pool)) == data
        for name, data in wanted.items()
        for pool in POOLS
    )
    return {"holds": same}


def one_large(opened: fanout.Store, size: int) -> dict[str, Any]:
    """One object of unknown content and known length, in constant memory."""
    piece = os.urandom(MIB)
    digest = xxhash.xxh3_128()
    before, began = peak_rss(), time.monotonic()

    def pieces() -> Iterator[bytes]:
        for _ in range(size // MIB):
            yield piece

    with opened.session(NODE) as session:
        for attempt in session.attempts():
            with attempt as transaction:
                transaction.put("large", fanout.once(pieces(), length=size))
        receipt = session.receipt
    seconds, growth = time.monotonic() - began, peak_rss() - before
    for data in pieces():
        digest.update(data)
    assert receipt is not None
    same = receipt.objects[0].digest == digest.digest()
    return {
        "holds": same and not receipt.degraded and growth < 32 * MIB,
        "bytes": size,
        "client_bytes_per_second": round(size / seconds),
        "peak_memory_growth_bytes": growth,
    }


def stalled_clients(opened: fanout.Store, size: int) -> dict[str, Any]:
    """Eight sessions at once; two of them stop in the middle for a while. The others must not wait for them."""
    piece = os.urandom(MIB)
    seconds: dict[int, float] = {}

    def client(number: int) -> None:
        def pieces() -> Iterator[bytes]:
            for at in range(size // MIB):
                if number < STALLED and at == size // MIB // 2:
                    time.sleep(STALL_SECONDS)
                yield piece

        began = time.monotonic()
        with opened.session(NODE) as session:
            for attempt in session.attempts():
                with attempt as transaction:
                    transaction.put(f"client{number}", fanout.once(pieces(), length=size))
        seconds[number] = time.monotonic() - began

    threads = [threading.Thread(target=client, args=(number,)) for number in range(SESSIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    others = max(seconds[number] for number in range(STALLED, SESSIONS))
    stalled = min(seconds[number] for number in range(STALLED))
    return {
        "holds": len(seconds) == SESSIONS and others < stalled,
        "slowest_other_seconds": round(others, 3),
        "fastest_stalled_seconds": round(stalled, 3),
    }


def small_objects(opened: fanout.Store, count: int) -> dict[str, Any]:
    """Objects of 4 KiB, by size of the transaction, and beside a busy thread."""
    before = next(iter(held(opened)))
    rates = {
        str(group): round(
            put_many(opened, min(count, group * 200), group, SMALL_BYTES, f"g{group}")
        )
        for group in (1, 10, 100, 4096)
    }
    put_many(opened, 10_000, 1000, SMALL_BYTES, "warm")
    rates["1000"] = round(put_many(opened, count, 1000, SMALL_BYTES, "g1000"))
    with busy_neighbour():
        beside = round(put_many(opened, count // 4, 1000, SMALL_BYTES, "busy"))
    after = held(opened)
    return {
        "holds": len(after) == 1 and next(iter(after)) > before + count,
        "objects": count,
        "objects_per_second_by_group": rates,
        "objects_per_second_beside_a_busy_thread_in_groups_of_1000": beside,
    }


def tiny_objects(opened: fanout.Store, count: int) -> dict[str, Any]:
    """Objects of 20 bytes, memory included."""
    before = peak_rss()
    rate = put_many(opened, count, 4000, 20, "tiny")
    growth = peak_rss() - before
    return {
        "holds": len(held(opened)) == 1 and growth < 64 * MIB,
        "objects": count,
        "objects_per_second": round(rate),
        "peak_memory_growth_bytes": growth,
    }


def put_singly(config: Path, numbers: range) -> None:
    """One object to a transaction, eight clients at once."""
    data = os.urandom(SMALL_BYTES)

    def client(opened: fanout.Store, mine: range) -> None:
        with opened.session(NODE) as session:
            for number in mine:
                for attempt in session.attempts():
                    with attempt as transaction:
                        transaction.put(f"single/{number}", data)

    with fanout.Store.open(config) as opened:
        shares = [numbers[first::SESSIONS] for first in range(SESSIONS)]
        threads = [threading.Thread(target=client, args=(opened, share)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def open_and_close(config: Path) -> None:
    """As a daemon that starts."""
    fanout.Store.open(config).close()


def lose_and_repair(config: Path) -> None:
    """The last pool loses its volume and is filled again."""
    volume = config.with_name(f"{POOLS[-1].lower()}.vol")
    fanout.retire_volume(config, volume, force=True)
    volume.unlink()
    fanout.Store.extend(config)
    with fanout.Store.open(config) as opened:
        fanout.backup_stgpool(opened, POOLS[0], POOLS[-1])


def many_transactions(directory: Path, count: int) -> dict[str, Any]:
    """Transactions of one object each: what they take later, and that it grows no faster than their number."""
    steps: dict[str, Callable[[Path], object]] = {
        "open": open_and_close,
        "check": fanout.check_store,
        "rebuild": lambda config: fanout.rebuild_catalog(config, into=config.with_name("again.db")),
        "repair": lose_and_repair,
    }
    seconds: dict[str, list[float]] = {step: [] for step in steps}
    there = 0
    with site(directory, max(64, count // 16)) as config:
        for number in (count // 4, count):
            put_singly(config, range(there, number))
            there = number
            for step, take in steps.items():
                began = time.monotonic()
                take(config)
                seconds[step].append(time.monotonic() - began)
            config.with_name("again.db").unlink()
        with fanout.Store.open(config) as opened:
            complete = held(opened) == {count}
    return {
        "holds": complete and all(most < 4 * LINEAR * least for least, most in seconds.values()),
        "transactions": count,
        "seconds": {step: round(most, 2) for step, (_, most) in seconds.items()},
        "seconds_with_a_quarter": {step: round(least, 2) for step, (least, _) in seconds.items()},
    }


def main() -> int:
    """Run all, print JSON; 1 when something that must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--quick", action="store_true", help="a hundredth of the sizes")
    options = parser.parse_args()
    scale = 100 if options.quick else 1
    with store(options.directory, 7168 // (8 if options.quick else 1)) as opened:
        results = {
            "edges": edges(opened),
            "large_object": one_large(opened, max(64 * MIB, (5 << 30) // scale // MIB * MIB)),
            "stalled_clients": stalled_clients(opened, 64 * MIB // (8 if options.quick else 1)),
            "small_objects": small_objects(opened, 100_000 // scale),
            "tiny_objects": tiny_objects(opened, 1_000_000 // scale),
            "many_transactions": many_transactions(options.directory, 40_000 // scale),
        }
        machine = {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "backend": opened.engine.info.backend,
        }
    holds = all(result["holds"] for result in results.values())
    json.dump({"holds": holds, "machine": machine, **results}, sys.stdout, indent=2)
    print()
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())

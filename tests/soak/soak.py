"""Minutes of random work with random faults, and nothing may be left: `python -m tests.soak.soak --seconds 600`.

Two engines (io_uring and threads) live for the whole run and are used bare by several threads at once; beside them a store is
opened, written, repaired, read and closed again and again. Targets lie on a fault file system that reports errors, delays, crawls and
holds operations until their target is let go; others are healthy. In the store it is another pool each time, a primary among them;
who is ejected for being slow and what is read back before a commit (`on_slow`, `verify`) is drawn, too. After every round:

* a target that was synced holds exactly the bytes of its source, and the digest is the independent library's;
* the healthy targets were synced whatever the others did, also where they were read back;
* all slots are free, all targets are closed, no stream is left.

And over the whole run, from the end of the warm-up (a tenth of it) on: no further file descriptor, no further thread, and no growth
of memory beyond RSS_SLACK. The result is one JSON object; the exit status is 1 when something leaked. What is wrong raises.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import errno
import gc
import json
import os
import platform
import random
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

import fanout
from fanout import backup_stgpool, copy_activedata
from fanout.engine import Engine, Target
from fanout.errors import FanoutError, TargetError, TransactionFailed
from tests.faults.devices import fault_disk, scratch
from tests.faults.faultfs import FOR_EVER, FaultFS
from tests.faults.rules import Rule
from tests.store.conftest import MIB, POOLS, Site

if TYPE_CHECKING:
    from fanout.store import Store

PRIMARIES, SECONDARIES = POOLS[:2], POOLS[2:]
PATIENCE = 0.3  # seconds that a target may hold up its peers
SLOT = 64 << 10
CLIENTS = 4
RSS_SLACK = 24 << 20  # bytes: what the allocator may still grow by after the warm-up
ROUNDS_OF_AN_EPOCH = 15
SETTLE_SECONDS = 20.0
ERRNOS = [errno.EIO, errno.ENOSPC, errno.ENODATA, errno.ETIMEDOUT, errno.EROFS, errno.EINVAL]
HURRIED = {
    "soft_deadline": 0.5,
    "hard_deadline": 3.0,
    "patience": PATIENCE,
}  # above what a busy machine needs for a healthy target


@dataclasses.dataclass
class Sample:
    """What the process holds."""

    second: float
    rss: int
    descriptors: int
    threads: int


def threads_of_ours() -> int:
    """Threads without the kernel's own workers, which come and go with the rings ("iou-wrk-…")."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            names.append((task / "comm").read_text())
    return sum(not name.startswith("iou-") for name in names)


def sample(began: float, threads: int) -> Sample:
    """Once helper threads that were held have come home, or after SETTLE_SECONDS if they do not."""
    limit = time.monotonic() + SETTLE_SECONDS
    while threads_of_ours() > threads and time.monotonic() < limit:
        time.sleep(0.01)
    gc.collect()
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return Sample(
        round(time.monotonic() - began, 1),
        rss,
        len(os.listdir("/proc/self/fd")),
        threads_of_ours(),
    )


class Soak:
    """The run: its random numbers, its counters, its long-lived engines."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds, self.seed = seconds, seed
        self.rng = random.Random(seed)
        self.began = time.monotonic()
        self.count: collections.Counter[str] = collections.Counter()
        self.samples: list[Sample] = []
        self.bytes = random.Random(0).randbytes(3 * MIB)

    def over(self) -> bool:
        return time.monotonic() - self.began > self.seconds

    def run(self) -> None:
        backends = ["io_uring", "threads"]
        with contextlib.ExitStack() as stack:
            engines = [
                stack.enter_context(
                    Engine(
                        backend=backend,
                        memory_bytes=128 * SLOT,
                        slot_size_bytes=SLOT,
                        max_streams=CLIENTS - 1,
                        **HURRIED,  # type: ignore[arg-type]
                    )
                )
                for backend in backends
            ]
            while not self.over():
                self.epoch(engines)
                self.samples.append(sample(self.began, 1 + len(engines)))
                self.say()

    def say(self) -> None:
        last = self.samples[-1]
        print(
            f"{last.second:7.1f} s  rss {last.rss >> 20} MiB, {last.descriptors} descriptors,"
            f" {last.threads} threads, {self.count['rounds']} rounds, {self.count['bytes'] >> 20} MiB",
            file=sys.stderr,
            flush=True,
        )

    def epoch(self, engines: list[Engine]) -> None:
        """A fault file system, a store, and rounds of both kinds."""
        with scratch() as base, fault_disk(64 * MIB) as disk:
            store = StoreWork(self, base / "store", disk.fs, disk.path, disk.name)
            for _ in range(ROUNDS_OF_AN_EPOCH):
                if self.over():
                    break
                for engine in engines:
                    self.engine_round(engine, disk.fs, base)
                store.round()
                self.count["rounds"] += 1
            store.end()

    # -- the bare engine

    def engine_round(self, engine: Engine, fs: FaultFS, base: Path) -> None:
        names = [f"bad{number}" for number in range(CLIENTS)]
        for name in names:
            fs.create_file(name, 0)
        fs.set_rules(*self.rules("/bad*", 40))
        problems: list[BaseException] = []

        def work(number: int, seed: int) -> None:
            try:
                client = Client(self, engine, random.Random(seed), number)
                client.work(fs.path(names[number]), base / f"good{number}")
            except BaseException as problem:  # raised again below
                problems.append(problem)

        threads = [
            threading.Thread(target=work, args=(number, self.rng.getrandbits(32)))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        fs.heal()
        if problems:
            raise BaseExceptionGroup(f"seed {self.seed}", problems)
        self.settle(engine)
        for name in names:
            fs.backing(name).unlink()
        fs.settle()

    def rules(self, path: str, latest: int) -> list[Rule]:
        """Up to three faults, each among the first `latest` operations of its kind."""
        rng, rules = self.rng, []
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            op = rng.choice(["write", "write", "write", "fsync", "fallocate", "open", "read"])
            how: dict[str, Any] = {
                "nth": rng.randrange(1, latest),
                "count": rng.choice([1, 3, None]),
            }
            kind = rng.choice(["errno", "errno", "late", "crawl", "hold", "after"])
            if kind == "late":
                how["delay"] = rng.uniform(0.0, 0.05)
            elif kind == "crawl":
                how |= {"delay": PATIENCE, "count": 20}
            elif kind == "hold":
                how |= {"delay": FOR_EVER, "count": rng.choice([1, 2])}
            else:
                how |= {"errno": rng.choice(ERRNOS), "after_io": kind == "after"}
            self.count[f"rule {op} {kind}"] += 1
            rules.append(Rule(op=op, path=path, **how))
        return rules

    def settle(self, engine: Engine) -> None:
        """Nothing of the round is left in the engine."""
        limit = time.monotonic() + SETTLE_SECONDS
        while True:
            self.count["events"] += len(engine.events())
            info = engine.info
            if info.slots_free == info.slot_count and not info.targets and not info.streams:
                return
            if time.monotonic() > limit:
                raise AssertionError(f"seed {self.seed}: left in the engine: {info}")
            time.sleep(0.005)


class Client:
    """One thread of an engine round: one stream to a bad and one or two good targets."""

    def __init__(self, soak: Soak, engine: Engine, rng: random.Random, number: int) -> None:
        self.soak, self.engine, self.rng, self.number = soak, engine, rng, number

    def work(self, bad: Path, good: Path) -> None:
        with contextlib.ExitStack() as stack:
            targets = []
            for path in (bad, good):
                try:
                    target = self.engine.open(
                        path,
                        replace=True,
                        lock=True,
                        lock_wait=5.0,
                        size=4 * MIB,
                        on_slow=self.rng.choice(["wait", "eject"]) if path == bad else "wait",
                    )
                except (TargetError, TimeoutError):
                    if path == good:
                        raise
                    self.soak.count["not opened"] += 1
                    continue
                stack.callback(target.close, timeout=self.rng.choice([0.0, 0.1, 1.0]))
                targets.append(target)
            self.rng.shuffle(targets)
            self.pour(targets, good)

    def pour(self, targets: list[Target], good: Path) -> None:
        rng, count = self.rng, self.soak.count
        data = memoryview(self.soak.bytes)[
            : rng.choice([0, 1, rng.randrange(SLOT), rng.randrange(3 * MIB)])
        ]
        verify = [target for target in targets if rng.random() < 0.3]
        count["read back"] += len(verify)
        with self.engine.stream(targets, timeout=60.0, verify=verify) as stream:
            stream.place([0] * len(targets), 4 * MIB if verify else None)
            at = 0
            while at < len(data):
                piece = data[at : at + rng.randrange(1, 300_000)]
                if rng.random() < 0.3:
                    with contextlib.suppress(TargetError), stream.lease() as lease:
                        piece = piece[: len(lease)]
                        lease.view[: len(piece)] = piece
                        lease.commit(len(piece))
                else:
                    stream.write(piece)
                at += len(piece)
            digest = stream.digest()
            if rng.random() < 0.1:
                stream.abort()
                count["aborted"] += 1
                return
            outcomes = stream.sync(timeout=60.0)
        assert digest == xxhash.xxh3_128_digest(data)
        count["bytes"] += len(data)
        for target, outcome in outcomes.items():
            count[f"outcome {outcome.code.name.lower()}"] += 1
            if outcome.ok:
                with (
                    contextlib.suppress(TargetError)
                    if target.path != str(good)
                    else contextlib.nullcontext()
                ):
                    assert self.engine.read(target, 0, len(data)) == data, target.path
            else:
                assert target.path != str(good), outcome


class StoreWork:
    """A store of which one pool lies on the fault disk; lives for one epoch."""

    def __init__(self, soak: Soak, base: Path, fs: FaultFS, device: str, name: str) -> None:
        base.mkdir()
        self.soak, self.fs, self.name = soak, fs, name
        rng = soak.rng
        self.bad = rng.choice(POOLS)
        soak.count[f"epochs with a bad {self.bad}"] += 1
        self.site = site = Site(base, random.Random(rng.getrandbits(32)))
        site.objects.clear()
        site.size = 64 * MIB
        site.object_limit = 200_000  # so that some objects go to TAPEPOOL
        site.hard_deadline, site.patience = HURRIED["hard_deadline"], PATIENCE
        site.devices[self.bad] = device
        for pool in POOLS:
            options = [f'verify = "{rng.choice(["none", "readback"])}"']
            if pool in SECONDARIES:
                options.append(f'on_slow = "{rng.choice(["wait", "eject"])}"')
            site.pool_options[pool] = "\n".join(options)
        site.options = site.pool_options["DISKPOOL"]
        site.create()
        self.store: Store | None = None
        self.number = 0

    def round(self) -> None:
        rng = self.soak.rng
        if self.store is None:
            self.store = self.site.open()
        store = self.store
        if rng.random() < 0.4:
            self.fs.set_rules(*self.soak.rules(self.name, 6))
        self.sessions(store)
        self.fs.heal()
        if rng.random() < 0.3:
            with contextlib.suppress(FanoutError):
                self.repair(store)
        for node, name in rng.sample(sorted(self.site.objects), min(5, len(self.site.objects))):
            self.check(store, node, name, None)
        if rng.random() < (
            0.6 if self.bad in PRIMARIES else 0.15
        ):  # what hung or failed is used again
            store.close()
            self.store = None

    def check(self, store: Store, node: str, name: bytes, pool: str | None) -> None:
        """The object is what it was; without a pool from any, as long as only the bad one gives it up."""
        with store.get(node, name, pool=pool) as reader:
            data = b"".join(map(bytes, reader))
            assert {fault.pool for fault in reader.faults} <= {self.bad}, reader.faults
        assert data == self.site.objects[node, name], (node, name)
        self.soak.count["objects read"] += 1

    def sessions(self, store: Store) -> None:
        """Both clients at once."""
        problems: list[BaseException] = []

        def work(node: str, seed: int) -> None:
            try:
                self.session(store, node, random.Random(seed))
            except BaseException as problem:  # raised again below
                problems.append(problem)

        threads = [
            threading.Thread(target=work, args=(node, self.soak.rng.getrandbits(32)))
            for node in ("N1", "N2")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        if problems:
            raise BaseExceptionGroup(f"seed {self.soak.seed}", problems)

    def session(self, store: Store, node: str, rng: random.Random) -> None:
        count, objects = self.soak.count, {}
        for _ in range(rng.choice([1, 3, 30])):
            size = rng.choice([0, rng.randrange(5000), rng.randrange(5000), rng.randrange(400_000)])
            begin = rng.randrange(len(self.soak.bytes) - size)
            self.number += 1
            objects[b"%s-%d" % (node.encode(), self.number)] = self.soak.bytes[begin : begin + size]
        try:
            with store.session(node) as session:
                for attempt in session.attempts():
                    with attempt as txn:
                        for name, data in objects.items():
                            txn.put(name, data)
        except TransactionFailed:
            count["transactions failed"] += 1
            return
        count["transactions"] += 1
        count["objects"] += len(objects)
        count["bytes"] += sum(map(len, objects.values()))
        self.site.objects.update({(node, name): data for name, data in objects.items()})

    def repair(self, store: Store) -> None:
        """Every secondary from every primary, as far as it goes."""
        for primary in PRIMARIES:
            for pool in SECONDARIES:
                copy = copy_activedata if pool == "ACTIVEDATAPOOL" else backup_stgpool
                self.soak.count["repaired"] += copy(store, primary, pool).copied_objects

    def end(self) -> None:
        """Repaired completely, and every object is read from every pool that should have it."""
        self.fs.heal()
        if self.store is not None:
            self.store.close()
        with self.site.open() as store:
            self.repair(store)
            assert store.query_gaps() == []
            for node, name in self.site.objects:
                self.check(store, node, name, None)
                for pool in SECONDARIES if node == "N1" else SECONDARIES[:2]:
                    self.check(store, node, name, pool)


def verdict(samples: list[Sample], seconds: float) -> tuple[list[str], dict[str, int]]:
    """What has leaked, and by how much each figure grew after the warm-up."""
    warm = [s for s in samples if s.second >= seconds / 10] or samples
    first, last = warm[0], warm[-1]
    growth = {
        "rss": last.rss - first.rss,
        "descriptors": last.descriptors - first.descriptors,
        "threads": last.threads - first.threads,
    }
    leaks = [what for what in ("descriptors", "threads") if growth[what] > 0]
    return leaks + (["rss"] if growth["rss"] > RSS_SLACK else []), growth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--result", type=Path, help="write the JSON here, too")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    soak = Soak(options.seconds, options.seed)
    soak.run()
    leaks, growth = verdict(soak.samples, options.seconds)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m tests.soak.soak --seconds {options.seconds:g} --seed {options.seed}",
        "fanout": fanout.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "seconds": round(time.monotonic() - soak.began, 1),
        "leaks": leaks,
        "growth_after_warm_up": growth,
        "counts": dict(sorted(soak.count.items())),
        "samples": [dataclasses.asdict(s) for s in soak.samples],
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if options.result:
        options.result.write_text(text)
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())

"""The devices of the matrix: a small store of which one pool lies on a device that can be made to fail in every way of the table.

Everything lies on one fault file system, the catalog too. The failing pool's volume is a file of it, a loop device over such a file,
or a zram device.
"""

from __future__ import annotations

import contextlib
import errno as errno_names
import fcntl
import os
import sqlite3
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from tests.crash.harness import Harness
from tests.crash.matrix import DEADLINE_SECONDS, POOL_OF
from tests.crash.nursery import Nursery
from tests.crash.site import SECONDARIES, SPACE, CrashSite
from tests.faults import devices
from tests.faults.faultfs import FaultFS
from tests.faults.needs import require
from tests.faults.rules import Rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.crash.matrix import Case

SIZE = 2 << 20


@dataclass(slots=True)
class Rig:
    """See above.

    Attributes:
        harness: store, processes, oracle.
        device: loop, file or zram.
        pool: the one that fails; "" for the catalog.
        path: of its volume.
        name: of the file under it, as rules know it.
        zram, loop: the device, if it is one.
        writes: how many writes to its space a transaction makes, by backend.
    """

    harness: Harness
    device: str
    pool: str
    path: Path
    name: str
    zram: devices.Zram | None = None
    loop: devices.LoopDevice | None = None
    writes: dict[str, int] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def made(cls, device: str, pool: str) -> Iterator[Rig]:
        """A store with some transactions, and one with gaps in COPYPOOL1 (templates of the harness)."""
        require("fuse", "engine")
        with contextlib.ExitStack() as stack:
            fs = stack.enter_context(FaultFS(cached=True))
            site = CrashSite(fs.path(), size=SIZE)
            zram, loop = None, None
            name = f"/{site.volume(pool).relative_to(site.base)}" if pool else ""
            if device == "loop":
                disk = stack.enter_context(devices.fault_disk(SIZE, fs=fs))
                site.devices[pool], loop, name = disk.path, disk.loop, disk.name
            if device == "zram":
                zram = stack.enter_context(devices.zram(SIZE))
                site.devices[pool], name = zram.path, ""
            nursery = stack.enter_context(Nursery())
            kept = Path(stack.enter_context(devices.scratch()))
            harness = Harness(fs, site, nursery, kept)
            path = site.volume(pool) if pool else site.path
            rig = cls(harness, device, pool, path, name, zram, loop)
            harness.make_templates()
            yield rig

    # ---- states --------------------------------------------------------------------------------------

    def begin(self, case: Case) -> None:
        """A state to begin at, configured for the case."""
        site = self.harness.site
        if len(case.row.places) > 1 and case.backend not in self.writes:
            self.writes[case.backend] = self._count(case.backend)
        self.harness.begin_at("gaps" if case.row.phase == "repair" else "some")
        site.backend = "auto" if case.row.made_by == "no_uring" else case.backend
        site.copy_continue = case.role != "CN"
        site.hard_deadline = DEADLINE_SECONDS if case.row.hangs else 20.0
        site.configure()

    def place(self, case: Case) -> int:
        """Which of the writes to the space is hit."""
        if case.place == "first" or case.row.rule.get("op") != "write":
            return 1
        total = self.writes[case.backend]
        return total if case.place == "last" else (total + 1) // 2

    def _count(self, backend: str) -> int:
        """Run the client unharmed once, and count its first transaction's writes."""
        harness = self.harness
        harness.begin_at("some")
        harness.site.backend, harness.site.hard_deadline = backend, 20.0
        harness.site.configure()
        child = harness.start("clients:under_fault", seed=11, only_first=True)
        child.go()
        child.wait_for("open")
        harness.fs.set_rules(self.rule(op="write", nth=1 << 30))
        child.go()
        child.wait_for("over")
        count = harness.fs.status().hits[0]
        child.go()
        assert child.wait() == 0, child.errors
        return count

    def rule(self, **fields: Any) -> Rule:
        """A rule for the space of the failing volume, or (writes apart) for all of it."""
        if fields.get("op") in ("write", "read") and "path" not in fields:
            fields = {"start": SPACE, "end": SIZE - 4096, **fields}
        return Rule(**{"path": self.name, **fields})

    # ---- faults ------------------------------------------------------------------------------------------

    def break_for(self, case: Case, stack: contextlib.ExitStack) -> None:
        """Make the fault; what must be undone goes onto the stack."""
        if case.row.made_by:
            getattr(self, f"_{case.row.made_by}")(case, stack)
        else:
            self.harness.fs.set_rules(self._rule_of(case))

    def _rule_of(self, case: Case, **more: Any) -> Rule:
        fields = dict(case.row.rule)
        if case.errno:
            fields["errno"] = getattr(errno_names, case.errno)
        if case.row.phase == "open" and fields["op"] == "write":
            fields |= {"start": 0, "end": None}
        fields |= {"nth": self.place(case), "count": 1 if case.times == "once" else None}
        return self.rule(**fields, **more)

    def _locked(self, case: Case, stack: contextlib.ExitStack) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)

    def _missing(self, case: Case, stack: contextlib.ExitStack) -> None:
        away = self.path.with_suffix(".away")
        os.rename(self.path, away)
        stack.callback(os.rename, away, self.path)

    def _edit(self, stack: contextlib.ExitStack, edits: dict[int, bytes]) -> None:
        """Bytes on the medium, put back at the end."""
        before = {}
        for offset, data in edits.items():
            before[offset] = self.read(offset, len(data))
            self.write(offset, data)
        for offset, data in before.items():
            stack.callback(self.write, offset, data)

    def read(self, offset: int, length: int) -> bytes:
        """From the medium."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def write(self, offset: int, data: bytes) -> None:
        """To the medium, durably."""
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _torn(self, case: Case, stack: contextlib.ExitStack) -> None:
        self._edit(stack, {100: b"torn", SIZE - 4096 + 100: b"torn"})

    def _half_torn(self, case: Case, stack: contextlib.ExitStack) -> None:
        self.write(100, b"torn")  # the opening mends it

    def _blank(self, case: Case, stack: contextlib.ExitStack) -> None:
        self._edit(stack, {0: bytes(4096), SIZE - 4096: bytes(4096)})

    def _foreign(self, case: Case, stack: contextlib.ExitStack) -> None:
        other = self.harness.site.volume("COPYPOOL2").read_bytes()
        self._edit(stack, {0: other[:4096], SIZE - 4096: other[SIZE - 4096 : SIZE]})

    def _newer(self, case: Case, stack: contextlib.ExitStack) -> None:
        edits = {}
        for offset in (0, SIZE - 4096):
            block = bytearray(self.read(offset, 4096))
            newer = (int.from_bytes(block[12:14], "little") + 1).to_bytes(2, "little")
            block[12:16] = newer * 2
            block[-8:] = xxhash.xxh3_64_intdigest(bytes(block[:-8])).to_bytes(8, "little")
            edits[offset] = bytes(block)
        self._edit(stack, edits)

    def _short(self, case: Case, stack: contextlib.ExitStack) -> None:
        self._edit(stack, {SIZE - 8192: self.read(SIZE - 8192, 8192)})
        os.truncate(self.path, SIZE - 8192)

    def _no_uring(self, case: Case, stack: contextlib.ExitStack) -> None:
        """The client refuses it to itself."""

    def _zram_full(self, case: Case, stack: contextlib.ExitStack) -> None:
        assert self.zram is not None
        self.zram.fail()
        stack.callback(self.zram.heal)

    def _vanished(self, case: Case, stack: contextlib.ExitStack) -> None:
        number = getattr(errno_names, case.errno)
        self.harness.fs.set_rules(
            *(
                Rule(op=op, path=self.name, count=None, errno=number)
                for op in ("write", "read", "fsync", "open")
            )
        )

    def _short_then_error(self, case: Case, stack: contextlib.ExitStack) -> None:
        first = self._rule_of(case)
        self.harness.fs.set_rules(
            Rule(**{**_fields(first), "count": 1}),
            self.rule(op="write", count=None, errno=5, nth=first.nth + 1),
        )

    def _read_only(self, case: Case, stack: contextlib.ExitStack) -> None:
        assert self.loop is not None
        self.loop.set_read_only()
        stack.callback(self.loop.set_read_only, read_only=False)

    def _both_copies(self, case: Case, stack: contextlib.ExitStack) -> None:
        self._several(case, "COPYPOOL1", "ACTIVEDATAPOOL")

    def _all_secondaries(self, case: Case, stack: contextlib.ExitStack) -> None:
        self._several(case, *SECONDARIES)

    def _several(self, case: Case, *pools: str) -> None:
        site = self.harness.site
        names = [f"/{site.volume(pool).relative_to(site.base)}" for pool in pools]
        self.harness.fs.set_rules(*(self._rule_of(case, path=name) for name in names))

    def _with_primary(self, case: Case, stack: contextlib.ExitStack) -> None:
        fields = _fields(self._rule_of(case))
        self.harness.fs.set_rules(
            Rule(**fields), Rule(**{**fields, "path": "/DISKPOOL.vol", "count": 1})
        )

    def _catalog_locked(self, case: Case, stack: contextlib.ExitStack) -> None:
        db = sqlite3.connect(self.harness.site.base / "catalog.db", check_same_thread=False)
        db.execute("BEGIN IMMEDIATE")

        def later() -> None:
            time.sleep(1.0)  # it is the length of the fault
            db.rollback()
            db.close()

        thread = threading.Thread(target=later)
        thread.start()
        stack.callback(thread.join)

    def _catalog_damaged(self, case: Case, stack: contextlib.ExitStack) -> None:
        with open(self.harness.site.base / "catalog.db", "r+b") as file:
            before = file.read(4096)
            file.seek(0)
            file.write(b"\xff" * 4096)

        def mend() -> None:
            with open(self.harness.site.base / "catalog.db", "r+b") as file:
                file.write(before)

        stack.callback(mend)


def _fields(rule: Rule) -> dict[str, Any]:
    return {name: getattr(rule, name) for name in Rule.__slots__}


def pool_of(case: Case) -> str:
    """The pool whose device it is."""
    return POOL_OF[case.role]

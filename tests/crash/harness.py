"""A small store on a fault file system, processes that work on it, and their deaths.

For example:

    with Harness.made(backend="io_uring") as harness:
        harness.begin_at("some")                          the state of a template
        child = harness.start("mixed", seed=1)            then kill it, somehow
        harness.power_loss(rng)                           what no flush covered is gone
        harness.judge("what happened")                    the oracle, in a fresh process
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.crash.journal import Journal
from tests.crash.nursery import Nursery
from tests.crash.site import SPACE, CrashSite
from tests.crash.stepping import Stepper
from tests.faults.faultfs import FaultFS
from tests.faults.needs import require
from tests.faults.powerloss import MODES
from tests.faults.rules import Rule

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.crash.nursery import Child
    from tests.crash.site import Saved

# Everything that a ring or an engine thread writes to: disk volumes and sequential ones, and not the catalog.
VOLUMES = "/*[vo]?[lt]"


@dataclass(frozen=True, slots=True)
class Workload:
    """What is killed: a function of `workloads`, the state that it begins at, and the pool that fails meanwhile."""

    name: str
    template: str
    failing: str = ""


WORKLOADS = {
    one.name: one
    for one in (
        Workload("mixed", "some"),
        Workload("losing_a_copy", "some", failing="COPYPOOL1"),
        Workload("repair", "gaps"),
        Workload("deletion", "some"),
    )
}


@dataclass(slots=True)
class Harness:
    """See above.

    Attributes:
        fs: under everything: configuration, catalog and volumes.
        site: the store.
        nursery: of all processes.
        kept: a directory outside of the store.
        journal: of the present case.
        templates: states to begin at, with their journals.
        children: of the present case.
        direct: the store's files lie on the fault file system itself.
    """

    fs: FaultFS
    site: CrashSite
    nursery: Nursery
    kept: Path
    journal: Journal = field(default_factory=Journal)
    templates: dict[str, tuple[Saved, dict[str, bytes], list[bytes]]] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)
    direct: bool = True

    @classmethod
    @contextlib.contextmanager
    def made(cls, *, backend: str, secondary_size: int = 0) -> Iterator[Harness]:
        """A store with some transactions (template "some"), one that nothing was written to ("new"), and one with gaps ("gaps")."""
        require("fuse", "engine")
        with (
            FaultFS(cached=True) as fs,
            Nursery() as nursery,
            tempfile.TemporaryDirectory(prefix="harness-") as kept,
        ):
            site = CrashSite(fs.path(), backend=backend, secondary_size=secondary_size)
            harness = cls(fs, site, nursery, Path(kept))
            harness.make_templates()
            yield harness

    def make_templates(self) -> None:
        """Make the store and the states to begin at."""
        self.site.configure()
        self.complete("create", seed=None, force=bool(self.site.devices))
        self.keep("new")
        self.complete("mixed", seed=1)
        self.keep("some")
        with open(self.site.volume("COPYPOOL1"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.complete("losing_a_copy", seed=2)
        self.keep("gaps")

    @property
    def config(self) -> str:
        """Of the configuration."""
        return str(self.site.path)

    def failing(self, pool: str, *, errno: int = 5) -> Rule:
        """Writes to the space of a pool's volume fail; those to its superblocks and its directory do not."""
        name = self.site.volume(pool).relative_to(self.site.base)
        end = self.site.size - 4096
        return Rule(op="write", path=f"/{name}", start=SPACE, end=end, count=None, errno=errno)

    # ---- states ------------------------------------------------------------------------------------

    def keep(self, template: str) -> None:
        """Remember what lies there now, and its journal."""
        self.heal()
        self.fs.settle()
        saved = self.site.save(self.fs.backing())
        media = {path: Path(path).read_bytes() for path in self.site.devices.values()}
        self.templates[template] = saved, media, list(self.journal.lines)

    def begin_at(self, template: str) -> None:
        """Put the state of a template back."""
        self.heal()
        self.fs.settle()
        saved, media, lines = self.templates[template]
        self.site.restore(saved, self.fs.backing())
        for path, data in media.items():
            write_directly(path, data)
        self.fs.settle()
        self.journal = Journal()
        self.journal.take(b"".join(lines))

    def prepare(self, workload: Workload) -> None:
        """The state that a workload begins at, and what fails while it runs."""
        self.begin_at(workload.template)
        self.break_for(workload)

    def break_for(self, workload: Workload, *rules: Rule) -> None:
        """What fails while a workload runs; rules that go before."""
        failing = [self.failing(workload.failing)] if workload.failing else []
        self.fs.set_rules(*rules, *failing)

    # ---- processes -----------------------------------------------------------------------------------

    def start(self, workload: str, *, seed: int | None, **arguments: Any) -> Child:
        """A process that waits for its `go`."""
        if seed is not None:
            arguments["seed"] = seed
        child = self.nursery.start(
            _function(workload),
            {"config": self.config, **arguments},
            journal=self.journal,
        )
        self.children.append(child)
        return child

    def complete(self, workload: str, *, seed: int | None, **arguments: Any) -> None:
        """A process that nobody kills, to its end."""
        child = self.start(workload, seed=seed, **arguments)
        child.go()
        assert child.wait() == 0, child.errors

    def say(self, workload: str, **arguments: Any) -> dict[str, str]:
        """What a process that nobody kills says: name=value. It says nothing to the journal."""
        child = self.nursery.run(_function(workload), {"config": self.config, **arguments})
        assert child.status == 0, child.errors
        return dict(word.split("=", 1) for word in child.journal.words if "=" in word)

    def step(self, workload: str, *, seed: int, kill_at: int = 0, **arguments: Any) -> Stepper:
        """A process that dies at its `kill_at`-th counted system call, or lives if it has fewer."""
        require("ptrace")
        child = self.start(workload, seed=seed, step=True, **arguments)
        stepper = Stepper(child.pid)
        stepper.attach()
        child.go()
        stepper.run(kill_at)
        self.heal()
        status = child.wait()
        assert status in (0, -9), child.errors
        return stepper

    def heal(self) -> None:
        """No more faults."""
        self.fs.heal()

    def bury(self) -> None:
        """Every process is dead; nothing is broken any more."""
        self.heal()
        for child in self.children:
            if child.status is None:
                child.kill()
            child.wait()
        self.children.clear()

    def power_loss(self, rng: random.Random) -> str:
        """The power fails, and comes back; nothing is broken any more, and every process is dead. Returns how, in words."""
        seed, mode = rng.getrandbits(32), rng.choice(MODES)
        self.bury()
        loss = self.fs.crash(seed=seed, mode=mode)
        return f"power loss {mode!r}, seed {seed}: {loss}"

    # ---- judgement -----------------------------------------------------------------------------------

    def judge(self, what: str, *, goes_on: bool = False, **options: bool) -> None:
        """The oracle, in a fresh process. Raises AssertionError with `what` happened and all that is wrong.

        Args:
            what: in words.
            goes_on: the store is used after this, and not put back to a template.
            options: of `oracle.examine`.
        """
        kept = self.kept / "journal"
        self.journal.save(kept)
        where = {"journal": str(kept), "below": str(self.fs.backing()) if self.direct else ""}
        child = self.nursery.run(
            "tests.crash.workloads:judge",
            {"config": self.config, **where, "goes_on": goes_on, **options},
        )
        assert not child.journal.words, "\n".join([what, *child.journal.words])
        assert child.status == 0, f"{what}\n{child.errors}"


def write_directly(path: str, data: bytes) -> None:
    """To a device, in requests as large as it takes: out of the page cache they would be one for each page."""
    with mmap.mmap(-1, len(data)) as aligned:
        aligned.write(data)
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            assert os.pwrite(fd, aligned, 0) == len(data)
            os.fsync(fd)
        finally:
            os.close(fd)


def _function(workload: str) -> str:
    """For the nursery: of `workloads`, or "module:name"."""
    return f"tests.crash.{workload if ':' in workload else f'workloads:{workload}'}"

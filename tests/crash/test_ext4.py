"""Power cuts of a real ext4 under catalog and volumes, on a disk that loses what it was not told to flush.

What could break: what only a real file system does to a store: delayed allocation, a journal that is replayed, names that come and go,
sizes that lag behind. `EXT4_IOC_SHUTDOWN` takes what the file system had not sent to its disk; the disk, a loop device over the fault
file system, then loses what it had not flushed, whole, in part or torn. So unsynced direct writes are lost, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.crash.harness import Harness
from tests.crash.nursery import Nursery
from tests.crash.site import ROOMY, CrashSite
from tests.faults import kernel
from tests.faults.devices import ext4, fault_disk, scratch
from tests.faults.needs import require
from tests.faults.powerloss import MODES

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from tests.evidence import Record
    from tests.faults.devices import Ext4

pytestmark = pytest.mark.loop

DISK_BYTES = 64 << 20
SOME, MANY = 2, 30
GENERATION = 10  # power cuts of one file system


class Machine:
    """A disk, an ext4 on it, and a store on that."""

    def __init__(self, harness: Harness, mounted: Ext4) -> None:
        self.harness, self.mounted = harness, mounted

    @classmethod
    @contextlib.contextmanager
    def made(cls, backend: str) -> Iterator[Machine]:
        """New, with an empty store. Everything on it is durable."""
        require("fuse", "loop", "ext4", "engine")
        with (
            fault_disk(DISK_BYTES) as disk,
            ext4(disk.path) as mounted,
            Nursery() as nursery,
            scratch() as kept,
        ):
            site = CrashSite(mounted.path, backend=backend, secondary_size=ROOMY)
            harness = Harness(disk.fs, site, nursery, kept, direct=False)
            site.configure()
            harness.complete("create", seed=None, force=False)
            subprocess.run(["sync", "-f", mounted.path], check=True)
            disk.fs.settle()
            try:
                yield cls(harness, mounted)
            finally:
                harness.bury()

    def power_cut(self, rng: random.Random) -> str:
        """Of file system and disk, and on again. Returns how, in words."""
        seed, mode = rng.getrandbits(32), rng.choice(MODES)
        for child in self.harness.children:
            # A sync that is under way may yet say that all is well, though its transaction was dropped with the journal: the
            # file system has lost its power, the machine around it has not. On a real one nobody hears that.
            child.hear()
        self.mounted.power_cut()
        self.harness.bury()
        self._unmount()
        # ext4 itself wants its blocks whole: half a superblock is more than it recovers from.
        loss = self.harness.fs.crash(seed=seed, mode=mode, sector=4096)
        kernel.mount(self.mounted.device, self.mounted.path, "ext4")
        return f"power cut {mode!r}, seed {seed}: {loss}"

    def _unmount(self) -> None:
        """A ring of the dead lets go of its files a moment after their process is gone.

        The file system is gone when nothing holds its device: mounted before that it would be the old one, without power.
        """

        def gone() -> bool:
            with contextlib.suppress(OSError):
                kernel.unmount(self.mounted.path)
            try:
                os.close(os.open(self.mounted.device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                return False
            return True

        kernel.wait_until(gone, "nobody uses the file system", timeout=20.0)

    def check_file_system(self) -> None:
        """The file system itself is whole; else it is no fault of the store."""
        self._unmount()
        command = ["e2fsck", "-f", "-n", self.mounted.device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        kernel.mount(self.mounted.device, self.mounted.path, "ext4")


def cut_often(backend: str, rng: random.Random, cuts: int) -> None:
    """So many power cuts in the middle of a client's work, each judged."""
    for first in range(0, cuts, GENERATION):
        with Machine.made(backend) as machine:
            harness = machine.harness
            for number in range(first, min(cuts, first + GENERATION)):
                child = harness.start("live", seed=rng.getrandbits(32))
                child.go()
                seconds = rng.uniform(0.05, 0.6)
                time.sleep(seconds)  # the moment is what is random here
                if rng.random() < 0.5:
                    child.kill()  # else the power fails while it works
                what = machine.power_cut(rng)
                last = number == cuts - 1 or number == first + GENERATION - 1
                if last:
                    machine.check_file_system()
                harness.judge(
                    f"cut {number} after {seconds:.3f} s: {what}", quick=not last, repair=last
                )


@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_some_power_cuts(rng: random.Random, backend: str) -> None:
    """All or nothing, in every pool, and nothing acknowledged is lost."""
    cut_often(backend, rng, SOME)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_many_power_cuts(rng: random.Random, backend: str, record_property: Record) -> None:
    """As above."""
    cut_often(backend, rng, MANY)
    record_property("power cuts", MANY)


def test_creation_is_durable(rng: random.Random) -> None:
    """Once `create` has returned, the power may fail: catalog and volumes are there, names and all."""
    with fault_disk(DISK_BYTES) as disk, ext4(disk.path) as mounted, Nursery() as nursery:
        require("engine")
        subprocess.run(["sync", "-f", mounted.path], check=True)
        disk.fs.settle()
        with scratch() as kept:
            site = CrashSite(mounted.path)
            harness = Harness(disk.fs, site, nursery, kept, direct=False)
            site.configure()
            with open(site.path, "rb") as file:
                os.fsync(file.fileno())
            harness.complete("create", seed=None, force=False)
            Machine(harness, mounted).power_cut(rng)
            harness.judge("after the creation")

"""A COMMIT that fails, on an unchanged SQLite whose system calls fail below it.

What could break: an error from COMMIT taken for "it did not happen". With a write-ahead log it can still have happened: the
frames are whole in the file, only the flush failed, and after a crash the rows are there. `fault_shim.c` makes that happen.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.catalog.conftest import Sample

PRELUDE = """
import os, pathlib, signal, sys
from fanout.catalog import Catalog, CatalogReader, Commit, CommitDoubt, NewAggregate, NewCopy, Place
from fanout.errors import CatalogError
from fanout.types import Member, ObjectKind
path, fault, volume = sys.argv[1], pathlib.Path(sys.argv[2]), bytes.fromhex(sys.argv[3])
def commit(mark, attempt=1, objects=1):
    copy = NewCopy("DISKPOOL", (Place(0, volume, 4096 * mark, 4096, 4096, 0, 100),))
    members = [Member(b"object %d of %d" % (n, mark), 0, 100, bytes(16)) for n in range(objects)]
    aggregate = NewAggregate(bytes([mark]) * 16, "DISKPOOL", members, (copy,))
    return Commit(b"t" * 15 + bytes([mark]), attempt, "N1", ObjectKind.BACKUP, "DISKPOOL", ("DISKPOOL",), (aggregate,))
def doubt(catalog, *group):
    try:
        catalog.commit(group)
    except CommitDoubt:
        return
    sys.exit("the commit was not in doubt")
catalog = Catalog.open(path)
catalog.commit([commit(1)])
"""


@pytest.fixture
def run(
    sample: Sample, fault_shim: Callable[[str], dict[str, str]], tmp_path: Path
) -> Callable[[str], int]:
    """Run a script in a process of its own that meets the scripted fault; returns its status."""
    sample.create()
    fault = tmp_path / "fault"

    def script(body: str) -> int:
        volume = sample.volumes["DISKPOOL"].volume.hex()
        arguments = [sys.executable, "-c", PRELUDE + body, str(sample.path), str(fault), volume]
        done = subprocess.run(arguments, env=fault_shim(str(fault)), check=False)
        fault.unlink(missing_ok=True)
        return done.returncode

    return script


def names(sample: Sample) -> list[bytes]:
    """What a fresh process would see."""
    with sample.open() as catalog:
        assert catalog.verify() == []
        return [entry.name for entry in catalog.objects()]


def test_without_a_fence_the_dead_come_back(sample: Sample, run: Callable[[str], int]) -> None:
    """Why the fence exists: the flush failed, the rows are invisible, the process dies, the rows are there."""
    status = run(
        """
fault.write_text("sync")
doubt(catalog, commit(2))
assert [entry.name for entry in catalog.objects()] == [b"object 0 of 1"]
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert status == -9
    assert names(sample) == [b"object 0 of 1", b"object 0 of 2"]


def test_after_a_fence_they_stay_dead(sample: Sample, run: Callable[[str], int]) -> None:
    """The fence says "never"; so it is, also after a crash, also for a large commit; the resend commits once."""
    status = run(
        """
fault.write_text("sync")
doubt(catalog, commit(2, objects=3000))
fault.unlink()
key = (b"t" * 15 + bytes([2]), 1)
assert catalog.fence([key]) == {key: None}
try:
    catalog.commit([commit(2)])
except CatalogError:
    pass
else:
    sys.exit("a fenced attempt committed")
assert catalog.commit([commit(2, attempt=2)]) == [2]
os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert status == -9
    assert names(sample) == [b"object 0 of 1", b"object 0 of 2"]


def test_a_fence_that_fails_decides_nothing(sample: Sample, run: Callable[[str], int]) -> None:
    """Then the next opening decides, and finds all of the transaction or nothing."""
    status = run(
        """
fault.write_text("sync")
doubt(catalog, commit(2, objects=50))
try:
    catalog.fence([(b"t" * 15 + bytes([2]), 1)])
except CatalogError:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert status == -9
    assert len(names(sample)) in (1, 51)


@pytest.mark.parametrize("fault", ["write", "full"])
def test_a_log_that_cannot_be_written(
    sample: Sample, run: Callable[[str], int], fault: str
) -> None:
    """Also in doubt; when the log can be written again, the fence settles it and work goes on."""
    status = run(
        f"""
fault.write_text("{fault}")
doubt(catalog, commit(2), commit(3))
keys = [(b"t" * 15 + bytes([n]), 1) for n in (2, 3)]
try:
    catalog.fence(keys)
except CatalogError:
    pass
else:
    sys.exit("a fence cannot be written either")
fault.unlink()
assert catalog.fence(keys) == dict.fromkeys(keys)
assert catalog.commit([commit(2, attempt=2)]) == [2]
catalog.close()
"""
    )
    assert status == 0
    assert names(sample) == [b"object 0 of 1", b"object 0 of 2"]

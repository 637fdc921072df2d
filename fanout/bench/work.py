"""What every contender has to do: the same bytes, to the same targets.

The client's bytes are random, so that no device can compress them away. In this process they are the same 16 MiB over and over:
bytes that a daemon has just received are in the processor's outer cache and not in its inner ones, and fio's buffers are of that
size too. For other processes they stand in a memory file in full length. All of it is touched before anything is timed, because
memory that the host of a virtual machine must first find makes buffered writers look fifteen times worse than they are.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fanout.errors import InterfaceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIB = 1 << 20
CHUNK_BYTES = MIB
CLIENT_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class Work:
    """The task.

    Attributes:
        targets: paths of files or block devices, each at least `size_bytes` long, preallocated and written once.
        block_devices: whether they are block devices (all or none).
        size_bytes: client bytes of one run, a multiple of `CHUNK_BYTES`.
        memory_fd: descriptor of a memory file that holds the client's bytes in full length.
        view: the `CLIENT_BYTES` that they repeat, page-aligned.
    """

    targets: tuple[str, ...]
    block_devices: bool
    size_bytes: int
    memory_fd: int
    view: memoryview

    def chunks(self) -> Iterator[memoryview]:
        """The client's bytes in pieces of `CHUNK_BYTES`."""
        for start in range(0, self.size_bytes, CHUNK_BYTES):
            at = start % CLIENT_BYTES
            yield self.view[at : at + CHUNK_BYTES]


@contextlib.contextmanager
def prepare(targets: Sequence[str], *, size_bytes: int, seed: int = 1) -> Iterator[Work]:
    """Make the client's bytes and the targets ready.

    Files are created where they are missing, preallocated and written once in full, because the first write into a preallocated
    block costs two to three times as much as the following ones. They stay; who made the paths removes them.

    Args:
        targets: files (existing content of the first `size_bytes` is lost) or block devices (likewise).
        size_bytes: client bytes of one run.
        seed: of the random content.

    Raises:
        InterfaceError: mixed files and devices, or a size that is not a positive multiple of 1 MiB.
        OSError: a target cannot be made or is too small.
    """
    if size_bytes <= 0 or size_bytes % CHUNK_BYTES:
        raise InterfaceError(
            f"the size of a run must be a multiple of 1 MiB, not {size_bytes} bytes"
        )
    devices = {_is_block_device(path) for path in targets}
    if len(devices) != 1:
        raise InterfaceError("the targets must be all files or all block devices")
    fd = os.memfd_create("fanout-bench", os.MFD_CLOEXEC)
    try:
        # The mapping is left to the garbage collector: closing it would fail while a contender's last slice of it still lives.
        memory = mmap.mmap(-1, CLIENT_BYTES)
        memory.write(random.Random(seed).randbytes(CLIENT_BYTES))
        work = Work(tuple(targets), devices.pop(), size_bytes, fd, memoryview(memory))
        for number, chunk in enumerate(work.chunks()):
            os.pwrite(fd, chunk, number * CHUNK_BYTES)
        for path in targets:
            write_once(path, work)
        yield work
    finally:
        os.close(fd)


def write_once(path: str, work: Work) -> None:
    """Preallocate a file (a device has its size) and write all of it, durably."""
    fd = os.open(
        path, os.O_RDWR | os.O_CLOEXEC | (0 if _is_block_device(path) else os.O_CREAT), 0o600
    )
    try:
        if not _is_block_device(path):
            os.posix_fallocate(fd, 0, work.size_bytes)
        for number, chunk in enumerate(work.chunks()):
            os.pwrite(fd, chunk, number * CHUNK_BYTES)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def matches(work: Work, path: str) -> bool:
    """Whether a target holds the client's bytes, read through the kernel by other means than the engine."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return all(
            os.pread(fd, CHUNK_BYTES, number * CHUNK_BYTES) == chunk
            for number, chunk in enumerate(work.chunks())
        )
    finally:
        os.close(fd)


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except FileNotFoundError:
        return False

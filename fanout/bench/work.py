"""What every contender has to do: the same bytes, to the same targets.

The client's bytes are random, so that no device can compress them away. In this process they are the same 16 MiB over and over:
bytes that a daemon has just received are in the processor's outer cache and not in its inner ones, and fio's buffers are of that
size too. For other processes they stand in a memory file in full length. All of it is touched before anything is timed, because
memory that the host of a virtual machine must first find makes buffered writers look fifteen times worse than they are.
"""

from __future__ import annotations

import contextlib
import errno
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
# What goes to a device at once, where the peer may choose it. 1 MiB: beyond it little is gained, and fio's best is here too.
BLOCK_BYTES = MIB
CLIENT_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class Work:
    """The task.

    Attributes:
        targets: paths of files or block devices, each at least `size_bytes` long, preallocated and written once.
        block_devices: whether they are block devices (all or none).
        size_bytes: client bytes of one run, a multiple of `BLOCK_BYTES` for each stream.
        memory_fd: descriptor of a memory file that holds the client's bytes in full length or more.
        view: memory that repeats them every `CLIENT_BYTES`, page-aligned, as long as the longest chunk at least.
        chunk_bytes: what the client hands over at once, a power of two.
        streams: clients at once. Each has its own share of every target.
    """

    targets: tuple[str, ...]
    block_devices: bool
    size_bytes: int
    memory_fd: int
    view: memoryview
    chunk_bytes: int = BLOCK_BYTES
    streams: int = 1

    def shares(self) -> list[range]:
        """For each stream the offsets of its bytes, on every target as in the client's memory."""
        share = self.size_bytes // self.streams
        return [range(start, start + share) for start in range(0, self.size_bytes, share)]

    def chunks(self, share: range | None = None) -> Iterator[memoryview]:
        """The client's bytes in pieces of `chunk_bytes`, of one stream or of all."""
        wrap = max(CLIENT_BYTES, self.chunk_bytes)
        offsets = share if share is not None else range(self.size_bytes)
        for start in offsets[:: self.chunk_bytes]:
            at = start % wrap
            yield self.view[at : at + self.chunk_bytes]

    def blocks(self) -> Iterator[tuple[int, memoryview]]:
        """All of them in pieces of `BLOCK_BYTES`, each with its offset."""
        for start in range(0, self.size_bytes, BLOCK_BYTES):
            yield start, self.view[(at := start % CLIENT_BYTES) : at + BLOCK_BYTES]


@contextlib.contextmanager
def client(
    targets: Sequence[str], *, size_bytes: int, longest_chunk: int = BLOCK_BYTES, seed: int = 1
) -> Iterator[Work]:
    """Make the client's bytes ready.

    Args:
        targets: files or block devices, which must be there when the work is done.
        size_bytes: client bytes of one run.
        longest_chunk: of all the chunks that will be asked for.
        seed: of the random content.

    Raises:
        InterfaceError: mixed files and devices, or a size that is not a positive multiple of 1 MiB.
    """
    if size_bytes <= 0 or size_bytes % BLOCK_BYTES:
        raise InterfaceError(
            f"the size of a run must be a multiple of 1 MiB, not {size_bytes} bytes"
        )
    devices = {_is_block_device(path) for path in targets}
    if len(devices) != 1:
        raise InterfaceError("the targets must be all files or all block devices")
    fd = os.memfd_create("fanout-bench", os.MFD_CLOEXEC)
    try:
        # The mapping is left to the garbage collector: closing it would fail while a contender's last slice of it still lives.
        memory = mmap.mmap(-1, max(CLIENT_BYTES, longest_chunk))
        pattern = random.Random(seed).randbytes(CLIENT_BYTES)
        for _ in range(len(memory) // CLIENT_BYTES):
            memory.write(pattern)
        work = Work(tuple(targets), devices.pop(), size_bytes, fd, memoryview(memory))
        for offset, block in work.blocks():
            os.pwrite(fd, block, offset)
        yield work
    finally:
        os.close(fd)


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
        InterfaceError: as `client`.
        OSError: a target cannot be made or is too small.
    """
    with client(targets, size_bytes=size_bytes, seed=seed) as work:
        for path in targets:
            write_once(path, work)
        yield work


def write_once(path: str, work: Work) -> None:
    """Preallocate a file (a device has its size) and write all of it, durably; direct where that can be done."""
    flags = os.O_RDWR | os.O_CLOEXEC | (0 if _is_block_device(path) else os.O_CREAT)
    try:
        fd = os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.open(path, flags, 0o600)
    try:
        if not _is_block_device(path):
            os.posix_fallocate(fd, 0, work.size_bytes)
        for offset, block in work.blocks():
            os.pwrite(fd, block, offset)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def matches(work: Work, path: str) -> bool:
    """Whether a target holds the client's bytes, read through the kernel by other means than the engine."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        # Bytes with bytes: a memoryview is compared item by item, a hundred times as slowly.
        return all(
            os.pread(fd, len(block), offset) == bytes(block) for offset, block in work.blocks()
        )
    finally:
        os.close(fd)


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except FileNotFoundError:
        return False

"""A network block device that can be frozen and killed: `nbdkit` serves a file over a socket, `nbdfuse` mounts what it serves.

    with nbd_disk(8 << 20) as disk:
        disk.path          # a file on FUSE; a loop device over it is the same as a block device
        with disk.frozen():
            ...            # the server answers nothing, the connection stands: every request hangs
        disk.kill_server() # the connection breaks: requests fail, now and from now on

What the writer sees (kernel 6.18, nbdkit 1.32, nbdfuse 1.14): EIO or ENOTCONN for what is in flight and for everything after a kill
of the server, ENOTCONN or ECONNABORTED after a kill of the client.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import kernel
from .devices import loop, scratch
from .needs import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(slots=True)
class NbdDisk:
    """A mounted network block device. Attributes: path of the file, or of the loop device over it; the processes."""

    path: str
    backing: Path
    server: subprocess.Popen[bytes]
    client: subprocess.Popen[bytes]

    def media(self, offset: int, length: int) -> bytes:
        """What the server has on its medium, read behind its back."""
        with open(self.backing, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def freeze(self) -> None:
        """Stop the server. Prefer `frozen`, which thaws in every case."""
        self.server.send_signal(signal.SIGSTOP)
        kernel.wait_until(
            lambda: kernel.process_state(self.server.pid) in ("T", ""), "the server stops"
        )

    def thaw(self) -> None:
        """Let it go on."""
        self.server.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Frozen inside, thawed after, whatever happens."""
        try:
            self.freeze()
            yield
        finally:
            self.thaw()

    def kill_server(self) -> None:
        """SIGKILL: its socket closes, the connection breaks."""
        self.server.kill()
        self.server.wait(5)

    def kill_client(self) -> None:
        """SIGKILL for nbdfuse: the kernel aborts the file system."""
        self.client.kill()
        self.client.wait(5)


@contextlib.contextmanager
def nbd_disk(size: int, *, block: bool = False) -> Iterator[NbdDisk]:
    """A network block device of `size` bytes as a file on FUSE, or with a loop device over that file."""
    require("nbd")
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(scratch())
        backing, socket, mount = base / "backing", base / "socket", base / "mount"
        backing.touch(0o600)
        os.truncate(backing, size)
        mount.mkdir()
        server = _start(stack, "nbdkit", "-f", "--exit-with-parent", "-U", socket, "file", backing)
        kernel.wait_until(socket.exists, "nbdkit listens")
        stack.callback(_unmount, mount)
        client = _start(stack, "nbdfuse", mount / "disk", f"nbd+unix:///?socket={socket}")
        kernel.wait_until(lambda: kernel.device_of_mount(mount) is not None, "nbdfuse mounts")
        path = str(mount / "disk")
        if block:
            path = stack.enter_context(loop(mount / "disk")).path
        # Before anything is taken down: nobody may hang in a request by then.
        stack.callback(server.send_signal, signal.SIGCONT)
        yield NbdDisk(path, backing, server, client)


def _start(stack: contextlib.ExitStack, *command: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def end() -> None:
        process.kill()
        process.wait(5)

    stack.callback(end)
    return process


def _unmount(mount: Path) -> None:
    with contextlib.suppress(OSError):
        kernel.unmount(mount, lazily=True)

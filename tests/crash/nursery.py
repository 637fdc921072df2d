"""Processes that start in milliseconds: forked from one that has imported everything, and opened nothing.

    with Nursery() as nursery:
        child = nursery.start("tests.crash.workloads:mixed", {"config": …})    it waits
        child.go()                                                         it runs
        child.kill(); child.wait(); child.journal                          what it told before it died

A child is a process group of its own with one thread, two descriptors of ours (what it tells, what it waits for) and whatever it opens.
The nursery ends with its owner, and takes every child along.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.crash.journal import Journal, Teller

if TYPE_CHECKING:
    from types import TracebackType
    from typing import BinaryIO, Self

ROOT = Path(__file__).resolve().parents[2]
PRELOAD = ("fanout", "fanout.store", "fanout.check", "fanout.rebuild", "fanout.reconcile")
WAIT_SECONDS = 60.0


@dataclass(slots=True)
class Child:
    """A process of the nursery.

    Attributes:
        pid: also of its process group.
        journal: all that it has told, after `wait`; one may be handed in to go on with.
        status: exit status, or minus the signal, after `wait`.
        errors: what it wrote to stderr, after `wait`.
    """

    pid: int
    journal: Journal
    _nursery: Nursery
    _told: int
    _go: int
    _errors: BinaryIO
    status: int | None = None
    errors: str = ""
    _buffer: bytearray = field(default_factory=bytearray)
    _heard: int | None = None  # so much of it before `hear`

    def go(self) -> None:
        """Let it run, to its end or to its next `Teller.wait`."""
        os.write(self._go, b"!")

    def wait_for(self, word: str) -> None:
        """Read what it tells until it says `word`. Raises EOFError when it ends before."""
        wanted = f'{{"say": "{word}"}}\n'.encode()
        while wanted not in self._buffer:
            data = os.read(self._told, 1 << 16)
            if not data:
                raise EOFError(f"the child ended and never said {word!r}")
            self._buffer += data

    def hear(self) -> None:
        """Take what it has told so far, without waiting for more: the answers that it gets from here on nobody hears."""
        if self.status is not None:
            return
        while select.select([self._told], [], [], 0)[0] and (data := os.read(self._told, 1 << 16)):
            self._buffer += data
        self._heard = len(self._buffer)

    def kill(self) -> None:
        """SIGKILL. It is still there until `wait`, so the pid is its own."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; returns the status. Idempotent."""
        if self.status is None:
            while data := os.read(self._told, 1 << 16):
                self._buffer += data
            self.status = self._nursery.reap(self.pid)
            told = bytes(self._buffer)
            heard = len(told) if self._heard is None else told.rfind(b"\n", 0, self._heard) + 1
            self.journal.take(told[:heard])
            self.journal.take(told[heard:], heard=False)
            self._errors.seek(0)
            self.errors = self._errors.read().decode(errors="replace")
            self.close()
        return self.status

    def close(self) -> None:
        """Give back the descriptors."""
        if not self._errors.closed:
            self._errors.close()
            os.close(self._told)
            os.close(self._go)


class Nursery:
    """See above. Not thread-safe."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.crash.nursery", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        self._answers = self._socket.makefile("rb")
        self._children: dict[int, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._children.values():
            child.close()
        self._answers.close()
        self._socket.close()
        self._process.wait(WAIT_SECONDS)

    def start(
        self, function: str, arguments: dict[str, Any], *, journal: Journal | None = None
    ) -> Child:
        """Fork a child that waits for `go` and then calls `function(teller, **arguments)`.

        Args:
            function: "module:name".
            arguments: JSON values.
            journal: to go on with.
        """
        told, teller = os.pipe()
        waits, go = os.pipe()
        errors = tempfile.TemporaryFile()  # noqa: SIM115  # the child's owner closes it
        request = json.dumps({"function": function, "arguments": arguments}).encode() + b"\n"
        socket.send_fds(self._socket, [request], [teller, waits, errors.fileno()])
        os.close(teller)
        os.close(waits)
        pid = json.loads(self._answers.readline())["pid"]
        child = Child(pid, Journal() if journal is None else journal, self, told, go, errors)
        self._children[pid] = child
        return child

    def run(self, function: str, arguments: dict[str, Any]) -> Child:
        """Start, go, wait."""
        child = self.start(function, arguments)
        child.go()
        child.wait()
        return child

    def reap(self, pid: int) -> int:
        """Wait for a child's end. Exit status, or minus the signal."""
        self._socket.sendall(json.dumps({"reap": pid}).encode() + b"\n")
        status = int(json.loads(self._answers.readline())["status"])
        del self._children[pid]
        return status


# ---- in the nursery's own process -------------------------------------------------------------------


def serve(door: socket.socket) -> None:
    """Fork and reap as asked, until the owner is gone; then no child survives."""
    children: set[int] = set()
    try:
        while True:
            line, descriptors, _, _ = socket.recv_fds(door, 1 << 20, 3)
            if not line:
                return
            request = json.loads(line)
            if "reap" in request:
                _, status = os.waitpid(request["reap"], 0)
                children.discard(request["reap"])
                answer = {"status": os.waitstatus_to_exitcode(status)}
            else:
                pid = os.fork()
                if pid == 0:
                    door.close()
                    _live(request, *descriptors)
                os.setpgid(pid, pid)  # by both of us: whoever comes first
                children.add(pid)
                for descriptor in descriptors:
                    os.close(descriptor)
                answer = {"pid": pid}
            door.sendall(json.dumps(answer).encode() + b"\n")
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _live(request: dict[str, Any], teller: int, waits: int, errors: int) -> None:
    """A child's whole life; never returns."""
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(errors, 2)
        module, _, name = request["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        told = Teller(teller, waits)
        if told.wait():
            function(told, **request["arguments"])
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(arguments: list[str]) -> int:
    """Import everything, then serve."""
    for module in (*PRELOAD, "tests.crash.oracle", "tests.crash.workloads"):
        importlib.import_module(module)
    with socket.socket(fileno=int(arguments[0])) as door:
        serve(door)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A file system whose faults are scripted: a typed client of the daemon in `daemon`.

    with FaultFS() as fs:
        disk = fs.create_file("disk", 64 << 20)               # durable from the start
        fs.set_rules(Rule(op="write", path="/disk", start=8 << 20, end=9 << 20, errno=errno.EIO, count=None))
        ...                                                   # O_DIRECT, io_uring, loop devices: all of it works on fs.path(…)
        assert [(e.offset, e.errno) for e in fs.injected()] == [(8 << 20, errno.EIO)]

Promises: an operation that a rule hit is in `log()` with its operation, path, offset, size and errno, and so is every write,
flush and change of a name. `crash` loses what the strict rule of `powerloss` calls volatile. Leaving the context ends every
hold and freeze, unmounts and removes everything, also when the test fails; a guardian process does so when the test is killed.

Limits, found by trying (kernel 6.18, libfuse 3.14): the kernel passes requests of at most 1 MiB, so longer writes arrive in
pieces. O_DSYNC is not honoured for ring writes, and not at all without page cache: test it through a loop device. `mmap` with
MAP_SHARED (SQLite's WAL index) needs `cached=True`. The kernel holds the size of an open file, and through `cached=True` its
pages: open it again after a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import kernel
from .needs import require
from .powerloss import MODES, Loss
from .rules import FOR_EVER, Rule, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["FOR_EVER", "FaultFS", "LogEntry", "Rule", "Status"]

_ANSWER_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the daemon's log.

    Attributes:
        seq: 1, 2, 3 … in the order in which operations ended.
        op: the operation, or "crash".
        offset, size: bytes as asked; 0 where the operation has none.
        done: bytes that were reported as done, if it succeeded.
        errno: what was reported; 0: success.
        rule: index of the rule that hit it; None: no rule did.
        began_ns, ended_ns: monotonic time.
        note: details by operation: "covered" changes of a flush, "to" of a rename, "mode" of a fallocate.
    """

    seq: int
    op: str
    path: str = ""
    offset: int = 0
    size: int = 0
    done: int = 0
    errno: int = 0
    rule: int | None = None
    began_ns: int = 0
    ended_ns: int = 0
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """What the daemon says of itself.

    Attributes:
        hits: how often each rule matched, in the order of the rules.
        calls: operations in progress, held ones included, as {op, path, offset, size}.
        volatile_changes: changes that a power loss could take.
        open_files: open descriptions.
        dark: the power is off after a `cut` rule.
    """

    hits: list[int]
    calls: list[dict[str, Any]]
    volatile_changes: int
    open_files: int
    dark: bool


class FaultFS:
    """A mounted fault file system. Context manager; not thread-safe, but independent of what other threads do with its files.

    Args:
        cached: let the kernel cache pages (buffered I/O and mmap as on a normal file system); the default passes every read and
            write on as it comes. O_DIRECT does so in both.
    """

    def __init__(self, *, cached: bool = False) -> None:
        self._cached = cached
        self._frozen = False
        self._aborted = False
        self._entries: list[LogEntry] = []
        self._log_read = 0
        self._undo = contextlib.ExitStack()
        self.pid = 0

    def __enter__(self) -> FaultFS:
        require("fuse")
        try:
            self._start()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        complaints = self._complaints()
        self._undo.close()
        if kind is None and complaints:
            raise AssertionError(f"the fault file system had an error of its own:\n{complaints}")

    def close(self) -> None:
        """Unmount and remove everything. Idempotent."""
        self._undo.close()

    # -- files --------------------------------------------------------------------------------------------------------

    def path(self, name: str = "") -> Path:
        """A path inside the mount."""
        return self.mount / name.lstrip("/")

    def backing(self, name: str = "") -> Path:
        """The same path behind the file system's back: what is on the medium now, without faults and without a request."""
        return self._base / "backing" / "tree" / name.lstrip("/")

    def create_file(self, name: str, size: int) -> Path:
        """Make a sparse file that is durable, name and all, from the start; returns its path inside the mount."""
        with open(self.backing(name), "xb") as file:
            file.truncate(size)
        return self.path(name)

    # -- faults -------------------------------------------------------------------------------------------------------

    def set_rules(self, *rules: Rule) -> None:
        """Replace the rules; counters start anew. What is held stays held (see `release`)."""
        self._ask("rules", rules=encode(rules))

    def release(self) -> None:
        """Let all held operations go on now."""
        self._ask("release")

    def heal(self) -> None:
        """No more faults: thaw, drop the rules, release what is held. After an abort there is nothing to heal."""
        self.thaw()
        if not self._aborted:
            self.set_rules()
            self.release()

    def settle(self) -> None:
        """Declare everything so far durable: a clean start for the next case, without the cost of a sync."""
        self._ask("settle")

    def crash(
        self, *, seed: int = 0, mode: str = "all", sector: int = 512, names: bool = True
    ) -> Loss:
        """Power loss and restart: what is in flight fails with EIO, what is volatile is lost; the mount and the rules stay.

        Args:
            seed: of the choices in the modes "subset" and "torn".
            mode: "all" volatile changes are lost; "subset": each by a coin; "torn": each sector by a coin.
            sector: what is written whole or not at all, in bytes.
            names: also lose names whose directory was not synced.
        """
        if mode not in MODES:
            raise ValueError(f"mode is one of {MODES}")
        answer = self._ask("crash", seed=seed, mode=mode, sector=sector, names=names)
        return Loss(bytes=answer["bytes"], changes=answer["changes"], names=answer["names"])

    def freeze(self) -> None:
        """Stop the daemon (SIGSTOP): every request hangs. Prefer `frozen`, which thaws in every case."""
        self._frozen = True
        os.kill(self.pid, signal.SIGSTOP)
        kernel.wait_until(lambda: kernel.process_state(self.pid) in ("T", ""), "the daemon stops")

    def thaw(self) -> None:
        """Let a frozen daemon go on. Idempotent."""
        if self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
            self._frozen = False

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Frozen inside, thawed after, whatever happens."""
        try:
            self.freeze()
            yield
        finally:
            self.thaw()

    def abort(self) -> None:
        """The device vanishes: the kernel fails every request now and from now on (ENOTCONN, ECONNABORTED; EIO above a loop)."""
        device = kernel.device_of_mount(self.mount)
        if device is None:
            return
        self._aborted = True
        control = Path(tempfile.mkdtemp(prefix="fusectl-", dir=self._base))
        kernel.mount("none", control, "fusectl")
        try:
            (control / device.partition(":")[2] / "abort").write_text("1")
        finally:
            kernel.unmount(control)

    # -- what happened ------------------------------------------------------------------------------------------------

    def log(self, *ops: str, path: str | None = None) -> list[LogEntry]:
        """The log so far, or only these operations, or only this path."""
        self._read_log()
        return [e for e in self._entries if (not ops or e.op in ops) and path in (None, e.path)]

    def _read_log(self) -> None:
        """Take what is new; a line that is being written waits for the next time."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(self._log_read)
            for line in file:
                if line.endswith(b"\n"):
                    self._entries.append(LogEntry(**json.loads(line)))
                    self._log_read += len(line)

    def injected(self, *ops: str) -> list[LogEntry]:
        """The entries that a rule hit."""
        return [entry for entry in self.log(*ops) if entry.rule is not None]

    def status(self) -> Status:
        """Counters and operations in progress."""
        answer = self._ask("status")
        del answer["ok"]
        return Status(**answer)

    def wait_for_calls(self, count: int, op: str = "write", *, timeout: float = 5.0) -> None:
        """Wait until this many operations are in progress in the daemon, i.e. held. Raises TimeoutError."""
        kernel.wait_until(
            lambda: sum(call["op"] == op for call in self.status().calls) >= count,
            f"{count} {op} held",
            timeout=timeout,
        )

    # -- daemon -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        memory = Path(
            "/dev/shm"
        )  # the tests' data need not wear a disk, and no disk slows them down
        parent = memory if os.access(memory, os.W_OK) else None
        self._base = Path(tempfile.mkdtemp(prefix="faultfs-", dir=parent))
        self._undo.callback(shutil.rmtree, self._base, ignore_errors=True)
        self.mount = self._base / "mount"
        for directory in (
            self.mount,
            self._base / "backing" / "tree",
            self._base / "backing" / "graveyard",
        ):
            directory.mkdir(parents=True)
        self._log = self._base / "log.jsonl"
        self._launch()
        self._undo.callback(self._stop)
        self.pid = self._ask("ping")["pid"]

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        lifeline_end, self._lifeline = os.pipe()
        self._undo.callback(ours.close)
        self._undo.callback(self._cut_lifeline)
        self._control = ours
        self._answers = ours.makefile("rb")
        self._undo.callback(self._answers.close)
        ours.settimeout(_ANSWER_SECONDS)
        package = __package__ or "faults"
        root = str(Path(__file__).resolve().parents[len(package.split("."))])
        handles = (theirs.fileno(), lifeline_end)
        arguments = [self._base / "backing", self.mount, self._log, *handles, int(self._cached)]
        with open(self._base / "stderr", "wb") as errors:
            self._guardian = subprocess.Popen(
                [sys.executable, "-m", f"{package}.daemon", *map(str, arguments)],
                pass_fds=handles,
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # Ctrl-C and `timeout` end the test, which then ends us in order
            )
        theirs.close()
        os.close(lifeline_end)

    def _ask(self, command: str, **values: Any) -> dict[str, Any]:
        if self._frozen:
            raise RuntimeError("the daemon is frozen: thaw it first")
        try:
            self._control.sendall(json.dumps({"command": command, **values}).encode() + b"\n")
            line = self._answers.readline()
        except TimeoutError as problem:
            raise TimeoutError(f"no answer to {command} in {_ANSWER_SECONDS} s") from problem
        except OSError as problem:
            raise RuntimeError(f"the daemon is gone: {problem}\n{self._complaints()}") from problem
        if not line:
            raise RuntimeError(f"the daemon is gone:\n{self._complaints()}")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise RuntimeError(answer["problem"])
        return answer

    def _complaints(self) -> str:
        """What the daemon wrote to stderr, without what libfuse 3.14 says at every start."""
        try:
            lines = (self._base / "stderr").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return ""
        return "".join(
            line
            for line in lines
            if not line.startswith("Ignoring invalid max threads value 4294967295")
        )

    def _stop(self) -> None:
        """Heal, unmount, wait. What is busy is unmounted lazily; the guardian sees to the rest."""
        with contextlib.suppress(RuntimeError, TimeoutError):
            self.heal()
        for device in kernel.loops_on(str(self.mount)):
            with contextlib.suppress(OSError):
                kernel.detach_loop(device)
        self._unmount()
        self._cut_lifeline()
        self._guardian.wait(10.0)

    def _unmount(self) -> None:
        def unmounted() -> bool:
            with contextlib.suppress(OSError):
                kernel.unmount(self.mount)
            return kernel.device_of_mount(self.mount) is None

        try:  # a loop device lets go of its file a moment after its detach
            kernel.wait_until(unmounted, "nobody uses the mount", timeout=0.5)
        except TimeoutError:
            with contextlib.suppress(OSError):
                kernel.unmount(self.mount, lazily=True)

    def _cut_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

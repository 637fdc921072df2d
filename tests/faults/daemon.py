"""The daemon of the fault file system: `python -m …daemon BACKING MOUNT LOG CONTROL_FD LIFELINE_FD CACHED`.

Two processes. The *guardian* starts, forks the *server*, and waits until the lifeline closes, in order or because the test's
process is gone. Then it kills the server (also a frozen one), detaches the loop devices over the mount, unmounts and removes
the files: nothing outlives the test, even when pytest gets SIGKILL. It also ends a freeze after
MAX_HOLD_SECONDS: a test that forgets is late, but it does not hang in the kernel where no signal reaches it. The server serves the mount through libfuse and the
control channel (JSON lines on an inherited socket) in a thread of its own, so that held operations never block control.

    BACKING/tree       what the mount shows: every change goes here at once
    BACKING/graveyard  files whose unlink or replacement is not durable yet
    LOG                one JSON line per operation that changes or syncs something, and per injected fault

One operation runs like this; `dark` means that the power is off (a `cut` rule fired) until the next crash:

    enter → dark? EIO → rule: kill → delay (ends early at release, EIO at a crash) → errno? → the I/O → kill_after → delay_after
          → after_io? → completed (a later flush covers it) → logged → reported

Held operations each keep one of MAX_THREADS libfuse threads; more than that block the mount. None is held for longer than
MAX_HOLD_SECONDS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import kernel, rules
from .powerloss import Change, Loss, VolatileFile, VolatileNames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_THREADS = 64
MAX_HOLD_SECONDS = 30.0
_GUARD_SECONDS = 1.0
_CRASH_DRAIN_SECONDS = 5.0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@dataclass(slots=True)
class Node:
    """A file that is open or has volatile changes. `fd` is our own, so that a crash can undo what nobody has open any more."""

    fd: int
    path: str  # under which it was opened last
    history: VolatileFile
    handles: int = 0


@dataclass(slots=True)
class Handle:
    """One open(2) of a file."""

    fd: int
    key: tuple[int, int]
    path: str


@dataclass(slots=True)
class Call:
    """One operation on its way through the daemon."""

    op: str
    path: str
    offset: int
    size: int
    began_ns: int
    epoch: int
    rule: rules.Rule | None = None
    rule_index: int | None = None
    done: int = 0
    note: dict[str, Any] = field(default_factory=dict)
    changes: list[tuple[VolatileFile, Change]] = field(default_factory=list)

    @property
    def noop(self) -> bool:
        """Whether the operation is to be swallowed."""
        return self.rule is not None and self.rule.noop


class Log:
    """JSON lines, written unbuffered: what is logged survives a kill of the server."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._mutex = threading.Lock()
        self._count = 0

    def write(self, entry: dict[str, Any]) -> None:
        """Append one entry with the next sequence number."""
        with self._mutex:
            self._count += 1
            os.write(self._fd, json.dumps({"seq": self._count, **entry}).encode() + b"\n")


class Power:
    """Operations in progress, held operations, and the power switch."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.calls: dict[int, Call] = {}
        self.epoch = 0
        self.releases = 0
        self.dark = False

    def enter(self, call: Call) -> None:
        """Count the operation in. Raises EIO while the power is off."""
        with self._changed:
            if self.dark:
                raise OSError(errno.EIO, "power is off")
            call.epoch = self.epoch
            self.calls[id(call)] = call

    def leave(self, call: Call) -> None:
        """Count the operation out."""
        with self._changed:
            self.calls.pop(id(call), None)
            self._changed.notify_all()

    def hold(self, call: Call, seconds: float) -> None:
        """Wait, at most until `release`. Raises EIO when the power goes off meanwhile."""
        with self._changed:
            releases = self.releases

            def over() -> bool:
                return self.releases != releases or self.dark or self.epoch != call.epoch

            self._changed.wait_for(over, timeout=min(seconds, MAX_HOLD_SECONDS))
            if self.dark or self.epoch != call.epoch:
                raise OSError(errno.EIO, "power loss")

    def cut(self) -> None:
        """The power goes off: what is held fails, what comes is refused."""
        with self._changed:
            self.dark = True
            self._changed.notify_all()

    def drained(self) -> bool:
        """With the power off: wait until no operation is in progress."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.calls, timeout=_CRASH_DRAIN_SECONDS)

    def restore(self) -> None:
        """The power is back."""
        with self._changed:
            self.epoch += 1
            self.dark = False

    def release(self) -> int:
        """Let every held operation go on; returns how many were in progress."""
        with self._changed:
            self.releases += 1
            self._changed.notify_all()
            return len(self.calls)


class Tree:
    """The operations, in terms of the backing tree. The method names and signatures are those of mfusepy's Operations."""

    use_ns = True

    def __init__(self, backing: Path, log: Log, *, cached: bool) -> None:
        self._root = str(backing / "tree")
        self._cached = cached
        self._log = log
        self._book = rules.RuleBook()
        self._power = Power()
        self._names = VolatileNames(backing / "tree", backing / "graveyard")
        self._mutex = threading.RLock()  # names, nodes, handles
        self._nodes: dict[tuple[int, int], Node] = {}
        self._handles: dict[int, Handle] = {}
        self._next_handle = 1
        self.ready = threading.Event()

    # -- control ------------------------------------------------------------------------------------------------------

    def control(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request of the client."""
        command = request["command"]
        if command == "rules":
            self._book.replace(rules.decode(request["rules"]))
            return {}
        if command == "release":
            return {"released": self._power.release()}
        if command == "status":
            return self._status()
        if command == "settle":
            self._settle()
            return {}
        if command == "crash":
            return asdict(
                self._crash(request["seed"], request["mode"], request["sector"], request["names"])
            )
        if command == "ping":
            self.ready.wait()
            return {"pid": os.getpid()}
        raise ValueError(f"unknown command {command!r}")

    def _status(self) -> dict[str, Any]:
        with self._mutex:
            volatile = sum(node.history.volatile_changes for node in self._nodes.values())
            handles = len(self._handles)
        calls = [
            {"op": call.op, "path": call.path, "offset": call.offset, "size": call.size}
            for call in list(self._power.calls.values())
        ]
        return {
            "hits": self._book.hits(),
            "calls": calls,
            "volatile_changes": volatile,
            "open_files": handles,
            "dark": self._power.dark,
        }

    def _settle(self) -> None:
        with self._mutex:
            for key, node in list(self._nodes.items()):
                node.history.settle()
                self._drop_node(key)
            self._names.settle()

    def _crash(self, seed: int, mode: str, sector: int, names: bool) -> Loss:
        loss = Loss()
        self._power.cut()
        if not self._power.drained():
            raise RuntimeError("operations are still in progress: no clean cut")
        with self._mutex:
            for node in (
                self._nodes.values()
            ):  # what one file loses depends on the seed and its path, not on other files
                node.history.crash(random.Random(f"{seed} {node.path}"), mode, sector, loss)
            if names:
                self._names.crash(random.Random(seed), mode, loss)
            for key in list(self._nodes):
                self._drop_node(key)
        self._log.write(
            {
                "op": "crash",
                "began_ns": time.monotonic_ns(),
                "note": {"seed": seed, "mode": mode, **asdict(loss)},
            }
        )
        self._power.restore()
        return loss

    # -- the frame of every operation ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _call(
        self,
        op: str,
        path: str,
        offset: int = 0,
        size: int = 0,
        on_injected_error: Callable[[rules.Rule], None] = lambda rule: None,
    ) -> Iterator[Call]:
        call = Call(op, path, offset, size, time.monotonic_ns(), 0)
        error = 0
        try:
            self._power.enter(call)
            self._apply_before(call)
            yield call
            self._apply_after(call)
        except OSError as problem:
            error = problem.errno or errno.EIO
            if call.rule is not None and not call.rule.cut:
                on_injected_error(call.rule)
            raise
        finally:
            for history, change in call.changes:
                history.complete(change)
            if op != "read" or call.rule is not None:  # good reads would only swell the log
                self._note(call, error)
            self._power.leave(call)

    def _apply_before(self, call: Call) -> None:
        taken = self._book.take(call.op, call.path, call.offset, call.size)
        if taken is None:
            return
        call.rule_index, call.rule = taken
        if call.rule.cut:
            self._power.cut()
            raise OSError(errno.EIO, "power cut")
        if call.rule.kill:
            _kill(call.rule.kill)
        if call.rule.delay:
            self._power.hold(call, call.rule.delay)
        if call.rule.errno and not call.rule.after_io:
            raise OSError(call.rule.errno, os.strerror(call.rule.errno))

    def _apply_after(self, call: Call) -> None:
        if call.rule is None:
            return
        if call.rule.kill_after:
            _kill(call.rule.kill_after)
        if call.rule.delay_after:
            self._power.hold(call, call.rule.delay_after)
        if call.rule.after_io:
            raise OSError(call.rule.errno, os.strerror(call.rule.errno))

    def _note(self, call: Call, error: int) -> None:
        self._log.write(
            {
                "op": call.op,
                "path": call.path,
                "offset": call.offset,
                "size": call.size,
                "done": call.done,
                "errno": error,
                "rule": call.rule_index,
                "began_ns": call.began_ns,
                "ended_ns": time.monotonic_ns(),
                "note": call.note,
            }
        )

    # -- files --------------------------------------------------------------------------------------------------------

    def create(self, path: str, mode: int, flags: int) -> int:
        with self._call("create", path), self._mutex:
            existed = os.path.exists(self._real(path))
            handle = self._open(path, os.O_CREAT | (flags & (os.O_EXCL | os.O_TRUNC)), mode)
            if not existed:
                self._names.created(path)
            return handle

    def open(self, path: str, flags: int) -> int:
        with self._call("open", path), self._mutex:
            return self._open(path, 0, 0)

    def _open(self, path: str, flags: int, mode: int) -> int:
        """Always for reading and writing: the kernel has checked what the caller may do with it."""
        fd = os.open(self._real(path), os.O_RDWR | os.O_CLOEXEC | flags, mode)
        info = os.fstat(fd)
        key = info.st_dev, info.st_ino
        node = self._nodes.get(key)
        if node is None:
            own = os.dup(fd)
            node = self._nodes[key] = Node(own, path, VolatileFile(own))
        node.path = path
        node.handles += 1
        number, self._next_handle = self._next_handle, self._next_handle + 1
        self._handles[number] = Handle(fd, key, path)
        return number

    def release(self, path: str | None, fh: int) -> int:
        with self._mutex:
            handle = self._handles.pop(fh)
            os.close(handle.fd)
            self._nodes[handle.key].handles -= 1
            self._drop_node(handle.key)
        return 0

    def _drop_node(self, key: tuple[int, int]) -> None:
        node = self._nodes[key]
        if node.handles == 0 and node.history.volatile_changes == 0:
            os.close(node.fd)
            del self._nodes[key]

    def _find(self, path: str | None, fh: int) -> tuple[Handle, VolatileFile]:
        with self._mutex:
            handle = self._handles[fh]
            handle.path = path or handle.path
            return handle, self._nodes[handle.key].history

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        handle, _ = self._find(path, fh)
        with self._call("read", handle.path, offset, size) as call:
            data = os.pread(handle.fd, size, offset)
            call.done = len(data)
            if call.rule is not None and call.rule.flip is not None:
                data = _flipped(data, call.rule.flip)
            return data

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        handle, history = self._find(path, fh)
        with self._call("write", handle.path, offset, len(data)) as call:
            call.done = len(data)
            if call.noop:
                return call.done
            rule = call.rule
            if rule is not None:
                data, call.done = data[: rule.short], len(data[: rule.short])
                if rule.flip is not None:
                    data = _flipped(data, rule.flip)
            change = history.write(data, offset + (rule.shift if rule is not None else 0))
            call.changes.append((history, change))
            return call.done

    def flush(self, path: str | None, fh: int) -> int:
        handle, _ = self._find(path, fh)
        with self._call("flush", handle.path):
            return 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        handle, history = self._find(path, fh)
        covered = history.issue_flush()  # before any delay: the strict rule counts from here

        def forget(rule: rules.Rule) -> None:
            if rule.forget:
                history.flush_failed(covered)

        with self._call("fsync", handle.path, on_injected_error=forget) as call:
            call.note["covered"] = len(covered)
            if not call.noop:
                history.flushed(covered)
            return 0

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        if path is None:
            raise OSError(
                errno.EBADF, "truncate of an unlinked file: libfuse gives neither path nor handle"
            )
        with self._call("truncate", path, length) as call, self._borrowed(path) as history:
            call.changes.append((history, history.truncate(length)))
            return 0

    @contextlib.contextmanager
    def _borrowed(self, path: str) -> Iterator[VolatileFile]:
        """The history of a file that the caller need not have open."""
        with self._mutex:
            number = self._open(path, 0, 0)
            handle = self._handles[number]
            history = self._nodes[handle.key].history
        try:
            yield history
        finally:
            self.release(path, number)

    def fallocate(self, path: str | None, mode: int, offset: int, length: int, fh: int) -> int:
        handle, history = self._find(path, fh)
        with self._call("fallocate", handle.path, offset, length) as call:
            call.note["mode"] = mode

            def action(fd: int) -> None:
                if _libc.fallocate(fd, mode, offset, length) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))

            keep_size = bool(mode & 1)
            call.changes.append(
                (history, history.reshape(offset, length, action, extends=not keep_size))
            )
            return 0

    # -- names --------------------------------------------------------------------------------------------------------

    def unlink(self, path: str) -> int:
        with self._call("unlink", path), self._mutex:
            self._names.unlink(path)
            return 0

    def link(self, new: str, old: str) -> int:
        with self._call("link", new) as call, self._mutex:
            call.note["from"] = old
            os.link(self._real(old), self._real(new))
            self._names.created(new)
            return 0

    def rename(self, old: str, new: str) -> int:
        with self._call("rename", old) as call, self._mutex:
            call.note["to"] = new
            if os.path.dirname(old) != os.path.dirname(new) or os.path.isdir(self._real(old)):
                raise OSError(
                    errno.EXDEV,
                    "the power-loss model has renames of files inside one directory only",
                )
            self._names.rename(old, new)
            return 0

    def mkdir(self, path: str, mode: int) -> int:
        with self._call("mkdir", path), self._mutex:
            os.mkdir(self._real(path), mode)
            self._names.made(path)
            return 0

    def rmdir(self, path: str) -> int:
        with self._call("rmdir", path), self._mutex:
            os.rmdir(self._real(path))
            self._names.removed(path)
            return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        with self._mutex:
            covered = self._names.issue_flush(path)
        with self._call("fsyncdir", path) as call:
            call.note["covered"] = len(covered)
            if not call.noop:
                with self._mutex:
                    self._names.flushed(covered)
            return 0

    # -- what no rule touches -----------------------------------------------------------------------------------------

    def init_with_config(self, connection: Any, config: Any) -> None:
        if config is not None:
            config.direct_io = int(not self._cached)
            config.hard_remove = 1  # no .fuse_hidden files: an unlinked open file is just that
            # The kernel caches no names, for a crash changes them. Whoever looks one up is told sizes and times as well: only for a
            # file that stays open across a crash they are old.
            config.entry_timeout = config.negative_timeout = 0.0
            config.attr_timeout = 60.0
        self.ready.set()

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, int]:
        if path is not None:
            info = os.lstat(self._real(path))
        else:
            info = os.fstat(self._handles[fh or 0].fd)
        return {
            "st_mode": info.st_mode,
            "st_nlink": info.st_nlink,
            "st_uid": info.st_uid,
            "st_gid": info.st_gid,
            "st_size": info.st_size,
            "st_blocks": info.st_blocks,
            "st_atime": info.st_atime_ns,
            "st_mtime": info.st_mtime_ns,
            "st_ctime": info.st_ctime_ns,
        }

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._real(path))]

    def statfs(self, path: str) -> dict[str, int]:
        info = os.statvfs(self._root)
        names = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "namemax")
        return {f"f_{name}": getattr(info, f"f_{name}") for name in names}

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._real(path), mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self._real(path), uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        if times is None:
            os.utime(self._real(path))
        else:
            os.utime(self._real(path), ns=times)
        return 0

    def _real(self, path: str) -> str:
        return self._root + path


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _flipped(data: bytes, index: int) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[index % len(changed)] ^= 1
    return bytes(changed)


def _serve_control(control: socket.socket, tree: Tree) -> None:
    """Answer the client until it hangs up. A problem is an answer, too."""
    with control.makefile("rwb") as lines:
        for line in lines:
            try:
                answer = {"ok": True, **tree.control(json.loads(line))}
            except Exception as problem:
                answer = {"ok": False, "problem": f"{type(problem).__name__}: {problem}"}
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()


def _serve(backing: str, mount: str, log: str, control: socket.socket, *, cached: bool) -> None:
    import mfusepy  # type: ignore[import-untyped]  # here: only the daemon needs libfuse

    kept = threading.local()

    def wrapper(door: Any, method: Callable[..., int], *arguments: Any) -> int:
        """Around every request. A thread state of Python that is ensured once more stays; ctypes would make one for each request."""
        if not hasattr(kept, "state"):
            kept.state = ctypes.pythonapi.PyGILState_Ensure()
        return int(mfusepy.FUSE._wrapper(door, method, *arguments))

    # libfuse is given the operations that Tree has, and no others.
    operations = type("Operations", (Tree, mfusepy.Operations), {})
    door = type("Door", (mfusepy.FUSE,), {"_wrapper": wrapper})
    tree = operations(Path(backing), Log(log), cached=cached)
    threading.Thread(target=_serve_control, args=(control, tree), daemon=True).start()
    door(tree, mount, foreground=True, fsname="faultfs", allow_other=True, max_threads=MAX_THREADS)


def _guard(server: int, mount: str, lifeline: int) -> None:
    """Wait for the end of the test; then nothing stays behind. A server that ends earlier leaves a dead mount, as it should."""
    frozen_looks = 0
    while not select.select([lifeline], [], [], _GUARD_SECONDS)[0]:
        frozen_looks = frozen_looks + 1 if kernel.process_state(server) == "T" else 0
        if frozen_looks * _GUARD_SECONDS >= MAX_HOLD_SECONDS:
            os.kill(server, signal.SIGCONT)
    os.kill(server, signal.SIGKILL)  # works on a frozen one, too, and aborts the connection
    os.waitpid(server, 0)
    kernel.unmount_everything_on(mount)
    shutil.rmtree(os.path.dirname(mount), ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Start the server and guard it."""
    backing, mount, log, control, lifeline, cached = arguments
    server = os.fork()
    if server == 0:
        os.close(int(lifeline))
        _serve(backing, mount, log, socket.socket(fileno=int(control)), cached=cached == "1")
        return 0
    os.close(int(control))
    _guard(server, mount, int(lifeline))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

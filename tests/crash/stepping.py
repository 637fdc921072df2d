"""SIGKILL at the n-th system call of a whole process, all its threads counted together (ptrace with a seccomp filter).

strace counts per system call and per thread, so that "the 7th pwrite64" is another moment in every thread and the order between them is
lost. Here the calls of all threads are one sequence, and a run is killed at one place of it: the call itself is not done.

Only calls that change something outside of the process are counted (`CALLS`; of `io_uring_enter` those that submit something, of
`write` those that tell the journal). Between two of them nothing on the media changes, so being killed at any other call is being killed
at the next one of these. What a ring does is done by the kernel, later: rules of the fault file system kill there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from dataclasses import dataclass, field

from tests.faults.refuse import AUDIT_ARCHITECTURES

# x86-64 and the generic table that aarch64 uses; a call that one of them lacks is None.
CALLS: dict[str, tuple[int | None, int | None]] = {
    "write": (1, 64),
    "pwrite64": (18, 68),
    "writev": (20, 66),
    "pwritev": (296, 70),
    "pwritev2": (328, 287),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "sync_file_range": (277, 84),
    "fallocate": (285, 47),
    "ftruncate": (77, 46),
    "open": (2, None),
    "openat": (257, 56),
    "close": (3, 57),
    "flock": (73, 32),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
}
_MACHINES = {"x86_64": 0, "aarch64": 1}

_SEIZE, _INTERRUPT, _CONT, _LISTEN, _INFO = 0x4206, 0x4207, 7, 0x4208, 0x420E
_OPTIONS = 0x8 | 0x80 | 0x100000  # trace clone, seccomp; kill all when the tracer ends
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_WALL = 0x40000000
_STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def numbers() -> dict[int, str]:
    """The counted calls of this machine, by number. Raises KeyError on a machine that we have no table for."""
    column = _MACHINES[os.uname().machine]
    return {both[column]: name for name, both in CALLS.items() if both[column] is not None}  # type: ignore[misc]


def be_stepped(teller: int) -> None:
    """In the process that is to be stepped, once it is traced: from now on every counted call stops it.

    Args:
        teller: descriptor of the journal. Other descriptors that Python or the engine `write` to only wake threads up.
    """
    steps = _program(teller)
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    filters = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    no_new_privileges, set_filter, mode_filter = 38, 22, 2
    for arguments in ((no_new_privileges, 1, 0, 0, 0), (set_filter, mode_filter, filters)):
        if _libc.prctl(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "prctl")


def _program(teller: int) -> list[tuple[int, int, int, int]]:
    """The filter: for each call a block that is jumped over when it is another one."""
    load, jump_equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    number_at, architecture_at, first_at, second_at = 0, 4, 16, 24  # in struct seccomp_data
    allow, trace = (give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x7FF00000)
    architecture = AUDIT_ARCHITECTURES[os.uname().machine]
    steps = [(load, 0, 0, architecture_at), (jump_equal, 1, 0, architecture), allow]
    for number, name in numbers().items():
        block = [trace]
        if name == "write":
            block = [(load, 0, 0, first_at), (jump_equal, 0, 1, teller), trace, allow]
        if name == "io_uring_enter":  # that submits nothing: only waits
            block = [(load, 0, 0, second_at), (jump_equal, 1, 0, 0), trace, allow]
        steps += [(load, 0, 0, number_at), (jump_equal, 0, len(block), number), *block]
    return [*steps, allow]


@dataclass(slots=True)
class Stepper:
    """A process under our control; it must have one thread, and be the leader of its process group.

    Attributes:
        pid: of the process.
        calls: names of the counted calls so far, in order.
        killed: at which one it was killed.
    """

    pid: int
    calls: list[str] = field(default_factory=list)
    killed: str = ""
    _names: dict[int, str] = field(default_factory=numbers)

    def attach(self) -> None:
        """Take it. It goes on as before."""
        _ptrace(_SEIZE, self.pid, 0, _OPTIONS)

    def run(self, kill_at: int = 0) -> None:
        """Follow it until it ends. `kill_at`: the counted call, from 1, at which it gets SIGKILL; 0: never."""
        while True:
            try:
                thread, status = os.waitpid(-self.pid, _WALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                self._stopped(thread, status, kill_at)

    def _stopped(self, thread: int, status: int, kill_at: int) -> None:
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_SECCOMP:
            self.calls.append(self._names[_call_number(thread)])
            if len(self.calls) == kill_at:
                self.killed = self.calls[-1]
                os.kill(self.pid, signal.SIGKILL)  # it dies here: a stopped call is not begun
                return
        if event == _EVENT_STOP and number in _STOPS:
            _resume(_LISTEN, thread, 0)
        else:
            _resume(_CONT, thread, 0 if event else number)


def _call_number(thread: int) -> int:
    info = ctypes.create_string_buffer(88)  # struct ptrace_syscall_info of linux/ptrace.h
    try:
        _ptrace(_INFO, thread, len(info), ctypes.addressof(info))
    except ProcessLookupError:
        return -1
    return int(struct.unpack_from("Q", info, 24)[0])


def _resume(request: int, thread: int, number: int) -> None:
    try:
        _ptrace(request, thread, 0, number)
    except ProcessLookupError:
        return  # killed meanwhile


def _ptrace(request: int, thread: int, address: int, data: int) -> None:
    if _libc.ptrace(request, thread, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "ptrace")

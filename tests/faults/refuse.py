"""Run a command with system calls refused, as container runtimes do: `refuse.py CALL=ERRNO … -- COMMAND …`.

A program of its own, standard library only: it turns the filter on and executes the command, which keeps it for life, its
children too. Needs no root. The errno is a number or a name; a foreign architecture's calls are allowed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NUMBERS = {
    "x86_64": {
        "fsync": 74,
        "fdatasync": 75,
        "fallocate": 285,
        "io_uring_setup": 425,
        "io_uring_enter": 426,
        "io_uring_register": 427,
        "statx": 332,
        "flock": 73,
        "pwritev2": 328,
        "clone": 56,
        "clone3": 435,
    },
    "aarch64": {
        "fsync": 82,
        "fdatasync": 83,
        "fallocate": 47,
        "io_uring_setup": 425,
        "io_uring_enter": 426,
        "io_uring_register": 427,
        "statx": 291,
        "flock": 32,
        "pwritev2": 287,
        "clone": 220,
        "clone3": 435,
    },
}
AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def program(refused: Mapping[int, int], architecture: int) -> bytes:
    """A BPF program: the error for these call numbers, everything else allowed; a foreign architecture is allowed, too."""
    load, jump_equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    allow, error = 0x7FFF0000, 0x00050000
    steps = [(load, 0, 0, 4), (jump_equal, 0, 2 * len(refused) + 1, architecture), (load, 0, 0, 0)]
    for number, code in refused.items():
        steps += [(jump_equal, 0, 1, number), (give, 0, 0, error | code)]
    steps.append((give, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def refuse(refused: Mapping[str, int]) -> None:
    """Refuse these system calls to this thread from now on. There is no way back.

    Raises:
        KeyError: no number is known for the call on this machine.
        OSError: the kernel does not take the filter.
    """
    machine = os.uname().machine
    numbers = {NUMBERS[machine][call]: code for call, code in refused.items()}
    steps = program(numbers, AUDIT_ARCHITECTURES[machine])
    filters = _Program(len(steps) // 8, steps)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filters)),
    ):
        if libc.prctl(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), "prctl")


def main(arguments: list[str]) -> None:
    """Parse, refuse, execute."""
    end = arguments.index("--")
    refused = {}
    for argument in arguments[:end]:
        call, _, code = argument.partition("=")
        refused[call] = int(code) if code.isdigit() else getattr(errno, code)
    refuse(refused)
    os.execvp(arguments[end + 1], arguments[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])

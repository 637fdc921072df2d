"""Faults at system calls: errors, lies, delays and kills at the n-th call (strace), and calls that are refused (seccomp).

Neither needs root. Both see system calls only: what runs inside a ring passes by unseen, `io_uring_enter` itself excepted. `when`
counts per system call and per process, from 1, up to 65535.
"""

from __future__ import annotations

import errno as errno_names
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .needs import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """One fault at a system call.

    Attributes:
        call: its name, e.g. "pwrite64".
        when: strace's expression: "3" the third, "3+" from the third on, "1..4" the first four, "1+2" every second.
        errno: returned instead of doing the call.
        result: returned instead of doing the call: a lie.
        delay: seconds before the call.
        kill: SIGKILL when the call begins. The call itself is not done.
    """

    call: str
    when: str = "1+"
    errno: int = 0
    result: int | None = None
    delay: float = 0.0
    kill: bool = False

    def option(self) -> str:
        """The argument of strace's -e."""
        parts = [f"inject={self.call}"]
        if self.errno:
            parts.append(f"error={errno_names.errorcode[self.errno]}")
        if self.result is not None:
            parts.append(f"retval={self.result}")
        if self.delay:
            parts.append(f"delay_enter={int(self.delay * 1_000_000)}")
        if self.kill:
            parts.append("signal=SIGKILL")
        return ":".join([*parts, f"when={self.when}"])


@dataclass(frozen=True, slots=True)
class Traced:
    """How a traced command ended.

    Attributes:
        status: exit status, or the negative signal number.
        output, errors: what it wrote.
        calls: how often each traced system call was made.
        injected: how often each was tampered with.
    """

    status: int
    output: str
    errors: str
    calls: Mapping[str, int]
    injected: Mapping[str, int]

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL


def run(
    command: Sequence[str],
    *injections: Injection,
    trace: Sequence[str] = (),
    paths: Sequence[str | Path] = (),
    timeout: float = 60.0,
) -> Traced:
    """Run a command and its children under strace.

    Args:
        trace: further system calls to count.
        paths: only calls that touch these absolute paths are traced, counted and tampered with.
        timeout: seconds; subprocess.TimeoutExpired after that, and the command is gone.
    """
    require("strace")
    names = ",".join(dict.fromkeys([*trace, *(injection.call for injection in injections)]))
    with tempfile.TemporaryDirectory(prefix="strace-") as directory:
        record = Path(directory) / "record"
        options = ["-f", "-qq", "-o", str(record), "-e", f"trace={names}", "-e", "signal=none"]
        options += [part for path in paths for part in ("-P", str(path))]
        options += [part for injection in injections for part in ("-e", injection.option())]
        # No --seccomp-bpf, fast as it is: with it, strace 6.1 silently injects no signal.
        result = subprocess.run(
            ["strace", *options, *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        lines = record.read_text().splitlines()
    # a call that another thread interrupts is printed in two lines; the second begins with "<... name resumed>"
    began = Counter(match[1] for line in lines if (match := re.match(r"\d+ +(\w+)\(", line)))
    injected = Counter(
        match[1]
        for line in lines
        if line.endswith(")")
        and "(INJECTED)" in line
        and (match := re.search(r"(\w+)(?:\(| resumed)", line))
    )
    return Traced(result.returncode, result.stdout, result.stderr, began, injected)


def kill_points(
    command: Sequence[str],
    calls: Sequence[str],
    *,
    paths: Sequence[str | Path] = (),
    limit: int = 1000,
    timeout: float = 60.0,
) -> Iterator[tuple[str, int, Traced]]:
    """Run the command again and again, killed at the 1st, 2nd, 3rd … occurrence of each call, until it completes unharmed.

    Yields after each run (call, n, result): the test checks what the killed one left behind, and cleans up for the next. The
    last run for each call is the unharmed one.

    Raises:
        RuntimeError: more than `limit` occurrences of one call.
    """
    for call in calls:
        for occurrence in range(1, limit + 1):
            result = run(
                command,
                Injection(call=call, when=str(occurrence), kill=True),
                paths=paths,
                timeout=timeout,
            )
            yield call, occurrence, result
            if not result.killed:
                break
        else:
            raise RuntimeError(f"{call} was killed {limit} times, and there are more")


# ---- seccomp ---------------------------------------------------------------------------------------------------------------


def refusing(command: Sequence[str], refused: Mapping[str, int]) -> list[str]:
    """The command line that runs `command` with these system calls refused, as a container does.

    Args:
        refused: errno by name of the call, e.g. {"io_uring_setup": errno.EPERM}.
    """
    require("seccomp")
    filters = [f"{call}={number}" for call, number in refused.items()]
    launcher = Path(__file__).with_name("refuse.py")
    return [sys.executable, str(launcher), *filters, "--", *command]

"""What the figures were made on: a figure without its machine is a guess."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path


def describe() -> dict[str, object]:
    """Processor, memory, kernel, page settings and tool versions, as plain values for JSON."""
    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "processors": os.cpu_count() or 1,
        "processors_usable": len(os.sched_getaffinity(0)),
        "memory_mib": int((_first("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) >> 10,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "transparent_huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "huge_pages_reserved": int(_first("/proc/meminfo", "HugePages_Total") or 0),
        "load_before": load(),
        "fio": tool_version("fio"),
        "user": "root" if os.geteuid() == 0 else "not root",
    }


def load() -> float:
    """How many processes have lately wanted a processor: more than this benchmark's own make its figures doubtful."""
    return round(os.getloadavg()[0], 2)


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    return int((_first("/proc/meminfo", "MemAvailable") or "0 kB").split()[0]) << 10


def revision() -> str | None:
    """What git calls the state of the tree that runs, "+" when it is changed; None outside of a checkout."""
    home = Path(__file__).resolve().parents[2]
    if not (home / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-C", str(home), "describe", "--always", "--abbrev=12", "--dirty=+"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return said.stdout.strip() or None


def tool_version(name: str) -> str | None:
    """First line of ``name --version``, or None when the tool is not installed."""
    path = shutil.which(name)
    if path is None:
        return None
    said = subprocess.run(
        [path, "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    lines = said.stdout.splitlines()
    return lines[0] if lines else name


def _first(path: str, key: str) -> str | None:
    """Value of the first ``key: value`` line of a file under /proc."""
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        return None
    return None


def _chosen(path: str) -> str | None:
    """The bracketed word of a sysfs choice such as ``always [madvise] never``."""
    try:
        text = Path(path).read_text(encoding="ascii")
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or text.strip()

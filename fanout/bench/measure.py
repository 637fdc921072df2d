"""One measurement: how long, and how much processor time was used by whom."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contender.

    Attributes:
        seconds: wall clock from the first byte handed over until every target has confirmed its flush.
        cpu_seconds: user and system time of the contender's own processes.
        machine_cpu_seconds: busy time of the whole machine meanwhile (kernel workers of loop devices and write-back are in
            here and nowhere else; so is whatever else ran).
        client_bytes: bytes that one target received.
        targets: how many targets received them.
    """

    seconds: float
    cpu_seconds: float
    machine_cpu_seconds: float
    client_bytes: int
    targets: int

    @property
    def aggregate_bytes_per_second(self) -> float:
        """Bytes written to all targets together, per second."""
        return self.client_bytes * self.targets / self.seconds

    @property
    def cpu_ms_per_client_gib(self) -> float:
        """Processor milliseconds for each GiB that the client handed over, whatever the number of targets."""
        return self.cpu_seconds * 1e3 * GIB / self.client_bytes

    @property
    def machine_cpu_ms_per_client_gib(self) -> float:
        """The same for the whole machine."""
        return self.machine_cpu_seconds * 1e3 * GIB / self.client_bytes


class Meter:
    """Context manager around a run; `sample` turns it into a `Sample`."""

    def __enter__(self) -> Meter:
        self._machine = machine_cpu_seconds()
        self._self = _used(resource.RUSAGE_SELF)
        self._children = _used(resource.RUSAGE_CHILDREN)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self.self_cpu_seconds = _used(resource.RUSAGE_SELF) - self._self
        self.children_cpu_seconds = _used(resource.RUSAGE_CHILDREN) - self._children
        self.machine_cpu_seconds = machine_cpu_seconds() - self._machine

    def sample(
        self,
        client_bytes: int,
        targets: int,
        *,
        seconds: float | None = None,
        cpu_seconds: float | None = None,
    ) -> Sample:
        """The run as a sample.

        Args:
            client_bytes: bytes that each target received.
            targets: number of targets.
            seconds: the contender's own clock, when it excludes its own start-up (fio).
            cpu_seconds: the contender's own account of its processor time, likewise.
        """
        used = self.self_cpu_seconds + self.children_cpu_seconds
        return Sample(
            seconds=self.seconds if seconds is None else seconds,
            cpu_seconds=used if cpu_seconds is None else cpu_seconds,
            machine_cpu_seconds=self.machine_cpu_seconds,
            client_bytes=client_bytes,
            targets=targets,
        )


def _used(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def machine_cpu_seconds() -> float:
    """Busy processor time of the machine since it started: user, nice, system, interrupts; neither idle, waiting nor stolen."""
    with open("/proc/stat", encoding="ascii") as stat:
        ticks = [int(word) for word in stat.readline().split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq = ticks[:7]
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

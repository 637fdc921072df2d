"""Who is compared: fanout and its peers. Each can `run` the same `Work` any number of times.

All end with a flush of every target. fanout and the Python threads take the client's chunks as they come; those who have no client
write 1 MiB at a time. What differs is said with each class; where a peer could be given more or less, it is given more: fio never
reads a client's memory nor hashes, the Python threads write the client's memory without a copy, `dd` reads the client's bytes from
memory and does not hash. The peers that need more than the bare targets are in `peers`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import xxhash

from fanout.bench.measure import Meter, Sample
from fanout.bench.work import BLOCK_BYTES, MIB
from fanout.demo import signals
from fanout.errors import FanoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.bench.work import Work
    from fanout.engine import Engine, Stream, Target

DEPTH = 8
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
HUGE_PAGE_BYTES = 2 << 20
HUGE_PAGES_WANTED = 96  # 192 MiB: fio's buffers and fanout's arena side by side


class Contender(Protocol):
    """One way to get the bytes onto the targets."""

    name: str
    family: str
    """Contenders of one family answer one question; the best of them stands for it."""
    title: str

    def missing(self) -> str | None:
        """Why it cannot run here; None when it can."""

    def unfit(self, work: Work) -> str | None:
        """Why it cannot do this work; None when it can."""

    def run(self, work: Work) -> Sample:
        """Do the work once."""


class BenchmarkError(FanoutError):
    """A contender did not do its work; its figure would be void."""


def one_stream(work: Work) -> str | None:
    """What a contender without threads of its own says to several clients at once."""
    return "it takes one stream" if work.streams > 1 else None


def side_by_side(jobs: Sequence[Callable[[], None]]) -> None:
    """Run all at once, a thread for each; raise the first error. A single one needs no thread.

    Ctrl-C waits until all have ended: what they use is taken down next.
    """
    if len(jobs) == 1:
        return jobs[0]()
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    with signals.held_back():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return None


# ---- fanout -------------------------------------------------------------------------------------------------------------


class Fanout:
    """The engine: copy into its arena, XXH3-128 and a sum per slot on the way, one shared buffer to every target.

    Args:
        engine: open for the whole comparison, as in a daemon. Targets are opened for each run, outside the clock, as fio does.
        depth: writes in flight on a target; 0: the engine's default, which is `DEPTH`.
    """

    name = "fanout"
    family = "fanout"
    title = "fanout (copy + hash)"

    def __init__(self, engine: Engine, *, depth: int = 0) -> None:
        self._engine, self._depth = engine, depth

    def missing(self) -> str | None:
        """Never."""
        return None

    def unfit(self, work: Work) -> str | None:
        """Never."""
        return None

    def run(self, work: Work) -> Sample:
        """Stream the client's chunks and sync."""
        with contextlib.ExitStack() as stack:
            targets = [self._open(path, work) for path in work.targets]
            for target in targets:
                stack.callback(target.close)
            jobs = []
            for share in work.shares():
                stream = stack.enter_context(self._engine.stream(targets))
                stream.place([share.start] * len(targets), len(share))
                jobs.append(functools.partial(_land, stream, work, share))
            with Meter() as meter:
                side_by_side(jobs)
        return meter.sample(work.size_bytes, len(work.targets))

    def _open(self, path: str, work: Work) -> Target:
        """Say how long it will be: no space is allocated ahead while the clock runs."""
        size = 0 if work.block_devices else work.size_bytes
        return self._engine.open(path, lock=work.block_devices, size=size, depth=self._depth)


def _land(stream: Stream, work: Work, share: range) -> None:
    for chunk in work.chunks(share):
        stream.write(chunk)
    outcomes = stream.sync()
    bad = {target.path: str(outcome) for target, outcome in outcomes.items() if not outcome.ok}
    if bad:
        raise BenchmarkError(f"fanout: {bad}")


# ---- fio ----------------------------------------------------------------------------------------------------------------


class Fio:
    """fio with io_uring and direct I/O, timed by its own clock (its start-up does not count).

    Args:
        tuned: registered buffers and files, buffers on huge pages: reserved ones when there are enough, else transparent ones.
        jobs_per_target: one thread for each target, or one thread for all. A target has `DEPTH` writes in flight either way.
    """

    def __init__(self, *, tuned: bool, jobs_per_target: bool) -> None:
        self._tuned, self._jobs_per_target = tuned, jobs_per_target
        threads = "a thread per target" if jobs_per_target else "one thread"
        self.name = f"fio_{'tuned' if tuned else 'stock'}_{'jobs' if jobs_per_target else 'single'}"
        self.family = "fio_tuned" if tuned else "fio_stock"
        self.title = f"fio {'tuned' if tuned else 'stock'}, {threads}"
        self.memory = "malloc"

    def missing(self) -> str | None:
        """It is an optional package."""
        return None if shutil.which("fio") else "fio is not installed (Debian: apt-get install fio)"

    def unfit(self, work: Work) -> str | None:
        """With one thread for all it has one stream."""
        return None if self._jobs_per_target else one_stream(work)

    def run(self, work: Work) -> Sample:
        """Run fio and take time and processor time from its report."""
        with Meter() as meter:
            said = subprocess.run(self._command(work), capture_output=True, text=True, check=False)
        if said.returncode:
            raise BenchmarkError(f"{self.name}: {_complaint(said.stderr or said.stdout)}")
        jobs = json.loads(said.stdout[said.stdout.index("{") :])["jobs"]
        written = sum(job["write"]["io_bytes"] for job in jobs)
        if written != work.size_bytes * len(work.targets):
            raise BenchmarkError(
                f"{self.name}: wrote {written} bytes of {work.size_bytes * len(work.targets)}"
            )
        # Runtimes are whole milliseconds; the slowest job ends the run.
        seconds = max(job["job_runtime"] for job in jobs) / 1e3
        cpu = sum(
            (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3 for job in jobs
        )
        return meter.sample(
            work.size_bytes, len(work.targets), seconds=max(seconds, 1e-3), cpu_seconds=cpu
        )

    def _command(self, work: Work) -> list[str]:
        common = [
            "fio",
            "--output-format=json",
            "--thread",
            "--ioengine=io_uring",
            "--direct=1",
            "--rw=write",
            f"--bs={BLOCK_BYTES}",
            f"--iodepth={self._depth(work)}",
            "--end_fsync=1",
            "--fallocate=none",
            "--allow_file_create=0",
            "--invalidate=0",
        ]
        if self._tuned:
            common += [
                "--fixedbufs=1",
                "--registerfiles=1",
                "--scramble_buffers=0",
                *self._huge_memory(work),
            ]
        if self._jobs_per_target:
            for number, path in enumerate(work.targets):
                for share in work.shares():
                    common += [f"--name=lane{number}", f"--filename={path}"]
                    common += [f"--offset={share.start}", f"--size={len(share)}"]
            return common
        # fio separates file names with colons.
        names = ":".join(path.replace(":", "\\:") for path in work.targets)
        total = work.size_bytes * len(work.targets)
        return [*common, "--name=all", f"--filename={names}", f"--size={total}"]

    def _depth(self, work: Work) -> int:
        if self._jobs_per_target:
            return max(1, DEPTH // work.streams)
        return DEPTH * len(work.targets)

    def _huge_memory(self, work: Work) -> list[str]:
        # A page more for each thread, because it rounds up.
        threads = len(work.targets) * work.streams if self._jobs_per_target else 1
        wanted = threads * (self._depth(work) * BLOCK_BYTES // HUGE_PAGE_BYTES + 1)
        if int(_meminfo("HugePages_Free")) >= wanted:
            self.memory = "reserved huge pages"
            return ["--iomem=mmaphuge"]
        if _fio_knows("thp"):
            self.memory = "transparent huge pages"
            return ["--iomem=mmap", "--thp=1"]
        self.memory = "small pages: none are reserved, and this fio cannot ask for transparent ones"
        return []


def _complaint(text: str) -> str:
    """Fio's first line, with the mend for what befalls most users: registered buffers count as locked memory."""
    line = next(iter(text.strip().splitlines()), "failed without a word")
    if "Cannot allocate memory" in line:
        return f"{line}; its registered buffers need a higher memlock limit (ulimit -l), or root"
    return line


@functools.cache
def _fio_knows(option: str) -> bool:
    said = subprocess.run(
        ["fio", f"--cmdhelp={option}"], capture_output=True, text=True, check=False
    )
    return "No such" not in said.stdout + said.stderr


@contextlib.contextmanager
def reserved_huge_pages(wanted: int = HUGE_PAGES_WANTED) -> Iterator[int]:
    """Reserve huge pages while the block runs, when allowed to. Yields how many are free.

    What is given back is what was added, so that two benchmarks at once leave nothing behind, in whichever order they end.
    """
    added = 0
    with contextlib.suppress(OSError):  # not root, or no such setting: transparent huge pages then
        if int(_meminfo("HugePages_Free")) < wanted:
            before = _huge_pages()
            HUGE_PAGES.write_text(f"{before + wanted}\n", encoding="ascii")
            added = _huge_pages() - before  # fewer when memory is in pieces
    try:
        yield int(_meminfo("HugePages_Free"))
    finally:
        if added > 0:
            with contextlib.suppress(OSError):
                HUGE_PAGES.write_text(f"{max(0, _huge_pages() - added)}\n", encoding="ascii")


def _huge_pages() -> int:
    return int(HUGE_PAGES.read_text(encoding="ascii"))


# ---- Python threads -----------------------------------------------------------------------------------------------------


class PythonThreads:
    """One thread per target fed by a bounded queue, then ``fdatasync``: what one would write by hand.

    Args:
        direct: with O_DIRECT (the client's memory is page-aligned) instead of through the page cache.
        hashing: XXH3-128 by python-xxhash over the client's bytes, as fanout makes it.
    """

    def __init__(self, *, direct: bool, hashing: bool) -> None:
        self._direct, self._hashing = direct, hashing
        how = "direct" if direct else "buffered"
        self.family = "python_threads" if hashing else "python_threads_bare"
        self.name = f"{self.family}_{how}"
        self.title = f"Python threads, {how}, {'hash' if hashing else 'bare'}"

    def missing(self) -> str | None:
        """Never."""
        return None

    def unfit(self, work: Work) -> str | None:
        """Never."""
        return None

    def run(self, work: Work) -> Sample:
        """Feed the queues, join the threads."""
        flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_DIRECT if self._direct else 0)
        with contextlib.ExitStack() as stack:
            fds = [os.open(path, flags) for path in work.targets]
            for fd in fds:
                stack.callback(os.close, fd)
            jobs = [functools.partial(self._client, fds, work, share) for share in work.shares()]
            with Meter() as meter:
                side_by_side(jobs)
        return meter.sample(work.size_bytes, len(work.targets))

    def _client(self, fds: Sequence[int], work: Work, share: range) -> None:
        lanes: list[queue.Queue[memoryview | None]] = [queue.Queue(DEPTH) for _ in fds]
        errors: list[OSError] = []
        threads = [
            threading.Thread(target=_python_lane, args=(fd, lane, share.start, errors))
            for fd, lane in zip(fds, lanes, strict=True)
        ]
        digest = xxhash.xxh3_128()
        for thread in threads:
            thread.start()
        for chunk in work.chunks(share):
            for lane in lanes:
                lane.put(chunk)
            if self._hashing:  # while the lanes write
                digest.update(chunk)
        for lane in lanes:
            lane.put(None)
        for thread in threads:
            thread.join()
        if errors:
            raise BenchmarkError(f"{self.name}: {errors[0]}")


def _python_lane(
    fd: int, lane: queue.Queue[memoryview | None], offset: int, errors: list[OSError]
) -> None:
    while (chunk := lane.get()) is not None:
        try:
            while not errors and chunk:
                done = os.pwrite(fd, chunk, offset)
                chunk, offset = chunk[done:], offset + done
        except OSError as error:
            errors.append(error)
    try:
        os.fdatasync(fd)
    except OSError as error:
        errors.append(error)


# ---- dd | tee -----------------------------------------------------------------------------------------------------------


class DdTee:
    """``dd | tee`` with one `dd` per target at the end of it, each ending with ``fdatasync``.

    `tee` itself would truncate files, and with that throw the preallocation away; the `dd` sinks write in place.

    Args:
        direct: the sinks write with O_DIRECT.
    """

    family = "dd_tee"

    def __init__(self, *, direct: bool) -> None:
        self._direct = direct
        self.name = f"dd_tee_{'direct' if direct else 'buffered'}"
        self.title = f"dd | tee, {'direct' if direct else 'buffered'} sinks"

    def missing(self) -> str | None:
        """Both belong to coreutils."""
        return None if shutil.which("dd") and shutil.which("tee") else "dd or tee is not installed"

    def unfit(self, work: Work) -> str | None:
        """A pipe is one stream."""
        return one_stream(work)

    def run(self, work: Work) -> Sample:
        """Start the pipeline, wait for all of it."""
        os.lseek(work.memory_fd, 0, os.SEEK_SET)  # dd shares our position in it
        with Meter() as meter:
            processes = self._start(work)
            codes = [process.wait() for process in processes]
        if any(codes):
            raise BenchmarkError(f"{self.name}: exit codes {codes}")
        return meter.sample(work.size_bytes, len(work.targets))

    def _start(self, work: Work) -> list[subprocess.Popen[bytes]]:
        block = f"bs={BLOCK_BYTES // MIB}M"
        # fullblock gathers the pieces of a pipe into whole blocks, without which O_DIRECT would be impossible.
        sink = ["dd", block, "iflag=fullblock", "conv=notrunc,fdatasync", "status=none"]
        if self._direct:
            sink.append("oflag=direct")
        processes, ends = [], []
        for path in work.targets:
            process = subprocess.Popen([*sink, f"of={path}"], stdin=subprocess.PIPE)
            assert process.stdin is not None
            processes.append(process)
            ends.append(process.stdin)
        source = subprocess.Popen(
            ["dd", block, f"count={work.size_bytes // BLOCK_BYTES}", "status=none"],
            stdin=work.memory_fd,
            stdout=subprocess.PIPE,
        )
        first, *others = ends
        tee = subprocess.Popen(
            ["tee", *(f"/dev/fd/{end.fileno()}" for end in others)],
            stdin=source.stdout,
            stdout=first,
            pass_fds=[end.fileno() for end in others],
        )
        assert source.stdout is not None
        for end in (source.stdout, *ends):
            end.close()  # ours would keep the pipes open after the writers have gone
        return [source, tee, *processes]


# ---- the field ----------------------------------------------------------------------------------------------------------


def field(engine: Engine, *, depth: int = 0) -> list[Contender]:
    """Everybody who needs nothing but the targets, fanout first."""
    return [
        Fanout(engine, depth=depth),
        Fio(tuned=True, jobs_per_target=True),
        Fio(tuned=True, jobs_per_target=False),
        Fio(tuned=False, jobs_per_target=True),
        PythonThreads(direct=False, hashing=True),
        PythonThreads(direct=True, hashing=True),
        PythonThreads(direct=True, hashing=False),
        DdTee(direct=False),
        DdTee(direct=True),
    ]


def _meminfo(key: str) -> str:
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == key:
                return value.split()[0]
    return "0"

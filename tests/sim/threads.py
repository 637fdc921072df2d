"""Threads that take turns: one runs at a time, and a seed says who is next.

They stand in for `threading` and `queue` in the product's modules, so the product's own committer and scribe run, thread loops and all,
and one seed is one interleaving. A turn ends where a thread waits, and here and there before it takes a lock. Nothing waits
for a clock. When nobody can go on the run ends with `Deadlock`, which says who waits for what.

They are greenlets: a switch between real threads costs 10 µs, and milliseconds on a busy machine.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator

PREEMPTION = 0.1  # how often a turn ends before a lock is taken


class Deadlock(AssertionError):
    """Every thread waits."""


class End(BaseException):
    """Unwinds the threads that are left when a run is over."""


class _Task:
    """A thread, and what it waits for."""

    __slots__ = ("error", "name", "over", "pass_time", "run", "until", "what")

    def __init__(self, name: str) -> None:
        self.name = name
        self.run: Any = getcurrent()
        self.until: Callable[[], bool] | None = None
        self.pass_time: Callable[[], None] | None = None
        self.what = ""
        self.over = False
        self.error: BaseException | None = None


class Scheduler:
    """The threads of one run. The thread that makes it is the first of them.

    Args:
        rng: chooses.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._main = self._running = _Task("main")
        self._tasks = [self._main]
        self._ending = False
        self.switches = 0

    def start(self, name: str, work: Callable[[], None]) -> _Task:
        """A new thread; it gets its first turn when somebody waits."""
        task = _Task(name)
        task.run = greenlet(lambda *_: self._life(task, work), parent=self._main.run)
        self._tasks.append(task)
        return task

    def _life(self, task: _Task, work: Callable[[], None]) -> None:
        try:
            if not self._ending:
                work()
        except End:
            pass
        except BaseException as error:
            task.error = error
        task.over = True
        self._tasks.remove(task)
        # Who goes on when this one returns; one that was not started yet gets the returned value as an argument.
        task.run.parent = self._next().run

    def wait(
        self, until: Callable[[], bool], what: str, *, pass_time: Callable[[], None] | None = None
    ) -> None:
        """The running thread has nothing to do before `until` is true; when all wait, `pass_time` may make it so."""
        while not until():
            me = self._running
            me.until, me.what, me.pass_time = until, what, pass_time
            self._yield(me)
            me.until = me.pass_time = None

    def pause(self) -> None:
        """The running thread goes on at its next turn."""
        self._yield(self._running)

    def breathe(self) -> None:
        """Perhaps it is somebody else's turn."""
        if len(self._tasks) > 1 and self._rng.random() < PREEMPTION:
            self._yield(self._running)

    def _yield(self, me: _Task) -> None:
        task = self._next()
        if task is not me:
            task.run.switch()
        if self._ending and me is not self._main:
            raise End
        if me.error is not None:
            error, me.error = me.error, None
            raise error

    def _next(self) -> _Task:
        """Whose turn it is."""
        ready = self._ready()
        if not ready:
            for pass_time in [task.pass_time for task in self._tasks if task.pass_time]:
                pass_time()
            ready = self._ready()
        if ready:
            task = self._rng.choice(ready) if len(ready) > 1 else ready[0]
        else:
            task = self._main
            waiting = ", ".join(f"{task.name} for {task.what}" for task in self._tasks)
            task.error = Deadlock(f"everybody waits: {waiting}")
        self.switches += 1
        self._running = task
        return task

    def _ready(self) -> list[_Task]:
        return [task for task in self._tasks if task.until is None or task.until()]

    def end(self) -> None:
        """Unwind whatever is left; only the first thread may call it."""
        self._ending = True
        while len(self._tasks) > 1:
            for task in self._tasks[1:]:
                task.until = None
            self._yield(self._main)


_run: list[Scheduler] = []


def use(scheduler: Scheduler | None) -> None:
    """All that is made from here on belongs to this run."""
    _run[:] = [] if scheduler is None else [scheduler]


def current() -> Scheduler:
    """The run that is on."""
    assert _run, "no simulation runs"
    return _run[0]


# ---- what `threading` and `queue` offer ------------------------------------------------------------------


class Lock:
    """`threading.Lock`, or with `again` an `RLock`."""

    again = False

    def __init__(self) -> None:
        self._owner: _Task | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        assert timeout == -1, "not simulated"
        scheduler = _run[0]
        if blocking and len(scheduler._tasks) > 1:
            scheduler.breathe()
        if self._owner is not None:
            if self.again and self._owner is scheduler._running:
                self._count += 1
                return True
            if not blocking:
                return False
            scheduler.wait(lambda: self._owner is None, "a lock")
        self._owner, self._count = scheduler._running, 1
        return True

    __enter__ = acquire

    def release(self) -> None:
        assert self._owner is not None
        self._count -= 1
        if not self._count:
            self._owner = None

    def locked(self) -> bool:
        return self._owner is not None

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """`threading.RLock`."""

    again = True


class Event:
    """`threading.Event`."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Without an end: here no catalog hangs."""
        current().wait(self.is_set, "an event")
        return True


class Condition(RLock):
    """`threading.Condition`."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[list[bool]] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        """With an end it lasts until the next turn that chance gives it."""
        woken = [False]
        self._waiting.append(woken)
        count, self._count, self._owner = self._count, 0, None
        scheduler = current()
        if timeout is not None:
            scheduler.pause()
        in_time = timeout is None or woken[0]
        if not in_time:
            self._waiting.remove(woken)
            woken[0] = True
        scheduler.wait(lambda: woken[0] and self._owner is None, "a condition")
        self._owner, self._count = scheduler._running, count
        return in_time

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiting))):
            self._waiting.popleft()[0] = True

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class Thread:
    """`threading.Thread`."""

    def __init__(
        self,
        *,
        target: Callable[..., None],
        args: tuple[Any, ...] = (),
        name: str = "",
        daemon: bool = False,
    ) -> None:
        self._work, self._name = lambda: target(*args), name
        self._task: _Task | None = None

    def start(self) -> None:
        self._task = current().start(self._name, self._work)

    def join(self, timeout: float | None = None) -> None:
        """Raises what the thread ended with: a product thread must not end by an exception."""
        task = self._task
        assert task is not None
        current().wait(lambda: task.over, f"the end of {self._name}")
        error, task.error = task.error, None
        if error is not None:
            raise error

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.over


class Queue:
    """`queue.Queue`."""

    def __init__(self, maxsize: int = 0) -> None:
        self._items: deque[Any] = deque()
        self._size = maxsize

    def put(self, item: Any, timeout: float | None = None) -> None:
        if self._size:
            current().wait(lambda: len(self._items) < self._size, "room in a queue")
        self._items.append(item)

    def get(self) -> Any:
        current().wait(lambda: bool(self._items), "a queue")
        return self._items.popleft()

    def get_nowait(self) -> Any:
        current().breathe()
        if not self._items:
            raise queue.Empty
        return self._items.popleft()


class Executor:
    """`ThreadPoolExecutor` for ``map`` alone: one after the other."""

    def __init__(self, workers: int, *, thread_name_prefix: str = "") -> None:
        pass

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return iter([work(item) for item in items])


class Module:
    """What a product module sees under the name ``threading`` or ``queue``."""

    Thread, Event, Condition, Lock, RLock, Queue = Thread, Event, Condition, Lock, RLock, Queue
    Empty, Full = queue.Empty, queue.Full
    current_thread = staticmethod(threading.current_thread)

    @staticmethod
    def main_thread() -> None:
        """None of them: no interrupt strikes here."""

"""Ctrl-C, SIGTERM and SIGHUP at any moment: whatever was made is known, and given back.

A device that the kernel has handed out while the exception was on its way would be nobody's. So a
signal is held back while something is made and noted, and ignored while it is given back; in between
it ends the demo. In a thread other than the main one nothing is changed: who runs us there looks
after signals.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

T = TypeVar("T")

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    with _handlers(dict.fromkeys(ENDING, stop)):
        yield


class Stack(contextlib.ExitStack):
    """An exit stack on which nothing is ever half entered."""

    def enter_context(self, cm: AbstractContextManager[T, Any]) -> T:
        """As ever, but a signal waits until the context is entered and noted."""
        with held_back():
            return super().enter_context(cm)


@contextlib.contextmanager
def undisturbed() -> Iterator[Stack]:
    """A stack that is taken down with signals ignored: an impatient second Ctrl-C leaves nothing behind."""
    stack = Stack()
    try:
        yield stack
    finally:
        with _handlers(dict.fromkeys(ENDING, signal.SIG_IGN)):
            stack.close()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Signals that come meanwhile are acted upon at the end."""
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        came.append(number)

    with _handlers(dict.fromkeys(ENDING, note)):
        yield
    if came:
        signal.raise_signal(signal.Signals(came[0]))


@contextlib.contextmanager
def _handlers(
    wanted: Mapping[signal.Signals, Callable[[int, Any], None] | signal.Handlers],
) -> Iterator[None]:
    before: dict[signal.Signals, Any] = {}
    try:
        with contextlib.suppress(ValueError):  # not the main thread
            for number, handler in wanted.items():
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

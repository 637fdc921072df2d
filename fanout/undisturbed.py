"""What must not be cut short by an interrupt of its caller."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def undisturbed(action: Callable[[], T]) -> T:
    """Do something to the end, and only then let an interrupt through: it strikes the main thread alone. What waits in there must have an end of its own."""
    if threading.current_thread() is not threading.main_thread():
        return action()
    done: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            done.append(action())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="fanout-directories", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # this machine has no thread left
        return action()
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:
            raised.insert(0, error)
    if raised:
        raise raised[0]
    return done[0]

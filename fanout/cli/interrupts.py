"""Ctrl-C that strikes where nothing can be raised: it is pressed again, by us.

A `KeyboardInterrupt` in a finaliser or the callback of a weak reference goes nowhere: Python prints it as ignored, and the command
runs on as if nobody had asked. A moment later the main thread is somewhere else.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MOMENT = 0.01  # seconds: finalisers are short


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Meanwhile no interrupt is lost; other exceptions that nobody can catch are told as before."""
    before, strikes = sys.unraisablehook, list[threading.Timer]()

    def hook(unraisable: sys.UnraisableHookArgs, /) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            strikes.append(threading.Timer(MOMENT, _interrupt))
            strikes[-1].daemon = True
            strikes[-1].start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for strike in strikes:
            strike.cancel()


def _interrupt() -> None:
    main = threading.main_thread().ident
    assert main is not None  # it has begun
    signal.pthread_kill(main, signal.SIGINT)  # a signal, not a flag: it may wait in the kernel

"""An interrupt at a chosen point: Python lets one through at the beginning of a function, and behind a call of C."""

from __future__ import annotations

import os
from typing import Any

import fanout

PRODUCT = os.path.dirname(fanout.__file__) + os.sep


class Striker:
    """Raises at the n-th point inside of fanout; for `sys.setprofile`."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __call__(self, frame: Any, event: str, _: object) -> None:
        inside = frame.f_code.co_filename.startswith(PRODUCT)
        if inside and event in {"c_return", "call"}:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    @property
    def struck(self) -> bool:
        return self.left <= 0

"""Small reads served from larger ones, for a walk over volumes that nobody writes to meanwhile.

A check, or a rebuild, asks for headers and footers by the thousand, most of them one behind the other. Each would be a request of its
own to the device: on a disk a turn of the platter, anywhere a way through the engine and back.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from fanout.errors import FanoutError

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST, MOST = 64 << 10, 1 << 20  # bytes of a window
WINDOWS = 32  # kept at once, each of another volume


class _Window(NamedTuple):
    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class ReadAhead:
    """The last window of each of some volumes. It grows while reads go forward, and is small again when they jump.

    One thread at a time. What is written after it was read ahead is not seen.
    """

    def __init__(self) -> None:
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()

    def read(
        self,
        volume: bytes,
        offset: int,
        length: int,
        *,
        size: int,
        read: Callable[[int, int], bytes],
    ) -> bytes:
        """Bytes of a volume.

        Args:
            volume: whose window it is.
            offset: of the first byte.
            length: in bytes.
            size: of the volume, in bytes.
            read: reads (offset, length) of it.

        Raises:
            Whatever `read` raises for just these bytes: what lies behind them may be damaged.
        """
        window = self._windows.get(volume)
        if window is not None and window.start <= offset and offset + length <= window.end:
            return window.data[offset - window.start : offset - window.start + length]
        wanted = LEAST
        if window is not None and window.start <= offset <= window.end + MOST:
            wanted = min(2 * len(window.data), MOST)
        wanted = min(wanted, size - offset)
        if length >= wanted:
            return read(offset, length)
        try:
            data = read(offset, wanted)
        except FanoutError:
            return read(offset, length)
        self._windows[volume] = _Window(offset, data)
        self._windows.move_to_end(volume)
        if len(self._windows) > WINDOWS:
            self._windows.popitem(last=False)
        return data[:length]

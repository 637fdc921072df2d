"""Small reads served from larger ones, for a walk over volumes.

A check, a rebuild, an audit or a repair asks for headers and footers by the thousand, most of them one behind the other. Each would be a request
of its own to the device: on a disk a turn of the platter, anywhere a way through the engine and back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fanout.errors import FanoutError

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST, MOST = 64 << 10, 512 << 10  # bytes of a window
# Kept at once. What clients wrote side by side lies side by side: a walk in the order of commits goes on at many places in turn.
WINDOWS = 64  # 32 MiB at most


class _Window(NamedTuple):
    volume: bytes
    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class ReadAhead:
    """The windows that were read last. Where reads go forward the next one is twice as long; elsewhere they begin small.

    One thread at a time. What is written after it was read ahead is not seen.
    """

    def __init__(self) -> None:
        self._windows: list[_Window] = []  # the one that was used last first

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
        before: _Window | None = None
        for index, window in enumerate(self._windows):
            if window.volume != volume or window.start > offset:
                continue
            if offset + length <= window.end:
                self._windows.insert(0, self._windows.pop(index))
                return window.data[offset - window.start : offset - window.start + length]
            if before is None and offset <= window.end + len(window.data):
                before = window
        start, wanted = offset, LEAST
        if before is not None:
            wanted = min(2 * len(before.data), MOST)
            if before.end <= offset and offset + length <= before.end + wanted:
                start = before.end  # no hole for a step back
        wanted = min(wanted, size - start)
        if length >= wanted:
            return read(offset, length)
        try:
            data = read(start, wanted)
        except FanoutError:
            return read(offset, length)
        self._windows.insert(0, _Window(volume, start, data))
        del self._windows[WINDOWS:]
        return data[offset - start : offset - start + length]

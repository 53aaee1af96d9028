"""Memory that is filled at its end and emptied at its beginning, and used again and again. No I/O."""

from struct import calcsize
from typing import Literal

from topside_daemon.fusion.columns import SLACK

LEAST = 1 << 12  # items


class Stock:
    """Items of one format, one behind the other; what is behind the last of them may be read, but says
    nothing."""

    def __init__(self, format_: Literal["q", "B"]) -> None:
        self._format = format_
        self._items = self._room(LEAST)
        self._start = self._end = 0

    def _room(self, length: int) -> memoryview:
        return memoryview(bytearray(length * calcsize(self._format))).cast(self._format)

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def view(self) -> memoryview:
        """All of them; valid until more are added."""
        return self._items[self._start : self._end]

    def more(self, count: int) -> memoryview:
        """Room for more of them, to be filled."""
        if self._end + count + SLACK > len(self._items):
            kept = self.view
            if len(kept) + count + SLACK > len(self._items):
                self._items = self._room(2 * (len(kept) + count + SLACK))
            self._items[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        self._end += count
        return self._items[self._end - count : self._end]

    def drop(self, count: int) -> None:
        """Let go of the first ones."""
        self._start += count

    def clear(self) -> None:
        self._start = self._end = 0

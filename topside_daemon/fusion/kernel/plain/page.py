"""Rows of text: field beside field, each in a width that holds all of its texts.

What varies is looked up, not formatted: a column of many rows has few different beginnings (minutes, whole
milliseconds), and the digits behind them are in tables.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from topside_daemon.fusion.columns import MISSING
from topside_daemon.fusion.kernel.plain.arrays import Bytes, Ints

FEW = 5  # zero bytes a row, up to which it is faster to replace each of them than to translate all bytes
_GLANCE = 1 << 14  # bytes by which that is judged
_SPREAD = 256  # of texts that may be made and not used


def texts_of(texts: Iterable[bytes]) -> Bytes:
    """One below the other, padded with zero bytes."""
    known = np.array(list(texts), "S")
    return known.view(np.uint8).reshape(len(known), -1)


@lru_cache(maxsize=64)
def _text(text: bytes) -> Bytes:
    return texts_of([text])


_SECONDS = texts_of(b"%02d." % n for n in range(60))
_TWO = texts_of(b"%02d" % n for n in range(100))
_THREE = texts_of(b"%03d" % n for n in range(1000))
_FOUR = texts_of(b"%04d" % n for n in range(10_000))


class Page:
    """Text of some rows, at least one; fields are added from left to right."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._fields: list[Bytes] = []
        self._width = 0
        self._blanks: list[tuple[int, int, Ints]] = []

    def add(self, *fields: Bytes, but: Ints | None = None) -> None:
        """Fields side by side, each of one text for all rows or of one for each; none in the rows *but*."""
        start = self._width
        self._fields += fields
        for one in fields:
            self._width += one.shape[1]
        if but is not None and len(but):
            self._blanks.append((start, self._width, but))

    def same(self, text: bytes, but: Ints | None = None) -> None:
        """A text in every row."""
        self.add(_text(text), but=but)

    def named(self, names: Sequence[bytes], which: Ints, but: Ints | None = None) -> None:
        """One of a few texts."""
        counts = np.bincount(which, minlength=len(names)).tolist()
        here = texts_of(name if count else b"" for name, count in zip(names, counts, strict=True))
        self.add(
            here[int(which[0])][None] if max(counts) == self._rows else here.take(which, axis=0), but=but
        )

    def utc(self, ns: Ints, but: Ints | None = None) -> None:
        """As format_utc of common/rows.py."""
        us = ns // 1000
        minute = us // 60_000_000
        us -= minute * 60_000_000
        rest = us.astype(np.uint32)
        second = rest // 1_000_000
        rest -= second * 1_000_000
        hundreds = rest // 100
        rest -= hundreds * 100
        digits = (_SECONDS.take(second, axis=0), _FOUR.take(hundreds, axis=0), _TWO.take(rest, axis=0))
        self.add(_beginnings(minute, _minute), *digits, _text(b"+00:00"), but=but)

    def whole(self, numbers: Ints) -> None:
        """Whole numbers, nothing where they are missing."""
        known, missing = _known(numbers)
        if not len(known):
            return
        if int(known.min()) < 1000:
            self.add(_beginnings(known, _whole), but=missing)
            return
        thousands = known // 1000
        last = _THREE.take(known - thousands * 1000, axis=0)
        self.add(_beginnings(thousands, _whole), last, but=missing)

    def milliseconds(self, ns: Ints) -> None:
        """Milliseconds with three decimals, rounded half up; nothing where they are missing."""
        known, missing = _known(ns)
        if not len(known):
            return
        us = known + 500
        us //= 1000
        signs = us >> 63
        np.abs(us, out=us)
        whole = us // 1000
        us -= whole * 1000
        whole ^= signs  # so that there is a zero with a minus too
        self.add(_beginnings(whole, _point), _THREE.take(us, axis=0), but=missing)

    def text(self) -> bytes:
        """All of it."""
        page = np.empty((self._rows, self._width), np.uint8)
        page[:] = np.concatenate([one[0] for one in self._fields])
        start = 0
        for one in self._fields:
            width = one.shape[1]
            if len(one) > 1:  # as single values: rows of bytes are copied far slower
                there = np.ndarray(self._rows, f"V{width}", page, start, (self._width,))
                there[:] = np.ascontiguousarray(one).view(f"V{width}")[:, 0]
            start += width
        for start, stop, rows in self._blanks:
            page[rows, start:stop] = 0
        text = page.tobytes()
        if text.count(0, 0, _GLANCE) * self._width <= FEW * _GLANCE:
            return text.replace(b"\0", b"")
        return text.translate(None, b"\0")


def _beginnings(numbers: Ints, form: Callable[[int], bytes]) -> Bytes:
    """Texts of numbers that are mostly near each other."""
    least, most = int(numbers.min()), int(numbers.max())
    if least == most:
        return texts_of([form(least)])
    if most - least < _SPREAD:
        return texts_of(map(form, range(least, most + 1))).take(numbers - least, axis=0)
    distinct, which = np.unique(numbers, return_inverse=True)
    return texts_of(map(form, distinct.tolist())).take(which, axis=0)


def _known(values: Ints) -> tuple[Ints, Ints | None]:
    """Values without a missing one, which are made like another, and where they were; nothing if all are
    missing."""
    if int(values.min()) != MISSING:
        return values, None
    there = values != MISSING
    if not there.any():
        return values[:0], None
    return np.where(there, values, values.max()), np.flatnonzero(~there)


def _minute(minute: int) -> bytes:
    return b"%s:" % str(np.datetime64(minute, "m")).encode("ascii")


def _whole(number: int) -> bytes:
    return b"%d" % number


def _point(whole: int) -> bytes:
    return b"%d." % whole if whole >= 0 else b"-%d." % ~whole

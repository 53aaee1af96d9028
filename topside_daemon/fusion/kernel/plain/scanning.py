"""Lines of text become columns.

A line is known by its layout: its bytes with every digit replaced by 0. The first line of a layout is read as
text; all others are read like it, by columns. Their layouts taken away, digits are left as numbers, and eight
of them are read as one: of a word with a digit in each byte, neighbours are put together thrice.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from topside_daemon.fusion.columns import (
    FLAGS_SHIFT,
    LENGTH_MAX,
    MAY_BE_WHOLE,
    OFFSET_SHIFT,
    ONE_EPOCH,
    ORDERED,
    RISING,
    UNNUMBERED,
    Odd,
    Rows,
)
from topside_daemon.fusion.kernel.plain.arrays import NS, ZERO, Bytes, Flags, Ints, ints, pieces, places_of

LAYOUTS_MAX = 64  # of lines of one length in one scan; lines beyond them are read one by one

_HEAD = 17  # bytes of a stamp: YYYY-MM-DDTHH:MM:
_TOGETHER = 512  # lines that are compared at once, while the cache holds them
_EPOCH_MAX = 2**31 - 1
_BLANK = b" \t\n\v\f\r"
_STAMP = rb"0000-00-00T00:00:00\.(?P<micros>000(?:000)?)(?P<zone>Z|\+00:00)"
_NUMBER = rb"-?0+(?:\.0+)?(?:[eE][+-]?0+)?"
_TEXT = rb"[ !#-+\--~]*"
_OLD = rb"(?P<stamp>" + _STAMP + rb")," + _TEXT + rb",(?P<mode>" + _TEXT + rb"),(?P<value>" + _NUMBER + rb"),"
_OLD += rb"(?P<temp>(?:" + _NUMBER + rb")?),(?P<vin>(?:" + _NUMBER + rb")?)"
_COUNT = rb"0{1,18}"
_LABELLED = re.compile(_OLD)
_NUMBERED = re.compile(
    _OLD + rb",(?P<seq>" + _COUNT + rb"),(?P<epoch>" + _COUNT + rb"),(?P<mono>" + _COUNT + rb"),[0-9a-f]{8}"
)
_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)
_NO_HEX = np.uint64(0xF0F0F0F0F0F0F0F0)  # where a byte of a word is more than 15

_PAIRS = tuple(
    (np.uint64(8 * size), np.uint64(mask))
    for size, mask in ((1, 0x00FF00FF00FF00FF), (2, 0x0000FFFF0000FFFF), (4, 0xFFFFFFFF))
)
Words = NDArray[np.uint64]


class _Layout(NamedTuple):
    """Where the fields of a canonical line are. length: of the old six columns; places: decimals of the
    stamp."""

    length: int
    places: int
    zone: slice
    columns: int
    exponent: bool
    decimals: slice
    seq: slice
    epoch: slice
    mono: slice


@lru_cache(maxsize=1024)
def _layout_of(line: bytes, ours: bool) -> _Layout | None:
    """The layout of a line whose digits are 0; None if it is no canonical row."""
    match = (_NUMBERED if ours else _LABELLED).fullmatch(line)
    if match is None or match["mode"].startswith(b"SYNC_"):
        return None
    point = line.find(b".", *match.span("value"))
    nothing = slice(0, 0)
    return _Layout(
        length=match.end("vin"),
        places=len(match["micros"]),
        zone=slice(*match.span("zone")) if match["zone"] != b"Z" else nothing,
        columns=bool(match["temp"]) + bool(match["vin"]),
        exponent=b"e" in match["value"].lower(),
        decimals=slice(point + 1, match.end("value")) if point >= 0 else nothing,
        seq=slice(*match.span("seq")) if ours else nothing,
        epoch=slice(*match.span("epoch")) if ours else nothing,
        mono=slice(*match.span("mono")) if ours else nothing,
    )


@lru_cache(maxsize=4096)
def _minute_ns(head: bytes) -> int | None:
    """The minute that a stamp begins with; None if there is no such minute between 1970 and 2099."""
    try:
        moment = datetime.strptime(head.decode("ascii"), "%Y-%m-%dT%H:%M:").replace(tzinfo=UTC)
    except ValueError:
        return None
    return round(moment.timestamp()) * NS if 1970 <= moment.year < 2100 else None


def scan(
    text: bytearray, start: int, stop: int, base: int, ours: bool, check: bool, rows: Rows
) -> tuple[list[Odd], int, int]:
    """See `Kernel.scan`."""
    if start == stop:
        rows.filled(0, ORDERED | RISING | ONE_EPOCH)
        return [], stop, 0
    buffer = np.frombuffer(text, np.uint8)[:stop]
    ends = places_of(ord("\n"), buffer[start:]) + start
    if not len(ends) or ends[-1] + 1 < stop:
        ends = np.append(ends, stop)
    ends = ends[: len(rows.at)]
    begins = np.concatenate(([start], ends[:-1] + 1))
    tails = ends - ((ends > begins) & (buffer[np.maximum(ends - 1, 0)] == ord("\r")))
    found = _Lines(len(ends))
    lengths = tails - begins
    for length in np.flatnonzero(np.bincount(np.minimum(lengths, LENGTH_MAX + 1))).tolist():
        if 0 < length <= LENGTH_MAX:
            which = np.flatnonzero(lengths == length)
            found.read(_cut(buffer, begins[which], length), which, ours, check)
    return found.give(text, base, begins, np.minimum(ends + 1, stop), rows)


def _cut(buffer: Bytes, begins: Ints, length: int) -> Bytes:
    """Lines of one length, one below the other. Most lie side by side: those are copied together."""
    step = int(np.diff(begins).min(initial=length + 1))
    runs = np.concatenate(([0], np.flatnonzero(np.diff(begins) != step) + 1, [len(begins)]))
    if len(runs) > len(begins) // 8 + 2:
        return pieces(buffer, begins, length)
    lines = np.empty((len(begins), length), np.uint8)
    for first, end in pairwise(runs.tolist()):
        shape = (end - first, length)
        lines[first:end] = np.ndarray(shape, np.uint8, buffer, int(begins[first]), (step, 1))
    return lines


class _Lines:
    """What is known of the lines of one scan."""

    def __init__(self, count: int) -> None:
        self.good = np.zeros(count, np.bool_)
        self._at, self._utc, self._span = (np.empty(count, np.int64) for _ in range(3))
        self._seq, self._epoch = (np.full(count, UNNUMBERED) for _ in range(2))

    def read(self, lines: Bytes, which: Ints, ours: bool, check: bool) -> None:
        """Lines of one length."""
        for _ in range(LAYOUTS_MAX):
            if not len(lines):
                return
            layout = np.where(lines[0] - ZERO < 10, np.uint8(ZERO), lines[0])
            if ours:
                layout[-8:] = ZERO
            digits, alike = _without(layout, lines, ours)
            known = _layout_of(layout.tobytes(), ours)
            whole = alike.all()
            if known is not None:
                same = (lines, digits, which) if whole else (lines[alike], digits[alike], which[alike])
                self._take(*same, known, ours, check)
            if whole:
                return
            lines, which = lines[~alike], which[~alike]

    def _take(
        self, lines: Bytes, digits: Bytes, which: Ints, layout: _Layout, ours: bool, check: bool
    ) -> None:
        utc, good = _stamps(lines, digits, layout.places)
        good &= _zero(digits, layout.zone)
        may_be_whole = layout.exponent | _zero(digits, layout.decimals)
        flags = layout.columns << FLAGS_SHIFT | layout.length
        at = utc
        if ours:
            at, seq, epoch = (_number(digits, one) for one in (layout.mono, layout.seq, layout.epoch))
            good &= (epoch <= _EPOCH_MAX) & _checksums(lines, check)
            self._seq[which], self._epoch[which] = seq, epoch
        self._at[which], self._utc[which] = at, utc
        self._span[which] = np.where(may_be_whole, flags | MAY_BE_WHOLE << FLAGS_SHIFT, flags)
        self.good[which] = good

    def give(
        self, text: bytearray, base: int, begins: Ints, nexts: Ints, rows: Rows
    ) -> tuple[list[Odd], int, int]:
        """Fill the rows, and report the others, as far as there is room."""
        odd: list[Odd] = []
        lines = len(begins)
        before: Ints = np.cumsum(self.good) - self.good
        for line in np.flatnonzero(~self.good).tolist():
            if len(odd) == len(rows.odd) // 4:
                lines = line
                break
            if text[begins[line] : nexts[line]].strip(_BLANK):
                odd.append(Odd(int(before[line]), line, int(begins[line]), int(nexts[line])))
        good = np.flatnonzero(self.good[:lines])
        count = len(good)
        self._span += begins + base << OFFSET_SHIFT
        for one, other in (
            (rows.at, self._at),
            (rows.utc, self._utc),
            (rows.seq, self._seq),
            (rows.epoch, self._epoch),
            (rows.span, self._span),
        ):
            other.take(good, out=ints(one)[:count], mode="clip")  # to raise, it would fill a copy first
        at, seq, epoch = ints(rows.at)[:count], ints(rows.seq)[:count], ints(rows.epoch)[:count]
        later = np.where(epoch[1:] == epoch[:-1], at[1:] >= at[:-1], epoch[1:] > epoch[:-1])
        order = ORDERED * bool((later & (seq[1:] > seq[:-1])).all())
        order |= RISING * bool((at[1:] > at[:-1]).all()) | ONE_EPOCH * bool((epoch[1:] == epoch[:-1]).all())
        rows.filled(count, order)
        return odd, int(nexts[lines - 1]) if lines else int(begins[0]), lines


def _without(layout: Bytes, lines: Bytes, ours: bool) -> tuple[Bytes, Flags]:
    """What lines are above their layout, digits as numbers, and which lines have that layout."""
    most = np.where(layout == ZERO, np.uint8(9), np.uint8(0))
    if ours:
        most[-8:] = 255  # the checksum
    layouts, allowed = (np.tile(one, min(_TOGETHER, len(lines))) for one in (layout, most))
    digits, alike = np.empty_like(lines), np.ones(len(lines), np.bool_)
    for first in range(0, len(lines), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        given, found = lines[part].reshape(-1), digits[part].reshape(-1)
        np.subtract(given, layouts[: len(given)], out=found)
        fits = found <= allowed[: len(given)]
        if not fits.all():
            alike[part] = fits.reshape(-1, len(layout)).all(axis=1)
    return digits, alike


def _words(digits: Bytes, field: slice) -> Iterator[Words]:
    """The numbers in the bytes of a field, the first in the lowest byte of a word of eight, zeros before
    them. There are eight bytes before the end of every field: a stamp begins the line."""
    rows, length = digits.shape
    left = (field.stop - field.start) % 8
    for stop in range(field.start + (left or 8), field.stop + 1, 8):
        word = np.ndarray(rows, "<u8", digits, stop - 8, (length,))
        yield word & np.uint64(-1 << 64 - 8 * left & 0xFFFFFFFFFFFFFFFF) if left else word.copy()
        left = 0


def _number(digits: Bytes, field: slice) -> Ints:
    """Decimal numbers of one width, at most 18."""
    values = np.zeros(len(digits), np.int64)
    for word in _words(digits, field):
        for shift, mask in _PAIRS:
            upper = word >> shift
            word *= np.uint64(10 ** (int(shift) // 8))
            word += upper
            word &= mask
        values *= 10**8
        values += word.view(np.int64)
    return values


def _zero(digits: Bytes, field: slice) -> Flags:
    """Which lines have only zeros in a field."""
    found = np.zeros(len(digits), np.uint64)
    for word in _words(digits, field):
        found |= word
    zero: Flags = found == 0
    return zero


def _stamps(lines: Bytes, digits: Bytes, places: int) -> tuple[Ints, Flags]:
    """The instants that lines begin with, and which of them there are."""
    new = np.ones(len(lines), np.bool_)
    new[1:] = False
    for word in _words(digits, slice(0, _HEAD - 1)):
        new[1:] |= word[1:] != word[:-1]
    first = np.flatnonzero(new)
    minutes = [_minute_ns(lines[one, :_HEAD].tobytes()) for one in first.tolist()]
    run = np.diff(first, append=len(lines))
    second = _number(digits, slice(_HEAD, _HEAD + 2))
    good = second < 60
    good &= np.repeat(np.array([minute is not None for minute in minutes]), run)
    utc = _number(digits, slice(_HEAD + 3, _HEAD + 3 + places)) * 10 ** (9 - places)
    utc += second * NS
    utc += np.repeat(np.array([minute or 0 for minute in minutes], np.int64), run)
    return utc, good


def _checksums(lines: Bytes, check: bool) -> Flags:
    """Whether lines end in eight hexadecimal digits, and, asked to look, in the right ones."""
    digits = _HEX.take(lines[:, -8:])
    good: Flags = digits.view(np.uint64)[:, 0] & _NO_HEX == 0
    if check:
        told = digits.astype(np.float64) @ (16.0 ** np.arange(7, -1, -1))
        data, size = lines.tobytes(), lines.shape[1]
        found = [crc32(data[first : first + size - 9]) for first in range(0, len(data), size)]
        good = good & np.equal(told, found)
    return good

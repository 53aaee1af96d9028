"""Lines of text become columns.

A line is known by its layout: its bytes with every digit replaced by 0. The first line of a layout is read as
text; all others are read like it, by columns.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

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
from topside_daemon.fusion.kernel.plain.arrays import NS, ZERO, Bytes, Flags, Ints, ints

LAYOUTS_MAX = 64  # of lines of one length in one scan; lines beyond them are read one by one

_HEAD = 17  # bytes of a stamp: YYYY-MM-DDTHH:MM:
_EXACT_DIGITS = 15  # that a double holds
_EPOCH_MAX = 2**31 - 1
_BLANK = b" \t\n\v\f\r"
_STAMP = rb"0000-00-00T00:00:00\.(?P<micros>000(?:000)?)(?P<zone>Z|\+00:00)"
_NUMBER = rb"-?0+(?:\.0+)?(?:[eE][+-]?0+)?"
_OLD = rb"(?P<stamp>" + _STAMP + rb"),[ -+\--~]*,(?P<mode>[ -+\--~]*),(?P<value>" + _NUMBER + rb"),"
_OLD += rb"(?P<temp>(?:" + _NUMBER + rb")?),(?P<vin>(?:" + _NUMBER + rb")?)"
_COUNT = rb"0{1,18}"
_LABELLED = re.compile(_OLD)
_NUMBERED = re.compile(
    _OLD + rb",(?P<seq>" + _COUNT + rb"),(?P<epoch>" + _COUNT + rb"),(?P<mono>" + _COUNT + rb"),[0-9a-f]{8}"
)
_UTC = np.frombuffer(b"+00:00", np.uint8)
_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)
_NO_NUMBER: Ints = np.array(UNNUMBERED, np.int64)


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
    ends = np.flatnonzero(buffer[start:] == ord("\n")) + start
    if not len(ends) or ends[-1] + 1 < stop:
        ends = np.append(ends, stop)
    ends = ends[: len(rows.at)]
    begins = np.concatenate(([start], ends[:-1] + 1))
    tails = ends - ((ends > begins) & (buffer[np.maximum(ends - 1, 0)] == ord("\r")))
    found = _Lines(len(ends))
    lengths = tails - begins
    for length in np.unique(lengths).tolist():
        if 0 < length <= LENGTH_MAX:
            which = np.flatnonzero(lengths == length)
            found.read(sliding_window_view(buffer, length)[begins[which]], which, ours, check)
    return found.give(text, base, begins, np.minimum(ends + 1, stop), rows)


class _Lines:
    """What is known of the lines of one scan."""

    def __init__(self, count: int) -> None:
        self.good = np.zeros(count, np.bool_)
        self._at, self._utc, self._seq, self._epoch, self._span = (
            np.empty(count, np.int64) for _ in range(5)
        )

    def read(self, lines: Bytes, which: Ints, ours: bool, check: bool) -> None:
        """Lines of one length."""
        layouts = np.where(lines - ZERO < 10, np.uint8(ZERO), lines)
        if ours:
            layouts[:, -8:] = ZERO
        left = np.arange(len(lines))
        for _ in range(LAYOUTS_MAX):
            if not len(left):
                return
            first = layouts[left[0]]
            alike = (layouts[left] == first).all(axis=1)
            layout = _layout_of(first.tobytes(), ours)
            if layout is not None:
                same = left[alike]
                self._take(lines[same] if len(same) < len(lines) else lines, which[same], layout, ours, check)
            left = left[~alike]

    def _take(self, lines: Bytes, which: Ints, layout: _Layout, ours: bool, check: bool) -> None:
        utc, good = _stamps(lines, layout.places)
        good &= (lines[:, layout.zone] == _UTC[: layout.zone.stop - layout.zone.start]).all(axis=1)
        may_be_whole = (lines[:, layout.decimals] == ZERO).all(axis=1) | layout.exponent
        flags = layout.columns | may_be_whole * MAY_BE_WHOLE
        at, seq, epoch = utc, _NO_NUMBER, _NO_NUMBER
        if ours:
            at, seq, epoch = (_number(lines[:, one]) for one in (layout.mono, layout.seq, layout.epoch))
            good &= (epoch <= _EPOCH_MAX) & _checksums(lines, check)
        self._at[which], self._utc[which], self._seq[which], self._epoch[which] = at, utc, seq, epoch
        self._span[which] = flags.astype(np.int64) << FLAGS_SHIFT | layout.length
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
            ints(one)[:count] = other[good]
        at, seq, epoch = ints(rows.at)[:count], ints(rows.seq)[:count], ints(rows.epoch)[:count]
        later = np.where(epoch[1:] == epoch[:-1], at[1:] >= at[:-1], epoch[1:] > epoch[:-1])
        order = ORDERED * bool((later & (seq[1:] > seq[:-1])).all())
        order |= RISING * bool((at[1:] > at[:-1]).all()) | ONE_EPOCH * bool((epoch[1:] == epoch[:-1]).all())
        rows.filled(count, order)
        return odd, int(nexts[lines - 1]) if lines else int(begins[0]), lines


def _number(digits: Bytes) -> Ints:
    """Decimal numbers of one width, at most 18."""
    values = np.zeros(len(digits), np.int64)
    for first in range(0, digits.shape[1], _EXACT_DIGITS):
        part = (digits[:, first : first + _EXACT_DIGITS] - ZERO).astype(np.float64)
        powers = 10.0 ** np.arange(part.shape[1] - 1, -1, -1)
        values = values * 10 ** part.shape[1] + (part @ powers).astype(np.int64)
    return values


def _stamps(lines: Bytes, places: int) -> tuple[Ints, Flags]:
    """The instants that lines begin with, and which of them there are."""
    heads = np.ascontiguousarray(lines[:, :_HEAD])
    new = np.ones(len(lines), np.bool_)
    new[1:] = (heads[1:] != heads[:-1]).any(axis=1)
    minutes = [_minute_ns(heads[one].tobytes()) for one in np.flatnonzero(new).tolist()]
    known = np.array([minute is not None for minute in minutes])
    run = np.cumsum(new) - 1
    minute_ns = np.array([minute or 0 for minute in minutes], np.int64)[run]
    second = _number(lines[:, _HEAD : _HEAD + 2])
    fraction = _number(lines[:, _HEAD + 3 : _HEAD + 3 + places]) * 10 ** (9 - places)
    return minute_ns + second * NS + fraction, known[run] & (second < 60)


def _checksums(lines: Bytes, check: bool) -> Flags:
    """Whether lines end in eight hexadecimal digits, and, asked to look, in the right ones."""
    digits = _HEX[lines[:, -8:]]
    good: Flags = digits.max(axis=1) < 16
    if check:
        told = digits.astype(np.float64) @ (16.0 ** np.arange(7, -1, -1))
        data, size = lines.tobytes(), lines.shape[1]
        found = [crc32(data[first : first + size - 9]) for first in range(0, len(data), size)]
        good = good & np.equal(told, found)
    return good

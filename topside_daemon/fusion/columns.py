"""What goes into the inner loops and what comes out: blocks of rows as columns of int64. No I/O.

A column is a memoryview of format `q`, whatever memory is behind it; MISSING stands for no value.

A span says where the text of a row lies, old six columns only: `offset << 20 | flags << 16 | length`. Bits 0
and 1 of the flags count the columns TempC and Vin that are not empty; bit 2: value may be a whole number.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct as Layout
from typing import Any, NamedTuple

Column = memoryview  # of int64

MISSING = -(1 << 63)
UNNUMBERED = -1  # seq and epoch of a row whose file kept neither: only its UTC label places it
INWATER, SURFACE = 0, 1  # the two sides
SLACK = 16  # bytes behind every text that may be read, and are not looked at
LENGTH_MAX = 0xFFFF
FLAGS_SHIFT, OFFSET_SHIFT = 16, 20
MAY_BE_WHOLE = 4
ORDERED, RISING, ONE_EPOCH = 1, 2, 4
NAME_BYTES = 16  # of a clock status, the first of them its length
STATUSES_MAX = 16
ODD_MAX = 4096  # lines that one scan reports

_GLANCE = 256  # buckets that are looked at together
_COURSE = Layout("<6q20d")
COURSE_BYTES = _COURSE.size


def rank_of(epoch: int) -> int:
    """Where rows of an epoch come among those of one instant: without numbers in the order of their pieces,
    -1 first, and then those with numbers."""
    return epoch if epoch >= 0 else -(1 << 40) - epoch


def column(length: int) -> Column:
    """Zeros."""
    return memoryview(bytearray(8 * length)).cast("q")


def column_of(values: Sequence[int]) -> Column:
    """The same numbers."""
    return memoryview(bytearray(array("q", values))).cast("q")


class Rows:
    """What a scan fills: `count` rows of the capacity of its columns.

    at: the instant that orders a row, mono_ns of one of ours and its label of an old one. An old row has no
    number and no epoch: -1. ordered: numbers rise, and instants of one epoch never fall; rising: instants
    rise; one_epoch: all are of the same.
    """

    __slots__ = ("at", "count", "epoch", "odd", "one_epoch", "ordered", "rising", "seq", "span", "utc")

    def __init__(self, capacity: int) -> None:
        self.at, self.utc, self.seq, self.epoch, self.span = (column(capacity) for _ in range(5))
        self.odd = column(4 * ODD_MAX)
        self.filled(0, ORDERED | RISING | ONE_EPOCH)

    def filled(self, count: int, order: int) -> None:
        self.count = count
        self.ordered, self.rising, self.one_epoch = (
            bool(order & one) for one in (ORDERED, RISING, ONE_EPOCH)
        )


class Odd(NamedTuple):
    """A line that is no canonical row: how many rows and lines come before it, and its bytes, line end
    included."""

    rows_before: int
    lines_before: int
    start: int
    stop: int


class Course(NamedTuple):
    """The offset of one clock against another over a stretch of its time, ready for arithmetic.

    With s = (at - zero) * rate, for at in [since, until): offset = origin + offset(s) and variance(s) as
    polynomials, lowest power first; bounds above origin low = max(low[0] + low[1] s, low[2] + low[3] s), high
    = min(...); on the common axis the instant is at - offset + shift. origin MISSING: no offset is known, and
    the instant is the row's label + shift. status: index of its name.
    """

    since: int
    until: int
    zero: int
    origin: int
    shift: int
    status: int
    rate: float
    offset: tuple[float, float, float, float]
    variance: tuple[float, float, float, float, float, float, float]
    low: tuple[float, float, float, float]
    high: tuple[float, float, float, float]

    def pack(self) -> bytes:
        whole = (self.since, self.until, self.zero, self.origin, self.shift, self.status)
        return _COURSE.pack(*whole, self.rate, *self.offset, *self.variance, *self.low, *self.high)


class Placed(NamedTuple):
    """Rows on the common axis; all but time only where they were asked for."""

    time: Column
    offset: Column
    sd: Column
    low: Column
    high: Column
    status: bytearray

    @classmethod
    def room(cls, rows: int) -> "Placed":
        """For so many, to be filled."""
        time, offset, sd, low, high = (column(rows) for _ in range(5))
        return cls(time, offset, sd, low, high, bytearray(rows))

    def beginning(self, rows: int) -> "Placed":
        """The first rows of it."""
        time, offset, sd, low, high = (one[:rows] for one in self[:5])
        return Placed(time, offset, sd, low, high, self.status)


class Side(NamedTuple):
    """One sensor's rows for weaving: numbers from `first` on, with their text; taken: a bit for every row of
    the sensor, set where it has a partner."""

    first: int
    time: Column
    seq: Column
    span: Column
    text: memoryview
    text_from: int
    taken: bytearray


class Options(NamedTuple):
    """How rows become a table.

    held: a row for each in-water reading with the last surface reading before it, fresh up to fresh_ns, stale
    up to stale_ns; else pairs as the bits say. percent: a column more. dropout_ns: a longer interval of the
    surface sensor is one; first_ns, last_ns: the overlap of both sensors. statuses: the names of the clock
    statuses.
    """

    held: bool
    percent: bool
    dropout_ns: int
    first_ns: int
    last_ns: int
    fresh_ns: int
    stale_ns: int
    statuses: tuple[str, ...]


class Totals:
    """What was woven. alone: in-water rows without a surface reading; gaps: those of them that count as
    such."""

    __slots__ = ("alone", "fresh", "gaps", "largest_ns", "paired", "rows", "statuses")

    def __init__(self) -> None:
        self.rows = self.paired = self.fresh = self.alone = self.gaps = self.largest_ns = 0
        self.statuses = [0] * STATUSES_MAX

    def add(self, other: Any) -> None:
        """The counts of another block; anything with these names."""
        self.rows += other.rows
        self.paired += other.paired
        self.fresh += other.fresh
        self.alone += other.alone
        self.gaps += other.gaps
        self.largest_ns = max(self.largest_ns, other.largest)
        self.statuses = [one + more for one, more in zip(self.statuses, other.statuses, strict=True)]


class Pairing:
    """Who has a partner on either side, a bit for each row; pairs are in order, so the first of one side
    belongs to the first of the other, and so on."""

    __slots__ = ("inwater", "surface")

    def __init__(self) -> None:
        self.inwater, self.surface = bytearray(), bytearray()

    def hold(self, inwater: int, surface: int) -> None:
        """Have room for as many rows."""
        for bits, rows in ((self.inwater, inwater), (self.surface, surface)):
            bits.extend(bytes(max(0, rows // 8 + 1 - len(bits))))


class Cursor:
    """Where weaving stands: numbers of the next surface row to pass and of the next that may be a partner,
    and the time of the last one passed."""

    __slots__ = ("before_ns", "partner", "surface")

    def __init__(self) -> None:
        self.surface = self.partner = 0
        self.before_ns = MISSING


class Tally:
    """How often values of 0 and more came, in buckets of 0.1 %, and their sums.

    Memory is that of the buckets, and a quantile is the mean of its bucket: exact where values repeat.
    """

    KEPT_BITS = 11
    BUCKETS = (64 - KEPT_BITS) * (1 << (KEPT_BITS - 1)) + (1 << KEPT_BITS)

    def __init__(self) -> None:
        self.buckets = column(2 * self.BUCKETS)

    def _filled(self) -> Iterator[tuple[int, int]]:
        """Count and sum of the buckets that hold something, smallest values first."""
        nothing = bytes(16 * _GLANCE)
        for first in range(0, self.BUCKETS, _GLANCE):
            some = self.buckets[2 * first : 2 * (first + _GLANCE)]
            if some.tobytes() != nothing:
                yield from (
                    (count, total) for count, total in zip(some[::2], some[1::2], strict=True) if count
                )

    def summary(self) -> "Summary":
        return Summary(list(self._filled()))


class Summary:
    """What there is to say of many values: how often they came and their sums, smallest values first."""

    def __init__(self, filled: list[tuple[int, int]]) -> None:
        self._filled = filled
        self.count = sum(count for count, _ in filled)

    @classmethod
    def of(cls, values: Iterable[int]) -> "Summary":
        """Exact, of values that fit into memory."""
        return cls([(1, value) for value in sorted(values)])

    def quantile(self, share: float, longest: float = float("inf")) -> float | None:
        """The smallest that at least this share of all do not exceed, of those up to about *longest*; None of
        none."""
        regular = [(count, total) for count, total in self._filled if total <= longest * count]
        wanted, reached = share * sum(count for count, _ in regular), 0
        for count, total in regular:
            reached += count
            if reached >= wanted:
                return total / count
        return None

    def mean(self, longest: float) -> float | None:
        """Of the values up to about *longest*."""
        regular = [(count, total) for count, total in self._filled if total <= longest * count]
        count = sum(count for count, _ in regular)
        return sum(total for _, total in regular) / count if count else None

    def above(self, longest: float) -> int:
        """How many are more than about *longest*."""
        return sum(count for count, total in self._filled if total > longest * count)

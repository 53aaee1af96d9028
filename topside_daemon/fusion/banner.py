"""Numbers of a sensor's boot text that an old recorder stored as light.

The old parser took every line that ends in a lone number for a reading. A boot leaves, in this order:
numbers of menu lines (`... immersion factor: 1.000000`, `... ADC sample rate: 125`), the firmware
version (4.003), the calibration factor, about a millisecond later the number of the ADC reset (7799),
and a second after that, free-running only, `quiet mode =0`. Such a row has neither TempC nor Vin, and
is recognised by what a reading cannot be:

1. Where the sensor sends TempC or Vin, a short run of rows with fewer columns is boot text or a torn
   line if its numbers also have fewer decimals than this sensor's readings practically ever have, or
   if it holds the pattern of 2. A long run is a sensor whose columns were switched off, and stays.
2. Where it sends the value alone, only the pattern version, (unit number), factor, reset number, zero
   is proof: the factor and the reset number come together, a few hundred milliseconds after the
   version. Without the zero (polled) or without the version (cut off by the start of the file), the
   whole numbers must also be foreign to the recording. Menu numbers just before the pattern go with it.

"Fewer decimals than practically ever" counts the recording's own readings, because a float drops
trailing zeros (0.010060 is stored as 0.01006, and one value in a million as a whole number), and
because night is full of true zeros.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from common.messages import Reading

_VERSION = re.compile(r"[1-9]\.\d{1,3}")
ESTABLISHED_ROWS = 2  # that show a set of columns before fewer of them are suspect
_LONGEST_TEXT_ROWS = 24  # more numbers than any menu and boot text leave
_FOREIGN_SHARE = 0.02  # of a recording's readings; one in a hundred drops two trailing zeros
_TEXT_DECIMALS = 3  # where there is no reading to compare with; 4.003 has the most
_TOGETHER_NS = 100_000_000  # factor and reset number; 1 ms on the wire
_VERSION_NS = 2_000_000_000  # from the version to the reset number; 0.26 s at 9600 baud
_ZERO_NS = 3_000_000_000  # from the reset number to the zero; 1.2 s
_RESET_MIN = 1000  # where no zero confirms it; 7799 in every log
_MENU_NS = 2_500_000_000  # from the first menu number to the version; the menu prints for 1.7 s


class _Boot(NamedTuple):
    """Indices of what may be one boot's numbers; menu <= first, and what is before first is only near."""

    menu: int
    first: int
    reset: int
    end: int
    has_version: bool
    has_zero: bool


def banner_rows(
    readings: Sequence[Reading], whole: Iterable[int], narrow: Sequence[int], compared: Iterable[int]
) -> set[int]:
    """Indices of the rows of one recording, in the order of arrival, that are not readings.

    Args:
        readings: all of them; few are looked at.
        whole: those with a value alone that may be a whole number.
        narrow: those with fewer columns than this sensor sends.
        compared: those that show what is usual.
    """
    boots = [boot for index in whole if (boot := _boot_at(readings, index))]
    doubtful = {index for boot in boots for index in range(boot.menu, boot.end + 1)}
    runs = [run for run in _runs(narrow) if len(run) <= _LONGEST_TEXT_ROWS]
    if not boots and not runs:
        return set()
    shown = {index: readings[index] for index in compared}
    usual = _Usual(reading for index, reading in shown.items() if index not in doubtful)
    found = {index for boot in boots for index in _boot_rows(readings, boot, usual)}
    few = set(narrow)
    wide = _Usual(reading for index, reading in shown.items() if index not in few)
    for run in runs:
        proven = not found.isdisjoint(run)
        found |= {index for index in run if proven or wide.is_foreign(readings[index])}
    return found


def _runs(rows: Sequence[int]) -> Iterator[range]:
    """Neighbours together."""
    first = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place] != rows[place - 1] + 1:
            yield range(rows[first], rows[place - 1] + 1)
            first = place


def _boot_at(readings: Sequence[Reading], reset: int) -> _Boot | None:
    """The boot whose reset number may be at *reset*, judged by order and spacing alone."""
    factor, after = reset - 1, reset + 1
    if not _is_bare(readings[reset]) or not _is_whole(readings[reset]):
        return None
    if factor >= 0 and not _follows(readings, factor, reset, _TOGETHER_NS):
        return None
    version = _version_before(readings, reset)
    has_zero = _follows(readings, reset, after, _ZERO_NS) and _is_zero(readings[after])
    if (version is None and factor > 0) or (not has_zero and float(readings[reset].value) < _RESET_MIN):
        return None
    first = 0 if version is None else version
    menu = first
    while _follows(readings, menu - 1, first, _MENU_NS):
        menu -= 1
    return _Boot(menu, first, reset, after if has_zero else reset, version is not None, has_zero)


def _boot_rows(readings: Sequence[Reading], boot: _Boot, usual: "_Usual") -> range:
    """The rows of a boot that the recording's own readings do not speak for; none if they do for all."""
    if not boot.has_version and not (boot.has_zero and usual.is_foreign(readings[boot.end])):
        return range(0)
    if not (boot.has_version and boot.has_zero) and not usual.is_foreign(readings[boot.reset]):
        return range(0)
    first = boot.first
    while first > boot.menu and usual.is_foreign(readings[first - 1]):
        first -= 1
    return range(first, boot.end + 1)


def _version_before(readings: Sequence[Reading], reset: int) -> int | None:
    for index in (reset - 2, reset - 3):
        if _follows(readings, index, reset, _VERSION_NS) and _VERSION.fullmatch(readings[index].value):
            return index
    return None


def _follows(readings: Sequence[Reading], before: int, after: int, within_ns: int) -> bool:
    """Both rows exist, carry the value alone, and come this close."""
    if before < 0 or after >= len(readings):
        return False
    one, other = readings[before], readings[after]
    return _is_bare(one) and _is_bare(other) and 0 <= other.utc_ns - one.utc_ns <= within_ns


class _Usual:
    """How many decimals the readings of a recording have."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._zeros = self._rows = 0
        self._decimals: Counter[int] = Counter()
        for reading in readings:
            self._rows += 1
            if _is_zero(reading):
                self._zeros += 1
            else:
                self._decimals[_decimals(reading)] += 1

    def is_foreign(self, reading: Reading) -> bool:
        """Practically no other reading is zero, or has so few decimals."""
        if _is_zero(reading):
            return self._zeros <= _FOREIGN_SHARE * self._rows
        here = _decimals(reading)
        if not self._decimals:
            return here <= _TEXT_DECIMALS
        as_few = sum(rows for decimals, rows in self._decimals.items() if decimals <= here)
        return as_few <= _FOREIGN_SHARE * self._decimals.total()


def _columns(reading: Reading) -> int:
    return (reading.temp_c is not None) + (reading.vin is not None)


def _is_bare(reading: Reading) -> bool:
    return _columns(reading) == 0


def _is_zero(reading: Reading) -> bool:
    return float(reading.value) == 0


def _is_whole(reading: Reading) -> bool:
    return float(reading.value).is_integer() and float(reading.value) > 0


def _decimals(reading: Reading) -> int:
    _, digits, exponent = Decimal(reading.value).as_tuple()
    if not isinstance(exponent, int):
        return 0
    zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
    return max(0, -exponent - zeros)

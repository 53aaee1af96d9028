"""Noticing that readings have stayed away longer than their sensor's own pace explains."""

from collections import deque
from statistics import median

LEAST_S = 3.0  # what is shorter is no gap, however quick the sensor
PERIODS = 5.0  # likewise, however slow


class GapWatch:
    """Takes the instants of readings, in order."""

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._apart_ns: deque[int] = deque(maxlen=9)

    def take(self, mono_ns: int) -> float | None:
        """How long there was none before this reading, in s, if that was a gap."""
        last_ns, self._last_ns = self._last_ns, mono_ns
        if last_ns is None:
            return None
        apart_ns = mono_ns - last_ns
        usual_ns = median(self._apart_ns) if len(self._apart_ns) > 2 else 0
        if self._apart_ns and apart_ns > max(LEAST_S * 1e9, PERIODS * usual_ns):
            return apart_ns / 1e9
        self._apart_ns.append(apart_ns)
        return None

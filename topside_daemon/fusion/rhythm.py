"""How the readings of a sensor follow each other, and what that means for pairs. No I/O, no clock."""

from msgspec import Struct

from topside_daemon.fusion.columns import Summary
from topside_daemon.fusion.settings import Settings

GAP_PERIODS = 1.5  # a longer interval is a gap in the stream, not jitter
DROPOUT_PERIODS = 3  # a longer interval is a sensor that was away
MOST_NS = 3_600_000_000_000  # that a tolerance or a hold can be
FALLBACK_PERIOD_NS = 1_000_000_000  # of two sensors too short to show one: the slow one's usual period


class Rhythm(Struct, frozen=True):
    """Of one sensor, in ns. period_ns: median interval, None below two readings. jitter_ns: p95 - p5 of the
    intervals, gaps left out."""

    period_ns: float | None
    jitter_ns: float
    dropouts: int

    @classmethod
    def of(cls, intervals: Summary) -> "Rhythm":
        """From the intervals between neighbours in time."""
        period_ns = intervals.quantile(0.5)
        longest_ns = GAP_PERIODS * (period_ns or 0.0)
        high_ns, low_ns = (intervals.quantile(share, longest_ns) or 0.0 for share in (0.95, 0.05))
        return cls(period_ns, high_ns - low_ns, intervals.above(DROPOUT_PERIODS * (period_ns or 0.0)))

    @property
    def dropout_ns(self) -> int:
        """A longer interval is a dropout."""
        return round(DROPOUT_PERIODS * (self.period_ns or 0.0))


def tolerance_ns(settings: Settings, inwater: Rhythm, surface: Rhythm, clock_sd_ns: float) -> int:
    """How far apart two readings of one moment can be stamped, in ns, unless the settings say so.

    Half the slower sensor's period, because two free-running samplers are up to that far apart, plus
    the arrival jitter of both, plus two clock deviations, each of these at most another half period: what is
    paired further apart is not one moment.
    """
    if settings.tolerance_ms is not None:
        return round(settings.tolerance_ms * 1e6)  # an hour at most
    periods = [one.period_ns for one in (inwater, surface) if one.period_ns]
    period_ns = max(periods, default=FALLBACK_PERIOD_NS)
    if settings.tolerance_periods is not None:
        return min(round(settings.tolerance_periods * period_ns), MOST_NS)
    half_ns, jitter_ns = period_ns / 2, inwater.jitter_ns + surface.jitter_ns
    return int(half_ns + min(jitter_ns, half_ns) + min(2 * clock_sd_ns, half_ns))


class Hold(Struct, frozen=True):
    """How long a surface value is held for the in-water readings behind it: as fresh, and at all."""

    fresh_ns: int
    stale_ns: int

    @classmethod
    def of(cls, settings: Settings, surface: Rhythm) -> "Hold":
        period_s = (surface.period_ns or FALLBACK_PERIOD_NS) / 1e9
        fresh_s = settings.fresh_periods * period_s if settings.fresh_s is None else settings.fresh_s
        stale_s = settings.stale_periods * period_s if settings.stale_s is None else settings.stale_s
        return cls(round(fresh_s * 1e9), round(max(fresh_s, stale_s) * 1e9))

"""The rungs of the seed ladder: what marker pairs and one time-sync are worth, alone and together.

Estimators are never mixed in one line: the drift comes from marker pairs or from nowhere; the time-sync
judges the pairs and bounds their level. No I/O, no clock. Everywhere offset = in-water - surface in ns,
positive: the in-water clock reads ahead. Deviations are one sigma.
"""

from collections.abc import Sequence
from math import hypot, sqrt
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from topside_daemon.fusion.ladder.oneway import (
    BIAS_SD_NS,
    CREDIBLE_PPM,
    LATE_NS,
    Line,
    Pair,
    agreeing,
    constant,
    fit,
    spread_ns,
)

RungName = Literal["linear", "constant", "time-sync", "none"]
Quality = Literal["high", "medium", "low"]

STOP_WAIT_NS = 1_000_000_000  # from the old Pi's STOP to fetching files, and the surface's STOP after that
EARLY_NS = STOP_WAIT_NS - LATE_NS  # so much lower, a STOP is likelier two events than drift
NARROW_NS = LATE_NS // 4  # a time-sync with a wider bound says nothing new of calls no later than that

_S = 1e9  # ns
_PPM = 1e3  # ns per s


class Bound(Struct, frozen=True):
    """What the order of events proves of the offset at an instant of the in-water clock."""

    at_ns: int
    low_ns: int | None
    high_ns: int | None


class Rung(Struct, frozen=True):
    """A clock and its evidence. ceiling: the best quality that such evidence can have.

    line: None where nothing is known, so that labels stay as they are.
    """

    name: RungName
    line: Line | None
    reason: str
    ceiling: Quality
    used: int = 0
    refused: list[str] = []
    bounds: list[Bound] = []


class Anchor(Struct, frozen=True):
    """One two-way comparison at an instant of the in-water clock. carried_ns: as of a Pair."""

    at_ns: int
    offset_ns: int
    bound_ns: int
    carried_ns: float = 0.0

    def confirms(self, pair: Pair) -> bool:
        """Whether a pair can be one event: not before the truth, and no later than any call."""
        apart_s = abs(pair.inwater_ns - self.at_ns) / _S
        known_ns = self.bound_ns + 3 * (pair.carried_ns + self.carried_ns)
        drifted_ns = CREDIBLE_PPM * _PPM * apart_s
        below_ns = drifted_ns if pair.ordered else min(drifted_ns, EARLY_NS)
        above_ns = pair.offset_ns - self.offset_ns
        return -below_ns - known_ns <= above_ns <= drifted_ns + known_ns + LATE_NS

    @property
    def bound(self) -> Bound:
        return Bound(self.at_ns, self.offset_ns - self.bound_ns, self.offset_ns + self.bound_ns)


def on_time_sync(anchor: Anchor, refused: list[str]) -> Rung:
    """One offset for all times; it is anywhere within half the round trip."""
    line = constant(anchor.at_ns, anchor.offset_ns, anchor.bound_ns**2 / 3 + anchor.carried_ns**2)
    reason = f"one time-sync, ± {anchor.bound_ns / 1e6:.0f} ms, drift not measured"
    return Rung("time-sync", line, reason, "medium", refused=refused, bounds=[anchor.bound])


def on_pairs(
    pairs: Sequence[Pair], refused: list[str], anchor: Anchor | None = None, bias_sd_ns: float = BIAS_SD_NS
) -> Rung:
    """Linear or constant under pairs that agree with each other.

    Of two witnesses one may be late by chance; it takes a third to tell.

    Args:
        anchor: takes off the delay that all pairs share, as far as its bound allows.
        bias_sd_ns: of that delay, where no anchor says more.
    """
    line = fit(pairs)
    bias_sd_ns = hypot(bias_sd_ns, spread_ns(pairs, line))  # calls that differ this much may share as much
    words = [f"{len(pairs)} marker pair{'s' * (len(pairs) > 1)}"]
    bounds = [
        Bound(one.inwater_ns, None, one.offset_ns) for one in pairs if one.ordered and not one.carried_ns
    ]
    witnesses = len(pairs)
    if anchor is not None:
        witnesses += anchor.bound_ns <= NARROW_NS
        line, bias_sd_ns, word = _levelled(line, anchor, bias_sd_ns)
        words.append(word)
        bounds.append(anchor.bound)
    if line.span_s:
        words.append(f"drift {line.drift / _PPM:.1f} ± {sqrt(line.drift_variance) / _PPM:.1f} ppm")
    else:
        words.append("no drift beyond its uncertainty" if len(pairs) > 1 else "drift not measured")
    return Rung(
        name="linear" if line.span_s else "constant",
        line=replace(line, level_variance=line.level_variance + bias_sd_ns**2),
        reason=", ".join(words),
        ceiling="high" if witnesses > 2 and abs(line.drift) < CREDIBLE_PPM * _PPM else "medium",
        used=len(pairs),
        refused=refused,
        bounds=bounds,
    )


def _levelled(line: Line, anchor: Anchor, bias_sd_ns: float) -> tuple[Line, float, str]:
    """The line as near as the anchor's bound demands, and the sd of what is left of the delay.

    No nearer: the truth is within the bound, so this step never leads away from it.
    """
    above_ns = line.at(anchor.at_ns)[0] - anchor.offset_ns
    elapsed_s = (anchor.at_ns - line.at_ns) / _S
    reach_ns = round(anchor.bound_ns + anchor.carried_ns + sqrt(line.drift_variance) * abs(elapsed_s))
    beyond_ns = above_ns - max(-reach_ns, min(above_ns, reach_ns))
    if not beyond_ns:
        narrow = anchor.bound_ns <= NARROW_NS
        word = (
            "confirmed by the time-sync"
            if narrow
            else f"± {anchor.bound_ns / 1e6:.0f} ms of time-sync say no more"
        )
        return line, min(bias_sd_ns, (above_ns + reach_ns) / sqrt(3)), word
    moved = replace(line, offset_ns=line.offset_ns - beyond_ns)
    return moved, 2 * reach_ns / sqrt(3), f"moved by {-beyond_ns / 1e6:.0f} ms into the time-sync's bound"


def refusals(pairs: Sequence[Pair], kept: Sequence[Pair], why: str) -> list[str]:
    """A line for each pair that was not kept."""
    left = set(pairs) - set(kept)
    return [f"{one.name}: offset {one.offset_ns / _S:.3f} s {why}" for one in pairs if one in left]


def on_majority(pairs: Sequence[Pair]) -> Rung:
    """The rung of pairs known to be one event each, up to the way of the call."""
    kept = agreeing(pairs)
    refused = refusals(pairs, kept, "contradicts the others")
    if not kept:
        return Rung("none", None, "no two marker pairs agree", "low", refused=refused)
    return on_pairs(kept, refused)

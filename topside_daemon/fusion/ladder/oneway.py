"""What marker pairs say of two clocks when nothing came back: the stamps of one side and of the other.

The in-water stamp comes after the surface stamp by a delay that nobody measured, so every pair reads
high, never low. No I/O, no clock. Everywhere offset = in-water - surface in ns, positive: the in-water
clock reads ahead. Deviations are one sigma.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import sqrt
from statistics import fmean

from msgspec import Struct

from common.messages import Marker
from topside_daemon.fusion.bursts import FASTEST_PPM
from topside_daemon.fusion.clockmodel import DRIFT_PRIOR_PPM

DELAY_SD_NS = 3.6e6  # one request by HTTP with its handshake: 7 ms at p95 over a good link
BIAS_SD_NS = 5e6  # what all delays of a session share, handler and path: 11 ms in the worst of twenty
PRIOR_PAIRS = 2  # that this is worth against the spread of the pairs themselves
CREDIBLE_PPM = 100  # between two crystals of +-50 ppm each; beyond it another cause is likelier
LATE_NS = 200_000_000  # the old Cockpit discarded slower calls as useless
WANDER_PER_S = 1e-14  # random walk of the drift of a crystal that dives, in (s/s)^2 per s
SIGNIFICANT_SDS = 1.0  # from there on a line errs less than a constant
ROUNDS = 4  # of weighing pairs by their lateness against the earliest
WITNESSES = 32  # pairs that each pair is compared with

_S = 1e9  # ns
_PPM = 1e3  # ns per s


class Pair(Struct, frozen=True):
    """One marker in both records. carried_ns: sd of the steps between it and where it is used.

    ordered: the surface's stamp is known to have come first.
    """

    name: str
    inwater_ns: int
    surface_ns: int
    carried_ns: float = 0.0
    ordered: bool = True

    @property
    def offset_ns(self) -> int:
        return self.inwater_ns - self.surface_ns


class Line(Struct, frozen=True):
    """Offset against in-water time: offset_ns at at_ns, drift in ns/s, and what is known of both.

    span_s and apart_s: from the first pair to the last, and between neighbours; 0 where the drift was
    not measured.
    """

    at_ns: int
    offset_ns: int
    drift: float
    level_variance: float
    drift_variance: float
    span_s: float = 0.0
    apart_s: float = 0.0

    def at(self, inwater_ns: int) -> tuple[int, float]:
        """Offset in ns and its variance in ns^2.

        A measured drift still wanders: q L^3 / 48 halfway between two pairs L apart; beyond the last
        one, x away, q x^2 (x + T) / 3 after a span of T.
        """
        x = (inwater_ns - self.at_ns) / _S
        beyond_s = max(0.0, abs(x) - self.span_s / 2)
        bend = self.apart_s**3 / 48 + beyond_s**2 * (beyond_s + self.span_s) / 3
        variance = self.level_variance + self.drift_variance * x * x
        return self.offset_ns + round(self.drift * x), variance + WANDER_PER_S * _S**2 * bend


def constant(at_ns: int, offset_ns: int, variance: float) -> Line:
    """One offset for all times, under the drift that two uncalibrated crystals may have."""
    return Line(at_ns, offset_ns, 0.0, variance, (DRIFT_PRIOR_PPM * _PPM) ** 2)


def marker_name(marker: Marker) -> tuple[str, str, int]:
    """Identity as far as every file keeps it: the first eight hex digits of the id, kind, sequence."""
    return marker.sync_id.replace("-", "")[:8].lower(), marker.kind, marker.sequence


def title(marker: Marker) -> str:
    """What reports call it."""
    return marker.kind if marker.kind != "PERIODIC" else f"PERIODIC {marker.sequence}"


def match_markers(
    inwater: Iterable[Marker], surface: Iterable[Marker]
) -> tuple[list[tuple[Marker, Marker]], list[str]]:
    """Markers that carry one name in both records, and a line for each kind of which others are left over.

    Of several of one name the first counts. But the sequence of an old PERIODIC marker has eight bits, and in
    a long recording names come again: these are paired in order, if either record has as many.
    """
    here, there = _by_name(inwater), _by_name(surface)
    complaints: list[str] = []
    pairs: list[tuple[Marker, Marker]] = []
    for name in [*here, *(name for name in there if name not in here)]:
        under, deck = here.get(name, []), there.get(name, [])
        if len(under) == len(deck) and (len(under) == 1 or name[1] == "PERIODIC"):
            pairs += zip(under, deck, strict=True)
            continue
        for side, markers in (("in-water", under), ("surface", deck)):
            if len(markers) > 1:
                again = len(markers) - 1
                complaints.append(f"{title(markers[0])}: {again} more in the {side} record, the first counts")
        if under and deck:
            pairs.append((under[0], deck[0]))
    alone = [
        Counter(name[1] for name in one if name not in other) for one, other in ((here, there), (there, here))
    ]
    paired = {marker.kind for marker, _ in pairs}
    for kind in sorted({*alone[0], *alone[1]}):
        if kind in alone[0] and kind in alone[1] and kind not in paired:
            complaints.append(f"{kind}: the ids of the two records differ")
            continue
        sides = zip(alone, ("in-water", "surface"), strict=True)
        complaints += [f"{kind}: {one[kind]} in the {side} record alone" for one, side in sides if one[kind]]
    return pairs, complaints


def _by_name(markers: Iterable[Marker]) -> dict[tuple[str, str, int], list[Marker]]:
    found: dict[tuple[str, str, int], list[Marker]] = {}
    for marker in markers:
        known = found.setdefault(marker_name(marker), [])
        if marker.epoch < 0 or not known:  # rows of ours repeat what a file of their own has
            known.append(marker)
    return found


def agreeing(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that more than half of all agree with: of two that contradict each other, none.

    Two agree if they differ by no more than delay, drift and the steps between them explain.
    """
    chosen = pairs[:: max(1, len(pairs) // WITNESSES)]
    witnesses = [(one.inwater_ns, one.offset_ns, 3 * one.carried_ns) for one in chosen]
    fastest = FASTEST_PPM / 1e6

    def agrees(pair: Pair) -> bool:
        at_ns, offset_ns, known_ns = pair.inwater_ns, pair.offset_ns, LATE_NS + 3 * pair.carried_ns
        found = 0
        for there_ns, other_ns, carried_ns in witnesses:
            if abs(offset_ns - other_ns) <= known_ns + carried_ns + fastest * abs(at_ns - there_ns):
                found += 1
                if 2 * found > len(witnesses):
                    return True
        return False

    return [pair for pair in pairs if agrees(pair)]


def fit(pairs: Sequence[Pair]) -> Line:
    """The line under the pairs, or a constant where the drift does not stand out from the delays.

    A pair counts the less the later it is against the earliest, because delay only adds. The deviation
    of the delays is the spread of the pairs, together with what is known of such calls. A step that lies
    between all of them and where they are used is one error, however many they are.
    """
    origin = pairs[0]
    xs = [(pair.inwater_ns - origin.inwater_ns) / _S for pair in pairs]
    ys = [float(pair.offset_ns - origin.offset_ns) for pair in pairs]
    together = len({pair.carried_ns for pair in pairs}) == 1
    common = pairs[0].carried_ns ** 2 if together else 0.0
    carried = [sqrt(pair.carried_ns**2 - common) for pair in pairs]
    sloped = _weigh(xs, ys, carried, sloped=True)
    drift_sd = sqrt(sloped.drift_variance)
    doubtful = len(pairs) < 3 and not all(pair.ordered for pair in pairs)
    fastest = (CREDIBLE_PPM if doubtful else FASTEST_PPM) * _PPM
    linear = (
        len(pairs) > 1 and drift_sd < fastest and SIGNIFICANT_SDS * drift_sd < abs(sloped.drift) < fastest
    )
    level = sloped if linear else _weigh(xs, ys, carried, sloped=False)
    prior = (DRIFT_PRIOR_PPM * _PPM) ** 2
    unfitted = min(prior, sloped.drift**2 + sloped.drift_variance)
    middle = level.x if not linear else (min(xs) + max(xs)) / 2
    span_s = max(xs) - min(xs) if linear else 0.0
    apart_s = max((after - before for before, after in pairwise(sorted(xs))), default=0.0) if linear else 0.0
    return Line(
        at_ns=origin.inwater_ns + round(middle * _S),
        offset_ns=origin.offset_ns + round(level.y + level.drift * (middle - level.x)),
        drift=level.drift,
        level_variance=level.variance + sloped.drift_variance * (middle - level.x) ** 2 * linear + common,
        drift_variance=sloped.drift_variance if linear else unfitted,
        span_s=span_s,
        apart_s=apart_s,
    )


def spread_ns(pairs: Sequence[Pair], line: Line) -> float:
    """Root mean square of what the pairs leave of a line under them."""
    return sqrt(fmean((one.offset_ns - line.at(one.inwater_ns)[0]) ** 2 for one in pairs))


class _Weighed(Struct, frozen=True):
    """Centroid (x in s, y in ns), drift in ns/s, and the variances of level and drift."""

    x: float
    y: float
    drift: float
    variance: float
    drift_variance: float


def _weigh(xs: Sequence[float], ys: Sequence[float], carried: Sequence[float], *, sloped: bool) -> _Weighed:
    base = DELAY_SD_NS**2
    late = [0.0] * len(xs)
    joined = any(carried)  # the error of a step is not lateness
    x = y = drift = sxx = rss = total = 0.0
    for _ in range(1 if joined or len(xs) <= 1 + sloped else ROUNDS):
        shares = [base / (base + c * c + e * e) for c, e in zip(carried, late, strict=True)]
        total = sum(shares)
        x = sum(s * one for s, one in zip(shares, xs, strict=True)) / total
        y = sum(s * one for s, one in zip(shares, ys, strict=True)) / total
        sxx = sum(s * (one - x) ** 2 for s, one in zip(shares, xs, strict=True))
        sxy = sum(s * (a - x) * (b - y) for s, a, b in zip(shares, xs, ys, strict=True))
        drift = sxy / sxx if sloped and sxx else 0.0
        off = [b - y - drift * (a - x) for a, b in zip(xs, ys, strict=True)]
        earliest = min(off)
        late = [one - earliest for one in off]
        rss = sum(s * one * one for s, one in zip(shares, off, strict=True))
    free = max(0, len(xs) - 1 - sloped)
    delay_variance = (PRIOR_PAIRS * base + rss * (free > 0)) / (PRIOR_PAIRS + free)
    drift_variance = delay_variance / sxx if sxx else (DRIFT_PRIOR_PPM * _PPM) ** 2
    return _Weighed(x, y, drift, delay_variance / total, drift_variance)

"""Exchanges become offset(t) and drift(t), each with its standard deviation.

One model covers one pair of epochs: one boot of the Pi, one boot of the topside machine. No I/O, no
clock. Everywhere offset = Pi - topside in ns, positive: the Pi reads ahead; corrected = raw - offset.
Drift = d(offset)/dt, positive: the Pi gains. Deviations are one sigma.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import sqrt

from msgspec import Struct

from common.messages import Exchange, to_json

DRIFT_PRIOR_PPM = 85.0  # sd of the difference of two uncalibrated crystals
STAMP_SD_NS = 12_000.0  # what is left of a perfect exchange: resolution and scheduling
EXCESS_SHARE = 0.35  # sd of an offset as a share of the delay beyond the smallest one seen
ASYMMETRY_SHARE = 0.14  # sd of a path's constant asymmetry as a share of half its delay
QUEUE_SHARE = 0.58  # the same beyond a delay that only a standing queue explains; 1/sqrt(3) is "anywhere"
QUEUE_DELAY_NS = 6_000_000
WANDER_PER_S = 1e-14  # random walk of the drift of a crystal that dives, in (s/s)^2 per s
DRIFT_ALLOWED_PPM = 20.0  # between neighbours a real drift stays this close to the fitted one
DRIFT_ALLOWED_SDS = 6.0  # beside what is not yet known of the fitted one
STAMP_ALLOWED_NS = 50_000.0  # on top of both brackets, before two of them contradict each other
LONGEST_NS = 60_000_000_000  # no answer that late is waited for
BURST_SPAN_NS = 10_000_000_000  # one burst is over within this; a later one under its name is another

_S = 1e9  # ns
_PPM = 1e3  # ns per s


class Estimate(Struct, frozen=True):
    """Offset and drift of the Pi's clock against the topside clock at one instant."""

    offset_ns: int
    sd_ns: int
    drift_ppm: float
    drift_sd_ppm: float


class _Burst(Struct, frozen=True, gc=False):
    pi_mono_ns: int
    offset_ns: int
    delay_ns: int


class _Line:
    """Weighted straight line with a Gaussian prior on its slope, centred on the running mean.

    x in s and y in ns, both from an integer origin, because a float cannot hold an epoch in ns.
    The centred sums are Welford's recurrences with weights (West 1979).
    """

    def __init__(self, origin: _Burst) -> None:
        self._origin = origin
        self._prior = 1.0 / (DRIFT_PRIOR_PPM * _PPM) ** 2
        self._n = 0
        self._weight = self._mean_x = self._mean_y = 0.0
        self._sxx = self._sxy = self._syy = 0.0

    def add(self, burst: _Burst, variance_ns2: float) -> None:
        x = (burst.pi_mono_ns - self._origin.pi_mono_ns) / _S
        y = float(burst.offset_ns - self._origin.offset_ns)
        weight = 1.0 / variance_ns2
        self._n += 1
        self._weight += weight
        dx, dy = x - self._mean_x, y - self._mean_y
        self._mean_x += dx * weight / self._weight
        self._mean_y += dy * weight / self._weight
        self._sxx += weight * dx * (x - self._mean_x)
        self._sxy += weight * dx * (y - self._mean_y)
        self._syy += weight * dy * (y - self._mean_y)

    @property
    def slope(self) -> float:
        """ns per s."""
        return self._sxy / (self._sxx + self._prior)

    @property
    def chi2(self) -> float:
        """Weighted mean square of the residuals, prior included; 1 when the weights tell the truth."""
        if self._n < 2:
            return 1.0
        rss = self._syy - self._sxy * self._sxy / (self._sxx + self._prior)
        return max(0.0, rss) / (self._n - 1)

    @property
    def slope_variance(self) -> float:
        return max(1.0, self.chi2) / (self._sxx + self._prior)

    def at(self, pi_mono_ns: int) -> tuple[int, float]:
        """Offset in ns and the variance of the fit there in ns^2."""
        x = (pi_mono_ns - self._origin.pi_mono_ns) / _S - self._mean_x
        variance = max(1.0, self.chi2) / self._weight + x * x * self.slope_variance
        return self._origin.offset_ns + round(self._mean_y + self.slope * x), variance

    @property
    def misfit_variance(self) -> float:
        """What the residuals exceed the weights by, in ns^2: a curve that a line cannot follow.

        Unlike noise it does not average out, so it is not divided by the number of bursts.
        """
        return max(0.0, self.chi2 - 1.0) * self._n / self._weight


class ClockModel:
    """The Pi's clock against the topside clock over one pair of epochs.

    Bursts are added in the order of their time; the same bursts in the same order give the same
    model to the last bit.
    """

    def __init__(self) -> None:
        self._kept: list[_Burst] = []
        self._doubted: list[_Burst] = []
        self._seen = 0
        self._line: _Line | None = None
        self._floor_ns = 0  # the delay that weights count from, at most one stamp sd above the smallest
        self._delay_min_ns = 0

    @property
    def used(self) -> int:
        """Bursts the fit stands on."""
        return len(self._kept)

    @property
    def refused(self) -> int:
        """Bursts left out because their bracket contradicts their neighbours'."""
        return self._seen - len(self._kept)

    @property
    def delay_min_ns(self) -> int:
        """The smallest delay among the bursts in use; 0 before the first."""
        return self._delay_min_ns

    @property
    def span_ns(self) -> tuple[int, int] | None:
        """Pi time of the first and the last burst in use; None before the first."""
        return (self._kept[0].pi_mono_ns, self._kept[-1].pi_mono_ns) if self._kept else None

    def add(self, pi_mono_ns: int, offset_ns: int, delay_ns: int) -> bool:
        """Take the best exchange of one burst into the fit; False if it contradicts its neighbours.

        The truth lies within delay/2 of every measured offset, so two neighbours that no real drift
        can join are not both true; the longer chain of bursts that agree is believed. O(1), except
        that a new smallest delay or a lost belief fits anew what is kept: about log(n) times in n.
        """
        burst = _Burst(pi_mono_ns, offset_ns, delay_ns)
        self._seen += 1
        if self._line is None or self._agrees(self._kept[-1], burst, self._line):
            self._doubted.clear()
            self._keep(burst)
            return True
        if not self._doubted or not self._agrees(self._doubted[-1], burst, _Line(burst)):
            self._doubted.clear()
        self._doubted.append(burst)
        if len(self._doubted) <= len(self._kept):
            return False
        self._kept, self._doubted = self._doubted, []
        self._refit()
        return True

    @staticmethod
    def _agrees(before: _Burst, after: _Burst, line: _Line) -> bool:
        elapsed_s = abs(after.pi_mono_ns - before.pi_mono_ns) / _S
        signed_s = (after.pi_mono_ns - before.pi_mono_ns) / _S
        apart_ns = abs(after.offset_ns - before.offset_ns - line.slope * signed_s)
        drift = DRIFT_ALLOWED_PPM * _PPM + DRIFT_ALLOWED_SDS * sqrt(line.slope_variance)
        return apart_ns <= (before.delay_ns + after.delay_ns) / 2 + STAMP_ALLOWED_NS + drift * elapsed_s

    def _keep(self, burst: _Burst) -> None:
        self._kept.append(burst)
        if self._line is None or burst.delay_ns < self._floor_ns - STAMP_SD_NS:
            self._refit()
            return
        self._delay_min_ns = min(self._delay_min_ns, burst.delay_ns)
        self._line.add(burst, self._variance(burst))

    def _refit(self) -> None:
        self._floor_ns = self._delay_min_ns = min(burst.delay_ns for burst in self._kept)
        self._line = _Line(self._kept[0])
        for burst in self._kept:
            self._line.add(burst, self._variance(burst))

    def _variance(self, burst: _Burst) -> float:
        excess_ns = max(0, burst.delay_ns - self._floor_ns)
        return STAMP_SD_NS**2 + (EXCESS_SHARE * excess_ns) ** 2

    def at(self, pi_mono_ns: int) -> Estimate:
        """Offset and drift at an instant of the Pi's monotonic clock.

        The deviation joins the fit, what a line misses of the bends inside and between bursts, a
        constant asymmetry of the path that no exchange can see, and, outside the span of the bursts,
        a drift that wanders on.

        Raises:
            LookupError: nothing has been added yet.
        """
        if self._line is None:
            raise LookupError("no exchange yet")
        offset_ns, variance = self._line.at(pi_mono_ns)
        variance += self._line.misfit_variance + self._asymmetry_sd() ** 2
        variance += self._wander_variance(pi_mono_ns)
        drift_variance = self._line.slope_variance + self._drift_wander_variance()
        return Estimate(
            offset_ns=offset_ns,
            sd_ns=round(sqrt(variance)),
            drift_ppm=self._line.slope / _PPM,
            drift_sd_ppm=sqrt(drift_variance) / _PPM,
        )

    def _asymmetry_sd(self) -> float:
        """ns."""
        queue_ns = max(0, self._delay_min_ns - QUEUE_DELAY_NS)
        return (ASYMMETRY_SHARE * (self._delay_min_ns - queue_ns) + QUEUE_SHARE * queue_ns) / 2

    def _span_s(self) -> float:
        return abs(self._kept[-1].pi_mono_ns - self._kept[0].pi_mono_ns) / _S

    def _drift_wander_variance(self) -> float:
        """Of the drift at one end against its mean over the span, in (ns/s)^2: q T / 3."""
        return WANDER_PER_S * _S**2 * self._span_s() / 3

    def _wander_variance(self, pi_mono_ns: int) -> float:
        """ns^2: q L^3 / 48 halfway between two bursts L apart; beyond them the walk goes free."""
        first, last = self._kept[0].pi_mono_ns, self._kept[-1].pi_mono_ns
        apart_s = self._span_s() / max(1, len(self._kept) - 1)
        beyond_s = max(0, first - pi_mono_ns, pi_mono_ns - last) / _S
        walk = WANDER_PER_S * _S**2 * (apart_s**3 / 48 + beyond_s**3 / 3)
        return walk + self._drift_wander_variance() * beyond_s**2


def delay_ns(exchange: Exchange) -> int:
    """(t4-t1) - (t3-t2) of a whole exchange, in ns; `refusal` says whether it is one."""
    t1, t2, t3, t4 = _stamps(exchange)
    return (t4 - t1) - (t3 - t2)


def offset_ns(exchange: Exchange) -> int:
    """((t2-t1) + (t3-t4)) / 2 of a whole exchange, in ns, rounded down."""
    t1, t2, t3, t4 = _stamps(exchange)
    return ((t2 - t1) + (t3 - t4)) // 2


def pi_mono_ns(exchange: Exchange) -> int:
    """The instant on the Pi's clock that a whole exchange speaks for: halfway from t2 to t3."""
    _, t2, t3, _ = _stamps(exchange)
    return (t2 + t3) // 2


def _stamps(exchange: Exchange) -> tuple[int, int, int, int]:
    t2, t3, t4 = exchange.t2_ns, exchange.t3_ns, exchange.t4_ns
    if t2 is None or t3 is None or t4 is None:
        raise ValueError("the exchange has no answer")
    return exchange.t1_ns, t2, t3, t4


def refusal(exchange: Exchange) -> str | None:
    """Why an exchange cannot be used by itself; None if it can."""
    if exchange.status != "ok":
        return exchange.status
    if exchange.t2_ns is None or exchange.t3_ns is None or exchange.t4_ns is None:
        return "stamp missing"
    if exchange.pi_boot_id is None:
        return "boot id missing"
    if exchange.t4_ns - exchange.t1_ns > LONGEST_NS:
        return "absurd delay"
    if exchange.t4_ns < exchange.t1_ns or exchange.t3_ns < exchange.t2_ns:
        return "stamps out of order"
    if delay_ns(exchange) < 0:
        return "negative delay"
    return None


def best_of_burst(exchanges: Iterable[Exchange], refused: Counter[str] | None = None) -> Exchange | None:
    """The exchange with the smallest delay among those of one burst that can be used.

    Where brackets (t3-t4 <= offset <= t2-t1) inside the burst exclude each other, the side of the
    majority is believed. What is refused is counted by its reason in *refused*.
    """
    counts: Counter[str] = Counter() if refused is None else refused
    usable = []
    for exchange in exchanges:
        reason = refusal(exchange)
        if reason is None:
            usable.append(exchange)
        else:
            counts[reason] += 1
    agreeing = [exchange for exchange in usable if _has_majority(exchange, usable)]
    if len(agreeing) < len(usable):
        counts["contradicts its burst"] += len(usable) - len(agreeing)
    return min(agreeing, key=lambda exchange: (delay_ns(exchange), exchange.t1_ns), default=None)


def _has_majority(exchange: Exchange, burst: Sequence[Exchange]) -> bool:
    def meets(other: Exchange) -> bool:
        apart_ns = abs(offset_ns(exchange) - offset_ns(other))
        return apart_ns <= (delay_ns(exchange) + delay_ns(other)) / 2 + STAMP_ALLOWED_NS

    return 2 * sum(map(meets, burst)) >= len(burst)


def group_bursts(exchanges: Iterable[Exchange]) -> list[list[Exchange]]:
    """Exchanges as bursts in the order of their time, whatever order and how often they are given.

    A burst is what shares (sync_id, kind, sequence) and both boots within ten seconds.
    """
    latest: dict[tuple[str, str | None, str, str, int], list[Exchange]] = {}
    bursts: list[list[Exchange]] = []
    unique = set(exchanges)
    began: dict[str, int] = {}  # by wall time, the only clock that survives a boot
    for one in unique:
        began[one.topside_boot_id] = min(
            one.topside_utc_ns, began.get(one.topside_boot_id, one.topside_utc_ns)
        )
    order = sorted(
        unique, key=lambda one: (began[one.topside_boot_id], one.topside_boot_id, one.t1_ns, to_json(one))
    )
    for exchange in order:
        marker = (exchange.sync_id, exchange.kind, exchange.sequence)
        name = (exchange.topside_boot_id, exchange.pi_boot_id, *marker)
        burst = latest.get(name)
        if burst is None or exchange.t1_ns - burst[0].t1_ns > BURST_SPAN_NS:
            burst = latest[name] = []
            bursts.append(burst)
        burst.append(exchange)
    return bursts

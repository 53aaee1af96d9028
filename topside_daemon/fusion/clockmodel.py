"""Exchanges become offset(t) and drift(t), each with its standard deviation and a certified interval.

One model covers one unbroken run of both clocks. Here is decided which exchanges are believed; what they
are worth is the tether's, the walk of offset and drift between them the filter bank's, what they prove
the certificate's. No I/O, no clock.

Everywhere offset = Pi - topside in ns, positive: the Pi reads ahead; corrected = raw - offset.
Drift = d(offset)/dt, positive: the Pi gains. Deviations are one sigma.
"""

from bisect import bisect_right
from itertools import pairwise
from math import sqrt
from statistics import fmean, median
from typing import Literal

from msgspec import Struct

from topside_daemon.fusion.bursts import SLACK_NS, Bracket, Burst, may_follow, tightest
from topside_daemon.fusion.certificate import Bounds, Certificate
from topside_daemon.fusion.filterbank import FilterBank, Moments
from topside_daemon.fusion.tether import LinkMemory, Node, Tether

DRIFT_PRIOR_PPM = 85.0  # sd of the difference of two uncalibrated crystals
DRIFT_MEMORY_PPM = 10.0  # the same two crystals on another day
DRIFT_MEASURED_PPM = 4.0  # known to this, a drift owes little to what was assumed
GATE_SDS = 5.0  # a minority whose quickest possible midpoint is further than this from what was foretold
GATE_NS = 50_000.0  # is not a late packet: those have wide brackets
BREAK_BURSTS = 3  # bursts in a row that contradict the model but not each other: a clock has jumped
APART_S = 1e-3  # bursts are, in their order
NORMAL_95 = 1.96

_S = 1e9  # ns
_PPM = 1e3  # ns per s


class Estimate(Struct, frozen=True):
    """Offset and drift of the Pi's clock against the topside clock at one instant.

    The 95 % interval is offset_ns +- 1.96 sd_ns; low_ns .. high_ns is the certified one.
    """

    offset_ns: int
    sd_ns: int
    drift_ppm: float
    drift_sd_ppm: float
    low_ns: int
    high_ns: int


class Evidence(Struct, frozen=True):
    """What a model stands on. Residuals: measured minus smoothed offset of the bursts in use.

    wander: mean strength of the drift's random walk, (s/s)^2 per s. contradictions: intervals between
    bursts in which their brackets exclude each other, so that the certificate is void. memory: whether
    what earlier sessions had shown of the drift was a prior, or was contradicted at once.
    """

    residual_rms_ns: int
    residual_max_ns: int
    delay_median_ns: int
    delay_p95_ns: int
    transport: str
    http_bias_ns: int | None
    wander: float
    contradictions: int
    memory: Literal["none", "used", "contradicted"]


class _Span(Struct, gc=False):
    """Between two bursts, or outside the outermost: bounds in ns from the origin, and the variance that no
    number of bursts can lower, at both ends."""

    start: float
    end: float
    bounds: Bounds
    left_variance: float
    right_variance: float


class ClockModel:
    """The Pi's clock against the topside clock over one unbroken run of both.

    Bursts are taken in the order of their time; the same bursts give the same model to the last bit,
    whether they come live or from a file.
    """

    def __init__(self, memory: LinkMemory | None = None) -> None:
        self._memory = memory
        self._trusting = memory is not None
        self._origin = Bracket(0, 0, 0, 0)
        self._reset()
        self._seen = 0
        self._doubted: list[Burst] = []

    def _reset(self) -> None:
        drift_ppm, sd_ppm = 0.0, DRIFT_PRIOR_PPM
        if self._memory is not None and self._trusting:
            drift_ppm, sd_ppm = self._memory.drift_ppm, DRIFT_MEMORY_PPM
        self._bank = FilterBank(drift_ppm * _PPM, sd_ppm * _PPM)
        self._tether = Tether(self._memory)
        self._nodes = self._tether.nodes
        self._certificate = Certificate()
        self._spans: dict[int, _Span] = {}  # until another burst is taken

    def take(self, burst: Burst) -> bool:
        """Take one burst into the model; False if its brackets contradict what is known.

        O(1), except that a new smallest delay is news for the bursts of the last quarter of an hour.
        """
        self._seen += 1
        node = self._judge(burst)
        if node is not None:
            self._doubted.clear()
            self._keep(node)
            if self._trusting and self._remembers_wrong():
                self._distrust()
            return True
        if self._doubted and not may_follow(self._doubted[-1], burst):
            self._doubted.clear()
        self._doubted.append(burst)
        if self._trusting and not self._has_drift():
            self._distrust()
            return not self._doubted
        if len(self._doubted) <= len(self._nodes):
            return False
        self._start_again(self._doubted)
        return True

    def _remembers_wrong(self) -> bool:
        assert self._memory is not None
        drift = self._bank.at(self._nodes[-1].t).drift
        return self._has_drift() and abs(drift - self._memory.drift_ppm * _PPM) > 3 * DRIFT_MEMORY_PPM * _PPM

    def _distrust(self) -> None:
        """What was measured is right, and what was remembered is not."""
        self._trusting = False
        self._start_again([node.burst for node in self._nodes] + self._doubted)

    def _start_again(self, believed: list[Burst]) -> None:
        self._seen -= len(believed)
        self._doubted = []
        self._reset()
        for one in believed:
            self.take(one)

    def _has_drift(self) -> bool:
        """The drift was measured, not only assumed."""
        if len(self._nodes) < 2:
            return False
        return sqrt(self._bank.at(self._nodes[-1].t).drift_variance) < DRIFT_MEASURED_PPM * _PPM

    @property
    def broken(self) -> list[Burst]:
        """The newest bursts, where they agree with each other and not with the model: another run has
        begun, and needs another model. Empty otherwise."""
        return self._doubted if len(self._doubted) >= BREAK_BURSTS else []

    def let_go(self) -> None:
        """Leave the bursts in `broken` to another model."""
        self._seen -= len(self._doubted)
        self._doubted = []

    @property
    def used(self) -> int:
        """Bursts the model stands on."""
        return len(self._nodes)

    @property
    def refused(self) -> int:
        """Bursts whose brackets contradict the others'."""
        return self._seen - len(self._nodes)

    @property
    def left_out(self) -> int:
        """Exchanges that contradict the model, in bursts that do not."""
        return sum(node.left_out for node in self._nodes)

    @property
    def delay_min_ns(self) -> int:
        """The smallest delay among the bursts in use; 0 before the first."""
        return round(self._tether.delay_min) if self._nodes else 0

    @property
    def span_ns(self) -> tuple[int, int]:
        """Pi time of the first and the last burst in use; (0, 0) before the first."""
        if not self._nodes:
            return (0, 0)
        return (self._nodes[0].bracket.pi_mono_ns, self._nodes[-1].bracket.pi_mono_ns)

    def _judge(self, burst: Burst) -> Node | None:
        """What the burst measures, as far as it can be true; None if most of it cannot."""
        brackets = list(burst.brackets)
        if not self._nodes:
            self._origin = tightest(brackets)
        else:
            brackets = self._believed(burst)
            if 2 * len(brackets) < len(burst.brackets):
                return None
        bracket = tightest(brackets)
        t = self._seconds(bracket.pi_mono_ns)
        return Node(
            burst=burst,
            bracket=bracket,
            left_out=len(burst.brackets) - len(brackets),
            t=max(t, self._nodes[-1].t + APART_S) if self._nodes else t,
            offset=float(bracket.offset_ns - self._origin.offset_ns),
            delay=float(max(0, bracket.width_ns)),
        )

    def _believed(self, burst: Burst) -> list[Bracket]:
        """The exchanges that can be true: whose brackets meet what the brackets before them prove.

        The quickest of the last minutes measured the same as now, asymmetry and all, unless the path
        has changed; what a minority says against that is left out too.
        """
        t, last = self._seconds(burst.pi_mono_ns), self._nodes[-1]
        low, high = self._certificate.between(len(self._nodes) - 1, last.t, max(t, last.t)).at(
            max(0.0, t - last.t), 0.0
        )
        origin_ns = self._origin.offset_ns
        possible = [
            one
            for one in burst.brackets
            if one.low_ns - origin_ns <= high + SLACK_NS and one.high_ns - origin_ns >= low - SLACK_NS
        ]
        moments = self._bank.at(t)
        foretold_ns = origin_ns + round(moments.offset)
        near_ns = round(GATE_SDS * sqrt(moments.variance) + GATE_NS)
        floor_ns = round(last.floor) if last.burst.transport == burst.transport else 0
        likely = [one for one in possible if _within(one.inside(floor_ns), foretold_ns, near_ns)]
        return likely if 2 * len(likely) > len(possible) else possible

    def _keep(self, node: Node) -> None:
        """Append a node, and run the filters from the first burst to which it is news."""
        drift = self._bank.at(node.t).drift if self._nodes else 0.0
        first = self._tether.add(node, drift)
        self._bank.cut(first)
        for one in self._nodes[first:]:
            self._bank.take(one.t, self._tether.witnesses(one))
        bracket, origin_ns = node.bracket, self._origin.offset_ns
        self._certificate.add(
            self._seconds(bracket.low_at_ns),
            float(bracket.low_ns - origin_ns),
            self._seconds(bracket.high_at_ns),
            float(bracket.high_ns - origin_ns),
        )
        self._spans.clear()

    def at(self, pi_mono_ns: int) -> Estimate:
        """Offset and drift at an instant of the Pi's monotonic clock.

        Inside the span of the bursts smoothed with all of them, outside foretold. The deviation joins
        the filters' own, what they disagree on, a constant asymmetry of the path that no exchange can
        see, and a path that has changed.

        Raises:
            LookupError: nothing has been taken yet.
        """
        if not self._nodes:
            raise LookupError("no exchange yet")
        t = self._seconds(pi_mono_ns)
        moments = self._bank.at(t)
        span = self._span(t)
        after, before = t - span.start, span.end - t
        low, high = span.bounds.at(after, before)
        share = after / (after + before) if after + before > 0 else 0.0
        constant = span.left_variance + share * (span.right_variance - span.left_variance)
        return self._estimate(moments, constant, low, high)

    def _estimate(self, moments: Moments, constant: float, low: float, high: float) -> Estimate:
        offset, variance, drift, drift_variance = moments
        if low > high:  # contradictions beyond all that is allowed: the truth may be on either side
            low, high = min(high, offset), max(low, offset)
        offset = min(max(offset, low), high)
        sd = min(sqrt(variance + constant), max(offset - low, high - offset) / NORMAL_95)
        origin = self._origin.offset_ns
        return Estimate(
            offset_ns=origin + round(offset),
            sd_ns=round(sd),
            drift_ppm=drift / _PPM,
            drift_sd_ppm=sqrt(drift_variance) / _PPM,
            low_ns=origin + int(low // 1),
            high_ns=origin - int(-high // 1),
        )

    def unsettled_ns(self, ahead_s: float) -> int:
        """One sigma of what the next burst, this much later, may show that the filters do not foresee:
        large while the drift is young, and while it changes."""
        return round(sqrt(self._bank.at(self._nodes[-1].t + ahead_s).variance)) if self._nodes else 0

    def evidence(self, newest: int | None = None) -> Evidence:
        """What the model stands on, once a burst has been taken: all of it, or its newest bursts."""
        nodes = self._nodes[-newest:] if newest else self._nodes
        residuals = [
            node.offset - self._tether.http_bias(node.burst) - self._bank.at(node.t).offset for node in nodes
        ]
        delays = sorted(node.delay for node in nodes)
        inner = [self._span((one.t + other.t) / 2) for one, other in pairwise(nodes)]
        return Evidence(
            residual_rms_ns=round(sqrt(fmean(one * one for one in residuals))),
            residual_max_ns=round(max(map(abs, residuals))),
            delay_median_ns=round(median(delays)),
            delay_p95_ns=round(delays[(len(delays) - 1) * 95 // 100]),
            transport=self._nodes[0].burst.transport,
            http_bias_ns=self._tether.http_bias_ns,
            wander=self._bank.wander,
            contradictions=sum(span.bounds.contradict for span in inner),
            memory="none" if self._memory is None else "used" if self._trusting else "contradicted",
        )

    def learned(self, utc_ns: int) -> LinkMemory | None:
        """What the next session over this link may start from, learned at *utc_ns*.

        None before the drift was measured.
        """
        if not self._has_drift():
            return None
        now = self._bank.at(self._nodes[-1].t)
        before, bias_ns = self._memory or LinkMemory(0.0), self._tether.http_bias_ns
        return LinkMemory(
            drift_ppm=now.drift / _PPM,
            delay_floor_ns=before.delay_floor_ns | self._tether.floors_ns(),
            http_bias_ns=before.http_bias_ns if bias_ns is None else bias_ns,
            utc_ns=utc_ns,
        )

    def _span(self, t: float) -> _Span:
        place = bisect_right(self._nodes, t, key=_instant) - 1
        beyond = 0 if place < 0 else len(self._nodes) - 1 if place == len(self._nodes) - 1 else None
        if beyond is not None:  # its window reaches as far as the question
            edge = self._nodes[beyond].t
            start, end = min(edge, t), max(edge, t)
            constant = self._tether.constant_variance(self._nodes[beyond])
            return _Span(start, end, self._certificate.between(place, start, end), constant, constant)
        if place not in self._spans:
            left, right = self._nodes[place], self._nodes[place + 1]
            self._spans[place] = _Span(
                left.t,
                right.t,
                self._certificate.between(place, left.t, right.t),
                self._tether.constant_variance(left),
                self._tether.constant_variance(right),
            )
        return self._spans[place]

    def _seconds(self, pi_mono_ns: int) -> float:
        return (pi_mono_ns - self._origin.pi_mono_ns) / _S


def _within(bounds_ns: tuple[int, int], at_ns: int, slack_ns: int) -> bool:
    return bounds_ns[0] - slack_ns <= at_ns <= bounds_ns[1] + slack_ns


def _instant(node: Node) -> float:
    return node.t

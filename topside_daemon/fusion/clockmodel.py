"""Exchanges become offset(t) and drift(t), each with its standard deviation and a certified interval.

One model covers one unbroken run of both clocks. Here is decided which exchanges are believed; what they
are worth is the tether's, the walk of offset and drift between them the filter bank's, what they prove
the certificate's. No I/O, no clock.

Everywhere offset = Pi - topside in ns, positive: the Pi reads ahead; corrected = raw - offset.
Drift = d(offset)/dt, positive: the Pi gains. Deviations are one sigma.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from math import inf, sqrt
from statistics import fmean, median
from typing import Literal

from msgspec import Struct

from topside_daemon.fusion.bursts import SLACK_NS, Bracket, Burst, may_follow, tightest, unrest
from topside_daemon.fusion.certificate import Bounds, Certificate
from topside_daemon.fusion.columns import Course
from topside_daemon.fusion.courses import follow
from topside_daemon.fusion.filterbank import FilterBank
from topside_daemon.fusion.tether import LinkMemory, Node, Tether

DRIFT_PRIOR_PPM = 85.0  # sd of the difference of two uncalibrated crystals
DRIFT_MEMORY_PPM = 10.0  # the same two crystals on another day
DRIFT_MEASURED_PPM = 4.0  # known to this, a drift owes little to what was assumed
GATE_SDS = 5.0  # a minority whose quickest possible midpoint is further than this from what was foretold
GATE_NS = 50_000.0  # is not a late packet: those have wide brackets
BREAK_BURSTS = 3  # bursts in a row that contradict the model but not each other: a clock has jumped
APART_S = 1e-3  # bursts are, in their order
STEP_NS = 30_000_000_000  # beyond the outermost burst courses grow longer from this on

KNOWN = 2  # beside the bit that says whether bounds contradict each other

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
        self._instants: list[int] = []  # of the nodes, on the Pi's clock
        self._contradict = bytearray()  # of each interval that was asked for: whether its bounds do

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
        return (self._instants[0], self._instants[-1]) if self._nodes else (0, 0)

    def _judge(self, burst: Burst) -> Node | None:
        """What the burst measures, as far as it can be true; None if most of it cannot."""
        sent: Sequence[Bracket] = burst.brackets
        brackets = sent
        if not self._nodes:
            self._origin = tightest(sent)
        else:
            brackets = self._believed(sent, burst.transport)
            if 2 * len(brackets) < len(sent):
                return None
        bracket = tightest(brackets)
        t = self._seconds(bracket.pi_mono_ns)
        return Node(
            burst=burst,
            bracket=bracket,
            probes=len(sent),
            unrest=unrest(sent),
            left_out=len(sent) - len(brackets),
            t=max(t, self._nodes[-1].t + APART_S) if self._nodes else t,
            offset=float(bracket.offset_ns - self._origin.offset_ns),
            delay=float(max(0, bracket.width_ns)),
        )

    def _believed(self, brackets: Sequence[Bracket], transport: str) -> Sequence[Bracket]:
        """The exchanges that can be true: whose brackets meet what the brackets before them prove.

        The quickest of the last minutes measured the same as now, asymmetry and all, unless the path
        has changed; what a minority says against that is left out too.
        """
        t, last = self._seconds(brackets[len(brackets) // 2].pi_mono_ns), self._nodes[-1]
        low, high = self._certificate.between(len(self._nodes) - 1, last.t, max(t, last.t)).at(
            max(0.0, t - last.t), 0.0
        )
        origin_ns = self._origin.offset_ns
        possible = [
            one
            for one in brackets
            if one.low_ns - origin_ns <= high + SLACK_NS and one.high_ns - origin_ns >= low - SLACK_NS
        ]
        moments = self._bank.at(t)
        foretold_ns = origin_ns + round(moments.offset)
        near_ns = round(GATE_SDS * sqrt(moments.variance) + GATE_NS)
        floor_ns = round(last.floor) if last.burst.transport == transport else 0
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
        self._instants.append(self._nanoseconds(node.t))
        self._contradict = bytearray(len(self._nodes))

    def at(self, pi_mono_ns: int) -> Estimate:
        """Offset and drift at an instant of the Pi's monotonic clock.

        Inside the span of the bursts smoothed with all of them, outside foretold. The deviation joins
        the filters' own, what they disagree on, a constant asymmetry of the path that no exchange can
        see, and a path that has changed.

        Raises:
            LookupError: nothing has been taken yet.
        """
        found = follow(self.course(pi_mono_ns), pi_mono_ns, 0)
        drift = self._bank.at(self._seconds(pi_mono_ns))
        assert found.offset_ns is not None and found.sd_ns is not None
        assert found.low_ns is not None and found.high_ns is not None
        return Estimate(
            offset_ns=found.offset_ns,
            sd_ns=found.sd_ns,
            drift_ppm=drift.drift / _PPM,
            drift_sd_ppm=sqrt(drift.drift_variance) / _PPM,
            low_ns=found.low_ns,
            high_ns=found.high_ns,
        )

    def course(self, pi_mono_ns: int) -> Course:
        """The offset around an instant, as it runs from one burst to the next, or beyond the outermost for a
        while.

        Raises:
            LookupError: nothing has been taken yet.
        """
        if not self._nodes:
            raise LookupError("no exchange yet")
        last = len(self._nodes) - 1
        place = bisect_right(self._instants, pi_mono_ns) - 1
        place -= (
            place == last > 0 and pi_mono_ns == self._instants[last]
        )  # the last burst ends the last interval
        if 0 <= place < last:
            return self._between(place)
        step = _steps_away(abs(pi_mono_ns - self._instants[max(place, 0)]))
        return self._before(step) if place < 0 else self._after(step)

    def courses(self, first_ns: int, last_ns: int) -> Iterator[Course]:
        """All of them from one instant to another."""
        at_ns = first_ns
        while at_ns <= last_ns:
            course = self.course(at_ns)
            yield course
            at_ns = course.until

    def _between(self, place: int) -> Course:
        left, right = self._nodes[place], self._nodes[place + 1]
        h = right.t - left.t
        _, offset, variance, _ = self._bank.between(place)
        constant = self._tether.constant_variance(left)
        growth = self._tether.constant_variance(right) - constant
        bounds = self._bounds(place)
        slow, fast = bounds.slowest * h, bounds.fastest * h
        since, until = self._instants[place], self._instants[place + 1]
        return self._course(
            (since, until + (place + 2 == len(self._nodes)), since),
            1 / (until - since),
            offset,
            (variance[0] + constant, variance[1] + growth, *variance[2:]),
            (bounds.left_low, slow, bounds.right_low - fast, fast),
            (bounds.left_high, fast, bounds.right_high - slow, slow),
        )

    def _bounds(self, place: int) -> Bounds:
        bounds = self._certificate.between(place, self._nodes[place].t, self._nodes[place + 1].t)
        self._contradict[place] = KNOWN | bounds.contradict
        return bounds

    def _contradicts(self, place: int) -> bool:
        return bool((self._contradict[place] or KNOWN | self._bounds(place).contradict) & 1)

    def _after(self, step: int) -> Course:
        """Behind the last burst; what the certificate allows there is that of the end of the step."""
        edge, edge_ns = self._nodes[-1], self._instants[-1]
        near_ns, far_ns = _reach_ns(step)
        _, offset, variance, _ = self._bank.after()
        bounds = self._certificate.between(len(self._nodes) - 1, edge.t, edge.t + far_ns / _S)
        return self._course(
            (edge_ns + max(near_ns, len(self._nodes) > 1), edge_ns + far_ns, edge_ns),
            1 / _S,
            offset,
            (variance[0] + self._tether.constant_variance(edge), *variance[1:]),
            (bounds.left_low, bounds.slowest, -inf, 0.0),
            (bounds.left_high, bounds.fastest, inf, 0.0),
        )

    def _before(self, step: int) -> Course:
        """Before the first burst, likewise."""
        edge, edge_ns = self._nodes[0], self._instants[0]
        near_ns, far_ns = _reach_ns(step)
        _, offset, variance, _ = self._bank.before()
        bounds = self._certificate.between(-1, edge.t - far_ns / _S, edge.t)
        return self._course(
            (edge_ns - far_ns + 1, edge_ns - near_ns + 1 if near_ns else edge_ns, edge_ns),
            1 / _S,
            offset,
            (variance[0] + self._tether.constant_variance(edge), *variance[1:]),
            (bounds.right_low, bounds.fastest, -inf, 0.0),
            (bounds.right_high, bounds.slowest, inf, 0.0),
        )

    def _course(
        self,
        range_ns: tuple[int, int, int],
        rate: float,
        offset: tuple[float, float, float, float],
        variance: tuple[float, ...],
        low: tuple[float, float, float, float],
        high: tuple[float, float, float, float],
    ) -> Course:
        v0, v1, v2, v3, v4, v5, v6 = variance
        return Course(
            *range_ns, self._origin.offset_ns, 0, 0, rate, offset, (v0, v1, v2, v3, v4, v5, v6), low, high
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
        inner = range(len(self._nodes) - len(nodes), len(self._nodes) - 1)
        return Evidence(
            residual_rms_ns=round(sqrt(fmean(one * one for one in residuals))),
            residual_max_ns=round(max(map(abs, residuals))),
            delay_median_ns=round(median(delays)),
            delay_p95_ns=round(delays[(len(delays) - 1) * 95 // 100]),
            transport=self._nodes[0].burst.transport,
            http_bias_ns=self._tether.http_bias_ns,
            wander=self._bank.wander,
            contradictions=sum(map(self._contradicts, inner)),
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

    def _seconds(self, pi_mono_ns: int) -> float:
        return (pi_mono_ns - self._origin.pi_mono_ns) / _S

    def _nanoseconds(self, t: float) -> int:
        return self._origin.pi_mono_ns + round(t * _S)


def _within(bounds_ns: tuple[int, int], at_ns: int, slack_ns: int) -> bool:
    return bounds_ns[0] - slack_ns <= at_ns <= bounds_ns[1] + slack_ns


def _steps_away(beyond_ns: int) -> int:
    """How often a distance doubles STEP_NS; 0 up to there."""
    return max(0, (beyond_ns // STEP_NS).bit_length())


def _reach_ns(step: int) -> tuple[int, int]:
    """From where to where a step reaches."""
    return (STEP_NS << step >> 1 if step else 0, STEP_NS << step)

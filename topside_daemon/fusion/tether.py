"""The way between the two machines, and what it makes of a burst of exchanges.

Delays have a least value that lasts, until the path changes; what is beyond it is a queue, mostly in one
direction. Here a burst becomes witnesses for the filters, and the error that no number of bursts can
lower becomes a variance. No I/O, no clock. Offsets and delays in ns, times in s from one origin.
"""

from bisect import bisect_left, bisect_right
from math import inf
from statistics import median

from msgspec import Struct

from topside_daemon.fusion.bursts import Bracket, Burst
from topside_daemon.fusion.filterbank import Witness

STAMP_SD_NS = 12_000.0  # what is left of a perfect exchange: resolution and scheduling
EXCESS_SHARE = 0.35  # sd of an offset as a share of the delay beyond the smallest near it
ONE_WAY_SHARE = 0.8  # of the delays beyond the smallest: a queue in one direction only
TELLING = 3  # exchanges in a burst, fewer cannot show which direction queues
UNREST_NS = 500_000.0  # how unlike packets are that meet no queue, generously
CLEAN_NS = 50_000.0  # less beyond it shows no queue
CLEAN_SHARE = 0.15  # sd of what the direction without the queue holds by itself, as a share of the excess
CLEAN_MAX_NS = 400_000.0  # up to this excess
HTTP_STAMP_SD_NS = 150_000.0  # by HTTP both directions are never quite still
FLOOR_SPAN_S = 900.0  # how near: paths change
WAKE_SD_NS = 40_000.0  # one machine may always be slower than the other to see a packet
ASYMMETRY_SHARE = 0.14  # sd of a path's constant asymmetry as a share of half its delay
QUEUE_DELAY_NS = 6e6  # only a standing queue explains a smallest delay beyond this
QUEUE_SHARE = 0.75  # and nearly all of it is in one direction
QUEUED_NS = 9e6  # beyond this there is no doubt about it, and
QUEUE_UNREST_NS = 1e6  # packets of one burst that stand in a queue are more unlike than this,
QUEUE_LOPSIDED = 3.0  # and than those of the other direction
NEAR_FLOOR_NS = 1e6  # a calm burst this much beyond a remembered delay came over another path
TYPICAL_DELAY_NS = 3.2e6  # what the smallest would be without it
EXCESS_SPAN_S = 300.0  # a delay that stays up for this long is a path that has changed
EXCESS_BIAS_SHARE = 0.4  # sd of what that may shift, as a share of the excess
CHANGE_NS = 100_000.0  # of the smallest delay: another path, of which one direction may have all
HTTP_SD_NS = 200_000.0  # unequal handlers, as long as nothing has measured them
HTTP_PAIRS = 3  # calls beside bursts by UDP that measure them


class LinkMemory(Struct, frozen=True):
    """What earlier sessions over one pair of machines have shown: a prior, never evidence.

    delay_floor_ns: the smallest delay by transport. http_bias_ns: what the midpoint of an exchange by
    HTTP reads above one by UDP. utc_ns: when it was learned.
    """

    drift_ppm: float
    delay_floor_ns: dict[str, int] = {}
    http_bias_ns: int | None = None
    utc_ns: int = 0


class Node(Struct, gc=False):
    """A burst in use: its instant in s and its offset in ns, both from the origin; its delay in ns, and the
    smallest one near it.

    probes: exchanges of the burst, left_out: those that contradict the model. unrest: of their packets, see
    there. changed: ns^2 that changes of the path since the first burst may have added.
    """

    burst: Burst
    bracket: Bracket
    probes: int
    unrest: tuple[float, float]
    left_out: int
    t: float
    offset: float
    delay: float
    floor: float = inf
    changed: float = 0.0


class Tether:
    """The bursts in use, in the order of time, and what they show of the way.

    Args:
        memory: what earlier sessions had shown of it.
    """

    def __init__(self, memory: LinkMemory | None) -> None:
        self._memory = memory
        self._http_ns: list[float] = []
        self.nodes: list[Node] = []
        self.delay_min = inf

    def add(self, node: Node, drift: float) -> int:
        """Append a burst; the place of the first one to which it is news.

        Args:
            drift: as far as it is known, ns/s; between a burst and its call.
        """
        self.nodes.append(node)
        self.delay_min = min(self.delay_min, node.delay)
        first = min(self._settle_floors(node), self._hear_call(node, drift))
        for place in range(first, len(self.nodes)):
            self._settle_changes(self.nodes[place], self.nodes[max(0, place - 1)])
        return first

    def _hear_call(self, node: Node, drift: float) -> int:
        """What the call beside a burst shows of HTTP is news to the first burst that came by HTTP."""
        call, bracket, last = node.burst.call, node.bracket, len(self.nodes) - 1
        if call is None:
            return last
        later_s = (call.pi_mono_ns - bracket.pi_mono_ns) / 1e9
        self._http_ns.append(call.offset_ns - bracket.offset_ns - drift * later_s)
        return next((k for k, one in enumerate(self.nodes) if one.burst.transport == "http"), last)

    def _settle_floors(self, node: Node) -> int:
        """The smallest delay within a quarter of an hour of each burst; where it has changed first."""
        first = len(self.nodes) - 1
        node.floor = node.delay
        node.floor = min(node.floor, self._remembered(node))
        for place in range(len(self.nodes) - 2, -1, -1):
            other = self.nodes[place]
            if node.t - other.t > FLOOR_SPAN_S:
                break
            if other.burst.transport == node.burst.transport:
                node.floor = min(node.floor, other.delay)
                if node.delay < other.floor:
                    other.floor, first = node.delay, place
        return first

    def _remembered(self, node: Node) -> float:
        """The smallest delay that is remembered, while the session is young; infinite where this is another
        path: its packets come much later and still alike, as from no queue."""
        if self._memory is None or node.t - self.nodes[0].t > FLOOR_SPAN_S:
            return inf
        known = self._memory.delay_floor_ns.get(node.burst.transport, inf)
        calm = max(node.unrest) < QUEUE_UNREST_NS
        return inf if calm and node.delay > known + NEAR_FLOOR_NS else known

    @staticmethod
    def _settle_changes(node: Node, last: Node) -> None:
        changed = abs(node.floor - last.floor) if node.burst.transport == last.burst.transport else 0.0
        node.changed = last.changed + (changed / 2) ** 2 * (changed > CHANGE_NS)

    def witnesses(self, node: Node) -> list[Witness]:
        """What one burst says of the offset.

        A delay beyond the smallest may be one direction's queue: its packets are more unlike than those
        of the other direction, which then tells the offset by itself, with its half of the smallest
        delay.
        """
        usual = TYPICAL_DELAY_NS if node.floor > QUEUED_NS and self._always_queued() else node.floor
        excess = node.delay - usual
        offset = node.offset - self.http_bias(node.burst)
        by_http = node.burst.transport == "http"
        software = HTTP_SD_NS if by_http and self.nodes[0].burst.transport == "udp" else 0.0
        variance = STAMP_SD_NS**2 + (EXCESS_SHARE * excess) ** 2 + software**2
        if excess < CLEAN_NS or node.probes < TELLING:
            return [Witness(1.0, offset, variance)]
        still = HTTP_STAMP_SD_NS if by_http else STAMP_SD_NS
        clean = still**2 + (CLEAN_SHARE * min(excess, CLEAN_MAX_NS)) ** 2
        home, out = (one + UNREST_NS for one in node.unrest)
        lopsided = abs(home**2 - out**2) / (home**2 + out**2)
        one_way = ONE_WAY_SHARE * max(0.01, lopsided)
        home_queues = one_way * home**2 / (home**2 + out**2)
        return [
            Witness(1 - one_way, offset, variance),
            Witness(home_queues, offset + excess / 2, clean),
            Witness(one_way - home_queues, offset - excess / 2, clean),
        ]

    def _always_queued(self) -> bool:
        """Whether long delays are a queue that was never absent, and not a long path: then the packets of one
        direction are much more unlike than those of the other."""
        home, out = (median(one) for one in zip(*(node.unrest for node in self.nodes), strict=True))
        return bool(max(home, out) > max(QUEUE_UNREST_NS, QUEUE_LOPSIDED * min(home, out)))

    def http_bias(self, burst: Burst) -> float:
        """What a midpoint by HTTP reads above one by UDP, ns; 0 while nobody knows."""
        if burst.transport != "http":
            return 0.0
        if len(self._http_ns) >= HTTP_PAIRS:
            return median(self._http_ns)
        return float((self._memory.http_bias_ns if self._memory else None) or 0)

    def constant_variance(self, node: Node) -> float:
        """ns^2 around one burst of what is the same in every burst, or for long."""
        smallest = self.delay_min
        queue = max(0.0, smallest - QUEUE_DELAY_NS)
        asymmetry = (ASYMMETRY_SHARE * (smallest - queue) + QUEUE_SHARE * queue) / 2
        excess = EXCESS_BIAS_SHARE * max(0.0, self._delay_near(node) - node.floor)
        handlers = 0.0
        if self.nodes[0].burst.transport == "http" and not self.http_bias(node.burst):
            handlers = HTTP_SD_NS
        wake = min(WAKE_SD_NS, QUEUE_SHARE * smallest / 2)
        return wake**2 + asymmetry**2 + excess**2 + handlers**2 + node.changed

    def _delay_near(self, node: Node) -> float:
        first = bisect_left(self.nodes, node.t - EXCESS_SPAN_S, key=_instant)
        last = bisect_right(self.nodes, node.t + EXCESS_SPAN_S, key=_instant)
        transport = node.burst.transport
        return min(one.delay for one in self.nodes[first:last] if one.burst.transport == transport)

    @property
    def http_bias_ns(self) -> int | None:
        """What calls by HTTP beside bursts by UDP have read too much; None before the first."""
        return round(median(self._http_ns)) if self._http_ns else None

    def floors_ns(self) -> dict[str, int]:
        """The smallest delay by transport, of this session alone."""
        transports = {node.burst.transport for node in self.nodes}
        return {
            one: round(min(node.delay for node in self.nodes if node.burst.transport == one))
            for one in sorted(transports)
        }


def _instant(node: Node) -> float:
    return node.t

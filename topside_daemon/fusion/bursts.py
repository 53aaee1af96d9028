"""What one burst of exchanges says by itself: brackets around the offset of the two clocks.

One exchange holds the truth between t3 - t4 and t2 - t1, because no delay is negative. The best bounds
of a burst, one from each direction, may come from different exchanges. No I/O, no clock. Everywhere
offset = Pi - topside in ns, positive: the Pi reads ahead.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from statistics import median
from struct import Struct as Layout

from msgspec import Struct
from msgspec.structs import astuple

from common.messages import Exchange, to_json

LONGEST_NS = 60_000_000_000  # no answer that late is waited for
BURST_SPAN_NS = 10_000_000_000  # one burst is over within this; a later one under its name is another
ALONE_NS = 1_000_000_000
FASTEST_PPM = 200  # no two crystals drift apart faster
JITTER_NS = 150_000  # that the quickest exchange of a burst may still hold
SLACK_NS = 50_000  # what two clocks may drift apart within a burst, and then some


_BRACKET = Layout("<4q")


class Bracket(Struct, frozen=True, gc=False):
    """The offset is not below low_ns at low_at_ns, and not above high_ns at high_at_ns (Pi time)."""

    low_ns: int
    low_at_ns: int
    high_ns: int
    high_at_ns: int

    @property
    def width_ns(self) -> int:
        """The delay that is left: of one exchange (t4-t1) - (t3-t2), of a burst its direction minima."""
        return self.high_ns - self.low_ns

    @property
    def offset_ns(self) -> int:
        """The midpoint; its error is at most half the width."""
        return (self.low_ns + self.high_ns) // 2

    def inside(self, floor_ns: int) -> tuple[int, int]:
        """Where the midpoint of an undelayed exchange may lie, if its delay is floor_ns."""
        margin = min(floor_ns, self.width_ns) // 2
        return self.low_ns + margin, self.high_ns - margin

    @property
    def pi_mono_ns(self) -> int:
        """The instant the midpoint speaks for, exactly, while the drift is steady."""
        return (self.low_at_ns + self.high_at_ns) // 2


class Burst(Struct, frozen=True, gc=False):
    """The usable exchanges of one burst over one transport, packed: a day has thousands."""

    packed: bytes  # the brackets
    transport: str
    call: Bracket | None = None  # by HTTP beside a burst by UDP: evidence of HTTP's bias

    @classmethod
    def of(cls, brackets: Iterable[Bracket], transport: str, call: Bracket | None = None) -> "Burst":
        return cls(b"".join(_BRACKET.pack(*astuple(one)) for one in brackets), transport, call)

    @property
    def brackets(self) -> list[Bracket]:
        return [Bracket(*one) for one in _BRACKET.iter_unpack(self.packed)]


def delay_ns(exchange: Exchange) -> int:
    """(t4-t1) - (t3-t2) of a whole exchange, in ns; `refusal` says whether it is one."""
    return bracket_of(exchange).width_ns


def offset_ns(exchange: Exchange) -> int:
    """((t2-t1) + (t3-t4)) / 2 of a whole exchange, in ns, rounded down."""
    return bracket_of(exchange).offset_ns


def pi_mono_ns(exchange: Exchange) -> int:
    """The instant on the Pi's clock that a whole exchange speaks for: halfway from t2 to t3."""
    return bracket_of(exchange).pi_mono_ns


def bracket_of(exchange: Exchange) -> Bracket:
    """Both inequalities of a whole exchange.

    Raises:
        ValueError: it has no answer.
    """
    t2, t3, t4 = exchange.t2_ns, exchange.t3_ns, exchange.t4_ns
    if t2 is None or t3 is None or t4 is None:
        raise ValueError("the exchange has no answer")
    return Bracket(low_ns=t3 - t4, low_at_ns=t3, high_ns=t2 - exchange.t1_ns, high_at_ns=t2)


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
    if bracket_of(exchange).width_ns < 0:
        return "negative delay"
    return None


def usable(exchanges: Iterable[Exchange], refused: Counter[str]) -> Burst | None:
    """One burst without what cannot be used; None if nothing is left.

    By UDP where there is an answer by UDP, because HTTP's handlers add a bias of their own. Where
    brackets exclude each other, the largest set with a common point is believed if it is the
    majority; what is refused is counted by its reason in *refused*. Of what can be true, a minority
    that no quick packet confirms is left out.
    """
    whole: list[Exchange] = []
    for exchange in exchanges:
        reason = refusal(exchange)
        if reason is None:
            whole.append(exchange)
        else:
            refused[reason] += 1
    udp = [exchange for exchange in whole if exchange.transport == "udp"]
    brackets = [bracket_of(exchange) for exchange in udp or whole]
    possible = _majority(brackets, 0, SLACK_NS)
    if len(possible) < len(brackets):
        refused["contradicts its burst"] += len(brackets) - len(possible)
    floor_ns = min((one.width_ns for one in possible), default=0)
    agreeing = _majority(possible, floor_ns, SLACK_NS + JITTER_NS + floor_ns // 20) or possible
    if not agreeing:
        return None
    http = [bracket_of(exchange) for exchange in whole if exchange.transport == "http"] if udp else []
    return Burst.of(agreeing, "udp" if udp else "http", http[0] if http else None)


def _majority(brackets: Sequence[Bracket], floor_ns: int, slack_ns: int) -> list[Bracket]:
    told = common_point(brackets, floor_ns, slack_ns)
    return told if 2 * len(told) > len(brackets) else []


def common_point(brackets: Sequence[Bracket], floor_ns: int, slack_ns: int) -> list[Bracket]:
    """The largest set of brackets that some one midpoint fits, in their order; O(n log n).

    floor_ns: no delay is below it, half of it in each direction, so that the midpoint of the quickest
    exchange lies this far inside every bracket.
    """
    inner = [(one, *one.inside(floor_ns)) for one in brackets]
    edges = [(low, 0) for _, low, _ in inner] + [(high + slack_ns, 1) for _, _, high in inner]
    depth = deepest = point = 0
    for value, closing in sorted(edges):
        depth += -1 if closing else 1
        if depth > deepest:
            deepest, point = depth, value
    return [one for one, low, high in inner if low <= point <= high + slack_ns]


def tightest(brackets: Sequence[Bracket]) -> Bracket:
    """The highest lower and the lowest upper bound: each direction's quickest packet."""
    low = max(brackets, key=lambda one: one.low_ns)
    high = min(brackets, key=lambda one: one.high_ns)
    return Bracket(low.low_ns, low.low_at_ns, high.high_ns, high.high_at_ns)


def unrest(brackets: Sequence[Bracket]) -> tuple[float, float]:
    """How unlike the packets of one burst are, on the way home and out: median to quickest, ns."""
    lows, highs = [one.low_ns for one in brackets], [one.high_ns for one in brackets]
    return median(max(lows) - low for low in lows), median(high - min(highs) for high in highs)


def may_follow(before: Burst, after: Burst) -> bool:
    """Two bursts can both be true of two crystals: no drift beyond 200 ppm lies between them."""
    one, other = tightest(before.brackets), tightest(after.brackets)
    elapsed_ns = abs(other.pi_mono_ns - one.pi_mono_ns)
    allowed_ns = (one.width_ns + other.width_ns) / 2 + SLACK_NS + elapsed_ns * FASTEST_PPM / 1_000_000
    return abs(other.offset_ns - one.offset_ns) <= allowed_ns


def group_bursts(exchanges: Iterable[Exchange]) -> list[list[Exchange]]:
    """Exchanges as bursts in the order of their time, whatever order and how often they are given.

    A burst is what shares (sync_id, kind, sequence) and both boots within ten seconds, or follows within a
    second and is alone under its name. Stamps that are told again under another name are no news.
    """
    every = list(exchanges)
    began: dict[str, int] = {}  # by wall time, the only clock that survives a boot
    for one in every:
        began[one.topside_boot_id] = min(
            one.topside_utc_ns, began.get(one.topside_boot_id, one.topside_utc_ns)
        )
    every.sort(key=lambda one: (began[one.topside_boot_id], one.topside_boot_id, one.t1_ns))
    return list(bursts_in_order(every))


def bursts_in_order(exchanges: Iterable[Exchange]) -> Iterator[list[Exchange]]:
    """The same of exchanges that are in the order of their boots and t1 already, with no more in memory than
    seconds of them."""
    return _joined(_named(_settled(exchanges)))


def _settled(exchanges: Iterable[Exchange]) -> Iterator[Exchange]:
    """What was sent at one instant in an order of its own, and once."""
    for _, group in groupby(exchanges, key=lambda one: (one.topside_boot_id, one.t1_ns)):
        together = list(group)
        if len(together) > 1:
            together.sort(key=to_json)
        told: set[tuple[int | None, int | None, int]] = set()
        for place, one in enumerate(together):
            if one in together[:place]:
                continue
            if one.t4_ns is not None:
                if (stamps := (one.t2_ns, one.t3_ns, one.t4_ns)) in told:
                    continue
                told.add(stamps)
            yield one


_Name = tuple[str, str | None, str, str, int]


def _named(exchanges: Iterable[Exchange]) -> Iterator[list[Exchange]]:
    """What shares a name within the span of a burst, in the order of the first of each."""
    latest: dict[_Name, list[Exchange]] = {}
    waiting: deque[tuple[_Name, list[Exchange]]] = deque()
    for one in exchanges:
        while waiting and _is_past(waiting[0][1], one):
            name, burst = waiting.popleft()
            if latest[name] is burst:
                del latest[name]
            yield burst
        name = (one.topside_boot_id, one.pi_boot_id, one.sync_id, one.kind, one.sequence)
        if name not in latest:
            latest[name] = []
            waiting.append((name, latest[name]))
        latest[name].append(one)
    yield from (burst for _, burst in waiting)


def _joined(bursts: Iterable[list[Exchange]]) -> Iterator[list[Exchange]]:
    """Recordings that name every exchange differently: what is alone under its name joins its neighbours."""
    alone: dict[tuple[str, str | None], list[Exchange]] = {}
    waiting: deque[list[Exchange]] = deque()
    for burst in bursts:
        one, boots = burst[0], (burst[0].topside_boot_id, burst[0].pi_boot_id)
        while waiting and _is_past(waiting[0], one):
            yield waiting.popleft()
        run = alone.get(boots)
        near = run and one.t1_ns - run[-1].t1_ns < ALONE_NS and one.t1_ns - run[0].t1_ns <= BURST_SPAN_NS
        if len(burst) == 1 and run and near:
            run.append(one)
            continue
        waiting.append(burst)
        if len(burst) == 1:
            alone[boots] = burst
    yield from waiting


def _is_past(burst: list[Exchange], now: Exchange) -> bool:
    """Nothing can join it any more."""
    first = burst[0]
    return first.topside_boot_id != now.topside_boot_id or now.t1_ns - first.t1_ns > BURST_SPAN_NS

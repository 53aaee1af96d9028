"""Who belongs to whom: `matching` for whole blocks."""

from collections.abc import Iterable

import numpy as np

from topside_daemon.fusion.columns import Column, Pairing, column
from topside_daemon.fusion.kernel.plain.arrays import Flags, Ints, ints, mark
from topside_daemon.fusion.matching import Decision
from topside_daemon.fusion.matching import Matcher as OneByOne


class Matcher:
    """See `Kernel.matcher`. Rows whose windows meet are a chain. Chains of one row are decided all at once,
    and so are those in which both sensors keep one pace; the others go through `matching`, row by row."""

    def __init__(self, tolerance_ns: int) -> None:
        self._tolerance_ns = tolerance_ns
        self._open = self._deck = ints(column(0))  # rows of the chain that may go on, and what they may meet
        self._long: _Chain | None = None  # or that chain, where it has become too long
        self._taken = 0  # rows before these
        self.needs = 0
        self.pairing = Pairing()

    def push(self, times: Column, surface: Column, first: int) -> None:
        at, deck = np.concatenate((self._open, ints(times))), ints(surface)
        self.pairing.hold(self._taken + len(at), first + len(deck))
        low = np.searchsorted(deck, at - self._tolerance_ns, "left")
        high = np.searchsorted(deck, at + self._tolerance_ns, "right")
        apart = np.ones(len(at), np.bool_)
        apart[1:] = high[:-1] <= low[1:]
        if self._long is not None:
            apart[0] = self._long.fed <= first + low[0]
            begins = int(np.argmax(apart)) if apart.any() else len(at)
            self._feed(self._long, at[:begins], deck, high, first)
            if begins == len(at):
                self._taken, self.needs = self._taken + len(at), first + int(low[-1])
                return
            self._mark_pairs(self._long.finish())
            self._long, self._taken = None, self._taken + begins
            at, low, high, apart = at[begins:], low[begins:], high[begins:], apart[begins:]
        starts = np.flatnonzero(apart)
        self._match(at[: starts[-1]], deck, low, high, starts, first)
        self._taken += int(starts[-1])
        self._open, self.needs = at[starts[-1] :].copy(), first + int(low[starts[-1]])
        self._deck = deck[low[starts[-1]] :].copy()
        if len(self._open) > CHAIN_ROWS:
            self._long = _Chain(self._tolerance_ns, self._taken, self.needs)
            self._feed(self._long, self._open, deck, high[starts[-1] :], first)
            self._taken, self._open = self._taken + len(self._open), self._open[:0]

    def _match(self, at: Ints, deck: Ints, low: Ints, high: Ints, starts: Ints, first: int) -> None:
        """All of some chains; *starts*: of each, and where the next one would begin."""
        lengths = np.diff(starts)
        starts = starts[:-1]
        alone = starts[(lengths == 1) & (low[starts] < high[starts])]
        self._mark(alone, _nearest(at[alone], deck, low[alone]), first)
        chain = np.repeat(np.arange(len(starts)), lengths)
        low, high, number = low[: len(at)], high[: len(at)], np.arange(len(at))
        paced, lowest = lengths > 1, low
        if len(starts):
            lowest = np.minimum.reduceat(low - number, starts)[chain] + number  # one more with every row
            paced &= np.logical_and.reduceat((low <= lowest + 1) & (high <= lowest + 2), starts)
        rows = np.flatnonzero(paced[chain])
        ladder = self._tolerance_ns * (len(rows) + 1) < _WIDEST // (len(rows) + 1)
        if len(rows) and ladder:
            window = (lowest[rows], low[rows], high[rows])
            self._mark(
                *_paced(at[rows], deck, *window, np.isin(rows, starts), self._tolerance_ns), first, rows
            )
        for one in np.flatnonzero((lengths > 1) & ~(paced & ladder)).tolist():
            rest = slice(starts[one], starts[one] + lengths[one])
            chained = _Chain(
                self._tolerance_ns, self._taken + int(starts[one]), first + int(low[starts[one]])
            )
            self._feed(chained, at[rest], deck, high[rest], first)
            self._mark_pairs(chained.finish())

    def _feed(self, chain: "_Chain", at: Ints, deck: Ints, high: Ints, first: int) -> None:
        if len(at):
            surface = deck[chain.fed - first : max(first + int(high[len(at) - 1]), chain.fed) - first]
            self._mark_pairs(chain.feed(at.tolist(), surface.tolist()))

    def _mark_pairs(self, pairs: list[tuple[int, int]]) -> None:
        if pairs:
            inwater, surface = np.array(pairs).T
            mark(self.pairing.inwater, inwater)
            mark(self.pairing.surface, surface)

    def _mark(self, inwater: Ints, surface: Ints, first: int, rows: Ints | None = None) -> None:
        mark(self.pairing.inwater, self._taken + (inwater if rows is None else rows[inwater]))
        mark(self.pairing.surface, first + surface)

    def finish(self) -> Pairing:
        if self._long is not None:
            self._mark_pairs(self._long.finish())
        if len(self._open):
            low = np.searchsorted(self._deck, self._open - self._tolerance_ns, "left")
            high = np.searchsorted(self._deck, self._open + self._tolerance_ns, "right")
            self._match(self._open, self._deck, low, high, np.array([0, len(self._open)]), self.needs)
        return self.pairing


CHAIN_ROWS = 1 << 16  # of one chain that are kept until its end
_WIDEST = 1 << 60
_STRETCH = 64  # rows


class _Chain:
    """Rows that hang together; `fed`: the number of the first surface reading that is not in it."""

    def __init__(self, tolerance_ns: int, inwater: int, surface: int) -> None:
        self._matcher = OneByOne(tolerance_ns)
        self._inwater, self._surface = inwater, surface
        self._tolerance_ns = tolerance_ns
        self.fed = surface

    def feed(self, times: list[int], surface: list[int]) -> list[tuple[int, int]]:
        """The next rows, and all surface readings up to the last one's reach; what is decided by now."""
        for time_ns in times:
            self._matcher.add_inwater(time_ns)
        for time_ns in surface:
            self._matcher.add_surface(time_ns)
        self.fed += len(surface)
        return self._numbered(self._matcher.advance(times[-1], times[-1] + self._tolerance_ns + 1))

    def finish(self) -> list[tuple[int, int]]:
        return self._numbered(self._matcher.finish())

    def _numbered(self, pairings: Iterable[Decision]) -> list[tuple[int, int]]:
        return [(self._inwater + i, self._surface + j) for i, j in pairings if j is not None]


def _paced(
    at: Ints, deck: Ints, lowest: Ints, low: Ints, high: Ints, begins: Flags, tolerance_ns: int
) -> tuple[Ints, Ints]:
    """Which rows of chains of one pace have a partner, and which surface reading that is.

    Of two surface readings, *lowest* and the next, a row can only take the first while its history has not.
    So there are two histories, free and ahead, and a row is a matrix of 2 x 2 under (max, +) that leads from
    their scores to the next ones. All products up to each row come in logarithmically many steps (Hillis and
    Steele, 1986); the choices are then those of `matching`. Scores are counted from a pair for every row.
    """
    lost = 1 << (tolerance_ns * (len(at) + 1)).bit_length()
    last = len(deck) - 1
    first_there, second_there = (low <= lowest) & (high > lowest), high > lowest + 1
    first = np.where(first_there, -np.abs(at - deck[np.minimum(lowest, last)]), -_WIDEST)
    second = np.where(second_there, -np.abs(at - deck[np.minimum(lowest + 1, last)]), -_WIDEST)
    free_free = np.maximum(first, -lost)
    free_ahead = np.where(begins, free_free, -lost)  # the best history of a chain is where the next begins
    matrices = np.stack((free_free, free_ahead, second, second)).reshape(2, 2, -1)
    free, ahead = _products(matrices)[:, 0]
    free, ahead = np.concatenate(([0], free)), np.concatenate(([-_WIDEST], ahead))
    best = np.maximum(free, ahead)
    free_before = np.where(begins, best[:-1], free[:-1])
    is_ahead = ~begins & (ahead[:-1] > free[:-1])
    stays = np.where(first_there, ahead[:-1] - lost >= free_before + first, True)
    from_ahead = is_ahead & stays  # to be free without a partner
    takes_first = first_there & ~from_ahead
    ends = np.append(begins[1:], True)
    final = ahead[1:] > free[1:]
    at_free = np.where(ends, final, np.append(from_ahead[1:], False))
    at_ahead = np.where(ends, final, np.append(is_ahead[1:], False))
    ahead_then = _composed(at_free, at_ahead)
    paired = np.flatnonzero(ahead_then | takes_first)
    return paired, lowest[paired] + ahead_then[paired]


def _products(matrices: Ints) -> Ints:
    """The product of the matrices, (2, 2, rows), up to each: within stretches, and then each stretch behind
    all before it. Half as many steps as over all rows at once."""
    rows = matrices.shape[2]
    stretches = -(-rows // _STRETCH)
    found = np.zeros((2, 2, stretches * _STRETCH), np.int64)
    found[..., :rows] = matrices
    found = found.reshape(2, 2, stretches, _STRETCH)
    reach = 1
    while reach < min(rows, _STRETCH):
        found[..., reach:] = _times(found[..., reach:], found[..., :-reach])
        reach *= 2
    if stretches > 1:
        before = _products(found[..., -1])[..., :-1]
        found[..., 1:, :] = _times(found[..., 1:, :], before[..., None])
    return found.reshape(2, 2, -1)[..., :rows]


def _times(later: Ints, earlier: Ints) -> Ints:
    found: Ints = np.maximum(later[:, :1] + earlier[:1], later[:, 1:] + earlier[1:])
    return np.maximum(found, -_WIDEST, out=found)


def _composed(if_false: Flags, if_true: Flags) -> Flags:
    """What becomes of each place, whose value follows from that of the next one, back from where it is
    settled."""
    reach = 1
    while reach < len(if_false) and (if_false != if_true).any():
        later_false, later_true = if_false[reach:], if_true[reach:]
        new_false = np.where(later_false, if_true[:-reach], if_false[:-reach])
        new_true = np.where(later_true, if_true[:-reach], if_false[:-reach])
        if_false = np.concatenate((new_false, if_false[-reach:]))
        if_true = np.concatenate((new_true, if_true[-reach:]))
        reach *= 2
    return if_false


def _nearest(at: Ints, deck: Ints, low: Ints) -> Ints:
    """Index of the nearest reading from low on, of equally near ones the first; there is one."""
    right = np.searchsorted(deck, at, "left")
    before = deck[np.maximum(right - 1, 0)]
    left = np.searchsorted(deck, before, "left")
    behind = deck[np.minimum(right, len(deck) - 1)]
    return np.where((right > low) & ((right == len(deck)) | (at - before <= behind - at)), left, right)

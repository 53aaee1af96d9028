"""Which numbers have been seen. No I/O."""

from bisect import bisect_right


class SeqSet:
    """A set of seqs that costs memory by its holes, not by its size."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return sum(self._ends) - sum(self._starts)

    @property
    def highest(self) -> int:
        """-1 of none."""
        return self._ends[-1] - 1 if self._ends else -1

    def add(self, number: int) -> bool:
        """False if it was there."""
        at = bisect_right(self._starts, number)
        if at and number < self._ends[at - 1]:
            return False
        joins_left = bool(at) and self._ends[at - 1] == number
        joins_right = at < len(self._starts) and self._starts[at] == number + 1
        if joins_left and joins_right:
            self._ends[at - 1] = self._ends.pop(at)
            del self._starts[at]
        elif joins_left:
            self._ends[at - 1] = number + 1
        elif joins_right:
            self._starts[at] = number
        else:
            self._starts.insert(at, number)
            self._ends.insert(at, number + 1)
        return True

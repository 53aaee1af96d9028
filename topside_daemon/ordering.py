"""The in-water stream made whole: live readings in order, holes filled from the mirrored files."""

from collections.abc import Callable

from common.messages import Reading

AHEAD_MAX = 20_000  # live readings kept while an earlier one is missing; the files have the rest
JUMP_MAX = 1_000_000  # no recording skips so many numbers: such a reading is not of it


class Ordering:
    """Passes every reading on once, in order of seq.

    The bus may lose, repeat and reorder; the files never do, so a number that the files skip does
    not exist and is counted as missing.
    """

    def __init__(self, next_seq: int, deliver: Callable[[list[Reading]], None]) -> None:
        self.next_seq = next_seq
        self.missing = 0  # numbers that the Pi's files do not have
        self.repaired = 0  # readings that the bus lost and the files gave back
        self._deliver = deliver
        self._ahead: dict[int, Reading] = {}

    @property
    def waiting(self) -> bool:
        """A reading is missing before one that is here: a pull will fill the hole."""
        return bool(self._ahead)

    def from_bus(self, reading: Reading) -> None:
        """Take a live reading, in any order, any number of times."""
        if not self.next_seq <= reading.seq < self.next_seq + JUMP_MAX or len(self._ahead) >= AHEAD_MAX:
            return
        self._ahead[reading.seq] = reading
        self._pass_on([])

    def from_files(self, readings: list[Reading]) -> None:
        """Take rows as the files have them: in order, from any point on."""
        ready: list[Reading] = []
        for reading in readings:
            if reading.seq < self.next_seq:
                continue
            self.missing += reading.seq - self.next_seq
            if self._ahead.pop(reading.seq, None) is None:
                self.repaired += 1
            ready.append(reading)
            self.next_seq = reading.seq + 1
        for seq in [seq for seq in self._ahead if seq < self.next_seq]:
            del self._ahead[seq]
        self._pass_on(ready)

    def _pass_on(self, ready: list[Reading]) -> None:
        while (reading := self._ahead.pop(self.next_seq, None)) is not None:
            ready.append(reading)
            self.next_seq += 1
        if ready:
            self._deliver(ready)

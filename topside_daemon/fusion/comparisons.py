"""`exchanges.jsonl`: every comparison of the two clocks, read once if it is in order, and never all in
memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from common.messages import UNDECODABLE, Exchange
from topside_daemon.fusion.bursts import bursts_in_order, group_bursts
from topside_daemon.fusion.intake import WIDEST_NS, Reject
from topside_daemon.fusion.timeline import Boots, Timeline

EXCHANGES_FILE = "exchanges.jsonl"


class Comparisons:
    """Those of one session; none where there is no file.

    What is known once they were given to a timeline: rejects, lines that are no exchange; boots, which runs
    of which machine they tell of; latest_utc_ns, when the last was made, 0 without one.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EXCHANGES_FILE
        self.rejects: list[Reject] = []
        self.boots = Boots()
        self.latest_utc_ns = 0
        self._in_order = True

    def __iter__(self) -> Iterator[Exchange]:
        """All of them, in the order of the file."""
        return self._read([])

    def give_to(self, begin: Callable[[], Timeline]) -> Timeline:
        """A timeline that has taken all of them, as bursts in the order of time.

        Args:
            begin: makes one that has taken none.

        Raises:
            OSError: the file cannot be read.
        """
        timeline = begin()
        for burst in bursts_in_order(self._watched()):
            timeline.add_burst(burst)
        if not self._in_order:
            timeline = begin()
            for burst in group_bursts(self):
                timeline.add_burst(burst)
        return timeline

    def _watched(self) -> Iterator[Exchange]:
        """The same, with an eye to what they tell of and whether their order is that of time."""
        boot_id, sent_ns = "", 0
        for exchange in self._read(self.rejects):
            if exchange.topside_boot_id == boot_id:
                self._in_order &= exchange.t1_ns >= sent_ns
            else:
                self._in_order &= exchange.topside_boot_id not in self.boots.topside
            boot_id, sent_ns = exchange.topside_boot_id, exchange.t1_ns
            self.boots.add(exchange)
            self.latest_utc_ns = max(self.latest_utc_ns, exchange.topside_utc_ns)
            yield exchange
        began = [(boot.began_ns, boot_id) for boot_id, boot in self.boots.topside.items()]
        self._in_order &= began == sorted(began)

    def _read(self, rejects: list[Reject]) -> Iterator[Exchange]:
        if not self._path.is_file():
            return
        decode = msgspec.json.Decoder(Exchange).decode
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    exchange = decode(line)
                except UNDECODABLE as error:
                    if line.strip():
                        rejects.append(Reject(EXCHANGES_FILE, number, str(error)))
                    continue
                if all(at_ns is None or abs(at_ns) < WIDEST_NS for at_ns in _instants(exchange)):
                    yield exchange
                else:
                    rejects.append(Reject(EXCHANGES_FILE, number, "an instant that is no clock's"))


def _instants(exchange: Exchange) -> tuple[int | None, ...]:
    one = exchange
    return one.t1_ns, one.t2_ns, one.t3_ns, one.t4_ns, one.topside_utc_ns, one.pi_utc_ns

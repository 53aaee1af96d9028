"""`exchanges.jsonl`: every comparison of the two clocks, as often read as needed and never all in memory."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from common.messages import UNDECODABLE, Exchange
from topside_daemon.fusion.bursts import bursts_in_order, group_bursts
from topside_daemon.fusion.intake import Reject
from topside_daemon.fusion.timeline import Boots

EXCHANGES_FILE = "exchanges.jsonl"


class Comparisons:
    """Those of one session; none where there is no file. rejects: lines that are no exchange. boots: which
    runs of which machine they tell of. latest_utc_ns: when the last was made, 0 without one."""

    def __init__(self, folder: Path) -> None:
        """Read it once.

        Raises:
            OSError: it cannot be read.
        """
        self._path = folder / EXCHANGES_FILE
        self.rejects: list[Reject] = []
        self.boots = Boots()
        self.latest_utc_ns = 0
        self._in_order = True
        boot_id, sent_ns = "", 0
        for exchange in self._read(self.rejects):
            if exchange.topside_boot_id == boot_id:
                self._in_order &= exchange.t1_ns >= sent_ns
            else:
                self._in_order &= exchange.topside_boot_id not in self.boots.topside
            boot_id, sent_ns = exchange.topside_boot_id, exchange.t1_ns
            self.boots.add(exchange)
            self.latest_utc_ns = max(self.latest_utc_ns, exchange.topside_utc_ns)
        began = [(boot.began_ns, boot_id) for boot_id, boot in self.boots.topside.items()]
        self._in_order &= began == sorted(began)

    def _read(self, rejects: list[Reject]) -> Iterator[Exchange]:
        if not self._path.is_file():
            return
        decode = msgspec.json.Decoder(Exchange).decode
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield decode(line)
                except UNDECODABLE as error:
                    if line.strip():
                        rejects.append(Reject(EXCHANGES_FILE, number, str(error)))

    def __iter__(self) -> Iterator[Exchange]:
        """All of them, in the order of the file."""
        return self._read([])

    def bursts(self) -> Iterator[list[Exchange]]:
        """All of them as bursts, in the order of time."""
        return bursts_in_order(self) if self._in_order else iter(group_bursts(self))

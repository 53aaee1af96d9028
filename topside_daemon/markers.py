"""Markers: one instant labelled in both records, each a burst of clock exchanges.

The topside asks; the Pi is told by HTTP, idempotently. A marker that the Pi cannot take is still
written topside, and the failed comparison is recorded with its reason.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from common.clock import Clock
from common.files import Lines, read_lines
from common.messages import Exchange, Kind, Marker, format_utc
from common.recorder import Recorder
from topside_daemon.pi import Pi, PiError, failed_exchange

log = logging.getLogger(__name__)


class Marked(Struct, frozen=True):
    """What became of a marker."""

    kind: Kind
    sequence: int
    timestamp: str
    on_pi: bool
    detail: str


class MarkerWriter:
    """Writes the markers of one session, and every exchange into `exchanges.jsonl`."""

    def __init__(
        self,
        folder: Path,
        sync_id: str,
        clock: Clock,
        on_burst: Callable[[list[Exchange]], None],
    ) -> None:
        self._sync_id = sync_id
        self._clock = clock
        self._on_burst = on_burst
        markers: list[Marker] = list(read_lines(folder / "markers.jsonl", Marker))
        exchanges: list[Exchange] = list(read_lines(folder / "exchanges.jsonl", Exchange))
        used = [one.sequence for one in markers if one.kind == "PERIODIC"]
        used += [one.sequence for one in exchanges if one.kind == "PERIODIC"]
        self._next_sequence = max(used, default=0) + 1
        self.exchanges = len(exchanges)
        self.started = any(marker.kind == "START" for marker in markers)  # on every side there is
        if exchanges:
            on_burst(exchanges)
        self._marker_file = Lines(folder / "markers.jsonl")
        self._exchange_file = Lines(folder / "exchanges.jsonl")

    async def mark(
        self,
        kind: Kind,
        pi: Pi | None,
        session_id: str,
        surface: Recorder | None,
        probes: int,
        label: str | None,
    ) -> Marked:
        """Compare the clocks and write one marker on both sides.

        Args:
            pi: None when there is no in-water sensor.
            surface: None when there is no surface sensor.
        """
        sequence = 0
        if kind == "PERIODIC":
            sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        asked = self._clock.stamp()
        marker = Marker(
            sync_id=self._sync_id,
            kind=kind,
            sequence=sequence,
            epoch=0,
            mono_ns=asked.mono_ns,
            utc_ns=asked.utc_ns,
            after_seq=-1,
            t1_ns=asked.mono_ns,
            label=label,
        )
        if surface is not None:
            marker, _ = await surface.mark(marker)
        try:
            detail = "" if pi is None else await self._tell(pi, session_id, marker, probes)
            if not detail or kind != "START":  # a START is tried again until both sides have it
                await asyncio.to_thread(self._marker_file.append, marker, sync=True)
                self.started |= kind == "START"
        except OSError as error:
            detail = f"the marker is not in the session's files: {error.strerror}"
        return Marked(kind, sequence, format_utc(marker.utc_ns), pi is not None and not detail, detail)

    async def _tell(self, pi: Pi, session_id: str, marker: Marker, probes: int) -> str:
        """Compare clocks and write the Pi's half; returns why that failed, "" if it did not."""
        try:
            await self._keep(await pi.compare(self._sync_id, marker.kind, marker.sequence, probes))
            await self._keep([await pi.mark(session_id, marker)])
        except PiError as error:
            await self._keep([failed_exchange(self._clock, marker, f"refused: {error}")])
            return str(error)
        return ""

    async def _keep(self, burst: list[Exchange]) -> None:
        self.exchanges += len(burst)
        await asyncio.to_thread(self._exchange_file.append, *burst, sync=True)
        self._on_burst(burst)

    def close(self) -> None:
        self._marker_file.close()
        self._exchange_file.close()

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
from common.messages import Exchange, Kind, Marker
from common.recorder import Recorder, RecordingEnded
from common.rows import format_utc
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
    ) -> None:
        self._sync_id = sync_id
        self._clock = clock
        markers: list[Marker] = list(read_lines(folder / "markers.jsonl", Marker))
        exchanges: list[Exchange] = list(read_lines(folder / "exchanges.jsonl", Exchange))
        used = [one.sequence for one in markers if one.kind == "PERIODIC"]
        used += [one.sequence for one in exchanges if one.kind == "PERIODIC"]
        self._next_sequence = max(used, default=0) + 1
        self.exchanges = len(exchanges)
        self.started = any(marker.kind == "START" for marker in markers)  # on every side there is
        self._known = exchanges  # until somebody watches
        self._marker_file = Lines(folder / "markers.jsonl")
        self._exchange_file = Lines(folder / "exchanges.jsonl")

    def watch(self, on_burst: Callable[[list[Exchange]], None]) -> None:
        """Tell *on_burst* what earlier runs have kept, and every burst from now on."""
        self._on_burst = on_burst
        if self._known:
            on_burst(self._known)
        self._known = []

    async def mark(
        self,
        kind: Kind,
        pi: Pi | None,
        session_id: str,
        surface: Recorder | None,
        probes: int,
        label: str | None,
    ) -> Marked:
        """Compare the clocks, then write one marker on both sides, right after one another.

        Args:
            pi: None when there is no in-water sensor.
            surface: None when there is no surface sensor.
        """
        sequence = 0
        if kind == "PERIODIC":
            sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        try:
            detail = await self._compare(pi, kind, sequence, probes)
            marker = self._here(kind, sequence, label)
            on_surface, on_pi = await asyncio.gather(
                _on_surface(surface, marker), self._on_pi(None if detail else pi, session_id, marker)
            )
            detail = detail or on_pi or on_surface
            if not detail or kind != "START":  # a START is tried again until both sides have it
                await asyncio.to_thread(self._marker_file.append, marker, sync=True)
                self.started |= kind == "START"
        except OSError as error:
            marker = self._here(kind, sequence, label)
            detail = f"the marker is not in the session's files: {error.strerror}"
        return Marked(kind, sequence, format_utc(marker.utc_ns), pi is not None and not detail, detail)

    async def begin_surface(self, surface: Recorder) -> None:
        """Write the surface's START though the Pi is not there yet; its own half follows when it is."""
        await _on_surface(surface, self._here("START", 0, None))

    def _here(self, kind: Kind, sequence: int, label: str | None) -> Marker:
        now = self._clock.stamp()
        return Marker(
            sync_id=self._sync_id,
            kind=kind,
            sequence=sequence,
            epoch=0,
            mono_ns=now.mono_ns,
            utc_ns=now.utc_ns,
            after_seq=-1,
            t1_ns=now.mono_ns,
            label=label,
        )

    async def _compare(self, pi: Pi | None, kind: Kind, sequence: int, probes: int) -> str:
        """One burst of exchanges, kept; returns why it failed, "" if it did not."""
        if pi is None:
            return ""
        try:
            await self._keep(await pi.compare(self._sync_id, kind, sequence, probes))
        except PiError as error:
            failed = failed_exchange(self._clock, self._here(kind, sequence, None), f"refused: {error}")
            await self._keep([failed])
            return str(error)
        return ""

    async def _on_pi(self, pi: Pi | None, session_id: str, marker: Marker) -> str:
        if pi is None:
            return ""
        try:
            await self._keep([await pi.mark(session_id, marker)])
        except PiError as error:
            return str(error)
        return ""

    async def _keep(self, burst: list[Exchange]) -> None:
        self.exchanges += len(burst)
        await asyncio.to_thread(self._exchange_file.append, *burst, sync=True)
        self._on_burst(burst)

    def close(self) -> None:
        self._marker_file.close()
        self._exchange_file.close()


async def _on_surface(surface: Recorder | None, marker: Marker) -> str:
    if surface is not None:
        try:
            await surface.mark(marker)
        except RecordingEnded as error:
            return str(error)
    return ""

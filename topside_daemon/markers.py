"""Markers: one instant labelled in both records, each a burst of clock exchanges; and bursts between them.

The topside asks; the Pi is told by HTTP, idempotently. A marker that the Pi cannot take is still
written topside, and the failed comparison is recorded with its reason.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from common.clock import Clock
from common.files import Lines, read_lines
from common.messages import Exchange, ExchangeKind, Kind, Marker
from common.recorder import Recorder, RecordingEnded
from common.rows import format_utc
from topside_daemon.pi import NotTaken, Pi, PiError

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
        self._last: Counter[str] = Counter()  # sequence by kind
        kept: list[Marker | Exchange] = [*markers, *exchanges]
        for one in kept:
            self._last[one.kind] = max(self._last[one.kind], one.sequence)
        self.exchanges = len(exchanges)
        self.pi_boot_id = next((one.pi_boot_id for one in reversed(exchanges) if one.pi_boot_id), None)
        starts = [marker.mono_ns for marker in markers if marker.kind == "START"]
        self.started = bool(starts)  # on every side there is
        boots = {one.topside_boot_id for one in exchanges if one.kind == "START"}
        # The beat goes on across a restart of this daemon, not across one of this machine.
        self.started_ns = starts[0] if starts and clock.boot_id in boots else clock.mono_ns()
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
        """Compare the clocks, then write one marker on both sides, right after one another; a label is
        written first, because somebody has just said it.

        Args:
            pi: None when there is no in-water sensor.
            surface: None when there is no surface sensor.
        """
        sequence = self._next(kind) if kind == "PERIODIC" else 0
        told: list[Exchange] = []
        try:
            detail = "" if label else await self._compare(told, pi, kind, sequence, probes)
            marker = self._here(kind, sequence, label)
            on_surface, (on_pi, never) = await asyncio.gather(
                _on_surface(surface, marker), self._on_pi(told, None if detail else pi, session_id, marker)
            )
            taken = pi is not None and not detail and not on_pi
            if label:
                detail = await self._compare(told, pi, kind, sequence, probes)
            again = bool(detail or on_surface or (on_pi and not never))
            detail = detail or on_pi or on_surface
            if not again or kind != "START":  # a START is tried again until both sides have it
                await asyncio.to_thread(self._marker_file.append, marker, sync=True)
                if kind == "START":
                    self.started, self.started_ns = True, marker.mono_ns
        except OSError as error:
            taken = False
            marker = self._here(kind, sequence, label)
            detail = f"the marker is not in the session's files: {error.strerror}"
        if told:  # all at once, as it will be read from the file
            self._on_burst(told)
        return Marked(kind, sequence, format_utc(marker.utc_ns), taken, detail)

    async def probe(self, pi: Pi, probes: int) -> None:
        """Compare the clocks between markers; neither record says anything of it.

        Raises:
            OSError: the disk refuses the exchanges.
        """
        told: list[Exchange] = []
        await self._compare(told, pi, "PROBE", self._next("PROBE"), probes)
        if told:
            self._on_burst(told)

    def _next(self, kind: str) -> int:
        self._last[kind] += 1
        return self._last[kind]

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

    async def _compare(
        self, told: list[Exchange], pi: Pi | None, kind: ExchangeKind, sequence: int, probes: int
    ) -> str:
        """One burst of exchanges, kept, and added to *told*; returns why it failed, "" if it did not."""
        if pi is None:
            return ""
        try:
            await self._keep(told, await pi.compare(self._sync_id, kind, sequence, probes))
        except PiError as error:
            now, reason = self._clock.stamp(), f"refused: {error}"
            boot_id = self._clock.boot_id
            failed = Exchange(
                self._sync_id, kind, sequence, 0, boot_id, now.utc_ns, now.mono_ns, status=reason
            )
            await self._keep(told, [failed])
            return str(error)
        return ""

    async def _on_pi(
        self, told: list[Exchange], pi: Pi | None, session_id: str, marker: Marker
    ) -> tuple[str, bool]:
        """Why the Pi does not have it, "" if it has; and whether it never will."""
        if pi is None:
            return "", False
        try:
            await self._keep(told, [await pi.mark(session_id, marker)])
        except PiError as error:
            return str(error), isinstance(error, NotTaken)
        return "", False

    async def _keep(self, told: list[Exchange], burst: list[Exchange]) -> None:
        """Into the file first: what an estimate stands on must outlive it."""
        await asyncio.to_thread(self._exchange_file.append, *burst, sync=True)
        self.exchanges += len(burst)
        self.pi_boot_id = next((one.pi_boot_id for one in reversed(burst) if one.pi_boot_id), self.pi_boot_id)
        told += burst

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

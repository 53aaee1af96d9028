"""When the two clocks are compared during a session, and the doing of it."""

import asyncio
from collections.abc import Callable
from typing import Literal

from common.messages import Kind
from common.recorder import Recorder, RecordingEnded
from topside_daemon.config import Markers
from topside_daemon.deck import Deck, View
from topside_daemon.markers import Marked, MarkerWriter
from topside_daemon.pi import Pi
from topside_daemon.products import SessionRecord

ALONE_S = 2.0  # how long the surface's START waits for the Pi
LEAST_S = 1.0  # between comparisons, whatever is asked
LOOK_S = 0.2  # between looks whether the Pi records by now
RETRY_S = 2.0  # between attempts to write START on a Pi that refuses it

Planned = tuple[int, Literal["PERIODIC", "PROBE"]]


class Cadence:
    """Instants of the topside monotonic clock, in ns, at which the clocks are to be compared.

    PERIODIC at whole intervals after START; PROBE at the fast start's instants, and often while the
    drift is changing. A comparison that takes long delays the next one and is never followed by two.
    """

    def __init__(self, markers: Markers, start_ns: int) -> None:
        self._fast_ns = sorted(round(after_s * 1e9) for after_s in markers.fast_start_s)
        self._interval_ns = _interval_ns(markers.interval_s)
        self._hurry_ns = _interval_ns(markers.interval_min_s)
        self._start_ns = self._last_ns = start_ns
        self._beats = 0
        self._fast: list[int] = []  # to come, soonest first

    def restart(self, now_ns: int) -> None:
        """Begin the fast start, from its first instant on."""
        self._fast = [now_ns + after_ns for after_ns in self._fast_ns]

    def next(self, now_ns: int, unsettled: bool) -> Planned | None:
        """The comparison to come, which may be due by now; None if there is none."""
        planned: list[Planned] = [(due_ns, "PROBE") for due_ns in self._fast[:1]]
        if not self._interval_ns:
            return min(planned, default=None)
        beat: Planned = (self._start_ns + self._beat(now_ns) * self._interval_ns, "PERIODIC")
        if beat[0] <= now_ns:
            return beat
        soonest = min([beat, *planned])  # of two at one instant the marker, which sorts first
        hurried_ns = self._last_ns + self._hurry_ns
        if unsettled and self._hurry_ns and hurried_ns + self._hurry_ns // 2 <= soonest[0]:
            return hurried_ns, "PROBE"
        return soonest

    def _beat(self, now_ns: int) -> int:
        """The latest that is due and has not been, or the next one if that is nearer."""
        since_ns = now_ns - self._start_ns
        return max(self._beats + 1, (since_ns + self._interval_ns // 2) // self._interval_ns)

    def begun(self, planned: Planned, now_ns: int) -> None:
        """This comparison begins now; it stands for all that were due by now."""
        due_ns, kind = planned
        self._fast = [one_ns for one_ns in self._fast if one_ns > max(now_ns, due_ns)]
        self._last_ns = due_ns if now_ns - due_ns < self._hurry_ns // 2 else now_ns
        if kind == "PERIODIC":
            self._beats = (due_ns - self._start_ns) // self._interval_ns


def _interval_ns(seconds: float) -> int:
    """0 for never; a comparison itself takes a good part of a second."""
    return round(max(seconds, LEAST_S) * 1e9) if seconds > 0 else 0


class Beat:
    """Writes the markers of one session, START to STOP, and compares the clocks between them."""

    def __init__(
        self,
        writer: MarkerWriter,
        record: SessionRecord,
        surface: Recorder | None,
        deck: Deck,
        view: View,
        note: Callable[[str, str], None],
    ) -> None:
        """
        Args:
            record: whose `inwater_started` says when the Pi records.
            surface: None when the session has no surface sensor.
            note: told what the record should say, as an event's kind and detail.
        """
        self._writer = writer
        self._record = record
        self._pi = deck.pi if record.inwater else None
        self._surface = surface
        self._markers = deck.config.markers
        self._clock = deck.clock
        self._view = view
        self._note = note
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stopping = self._restart = False
        self._pi_boots: set[str] = {writer.pi_boot_id} if writer.pi_boot_id else set()

    async def run(self) -> None:
        """START as soon as both sides record, then on and on, until `stop`."""
        resumed = self._writer.started
        if not await self._start() or self._pi is None:
            return
        cadence = Cadence(self._markers, self._writer.started_ns)
        cadence.restart(self._clock.mono_ns() if resumed else self._writer.started_ns)
        if not resumed:
            cadence.begun((self._writer.started_ns, "PROBE"), self._clock.mono_ns())
        while not self._stopping:
            if self._restart:
                self._restart = False
                cadence.restart(self._clock.mono_ns())
            planned = cadence.next(self._clock.mono_ns(), self._view.unsettled())
            if await self._woken_before(planned[0] if planned else None) or planned is None:
                continue
            cadence.begun(planned, self._clock.mono_ns())
            await self._compare(self._pi, planned[1])

    async def _start(self) -> bool:
        """Try START until it is in both records; False if a stop comes first."""
        alone = self._surface
        deadline_ns = self._clock.mono_ns() + round(ALONE_S * 1e9)
        while not self._writer.started and not self._stopping:
            wait_s = LOOK_S
            if alone is not None and self._clock.mono_ns() > deadline_ns:
                await self._writer.begin_surface(alone)
                alone = None
            if self._record.inwater_started or self._pi is None:
                async with self._lock:
                    wait_s = RETRY_S if (await self._write("START", None)).detail else 0.0
            await self._woken_before(self._clock.mono_ns() + round(wait_s * 1e9))
        return not self._stopping

    async def _compare(self, pi: Pi, kind: Literal["PERIODIC", "PROBE"]) -> None:
        async with self._lock:
            if self._stopping:
                return
            if kind == "PERIODIC":
                await self._write(kind, None)
            else:
                await self._probe(pi)
        if self._writer.pi_boot_id is not None:
            self.pi_boot(self._writer.pi_boot_id)

    async def _probe(self, pi: Pi) -> None:
        try:
            await self._writer.probe(pi, self._markers.probes)
        except OSError as error:
            self._note("exchanges_not_kept", f"{error.strerror}: they count for nothing")

    async def _woken_before(self, due_ns: int | None) -> bool:
        """Rest until *due_ns*; True if a stop or a restart came before."""
        seconds = None if due_ns is None else (due_ns - self._clock.mono_ns()) / 1e9
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def mark(self, kind: Kind, label: str | None, alone: bool = False) -> Marked:
        """Write one marker on both sides, or *alone* on this one.

        Raises:
            RecordingEnded: the session is being stopped, and this is not its STOP.
        """
        async with self._lock:
            if self._stopping and kind != "STOP":
                raise RecordingEnded("the session is being stopped")
            return await self._write(kind, label, alone)

    async def _write(self, kind: Kind, label: str | None, alone: bool = False) -> Marked:
        session_id, probes = self._record.recording_id, self._markers.probes
        pi = None if alone else self._pi
        return await self._writer.mark(kind, pi, session_id, self._surface, probes, label)

    def pi_boot(self, boot_id: str) -> None:
        """The Pi has been heard in this boot: one that was not known has a clock to be learned anew."""
        if boot_id not in self._pi_boots:
            if self._pi_boots:
                self.restart()
            self._pi_boots.add(boot_id)

    def restart(self) -> None:
        """What was known of the clocks has ended: compare them as at the start."""
        self._restart = True
        self._wake.set()

    def stop(self) -> None:
        """No more beats; STOP may still be marked."""
        self._stopping = True
        self._wake.set()

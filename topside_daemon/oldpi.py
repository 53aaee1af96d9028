"""An old Pi API behind the face of `Pi`: what it cannot do is said in `lacks`, and never made up.

It names its recordings itself, lists sealed chunks only, numbers no rows, knows one wall clock, and holds
everybody up for seconds while it talks to its sensor. Its older generation answers for whichever
recording is its newest, whatever it was asked for: so whose a list is, is read from the manifest.
"""

import asyncio
import re
from uuid import uuid4

import aiohttp
from msgspec import Struct, structs

from common.chunkstore import CHUNK_NAME, sealed_name
from common.clock import Clock
from common.keys import Wallet
from common.manifest import Manifest
from common.messages import Chunk, Exchange, ExchangeKind, Marker
from common.recording import Sequel
from common.rows import parse_utc
from topside_daemon.pi import (
    CONNECT_S,
    GONE,
    MARKER_PROBE,
    About,
    NotTaken,
    Pi,
    PiError,
    Standing,
    Started,
)
from topside_daemon.timeasker import SPACING_S
from topside_daemon.wallclocks import WALL_CLOCK_ONLY

ANSWER_S = 15.0  # another call may keep it busy with its sensor, 4 s each
SENSOR_S = 40.0  # for a call that is about the sensor itself, and waits for two others
ACQUIRING = ("acq_freerun", "acq_polled")
SESSION_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
UNKNOWN = (404, 500)  # said of a recording that an earlier run of it made; 500 until it is connected


class _Sensor(Struct):
    state: str


class _Injected(Struct):
    timestamp: str


class _Time(Struct):
    pi_iso: str


class OldPi(Pi):
    """An old Pi. Use `EitherPi`, which finds out whether it is one."""

    def __init__(self, url: str, clock: Clock, wallet: Wallet | None = None) -> None:
        """As `Pi`."""
        super().__init__(url, clock, wallet)
        self._tells_time: bool | None = None
        self._asked: str | None = None  # the session for which a start was not answered
        self._marked: set[tuple[str, str]] = set()  # of these a row may be in its record already
        self._proven: Standing | None = None  # the last that is known to be of the recording it names

    async def _look(self) -> None:
        """Find out which generation it is."""
        try:
            await self._call("GET", "/api/sync/time", _Time, timeout=_patient(ANSWER_S))
            self._tells_time = True
        except PiError as error:
            self._tells_time = False if error.status == 404 else None
        clock = "no clock comparison, no markers"
        if self._tells_time is not False:
            clock = "clock by one time-sync, START and STOP markers only"
        self.lacks = f"old api: no bus, no ranges, whole chunks only, {clock}"

    async def knock(self) -> None:
        await self._get("/health", timeout=_patient(ANSWER_S))

    async def start(
        self,
        session_id: str,
        mission: str,
        roll_interval_s: float,
        holder: str,
        sequel: Sequel | None = None,
    ) -> Started:
        """Have its sensor stream, and start a recording, to which it gives an id of its own."""
        await self._make_stream()
        wanted = {
            "rate_hz": 500,
            "schema_version": 1,
            "mission": mission,
            "roll_interval_s": roll_interval_s,
        }
        asked_before, self._asked = self._asked == session_id, session_id
        try:
            started = await self._call(
                "POST", "/record/start", Started, json=wanted, timeout=_patient(SENSOR_S)
            )
        except PiError as error:
            if error.status is not None and not asked_before:
                self._asked = None
            if error.status != 409:
                raise
            if not asked_before:
                raise PiError(
                    f"the old Pi records for somebody else: {error}: stop that first", 409
                ) from None
            started = await self._recording_now(session_id, str(error))
        self._asked = None
        try:
            parse_utc(started.started_at)
        except ValueError:
            raise PiError(f"the old Pi says no time of its start: {started.started_at[:80]!r}") from None
        if not SESSION_ID.fullmatch(started.session_id):
            raise PiError(f"the old Pi gave its recording no id: {started.session_id[:80]!r}")
        return started

    async def _make_stream(self) -> None:
        sensor = await self._call("GET", "/status", _Sensor, timeout=_patient(ANSWER_S))
        if sensor.state == "disconnected":
            try:
                await self._command("/connect")
            except PiError as error:
                now = await self._call("GET", "/status", _Sensor, timeout=_patient(ANSWER_S))
                if error.status is not None and now.state == "disconnected":
                    await self._command("/disconnect")  # it is left half open, and refuses the next one
                raise PiError(f"the old Pi cannot reach its sensor: {error}", error.status) from None
        if sensor.state not in ACQUIRING:
            try:
                await self._command("/resume" if sensor.state == "paused" else "/start")
            except PiError as error:
                if error.status != 400:  # 400: somebody else was quicker
                    raise

    async def _command(self, path: str) -> None:
        await self._get(path, "POST", timeout=_patient(SENSOR_S))

    async def _recording_now(self, session_id: str, refusal: str) -> Started:
        """What is recording: its later generation says so when it refuses another, the older one serves the
        manifest of its newest recording under any id."""
        named = SESSION_ID.search(refusal)
        manifest = await self._manifest(named[0] if named else session_id)
        return Started(manifest.session_id, manifest.started_at)

    async def stop(self, session_id: str, holder: str) -> None:
        standing = await self.standing(session_id)  # whose it is first: it stops whatever it records
        if standing.state == "stopped":
            return
        wanted = {"session_id": session_id}
        await self._get("/record/stop", "POST", json=wanted, timeout=_patient(SENSOR_S))

    async def standing(self, session_id: str, holder: str | None = None) -> Standing:
        """Where a recording stands; as its manifest has it, if an earlier run of the API made it."""
        asked = {"session_id": session_id}
        try:
            standing = await self._call(
                "GET", "/record/status", Standing, params=asked, timeout=_patient(ANSWER_S)
            )
        except PiError as error:
            if error.status not in UNKNOWN:
                raise
            manifest = await self._manifest_of(session_id)
            return Standing(session_id, manifest.total_rows, last_chunk_index=manifest.next_chunk_index - 1)
        if not _continues(standing, self._proven):
            await self._manifest_of(session_id)
        self._proven = standing
        return standing

    async def chunks(self, session_id: str, after: int) -> list[Chunk]:
        asked = {"session_id": session_id}
        try:
            listed = await self._call(
                "GET", "/record/snapshots", list[Chunk], params=asked, timeout=_patient(ANSWER_S)
            )
        except PiError as error:
            if error.status not in UNKNOWN:
                raise
            listed = (await self._manifest_of(session_id)).chunks
        else:
            await self._manifest_of(session_id)
        listed.sort(key=lambda chunk: chunk.index)
        if any((one.index, one.name) != (n, sealed_name(n)) for n, one in enumerate(listed)):
            raise PiError("the old Pi's list of chunks has a hole or a strange name")
        return listed[after + 1 :]

    async def _manifest_of(self, session_id: str) -> Manifest:
        """The manifest of this recording.

        Raises:
            PiError: 410, it has none, or does not serve it now.
        """
        try:
            manifest = await self._manifest(session_id)
        except PiError as error:
            if error.status == 404:
                raise PiError(f"the old Pi has no recording {session_id}", GONE) from None
            raise
        if manifest.session_id != session_id:
            raise PiError(
                f"the old Pi serves only its newest recording, {manifest.session_id}, and not {session_id}: "
                "restart its API to reach this one",
                GONE,
            )
        return manifest

    async def _manifest(self, session_id: str) -> Manifest:
        path = f"/files/{session_id}/manifest.json"
        return await self._call("GET", path, Manifest, timeout=_patient(ANSWER_S))

    async def file(self, session_id: str, name: str, first: int = 0, sha256: str | None = None) -> bytes:
        if not CHUNK_NAME.fullmatch(name):
            raise PiError(f"an old Pi keeps no {name}", 404)
        return await super().file(session_id, name, first, sha256)

    async def mark(self, session_id: str, marker: Marker) -> Exchange:
        """Write its half of a marker. It does not know one that comes twice: where a call may have been
        carried out, the next one is of another id."""
        if marker.kind == "PERIODIC":
            raise NotTaken("an old Pi takes no marker but START and STOP")
        name = (marker.sync_id, marker.kind)
        again = name in self._marked
        sync_id = str(uuid4()) if again else marker.sync_id
        wanted = {"session_id": session_id, "sync_id": sync_id, "marker_type": marker.kind}
        self._marked.add(name)
        try:
            injected, timing = await self._timed_call("POST", "/record/sync-marker", _Injected, json=wanted)
        except PiError as error:
            if error.status is not None and not again:
                self._marked.discard(name)
            if error.status == 404 and str(error) == "Not Found":
                raise NotTaken("an old Pi of this generation takes no markers") from None
            raise
        blank = Exchange(
            sync_id,
            marker.kind,
            marker.sequence,
            MARKER_PROBE,
            self._clock.boot_id,
            timing.sent.utc_ns,
            timing.sent.mono_ns,
        )
        return _answered(blank, timing.received_ns, injected.timestamp)

    async def compare(self, sync_id: str, kind: ExchangeKind, sequence: int, probes: int) -> list[Exchange]:
        """A burst of looks at its wall clock, where it shows it: all that there is to compare."""
        if self._tells_time is None:
            await self._look()
        burst: list[Exchange] = []
        for probe in range(probes if self._tells_time else 0):
            now = self._clock.stamp()
            blank = Exchange(sync_id, kind, sequence, probe, self._clock.boot_id, now.utc_ns, now.mono_ns)
            try:
                shown, timing = await self._timed_call("GET", "/api/sync/time", _Time)
            except PiError as error:
                return [*burst, structs.replace(blank, transport="http", status=f"refused: {error}")]
            sent = structs.replace(blank, t1_ns=timing.sent.mono_ns, topside_utc_ns=timing.sent.utc_ns)
            burst.append(_answered(sent, timing.received_ns, shown.pi_iso))
            await asyncio.sleep(SPACING_S)
        return burst


class EitherPi(OldPi):
    """A Pi of ours, or an old one, whichever answers."""

    _kind: type[Pi] | None = None
    _about: About | None = None

    async def about(self) -> About:
        about = await super().about()
        if about.protocol is not None:
            self._kind, self.lacks = Pi, ""
        elif self._kind is not OldPi or about != self._about or self._tells_time is None:
            await self._look()
            self._kind = OldPi
        self._about = about
        return about

    async def _known(self) -> type[Pi]:
        if self._kind is None:
            await self.about()
        return self._kind or Pi

    async def knock(self) -> None:
        await (self._kind or Pi).knock(self)

    async def start(
        self,
        session_id: str,
        mission: str,
        roll_interval_s: float,
        holder: str,
        sequel: Sequel | None = None,
    ) -> Started:
        return await (await self._known()).start(self, session_id, mission, roll_interval_s, holder, sequel)

    async def stop(self, session_id: str, holder: str) -> None:
        await (await self._known()).stop(self, session_id, holder)

    async def standing(self, session_id: str, holder: str | None = None) -> Standing:
        return await (await self._known()).standing(self, session_id, holder)

    async def chunks(self, session_id: str, after: int) -> list[Chunk]:
        return await (await self._known()).chunks(self, session_id, after)

    async def file(self, session_id: str, name: str, first: int = 0, sha256: str | None = None) -> bytes:
        return await (await self._known()).file(self, session_id, name, first, sha256)

    async def mark(self, session_id: str, marker: Marker) -> Exchange:
        return await (await self._known()).mark(self, session_id, marker)

    async def compare(self, sync_id: str, kind: ExchangeKind, sequence: int, probes: int) -> list[Exchange]:
        return await (await self._known()).compare(self, sync_id, kind, sequence, probes)


def _patient(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S)


def _continues(standing: Standing, before: Standing | None) -> bool:
    """Whether nothing has happened since that begins with another recording."""
    return (
        before is not None
        and (standing.session_id, standing.state, standing.last_chunk_index)
        == (before.session_id, before.state, before.last_chunk_index)
        and standing.rows >= before.rows
    )


def _answered(asked: Exchange, received_ns: int, shown: str) -> Exchange:
    """With what its wall clock showed; a stamp of its monotonic clock there is not, and none is made up."""
    try:
        pi_utc_ns = parse_utc(shown)
    except ValueError:
        raise PiError(f"the old Pi shows no time: {shown[:80]!r}") from None
    return structs.replace(
        asked, t4_ns=received_ns, pi_utc_ns=pi_utc_ns, transport="http", status=WALL_CLOCK_ONLY
    )

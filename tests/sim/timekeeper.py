"""The part of a Pi that is asked for the time: its version, its clock by HTTP and, if wanted, by UDP."""

from aiohttp import web

from common.clock import SystemClock
from common.web import answer
from pi_daemon.timeserver import TimeServer

BOOTS = ("00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b")


class BootedClock(SystemClock):
    """This machine's clock under another boot's name."""

    def __init__(self) -> None:
        super().__init__()
        self._boots = iter(BOOTS)
        self.reboot()

    @property
    def boot_id(self) -> str:
        return self._name

    def reboot(self) -> None:
        self._name = next(self._boots)


class Timekeeper:
    """Serves on loopback. Set *udp_port* to name another responder than its own, to 0 for none."""

    def __init__(self) -> None:
        self.clock = BootedClock()
        self.connections: set[object] = set()
        self.asked_by_http = 0
        self.udp_port: int | None = None
        self._runner: web.AppRunner

    async def open(self) -> None:
        self._time = await TimeServer.bind(self.clock, "127.0.0.1", 0, any_port=False)
        app = web.Application()
        app.router.add_get("/version", self._version)
        app.router.add_get("/api/sync/time", self._by_http)
        app.router.add_post("/record/sync-marker", self._by_http)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def close(self) -> None:
        self._time.close()
        await self._runner.cleanup()

    async def _version(self, request: web.Request) -> web.Response:
        self.connections.add(request.transport)
        port = self._time.port if self.udp_port is None else self.udp_port or None
        about = {"api": "0.2.0", "git": "x", "protocol": 1, "boot_id": self.clock.boot_id, "machine_id": "m"}
        return answer(about | {"time_port": port})

    async def _by_http(self, request: web.Request) -> web.Response:
        received = self.clock.stamp()
        self.connections.add(request.transport)
        self.asked_by_http += 1
        stamps = {"t2_ns": received.mono_ns, "boot_id": self.clock.boot_id, "utc_ns": received.utc_ns}
        marker = {"status": "injected", "timestamp": "2026-01-01T00:00:00+00:00", "seq": 3}
        return answer(stamps | marker | {"t3_ns": self.clock.mono_ns()})

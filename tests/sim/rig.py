"""Both daemons as real processes on free loopback ports, to be steered, killed and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
# A library that shows a process another time: to be preloaded, where it is installed (apt install faketime).
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), Path("/no libfaketime"))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def port_of(owner: object) -> int:
    """A free port that nobody else is given while *owner* lives, even when nothing listens there.

    It stays bound, without listening: who shares its address, as servers do, may listen on it.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    weakref.finalize(owner, held.close)
    return int(held.getsockname()[1])


class Daemon:
    """One daemon process; `start` again after `kill` or `stop` keeps ports and folder."""

    module = ""
    health = ""

    def __init__(self, data: Path, **flags: str) -> None:
        self.data = data
        self.http, self.bus = port_of(self), port_of(self)
        self.flags = flags
        self.environment: dict[str, str] = {}
        self._log = data.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        flags = {
            "data": str(self.data),
            "http": f"127.0.0.1:{self.http}",
            "bus": f"tcp://127.0.0.1:{self.bus}",
        } | self.flags
        named = [part for name, value in flags.items() for part in (f"--{name}", value)]
        return [sys.executable, "-m", self.module, *named]

    def start(self) -> None:
        """Run it, and wait until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=ROOT, stdout=log, stderr=log, env=os.environ | self.environment
            )
        self.wait_for(lambda: self.get(self.health)[0] == 200)

    def wait_for(self, condition: Any, patience_s: float = PATIENCE_S) -> None:
        """Until *condition()* holds.

        Raises:
            AssertionError: it did not in time, or the daemon ended; with its log.
        """
        end_s = time.monotonic() + patience_s
        while time.monotonic() < end_s:
            try:
                if condition():
                    return
            except OSError:
                pass
            assert self.process is not None and self.process.poll() is None, self.log
            time.sleep(0.05)
        raise AssertionError(f"waited {patience_s} s in vain\n{self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def stop(self) -> int:
        """End it as a service manager would; its exit code."""
        return self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(10)

    def get(self, path: str) -> tuple[int, Any]:
        return self._call(urllib.request.Request(self._url(path)))

    def post(self, path: str, body: object = None) -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        return self._call(urllib.request.Request(self._url(path), content, method="POST"))

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http}{path}"

    @staticmethod
    def _call(request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def raw(self, path: str, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(self._url(path), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class PiDaemon(Daemon):
    module = "pi_daemon"
    health = "/instrument/health"

    def wait_streaming(self) -> None:
        """Until the sensor is heard."""
        self.wait_for(lambda: self.get("/instrument/health")[1]["state"] == "freerun")


class TopsideDaemon(Daemon):
    module = "topside_daemon"
    health = "/status"

    def wait_streaming(self) -> None:
        """Until the surface sensor is heard."""
        self.wait_for(lambda: self.get("/status")[1]["surface"]["state"] == "freerun")

    def session(self) -> Any:
        return self.get("/status")[1]["session"]

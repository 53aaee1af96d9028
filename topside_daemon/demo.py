"""Both daemons and two simulated sensors as real processes, and the result held against the truth.

Nothing in here is part of a deployment; it uses only commands and calls that a user has.
"""

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from common.clock import SystemClock
from common.rows import format_utc
from common.service import EXIT_LOSS
from topside_daemon.truth import Comparison, compare, read_truth

BAUD = 115_200  # at 9600 a line takes 25 ms, and 12 averages make 7 readings/s instead of 9
READY_S = 60.0  # a sensor boots, shows its menu and starts within 15
LOOK_S = 0.5
PLAIN_S = 5.0  # between lines when nobody watches them change
CALL_S = 90.0
END_S = 10.0


def _now_s() -> float:
    return SystemClock().mono_ns() / 1e9


class DemoError(RuntimeError):
    """A part did not come up or did not end well; the message says which and where its log is."""


def add_demo_flags(flags: argparse.ArgumentParser) -> None:
    """The demo's own flags."""
    flags.add_argument("--seconds", type=_positive, default=60.0, help="how long to record (default 60)")
    flags.add_argument("--out", type=Path, help="folder for everything (default qsensor-demo/<time>)")
    flags.add_argument("--offset-s", type=float, default=5.0, help="the Pi's clock reads ahead (default 5)")
    flags.add_argument("--drift-ppm", type=_drift, default=40.0, help="and gains this much (default 40)")
    flags.add_argument("--averaging", type=_averages, default=12, help="12: 9 Hz (default), 125: 1 Hz")
    flags.add_argument("--seed", type=int, default=1, help="of light, sensors and noise (default 1)")


def _positive(text: str) -> float:
    return _within(float(text), 1, 86_400)


def _drift(text: str) -> float:
    return _within(float(text), -1000, 1000)


def _averages(text: str) -> int:
    return int(_within(int(text), 1, 65_535))


def _within(value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{value:g} is not from {low:g} to {high:g}")
    return value


def demo(options: argparse.Namespace) -> int:
    """Run it all; 0 when every reading is accounted for, 3 when not, 1 when a part failed."""
    stamp = format_utc(SystemClock().utc_ns())[:19].replace(":", "-")
    out = (options.out or Path("qsensor-demo") / stamp).resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Rig(out, options) as rig:
            rig.wait_until_ready()
            return _play(rig, options.seconds)
    except (DemoError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nended before a session was complete", file=sys.stderr)
        return 1


def _play(rig: "Rig", seconds: float) -> int:
    show = Show(sys.stdout)
    rig.call("POST", "/session/start", {"mission": "demo"})
    end_s = _now_s() + seconds
    try:
        while (left_s := end_s - _now_s()) > 0:
            time.sleep(min(LOOK_S, left_s))
            show.progress(rig.call("GET", "/status"), max(0.0, end_s - _now_s()))
    except KeyboardInterrupt:
        show.line("stopping early")
    show.line("stopping: both sides agree on what was recorded, then the session is fused")
    ended = rig.call("POST", "/session/stop")
    session = Path(ended["folder"])
    if ended["state"] != "complete":
        raise DemoError(f"{session} is {ended['state']}: {ended['detail']}")
    latency_ns = _latency_ns(ended["report"]["inwater"])
    result = compare(session, read_truth(rig.truth("inwater")), rig.true_offset_ns, latency_ns)
    _summarise(show, session, result, ended["report"]["clock"], rig.drift_ppm)
    return 0 if result.good else EXIT_LOSS


def _latency_ns(sensor: dict[str, Any]) -> int:
    """What the fusion took from every time of a sensor."""
    latency = sensor.get("latency") or {}
    return int(latency.get("averaging_ns", 0)) + int(latency.get("transmit_ns", 0))


def _summarise(
    show: "Show", session: Path, result: Comparison, clock: list[dict[str, Any]], drift_ppm: float
) -> None:
    r = result
    share = 100 * r.paired / r.overlap if r.overlap else 0.0
    once = "each exactly once" if r.once_each else "NOT each exactly once"
    show.line("")
    show.line(f"session   {session}")
    show.line(f"recorded  in-water {r.inwater_recorded}, surface {r.surface_recorded} readings, {once}")
    show.line(
        f"paired    {r.paired} of {r.overlap} in the overlap ({share:.2f} %), gaps {r.overlap - r.paired}"
    )
    show.line(f"offset    {_pm(r.offset_ms, r.offset_sd_ms)} ms, true {r.true_offset_ms or 0:.3f} ms")
    for segment in clock:
        drift = _pm(segment["drift_ppm"], segment["drift_sd_ppm"])
        show.line(f"drift     {drift} ppm, true {drift_ppm:.3f} ppm")
    show.line(f"time      error against truth p95 {r.error_p95_ms:.3f} ms, largest {r.error_max_ms:.3f} ms")
    show.line(
        f"light     averaged {r.light_age_ms:.1f} ms before its line left, {r.latency_ms:.1f} ms taken off"
    )
    show.line(f"open      {session / 'unified_session.csv'}")


def _pm(value: float | None, sd: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}f} ± {sd or 0:.{digits}f}"


def _short(value: str | None) -> str:
    return "-" if value is None else f"{float(value):.4g}"


class Show:
    """One line that changes on a terminal; a line now and then elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._last_s = float("-inf")
        self._dirty = False

    def progress(self, status: dict[str, Any], left_s: float) -> None:
        """What is measured right now."""
        clock, pair = status["clock"], status["pair"] or {}
        percent = pair.get("percent_of_surface")
        text = (
            f"{left_s:3.0f} s  in-water {_short(pair.get('inwater_value')):>7}"
            f"  surface {_short(pair.get('surface_value')):>7}"
            f"  {'-' if percent is None else f'{percent:.1f}':>5} % of surface"
            f"  offset {_pm(clock['offset_ms'], clock['offset_sd_ms'], 2)} ms"
        )
        now_s = _now_s()
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._out.write(f"\r\x1b[2K{text[:width]}")
            self._dirty = True
        elif now_s - self._last_s >= PLAIN_S:
            self._last_s = now_s
            self._out.write(text + "\n")
        self._out.flush()

    def line(self, text: str) -> None:
        """A line that stays."""
        self._out.write(("\n" if self._dirty else "") + text + "\n")
        self._out.flush()
        self._dirty = False


class Rig:
    """Two simulated sensors and two daemons on free loopback ports, ended when the block ends."""

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        self.drift_ppm: float = options.drift_ppm
        self._out = out
        self._options = options
        self._origin_ns = SystemClock().mono_ns()
        self._ports = _free_ports(5)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def true_offset_ns(self, mono_ns: int) -> int:
        """How far the Pi's clock reads ahead at an instant of this machine's clock."""
        gained_ns = (mono_ns - self._origin_ns) * self.drift_ppm / 1e6
        return round(float(self._options.offset_s) * 1e9 + gained_ns)

    def truth(self, role: str) -> Path:
        """Where a simulator writes down what it really sent."""
        return self._out / f"truth_{role}.csv"

    def __enter__(self) -> "Rig":
        try:
            self._start_all()
        except BaseException:  # whatever ends the start, nothing may be left running
            self._end_all()
            raise
        return self

    def _start_all(self) -> None:
        pi_http, pi_bus, pi_time, http, bus = self._ports
        for role in ("inwater", "surface"):
            self._simulate(role)
        pi = self._write(
            "pi.toml",
            _PI_TOML.format(
                data=json.dumps(str(self._out / "pi")),
                http=pi_http,
                bus=pi_bus,
                time=pi_time,
                port=json.dumps(str(self._out / "inwater")),
                baud=BAUD,
                offset_s=float(self._options.offset_s),
                drift_ppm=float(self.drift_ppm),
                origin_ns=self._origin_ns,
            ),
        )
        topside = self._write(
            "topside.toml",
            _TOPSIDE_TOML.format(
                data=json.dumps(str(self._out)),
                http=http,
                bus=bus,
                pi_http=pi_http,
                baud=BAUD,
                port=json.dumps(str(self._out / "surface")),
            ),
        )
        self._start("pi_daemon", "-m", "pi_daemon", "--config", str(pi))
        self._start("topside_daemon", "-m", "topside_daemon", "--config", str(topside))
        print(f"Pi daemon       http://127.0.0.1:{pi_http}  bus tcp://127.0.0.1:{pi_bus}")
        print(f"topside daemon  http://127.0.0.1:{http}  bus tcp://127.0.0.1:{bus}")
        python = Path(sys.executable)
        here = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
        print(f"listen          {here} -m common.bus tap tcp://127.0.0.1:{bus} qsensor/fused", flush=True)

    def _simulate(self, role: str) -> None:
        truth = self.truth(role)
        truth.unlink(missing_ok=True)
        self._start(
            f"simulator_{role}",
            "-m",
            "common.simulator",
            "--link",
            str(self._out / role),
            "--role",
            role,
            "--baud",
            str(BAUD),
            "--averaging",
            str(self._options.averaging),
            "--seed",
            str(self._options.seed),
            "--origin-ns",
            str(self._origin_ns),
            "--truth",
            str(truth),
        )

    def _write(self, name: str, text: str) -> Path:
        path = self._out / name
        path.write_text(text, encoding="utf-8")
        return path

    def _start(self, name: str, *arguments: str) -> None:
        with (self._out / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
            )

    def wait_until_ready(self) -> None:
        """Until both sensors are heard.

        Raises:
            DemoError: a process ended, or a sensor stayed silent.
        """
        print("waiting for the sensors to boot and show their settings ...", flush=True)
        end_s = _now_s() + READY_S
        why = "no answer yet"
        while _now_s() < end_s:
            self._check_alive()
            try:
                pi = self.call("GET", "/instrument/health", port=self._ports[0])
                surface = self.call("GET", "/status")["surface"]
            except DemoError as error:
                why = str(error)
            else:
                if pi["state"] == surface["state"] == "freerun":
                    return
                why = f"in-water {pi['state']}, surface {surface['state']}"
            time.sleep(LOOK_S / 2)
        raise DemoError(f"the sensors were not heard within {READY_S:.0f} s ({why}): see {self._out}/*.log")

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise DemoError(f"{name} ended with code {process.returncode}: see {self._out / name}.log")

    def call(self, method: str, path: str, body: object = None, port: int | None = None) -> dict[str, Any]:
        """One HTTP call, to the topside daemon unless *port* says otherwise.

        Raises:
            DemoError: it was refused, or somebody is gone.
        """
        url = f"http://127.0.0.1:{port or self._ports[3]}{path}"
        request = urllib.request.Request(url, json.dumps(body or {}).encode() if method == "POST" else None)
        try:
            with urllib.request.urlopen(request, timeout=CALL_S) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise DemoError(f"{path}: {error.read().decode()}") from None
        except OSError as error:
            raise DemoError(f"{path}: {error}") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_all()

    def _end_all(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave anything running
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes.values()):
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


_PI_TOML = """\
data = {data}
http = "127.0.0.1:{http}"
bus = "tcp://127.0.0.1:{bus}"
time = "127.0.0.1:{time}"
[serial]
port = {port}
baud = {baud}
[simulation]
clock_offset_s = {offset_s}
clock_drift_ppm = {drift_ppm}
clock_origin_ns = {origin_ns}
"""

_TOPSIDE_TOML = """\
data = {data}
http = "127.0.0.1:{http}"
bus = "tcp://127.0.0.1:{bus}"
pi = "http://127.0.0.1:{pi_http}"
[serial]
port = {port}
baud = {baud}
[markers]
interval_s = 10
"""


def _free_ports(count: int) -> list[int]:
    """Loopback ports that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()

"""A real cable between the daemons, in network namespaces of their own, cut and mended while they record."""

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import zmq

from common.bus import connect
from tests.campaigns.agreement import agreed, bus_context, conclude, session_faults
from tests.sim.partners import introduce
from tests.sim.rig import Daemon, PiDaemon, TopsideDaemon
from tests.sim.talker import Talker

RATE_HZ = 20.0
CUTS_S = (2.0, 10.0, 45.0)
BACK_S = 2.0  # wanted: seconds from the mended cable to live readings, and to a complete copy
PATIENCE_S = 60.0
LOOK_S = 0.02
CALM_S = 3.0  # of recording before each cut
PI_ADDRESS, TOPSIDE_ADDRESS = "10.79.0.2", "10.79.0.1"
CLONE_NEWNET = 0x40000000

# On the way in, at both ends: a sender that sees its own packets dropped tries again without backing off.
BLACK_HOLE = """\
add table inet cut
add chain inet cut in { type filter hook input priority 0; }
add rule inet cut in iifname "cable" drop
"""

Way = Literal["link down", "black hole"]


class NoCable(Exception):
    """Namespaces cannot be had here; the message says why and what would cure it."""


class Namespace:
    """A machine as far as the network goes: what runs `inside` sees its interfaces only."""

    def __init__(self, name: str) -> None:
        self.name = name
        _ip("netns", "add", name)
        self._fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        _ip("-n", name, "link", "set", "lo", "up")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """For this thread, and for the processes and threads that it starts meanwhile."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(self._fd)
            yield
        finally:
            _enter(home)
            os.close(home)

    def run(self, *command: str) -> None:
        with self.inside():
            _run(*command)

    def close(self) -> None:
        os.close(self._fd)
        _ip("netns", "del", self.name)


def _enter(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoCable(f"{' '.join(command)}: {done.stderr.strip()}")


class Cable:
    """Two namespaces and the cable between them.

    Raises:
        NoCable: this machine does not let us have them.
    """

    def __init__(self) -> None:
        for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
            if shutil.which(tool) is None:
                raise NoCable(f"{tool} is not installed: apt install {package}")
        if os.geteuid() != 0:
            raise NoCable("only root may make network namespaces: run it with sudo")
        self._made: list[Namespace] = []

    def __enter__(self) -> Self:
        try:
            self.pi, self.topside = (self._make(side) for side in ("pi", "topside"))
            far = ("peer", "cable", "netns", self.topside.name)
            _ip("-n", self.pi.name, "link", "add", "cable", "type", "veth", *far)
            for side, address in ((self.pi, PI_ADDRESS), (self.topside, TOPSIDE_ADDRESS)):
                _ip("-n", side.name, "address", "add", f"{address}/30", "dev", "cable")
                _ip("-n", side.name, "link", "set", "cable", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def _make(self, side: str) -> Namespace:
        made = Namespace(f"qsensor-{os.getpid()}-{side}")
        self._made.append(made)
        return made

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for namespace in self._made:
            namespace.close()

    def cut(self, way: Way) -> None:
        """A connector pulled out, which both ends see; or packets that vanish, which nobody does."""
        if way == "link down":
            _ip("-n", self.pi.name, "link", "set", "cable", "down")
        else:
            for side in (self.pi, self.topside):
                side.run("nft", BLACK_HOLE)

    def mend(self, way: Way) -> None:
        if way == "link down":
            _ip("-n", self.pi.name, "link", "set", "cable", "up")
        else:
            for side in (self.pi, self.topside):
                side.run("nft", "delete table inet cut")


class Housed(Daemon):
    """A daemon in a namespace, which is asked from inside: a cut cable does not keep us from it."""

    house: Namespace

    def start(self) -> None:
        with self.house.inside():
            super().start()

    def get(self, path: str) -> tuple[int, Any]:
        with self.house.inside():
            return super().get(path)

    def post(self, path: str, body: object = None) -> tuple[int, Any]:
        with self.house.inside():
            return super().post(path, body)


class HousedPi(Housed, PiDaemon):
    """On all addresses of its namespace."""


class HousedTopside(Housed, TopsideDaemon):
    """Reaches the Pi over the cable."""


@dataclass(frozen=True)
class Tether:
    """Both daemons with their sensors at the two ends of a cable, recording one session."""

    cable: Cable
    pi: HousedPi
    topside: HousedTopside
    inwater: Talker
    surface: Talker
    session_id: str

    def durable_seq(self) -> int:
        return int(self.pi.get(f"/record/status?session_id={self.session_id}")[1]["durable_seq"])

    def copied_seq(self) -> int:
        return int(self.topside.session()["inwater_durable_seq"])

    def stop(self) -> list[str]:
        """End the session; what is wrong with it.

        Raises:
            AssertionError: it did not become complete.
        """
        said = agreed(self.topside)
        faults = session_faults(Path(said["folder"]), self.pi.data, self.inwater.sent, self.surface.sent)
        if said["inwater_missing"]:
            faults.append(f"{said['inwater_missing']} in-water readings are missing")
        return faults


@contextmanager
def tethered(folder: Path, rate_hz: float) -> Iterator[Tether]:
    """A session that is being recorded over a cable.

    Raises:
        NoCable: this machine does not let us have one.
    """
    with (
        Cable() as cable,
        Talker(folder / "inwater", rate_hz) as inwater,
        Talker(folder / "surface", rate_hz) as surface,
    ):
        pi = HousedPi(folder / "pi", serial=str(inwater.link))
        pi.flags |= {"http": f"0.0.0.0:{pi.http}", "bus": f"tcp://0.0.0.0:{pi.bus}", "security": "legacy-lan"}
        url = f"http://{PI_ADDRESS}:{pi.http}"
        topside = HousedTopside(folder / "topside", pi=url, serial=str(surface.link))
        introduce(pi.data, topside.data, url)
        pi.house, topside.house = cable.pi, cable.topside
        with pi, topside:
            pi.wait_streaming()
            topside.wait_streaming()
            _, started = topside.post("/session/start", {"mission": "cable"})
            topside.wait_for(lambda: topside.session()["inwater_durable_seq"] >= 0)
            yield Tether(cable, pi, topside, inwater, surface, started["session_id"])


class Live:
    """What a subscriber topside hears of the in-water sensor."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", topside: HousedTopside) -> None:
        with topside.house.inside():  # the threads of ZeroMQ stay where they are started
            self._socket = connect(context, f"tcp://127.0.0.1:{topside.bus}", ["qsensor/inwater/reading"])

    def newest_utc_ns(self) -> int:
        """When the newest of the readings was stamped that have come since the last call; 0: none has."""
        newest = 0
        while self._socket.poll(0):
            newest = max(newest, int(json.loads(self._socket.recv_multipart()[1])["utc_ns"]))
        return newest


@dataclass(frozen=True)
class Back:
    """How long after a cut was mended things were as before; None: not within a minute."""

    way: Way
    cut_s: float
    behind: int  # readings that the copy had to catch up on
    mended_utc_ns: int
    live_s: float | None
    level_s: float | None

    def __str__(self) -> str:
        cut = f"{self.way:10} {self.cut_s:5.1f} s {self.behind:8d}"
        return f"{cut}   {_s(self.live_s)} s    {_s(self.level_s)} s"

    def faults(self) -> Iterator[str]:
        for what, took_s in (("live readings", self.live_s), ("the copy", self.level_s)):
            if took_s is None or took_s > BACK_S:
                after = f"back after {_s(took_s).strip()} s, wanted {BACK_S:g} s"
                yield f"{self.way} for {self.cut_s:g} s: {what} {after}"


HEADING = "cut                  behind  live back  copy level"


def _s(took_s: float | None) -> str:
    return f"> {PATIENCE_S:4.0f}" if took_s is None else f"{took_s:6.2f}"


def cut_and_mend(
    tether: Tether, way: Way, cut_s: float, meanwhile: Callable[[], None] = lambda: None
) -> Back:
    """Cut the cable for so long, mend it, and see how long it takes until all is as it was.

    Live: a reading stamped after the mending has been heard. Level: everything is here that was on the Pi's
    disk when the cable was mended.
    """
    tether.cable.cut(way)
    with bus_context() as context:
        live = Live(context, tether.topside)
        end_s = time.monotonic() + cut_s
        while (left_s := end_s - time.monotonic()) > 0:
            meanwhile()
            time.sleep(min(left_s, 1.0))
        goal = tether.durable_seq()
        behind = goal - tether.copied_seq()
        tether.cable.mend(way)
        mended_utc_ns = time.time_ns()
        return Back(way, cut_s, behind, mended_utc_ns, *_time_return(tether, live, goal, mended_utc_ns))


def _time_return(tether: Tether, live: Live, goal: int, now_utc_ns: int) -> tuple[float | None, float | None]:
    """Seconds from now until live readings come, and until the copy reaches *goal*."""
    now_s = time.monotonic()
    live_s: float | None = None
    level_s: float | None = None
    while (live_s is None or level_s is None) and time.monotonic() < now_s + PATIENCE_S:
        if live_s is None and live.newest_utc_ns() >= now_utc_ns:
            live_s = time.monotonic() - now_s
        if level_s is None and tether.copied_seq() >= goal:
            level_s = time.monotonic() - now_s
        time.sleep(LOOK_S)
    return live_s, level_s


def campaign(folder: Path, cuts_s: Sequence[float]) -> list[str]:
    """Run it in *folder*; what was found wrong.

    Raises:
        NoCable: this machine does not let us have one.
    """
    ways: tuple[Way, ...] = ("link down", "black hole")
    faults: list[str] = []
    try:
        with tethered(folder, RATE_HZ) as tether:
            print(HEADING, flush=True)
            for way in ways:
                for cut_s in cuts_s:
                    time.sleep(CALM_S)
                    back = cut_and_mend(tether, way, cut_s)
                    print(back, flush=True)
                    faults += back.faults()
            return faults + tether.stop()
    except AssertionError as error:
        return [*faults, str(error)]


def end_in_order() -> None:
    """Told to end, take the namespaces down first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def main(arguments: list[str] | None = None) -> int:
    """Cut a real cable between the daemons, as root."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.netns", description=main.__doc__)
    parser.add_argument("--cuts", type=float, nargs="+", default=CUTS_S, metavar="S", help="default: 2 10 45")
    options = parser.parse_args(arguments)
    end_in_order()
    folder = Path(tempfile.mkdtemp(prefix="netns-"))
    try:
        faults = campaign(folder, options.cuts)
    except NoCable as error:
        folder.rmdir()
        print(error, file=sys.stderr)
        return 2
    return conclude(faults, folder, f"tests.campaigns.netns --cuts {' '.join(map(str, options.cuts))}")


if __name__ == "__main__":
    sys.exit(main())

"""Both daemons as services of a real systemd: installed, hung, killed, stopped, upgraded and removed.

The machine that they are installed on is booted for this, in namespaces, with a sensor for each daemon; this
one is left as it is.
"""

import argparse
import csv
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.service import EXIT_LOSS
from tests.campaigns.agreement import conclude, count_events, session_faults, stream_faults
from tests.campaigns.netns import end_in_order
from tests.sim.booted import Booted, Command, NoSystemd
from tests.sim.rig import ROOT
from tests.sim.wheelhouse import fill

PYTHON = "/opt/qsensor/bin/python"
MODULES = {"pi": "pi_daemon", "topside": "topside_daemon"}
ROLES = {"pi": "inwater", "topside": "surface"}
CONFIG = {
    "pi": '[serial]\nport = "/dev/qsensor-inwater"\n',
    "topside": 'pi = "http://127.0.0.1:9150"\n[serial]\nport = "/dev/qsensor-surface"\n',
}
WATCHDOG_S = 4.0
BACK_S = 3.0  # wanted: from the end of a daemon, or of its watchdog's patience, until it is ready again
END_S = 2.0  # wanted: for an orderly end
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
PRIVATE = ("keys",)  # folders that nobody else may read
# Where everybody may write, of which only /dev/shm and /run/lock are the same for a service and others.
SHARED = {"/dev/mqueue", "/dev/shm", "/run/lock", "/tmp", "/var/tmp"}

# Runs in the sandbox of a daemon, as its user: what can be done there that should not, and the reverse.
PROBE = """
import ctypes, json, mmap, os, socket, sys

def refused(attempt):
    try:
        attempt()
    except OSError as error:
        return error.strerror

def writable():
    for folder, inside, _ in os.walk("/"):
        if folder in ("/proc", "/sys", "/old"):
            inside.clear()
        elif os.access(folder, os.W_OK):
            yield folder

def executable_memory():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)

print(json.dumps({
    "writable": sorted(writable()),
    "device": refused(lambda: os.close(os.open("/dev/open-to-all", os.O_RDONLY))),
    "serial port": refused(lambda: os.close(os.open(sys.argv[1], os.O_RDONLY | os.O_NOCTTY))),
    "packets": refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
    "code": refused(executable_memory),
    "clock": ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024)),
    "boot_id": refused(lambda: open("/proc/sys/kernel/random/boot_id").close()),
    "home": refused(lambda: os.listdir(os.path.expanduser("~root"))),
}))
"""


def patience(limit_s: float) -> float:
    """A limit, longer by as much as this machine is overloaded."""
    return limit_s * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Service:
    """One daemon, installed on a booted machine."""

    def __init__(self, machine: Booted, role: str) -> None:
        self.role = role
        self.unit = f"qsensor-{role}"
        self.data = f"/var/lib/qsensor/{role}"
        self.port = f"/dev/qsensor-{ROLES[role]}"
        self._machine = machine
        self._truth = f"/srv/{role}.csv"

    def install(self) -> Command:
        return self._machine.run(
            *("sh", "/srv/checkout/deploy/install.sh", self.role, "--wheels", "/srv/wheels")
        )

    def plug_in(self) -> None:
        """Give it a sensor that says a line ten times a second, at a port such as a USB adapter's."""
        command = (PYTHON, "-m", "common.simulator", "--link", self.port, "--averaging", "12")
        more = ("--role", ROLES[self.role], "--truth", self._truth)
        self._machine.start(*command, *more)
        self._machine.wait_for(lambda: self._machine.run("test", "-e", self.port).returncode == 0)
        self._machine.run("chgrp", "dialout", self.port)
        self._machine.run("chmod", "660", self.port)

    def configure(self, text: str) -> None:
        self._machine.path(f"/etc/qsensor/{self.role}.toml").write_text(text, encoding="ascii")

    def hurry(self) -> None:
        """Let its watchdog be less patient than the unit says."""
        place = self._machine.path(f"/etc/systemd/system/{self.unit}.service.d/trial.conf")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}\n", encoding="ascii")
        self._machine.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str, *more: str) -> Command:
        return self._machine.run("systemctl", verb, *more, self.unit)

    @property
    def pid(self) -> str:
        return self._machine.show(self.unit, "MainPID")

    def ready(self) -> bool:
        return self._machine.show(self.unit, "ActiveState") == "active"

    def strike(self, signal: str) -> float:
        """Send the daemon a signal that it does not survive; seconds until another one is ready."""
        before = self.pid
        self.systemctl("kill", f"--signal={signal}", "--kill-whom=main")
        return self._machine.wait_for(lambda: self.pid not in (before, "0") and self.ready())

    def sent(self) -> list[str]:
        """The values of all lines that its sensor has said."""
        with self._machine.path(self._truth).open(encoding="ascii") as file:
            return [row["value"] for row in csv.DictReader(file)]


class Trial:
    """What was found wrong, step by step."""

    def __init__(self, machine: Booted, roles: tuple[str, ...]) -> None:
        self.faults: list[str] = []
        self._machine = machine
        self._services = [Service(machine, role) for role in roles]

    def run(self, short: bool) -> None:
        """All of it; short: what the units promise, without what takes another installation."""
        self.install()
        if not short:
            self.install_again()
        self.plug_in()
        self.harden()
        if not short:
            self.break_and_mend()
        self.record(short)
        self.remove()

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.faults.append(otherwise)

    def install(self) -> None:
        """As a user does.

        Raises:
            AssertionError: it cannot be done; all else would be in vain.
        """
        for service in self._services:
            done = service.install()
            said = done.stderr.strip()
            assert done.returncode == 0 and service.ready(), f"{service.unit} is not installed: {said}"
        print("installed")

    def install_again(self) -> None:
        """It changes nothing."""
        before = [service.pid for service in self._services]
        for service in self._services:
            service.install()
        again = [service.pid for service in self._services]
        self._expect(before == again and "0" not in again, "a second installation restarts the daemons")
        print("installed again: nothing has changed")

    def plug_in(self) -> None:
        """A sensor for each daemon, and a configuration that names it."""
        for service in self._services:
            service.plug_in()
            service.hurry()
            service.configure(CONFIG[service.role])
            service.systemctl("restart")
            self._until_heard(service)
        print("every sensor is heard")

    def _until_heard(self, service: Service) -> None:
        self._machine.wait_for(lambda: self._streams(service))

    def _streams(self, service: Service) -> bool:
        if service.role == "pi":
            return bool(self._get("http://127.0.0.1:9150/instrument/health")["state"] == "freerun")
        return bool(self._get("http://127.0.0.1:9160/status")["surface"]["state"] == "freerun")

    def _get(self, url: str) -> Any:
        """What a daemon answers; an object in which every question is answered with "" if it does not."""
        code = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=9).read().decode())"
        said = self._machine.run(PYTHON, "-c", code).stdout
        return json.loads(said) if said else Silence()

    def harden(self) -> None:
        """Each sandbox from inside, by a probe in the daemon's place."""
        for service in self._services:
            found = self._probe(service)
            places = set(found["writable"]) - SHARED
            strange = {one for one in places if not one.startswith((service.data, "/tmp/", "/var/tmp/"))}
            self._expect(not strange, f"{service.unit} may write to {sorted(strange)[:9]}")
            self._expect(service.data in places, f"{service.unit} may not write to {service.data}")
            for what in ("device", "packets", "code", "home"):
                self._expect(found[what] is not None, f"{service.unit} gets at what it must not: {what}")
            for what in ("serial port", "boot_id"):
                self._expect(found[what] is None, f"{service.unit} is refused its {what}: {found[what]}")
            self._expect(found["clock"] >= 0, f"{service.unit} cannot see whether the clock is synchronised")
            print(f"{service.unit} may write to {service.data} and to what is shared, and to nothing else")

    def _probe(self, service: Service) -> Any:
        unit = self._machine.path(f"/etc/systemd/system/{service.unit}.service").read_text(encoding="utf-8")
        lines = [line for line in unit.splitlines() if not line.startswith(("ExecStart=", "Watchdog"))]
        place = lines.index("[Service]") + 1
        lines[place:place] = [
            f"ExecStart={PYTHON} /srv/probe.py {service.port}",
            "StandardOutput=file:/srv/probe.json",
        ]
        text = "\n".join(lines).replace("Type=notify", "Type=oneshot").replace("Restart=always", "Restart=no")
        self._machine.path("/etc/systemd/system/probe.service").write_text(text, encoding="utf-8")
        self._machine.path("/srv/probe.py").write_text(PROBE, encoding="ascii")
        self._machine.run("systemctl", "daemon-reload")
        service.systemctl("stop")  # a port is open once
        self._machine.run("systemctl", "start", "probe")
        service.systemctl("start")
        said = self._machine.path("/srv/probe.json").read_text(encoding="utf-8")
        self._machine.path("/srv/probe.json").unlink()
        return json.loads(said)

    def break_and_mend(self) -> None:
        """A configuration that cannot be read is one line that says so, from the installer too."""
        service = self._services[0]
        service.configure("[serial]\nbuad = 9600\n")
        self._machine.path("/etc/udev/rules.d/70-qsensor.rules").unlink()  # something to do
        done = service.install()
        self._expect(done.returncode != 0 and "buad" in done.stderr, f"the installer hides: {done.stderr}")
        self._expect(done.stderr.count("\n") == 1, f"more than one line: {done.stderr}")
        service.configure(CONFIG[service.role])
        self._until_heard(service)
        print(f"a bad configuration: {done.stderr.strip()}")

    def record(self, short: bool) -> None:
        """A session through everything that may happen to a service."""
        topside = next((one for one in self._services if one.role == "topside"), None)
        for service in self._services:
            self._until_heard(service)
        with self._session(topside):
            for service in self._services:
                self._survives(service, "STOP", WATCHDOG_S + BACK_S, "hung")
                hung = self._machine.run("journalctl", "-u", service.unit, "-o", "cat").stdout
                self._expect("Fatal Python error: Aborted" in hung, f"{service.unit}: not told where it hung")
                self._survives(service, "KILL", BACK_S, "killed")
            for service in self._services:
                self._pause(service)
            if not short:
                self._upgrade()
            self._readable()

    @contextmanager
    def _session(self, topside: Service | None) -> Iterator[None]:
        """A session of both, which ends complete; with the Pi alone a recording, short form."""
        if topside is None:
            body = {"session_id": "00000000-0000-4000-8000-000000000001", "roll_interval_s": 1}
            self._post("http://127.0.0.1:9150/record/start", body)
            yield
            said = self._post("http://127.0.0.1:9150/record/stop", {"session_id": body["session_id"]})
            folder = self._machine.path(f"{self._services[0].data}/{body['session_id']}")
            self.faults += stream_faults(folder, self._services[0].sent())
            resumed = count_events(folder, "resumed")
            self._expect(
                resumed == 3, f"the recording was taken up {resumed} times, not after each of 3 ends"
            )
            print(f"recorded {said['rows']} readings through it all")
            return
        self._talk("start", "--mission", "trial")
        yield
        stopped = self._talk("stop", "--json")
        self._machine.wait_for(
            lambda: json.loads(self._talk("status", "--json"))["session"]["state"] == "complete"
        )
        session = self._machine.path(json.loads(stopped)["folder"])
        pi = next(one for one in self._services if one.role == "pi")
        self.faults += session_faults(session, self._machine.path(pi.data), pi.sent(), topside.sent())
        rows = len((session / "unified_session.csv").read_text(encoding="ascii").splitlines()) - 1
        print(f"recorded one session through it all, {rows} rows")

    def _talk(self, *words: str) -> str:
        """A command to the topside daemon, from another user of the machine."""
        done = self._machine.run(*NOBODY, PYTHON, "-m", "topside_daemon", *words)
        assert done.returncode in (0, EXIT_LOSS), f"{words}: {done.stderr}"
        return done.stdout

    def _post(self, url: str, body: object) -> Any:
        code = (
            "import sys, urllib.request; "
            f"asked = urllib.request.Request({url!r}, sys.argv[1].encode(), method='POST'); "
            "asked.add_header('Content-Type', 'application/json'); "
            "print(urllib.request.urlopen(asked, timeout=60).read().decode())"
        )
        done = self._machine.run(PYTHON, "-c", code, json.dumps(body))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _survives(self, service: Service, signal: str, limit_s: float, what: str) -> None:
        self._until_heard(service)
        took_s = service.strike(signal)
        print(f"{service.unit} {what}: ready again after {took_s:.1f} s")
        late = f"{service.unit} {what}: ready after {took_s:.1f} s, wanted {limit_s:g} s"
        self._expect(took_s <= patience(limit_s), late)

    def _pause(self, service: Service) -> None:
        """Stop the service, and start it again."""
        self._until_heard(service)
        begun_s = time.monotonic()
        service.systemctl("stop")
        took_s = time.monotonic() - begun_s
        left = list(self._machine.path(service.data).rglob("*.tmp"))
        print(f"{service.unit} stopped in {took_s:.2f} s")
        self._expect(took_s <= patience(END_S), f"{service.unit} takes {took_s:.1f} s to stop")
        own = [path for path in left if service.role == "pi" or "surface_" in str(path)]
        self._expect(not own, f"{service.unit} stopped, and left {own[:1]} unsealed")
        result = self._machine.show(service.unit, "Result")
        self._expect(result == "success", f"{service.unit} stopped with {result}")
        service.systemctl("start")
        self._until_heard(service)

    def _upgrade(self) -> None:
        """Another version takes the place of this one, for both daemons, while they record."""
        before = {service.pid for service in self._services}
        self._machine.path("/opt/qsensor/installed.txt").write_text("another", encoding="ascii")
        done = self._services[0].install()
        after = {service.pid for service in self._services}
        self._expect(done.returncode == 0 and not before & after, f"not upgraded: {done.stderr.strip()}")
        for service in self._services:
            self._until_heard(service)
        print("upgraded, while recording")

    def _readable(self) -> None:
        """What is recorded belongs to the scientist too."""
        private = [word for name in PRIVATE for word in ("-name", name, "-prune", "-o")]
        search = (*NOBODY, "find", "/var/lib/qsensor", *private)
        hidden = self._machine.run(*search, "!", "-readable", "-print").stdout.split()
        self._expect(not hidden, f"another user may not read {hidden[:3]}")
        count = len(self._machine.run(*search, "-type", "f", "-print").stdout.split())
        print(f"{count} files, which every user may read")

    def remove(self) -> None:
        """All that was installed goes; what was recorded and what was configured stays."""
        done = self._machine.run("sh", "/srv/checkout/deploy/install.sh", "remove")
        self._expect(done.returncode == 0, f"not removed: {done.stderr.strip()}")
        for service in self._services:
            self._expect(not service.ready(), f"{service.unit} still runs")
            kept = (service.data, f"/etc/qsensor/{service.role}.toml")
            for place in kept:
                self._expect(self._machine.path(place).exists(), f"{place} was removed")
            unit = self._machine.path(f"/etc/systemd/system/{service.unit}.service")
            self._expect(not unit.exists(), f"{unit.name} is still there")
        self._expect(not self._machine.path("/opt/qsensor").exists(), "/opt/qsensor is still there")
        print("removed; what was recorded and configured is still there")


class Silence:
    """The answer of a daemon that does not answer."""

    def __getitem__(self, key: str) -> "Silence":
        return self


def supply(machine: Booted, wheels: Path) -> None:
    """Carry a checkout and wheels to the machine, as on a USB stick.

    Raises:
        NoSystemd: it has no Python that the wheels are for.
    """
    code = "import ensurepip, sys, venv; print(sys.version_info[:2])"
    found = machine.run("python3", "-c", code)
    if found.stdout.strip() != str(sys.version_info[:2]):
        here = "python{}.{}".format(*sys.version_info[:2])
        raise NoSystemd(f"/usr/bin/python3 is not {here} with venv: apt install {here}-venv")
    for folder in ("deploy", "requirements"):
        shutil.copytree(ROOT / folder, machine.path(f"/srv/checkout/{folder}"))
    shutil.copytree(wheels, machine.path("/srv/wheels"))


def campaign(folder: Path, roles: tuple[str, ...], wheels: Path, short: bool = False) -> list[str]:
    """Run it in *folder* with *wheels* that were carried there; what was found wrong.

    Raises:
        NoSystemd: it cannot be done here.
    """
    with Booted(folder / "machine") as machine:
        supply(machine, wheels)
        trial = Trial(machine, roles)
        try:
            trial.run(short)
        except AssertionError as error:
            trial.faults.append(str(error))
        return trial.faults


def main(arguments: list[str] | None = None) -> int:
    """Install, hang, kill, stop, upgrade and remove both daemons under a real systemd, as root."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.systemd", description=main.__doc__)
    parser.add_argument("--pi", action="store_true", help="the Pi daemon alone")
    options = parser.parse_args(arguments)
    roles = ("pi",) if options.pi else ("pi", "topside")
    end_in_order()
    folder = Path(tempfile.mkdtemp(prefix="systemd-"))
    try:
        fill(folder / "wheels", roles[-1])
        faults = campaign(folder, roles, folder / "wheels")
    except NoSystemd as error:
        shutil.rmtree(folder)
        print(error, file=sys.stderr)
        return 2
    return conclude(faults, folder, f"tests.campaigns.systemd{' --pi' if options.pi else ''}")


if __name__ == "__main__":
    sys.exit(main())

"""A machine run by a real systemd: in namespaces of its own, on a copy of this one that nobody else sees."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_S = 30.0
LIFETIME_S = 900  # whatever happens
BOOT = Path(__file__).with_suffix(".sh")
TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "systemctl": "systemd"}
Command = subprocess.CompletedProcess[str]


class NoSystemd(Exception):
    """It cannot be booted here; the message says why and what would cure it."""


class Booted:
    """A machine that is up; all of it goes when it is left.

    Raises:
        NoSystemd: this machine does not let us have one.
    """

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            raise NoSystemd("only root may boot a systemd: run it with sudo")
        for tool, package in TOOLS.items():
            if shutil.which(tool) is None:
                raise NoSystemd(f"{tool} is not installed: apt install {package}")
        if "overlay" not in Path("/proc/filesystems").read_text(encoding="ascii"):
            raise NoSystemd("this kernel has no overlay file system: modprobe overlay")
        self._folder = folder
        self._log = folder.with_name(f"{folder.name}.log")
        self._started: list[subprocess.Popen[bytes]] = []
        self._cgroup = _cgroup2() / f"qsensor-trial-{os.getpid()}"

    def __enter__(self) -> Self:
        self._folder.mkdir()
        self._cgroup.mkdir()
        try:
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def _boot(self) -> None:
        spaces = ("--fork", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--kill-child=SIGKILL")
        limit = ("timeout", "--signal=KILL", str(LIFETIME_S))
        script = ("sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(self._cgroup))
        with self._log.open("wb") as log:
            self._outer = subprocess.Popen(
                [*script, *limit, "unshare", *spaces, "sh", str(BOOT), str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait_for(self._is_up)

    def _is_up(self) -> bool:
        try:
            return self.run("systemctl", "is-system-running").stdout == "running\n"
        except ProcessLookupError:
            return False

    @property
    def _init(self) -> int:
        """The machine's first process, by our number.

        Raises:
            ProcessLookupError: it is not there, yet or any more.
        """
        pid = self._outer.pid
        for _ in range(2):  # timeout, unshare
            children = Path(f"/proc/{pid}/task/{pid}/children")
            found = children.read_text(encoding="ascii").split() if children.exists() else []
            if not found:
                raise ProcessLookupError(f"{self._folder}: no first process")
            pid = int(found[0])
        return pid

    def wait_for(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
        """Until *condition()* holds; how long that took, in seconds.

        Raises:
            NoSystemd: the machine has ended.
            AssertionError: it did not in time; with the newest lines of the journal.
        """
        begun_s = time.monotonic()
        while not condition():
            if self._outer.poll() is not None:
                said = self._log.read_text(encoding="utf-8", errors="replace").strip()
                raise NoSystemd(f"systemd does not boot here: {said.splitlines()[-1] if said else 'no word'}")
            if time.monotonic() > begun_s + patience_s:
                journal = self.run("journalctl", "-o", "cat", "-n", "50").stdout
                raise AssertionError(f"waited {patience_s} s in vain\n{journal}")
            time.sleep(0.05)
        return time.monotonic() - begun_s

    def command(self, *words: str) -> list[str]:
        """What runs *words* in the machine, as its root."""
        inside = ["nsenter", "--target", str(self._init), "--all", "--"]
        return [*inside, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *words]

    def run(self, *words: str) -> Command:
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=120)

    def start(self, *words: str) -> None:
        """Run *words* beside everything else, until the machine ends."""
        silent = subprocess.DEVNULL
        self._started.append(subprocess.Popen(self.command(*words), stdin=silent, stdout=silent))

    def path(self, place: str) -> Path:
        """Where we see the machine's *place*, which is absolute."""
        return Path("/proc", str(self._init), "root", place.lstrip("/"))

    def show(self, unit: str, key: str) -> str:
        """A property of a unit, as `systemctl show` has it."""
        return self.run("systemctl", "show", "--value", "--property", key, unit).stdout.strip()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        if hasattr(self, "_outer"):
            with suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
            for one in (*self._started, self._outer):
                one.wait(PATIENCE_S)
        for group in sorted(self._cgroup.glob("**/"), reverse=True):
            _remove_group(group)
        self._folder.rmdir()
        self._log.unlink(missing_ok=True)


def _cgroup2() -> Path:
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    found = re.search(r"^\S+ \S+ \S+ / (\S+) .* - cgroup2 ", mounts, re.MULTILINE)
    if found is None:
        raise NoSystemd("there is no cgroup2 file system: mount -t cgroup2 cgroup2 DIR")
    return Path(found[1])


def _remove_group(group: Path) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            group.rmdir()
        except OSError:  # its processes are dead, but not all are gone
            if time.monotonic() > end_s:
                raise
            time.sleep(0.01)
        else:
            return

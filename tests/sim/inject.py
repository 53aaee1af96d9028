"""A Pi daemon on a disk that fails: under strace, which tampers with chosen calls, or on a tiny one."""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.sim.rig import PiDaemon

STRACE = shutil.which("strace")
CURE = "strace is not installed: sudo apt install strace"
NO_MOUNT = "no mounting here: allow user namespaces (sysctl kernel.unprivileged_userns_clone=1), or be root"
CALLS = ("write", "fsync", "rename", "ftruncate", "fallocate", "openat", "unlink", "mkdir")
_UNSHARE = ("unshare", "-Urm")
_BEGUN = re.compile(
    r"(?P<thread>\d+) +(?P<name>\w+)\((?:AT_FDCWD<[^>]*>, )?"
    r'(?:(?P<fd>\d+)<(?P<open>[^>]*)>|"(?P<path>[^"]*)")'
)
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>")
_RESULT = re.compile(r" = (-?\d+)[^=]*$")
_TRACER = re.compile(r"^TracerPid:\s+([1-9]\d*)$", re.MULTILINE)


@dataclass(frozen=True)
class Injection:
    """What happens to one kind of call: *how* and *when* in strace's words, counted in each thread."""

    call: str
    how: str
    when: str = "1+"

    def __str__(self) -> str:
        return f"{self.call}:{self.how}:when={self.when}"


@dataclass
class Call:
    """A line of a trace, or two where another thread spoke in between."""

    thread: str
    name: str
    fd: str | None
    path: str
    result: str | None


def read_trace(text: str) -> list[Call]:
    """The calls of a trace, in the order in which they began."""
    calls: list[Call] = []
    waiting: dict[str, Call] = {}
    for line in text.splitlines():
        result = _RESULT.search(line)
        if begun := _BEGUN.match(line):
            path = begun["open"] or begun["path"] or ""
            call = Call(begun["thread"], begun["name"], begun["fd"], path, result[1] if result else None)
            calls.append(call)
            waiting[call.thread] = call
        elif (resumed := _RESUMED.match(line)) and result and resumed[1] in waiting:
            waiting[resumed[1]].result = result[1]
    return calls


@dataclass(frozen=True)
class Step:
    """A call of a session: the n-th of its kind on its file, the overall-th on any, in its thread."""

    call: str
    file: str
    n: int
    overall: int

    def __str__(self) -> str:
        return f"{self.call} {self.n} of {self.file}"


class InjectedPi(PiDaemon):
    """A Pi daemon whose calls are traced, and tampered with as told where they touch the files named."""

    def __init__(
        self, data: Path, files: Sequence[str], injections: Sequence[Injection], **flags: str
    ) -> None:
        """*files*: relative to *data*, also those that do not exist yet; none of them: all calls count."""
        super().__init__(data, **flags)
        self.injections: Sequence[Injection] | None = injections
        """None: started next time without strace."""
        self.trace = data.with_suffix(".strace")
        self._files = files

    def command(self) -> list[str]:
        """The tracer is a grandchild (-D): signals and exit codes are the daemon's own; -I2 lets it go."""
        if self.injections is None:
            return super().command()
        assert STRACE is not None, CURE
        paths = [word for file in self._files for word in ("-P", str(self.data / file))]
        tampering = [word for one in self.injections for word in ("-e", f"inject={one}")]
        quiet = ["-qq", "-e", "signal=none", "-e", f"trace={','.join(CALLS)}"]
        tracer = [STRACE, "-D", "-I2", "-f", "-y", *quiet, "-o", str(self.trace), *paths, *tampering]
        return [*tracer, *super().command()]

    @property
    def traced(self) -> str:
        """The trace so far."""
        return self.trace.read_text(errors="replace") if self.trace.exists() else ""

    @property
    def tampered(self) -> int:
        """How many calls did not go as they would have."""
        return sum(line.endswith(("(INJECTED)", "(DELAYED)")) for line in self.traced.splitlines())

    def mend(self) -> None:
        """Let the daemon go on untampered with; returns when it does: a signal sent before may be lost."""
        for tracer in self._tracers():
            with suppress(ProcessLookupError):
                os.kill(tracer, signal.SIGTERM)
        self.wait_for(lambda: not self._tracers())

    def _tracers(self) -> set[int]:
        """Who traces a thread of the daemon; nobody does if it is gone."""
        assert self.process is not None
        found = set()
        for thread in Path(f"/proc/{self.process.pid}/task").glob("*/status"):
            with suppress(OSError):
                found |= {int(pid) for pid in _TRACER.findall(thread.read_text())}
        return found

    def steps(self) -> list[Step]:
        """The calls on what is in the data folder, in order, counted as `Injection.when` counts them."""
        on_file: Counter[tuple[str, ...]] = Counter()
        on_any: Counter[tuple[str, ...]] = Counter()
        steps = []
        for call in read_trace(self.traced):
            if not call.path.startswith(f"{self.data}/"):
                continue
            file = call.path.removeprefix(f"{self.data}/")
            on_file[call.thread, call.name, file] += 1
            on_any[call.thread, call.name] += 1
            n, overall = on_file[call.thread, call.name, file], on_any[call.thread, call.name]
            steps.append(Step(call.name, file, n, overall))
        return steps


class TinyDiskPi(PiDaemon):
    """A Pi daemon whose data folder is a file system of its own, of so many KiB, gone when it ends."""

    size_kib = 256

    def command(self) -> list[str]:
        mount = f'mount -t tmpfs -o size={self.size_kib}k none "$0" && exec "$@"'
        return [*_UNSHARE, "sh", "-c", mount, str(self.data), *super().command()]

    @property
    def inside(self) -> Path:
        """The data folder as the daemon sees it."""
        assert self.process is not None
        return Path("/proc", str(self.process.pid), "root", *self.data.parts[1:])


def can_mount() -> bool:
    """Whether this machine lets its users have file systems of their own."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(
            [*_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True
        ).returncode
    )

"""What a part of the campaign has found, and a daemon that is watched meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.sim.rig import Daemon

LOG_BYTES = 1_000_000
GROWTH_KB = 60_000


class Outcome:
    """Figures to be read, and failures, each with what repeats it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.figures: list[str] = []
        self.failures: list[str] = []

    def say(self, figure: str) -> None:
        """A figure, printed at once."""
        self.figures.append(figure)
        print(f"{self.name:<8}{figure}", flush=True)

    def fail(self, failure: str) -> None:
        """A failure, printed at once."""
        self.failures.append(failure)
        print(f"{self.name:<8}FAILED {failure}", flush=True)

    def expect(self, holds: bool, failure: str) -> None:
        if not holds:
            self.fail(failure)


class Watch:
    """A daemon process: does it live, is its log quiet, does its memory stay."""

    def __init__(self, daemon: Daemon, outcome: Outcome) -> None:
        assert daemon.process is not None
        self._daemon, self._outcome = daemon, outcome
        self._pid = daemon.process.pid
        self._process = daemon.process
        self._before_kb = resident_kb(self._pid)
        self._tracebacks = 0

    @property
    def well(self) -> bool:
        """It runs, and nothing new in its log is a traceback."""
        return self._process.poll() is None and self._new_tracebacks() == 0

    def _new_tracebacks(self) -> int:
        return self._daemon.log.count("Traceback") - self._tracebacks

    def look(self, when: str) -> bool:
        """Whether all is well; what is not is told once, as of *when*."""
        ended, new = self._process.poll(), self._new_tracebacks()
        self._tracebacks += new
        name = self._daemon.module
        self._outcome.expect(ended is None, f"{when}: {name} ended with {ended}\n{self._daemon.log[-2000:]}")
        last = self._daemon.log.rpartition("Traceback")[2][-1200:]
        self._outcome.expect(new == 0, f"{when}: {new} tracebacks in the log of {name}, the last:{last}")
        return ended is None and new == 0

    def conclude(self) -> None:
        """Hold memory and log against what is promised."""
        name, log_bytes = self._daemon.module, len(self._daemon.log)
        self._outcome.expect(log_bytes < LOG_BYTES, f"the log of {name} has {log_bytes} bytes")
        if self._process.poll() is None:
            growth_kb = resident_kb(self._pid) - self._before_kb
            self._outcome.expect(growth_kb < GROWTH_KB, f"{name} has grown by {growth_kb} kB")
            self._outcome.say(f"{name}: memory {growth_kb / 1000:+.1f} MB, log {log_bytes / 1000:.1f} kB")


@contextmanager
def watched(daemon: Daemon, outcome: Outcome) -> Iterator[Watch]:
    """Watch a running daemon, to the end."""
    watch = Watch(daemon, outcome)
    yield watch
    watch.look("at the end")
    watch.conclude()


def resident_kb(pid: int) -> int:
    """Memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

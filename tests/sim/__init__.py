"""Truth makers: machines with clocks of their own, a link between them, sensors, and the files they leave.

Everything is drawn from a `random.Random` and computed from a true time in ns that starts near 0, so a
test knows when each reading really happened.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TypeVar

from common.messages import Epoch, Exchange, Reading, to_json
from common.rows import HEADER, encode_row, format_utc

S = 1_000_000_000
MS = 1_000_000
US = 1_000
UTC_0 = 1_780_000_000 * S  # what a right wall clock says at true time 0
HEAD = HEADER.encode() + b"\r\n"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Machine:
    """One boot of one machine: its monotonic and its wall clock as functions of true time."""

    boot_id: str
    ahead_ns: int = 0
    drift_ppm: float = 0.0
    epoch: int = 0
    utc_error_ns: int = 0
    step_at_ns: int | None = None
    step_ns: int = 0

    def mono_ns(self, true_ns: int) -> int:
        return true_ns + self.ahead_ns + round(true_ns * self.drift_ppm) // 1_000_000

    def utc_ns(self, true_ns: int) -> int:
        stepped = self.step_at_ns is not None and true_ns >= self.step_at_ns
        now = UTC_0 + true_ns + self.utc_error_ns + (self.step_ns if stepped else 0)
        return now // US * US

    def as_epoch(self, true_ns: int = 0) -> Epoch:
        return Epoch(self.epoch, self.boot_id, self.mono_ns(true_ns), self.utc_ns(true_ns))


@dataclass(frozen=True)
class Link:
    """A path with a delay each way: fixed, plus an exponential queue, now and then a long one."""

    up_ns: int = 600 * US
    down_ns: int = 600 * US
    jitter_ns: int = 150 * US
    spike_share: float = 0.05
    spike_ns: int = 40 * MS

    def delays_ns(self, rng: Random) -> tuple[int, int]:
        return self.up_ns + self._queue_ns(rng), self.down_ns + self._queue_ns(rng)

    def _queue_ns(self, rng: Random) -> int:
        spike = rng.expovariate(1 / self.spike_ns) if rng.random() < self.spike_share else 0.0
        return round(rng.expovariate(1 / max(1, self.jitter_ns)) + spike)


def exchange_burst(
    rng: Random, topside: Machine, pi: Machine, link: Link, at_ns: int, sequence: int, probes: int = 8
) -> list[Exchange]:
    """One burst of clock comparisons that begins at a true instant."""
    return [
        _exchange(rng, topside, pi, link, at_ns + probe * 40 * MS, sequence, probe) for probe in range(probes)
    ]


def _exchange(
    rng: Random, topside: Machine, pi: Machine, link: Link, at_ns: int, sequence: int, probe: int
) -> Exchange:
    up_ns, down_ns = link.delays_ns(rng)
    arrived_ns = at_ns + up_ns
    answered_ns = arrived_ns + round(rng.uniform(20, 200)) * US
    return Exchange(
        sync_id="f47ac10b-58cc-4372-a567-0e02b2c3d479",
        kind="PERIODIC",
        sequence=sequence,
        probe=probe,
        topside_boot_id=topside.boot_id,
        topside_utc_ns=topside.utc_ns(at_ns),
        t1_ns=topside.mono_ns(at_ns),
        t2_ns=pi.mono_ns(arrived_ns),
        t3_ns=pi.mono_ns(answered_ns),
        t4_ns=topside.mono_ns(answered_ns + down_ns),
        pi_boot_id=pi.boot_id,
        pi_utc_ns=pi.utc_ns(arrived_ns),
    )


@dataclass
class Sensor:
    """A free-running sampler whose readings remember their true instant (`truth_ns`, by seq)."""

    sensor_id: str
    period_ns: int
    phase_ns: int = 0
    jitter_ns: int = 0
    truth_ns: dict[int, int] = field(default_factory=dict)

    def readings(self, rng: Random, machine: Machine, start_ns: int, end_ns: int) -> list[Reading]:
        found: list[Reading] = []
        for at_ns in range(start_ns + self.phase_ns, end_ns, self.period_ns):
            true_ns = at_ns + round(rng.uniform(0, self.jitter_ns))
            seq = len(self.truth_ns)
            self.truth_ns[seq] = true_ns
            found.append(
                Reading(
                    seq,
                    machine.epoch,
                    machine.mono_ns(true_ns),
                    machine.utc_ns(true_ns),
                    self.sensor_id,
                    "freerun",
                    f"{0.01 + seq * 1e-6:.6f}",
                    "25.19",
                    "7.494",
                )
            )
        return found


@dataclass
class SimSession:
    """A session as it lies in a folder, and the truth behind it."""

    inwater: list[Reading]
    surface: list[Reading]
    exchanges: list[Exchange]
    topside_epochs: list[Epoch]
    pi_epochs: list[Epoch]
    inwater_truth_ns: dict[int, int] = field(default_factory=dict)
    surface_truth_ns: dict[int, int] = field(default_factory=dict)

    def write(self, folder: Path, *, only_streams: bool = False) -> Path:
        """Lay the files down: two sealed chunks a sensor, the exchanges, and what is optional."""
        write_stream(folder / "in-water_11111111", self.inwater)
        write_stream(folder / "surface_22222222", self.surface)
        (folder / "exchanges.jsonl").write_bytes(b"".join(to_json(one) + b"\n" for one in self.exchanges))
        if not only_streams:
            write_epochs(folder, self.topside_epochs)
            write_epochs(folder / "in-water_11111111", self.pi_epochs)
            write_epochs(folder / "surface_22222222", self.topside_epochs)
        return folder

    def shuffled(self, rng: Random) -> "SimSession":
        """The same record as if everything had arrived in another order, and some of it twice."""

        def shuffle(items: Sequence[_T]) -> list[_T]:
            return rng.sample([*items, *rng.sample(items, len(items) // 5)], len(items) + len(items) // 5)

        return replace(
            self,
            inwater=shuffle(self.inwater),
            surface=shuffle(self.surface),
            exchanges=shuffle(self.exchanges),
        )


def write_stream(folder: Path, readings: Sequence[Reading]) -> None:
    folder.mkdir(parents=True)
    half = len(readings) // 2
    for index, part in enumerate((readings[:half], readings[half:])):
        (folder / f"chunk_{index:05d}.csv").write_bytes(HEAD + b"".join(map(encode_row, part)))


def write_epochs(folder: Path, epochs: Iterable[Epoch]) -> None:
    (folder / "session.json").write_bytes(to_json({"epochs": list(epochs)}))


def old_row(utc_ns: int, value: str, temp_c: str = "25.19", vin: str = "7.494") -> str:
    """A row as the old Pi wrote it, without its line end."""
    return f"{format_utc(utc_ns)},serial ######   ,freerun,{value},{temp_c},{vin}"


@dataclass(frozen=True)
class Run:
    """A stretch of true time during which neither machine restarts and both record."""

    topside: Machine
    pi: Machine
    start_s: int
    end_s: int


def draw_session(
    seed: int,
    *,
    duration_s: int = 300,
    period_ns: int = 111 * MS,
    surface_period_ns: int | None = None,
    pi: Machine | None = None,
    topside: Machine | None = None,
    link: Link | None = None,
    every_s: int = 30,
) -> SimSession:
    """One boot on each side; clocks are drawn unless given."""
    rng = Random(seed)
    topside = topside or Machine("topside-a", ahead_ns=rng.randrange(10**14))
    pi = pi or Machine("pi-a", ahead_ns=5 * S, drift_ppm=rng.uniform(-100, 100), utc_error_ns=-3 * S)
    run = Run(topside, pi, 0, duration_s)
    return record(rng, [run], (period_ns, surface_period_ns or period_ns), link or Link(), every_s)


def draw_reboots(seed: int) -> SimSession:
    """The Pi restarts at 100 s and the topside machine at 200 s, each away for 20 s."""
    deck = [Machine("topside-z", 40 * S), Machine("topside-a", -190 * S, epoch=1)]
    under = [Machine("pi-z", 9 * S, 60.0), Machine("pi-a", -95 * S, 55.0, epoch=1)]
    runs = [
        Run(deck[0], under[0], 0, 100),
        Run(deck[0], under[1], 120, 200),
        Run(deck[1], under[1], 220, 320),
    ]
    return record(Random(seed), runs, (111 * MS, 112 * MS), Link(), 15)


def record(
    rng: Random, runs: Sequence[Run], periods_ns: tuple[int, int], link: Link, every_s: int
) -> SimSession:
    """What both machines write down; in each run a burst at 0, 3 and 8 s, then one every *every_s*."""
    under, deck = (
        Sensor(name, p, rng.randrange(p), 2 * MS) for name, p in zip("ab", periods_ns, strict=True)
    )
    session = SimSession([], [], [], [], [], under.truth_ns, deck.truth_ns)
    sequence = 0
    for run in runs:
        span = (run.start_s * S, run.end_s * S)
        session.inwater += under.readings(rng, run.pi, *span)
        session.surface += deck.readings(rng, run.topside, *span)
        for after_s in [0, 3, 8, *range(every_s, run.end_s - run.start_s, every_s)]:
            at_ns = span[0] + after_s * S
            session.exchanges += exchange_burst(rng, run.topside, run.pi, link, at_ns, sequence)
            sequence += 1
        _declare(session.topside_epochs, run.topside, span[0])
        _declare(session.pi_epochs, run.pi, span[0])
    return session


def _declare(epochs: list[Epoch], machine: Machine, true_ns: int) -> None:
    if machine.boot_id not in [epoch.boot_id for epoch in epochs]:
        epochs.append(machine.as_epoch(true_ns))

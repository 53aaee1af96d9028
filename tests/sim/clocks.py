"""A machine's clocks, turned by hand."""

from common.clock import Discipline
from common.messages import Stamp

UTC_START_NS = 1_780_000_000_000_000_000


class SimClock:
    """Stands still until told otherwise; `step` sets the wall clock alone, `reboot` begins another epoch."""

    quality = Discipline()

    def __init__(self, boot_id: str = "00000000-0000-4000-8000-000000000001") -> None:
        self.boot_id = boot_id
        self._mono_ns = 1_000_000_000
        self._utc_ns = UTC_START_NS
        self._asleep_ns = 0

    def mono_ns(self) -> int:
        return self._mono_ns

    def utc_ns(self) -> int:
        return self._utc_ns // 1000 * 1000

    def stamp(self) -> Stamp:
        return Stamp(self.mono_ns(), self.utc_ns())

    def asleep_ns(self) -> int:
        return self._asleep_ns

    def discipline(self) -> Discipline:
        return self.quality

    def advance(self, seconds: float, slew_ppm: float = 0.0) -> None:
        """Let time pass; meanwhile the wall clock is slewed, positive gains."""
        self._mono_ns += round(seconds * 1e9)
        self._utc_ns += round(seconds * (1e9 + slew_ppm * 1e3))

    def step(self, seconds: float) -> None:
        self._utc_ns += round(seconds * 1e9)

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: the wall clock alone goes on."""
        self._asleep_ns += round(seconds * 1e9)
        self.step(seconds)

    def reboot(self, boot_id: str = "00000000-0000-4000-8000-000000000002") -> None:
        """Another boot: the monotonic clock begins anew, the wall clock goes on."""
        self.boot_id, self._mono_ns = boot_id, 500_000_000

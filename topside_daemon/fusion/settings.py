"""What a user decides about a fusion. No I/O."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Mode = Literal["paired", "inwater"]
Milliseconds = Annotated[float, Meta(ge=0, le=3.6e6)]
Latency = Annotated[float, Meta(ge=-1e7, le=1e7)]
Periods = Annotated[float, Meta(ge=0, le=1e4)]
Seconds = Annotated[float, Meta(ge=0, le=1e6)]


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Kept with a session, so that it is fused again as it was."""

    mode: Mode = "paired"
    """`paired`: each reading once, one to one. `inwater`: a row for each in-water reading, with the last
    surface reading before it."""
    tolerance_ms: Milliseconds | None = None
    """Largest distance of a pair. Absent: half the slower sensor's period, jitter and clock uncertainty.
    Lower: closer pairs and more gaps; higher: the other way round."""
    tolerance_periods: Periods | None = None
    """The same in periods of the slower sensor; not looked at where tolerance_ms is given."""
    fresh_periods: Periods = 2.0
    """How old a surface value may be to count as fresh, in periods of the surface sensor; mode inwater only.
    Higher: a lost reading is not seen in the status."""
    stale_periods: Periods = 10.0
    """How old a surface value may be to be shown at all; likewise."""
    fresh_s: Seconds | None = None
    """The same as fresh_periods in seconds, and wins over it; the old Cockpit's was 10."""
    stale_s: Seconds | None = None
    """The same as stale_periods in seconds, and wins over it; the old Cockpit's was 30."""
    percent_of_surface: bool = False
    """A column more: in-water as a percentage of surface light, empty where there is no fresh partner."""
    inwater_latency_ms: Latency | None = None
    """How much older than its stamp the light of an in-water reading is. Absent: half the averaging and one
    byte, where the sensor's configuration was recorded; 0 corrects nothing."""
    surface_latency_ms: Latency | None = None
    """The same for the surface sensor."""
    dejitter: bool = False
    """Put readings at their sensor's own pace, where it has one, instead of where they arrived."""

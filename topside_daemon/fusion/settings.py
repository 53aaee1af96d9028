"""What a user decides about a fusion. No I/O."""

from typing import Annotated

from msgspec import Meta, Struct


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Kept with a session, so that it is fused again as it was."""

    tolerance_ms: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    """Largest distance of a pair. Absent: half the slower sensor's period, jitter and clock uncertainty.
    Lower: closer pairs and more gaps; higher: the other way round."""
    inwater_latency_ms: Annotated[float, Meta(ge=-1e7, le=1e7)] | None = None
    """How much older than its stamp the light of an in-water reading is. Absent: half the averaging and one
    byte, where the sensor's configuration was recorded; 0 corrects nothing."""
    surface_latency_ms: Annotated[float, Meta(ge=-1e7, le=1e7)] | None = None
    """The same for the surface sensor."""
    dejitter: bool = False
    """Put readings at their sensor's own pace, where it has one, instead of where they arrived."""

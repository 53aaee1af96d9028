"""What exchanges with an old Pi say of its wall clock, as `sync_metadata.json` tells it to the ladder.

Such an exchange has no stamp of the Pi's monotonic clock. The topside instants are those of the common axis:
the monotonic clock and the session's anchor, so that a step of the topside wall clock changes nothing.
"""

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any

from common.messages import Epoch, Exchange, Marker
from common.rows import format_utc
from topside_daemon.pi import MARKER_PROBE

WALL_CLOCK_ONLY = "refused: an old Pi shows its wall clock only"


class WallClocks:
    """The comparisons of one session: Pi - topside, positive: the Pi's wall clock reads ahead."""

    def __init__(self, exchanges: Iterable[Exchange], epochs: Sequence[Epoch]) -> None:
        """*epochs*: the topside machine's, whose anchors make its monotonic clock UTC."""
        self._anchors_ns = {one.boot_id: one.utc_ns - one.mono_ns for one in reversed(epochs)}
        self._exchanges = [one for one in exchanges if one.status == WALL_CLOCK_ONLY]

    def time_sync(self) -> dict[str, Any] | None:
        """The quickest of them as the old Cockpit kept its only one; None if there is none."""
        best = min(self._exchanges, key=_round_trip_ns, default=None)
        if best is None:
            return None
        half_ns = _round_trip_ns(best) // 2
        middle_ns = self._sent_ns(best) + half_ns
        return {
            "method": "ntp_handshake_v1",
            "offsetMs": round(((best.pi_utc_ns or 0) - middle_ns) / 1e6),
            "uncertaintyMs": ceil(half_ns / 1e6),
            "measuredAt": format_utc(middle_ns),
        }

    def markers(self, known: Iterable[Marker]) -> list[dict[str, Any]]:
        """Each marker of the session, and when both sides had it: the topside when its call left. The id is
        that of the row in the Pi's record, as a number."""
        calls = {(one.kind, one.sequence): one for one in self._exchanges if one.probe == MARKER_PROBE}
        return [self._marker(marker, calls.get((marker.kind, marker.sequence))) for marker in known]

    def _marker(self, marker: Marker, call: Exchange | None) -> dict[str, Any]:
        surface_ns = marker.utc_ns if call is None else self._sent_ns(call)
        inwater_ns = call.pi_utc_ns if call else None
        return {
            "syncId": str(int((call or marker).sync_id[:8], 16)),
            "type": marker.kind,
            "sequence": marker.sequence,
            "label": marker.label,
            "inWaterTimestamp": None if inwater_ns is None else format_utc(inwater_ns),
            "surfaceTimestamp": format_utc(surface_ns),
            "offsetMs": None if inwater_ns is None else (inwater_ns - surface_ns) / 1e6,
            "quality": "missing" if inwater_ns is None else "measured",
        }

    def _sent_ns(self, exchange: Exchange) -> int:
        usual_ns = exchange.topside_utc_ns - exchange.t1_ns
        return exchange.t1_ns + self._anchors_ns.get(exchange.topside_boot_id, usual_ns)


def _round_trip_ns(exchange: Exchange) -> int:
    return (exchange.t4_ns or 0) - exchange.t1_ns

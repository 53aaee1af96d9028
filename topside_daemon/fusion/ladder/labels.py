"""Rungs for the wall labels of old recordings: which marker pairs are one event, and what else is known.

An old Cockpit wrote the surface's START before it restarted that sensor and the Pi's after, and the
Pi's STOP before it fetched files and the surface's after. Such pairs are two events, seconds apart; they
still bracket the offset. No I/O, no clock. Everywhere offset = in-water - surface in ns.
"""

from collections.abc import Sequence
from math import sqrt

from msgspec.structs import replace

from topside_daemon.fusion.ladder.joining import INWATER, SURFACE, Joining
from topside_daemon.fusion.ladder.oneway import LATE_NS, Pair, agreeing, constant
from topside_daemon.fusion.ladder.rungs import Anchor, Rung, on_pairs, on_time_sync, refusals

REBOOT_WAIT_NS = 3_500_000_000  # after the surface's START its sensor was restarted and flushed this long
REBOOT_DONE_NS = 4_500_000_000  # the calls after that, up to the Pi's START, took less than a second
STOP_WAIT_NS = 1_000_000_000  # from the Pi's STOP to fetching files, and the surface's STOP after that

_S = 1e9  # ns


def labels_rung(joining: Joining, piece: int) -> Rung:
    """The highest rung that one in-water piece can stand on; its instants are joined labels."""
    pairs, anchor = joining.pairs(piece), joining.anchor(piece)
    kept = [] if _in_the_old_order(pairs, joining) else agreeing(pairs)
    if len(kept) > 1:
        rung = _on_majority(kept, refusals(pairs, kept, "contradicts the others"), anchor)
    elif anchor is not None:
        rung = _by_time_sync(pairs, anchor)
    elif len(pairs) > 1:
        rung = _between(pairs, joining)
    else:
        rung = _alone(pairs, joining)
    refused = [*joining.complaints, *rung.refused]
    if joining.steps:  # their size is a measurement: nothing is certain across them
        return replace(rung, refused=refused, bounds=[])
    return replace(rung, refused=refused)


def _in_the_old_order(pairs: Sequence[Pair], joining: Joining) -> bool:
    """Whether START reads high and STOP low by what the old Cockpit's own order puts between them."""
    offsets = {pair.name: pair.offset_ns for pair in pairs}
    if "START" not in offsets or "STOP" not in offsets or _restarted(joining) is False:
        return False
    return offsets["START"] - offsets["STOP"] >= REBOOT_WAIT_NS + STOP_WAIT_NS


def _on_majority(kept: Sequence[Pair], refused: list[str], anchor: Anchor | None) -> Rung:
    """Pairs that agree, against a time-sync that may not: two of them outvote it if no drift is needed."""
    if anchor is None or all(map(anchor.confirms, kept)):
        return on_pairs(kept, refused, anchor)
    offsets = [pair.offset_ns for pair in kept]
    if len(kept) < 3 and max(offsets) - min(offsets) > LATE_NS:
        return _by_time_sync(kept, anchor)
    complaint = f"time-sync: offset {anchor.offset_ns / _S:.3f} s contradicts the marker pairs"
    return replace(on_pairs(kept, [*refused, complaint]), ceiling="medium")


def _by_time_sync(pairs: Sequence[Pair], anchor: Anchor) -> Rung:
    kept = agreeing([pair for pair in pairs if anchor.confirms(pair)])
    why = f"cannot be one event: the time-sync says {anchor.offset_ns / _S:.3f} s"
    refused = refusals(pairs, kept, why)
    return on_pairs(kept, refused, anchor) if kept else on_time_sync(anchor, refused)


def _between(pairs: Sequence[Pair], joining: Joining) -> Rung:
    """Pairs further apart than clocks drift: the offset is somewhere between them."""
    offsets = {pair.name: pair.offset_ns for pair in pairs}
    low_ns, high_ns = min(offsets.values()), max(offsets.values())
    if _restarted(joining) and _in_the_old_order(pairs, joining):
        high_ns = offsets["START"] - REBOOT_WAIT_NS
        low_ns = max(offsets["STOP"] + STOP_WAIT_NS, offsets["START"] - REBOOT_DONE_NS)
    why = "differs from the others by more than clocks drift: not one event, or a clock was set"
    words = (
        f"the offset lies between pairs that are not one event each, {(high_ns - low_ns) / _S:.1f} s apart"
    )
    return _bracketed(pairs, low_ns, high_ns, refusals(pairs, [], why), words)


def _alone(pairs: Sequence[Pair], joining: Joining) -> Rung:
    """At most one pair, and no time-sync to judge it."""
    if not pairs:
        return Rung("none", None, "no marker pair and no time-sync: labels as they are", "low")
    [pair] = pairs
    if pair.name == "STOP":
        why = "alone is not one event: the surface's was written after the Pi's files were fetched"
        return Rung(
            "none", None, "no usable pair: labels as they are", "low", refused=refusals(pairs, [], why)
        )
    restarted = _restarted(joining)
    if restarted:
        why = "is not one event: the surface sensor was restarted after its START, the Pi's came later"
        words = "the surface's START came before the restart of its sensor, the Pi's after it"
        low_ns, high_ns = pair.offset_ns - REBOOT_DONE_NS, pair.offset_ns - REBOOT_WAIT_NS
        return _bracketed(pairs, low_ns, high_ns, refusals(pairs, [], why), words)
    if restarted is False:
        return on_pairs(pairs, [])
    doubtful = on_pairs(pairs, [], bias_sd_ns=REBOOT_DONE_NS / sqrt(3))
    return replace(doubtful, reason=f"{doubtful.reason}, nothing shows that it is one event", ceiling="low")


def _bracketed(pairs: Sequence[Pair], low_ns: int, high_ns: int, refused: list[str], words: str) -> Rung:
    middle_ns = (pairs[0].inwater_ns + pairs[-1].inwater_ns) // 2
    line = constant(middle_ns, (low_ns + high_ns) // 2, float(high_ns - low_ns) ** 2 / 12)
    return Rung("constant", line, words, "low", refused=refused)


def _restarted(joining: Joining) -> bool | None:
    """Whether the surface sensor was restarted after its START and before the Pi's; None if unclear.

    A restart keeps its rows away for the wait; the Pi's START is not followed by such a silence.
    """
    silences = [_silence_ns(joining, side) for side in (INWATER, SURFACE)]
    under_ns, deck_ns = silences
    if deck_ns is None:
        return None
    if deck_ns < REBOOT_WAIT_NS:
        return False
    if under_ns is None or under_ns >= REBOOT_WAIT_NS:
        return None
    return True


def _silence_ns(joining: Joining, side: int) -> int | None:
    """From a side's START to its first reading, negative if that came before; None without either."""
    labels_ns = joining.labels_ns[side]
    start_ns = joining.start_ns[side]
    return labels_ns[0] - start_ns if labels_ns and start_ns is not None else None

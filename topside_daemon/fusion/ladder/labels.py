"""Rungs for the wall labels of old recordings: which marker pairs are one event, and what else is known.

An old Cockpit wrote the surface's START before it restarted that sensor and the Pi's after, and the
Pi's STOP before it fetched files and the surface's after. Such pairs are two events, seconds apart; they
still bracket the offset. No I/O, no clock. Everywhere offset = in-water - surface in ns.
"""

from collections.abc import Sequence
from math import sqrt

from msgspec.structs import replace

from topside_daemon.fusion.ladder.joining import INWATER, SURFACE, Joining
from topside_daemon.fusion.ladder.oneway import (
    CREDIBLE_PPM,
    DELAY_SD_NS,
    LATE_NS,
    Pair,
    agreeing,
    constant,
    fit,
)
from topside_daemon.fusion.ladder.rungs import (
    EARLY_NS,
    STOP_WAIT_NS,
    Anchor,
    Rung,
    on_pairs,
    on_time_sync,
    refusals,
)

REBOOT_WAIT_NS = 3_500_000_000  # after the surface's START its sensor was restarted and flushed this long
REBOOT_DONE_NS = 4_500_000_000  # the calls after that, up to the Pi's START, took less than a second

_S = 1e9  # ns
_PPM = 1e3  # ns per s


def labels_rung(joining: Joining, piece: int) -> Rung:
    """The highest rung that one in-water piece can stand on; its instants are joined labels."""
    pairs, unfit = joining.pairs(piece), []
    if joining.doubts:  # a STOP stands on the agreement of others, and there is none across a doubt
        pairs, all_pairs = [pair for pair in pairs if pair.ordered], pairs
        unfit = refusals(
            all_pairs, pairs, "is behind what may be a step, and nothing shows that it is one event"
        )
    rung = _on_evidence(pairs, joining.anchor(piece), joining)
    rung = replace(rung, refused=[*joining.complaints, *unfit, *rung.refused])
    if joining.steps:  # their size is a measurement: nothing is certain across them
        rung = replace(rung, bounds=[])
    if joining.doubts:
        rung = replace(rung, reason="; ".join([rung.reason, *joining.doubts]), ceiling="low", bounds=[])
    return rung


def _on_evidence(pairs: Sequence[Pair], anchor: Anchor | None, joining: Joining) -> Rung:
    if _in_the_old_order(pairs):
        return _by_time_sync(pairs, anchor) if anchor is not None else _between(pairs, joining)
    believed = _without_early_stop(pairs, anchor)
    early = refusals(
        pairs, believed, "is lower than the others explain: not one event, the Pi's was written first"
    )
    kept = agreeing(believed)
    if len(kept) > 1 and not _too_steep(kept):
        rung = _on_majority(kept, refusals(believed, kept, "contradicts the others"), anchor)
    elif anchor is not None:
        rung = _by_time_sync(believed, anchor)
    elif len(believed) > 1:
        rung = _between(believed, joining)
    else:
        rung = _alone(believed, joining)
    return replace(rung, refused=[*early, *rung.refused])


def _too_steep(pairs: Sequence[Pair]) -> bool:
    """Whether two pairs, without a third to tell which is wrong, need more drift than crystals have."""
    first, last = pairs[0], pairs[-1]
    drifted_ns = CREDIBLE_PPM * _PPM * abs(last.inwater_ns - first.inwater_ns) / _S
    known_ns = 4 * DELAY_SD_NS + 3 * (first.carried_ns + last.carried_ns)
    return len(pairs) == 2 and abs(last.offset_ns - first.offset_ns) > drifted_ns + known_ns


def _without_early_stop(pairs: Sequence[Pair], anchor: Anchor | None) -> list[Pair]:
    """The pairs but for a STOP that reads lower by what the old Cockpit waited in between.

    The line under the others says how low drift can take it; a lone START says less than a time-sync.
    """
    others = agreeing([pair for pair in pairs if pair.ordered])
    if not others or (anchor is not None and len(others) < 2):
        return list(pairs)
    line = fit(others)

    def early(pair: Pair) -> bool:
        expected_ns, variance = line.at(pair.inwater_ns)
        return (
            expected_ns - pair.offset_ns > min(EARLY_NS, LATE_NS + 3 * sqrt(variance)) + 3 * pair.carried_ns
        )

    return [pair for pair in pairs if pair.ordered or not early(pair)]


def _in_the_old_order(pairs: Sequence[Pair]) -> bool:
    """Whether START reads high and STOP low by what the old Cockpit's own order puts between them."""
    offsets = {pair.name: pair.offset_ns for pair in pairs}
    if "START" not in offsets or "STOP" not in offsets:
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
    confirmed = [pair for pair in pairs if anchor.confirms(pair)]
    if any(pair.name == "START" for pair in set(pairs) - set(confirmed)):
        confirmed = [pair for pair in confirmed if pair.ordered]  # who wrote such a START wrote such a STOP
    kept = agreeing(confirmed)
    why = f"cannot be one event: the time-sync says {anchor.offset_ns / _S:.3f} s"
    refused = refusals(pairs, kept, why)
    return on_pairs(kept, refused, anchor) if kept else on_time_sync(anchor, refused)


def _between(pairs: Sequence[Pair], joining: Joining) -> Rung:
    """Pairs further apart than clocks drift: the offset is somewhere between them, or the lower is late."""
    offsets = {pair.name: pair.offset_ns for pair in pairs}
    low_ns, high_ns = min(offsets.values()) - round(4 * DELAY_SD_NS), max(offsets.values())
    first_ns, last_ns = pairs[0].inwater_ns, pairs[-1].inwater_ns
    at_ns = (first_ns + last_ns) // 2
    if _restarted(joining) and _in_the_old_order(pairs):
        drifted_ns = round(CREDIBLE_PPM * _PPM * (last_ns - first_ns) / _S)
        at_ns, high_ns = first_ns, offsets["START"] - REBOOT_WAIT_NS
        low_ns = max(offsets["STOP"] + STOP_WAIT_NS - drifted_ns, offsets["START"] - REBOOT_DONE_NS)
    why = "differs from the others by more than clocks drift: not one event, or a clock was set"
    words = (
        f"the offset lies between pairs that are not one event each, {(high_ns - low_ns) / _S:.1f} s apart"
    )
    carried_ns = max(pair.carried_ns for pair in pairs)
    return _bracketed(at_ns, low_ns, high_ns, carried_ns, words, refusals(pairs, [], why))


def _alone(pairs: Sequence[Pair], joining: Joining) -> Rung:
    """At most one pair, and no time-sync to judge it."""
    if not pairs:
        return Rung("none", None, "no marker pair and no usable time-sync: labels as they are", "low")
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
        return _bracketed(pair.inwater_ns, low_ns, high_ns, pair.carried_ns, words, refusals(pairs, [], why))
    if restarted is False:
        return on_pairs(pairs, [])
    doubtful = on_pairs(pairs, [], bias_sd_ns=REBOOT_DONE_NS / sqrt(3))
    reason = f"{doubtful.reason}, nothing shows that it is one event"
    return replace(doubtful, reason=reason, ceiling="low", bounds=[])


def _bracketed(
    at_ns: int, low_ns: int, high_ns: int, carried_ns: float, words: str, refused: list[str]
) -> Rung:
    line = constant(at_ns, (low_ns + high_ns) // 2, float(high_ns - low_ns) ** 2 / 12 + carried_ns**2)
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

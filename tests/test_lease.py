"""Who may stop a recording."""

import pytest

from common.web import Refused
from pi_daemon.lease import ABANDONED_S, LEASE_S, Lease
from tests.sim.clocks import SimClock


def test_a_recording_without_holder_is_anybodys() -> None:
    """Old clients know nothing of holders and are not hindered."""
    lease = Lease("s", None, SimClock())
    assert not lease.check(None, force=False)
    assert not lease.check("somebody", force=False)
    assert lease.holder is None


def test_a_recording_whose_client_is_gone_is_abandoned() -> None:
    """Nobody holds it and nobody asks about it; one that is held is never."""
    clock = SimClock()
    old, held = Lease("s", None, clock), Lease("s", "deck", clock)
    for _ in range(5):
        clock.advance(60.0)
        assert not old.abandoned
        old.heard(None)
    clock.advance(ABANDONED_S + 1)
    assert (old.abandoned, held.abandoned) == (True, False)


def test_others_are_told_who_holds_it() -> None:
    """As long as the holder is heard, another caller and an old client are refused by name."""
    clock = SimClock()
    lease = Lease("s", "deck", clock)
    for caller in ("other", None):
        for _ in range(3):
            clock.advance(LEASE_S - 1)
            lease.heard("deck")
            lease.heard("other")
            clock.advance(1)
            with pytest.raises(Refused, match="held by deck, heard 1 s ago") as refused:
                lease.check(caller, force=False)
            assert refused.value.status == 409
    assert not lease.check("deck", force=False)


@pytest.mark.parametrize("how", ["force", "silence"])
def test_a_lease_can_be_taken(how: str) -> None:
    """By force, or once the holder has been silent for long, and then it is the new one's."""
    clock = SimClock()
    lease = Lease("s", "deck", clock)
    if how == "silence":
        clock.advance(LEASE_S)
    assert lease.check("other", force=how == "force")
    assert lease.holder == "other"
    with pytest.raises(Refused, match="held by other"):
        lease.check("deck", force=False)

"""Who may steer a recording: the topside that started it, as long as it is heard from now and then."""

from common.clock import Clock
from common.web import Refused

LEASE_S = 30.0  # a holder that is silent for longer has lost it
ABANDONED_S = 180.0  # a recording without holder, likewise; the old client asks every 60 s at least


class Lease:
    """One recording's holder, and when it was heard last; a recording without holder is anybody's."""

    def __init__(self, session_id: str, holder: str | None, clock: Clock) -> None:
        self._session_id = session_id
        self.holder = holder
        self._clock = clock
        self._heard_ns = clock.mono_ns()

    def heard(self, caller: str | None) -> None:
        """Somebody has asked for something that anybody may ask for."""
        if self.holder is None or caller == self.holder:
            self._heard_ns = self._clock.mono_ns()

    @property
    def abandoned(self) -> bool:
        """Nobody holds it and nobody asks about it: its client, an old one, is gone, and the next does not
        know it."""
        return self.holder is None and self._age_s() > ABANDONED_S

    def check(self, caller: str | None, force: bool) -> bool:
        """Let *caller* steer the recording, and hold it from now on; True if it was another's until now.

        Raises:
            Refused: 409, somebody else holds it and is alive.
        """
        if self.holder is None or caller == self.holder:
            self.heard(caller)
            return False
        if not force and self._age_s() < LEASE_S:
            raise Refused(409, f"{self}: stop it there, or ask again with force")
        self.holder = caller
        self.heard(caller)
        return True

    def _age_s(self) -> float:
        return (self._clock.mono_ns() - self._heard_ns) / 1e9

    def __str__(self) -> str:
        if self.holder is None:
            return f"session {self._session_id} is recording"
        return f"session {self._session_id} is held by {self.holder}, heard {self._age_s():.0f} s ago"

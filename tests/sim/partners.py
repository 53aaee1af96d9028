"""Two daemons that have been paired, without the code having been typed."""

from pathlib import Path

from common.clock import SystemClock
from common.keys import Keyring, Pass, Wallet

NAME = "topside"


def introduce(pi_data: Path, topside_data: Path, url: str) -> Pass:
    """Pair them by their data folders; returns what the Pi gave."""
    keyring, wallet = Keyring(pi_data, SystemClock()), Wallet(topside_data)
    token = keyring.redeem(keyring.offer(), wallet.key_pair().public, NAME)
    given = Pass(url, token, keyring.key_pair().public, "")
    wallet.keep(given)
    return given

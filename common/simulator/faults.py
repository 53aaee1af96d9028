"""What can go wrong with a simulated sensor, as words: `unplug@20:5,reboot@40`."""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from common.simulator.terminal import BAUDS


class FaultError(ValueError):
    """A fault that cannot be understood; the message says which and lists those that can."""


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 1e6:
        raise ValueError
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 65536:
        raise ValueError
    return count


def _baud(text: str) -> int:
    baud = int(text)
    if baud not in BAUDS:
        raise ValueError
    return baud


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return read


_Read = Callable[[str], float | int | str]
# Every fault is a method of Simulator; here is how its argument is called and read.
FAULTS: Mapping[str, tuple[str, _Read] | None] = MappingProxyType(
    {
        "unplug": ("seconds", _seconds),
        "replug": None,
        "reboot": None,
        "menu": None,
        "garbage": ("bytes", _count),
        "half": ("head|tail", _one_of("head", "tail")),
        "splice": None,
        "silence": ("seconds", _seconds),
        "baud": ("baud", _baud),
        "prober": None,
        "shape": ("temp|vin", _one_of("temp", "vin")),
    }
)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a sensor at_s after its start; see the methods of Simulator."""

    name: str
    arguments: tuple[float | int | str, ...] = ()
    at_s: float = 0.0


def parse_fault(text: str) -> Fault:
    """`name[@second][:argument]`.

    Raises:
        FaultError: unknown name or impossible argument.
    """
    head, colon, argument = text.strip().partition(":")
    name, at, second = head.partition("@")
    if name not in FAULTS:
        raise FaultError(f"unknown fault {name!r}; valid: {_valid_faults()}")
    kind = FAULTS[name]
    try:
        at_s = _seconds(second) if at else 0.0
        if not colon:
            return Fault(name, (), at_s)
        if kind is None:
            raise ValueError
        return Fault(name, (kind[1](argument),), at_s)
    except ValueError:
        raise FaultError(f"bad fault {text.strip()!r}; valid: {_valid_faults()}") from None


def parse_faults(text: str) -> list[Fault]:
    """A schedule: `name@second[:argument]`, separated by commas.

    Raises:
        FaultError: one of them is unknown, malformed or has no second.
    """
    parts = [part for part in text.split(",") if part.strip()]
    for part in parts:
        if "@" not in part:
            raise FaultError(f"fault {part.strip()!r} has no @second; valid: {_valid_faults()}")
    return [parse_fault(part) for part in parts]


def _valid_faults() -> str:
    return ", ".join(f"{name}@second" + (f"[:{kind[0]}]" if kind else "") for name, kind in FAULTS.items())


def take_faults(strike: Callable[[Fault], None]) -> None:
    """Strike with every fault that comes as a line on standard input, until it ends; complain of others."""
    loop = asyncio.get_running_loop()
    pending = b""

    def read() -> bool:
        nonlocal pending
        data = os.read(0, 4096)
        *lines, pending = (pending + data).split(b"\n") if data else [pending, b""]
        for line in filter(None, (line.decode("ascii", "replace").strip() for line in lines)):
            try:
                strike(parse_fault(line))
            except FaultError as error:
                sys.stderr.write(f"{error}\n")
        return bool(data)

    def on_readable() -> None:
        if not read():
            loop.remove_reader(0)

    try:
        loop.add_reader(0, on_readable)
    except PermissionError:  # a file: never waits, and cannot be waited for
        while read():
            pass

"""Rubbish for the serial line and the bus; that for the HTTP calls is in `tests.sim.requests`.

All of it is drawn from a `random.Random`, so that a seed repeats it to the byte.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

import msgspec
from msgspec import Raw

from common.bus import INWATER
from common.messages import to_json
from common.simulator.texts import Eeprom, Sample, dump, menu_text, power_on_text, sign_on

FRAME_BYTES = 65_536  # what the bus takes at most
NEST = 40_000
TRUE_LINE = re.compile(rb"(-?\d{1,10})\.(\d{6}), -?\d+\.\d{2}, \d+\.\d{3}")
PREFIX = INWATER.encode()
READING, STATUS = PREFIX + b"reading", PREFIX + b"status"
NOWHERE = "99999999-9999-4999-8999-999999999999"  # a session that does not exist

# Values that a JSON reader may stumble over, each in its JSON form.
ODD: tuple[bytes, ...] = (
    *(b"null", b"true", b"[]", b"{}", b'""', b'"x"', b"NaN", b"-Infinity", b"1e400", b"-1e400", b"1e-400"),
    *(
        b"0.5",
        b"-0",
        b"-1",
        b"1" + 15 * b"0",
        b"9223372036854775807",
        b"9223372036854775808",
        b"1" + 30 * b"0",
    ),
    *(
        b"9" * 400,
        b"9" * 5000,
        b"-" + b"9" * 400,
        b'"\\ud800"',
        b'"\\u0000"',
        b'"\xff\xfe"',
        b'"\xed\xa0\x80"',
    ),
    *(b'"../../../etc/passwd"', b'"=cmd()"', b'"' + b"x" * 300 + b'"', b'"' + 60_000 * b"x" + b'"'),
    *(b"[" * NEST, b"[" * 400 + b"]" * 400, b'{"a":' * 5000, b"[" * 5000 + b"]" * 5000),
    *('"١٢٣"'.encode(), '"\u202e\u2028"'.encode(), b'"1"', b"01", b"+1", b"1_0", b'{"a":1,"a":2}'),
)

Change = Callable[[Random, bytes], bytes]


def _span(rng: Random, data: bytes) -> tuple[int, int]:
    first = rng.randrange(len(data) + 1)
    return first, min(len(data), first + rng.choice((1, 1, 2, 5, 20)))


def _flip(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data)) if data else 0
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if data else b"\0"


def _drop(rng: Random, data: bytes) -> bytes:
    first, end = _span(rng, data)
    return data[:first] + data[end:]


def _repeat(rng: Random, data: bytes) -> bytes:
    first, end = _span(rng, data)
    span = data[first:end]
    return data[:end] + span * (1 if b"\n" in span else rng.choice((1, 1, 3, 50))) + data[end:]


def _insert(rng: Random, data: bytes) -> bytes:
    at, count = rng.randrange(len(data) + 1), rng.choice((1, 1, 3, 30))
    odd = rng.choice((b"\0", b"\xff", b"\n", b"\r", b"\r\n", b",", b"0", b"-", b'"', b"%", rng.randbytes(4)))
    return data[:at] + odd * count + data[at:]


def _head(rng: Random, data: bytes) -> bytes:
    return data[rng.randrange(len(data) + 1) :]


def _tail(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _swap(rng: Random, data: bytes) -> bytes:
    first, end = _span(rng, data)
    return data[end:] + data[first:end] + data[:first]


CHANGES: tuple[Change, ...] = (_flip, _flip, _drop, _repeat, _insert, _head, _tail, _swap)


def bend(rng: Random, data: bytes) -> bytes:
    """*data* after one or a few of the things that a bad wire, or an enemy, does to bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        data = rng.choice(CHANGES)(rng, data)
    return data


def line_text(number: int) -> bytes:
    """The sensor's line of this number; what stands behind the value is drawn from it, to know it again."""
    temp, vin = number * 7919 % 10_000, number * 104_729 % 10_000
    text = f"{number // 10**6}.{number % 10**6:06d}, {temp // 100}.{temp % 100:02d}"
    return f"{text}, {vin // 1000}.{vin % 1000:03d}".encode()


def is_true_line(text: bytes) -> bool:
    """Whether a line is one of `line_text`, to the byte."""
    found = TRUE_LINE.fullmatch(text)
    return found is not None and text == line_text(int(found[1]) * 10**6 + int(found[2]))


class SerialRubbish:
    """A sensor on a bad cable: `calm` lines as it says them, and a `storm` of what may come instead."""

    def __init__(self, rng: Random, number: int) -> None:
        """*number*: of its first line."""
        self._rng = rng
        self._number = number
        e, here = Eeprom(), Sample(0.010157, 25.19, 7.494)
        words = [*sign_on(e), *power_on_text(e, here), *menu_text(e, here), dump(e, here)]
        words += ["ADC OK", "Start free run sampling", "Starting Sampling; quiet mode =0", "Calling reset"]
        self._words = [word.encode() for word in words]

    def calm(self) -> bytes:
        """The next line as the sensor sends it."""
        self._number += 1
        return line_text(self._number) + b"\r\n"

    def storm(self, lines: int) -> Iterator[bytes]:
        """About so many lines; how many of them are not what the sensor said is drawn too, to nearly all."""
        share, words = self._rng.choice((0.03, 0.2, 0.5, 0.9)), self._rng.random() < 0.5
        kinds = self._KINDS if words else self._KINDS[:-1]
        for _ in range(lines):
            yield self._rng.choice(kinds)(self) if self._rng.random() < share else self.calm()

    def _bent(self) -> bytes:
        return bend(self._rng, self.calm())

    def _torn(self) -> bytes:
        line = self.calm()
        return line[: self._rng.randrange(len(line))]

    def _spliced(self) -> bytes:
        one, other = self.calm(), self.calm()
        return one[: self._rng.randrange(len(one))] + other[self._rng.randrange(len(other)) :]

    def _word(self) -> bytes:
        word = self._rng.choice(self._words)
        return (bend(self._rng, word) if self._rng.random() < 0.5 else word) + b"\r\n"

    def _rare(self) -> bytes:
        """A few words, noise, or now and then 80 KiB without an end."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.01:
            return rng.choice((b"\0", b"\xff", b"0", rng.randbytes(1).replace(b"\n", b"x"))) * 81_920
        if kind < 0.5:
            return rng.randbytes(rng.randrange(200))
        return self._word()

    _KINDS = (_bent, _bent, _bent, _bent, _torn, _spliced, _spliced, _rare)


def pieces(rng: Random, data: bytes) -> Iterator[bytes]:
    """The same bytes cut as a port may deliver them."""
    while data:
        size = rng.choice((1, 7, 30, 64, 4096, 4096))
        yield data[:size]
        data = data[size:]


def odd_object(rng: Random, record: Mapping[str, bytes]) -> bytes:
    """A JSON object of which one field, now and then more, is missing or odd."""
    fields = dict(record)
    for _ in range(rng.choice((1, 1, 1, 3))):
        name = rng.choice([*fields, "x"])
        if rng.random() < 0.1:
            fields.pop(name, None)
        else:
            fields[name] = rng.choice(ODD)
    return join(fields)


def join(fields: Mapping[str, bytes]) -> bytes:
    """A JSON object of raw values."""
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in fields.items()) + b"}"


def fields_of(record: Mapping[str, Any]) -> dict[str, bytes]:
    """Each value in its JSON form."""
    return {name: to_json(value) for name, value in record.items()}


class BusRubbish:
    """What a hostile publisher sends for the Pi's: messages of a session that it has listened to."""

    def __init__(self, rng: Random, heard: Mapping[bytes, bytes], seq: int = 0) -> None:
        """*heard*: a message of each topic; it must have READING and STATUS. *seq*: that is waited for."""
        self._rng = rng
        self._seq = seq
        self._records = {
            topic: {name: bytes(raw) for name, raw in msgspec.json.decode(said, type=dict[str, Raw]).items()}
            for topic, said in heard.items()
        }
        self._topics = [*self._records, READING, READING]

    def status(self, detail: str) -> list[bytes]:
        """A right status message that says this."""
        return [STATUS, join(self._records[STATUS] | {"detail": to_json(detail)}), b"1.0"]

    def fat(self) -> list[bytes]:
        """A reading that is as large as a message may be, and far ahead."""
        self._seq += 1
        odd = {"seq": b"%d" % (self._seq + 10**6), "sensor_id": b'"' + 60_000 * b"x" + b'"'}
        return [READING, join(self._records[READING] | odd), b"1.0"]

    def draw(self) -> list[bytes]:
        """One message."""
        rng = self._rng
        topic = rng.choice(self._topics)
        record = self._records[topic]
        if topic == READING:
            self._seq += rng.choice((1, 1, 1, 2, 0, -3))
            seq = self._seq + rng.choice((0, 0, 0, 0, 100_000, 10**15))
            epoch = rng.choice((0, 0, rng.randrange(10**6)))
            record = record | {"seq": b"%d" % seq, "epoch": b"%d" % epoch}
        kind = rng.random()
        if kind < 0.5:
            payload = odd_object(rng, record)
        elif kind < 0.8:
            payload = bend(rng, join(record))
        elif kind < 0.9:
            payload = rng.choice((join(record), rng.choice(ODD), rng.randbytes(rng.randrange(300))))
        else:
            return self._miscounted([topic, join(record), b"1.0"])
        return [topic, payload[: FRAME_BYTES - 1], b"1.0"]

    def _miscounted(self, frames: list[bytes]) -> list[bytes]:
        """Not three frames, or not in this order; the topic stays in front, or nobody hears it."""
        topic, *rest = frames
        prefix, name = topic[: len(PREFIX)], topic[len(PREFIX) :]
        odd = bend(self._rng, name)
        return self._rng.choice(
            (
                [topic],
                [topic, rest[0]],
                [topic, *rest, b""],
                [topic, *rest * 50],
                [topic, b"", b""],
                [topic, *reversed(rest)],
                [prefix + odd, *rest],
                [prefix + b"\xff" + odd, *rest],
            )
        )

"""HTTP requests that are almost right, drawn from a `random.Random`: a seed repeats them to the byte."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple
from urllib.parse import quote
from zlib import compress

from tests.sim.rubbish import NOWHERE, ODD, bend, fields_of, join, odd_object


class Call(NamedTuple):
    """A call that a daemon answers; body: the fields of its JSON object."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None


_TRAVERSALS = tuple(
    f"/files/{folder}/{name}"
    for folder in ("..", "%2e%2e", "..%2f..", ".", "%00", NOWHERE, "SESSION", "SESSION/..")
    for name in (
        *("../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "%2e%2e%2fsecret.txt", "..%5csecret.txt"),
        *(
            "..%252fsecret.txt",
            "%c0%ae%c0%ae%c0%afsecret.txt",
            "secret.txt",
            "secret.txt%00.csv",
            "%2fetc%2fpasswd",
        ),
        *("chunk_00000.csv%2f..%2f..%2fsecret.txt", "chunk_00000.csv", "chunk_00000.tmp", "chunk_99999.csv"),
        *(
            "chunk_" + "9" * 300 + ".csv",
            "chunk_" + "9" * 5000 + ".csv",
            quote("chunk_٠٠٠٠٠.csv"),
            "session.json",
        ),
        *("markers.jsonl", "events.jsonl", "manifest.json", "chunk_-0001.csv", "%ff%fe", "%ed%a0%80", "%"),
    )
)
_RANGES = (
    *("bytes=0-", "bytes=5-4", "bytes=999999999999999999-", "bytes=-5", "bytes=0-0,2-3", "bytes=a-b"),
    *("bytes=0-999999999999999999", "bytes=" + "9" * 400 + "-", "bytes=٠-", "lines=1-2", "bytes=-0", ""),
)
_QUERIES = (
    *(
        "after=" + "9" * 5000,
        "after=-1",
        "after=x",
        "session_id=%ff%fe",
        "session_id=%ed%a0%80",
        "after=1e400",
    ),
    *("session_id=" + "x" * 4000, "session_id=..%2f..", "&&&&", "session_id", "poll_hz=nan", "poll_hz=1e999"),
    *("auto_record=2", "after=%D9%A1", "session_id=SESSION&after=99999999999999999999", "=%00", "%=%&%"),
)
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW", "get", "")
_FRAMINGS: tuple[tuple[bytes, bytes], ...] = (
    (b"Content-Length: 5", b'{"a":1}'),
    (b"Content-Length: 99999", b"{}"),
    (b"Content-Length: -1", b"{}"),
    (b"Content-Length: 0x2", b"{}"),
    (b"Content-Length: 2\r\nContent-Length: 3", b"{}"),
    (b"Content-Length: 2\r\nTransfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked", b"ffffffffffffffff\r\n{}"),
    (b"Transfer-Encoding: chunked", b"-2\r\n{}\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: chunked, chunked", b"2\r\n{}\r\n0\r\n\r\n"),
    (b"Transfer-Encoding: xchunked", b"2\r\n{}\r\n0\r\n\r\n"),
    (b"Content-Encoding: gzip\r\nContent-Length: 5", b"abcde"),
    (b"Content-Encoding: br\r\nContent-Length: 5", b"abcde"),
    (b"Expect: 100-continue\r\nContent-Length: 2", b"{}"),
    (b"Expect: nothing\r\nContent-Length: 2", b"{}"),
    (b"Content-Type: multipart/form-data; boundary=\xff\r\nContent-Length: 2", b"{}"),
    (b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x", b""),
    (b"X: " + b"y" * 9000, b""),
    (b"\r\n".join(b"X%d: y" % n for n in range(2000)), b""),
    (b"No colon here", b""),
    (b"X: a\0b", b""),
)
_BOMB = compress(b" " * 2_000_000)


def written(method: str, path: str, framing: bytes = b"", content: bytes = b"") -> bytes:
    """A request as bytes; *framing*: header lines that say how long it is, rightly or not."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()
    return head + framing + b"\r\n" * (1 + bool(framing)) + content


def with_body(method: str, path: str, content: bytes, more: bytes = b"") -> bytes:
    """A request with a body of the right length."""
    length = b"Content-Type: application/json\r\nContent-Length: %d" % len(content)
    return written(method, path, length + more, content)


class HttpRubbish:
    """Requests that are almost right, as bytes, to any of these calls and to the files of this session."""

    def __init__(self, rng: Random, calls: Sequence[Call], session_id: str) -> None:
        self._rng = rng
        self._calls = calls
        self._session_id = session_id

    def draw(self) -> bytes:
        """One request, or what pretends to be one."""
        kind = self._rng.choice(self._KINDS)
        return kind(self, self._rng.choice(self._calls))

    def draw_body(self) -> bytes:
        """A whole request, of which only what stands in its body is odd."""
        kind = self._rng.choice((HttpRubbish._right, HttpRubbish._odd_body, HttpRubbish._broken_body))
        return kind(self, self._rng.choice(self._calls))

    def _right(self, call: Call) -> bytes:
        if call.body is None:
            return written(call.method, call.path)
        return with_body(call.method, call.path, join(fields_of(call.body)))

    def _odd_body(self, call: Call) -> bytes:
        content = odd_object(self._rng, fields_of(call.body or {}))
        return with_body(call.method, call.path, content)

    def _broken_body(self, call: Call) -> bytes:
        odd = bend(self._rng, join(fields_of(call.body or {})))
        content = self._rng.choice((odd, odd, self._rng.choice(ODD), self._rng.randbytes(100), b" " * 20_000))
        return with_body(call.method, call.path, content)

    def _bomb(self, call: Call) -> bytes:
        return with_body(call.method, call.path, _BOMB, b"\r\nContent-Encoding: deflate")

    def _bent(self, call: Call) -> bytes:
        return bend(self._rng, self._right(call))

    def _file(self, _call: Call) -> bytes:
        ranged = f"Range: {self._rng.choice(_RANGES)}" if self._rng.random() < 0.5 else ""
        return written("GET", self._named(self._rng.choice(_TRAVERSALS)), ranged.encode())

    def _query(self, call: Call) -> bytes:
        path = call.path.partition("?")[0]
        return written(call.method, f"{path}?{self._named(self._rng.choice(_QUERIES))}")

    def _named(self, text: str) -> str:
        return text.replace("SESSION", self._session_id)

    def _method(self, call: Call) -> bytes:
        return written(self._rng.choice(_METHODS), call.path)

    def _framing(self, call: Call) -> bytes:
        return written(call.method, call.path, *self._rng.choice(_FRAMINGS))

    def _noise(self, _call: Call) -> bytes:
        return self._rng.randbytes(self._rng.randrange(1, 2000)) + b"\r\n\r\n"

    _KINDS = (
        *(_right, _odd_body, _odd_body, _odd_body, _broken_body, _broken_body, _bent, _bent, _bent),
        *(_file, _file, _query, _query, _method, _framing, _framing, _noise, _bomb),
    )

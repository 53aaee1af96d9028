"""Columns as arrays, for the inner loops in numpy."""

import numpy as np
from numpy.typing import NDArray

from topside_daemon.fusion.columns import Column

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]

NS = 1_000_000_000
ZERO = 48  # the digit


def ints(values: Column) -> Ints:
    """The same memory."""
    return np.frombuffer(values, np.int64)


def mark(bits: bytearray, numbers: Ints) -> None:
    """Set the bits of some rows."""
    if len(numbers):
        packed = np.frombuffer(bits, np.uint8)
        np.bitwise_or.at(packed, numbers >> 3, (1 << (numbers & 7)).astype(np.uint8))


def marked(bits: bytearray, first: int, count: int) -> Flags:
    """The bits of some rows."""
    packed = np.frombuffer(bits, np.uint8)[first >> 3 : (first + count + 7) >> 3]
    unpacked = np.unpackbits(packed, bitorder="little")[first & 7 : (first & 7) + count]
    return unpacked.astype(np.bool_)


def pieces(text: Bytes, starts: Ints, width: int) -> Bytes:
    """The bytes of a text from some places on; behind its end there is nothing but zeros."""
    if len(starts) and int(starts.max()) + width > len(text):
        text = np.concatenate((text, np.zeros(width, np.uint8)))
    places = max(len(text) - width + 1, 0)
    found = np.ndarray(places, f"V{width}", text, 0, (1,))[starts]  # several times faster than rows of bytes
    return found.view(np.uint8).reshape(len(starts), width)


def places_of(byte: int, text: Bytes) -> Ints:
    """Where a byte is in a text. A rare one is found word by word, several times faster than byte by byte."""
    found = np.zeros(-(-len(text) // 8) * 8, np.bool_)
    np.equal(text, byte, out=found[: len(text)])
    words = found.view("<u8")
    there = np.flatnonzero(words != 0)
    bits = words[there]
    if (bits & bits - np.uint64(1)).any():  # two in a word
        return np.flatnonzero(found)
    exponents = (bits.astype(np.float64).view(np.int64) >> 52) - 1023
    return (there << 3) + (exponents >> 3)

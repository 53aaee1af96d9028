"""A disk that refuses: the kernel's own limit on the size of a file, a short write first, an error after it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_after(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond *size_bytes*: a write across it is cut short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

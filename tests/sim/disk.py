"""A disk that refuses, and what a dead process leaves behind."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

Content = dict[str, bytes]


@contextmanager
def full_after(size_bytes: int) -> Iterator[None]:
    """No file grows beyond *size_bytes*: a write across it is cut short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def close_files_below(folder: Path) -> None:
    """What the kernel does for a process that is killed."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = entry.readlink()
        except FileNotFoundError:
            continue
        if target.is_relative_to(folder):
            os.close(int(entry.name))


def content_of(folder: Path) -> Content:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lay_down(folder: Path, content: Content) -> Path:
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def stages(folder: Path, work: Callable[[], object]) -> list[Content]:
    """Every different state that a kill between two statements of *work* would leave in *folder*."""
    seen = [content_of(folder)]

    def look(_frame: FrameType, _event: str, _argument: Any) -> Any:
        now = content_of(folder)
        if now != seen[-1]:
            seen.append(now)
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        work()
    finally:
        sys.settrace(before)
    return [*seen, content_of(folder)]

"""Session folders of any kind, drawn; cut, shuffled and damaged."""

from pathlib import Path
from random import Random

from common.messages import Reading
from tests.sim import HEAD, Machine, SimSession, draw_session


def drawn(rng: Random) -> SimSession:
    """With holes of any length in both records."""
    topside = Machine("topside-a", ahead_ns=rng.randrange(10**15))
    pi = Machine("pi-a", ahead_ns=rng.randrange(10**15), drift_ppm=rng.uniform(-100, 100))
    session = draw_session(rng.randrange(10**6), duration_s=rng.randrange(1, 40), topside=topside, pi=pi)
    session.inwater[:], session.surface[:] = _thinned(session.inwater, rng), _thinned(session.surface, rng)
    return session


def _thinned(readings: list[Reading], rng: Random) -> list[Reading]:
    kept, away = [], 0
    for one in readings:
        away = away - 1 if away else rng.randrange(1, 60) * (rng.random() < 0.03)
        if not away:
            kept.append(one)
    return kept


def rechunk(folder: Path, rng: Random) -> None:
    """The same rows cut otherwise, shuffled, some of them twice."""
    for stream in folder.glob("*_*"):
        lines = [
            line
            for chunk in sorted(stream.glob("chunk_*"))
            for line in chunk.read_bytes().splitlines(keepends=True)[1:]
        ]
        for chunk in stream.glob("chunk_*"):
            chunk.unlink()
        if rng.random() < 0.5:
            for _ in range(rng.randrange(5)):
                if lines:
                    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        if rng.random() < 0.3:
            rng.shuffle(lines)
        cuts = sorted(rng.randrange(len(lines) + 1) for _ in range(rng.randrange(4)))
        for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(lines)], strict=True)):
            (stream / f"chunk_{number:05d}.csv").write_bytes(HEAD + b"".join(lines[start:end]))


def damage(folder: Path, rng: Random) -> str:
    """Do some harm to one of the files of a session; what it was."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    how = rng.choice(("turn", "cut", "insert", "repeat", "remove", "open"))
    place = rng.randrange(len(content) + 1)
    if how == "turn" and content:
        content[place % len(content)] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[place:]
    elif how == "insert":
        content[place:place] = rng.randbytes(rng.randrange(1, 30))
    elif how == "repeat":
        content[place:place] = content[: rng.randrange(len(content) + 1)]
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(content)
    if how == "open" and path.name.startswith("chunk_"):
        path.rename(path.with_suffix(".tmp"))
    return f"{path.relative_to(folder)}: {how} at {place}"

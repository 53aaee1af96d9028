"""The inner loops: compiled and in numpy the same to the last bit, and both what they are meant to be."""

import shutil
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import topside_daemon.fusion.kernel as kernel_package
from common.messages import Marker, Reading
from common.rows import decode_row, encode_row
from tests.sim import MS, UTC_0, S
from tests.sim.table import CC, kernels
from topside_daemon.fusion.cockpit import decode_old_row
from topside_daemon.fusion.columns import (
    FLAGS_SHIFT,
    LENGTH_MAX,
    MISSING,
    ODD_MAX,
    OFFSET_SHIFT,
    SLACK,
    UNNUMBERED,
    Course,
    Placed,
    Rows,
    Tally,
    column,
    column_of,
)
from topside_daemon.fusion.courses import follow, packed
from topside_daemon.fusion.kernel import SOURCE, Kernel, choose_kernel, proof_file
from topside_daemon.fusion.kernel.build import FLAGS, build
from topside_daemon.fusion.matching import Matcher
from topside_daemon.fusion.spill import Spill

pytestmark = pytest.mark.heavy

needs_compiler = pytest.mark.skipif(CC is None, reason="there is no C compiler")
KERNELS = kernels()


def bits(marked: bytearray, count: int) -> list[int]:
    return [n for n in range(count) if marked[n >> 3] >> (n & 7) & 1]


# ---- text to columns ---------------------------------------------------------------------------------------

NUMBER = st.from_regex(r"-?[0-9]{1,3}(\.[0-9]{1,6})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
WORD = st.text(st.sampled_from("abZ #:/"), max_size=8)
LABEL = st.builds(
    lambda day, time, fraction, zone: f"{day}T{time}{fraction}{zone}",
    st.sampled_from(["2025-11-21", "2024-02-29", "2025-02-29", "1969-12-31", "2099-12-31", "2100-01-01"]),
    st.sampled_from(["22:34:59", "00:00:00", "23:59:59", "24:00:00", "12:60:00", "1:02:03"]),
    st.sampled_from([".123", ".123456", ".000000", "", ".12", ".1234567", ".12a"]),
    st.sampled_from(["Z", "+00:00", "+01:00", "z", ""]),
)
MODE = st.sampled_from(["freerun", "polled", "SYNC_START", "SYNC_X", ""])
OLD = st.builds(
    lambda *fields: ",".join(fields), LABEL, WORD, MODE, NUMBER, NUMBER | st.just(""), NUMBER | st.just("")
)
GOOD = st.builds(
    lambda second, value, temp, vin: (
        f"2025-11-21T22:34:{second:02d}.{value:06d}+00:00,s,freerun,0.{value},{temp},{vin}"
    ),
    st.integers(0, 59),
    st.integers(0, 999_999),
    st.sampled_from(["25.19", ""]),
    st.sampled_from(["7.494", ""]),
)
READING = st.builds(
    Reading,
    seq=st.integers(0, 10**6),
    epoch=st.integers(0, 3),
    mono_ns=st.integers(0, 10**18),
    utc_ns=st.integers(0, 10**9).map(lambda us: UTC_0 + us * 1000),
    sensor_id=st.sampled_from(["a", "serial ##"]),
    mode=st.just("freerun"),
    value=st.integers(0, 99999).map(lambda n: f"0.{n:05d}"),
    temp_c=st.sampled_from(["25.19", None]),
    vin=st.sampled_from(["7.494", None]),
)
END_OF_LINE = st.sampled_from(["\n", "\r\n", "\r", ""])


def garbled(lines: list[str], rng: Random) -> bytes:
    """Some bytes turned, taken out or put in."""
    text = bytearray("".join(lines).encode())
    for _ in range(rng.randrange(4) if text else 0):
        place, how = rng.randrange(len(text)), rng.randrange(3)
        if how == 0:
            text[place] = rng.randrange(256)
        elif how == 1:
            text.insert(place, rng.choice(b'0123456789,.-+eEZT:\r\n \t"\x00\xff'))
        else:
            del text[place]
            if not text:
                break
    return bytes(text)


OLD_TEXT = st.builds(
    garbled,
    st.lists(st.builds(str.__add__, GOOD | OLD, END_OF_LINE), max_size=12),
    st.randoms(use_true_random=False),
)
OUR_TEXT = st.builds(
    garbled,
    st.lists(READING.map(lambda one: encode_row(one).decode()), max_size=12),
    st.randoms(use_true_random=False),
)

Scanned = tuple[list[tuple[int, ...]], list[tuple[int, ...]], int, int, tuple[bool, bool, bool]]


def scanned(kernel: Kernel, text: bytes, ours: bool, check: bool = True, capacity: int = 100) -> Scanned:
    rows, room = Rows(capacity), bytearray(text) + bytes(SLACK)
    odd, stop, lines = kernel.scan(room, 0, len(text), 1000, ours, check, rows)
    columns = [one[: rows.count].tolist() for one in (rows.at, rows.utc, rows.seq, rows.epoch, rows.span)]
    order = (rows.ordered, rows.rising, rows.one_epoch)
    return list(zip(*columns, strict=True)), [tuple(one) for one in odd], stop, lines, order


def decoded(line: bytes, ours: bool) -> Reading | Marker | None:
    try:
        return decode_row(line) if ours else decode_old_row(line.rstrip(b"\r\n"))
    except ValueError:
        return None


def check_scan(text: bytes, ours: bool) -> None:
    first, *others = (scanned(kernel, text, ours) for kernel in KERNELS)
    assert all(other == first for other in others)
    rows, odd, stop, lines, _ = first
    assert (stop, lines) == (len(text), len(text.split(b"\n")) - text.endswith(b"\n") if text else 0)
    for at, utc, seq, epoch, span in rows:
        start, length, flags = (span >> OFFSET_SHIFT) - 1000, span & LENGTH_MAX, span >> FLAGS_SHIFT & 7
        line = text[start:].partition(b"\n")[0]
        found = decoded(line + b"\n", ours)
        assert isinstance(found, Reading), line
        assert (found.utc_ns, found.seq, found.epoch) == (utc, seq, epoch)
        assert at == (found.mono_ns if ours else found.utc_ns)
        assert flags & 3 == (found.temp_c is not None) + (found.vin is not None)
        assert text[start : start + length].decode().split(",")[1:] == [
            *(found.sensor_id, found.mode, found.value, found.temp_c or "", found.vin or "")
        ]
        assert float(found.value) != int(float(found.value)) or flags & 4
    taken = {(one[-1] >> OFFSET_SHIFT) - 1000 for one in rows} | {start for _, _, start, _ in odd}
    starts = [0, *(place + 1 for place, byte in enumerate(text) if byte == 10)]
    blank = {one for one in starts if not text[one:].partition(b"\n")[0].strip()}
    assert taken | blank == set(starts) | blank


@settings(max_examples=300, deadline=None)
@given(OLD_TEXT)
@example(b"")
@example(b"\n\r\n \t\n")
@example(b"2025-11-21T22:34:59.123+01:00,s,freerun,0.5,,\n")
def test_old_rows_are_scanned_as_they_are_decoded(text: bytes) -> None:
    """Whatever the text, both kernels find the same rows, each is what its line says, and no line is lost."""
    check_scan(text, ours=False)


@settings(max_examples=300, deadline=None)
@given(OUR_TEXT)
def test_our_rows_are_scanned_as_they_are_decoded(text: bytes) -> None:
    """The same with numbers and checksums: a turned byte never gets through."""
    check_scan(text, ours=True)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_scanned(text: bytes, ours: bool) -> None:
    check_scan(text, ours)


def test_a_scan_stops_where_there_is_no_room() -> None:
    """At the capacity of the rows, and of the odd lines: what is left is for the next one."""
    text = b"".join(encode_row(Reading(n, 0, n, UTC_0, "a", "freerun", "1.5")) for n in range(10))
    for kernel in KERNELS:
        rows, _, stop, lines, _ = scanned(kernel, text, True, capacity=4)
        assert (len(rows), lines, stop) == (4, 4, sum(map(len, text.splitlines(keepends=True)[:4])))
        odd = scanned(kernel, b"x\n" * (ODD_MAX + 5), False, capacity=2 * ODD_MAX)
        assert (len(odd[1]), odd[2], odd[3]) == (ODD_MAX, 2 * ODD_MAX, ODD_MAX)


# ---- stamps to one axis ------------------------------------------------------------------------------------

SMALL = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3))
BOUND = st.tuples(SMALL | st.just(-inf), st.floats(-10, 10), SMALL | st.just(-inf), st.floats(-10, 10))


def course(since: int, until: int, origin: int, rng: Random) -> Course:
    def some(count: int, size: float) -> tuple[float, ...]:
        return tuple(rng.uniform(-size, size) for _ in range(count))

    low, high = [list(some(4, 1e5)) for _ in range(2)]
    low[0], low[2] = (-inf, low[2] - 3e5) if rng.random() < 0.3 else (low[0] - 3e5, low[2] - 3e5)
    high[0], high[2] = (inf, inf) if rng.random() < 0.3 else (high[0] + 3e5, high[2] + 3e5)
    return Course(
        since,
        until,
        since + rng.randrange(-S, S),
        origin,
        rng.randrange(-S, S),
        rng.randrange(5),
        rng.choice([1e-9, 1 / 3e10]),
        some(4, 1e5),  # type: ignore[arg-type]
        (abs(rng.uniform(0, 1e9)), *some(6, 1e8)),  # type: ignore[arg-type]
        tuple(low),  # type: ignore[arg-type]
        tuple(high),  # type: ignore[arg-type]
    )


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_rows_are_placed_as_single_readings_are(rng: Random, everything: bool, moved: bool) -> None:
    """Block by block what `follow` says of each, bit for bit, on any course, and what jitter moved."""
    ends = sorted(rng.randrange(100 * S) for _ in range(4))
    courses = [
        course(since, until, MISSING if rng.random() < 0.2 else rng.randrange(-(10**18), 10**18), rng)
        for since, until in pairwise([-S, *ends, 200 * S])
    ]
    instants = (
        sorted(rng.randrange(-S, 100 * S) for _ in range(40))
        if rng.random() < 0.7
        else [rng.randrange(-S, 100 * S) for _ in range(40)]
    )
    labels = [UTC_0 + rng.randrange(S) for _ in instants]
    jitter = [rng.randrange(-MS, MS) for _ in instants]
    for kernel in KERNELS:
        placed = Placed.room(len(instants))
        at, label, by = column_of(instants), column_of(labels), column_of(jitter) if moved else None
        count = kernel.place(at, label, by, packed(courses), placed, everything)
        assert count == len(instants)
        for row, (at_ns, label_ns) in enumerate(zip(instants, labels, strict=True)):
            here = next(one for one in courses if one.since <= at_ns < one.until)
            found = follow(here, at_ns, label_ns)
            assert placed.time[row] == found.time_ns + jitter[row] * moved
            if everything:
                said = (placed.offset[row], placed.sd[row], placed.low[row], placed.high[row])
                wanted = (found.offset_ns, found.sd_ns, found.low_ns, found.high_ns)
                assert said == tuple(MISSING if one is None else one for one in wanted)
                assert placed.status[row] == here.status


def test_rows_beyond_the_courses_are_told() -> None:
    """A kernel never follows a course where it does not lead."""
    table = packed([course(0, 10, 5, Random(1))])
    for kernel in KERNELS:
        instants = column_of([0, 9, 10, 3])
        assert kernel.place(instants, instants, None, table, Placed.room(4), True) == 2


VALUES = st.lists(st.integers(0, 2**56) | st.integers(0, 5000) | st.just(MISSING), max_size=50)


@settings(deadline=None)
@given(VALUES, st.integers(-(10**6), 10**6))
def test_values_are_counted_and_compared_alike(values: list[int], before: int) -> None:
    """Tallies, intervals, ends, outliers and shifts are those of plain Python."""
    known = [one for one in values if one != MISSING]
    steps = [min(one, 2**60) for one in known]
    for kernel in KERNELS:
        tally, intervals = Tally(), Tally()
        kernel.tally(column_of(values), tally)
        summary = tally.summary()
        assert summary.count == len(known)
        if known:
            middle = sorted(known)[(len(known) - 1) // 2]
            assert abs((summary.quantile(0.5) or 0) - middle) <= 1e-3 * middle
            assert kernel.ends(column_of(steps)) == (min(steps), max(steps))
        chain = [before, *steps]
        backwards = kernel.tally_intervals(column_of(steps), before, intervals)
        assert backwards == sum(later < earlier for earlier, later in pairwise(chain))
        assert intervals.summary().count == len(steps) - backwards
        assert kernel.outliers(column_of(steps), before, -5, 1000) == [
            n for n, (earlier, later) in enumerate(pairwise(chain)) if not -5 <= later - earlier <= 1000
        ]
        moved = column(len(steps))
        kernel.shift(column_of(steps), before, moved)
        assert moved.tolist() == [one + before for one in steps]
        flags = [rng % 8 << FLAGS_SHIFT for rng in steps]
        assert kernel.flags(column_of(flags)) == [flags.count(one << FLAGS_SHIFT) for one in range(8)]


def test_a_small_tally_is_exact() -> None:
    """Below 2048 each value has a bucket of its own; above, a quantile is within a thousandth."""
    for kernel in KERNELS:
        tally = Tally()
        kernel.tally(column_of(list(range(2000))), tally)
        assert [tally.summary().quantile(share) for share in (0, 0.25, 1)] == [0, 499, 1999]


# ---- readings to pairs -------------------------------------------------------------------------------------


def sensors(rng: Random) -> tuple[list[int], list[int], int]:
    """Two sensors that meet in every way: by chance, at one pace, slipping past each other, one much
    slower."""
    kind, period, count = rng.randrange(4), rng.randrange(4, 30), rng.randrange(2, 120)
    if kind == 0:
        inwater, surface = (sorted(rng.randrange(60) for _ in range(rng.randrange(1, 14))) for _ in range(2))
        return inwater, surface, rng.randrange(25)
    other = period + rng.randrange(3) if kind < 3 else rng.randrange(2, 40)
    jitter, phase = rng.randrange(1, 4), rng.randrange(period)
    inwater = sorted(n * period + rng.randrange(jitter) for n in range(count))
    surface = sorted(phase + n * other + rng.randrange(jitter) for n in range(count * period // other + 2))
    lossy = kind == 1
    inwater = [one for one in inwater if not lossy or rng.random() > 0.03] or [1]
    surface = [one for one in surface if not lossy or rng.random() > 0.03]
    return inwater, surface, max(period, other) // 2 + rng.randrange(period)


def paired(
    kernel: Kernel, inwater: list[int], surface: list[int], tolerance: int, cuts: list[int]
) -> list[list[int]]:
    """Numbers of the rows that have a partner, of both sides; fed in pieces."""
    with closing(Spill(None)) as spill:
        matcher, first = kernel.matcher(tolerance, spill), 0
        for start, end in pairwise(sorted({0, len(inwater), *cuts})):
            times = inwater[start:end]
            first = max(first, matcher.needs)
            stop = next((n for n, one in enumerate(surface) if one > times[-1] + tolerance), len(surface))
            matcher.push(column_of(times), column_of(surface[first : max(first, stop + 1)]), first)
        pairing = matcher.finish()
        pairing.hold(len(inwater), len(surface))
        return [bits(pairing.inwater, len(inwater)), bits(pairing.surface, len(surface))]


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_whole_sessions_are_paired_as_single_readings_are(rng: Random) -> None:
    """The same pairs as `matching` makes, which is held against brute force, however the blocks are cut."""
    inwater, surface, tolerance = sensors(rng)
    matcher = Matcher(tolerance)
    for time_ns in inwater:
        matcher.add_inwater(time_ns)
    for time_ns in surface:
        matcher.add_surface(time_ns)
    pairs = [(one.inwater, one.surface) for one in matcher.finish() if one.surface is not None]
    wanted = [[i for i, _ in pairs], [j for _, j in pairs]]
    cuts = [rng.randrange(len(inwater)) for _ in range(rng.randrange(4))]
    for kernel in KERNELS:
        assert paired(kernel, inwater, surface, tolerance, cuts) == wanted


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda one: one.name)
def test_a_chain_that_hardly_ends_is_paired(kernel: Kernel) -> None:
    """Two sensors in lasting antiphase leave 200 000 readings undecided; memory does not follow them."""
    count = 200_000
    inwater, surface = [n * 100 for n in range(count)], [n * 100 + 50 for n in range(count)]
    found = paired(kernel, inwater, surface, 60, list(range(0, count, 20_000)))
    assert [len(one) for one in found] == [count, count]


# ---- the library -------------------------------------------------------------------------------------------


@needs_compiler
def test_the_kernel_compiles_without_a_warning(tmp_path: Path) -> None:
    """Plain C99, on whatever compiler there is."""
    command = [
        "cc",
        *FLAGS,
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Werror",
        str(SOURCE),
        "-o",
        str(tmp_path / "k"),
        "-lm",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


@needs_compiler
def test_a_library_that_is_not_proven_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torn, of another source, or without its proof: numpy does the work, and nothing crashes."""
    library = tmp_path / "kernel.so"
    monkeypatch.setattr(kernel_package, "LIBRARY", library)
    chosen = choose_kernel.__wrapped__
    assert chosen().name == "numpy"
    assert build(library) == ""
    assert chosen().name == "compiled"
    whole, proof = library.read_bytes(), proof_file(library).read_text()
    library.write_bytes(whole[:5000])
    assert chosen().name == "numpy"
    library.write_bytes(whole)
    proof_file(library).write_text(proof.replace(proof[:8], "0" * 8))
    assert chosen().name == "numpy"
    with pytest.raises(ImportError, match=r"python -m topside_daemon\.fusion\.kernel\.build"):
        chosen("compiled")


def test_no_compiler_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which, and leaves nothing behind."""
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build(tmp_path / "kernel.so") == "no-such-compiler: No such file or directory"
    monkeypatch.setenv("CC", "false")
    assert build(tmp_path / "kernel.so") == "false: failed"
    assert not list(tmp_path.iterdir())


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A copy of the package without a compiled kernel."""
    root = Path(__file__).parents[1]
    for name in ("common", "topside_daemon"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_without_both_kernels_the_cure_is_named(elsewhere: Path) -> None:
    """Neither numpy nor a library: one line, usage."""
    code = "import sys; sys.modules['numpy'] = None\n"
    code += "from topside_daemon.fusion.command import main\nsys.exit(main())"
    (elsewhere / "s" / "in-water_1").mkdir(parents=True)
    (elsewhere / "s" / "in-water_1" / "session.csv").write_text("timestamp,sensor_id,mode,value,TempC,Vin\n")
    said = subprocess.run(
        [sys.executable, "-c", code, "s"], cwd=elsewhere, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "pip install numpy" in said.stderr


def test_help_needs_no_numpy(elsewhere: Path) -> None:
    """Nor any other library that takes its time."""
    code = (
        "import sys\nfrom topside_daemon.fusion.command import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n"
        "    print(sorted({'numpy', 'pyarrow', 'distributed', 'tqdm', 'zmq', 'aiohttp'} & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines()[-1] == "[]"


def test_labels_have_no_number() -> None:
    """What old files do not say is the same value everywhere."""
    text = b"2025-11-21T22:34:59.123Z,s,freerun,0.5,,\n"
    for kernel in KERNELS:
        [(_, _, seq, epoch, _)] = scanned(kernel, text, ours=False)[0]
        assert seq == epoch == UNNUMBERED

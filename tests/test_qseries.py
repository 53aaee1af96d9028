"""What may become a reading: lines, shapes and the gate, for every way the stream can be cut."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import Stamp
from common.qseries import (
    KINDS,
    MAX_LINE,
    DataLine,
    Gate,
    Line,
    LineFramer,
    Noise,
    NoiseTally,
    Quality,
    Shape,
    ShapeLearned,
    parse_data,
)

BOOT_TEXT = (
    "",
    "Biospherical Instruments Inc: Digital Engine Vers 4.003",
    "Unit ID serial ######   ",
    "Operating in free run mode",
    "ADC sample rate 125, gain 1",
    "Averaging 125 readings",
    "ADC buffer: Buffer disabled",
    "Sensor temperature: 25.19 C",
    "Input Supply Voltage: 7.494v",
    "Calfactor: 1.000000",
    "Reset ADC 7799",
    "ADC OK",
    "Start free run sampling",
    "Starting Sampling; quiet mode =0",
)
MENU_TEXT = (
    "Biospherical Instruments Inc: Digital Log Engine v: 4.003",
    "Model: serial ######   ",
    "J to set the immersion factor (not automatically applied): 1.000000",
    "R to set ADC sample rate: 125",
    "Sensor temperature: 25.19 C",
    "Input Supply Voltage: 7.494v",
    "",
    "Select the letter of the menu entry:",
)
# As the sensor sent them, and when they arrived, from recordings of a real one.
RECORDED = (
    (1.025928, "0.010160, 25.19, 7.494"),
    (2.065446, "0.010159, 25.19, 7.494"),
    (3.105001, "0.010159, 25.19, 7.515"),
    (4.129305, "0.010164, 25.19, 7.494"),
    (5.168854, "0.010158, 25.19, 7.494"),
)
POLLED = (
    (36.458608, "A,0.010048, 24.36, 7.494"),
    (37.962964, "A,0.010048, 25.19, 7.494"),
    (39.482081, "A,0.010046, 25.19, 7.494"),
    (40.986041, "A,0.010048, 25.19, 7.494"),
)
# The digits of the boot text that a laxer parser recorded as light, and their spacing.
BANNER_DIGITS = ("1.0", "125.0", "4.003", "1.0", "7799.0", "0.0")
BANNER_SPACING_S = (0.43, 0.67, 0.26, 0.001, 1.18, 1.02)
SHAPE = Shape("", 6, True, True)


def at(seconds: float) -> Stamp:
    ns = round(seconds * 1e9)
    return Stamp(mono_ns=ns, utc_ns=1_762_000_000_000_000_000 + ns)


def readings(items: Iterable[object]) -> list[DataLine]:
    return [item for item in items if isinstance(item, DataLine)]


def noise(items: Iterable[object]) -> list[str]:
    return [item.kind for item in items if isinstance(item, Noise)]


def feed(gate: Gate, timed: Iterable[tuple[float, str]]) -> list[object]:
    return [item for when, text in timed for item in gate.receive(f"{text}\r\n".encode(), at(when))]


def every(period_s: float, texts: Sequence[str], start_s: float = 0.0) -> list[tuple[float, str]]:
    return [(start_s + i * period_s, text) for i, text in enumerate(texts)]


def proven(lines: Sequence[tuple[float, str]] = RECORDED, tag: str | None = None) -> Gate:
    """A gate that knows the shape of these lines and is open."""
    gate = Gate()
    gate.tag = tag
    gate.receive(b"\r\n", at(0))
    assert readings(feed(gate, lines))
    return gate


def counted(gate: Gate) -> bool:
    """Every line is accounted for exactly once."""
    return gate.counts["lines"] == sum(gate.counts[kind] for kind in KINDS[1:]) + gate.held


numbers = st.builds(
    "{}{:.6f}, {:.2f}, {:.3f}".format,
    st.sampled_from(["", "-"]),
    st.floats(0, 5000),
    st.floats(0, 45),
    st.floats(5, 15),
)
any_line = st.one_of(
    numbers.map(str.encode),
    st.sampled_from([text.encode() for text in BOOT_TEXT + MENU_TEXT]),
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")),
    st.integers(MAX_LINE - 2, MAX_LINE + 900).map(lambda size: b"x" * size),
)


@given(st.data(), st.lists(any_line, max_size=12))
def test_how_the_stream_was_cut_never_matters(data: st.DataObject, lines: list[bytes]) -> None:
    """Lines, wholeness and tail are the same for every split; a stamp is that of the line's first byte."""
    stream = b"".join(line + b"\r\n" for line in lines) + data.draw(st.binary(max_size=9))
    marks = data.draw(st.lists(st.integers(0, len(stream)), max_size=15).map(sorted))
    cuts = [0, *marks, len(stream)]
    bytewise, pieces = LineFramer(), LineFramer()
    truth = [line for i in range(len(stream)) for line in bytewise.receive(stream[i : i + 1], at(i))]
    got = [line for begin, end in pairwise(cuts) for line in pieces.receive(stream[begin:end], at(begin))]
    assert [(line.text, line.whole, line.overlong) for line in got] == [
        (line.text, line.whole, line.overlong) for line in truth
    ]
    assert pieces.tail == bytewise.tail
    for line, true in zip(got, truth, strict=True):
        first = round(true.stamp.mono_ns / 1e9)
        assert line.stamp == at(max(cut for cut in cuts[:-1] if cut <= first))


def test_an_endless_line_is_reported_once_and_the_next_line_is_whole() -> None:
    """80 KiB without a line end take 512 bytes of memory, one count, and no line after them."""
    framer = LineFramer()
    lines = [line for i in range(80) for line in framer.receive(b"z" * 1024, at(i))]
    assert [(len(line.text), line.overlong) for line in lines] == [(MAX_LINE, True)]
    assert len(framer.tail) <= MAX_LINE
    assert framer.receive(b"z\r\nok\r\n", at(99)) == [Line(at(99), b"ok")]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("0.010157, 25.19, 7.515", SHAPE),
        ("-0.000009, -1.25, 12.001", SHAPE),
        ("1519.3, 25.19", Shape("", 1, True, False)),
        ("1.51927134, 7.494", Shape("", 8, False, True)),
        ("$LITE0.5", Shape("$LITE", 1, False, False)),
    ],
)
def test_lines_a_sensor_can_send(text: str, shape: Shape) -> None:
    """Preamble, 1 to 8 decimals, and each of temperature and supply alone or together."""
    data = parse_data(Line(at(0), text.encode()))
    assert data is not None and data.shape == shape
    assert text == shape.preamble + ", ".join(filter(None, (data.value, data.temp_c, data.vin)))


@pytest.mark.parametrize(
    "text",
    [
        "125",
        "1.",
        ".5.",
        "01.5, 25.19, 7.494",
        "1e-5, 25.19, 7.494",
        "nan, 25.19, 7.494",
        "0.010157,25.19, 7.494",
        "0.010157, 25.19, 7.494, 1.000",
        "0.010157, 25.1, 7.494",
        "0.010157, 25.19, 7.494 ",
        "0.1.2",
        "QS1 0.5",
        "0.123456789",
        "0.0101570.010158, 25.19, 7.494",
    ],
)
def test_lines_no_sensor_sends(text: str) -> None:
    """No exponent, leading zero, wrong separator, wrong decimals, digit in the preamble or text after."""
    assert parse_data(Line(at(0), text.encode())) is None


def test_a_preamble_with_digits_is_read_if_the_sensor_named_it() -> None:
    """What the configuration says of the preamble is taken off first."""
    data = parse_data(Line(at(0), b"A,QS-1 -0.50"), tag="A", preamble="QS-1 ")
    assert data is not None and (data.value, data.shape.preamble, data.mode) == ("-0.50", "QS-1 ", "polled")


@given(numbers, st.data())
def test_no_truncated_line_is_a_reading(text: str, data: st.DataObject) -> None:
    """Behind an open gate no tail-cut line passes, nor any head-cut line that comes first after opening."""
    cut = data.draw(st.integers(1, len(text) - 1))
    tailless, headless = text[:cut], text[cut:]
    assert not readings(feed(proven(), [(6.2, tailless)]))
    gate = proven()
    gate.resync()
    first = feed(gate, [(6.2, headless)])
    following = feed(gate, [(7.2 + i * 1.03, line) for i, (_, line) in enumerate(RECORDED)])
    assert not readings(first)
    assert [reading.value for reading in readings(following)] == [line[:8] for _, line in RECORDED]


def test_the_first_line_is_dropped_unless_a_line_end_was_heard() -> None:
    """The head of the first line after opening is unknown, so it is counted as partial, even if it fits."""
    gate = Gate()
    assert noise(feed(gate, RECORDED)) == ["partial"]
    assert gate.counts["readings"] == len(RECORDED) - 1 and counted(gate)
    assert proven().counts["readings"] == len(RECORDED)


def test_real_lines_are_held_and_then_released_with_their_stamps() -> None:
    """Three lines a second apart prove themselves; the first of them is not lost."""
    gate = Gate()
    gate.receive(b"\n", at(0))
    assert feed(gate, RECORDED[:2]) == []
    items = feed(gate, RECORDED[2:3])
    assert items[0] == ShapeLearned(SHAPE, None)
    assert [(r.stamp, r.value) for r in readings(items)] == [(at(t), line[:8]) for t, line in RECORDED[:3]]


@pytest.mark.parametrize("period_s", [0.1119, 1.0338, 8.0])
def test_an_arrival_quantum_does_not_hide_even_spacing(period_s: float) -> None:
    """At 9 Hz, 1 Hz and one in 8 s, stamps on a grid of 15.2 ms still prove the shape with three lines."""
    for phase in range(20):
        gate = Gate()
        gate.receive(b"\n", at(0))
        stamps = [((i * period_s + phase * 0.00077) // 0.0152 + 1) * 0.0152 for i in range(3)]
        assert len(readings(feed(gate, [(when, RECORDED[0][1]) for when in stamps]))) == 3


def test_a_burst_needs_six_lines() -> None:
    """What was held up somewhere arrives at once: even spacing is no evidence then, number is."""
    gate = Gate()
    gate.receive(b"\n", at(0))
    assert not readings(feed(gate, [(1.0, RECORDED[0][1])] * 5))
    assert len(readings(feed(gate, [(1.0, RECORDED[0][1])]))) == 6


@pytest.mark.parametrize("spacing", [BANNER_SPACING_S, (0.0,) * 6, (0.001,) * 6, (1.0,) * 6])
@pytest.mark.parametrize("repeats", [1, 2])
def test_banner_digits_are_never_readings(spacing: Sequence[float], repeats: int) -> None:
    """The bare numbers of three real recordings' heads, however they are spaced, give nothing."""
    gate = Gate()
    now_s, timed = 0.5, []
    for digits, gap_s in zip(BANNER_DIGITS * repeats, tuple(spacing) * repeats, strict=True):
        timed.append((now_s, digits))
        now_s += gap_s
    gate.receive(b"\r\n", at(0))
    items = feed(gate, timed) + feed(gate, [(now_s + when, line) for when, line in RECORDED])
    assert [reading.value for reading in readings(items)] == [line[:8] for _, line in RECORDED]
    assert gate.counts["shape"] == 6 * repeats and counted(gate)


def test_lone_numbers_can_prove_themselves() -> None:
    """A sensor without temperature and supply is believed after six lines of one shape, evenly spaced."""
    gate = Gate()
    gate.receive(b"\n", at(0))
    items = feed(gate, every(1.0338, [f"0.01015{i}" for i in range(6)]))
    assert [reading.value for reading in readings(items)] == [f"0.01015{i}" for i in range(6)]


@pytest.mark.parametrize("known", [False, True])
def test_boot_and_menu_text_give_no_reading(known: bool) -> None:
    """Neither text passes the gate, whether the shape was known before or not."""
    gate = proven() if known else Gate()
    items = feed(gate, every(0.03, [*BOOT_TEXT[:-1], *MENU_TEXT, "Calling reset!", "Rebooting program"], 9.0))
    assert not readings(items) and gate.place == "boot"
    assert set(noise(items)) == {"banner", "menu"} and counted(gate)


def test_a_reboot_closes_the_gate_until_it_samples() -> None:
    """After boot text a fitting line waits; for a known shape `Starting Sampling` opens the gate at once."""
    gate = proven()
    feed(gate, every(0.01, BOOT_TEXT[:-1], 9.0))
    assert gate.boots == 1 and gate.unit_id == "serial ######   "
    assert not readings(feed(gate, [(11.0, RECORDED[0][1])]))
    feed(gate, [(12.0, BOOT_TEXT[-1])])
    assert len(readings(feed(gate, [(13.0, RECORDED[0][1])]))) == 1


def test_a_quiet_reboot_is_over_when_lines_prove_themselves() -> None:
    """Without any text after `Rebooting program` three lines open the gate and none of them is lost."""
    gate = proven()
    feed(gate, [(8.0, "Rebooting program")])
    assert len(readings(feed(gate, [(10 + when, line) for when, line in RECORDED[:3]]))) == 3
    assert gate.place == "sampling"


def test_a_changed_shape_is_learned_and_told() -> None:
    """Temperature switched off: lines wait, then the change is told and all of them are released."""
    gate = proven()
    items = feed(gate, every(1.0338, ["0.010157, 7.494"] * 4, 6.2))
    assert [item for item in items if isinstance(item, ShapeLearned)] == [
        ShapeLearned(Shape("", 6, False, True), SHAPE)
    ]
    assert len(readings(items)) == 4


def test_a_stray_shape_among_readings_is_noise() -> None:
    """A head cut off that leaves two fitting numbers never becomes light, and the stream goes on."""
    gate = proven()
    items = feed(gate, [(6.2, "26.85, 7.494"), (7.2, RECORDED[0][1]), (8.2, "57, 25.19, 7.515")])
    assert len(readings(items)) == 1 and noise(items) == ["shape", "partial"]


def test_polled_replies_need_the_tag() -> None:
    """With a tag known only its replies pass; the same numbers without it, or with another, do not."""
    gate = proven(POLLED, tag="A")
    assert gate.counts["readings"] == len(POLLED)
    strangers = feed(gate, [(50.0, "0.010048, 25.19, 7.494"), (51.0, "B,0.010048, 25.19, 7.494")])
    assert not readings(strangers) and gate.counts["shape"] == 1
    assert readings(feed(gate, [(52.0, POLLED[0][1])]))[0].mode == "polled"


def test_boot_text_tells_mode_and_tag() -> None:
    """`Operating in ...` sets what the gate expects from then on."""
    gate = Gate()
    feed(gate, [(0.1, ""), (0.2, "Operating in polled mode with tag of C")])
    assert gate.tag == "C"
    feed(gate, [(0.3, "Operating in free run mode")])
    assert gate.tag is None


@given(st.lists(st.binary(max_size=700), max_size=8), st.booleans())
def test_no_input_raises_or_goes_uncounted(chunks: list[bytes], known: bool) -> None:
    """Random bytes are never a reading, never raise, and every line of them is counted once."""
    gate = proven() if known else Gate()
    before = gate.counts["readings"]
    items = [item for i, chunk in enumerate(chunks) for item in gate.receive(chunk, at(10 + i))]
    assert counted(gate) and gate.held <= 64
    if not any(re.search(rb"[0-9]\.[0-9]", chunk) for chunk in chunks):
        assert not readings(items) and gate.counts["readings"] == before


def test_text_at_the_wrong_speed_is_garbled_and_a_few_bad_bytes_are_not() -> None:
    """More than half of the bytes unreadable for 3 s is a wrong speed; one spoilt line among good is not."""
    gate = proven()
    quality = Quality(gate)
    quality.restart(10.0)
    for second in range(10, 14):
        gate.receive(b"\x80\xf8\x00\xfe\x9c\x06" * 4, at(second))
        assert quality.is_garbled(second, 3.0) == (second == 13)
    quality.restart(20.0)
    for second in range(20, 30):
        spoilt = b"\xff\x00\xff" if second == 22 else b""
        gate.receive(spoilt + b"0.010157, 25.19, 7.494\r\n", at(second))
        assert not quality.is_garbled(second, 3.0)


def test_noise_is_summarised_with_a_sample_of_the_first() -> None:
    """A report names counts by kind and the first refused bytes in hex, then starts afresh."""
    tally = NoiseTally()
    for kind in ("garbage", "menu", "shape", "garbage"):
        tally.add(Noise(kind, kind.encode()))
    assert tally.report() == (f"2 garbage, 1 shape; the first: {b'garbage'.hex()}", 3)
    assert not tally.counts


def test_a_line_feed_of_its_own_cuts_two_lines_and_makes_no_reading() -> None:
    """Where lines end with CR LF, a bare LF inside a number leaves two halves, neither of them light."""
    gate = Gate()
    for n in range(4):
        gate.receive(b"12.345678, 25.19, 7.494\r\n", Stamp(n * 1_000_000_000, 0))
    items = gate.receive(
        b"12\n3.456789, 25.19, 7.494\r\n12.345679, 25.19, 7.494\r\n", Stamp(5_000_000_000, 0)
    )
    assert [item.value for item in items if isinstance(item, DataLine)] == ["12.345679"]
    assert gate.counts["partial"] == 3  # the two halves, and the head of the stream

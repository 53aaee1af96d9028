"""The in-water stream made whole: bus and files together give every reading once, in order."""

from hypothesis import given
from hypothesis import strategies as st

from common.messages import Reading
from tests.sim.drawn import reading
from topside_daemon.ordering import AHEAD_MAX, Ordering


class Taken:
    """An ordering, and what it passed on."""

    def __init__(self, next_seq: int = 0) -> None:
        self.readings: list[Reading] = []
        self.ordering = Ordering(next_seq, self.readings.extend)

    @property
    def seqs(self) -> list[int]:
        return [reading.seq for reading in self.readings]


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[int], list[tuple[bool, list[int]]]]:
    """Numbers that exist, and their way here: the files in order, now and then from an earlier point
    again, between bus messages that are lost, repeated and reordered at will."""
    seqs = sorted(draw(st.sets(st.integers(0, 40), min_size=1)))
    heard = draw(st.lists(st.sampled_from(seqs), max_size=60))
    cuts = sorted(draw(st.lists(st.integers(0, len(seqs)), max_size=5)))
    pulls: list[tuple[bool, list[int]]] = []
    for first, end in zip([0, *cuts], [*cuts, len(seqs)], strict=True):
        pulls.append((True, seqs[draw(st.integers(0, first)) : end]))
    way: list[tuple[bool, list[int]]] = [(False, [seq]) for seq in heard]
    moments = draw(st.lists(st.integers(0, len(heard)), min_size=len(pulls), max_size=len(pulls)))
    for before, (moment, pull) in enumerate(zip(sorted(moments), pulls, strict=True)):
        way.insert(moment + before, pull)
    return seqs, way


@given(arrivals())
def test_every_reading_comes_once_and_in_order(
    drawn: tuple[list[int], list[tuple[bool, list[int]]]],
) -> None:
    """Whatever the bus does, all that the files have is passed on once, in order, and holes are counted."""
    seqs, way = drawn
    taken = Taken()
    for from_files, numbers in way:
        before = taken.seqs
        if from_files:
            taken.ordering.from_files([reading(seq) for seq in numbers])
        else:
            taken.ordering.from_bus(reading(numbers[0]))
        assert taken.seqs[: len(before)] == before
    assert taken.seqs == seqs
    assert taken.ordering.missing == seqs[-1] + 1 - len(seqs)
    assert not taken.ordering.waiting


def test_a_whole_bus_needs_no_files() -> None:
    """Live readings in order are passed on at once."""
    taken = Taken()
    for seq in range(10):
        taken.ordering.from_bus(reading(seq))
        assert taken.seqs[-1] == seq
    assert (taken.ordering.repaired, taken.ordering.missing) == (0, 0)


def test_a_hole_waits_for_the_files() -> None:
    """What follows a lost reading is held, says so, and is released by the file that has it."""
    taken = Taken()
    for seq in (0, 2, 3):
        taken.ordering.from_bus(reading(seq))
    assert taken.seqs == [0]
    assert taken.ordering.waiting
    taken.ordering.from_files([reading(0), reading(1)])
    assert taken.seqs == [0, 1, 2, 3]
    assert taken.ordering.repaired == 1
    assert not taken.ordering.waiting


def test_what_the_files_do_not_have_is_not_waited_for() -> None:
    """A live reading that a power cut took from the Pi's files is given up, counted, and holds nothing up."""
    taken = Taken()
    for seq in (0, 2):
        taken.ordering.from_bus(reading(seq))
    taken.ordering.from_files([reading(0), reading(10)])
    assert taken.seqs == [0, 10]
    assert taken.ordering.missing == 9
    assert not taken.ordering.waiting


def test_a_late_start_takes_nothing_from_before() -> None:
    """After a restart what earlier runs have passed on is not passed on again."""
    taken = Taken(next_seq=5)
    taken.ordering.from_bus(reading(4))
    taken.ordering.from_files([reading(seq) for seq in range(7)])
    assert taken.seqs == [5, 6]
    assert taken.ordering.missing == 0


def test_a_long_hole_does_not_fill_the_memory() -> None:
    """Live readings behind a hole are kept up to a bound; the files give those beyond it."""
    taken = Taken()
    for seq in range(1, AHEAD_MAX + 100):
        taken.ordering.from_bus(reading(seq))
    taken.ordering.from_files([reading(0)])
    assert taken.seqs == list(range(AHEAD_MAX + 1))
    taken.ordering.from_files([reading(seq) for seq in range(AHEAD_MAX, AHEAD_MAX + 100)])
    assert taken.seqs == list(range(AHEAD_MAX + 100))

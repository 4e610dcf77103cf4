"""One source at a time, by hand: optional ones, policies, stray numbers, restarted counters, what goes to the side."""

from __future__ import annotations

import struct

import pytest
from tests.kernel.builders import NEAR, ROOM, MakeBuilder, add, built, serials, text_of
from tests.kernel.fragments import BANK, body, event

from phloem.kernel import Cause, Policy, Stop

FLIPPED = 0x40000000  # a bit that flips makes a number stray


def send(*numbers: int) -> list[bytes]:
    """A fragment of each number."""
    return [event(n) for n in numbers]


# ---------------------------------------------------------------- optional sources


def test_an_optional_fragment_is_joined_when_it_is_there_and_not_missed_when_it_is_not(make: MakeBuilder) -> None:
    builder = make(["A", "B"], required=[True, False])
    add(builder, 0, *(event(n, [(b"AAAA", 1, b"a")]) for n in range(3)))
    add(builder, 1, event(1, [(b"BBBB", 1, b"b")], time_stamp=99), event(3))
    events = built(builder)
    assert [b"BBBB" in one for one in events] == [False, True, False]
    assert not any(b"MISS" in one for one in events)
    assert events[1] == (
        b"\x01\x00\xff\xff\x01\x00\x00\x00\x07\x00\x00\x00\x38\x00\x00\x00"  # time stamp of A
        b"\x30\x00\x00\x00\x31\x00\x00\x00"
        b"AAAA\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00a\0\0\0\0\0\0\0"
        b"BBBB\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00b\0\0\0\0\0\0\0"
    )
    assert builder.fates(0) == (3, 3, 0, 0, 0, 0, 0)


def test_only_optional_fragments_are_an_incomplete_event(make: MakeBuilder) -> None:
    builder = make(["A", "B", "C"], required=[False, True, False])
    add(builder, 0, *send(0))
    add(builder, 2, *send(0))
    for source in range(3):
        builder.end_source(source)
    events = built(builder)
    assert [text_of(one, b"MISS") for one in events] == [["B"]]
    assert builder.fates(0) == builder.fates(2) == (1, 0, 1, 0, 0, 0, 0)


def test_an_optional_source_is_waited_for_until_a_mark_says_otherwise(make: MakeBuilder) -> None:
    builder = make(["A", "B"], required=[True, False])
    add(builder, 0, *send(0, 1))
    assert builder.build(ROOM) == (b"", Stop.WAITING, 0, 0)
    assert builder.waited_for() == [1]
    builder.close_without(1, Cause.OPTIONAL)
    events = built(builder)
    assert len(events) == 2
    assert not any(b"MISS" in one for one in events)
    assert builder.take_marks() == [(1, Cause.OPTIONAL, 0, NEAR + 1)]
    add(builder, 1, *send(1, 2))
    add(builder, 0, *send(2))
    assert len(built(builder)) == 1
    assert builder.fates(1) == (2, 1, 0, 1, 0, 0, 0)


def test_at_least_one_source_must_be_required(make: MakeBuilder) -> None:
    with pytest.raises(ValueError, match="at least one source must be required"):
        make(["A", "B"], required=[False, False])


# ---------------------------------------------------------------- settings of each source


def test_the_strictest_policy_of_those_missing_decides(make: MakeBuilder) -> None:
    builder = make(["A", "B", "C"], on_incomplete=[Policy.STOP, Policy.BUILD, Policy.DISCARD])
    add(builder, 0, *send(0, 1, 2, 3))
    add(builder, 1, *send(0, 2, 3))
    add(builder, 2, *send(0, 1, 3))
    out, why, n_events, _ = builder.build(ROOM)
    assert (serials(out), why, n_events) == ([0, 1, 3], Stop.WAITING, 3)  # 1 lacks B: built; 2 lacks C: discarded
    assert builder.fates(0) == (4, 2, 1, 0, 0, 1, 0)
    add(builder, 0, *send(5))
    add(builder, 1, *send(4, 5))
    add(builder, 2, *send(4, 5))
    assert builder.build(ROOM)[1:3] == (Stop.POLICY, 0)


def test_the_policy_of_an_optional_source_is_never_asked_for(make: MakeBuilder) -> None:
    builder = make(["A", "B"], on_incomplete=[Policy.BUILD, Policy.STOP], required=[True, False])
    add(builder, 0, *send(0))
    add(builder, 1, *send(1))
    assert serials(builder.build(ROOM)[0]) == [0]


def test_discard_rest_after_a_stop_by_policy_discards_all_that_is_there_and_all_that_comes(make: MakeBuilder) -> None:
    builder = make(["A", "B"], on_incomplete=Policy.STOP)
    add(builder, 0, *send(0, 1, 2))
    add(builder, 1, *send(0, 2))
    assert builder.build(ROOM)[1:3] == (Stop.POLICY, 1)
    builder.discard_rest()
    assert builder.build(ROOM) == (b"", Stop.WAITING, 0, 0)
    add(builder, 0, *send(3, 3))
    for source in (0, 1):
        builder.end_source(source)
    assert builder.build(ROOM) == (b"", Stop.DONE, 0, 0)
    assert builder.fates(0) == (5, 1, 0, 0, 1, 3, 0)
    assert builder.fates(1) == (2, 1, 0, 0, 0, 1, 0)


def test_each_source_has_its_own_reorder(make: MakeBuilder) -> None:
    builder = make(["A", "B"], reorder=[0, 2])
    for source in (0, 1):
        add(builder, source, *send(0, 2, 1, 3, 4, 5))
        builder.end_source(source)
    events = built(builder)
    assert [text_of(one, b"MISS") for one in events] == [[], ["A"], [], [], [], []]
    assert builder.fates(0) == (6, 5, 0, 1, 0, 0, 0)
    assert builder.fates(1) == (6, 5, 1, 0, 0, 0, 0)


# ---------------------------------------------------------------- stray numbers


def of_one_source(make: MakeBuilder, numbers: list[int], **settings: int) -> tuple[list[int], tuple[int, ...]]:
    """What is built of a source, while another one sends 0 to 9, and the source's fates."""
    builder = make(["A", "B"], **settings)
    add(builder, 0, *send(*range(10)))
    add(builder, 1, *send(*numbers))
    for source in (0, 1):
        builder.end_source(source)
    events = built(builder)
    assert serials(b"".join(events)) == list(range(10))
    return [n for n, one in enumerate(events) if text_of(one, b"MISS") != ["B"]], builder.fates(1)


STRAYS = [FLIPPED, 0x80000000, 0xC0000000, 0xFFFF0000, 5000]


@pytest.mark.parametrize("at", [1, 5, 8])
@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_number_costs_its_own_event_alone(make: MakeBuilder, stray: int, at: int) -> None:
    numbers = list(range(10))
    numbers[at] += stray
    there, fates = of_one_source(make, numbers)
    assert there == [n for n in range(10) if n != at]
    assert fates[1] == 9
    assert fates[3] + fates[6] == 1  # behind its neighbours: late; beyond them: quarantined


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stray", STRAYS)
def test_a_stray_number_at_the_start_costs_its_own_event_alone(make: MakeBuilder, stray: int, n: int) -> None:
    numbers = [*(stray + 9000 * i for i in range(n)), *range(n, 10)]
    there, fates = of_one_source(make, numbers)
    assert there == list(range(n, 10))
    assert fates == (10, 10 - n, 0, 0, 0, 0, n)


def test_a_stray_number_at_the_start_does_not_part_the_numbers_of_the_others(make: MakeBuilder) -> None:
    builder = make(["A", "B", "C"])
    add(builder, 0, *send(0x80000005, 1, 2, 3, 4, 5, 6, 7, 8))
    add(builder, 1, *send(*range(4, 9)))
    add(builder, 2, *send(*range(6, 9)))
    for source in range(3):
        builder.end_source(source)
    assert serials(builder.build(ROOM)[0]) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("at", [1, 5, 7])
def test_two_stray_numbers_in_a_row_cost_two_events(make: MakeBuilder, at: int) -> None:
    numbers = list(range(10))
    numbers[at], numbers[at + 1] = FLIPPED, 0x20000000
    there, fates = of_one_source(make, numbers)
    assert there == [n for n in range(10) if n not in (at, at + 1)]
    assert fates == (10, 8, 0, 0, 0, 0, 2)


def test_a_stray_number_in_quarantine_says_why_byte_by_byte(make: MakeBuilder) -> None:
    builder = make(["A"], side=True, event_id=3)
    add(builder, 0, event(0), event(FLIPPED, [(b"ADC0", 1, b"\x09")], BANK, time_stamp=8, event_id=4), event(2))
    assert serials(builder.build(ROOM)[0]) == [0, 2]
    stray = (
        b"\x04\x00\xff\xff\x00\x00\x00\x40\x08\x00\x00\x00\x20\x00\x00\x00"
        b"\x18\x00\x00\x00\x31\x00\x00\x00"
        b"ADC0\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x09\0\0\0\0\0\0\0"
    )
    why = b"A\0its serial number is far from those before and after it; fragments: 1\0"
    assert builder.take_side() == (b"", quarantine_event(3, stray, why))


def quarantine_event(event_id: int, data: bytes, why: bytes) -> bytes:
    """An event of the side file: what came, and why it is there."""
    banks = b"QUAR" + struct.pack("<III", 1, len(data), 0) + data + bytes(-len(data) % 8)
    banks += b"WHYQ" + struct.pack("<III", 12, len(why), 0) + why + bytes(-len(why) % 8)
    return struct.pack("<HHIII", event_id, 0, 0, 0, 8 + len(banks)) + struct.pack("<II", len(banks), 0x31) + banks


def test_a_stray_number_waits_for_the_next_one_and_a_border_says_that_it_is_the_last(make: MakeBuilder) -> None:
    builder = make(["A"])
    add(builder, 0, *send(0, 5000))
    assert serials(builder.build(ROOM)[0]) == [0]
    assert builder.build(ROOM)[1] == Stop.WAITING
    builder.border_follows(0)
    assert serials(builder.build(ROOM)[0]) == [5000]


def test_a_jump_that_goes_on_is_believed(make: MakeBuilder) -> None:
    builder = make(["A"])
    add(builder, 0, *send(0, 100_000, 100_001, 100_002))
    assert serials(builder.build(ROOM)[0]) == [0, 100_000, 100_001, 100_002]


def test_a_run_that_is_found_half_way_begins_where_it_is(make: MakeBuilder) -> None:
    builder = make(["A", "B"])
    for source in (0, 1):
        add(builder, source, *send(0xABCDEF00, 0xABCDEF01))
    assert serials(builder.build(ROOM)[0]) == [0xABCDEF00, 0xABCDEF01]


# ---------------------------------------------------------------- counters that restart


@pytest.mark.parametrize("border", [False, True])
def test_a_declared_restart_goes_on_where_it_says(make: MakeBuilder, border: bool) -> None:
    builder = make(["A", "B"])
    add(builder, 0, *send(*range(6)))
    add(builder, 1, *send(0, 1, 2))
    assert len(built(builder)) == 3
    if border:
        builder.border_follows(1)
        builder.build(ROOM)
    builder.renumber(1, 0, 4)
    add(builder, 1, *send(0, 1))
    events = built(builder)
    assert [text_of(one, b"MISS") for one in events] == [["B"], [], []]
    assert serials(b"".join(events)) == [3, 4, 5]
    assert not builder.restarted(1)
    assert builder.fates(1) == (5, 5, 0, 0, 0, 0, 0)


def test_a_declaration_heals_a_source_whose_counter_restarted_unannounced(make: MakeBuilder) -> None:
    builder = make(["A", "B"])
    add(builder, 0, *send(*range(9)))
    add(builder, 1, *send(0, 1, 2, 0, 1, 2))
    assert len(built(builder)) == 9
    assert builder.restarted(1)
    builder.renumber(1, 3, 9)
    assert not builder.restarted(1)
    add(builder, 0, *send(9, 10))
    add(builder, 1, *send(3, 4))
    assert [text_of(one, b"MISS") for one in built(builder)] == [[], []]


def test_a_declared_restart_goes_through_the_wrap(make: MakeBuilder) -> None:
    builder = make(["A", "B"])
    numbers = [0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF, 0, 1]
    add(builder, 0, *send(*numbers))
    add(builder, 1, *send(*numbers[:2]))
    builder.build(ROOM)
    builder.renumber(1, 0, 0xFFFFFFFF)
    add(builder, 1, *send(0, 1, 2))
    assert serials(builder.build(ROOM)[0]) == numbers[2:]
    assert builder.fates(1) == (5, 5, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("after", [3, 50, 300])
@pytest.mark.parametrize("window", [16, 100, 4096])
def test_a_counter_that_restarts_unannounced_is_flagged_and_never_matched_wrongly(
    make: MakeBuilder, first: int, after: int, window: int
) -> None:
    builder = make(["A", "B"], window=window)
    n = 2 * after
    add(builder, 0, *send(*range(first, first + n)))
    numbers = [*range(first, first + after), *range(first, first + after)]
    add(builder, 1, *(event(number, [(b"TRUE", 6, struct.pack("<I", i))]) for i, number in enumerate(numbers, first)))
    for source in (0, 1):
        builder.end_source(source)
    for one in built(builder):
        true = text_true(one)
        assert true is None or true == int.from_bytes(one[4:8], "little")
    assert builder.restarted(1)
    assert not builder.restarted(0)
    fates = builder.fates(1)
    assert fates[:3] == (n, after, 0)
    assert fates[3] + fates[4] == after
    assert fates[4] <= 2  # so many look like duplicates before it is known


def text_true(one: bytes) -> int | None:
    """Which event the fragment was really sent for."""
    at = one.find(b"TRUE")
    return None if at < 0 else int.from_bytes(one[at + 16 : at + 20], "little")


def test_a_source_whose_counter_restarted_keeps_nobody_waiting(make: MakeBuilder) -> None:
    builder = make(["A", "B"])
    add(builder, 1, *send(0, 1, 2, 0, 1))
    add(builder, 0, *send(*range(6)))
    events = built(builder)
    assert [text_of(one, b"MISS") for one in events] == [[], [], [], ["B"], ["B"], ["B"]]
    assert builder.waited_for() == []
    assert builder.take_marks() == []


def test_a_restart_is_forgotten_with_the_next_run(make: MakeBuilder) -> None:
    builder = make(["A"])
    add(builder, 0, *send(0, 1, 0, 1))
    builder.build(ROOM)
    assert builder.restarted(0)
    builder.begin_run(2)
    assert not builder.restarted(0)


@pytest.mark.parametrize("burst", [range(1, 2), range(5, 15), range(100, 163), range(137, 200)])
def test_a_burst_sent_again_by_a_link_is_no_restart(make: MakeBuilder, burst: range) -> None:
    builder = make(["A", "B"])
    for source, numbers in ((0, [*range(210)]), (1, [*range(200), *burst, *range(200, 210)])):
        add(builder, source, *send(*numbers))
    assert not any(text_of(one, b"MISS") for one in built(builder))
    assert not builder.restarted(1)
    assert builder.fates(1) == (210 + len(burst), 210, 0, 0, len(burst), 0, 0)


@pytest.mark.parametrize("again", [range(100, 200), range(2)])
def test_where_nobody_can_tell_a_burst_from_a_restart_the_source_is_flagged_and_not_guessed(
    make: MakeBuilder, again: range
) -> None:
    builder = make(["A", "B"])
    for source, numbers in ((0, [*range(210)]), (1, [*range(200), *again, *range(200, 210)])):
        add(builder, source, *send(*numbers))
    assert [serials(one)[0] for one in built(builder) if text_of(one, b"MISS")] == list(range(200, 210))
    assert builder.restarted(1)


# ---------------------------------------------------------------- what goes to the side


def test_a_late_fragment_is_kept_with_its_source_byte_by_byte(make: MakeBuilder) -> None:
    builder = make(["A", "Trig2"], side=True)
    add(builder, 0, *send(0, 1, 2))
    add(builder, 1, event(0), event(2), event(1, [(b"ADC0", 4, b"\1\2")], BANK, time_stamp=9, event_id=6))
    builder.build(ROOM)
    for source in (0, 1):
        builder.end_source(source)
    builder.build(ROOM)
    late = (
        b"\x06\x00\xff\xff\x01\x00\x00\x00\x09\x00\x00\x00\x38\x00\x00\x00"
        b"\x30\x00\x00\x00\x31\x00\x00\x00"
        b"ADC0\x04\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x02\0\0\0\0\0\0"
        b"LATE\x0c\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00Trig2\0\0\0"
    )
    assert builder.take_side() == (late, b"")
    assert builder.take_side() == (b"", b"")


def test_a_late_fragment_without_banks_is_kept(make: MakeBuilder) -> None:
    builder = make(["A"], side=True)
    add(builder, 0, *send(1, 0))
    builder.build(ROOM)
    banks = b"LATE\x0c\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00A\0\0\0\0\0\0\0"
    head = struct.pack("<HHIII", 1, 0xFFFF, 0, 7, 32) + struct.pack("<II", 24, 0x31)
    assert builder.take_side() == (head + banks, b"")


def test_a_late_fragment_too_large_for_a_frame_is_counted_and_not_kept(make: MakeBuilder) -> None:
    builder = make(["A"], side=True, max_event=47)
    add(builder, 0, *send(1, 0))
    builder.build(ROOM)
    assert builder.take_side() == (b"", b"")
    assert builder.fates(0)[3] == 1


@pytest.mark.parametrize(
    ("run", "data", "n_events", "why"),
    [
        (2, body([event(0)]), 1, b"of another run, or after the end of this one"),
        (1, event(0)[:20] + b"\x21\0\0\0", 1, b"its banks do not fill it"),
        (1, b"\xff" * 40, 3, b"its size cannot be believed"),
        (1, b"", 2, b"its size cannot be believed"),
    ],
)
def test_what_is_quarantined_is_kept_byte_by_byte(
    make: MakeBuilder, run: int, data: bytes, n_events: int, why: bytes
) -> None:
    builder = make(["A"], side=True, event_id=5)
    builder.add_bytes(0, run, data, n_events, 0)
    builder.build(ROOM)
    text = b"A\0" + why + b"; fragments: %d\0" % n_events
    assert builder.take_side() == (b"", quarantine_event(5, data, text))
    assert builder.fates(0) == (n_events, 0, 0, 0, 0, 0, n_events)


def test_of_a_large_frame_in_quarantine_the_beginning_is_kept(make: MakeBuilder) -> None:
    builder = make(["A"], side=True)
    builder.add_bytes(0, 1, b"\xff" * 100_000, 1, 0)
    builder.build(ROOM)
    text = b"A\0its size cannot be believed; fragments: 1\0"
    assert builder.take_side() == (b"", quarantine_event(1, b"\xff" * 65536, text))


# ---------------------------------------------------------------- FRAG


def test_the_bank_frag_tells_each_fragments_header_byte_by_byte(make: MakeBuilder) -> None:
    builder = make(["A", "B", "C"], headers=True, required=[True, True, True])
    add(builder, 0, event(0, [(b"ADC0", 4, b"\1\2")], BANK, time_stamp=5, event_id=2, trigger_mask=3))
    add(builder, 2, event(0, time_stamp=6, event_id=7, trigger_mask=0x8001))
    for source in range(3):
        builder.end_source(source)
    frag = struct.pack("<12I", 0, 2, 3, 0, 5, 24, 2, 7, 0x8001, 0, 6, 8)
    banks = b"ADC0\x04\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x02\0\0\0\0\0\0"
    banks += b"FRAG\x06\x00\x00\x00\x30\x00\x00\x00\x00\x00\x00\x00" + frag
    banks += b"MISS\x0c\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00B\0\0\0\0\0\0\0"
    head = struct.pack("<HHIII", 1, 0xFFFF, 0, 5, 8 + len(banks)) + struct.pack("<II", len(banks), 0x31)
    assert builder.build(ROOM) == (head + banks, Stop.DONE, 1, 0)

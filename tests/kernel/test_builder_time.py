"""Matching by time, and serial numbers checked by time: by hand, for the kernel and for the reference."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from tests.kernel.builders import NEAR, ROOM, MakeBuilder, add, banks_of, built, events_of, serials, text_of, timed
from tests.kernel.fragments import BANK, BANK32, event
from tests.kernel.stories import AnyBuilder

from phloem.kernel import Cause, Check, Stop

TICK = 1000  # ns from one trigger to the next
WINDOW = 100


def at(*times: int, first: int = 0) -> list[bytes]:
    """Fragments of these times; their serial numbers count."""
    return [timed(first + i, time) for i, time in enumerate(times)]


def times_of(one: bytes) -> list[int]:
    """The times in an event."""
    return [int.from_bytes(data, "little") for name, data in banks_of(one) if name == b"TIME"]


def all_ended(builder: AnyBuilder, n_sources: int) -> list[bytes]:
    """What is built once all sources have ended."""
    for source in range(n_sources):
        builder.end_source(source)
    events = built(builder)
    assert builder.build(ROOM)[1] == Stop.DONE
    return events


# ---------------------------------------------------------------- matching by time


def test_fragments_within_the_window_are_one_event_numbered_by_the_builder(make: MakeBuilder) -> None:
    builder = make(["A", "B"], by_time=True, match_window=10)
    add(builder, 0, timed(77, 1000), timed(3, 2000), timed(9, 3010))
    add(builder, 1, timed(5, 1010, time_stamp=9), timed(5, 2011), timed(5, 3000))
    events = all_ended(builder, 2)
    assert [times_of(one) for one in events] == [[1000, 1010], [2000], [2011], [3010, 3000]]
    assert serials(b"".join(events)) == [0, 1, 2, 3]
    assert [text_of(one, b"MISS") for one in events] == [[], ["B"], ["A"], []]
    assert builder.fates(0) == builder.fates(1) == (3, 2, 1, 0, 0, 0, 0)
    assert events[0] == (
        b"\x01\x00\xff\xff\x00\x00\x00\x00\x07\x00\x00\x00\x38\x00\x00\x00"
        b"\x30\x00\x00\x00\x31\x00\x00\x00"
        b"TIME\x12\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\xe8\x03\0\0\0\0\0\0"
        b"TIME\x12\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\xf2\x03\0\0\0\0\0\0"
    )


def test_a_second_fragment_of_a_source_within_the_window_opens_the_next_event(make: MakeBuilder) -> None:
    builder = make(["A", "B"], by_time=True, match_window=10)
    add(builder, 0, *at(1000, 1005))
    add(builder, 1, *at(1007, 1012))
    assert [times_of(one) for one in all_ended(builder, 2)] == [[1000, 1007], [1005, 1012]]


def test_an_event_takes_from_its_earliest_time_on_and_not_from_each(make: MakeBuilder) -> None:
    builder = make(["A", "B", "C"], by_time=True, match_window=10)
    add(builder, 0, *at(1000))
    add(builder, 1, *at(1008))
    add(builder, 2, *at(1015))
    assert [times_of(one) for one in all_ended(builder, 3)] == [[1000, 1008], [1015]]


def test_offsets_are_added_before_matching_and_leave_the_bank_as_it_is(make: MakeBuilder) -> None:
    builder = make(["A", "B"], by_time=True, match_window=0, offsets=[-50, 200])
    add(builder, 0, *at(30, 1250, 2250))
    add(builder, 1, *at(1000, 2000))
    events = all_ended(builder, 2)
    assert [times_of(one) for one in events] == [[30], [1250, 1000], [2250, 2000]]  # what would be below 0 is 0


@pytest.mark.parametrize("bank_format", [BANK, BANK32])
def test_the_time_is_found_in_every_bank_format_and_under_another_name(make: MakeBuilder, bank_format: int) -> None:
    builder = make(["A", "B"], by_time=True, match_window=0, time_bank=b"TSNS")
    fragment = event(0, [(b"TIME", 18, bytes(8)), (b"TSNS", 18, struct.pack("<QQ", 5000, 1))], bank_format)
    add(builder, 0, fragment)
    add(builder, 1, event(9, [(b"TSNS", 18, struct.pack("<Q", 5000))]))
    assert len(all_ended(builder, 2)) == 1


def test_a_fragment_without_a_time_is_quarantined_alone(make: MakeBuilder) -> None:
    builder = make(["A"], by_time=True, match_window=5, side=True)
    add(builder, 0, timed(0, 1000), event(1), event(2, [(b"TIME", 6, b"\1\2\3\4")]), timed(3, 2000))
    assert [times_of(one) for one in built(builder)] == [[1000], [2000]]
    assert builder.fates(0) == (4, 2, 0, 0, 0, 0, 2)
    events = events_of(builder.take_side()[1])
    assert [text_of(one, b"WHYQ") for one in events] == [["A", "it has no time to be matched by; fragments: 1"]] * 2


def test_times_given_from_outside_are_used_instead_of_the_banks(make: MakeBuilder) -> None:
    builder = make(["A", "B"], by_time=True, match_window=5, offsets=[0, 100])
    add(builder, 0, event(0), timed(1, 9), times=np.array([1000, 2000], "<u8"))
    add(builder, 1, event(0), event(1), times=np.array([905, 1894], "<u8"))
    events = all_ended(builder, 2)
    assert [text_of(one, b"MISS") for one in events] == [[], ["A"], ["B"]]


def test_a_mark_by_silence_closes_the_window_and_what_comes_within_it_is_late(make: MakeBuilder) -> None:
    builder = make(["A", "B"], by_time=True, match_window=10)
    add(builder, 0, *at(1000))
    add(builder, 1, *at(900))
    assert len(built(builder)) == 1
    assert builder.waited_for() == [1]
    builder.close_without(1, Cause.SILENCE)
    assert [text_of(one, b"MISS") for one in built(builder)] == [["B"]]
    marks = builder.take_marks()
    assert marks == [(1, Cause.SILENCE, 901, 1010)]
    add(builder, 1, *at(1010, 1011, first=1))
    add(builder, 0, *at(1011, first=1))
    assert [times_of(one) for one in all_ended(builder, 2)] == [[1011, 1011]]
    assert builder.fates(1) == (3, 1, 1, 1, 0, 0, 0)


def test_late_is_what_comes_more_than_reorder_ns_behind(make: MakeBuilder) -> None:
    builder = make(["A", "B"], by_time=True, match_window=0, reorder=[100, 0])
    add(builder, 0, *at(1000, 1100, 1001, 1201, 1100, 1101))
    add(builder, 1, *at(1000, 1001, 1100, 1050, 1201))
    events = all_ended(builder, 2)
    assert [times_of(one) for one in events] == [[1000] * 2, [1001] * 2, [1100] * 2, [1101], [1201] * 2]
    assert builder.fates(0) == (6, 4, 1, 1, 0, 0, 0)  # 1100 with another serial number, 101 behind: late
    assert builder.fates(1) == (5, 4, 0, 1, 0, 0, 0)


def test_a_duplicate_has_the_same_time_and_the_same_serial_number(make: MakeBuilder) -> None:
    builder = make(["A"], by_time=True, match_window=0)
    add(builder, 0, timed(1, 500), timed(1, 500), timed(2, 500), timed(1, 501), timed(2, 500))
    assert [times_of(one) for one in all_ended(builder, 1)] == [[500], [500], [501]]
    assert builder.fates(0) == (5, 3, 0, 0, 2, 0, 0)


def test_serial_numbers_mean_nothing_where_times_match(make: MakeBuilder) -> None:
    builder = make(["A", "B"], by_time=True, match_window=0)
    add(builder, 0, timed(2**32 - 1, 1), timed(0, 2), timed(0, 3))
    add(builder, 1, timed(500, 1), timed(400, 2), timed(2**31, 3))
    assert len(all_ended(builder, 2)) == 3
    assert not builder.restarted(0)


def test_large_times_are_times(make: MakeBuilder) -> None:
    time = 2**62 - 2 * TICK
    builder = make(["A", "B"], by_time=True, match_window=10)
    add(builder, 0, *at(time, time + TICK))
    add(builder, 1, *at(time + 10, time + TICK))
    assert len(all_ended(builder, 2)) == 2


@pytest.mark.parametrize("time", [2**62, 2**63, 2**64 - 50, 2**64 - 1])
def test_a_time_146_years_away_is_damaged_and_costs_its_own_event_alone(make: MakeBuilder, time: int) -> None:
    builder = make(["A", "B"], by_time=True, match_window=100)
    add(builder, 0, *at(*range(1000, 21000, 1000)))
    add(builder, 1, *at(*(time if n == 5 else 1000 * (n + 1) for n in range(20))))
    all_ended(builder, 2)
    assert builder.fates(1) == (20, 19, 0, 0, 0, 0, 1)


# ---------------------------------------------------------------- serial numbers checked by time


def checked(make: MakeBuilder, check: int, *sent: Sequence[bytes], **more: int) -> tuple[AnyBuilder, list[bytes]]:
    """What is built of these streams."""
    builder = make(["A", "B", "C"][: len(sent)], check=check, match_window=WINDOW, **more)
    for source, events in enumerate(sent):
        add(builder, source, *events)
    for source in range(len(sent)):
        builder.end_source(source)
    return builder, built(builder)


def triggers(*numbers: int, first: int = 0) -> list[bytes]:
    """Fragments that count from ``first``, of these triggers."""
    return [timed(first + i, (number + 1) * TICK) for i, number in enumerate(numbers)]


def wrong(events: Sequence[bytes]) -> list[int]:
    """Serial numbers of events whose times do not belong together."""
    return [serials(one)[0] for one in events if max(times_of(one)) - min(times_of(one)) > WINDOW]


WITHOUT_3 = [0, 1, 2, 4, 5, 6, 7]  # trigger 3 was lost and the counter did not notice: from then on one too low
TWICE_3 = [0, 1, 2, 3, 3, 4, 5, 6]  # a trigger too many (its second one 400 ns later)


def extra(*numbers: int) -> list[bytes]:
    """As `triggers`; one that comes twice is a noise trigger half way to the next one."""
    seen: set[int] = set()
    out = []
    for i, number in enumerate(numbers):
        out.append(timed(i, (number + 1) * TICK + (TICK // 2 if number in seen else 0)))
        seen.add(number)
    return out


def test_times_that_agree_are_told_of_to_nobody(make: MakeBuilder) -> None:
    builder, events = checked(make, Check.CONTINUE, at(1000, 2000), at(1100, 1900))
    assert len(events) == 2
    assert builder.take_reports() == []
    assert not any(b"SHFT" in one for one in events)


def test_a_lost_trigger_with_continue_is_flagged_from_then_on_byte_by_byte(make: MakeBuilder) -> None:
    builder, events = checked(make, Check.CONTINUE, triggers(*range(7)), triggers(*WITHOUT_3))
    assert builder.take_reports() == [(1, 3, 1), (1, 6, None)]  # at the end nobody has what 6 belongs to
    assert [text_of(one, b"SHFT") for one in events] == [[], [], [], ["B +1"], ["B +1"], ["B +1"], ["B ?"]]
    assert events[3] == (
        b"\x01\x00\xff\xff\x03\x00\x00\x00\x07\x00\x00\x00\x50\x00\x00\x00"
        b"\x48\x00\x00\x00\x31\x00\x00\x00"
        b"TIME\x12\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\xa0\x0f\0\0\0\0\0\0"
        b"TIME\x12\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x88\x13\0\0\0\0\0\0"
        b"SHFT\x0c\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00B +1\0\0\0\0"
    )


def test_a_lost_trigger_with_repair_costs_its_own_event(make: MakeBuilder) -> None:
    builder, events = checked(make, Check.REPAIR, triggers(*range(8)), triggers(*WITHOUT_3))
    assert wrong(events) == []
    assert [text_of(one, b"MISS") for one in events] == [[], [], [], ["B"], [], [], [], []]
    assert [text_of(one, b"SHFT") for one in events] == [[], [], [], [], *[["B +1"]] * 4]
    assert builder.take_reports() == [(1, 4, 1)]
    assert builder.fates(1) == (7, 7, 0, 0, 0, 0, 0)


def test_a_lost_trigger_with_stop_stops_before_the_event(make: MakeBuilder) -> None:
    builder = make(["A", "B"], check=Check.STOP, match_window=WINDOW)
    add(builder, 0, *triggers(*range(8)))
    add(builder, 1, *triggers(*WITHOUT_3))
    out, why, n_events, _ = builder.build(ROOM)
    assert (serials(out), why, n_events) == ([0, 1, 2], Stop.SHIFTED, 3)
    assert builder.take_reports() == [(1, 3, 1)]
    assert builder.build(ROOM)[1] == Stop.SHIFTED
    builder.discard_rest()
    assert all_ended(builder, 2) == []
    assert builder.fates(0) == (8, 3, 0, 0, 0, 5, 0)


def test_an_extra_trigger_with_repair_costs_no_event_of_the_others(make: MakeBuilder) -> None:
    builder, events = checked(make, Check.REPAIR, triggers(*range(7)), extra(*TWICE_3))
    assert wrong(events) == [4]  # the noise trigger itself belongs to no event: flagged
    assert [text_of(one, b"MISS") for one in events] == [[]] * 7 or text_of(events[4], b"SHFT") == ["B ?"]
    assert [times_of(one) for one in events[5:]] == [[6000, 6000], [7000, 7000]]
    assert builder.fates(1)[3] == 1
    assert builder.take_reports()[0] == (1, 4, None)
    assert text_of(events[6], b"SHFT") == ["B -1"]


def test_an_extra_trigger_with_continue_is_flagged_by_minus_one(make: MakeBuilder) -> None:
    builder, events = checked(make, Check.CONTINUE, triggers(*range(8)), extra(*TWICE_3))
    assert [text_of(one, b"SHFT") for one in events] == [[], [], [], [], ["B ?"], ["B -1"], ["B -1"], ["B -1"]]
    assert builder.take_reports() == [(1, 4, None), (1, 5, -1)]


def test_a_shift_that_heals_is_told_of(make: MakeBuilder) -> None:
    b = [0, 1, 3, 4, 4, 5, 6]  # one lost, later one too many
    builder, events = checked(make, Check.CONTINUE, triggers(*range(7)), extra(*b))
    assert [text_of(one, b"SHFT") for one in events] == [[], [], ["B +1"], ["B +1"], ["B ?"], [], []]
    assert builder.take_reports() == [(1, 2, 1), (1, 4, None), (1, 5, 0)]


def test_two_shifts_add_up(make: MakeBuilder) -> None:
    b = [0, 1, 3, 4, 6, 7, 8]
    builder, events = checked(make, Check.REPAIR, triggers(*range(9)), triggers(*b))
    assert wrong(events) == []
    assert [text_of(one, b"MISS") for one in events] == [["B"] if n in (2, 5) else [] for n in range(9)]
    assert builder.take_reports() == [(1, 3, 1), (1, 6, 2)]
    assert text_of(events[8], b"SHFT") == ["B +2"]


@pytest.mark.parametrize("check", [Check.CONTINUE, Check.REPAIR])
@pytest.mark.parametrize("off", [450, -450])
def test_a_glitch_of_one_time_is_flagged_once_and_costs_nothing(make: MakeBuilder, check: int, off: int) -> None:
    b = at(*(TICK * (n + 1) + (off if n == 3 else 0) for n in range(7)))
    builder, events = checked(make, check, triggers(*range(7)), b)
    assert [text_of(one, b"SHFT") for one in events] == [["B ?"] if n == 3 else [] for n in range(7)]
    assert builder.take_reports() == [(1, 3, None), (1, 4, 0)]
    assert builder.fates(1) == (7, 7, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("check", [Check.CONTINUE, Check.REPAIR])
@pytest.mark.parametrize("off", [450, 10**12])
def test_a_clock_that_is_wrong_for_ever_is_flagged_and_its_fragments_are_built(
    make: MakeBuilder, check: int, off: int
) -> None:
    builder, events = checked(make, check, triggers(*range(300)), at(*(TICK * (n + 1) + off for n in range(300))))
    assert [text_of(one, b"SHFT") for one in events] == [["B ?"]] * 300
    assert builder.take_reports() == [(1, 0, None)]
    assert builder.fates(1) == (300, 300, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("shifted", [0, 1, 2])
def test_of_three_the_majority_is_right(make: MakeBuilder, shifted: int) -> None:
    sent = [triggers(*(WITHOUT_3 if source == shifted else range(8))) for source in range(3)]
    builder, events = checked(make, Check.REPAIR, *sent)
    assert wrong(events) == []
    assert [text_of(one, b"MISS") for one in events] == [["ABC"[shifted]] if n == 3 else [] for n in range(8)]
    assert builder.take_reports() == [(shifted, 4, 1)]


def test_of_two_the_first_is_believed_and_what_cannot_be_known_yet_is_flagged(make: MakeBuilder) -> None:
    builder, events = checked(make, Check.REPAIR, triggers(*WITHOUT_3), triggers(*range(8)))
    assert wrong(events) == [3]  # no past event has the time of B's 3, which may be a glitch
    assert [text_of(one, b"SHFT") for one in events] == [[], [], [], ["B ?"], *[["B -1"]] * 3]
    assert not any(text_of(one, b"MISS") for one in events)
    assert builder.take_reports() == [(1, 3, None), (1, 4, -1)]
    assert builder.fates(1) == (8, 7, 0, 1, 0, 0, 0)  # trigger 4: its event has left


def test_sources_without_times_are_not_checked(make: MakeBuilder) -> None:
    sent = [event(n) for n in range(4)]
    builder, events = checked(make, Check.STOP, triggers(*range(4)), sent)
    assert len(events) == 4
    assert builder.take_reports() == []


def test_a_resent_burst_is_a_duplicate_where_times_are_checked(make: MakeBuilder) -> None:
    b = [*triggers(*range(5)), *triggers(2, 3, 4, first=2), *triggers(5, 6, first=5)]
    builder, events = checked(make, Check.REPAIR, triggers(*range(7)), b)
    assert wrong(events) == []
    assert builder.fates(1) == (10, 7, 0, 0, 3, 0, 0)
    assert builder.take_reports() == []


@pytest.mark.parametrize("check", [Check.CONTINUE, Check.REPAIR, Check.STOP])
@pytest.mark.parametrize("burst", [range(4), range(1, 90), range(100)])
def test_times_that_do_not_go_on_say_that_a_burst_is_sent_again(make: MakeBuilder, check: int, burst: range) -> None:
    b = [*triggers(*range(100)), *triggers(*burst, first=burst[0]), *triggers(*range(100, 110), first=100)]
    builder, events = checked(make, check, triggers(*range(110)), b)
    assert [text_of(one, b"MISS") for one in events] == [[]] * 110
    assert not builder.restarted(1)
    assert builder.fates(1) == (110 + len(burst), 110, 0, 0, len(burst), 0, 0)


# ---------------------------------------------------------------- counters that restart


@pytest.mark.parametrize("after", [3, 50, 300])
@pytest.mark.parametrize("lost", [0, 1, 5, 200])
@pytest.mark.parametrize("window", [16, 4096])
def test_a_counter_that_restarts_is_paired_again_by_time(make: MakeBuilder, after: int, lost: int, window: int) -> None:
    n = after + lost + 6
    b = [*triggers(*range(after)), *triggers(*range(after + lost, n))]
    builder, events = checked(make, Check.REPAIR, triggers(*range(n)), b, window=window)
    assert wrong(events) == []
    missing = [serials(one)[0] for one in events if text_of(one, b"MISS")]
    assert missing == list(range(after, after + lost))
    assert not builder.restarted(1)
    assert builder.take_reports() == [(1, after + lost, after + lost)]
    assert builder.fates(1) == (after + 6, after + 6, 0, 0, 0, 0, 0)


def test_a_counter_that_restarts_is_flagged_where_times_are_not_to_repair(make: MakeBuilder) -> None:
    b = [*triggers(*range(5)), *triggers(5, 6, 7, 8)]
    builder, events = checked(make, Check.CONTINUE, triggers(*range(9)), b)
    assert wrong(events) == []
    assert builder.restarted(1)
    assert builder.fates(1)[1] == 5


def test_a_counter_that_restarts_after_a_gap_nobody_can_see_across_is_flagged(make: MakeBuilder) -> None:
    b = [*triggers(*range(5)), *triggers(*range(405, 409))]
    builder, events = checked(make, Check.REPAIR, triggers(*range(409)), b)
    assert wrong(events) == []
    assert builder.fates(1)[:2] == (9, 5) or not builder.restarted(1)


@pytest.mark.parametrize("number", [3, 9])
def test_one_number_that_comes_again_with_a_new_time_costs_its_own_event_at_most(
    make: MakeBuilder, number: int
) -> None:
    b = [timed(number if n == 10 else n, (n + 1) * TICK) for n in range(40)]
    builder, events = checked(make, Check.REPAIR, triggers(*range(40)), b)
    assert wrong(events) == []
    assert not any(text_of(one, b"MISS") for one in events)  # by its time it is 10
    assert [text_of(one, b"SHFT") for one in events] == [[f"B +{10 - number}"] if n == 10 else [] for n in range(40)]
    assert builder.fates(1) == (40, 40, 0, 0, 0, 0, 0)


def test_a_declared_restart_ends_the_shift_that_the_times_had_found(make: MakeBuilder) -> None:
    builder = make(["A", "B"], check=Check.REPAIR, match_window=WINDOW)
    add(builder, 0, *triggers(*range(12)))
    add(builder, 1, *triggers(0, 1, 3, 4))
    assert len(built(builder)) == 5
    assert builder.take_reports() == [(1, 3, 1)]
    builder.border_follows(1)
    builder.renumber(1, 0, 6)
    add(builder, 1, *triggers(6, 7, 8))
    events = all_ended(builder, 2)
    assert [text_of(one, b"MISS") for one in events[:4]] == [["B"], [], [], []]
    assert [text_of(one, b"SHFT") for one in events] == [[]] * 7
    assert builder.take_reports() == [(1, 6, 0)]


# ---------------------------------------------------------------- silence of the source that is looked up


def test_silence_of_the_source_that_is_looked_up_is_a_mark_and_a_rebuild_honours_it(make: MakeBuilder) -> None:
    a, b = triggers(*range(8)), triggers(*WITHOUT_3)
    builder = make(["A", "B"], check=Check.CONTINUE, match_window=WINDOW)
    add(builder, 0, *a[:4])
    add(builder, 1, *b)
    first = builder.build(ROOM)
    assert first[1:3] == (Stop.WAITING, 3)
    assert builder.waited_for() == [0]  # whether B's 3 is trigger 4 can be said when A has sent 4
    builder.close_without(0, Cause.SILENCE)
    second = builder.build(ROOM)
    assert serials(second[0]) == [3]
    assert builder.take_marks() == [(0, Cause.CHECK, NEAR + 3, NEAR + 3)]
    assert builder.take_reports() == [(1, 3, None)]
    add(builder, 0, *a[4:])
    for source in (0, 1):
        builder.end_source(source)
    third = builder.build(ROOM)
    assert builder.take_reports() == [(1, 4, 1)]

    again = make(["A", "B"], check=Check.CONTINUE, match_window=WINDOW)
    again.give_mark(0, Cause.CHECK, NEAR + 3, NEAR + 3)
    add(again, 0, *a)
    add(again, 1, *b)
    for source in (0, 1):
        again.end_source(source)
    assert again.build(ROOM)[0] == first[0] + second[0] + third[0]
    assert again.take_reports() == [(1, 3, None), (1, 4, 1)]


def test_a_source_that_is_looked_up_and_sends_again_is_looked_up_again(make: MakeBuilder) -> None:
    builder = make(["A", "B"], check=Check.REPAIR, match_window=WINDOW)
    add(builder, 0, *triggers(*range(4)))
    add(builder, 1, *triggers(*WITHOUT_3))
    builder.build(ROOM)
    assert builder.waited_for() == [0]
    add(builder, 0, *triggers(*range(4, 8), first=4))
    events = built(builder)
    assert wrong(events) == []
    assert builder.take_marks() == []

"""What the builder writes, byte by byte, by hand; for the kernel and for the reference."""

from __future__ import annotations

import struct

import pytest
from tests.kernel.builders import NEAR, ROOM, MakeBuilder, add, serials
from tests.kernel.fragments import BANK, BANK32, BANK32A, body, broken_events, event

from phloem import kernel
from phloem.kernel import Cause, Policy, Stop


def test_three_formats_become_one_event_of_bank32a(make: MakeBuilder) -> None:
    builder = make(["A", "B", "C"], event_id=5, trigger_mask=0x0302)
    add(builder, 0, event(9, [(b"ADCA", 4, b"\x01\x02\x03\x04\x05\x06")], BANK, time_stamp=1000))
    add(builder, 1, event(9, [(b"ADCB", 10, bytes(range(8)))], BANK32, time_stamp=2000))
    add(builder, 2, event(9, [(b"ADCC", 1, b"\xff"), (b"NONE", 6, b"")], BANK32A, time_stamp=3000))
    expected = (
        b"\x05\x00\x02\x03\x09\x00\x00\x00\xe8\x03\x00\x00\x60\x00\x00\x00"  # 96 bytes follow; time stamp of A
        b"\x58\x00\x00\x00\x31\x00\x00\x00"
        b"ADCA\x04\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x00\x00"
        b"ADCB\x0a\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07"
        b"ADCC\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xff\x00\x00\x00\x00\x00\x00\x00"
        b"NONE\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    )
    assert builder.build(ROOM) == (expected, Stop.WAITING, 1, 0)


def test_padding_and_reserved_words_of_bank32a_are_kept(make: MakeBuilder) -> None:
    area = b"ADC0" + struct.pack("<III", 4, 2, 0xDEADBEEF) + b"\x01\x02\xaa\xbb\xcc\xdd\xee\xff"
    one = struct.pack("<HHIII", 1, 1, 0, 7, 8 + len(area)) + struct.pack("<II", len(area), BANK32A) + area
    builder = make(["A"])
    add(builder, 0, one)
    assert builder.build(ROOM)[0][24:] == area


def test_padding_of_converted_banks_is_zero(make: MakeBuilder) -> None:
    area = b"ADC0" + struct.pack("<HH", 4, 2) + b"\x01\x02\xaa\xbb\xcc\xdd\xee\xff"
    one = struct.pack("<HHIII", 1, 1, 0, 7, 8 + len(area)) + struct.pack("<II", len(area), BANK) + area
    builder = make(["A"])
    add(builder, 0, one)
    assert builder.build(ROOM)[0][40:] == b"\x01\x02\0\0\0\0\0\0"


def test_an_incomplete_event_names_who_is_missing(make: MakeBuilder) -> None:
    builder = make(["Trig1", "Trig2", "Trig3"])
    add(builder, 1, event(0, [(b"ADC0", 4, b"\x01\0")], time_stamp=5))
    for source in range(3):
        builder.end_source(source)
    expected = (
        b"\x01\x00\xff\xff\x00\x00\x00\x00\x05\x00\x00\x00\x40\x00\x00\x00"
        b"\x38\x00\x00\x00\x31\x00\x00\x00"
        b"ADC0\x04\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"
        b"MISS\x0c\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00Trig1\0Trig3\0\0\0\0\0"
    )
    assert builder.build(ROOM) == (expected, Stop.DONE, 1, 0)
    assert builder.fates(1) == (1, 0, 1, 0, 0, 0, 0)


def test_the_policy_discard_counts_and_writes_nothing(make: MakeBuilder) -> None:
    builder = make(["A", "B"], on_incomplete=Policy.DISCARD)
    add(builder, 0, event(0), event(1))
    add(builder, 1, event(1))
    out, why, n_events, _ = builder.build(ROOM)
    assert (serials(out), why, n_events) == ([1], Stop.WAITING, 1)
    assert builder.fates(0) == (2, 1, 0, 0, 0, 1, 0)


def test_an_event_larger_than_may_be_is_discarded_and_the_next_one_is_built(make: MakeBuilder) -> None:
    builder = make(["A", "B"], max_event=24 + 2 * 24)
    for source in (0, 1):
        add(builder, source, *(event(n, [(b"ADC0", 4, bytes(size))]) for n, size in enumerate((8, 9, 8))))
    assert serials(builder.build(ROOM)[0]) == [0, 2]
    assert builder.fates(0) == (3, 2, 0, 0, 0, 1, 0)


def test_the_policy_stop_leaves_the_incomplete_event_where_it_is(make: MakeBuilder) -> None:
    builder = make(["A", "B"], on_incomplete=Policy.STOP)
    add(builder, 0, event(0), event(1), event(2))
    add(builder, 1, event(0), event(2))
    out, why, n_events, _ = builder.build(ROOM)
    assert (serials(out), why, n_events) == ([0], Stop.POLICY, 1)
    assert builder.build(ROOM)[1] == Stop.POLICY
    assert builder.fates(0)[1:] == (1, 0, 0, 0, 0, 0)


def test_no_room_says_how_much_is_wanted_and_loses_nothing(make: MakeBuilder) -> None:
    builder = make(["A"])
    add(builder, 0, event(0, [(b"ADC0", 4, bytes(8))]), event(1))
    assert builder.build(47) == (b"", Stop.ROOM, 0, 48)
    out, why, n_events, wanted = builder.build(48)
    assert (serials(out), why, n_events, wanted) == ([0], Stop.ROOM, 1, 24)
    assert serials(builder.build(24)[0]) == [1]


@pytest.mark.parametrize("number", range(10))
def test_what_is_not_a_valid_event_is_quarantined_alone_if_the_next_can_be_found(
    make: MakeBuilder, number: int
) -> None:
    broken = broken_events(1)[number]
    builder = make(["A"])
    add(builder, 0, event(0), broken.data, event(2))
    built = [0] if broken.rest_is_lost else [0, 2]
    assert serials(builder.build(ROOM)[0]) == built
    assert builder.fates(0) == (3, len(built), 0, 0, 0, 0, 3 - len(built))


def test_a_frame_that_promises_more_events_than_it_has_is_quarantined_for_the_rest(make: MakeBuilder) -> None:
    builder = make(["A"])
    data = event(0)
    builder.add_bytes(0, 1, data, 3, 0)
    assert serials(builder.build(ROOM)[0]) == [0]
    assert builder.fates(0) == (3, 1, 0, 0, 0, 0, 2)


def test_fragments_of_another_run_and_after_the_end_are_quarantined(make: MakeBuilder) -> None:
    builder = make(["A"])
    add(builder, 0, event(0), run=2)
    add(builder, 0, event(0))
    builder.end_source(0)
    add(builder, 0, event(1))
    assert builder.build(ROOM)[1:3] == (Stop.DONE, 1)
    assert builder.fates(0) == (3, 1, 0, 0, 0, 0, 2)


def test_the_same_number_within_the_window_is_a_duplicate_and_beyond_it_late(make: MakeBuilder) -> None:
    builder = make(["A"], window=4)
    add(builder, 0, *(event(n) for n in (0, 1, 2, 3, 1, 4, 1, 0)))
    assert serials(builder.build(ROOM)[0]) == [0, 1, 2, 3, 4]
    assert builder.fates(0) == (8, 5, 0, 1, 2, 0, 0)  # 0 is four behind 4: out of the window


def test_out_of_order_within_reach_is_put_in_order_and_beyond_it_late(make: MakeBuilder) -> None:
    builder = make(["A"], reorder=2)
    add(builder, 0, *(event(n) for n in (0, 3, 1, 2, 7, 4, 5, 6)))
    builder.end_source(0)
    assert serials(builder.build(ROOM)[0]) == [0, 1, 2, 3, 5, 6, 7]
    assert builder.fates(0) == (8, 7, 0, 1, 0, 0, 0)


def test_numbers_go_on_through_the_wrap(make: MakeBuilder) -> None:
    builder = make(["A", "B"], reorder=1)
    numbers = [0xFFFFFFFE, 0xFFFFFFFF, 0, 1]
    add(builder, 0, *(event(n) for n in numbers))
    add(builder, 1, *(event(n) for n in (0xFFFFFFFE, 0, 0xFFFFFFFF, 1)))
    assert serials(builder.build(ROOM)[0]) == numbers
    assert builder.fates(0) == builder.fates(1) == (4, 4, 0, 0, 0, 0, 0)


def test_what_was_never_seen_before_the_beginning_is_late_and_no_duplicate(make: MakeBuilder) -> None:
    builder = make(["A"], reorder=3)
    add(builder, 0, event(0), event(0xFFFFFFFF), event(0xFFFFFFFF))
    assert serials(builder.build(ROOM)[0]) == [0]
    assert builder.fates(0) == (3, 1, 0, 1, 1, 0, 0)


def test_an_end_that_comes_before_all_was_built_keeps_the_order(make: MakeBuilder) -> None:
    builder = make(["A"], reorder=2)
    add(builder, 0, event(1), event(0))
    builder.end_source(0)
    assert serials(builder.build(ROOM)[0]) == [0, 1]


def test_silence_is_marked_until_the_source_sends_again(make: MakeBuilder) -> None:
    builder = make(["A", "B"])
    add(builder, 0, *(event(n) for n in range(6)))
    add(builder, 1, event(0))
    assert serials(builder.build(ROOM)[0]) == [0]
    assert builder.waited_for() == [1]
    builder.close_without(1, Cause.SILENCE)
    assert serials(builder.build(ROOM)[0]) == [1, 2, 3, 4, 5]
    assert builder.waited_for() == []
    assert builder.take_marks() == [(1, Cause.SILENCE, NEAR + 1, NEAR + 5)]
    assert builder.take_marks() == []
    add(builder, 1, event(4), event(6))
    add(builder, 0, event(6))
    assert serials(builder.build(ROOM)[0]) == [6]
    assert builder.fates(1) == (3, 2, 0, 1, 0, 0, 0)


def test_a_mark_covers_the_numbers_that_nobody_sent_and_is_one_mark(make: MakeBuilder) -> None:
    builder = make(["A", "B"])
    add(builder, 0, *(event(n) for n in (0, 10, 20, 30)))
    add(builder, 1, event(0))
    builder.build(ROOM)
    builder.close_without(1, Cause.SILENCE)
    builder.build(ROOM)
    assert builder.take_marks() == [(1, Cause.SILENCE, NEAR + 1, NEAR + 30)]
    add(builder, 1, event(15))
    builder.build(ROOM)
    assert builder.fates(1) == (2, 1, 0, 1, 0, 0, 0)


def test_space_closes_one_event_and_marks_it_once(make: MakeBuilder) -> None:
    builder = make(["A", "B", "C"])
    add(builder, 0, event(0), event(1))
    assert builder.build(ROOM)[2] == 0
    assert builder.waited_for() == [1, 2]
    for _ in range(2):
        builder.close_without(1, Cause.SPACE)
    assert builder.waited_for() == [2]
    builder.close_without(2, Cause.SPACE)
    assert serials(builder.build(ROOM)[0]) == [0]
    assert builder.take_marks() == [(1, Cause.SPACE, 0, NEAR), (2, Cause.SPACE, 0, NEAR)]
    assert builder.waited_for() == [1, 2]


def test_what_a_source_holds_back_is_given_free_by_silence(make: MakeBuilder) -> None:
    builder = make(["A", "B"], reorder=4)
    add(builder, 0, *(event(n) for n in range(4)))
    add(builder, 1, event(0), event(3))
    assert serials(builder.build(ROOM)[0]) == [0]
    builder.close_without(1, Cause.SILENCE)
    assert serials(builder.build(ROOM)[0]) == [1, 2, 3]
    assert builder.take_marks() == [(1, Cause.SILENCE, NEAR + 1, NEAR + 2)]
    assert builder.fates(1) == (2, 2, 0, 0, 0, 0, 0)


def test_after_silence_a_source_is_passed_on_at_once(make: MakeBuilder) -> None:
    builder = make(["A", "B"], reorder=8)
    add(builder, 0, *(event(n) for n in range(4)))
    builder.build(ROOM)
    builder.close_without(1, Cause.SILENCE)
    builder.build(ROOM)
    add(builder, 0, event(4))
    add(builder, 1, event(4))
    assert serials(builder.build(ROOM)[0]) == [4]  # nothing below 4 can come from it: it need not be held


def test_one_fragment_taken_out_between_ring_and_builder_is_missed_by_the_account(make: MakeBuilder) -> None:
    builder = make(["A", "B"])
    sent = [event(n) for n in range(5)]
    add(builder, 0, *sent)
    add(builder, 1, *sent[:2], *sent[3:])
    for source in (0, 1):
        builder.end_source(source)
    builder.build(ROOM)
    assert builder.fates(0) == (5, 4, 1, 0, 0, 0, 0)
    assert len(sent) - sum(builder.fates(1)[1:]) == 1


@pytest.mark.parametrize(("names", "settings"), [([], {}), (["A"], {"reorder": 4, "window": 4})])
def test_impossible_settings_are_refused(make: MakeBuilder, names: list[str], settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least one source|window must be greater than reorder"):
        make(names, **settings)


def test_a_checkpoint_holds_where_each_source_stands() -> None:
    builder = kernel.Builder(["A", "B"], reorder=2, window=8)
    builder.begin_run(3)
    data = body([event(100), event(103), event(100)])  # the third one is not looked at while 100 is open
    builder.add_bytes(0, 3, data, 3, 17)
    builder.build(ROOM)
    base = NEAR + 100
    missed = [(base - 8, base - 1), (base + 1, base + 2)]
    expected = struct.pack("<IIQQQIIII", 2, 3, 0, 0, base, 2, 0, 0, 0)
    expected += struct.pack("<QQII", 0xAB, 17, 2, 1 | 16) + struct.pack("<3Q", base + 3, base + 1, 0)
    expected += struct.pack("<7Q", 3, 0, 0, 0, 0, 0, 0) + struct.pack(
        "<QQQqqIIQqQ", base, 2**64 - 1, 0, 0, 0, 0, 0, base + 0, 0, 0
    )
    expected += struct.pack("<8I", 0, 0, 0, 0, 0, 2, 2, 0)
    expected += struct.pack("<QIIQq", 17, 0, 0, base, 0) + struct.pack("<QIIQq", 17, 1, 0, base + 3, 0)
    expected += b"".join(struct.pack("<QQ", *one) for one in missed)
    expected += struct.pack("<QQII", 0xCD, 1, 0, 16) + bytes(80)
    expected += struct.pack("<QQQqqIIQqQ", 0, 2**64 - 1, 0, 0, 0, 0, 0, 2**64 - 1, 0, 0) + bytes(32)
    assert builder.checkpoint([0xAB, 0xCD]) == expected

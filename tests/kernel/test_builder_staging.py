"""Events that user code sees before they leave: what it sees, what it may do, what is written. In the kernel alone."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from tests.kernel.builders import ROOM, banks_of, events_of, serials, text_of, timed
from tests.kernel.fragments import BANK, BANK32, BANK32A, body, event
from tests.kernel.rings import drain, new_reader, new_writer

from phloem import kernel
from phloem.kernel import Policy, RingReader, RingWriter, Stop

BUILD, SKIP, COMPOSE = 0, 1, 2
NONE = 0xFFFFFFFF


def new(names: list[str], *sent: list[bytes], **settings: object) -> kernel.Builder:
    """A builder that has these streams, each ended."""
    builder = kernel.Builder(names, **settings)  # type: ignore[arg-type]
    builder.begin_run(1)
    for source, events in enumerate(sent):
        builder.add_bytes(source, 1, body(events), len(events), 0)
        builder.end_source(source)
    return builder


def adc(serial: int, data: bytes, bank_format: int = BANK32A, name: bytes = b"ADC0", **more: int) -> bytes:
    """A fragment with one bank."""
    return event(serial, [(name, 4, data)], bank_format, **more)


def two() -> kernel.Builder:
    """A has 0, 1, 2; B has 0 and 2."""
    a = [adc(n, bytes([n, 0]), BANK, event_id=2, trigger_mask=3, time_stamp=10 + n) for n in range(3)]
    b = [adc(n, bytes([n, 1, n, 1]), BANK32, name=b"ADC1", time_stamp=20 + n) for n in (0, 2)]
    return new(["A", "B"], a, b)


def test_what_is_staged_can_be_looked_at_and_is_not_decided() -> None:
    builder = two()
    assert builder.stage(ROOM, 10) == Stop.DONE
    assert builder.n_staged == 3
    assert builder.staged_events() == struct.pack("<6I", 0, 0, 1, 1, 2, 0)
    rows = [(n, 1, 2, 3, n, 10 + n, 24) for n in range(3)]
    a = [struct.pack("<IHHIIII", present, id_, mask, n, stamp, size, 0) for n, present, id_, mask, stamp, size in
         [(n, *row[1:4], row[5], row[6]) for n, row in enumerate(rows)]]  # fmt: skip
    b = [struct.pack("<IHHIIII", 1, 1, 0xFFFF, n, 20 + n, 28, 0) for n in (0, 2)]
    assert builder.staged_headers() == a[0] + b[0] + a[1] + bytes(24) + a[2] + b[1]
    assert builder.fates(0) == (3, 0, 0, 0, 0, 0, 0)
    assert builder.backlog(0) == 3
    assert builder.released(0) == 0


def test_a_bank_and_all_banks_of_a_staged_fragment() -> None:
    builder = two()
    builder.stage(ROOM, 10)
    assert builder.staged_bank(2, 1, b"ADC1") == (4, b"\2\1\2\1")
    assert builder.staged_bank(2, 1, b"ADC0") is None
    assert builder.staged_bank(1, 1, b"ADC1") is None
    assert builder.staged_area(1, 1) is None
    assert builder.staged_area(0, 0) == b"ADC0" + struct.pack("<III", 4, 2, 0) + b"\0\0" + bytes(6)
    for wrong in ((3, 0), (0, 2)):
        with pytest.raises(IndexError):
            builder.staged_area(*wrong)
    with pytest.raises(ValueError, match="4 bytes"):
        builder.staged_bank(0, 0, b"ADC")


def test_one_bank_of_all_staged_events_is_gathered() -> None:
    builder = two()
    builder.stage(ROOM, 10)
    assert builder.gather_bank(1, b"ADC1") == (4, struct.pack("<3I", 4, NONE, 4), b"\0\1\0\1\2\1\2\1")
    assert builder.gather_bank(0, b"NONE") == (0, struct.pack("<3I", NONE, NONE, NONE), b"")


def test_what_is_staged_and_left_as_it_is_is_what_would_have_been_built() -> None:
    expected = two().build(ROOM)[0]
    builder = two()
    builder.stage(ROOM, 10)
    assert builder.write_staged(10) == (expected, 3)
    assert builder.n_staged == 0
    assert builder.fates(0) == (3, 2, 1, 0, 0, 0, 0)
    assert builder.fates(1) == (2, 2, 0, 0, 0, 0, 0)
    assert (builder.events_built, builder.events_incomplete) == (3, 1)


def test_banks_of_the_user_come_first_then_those_of_the_sources_then_ours_byte_by_byte() -> None:
    builder = new(["A", "B"], [adc(0, b"\1\2")], [], headers=True)
    builder.stage(ROOM, 1)
    builder.set_outcome(0, BUILD, [(b"USR0", 1, b"u"), (b"USR1", 6, np.array([7], "<u4"))])
    banks = (
        b"USR0\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00u\0\0\0\0\0\0\0"
        b"USR1\x06\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x07\0\0\0\0\0\0\0"
        b"ADC0\x04\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x01\x02\0\0\0\0\0\0"
        b"FRAG\x06\x00\x00\x00\x18\x00\x00\x00\x00\x00\x00\x00"
        + struct.pack("<6I", 0, 1, 0xFFFF, 0, 7, 32)
        + b"MISS\x0c\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00B\0\0\0\0\0\0\0"
    )
    head = struct.pack("<HHIII", 1, 0xFFFF, 0, 7, 8 + len(banks)) + struct.pack("<II", len(banks), 0x31)
    assert builder.write_staged(1) == (head + banks, 1)


def test_compose_leaves_the_banks_of_the_user_alone_and_our_own() -> None:
    builder = two()
    builder.stage(ROOM, 10)
    for n in range(3):
        builder.set_outcome(n, COMPOSE, [(b"USR0", 1, bytes([n]))])
    events = events_of(builder.write_staged(3)[0])
    assert [banks_of(one) for one in events] == [
        [(b"USR0", b"\0")],
        [(b"USR0", b"\1"), (b"MISS", b"B\0")],
        [(b"USR0", b"\2")],
    ]
    assert [struct.unpack_from("<I", one, 8)[0] for one in events] == [10, 11, 12]
    assert builder.fates(0) == (3, 2, 1, 0, 0, 0, 0)


def test_skip_counts_as_discarded_and_writes_nothing() -> None:
    builder = two()
    builder.stage(ROOM, 10)
    builder.set_outcome(0, SKIP, [])
    builder.set_outcome(1, SKIP, [(b"USR0", 1, b"u")])
    out, n_events = builder.write_staged(3)
    assert (serials(out), n_events) == ([2], 1)
    assert builder.fates(0) == (3, 1, 0, 0, 0, 2, 0)
    assert builder.fates(1) == (2, 1, 0, 0, 0, 1, 0)
    assert builder.events_too_large == 0


def test_the_outcome_that_is_set_last_counts() -> None:
    builder = two()
    builder.stage(ROOM, 1)
    builder.set_outcome(0, SKIP, [])
    builder.set_outcome(0, COMPOSE, [(b"USR0", 1, b"u")])
    builder.set_outcome(0, BUILD, [])
    assert builder.write_staged(1)[0] == events_of(two().build(ROOM)[0])[0]
    for wrong in (3, 77):
        builder.stage(ROOM, 1)
        with pytest.raises(ValueError, match="outcome"):
            builder.set_outcome(0, wrong, [])


def test_outcomes_of_a_batch_at_once() -> None:
    builder = two()
    builder.stage(ROOM, 10)
    parts = np.array([[1, 2], [3, 4], [5, 6]], "<u2")
    builder.set_outcomes(np.array([False, True, False]), False, [(b"USR0", 4, parts)])
    events = events_of(builder.write_staged(3)[0])
    assert [banks_of(one)[0] for one in events] == [(b"USR0", b"\1\0\2\0"), (b"USR0", b"\5\0\6\0")]
    assert len(banks_of(events[0])) == 3
    assert builder.fates(0) == (3, 2, 0, 0, 0, 1, 0)


def test_outcomes_of_a_batch_that_composes() -> None:
    builder = two()
    builder.stage(ROOM, 10)
    builder.set_outcomes(None, True, [(b"USR0", 1, b"abc")])
    events = events_of(builder.write_staged(3)[0])
    assert [banks_of(one)[0] for one in events] == [(b"USR0", b"a"), (b"USR0", b"b"), (b"USR0", b"c")]
    assert [len(banks_of(one)) for one in events] == [1, 2, 1]


def test_a_batch_of_another_length_is_refused() -> None:
    builder = two()
    builder.stage(ROOM, 10)
    with pytest.raises(ValueError, match="one bool per event"):
        builder.set_outcomes(np.array([True]), False, [])
    with pytest.raises(ValueError, match="divide into the events"):
        builder.set_outcomes(None, False, [(b"USR0", 1, b"ab")])


def test_a_staged_event_that_grows_too_large_is_discarded_and_counted() -> None:
    builder = new(["A"], [adc(0, b"12"), adc(1, b"12")], max_event=24 + 48)
    builder.stage(ROOM, 2)
    builder.set_outcome(0, BUILD, [(b"USR0", 1, bytes(9))])
    builder.set_outcome(1, BUILD, [(b"USR0", 1, bytes(8))])
    assert serials(builder.write_staged(2)[0]) == [1]
    assert builder.fates(0) == (2, 1, 0, 0, 0, 1, 0)
    assert (builder.events_too_large, builder.largest_refused) == (1, 80)


def test_what_policy_or_discard_rest_discards_is_never_staged() -> None:
    builder = new(["A", "B"], [event(0), event(1), event(2)], [event(1)], on_incomplete=Policy.DISCARD)
    assert builder.stage(ROOM, 10) == Stop.DONE
    assert builder.staged_events() == struct.pack("<2I", 1, 0)
    assert builder.fates(0) == (3, 0, 0, 0, 0, 2, 0)
    builder = two()
    builder.stage(ROOM, 1)
    builder.discard_rest()
    assert builder.stage(ROOM, 10) == Stop.DONE
    assert builder.n_staged == 1
    builder.write_staged(1)
    assert builder.fates(0) == (3, 1, 0, 0, 0, 2, 0)


def test_the_policy_stop_stops_staging_too() -> None:
    builder = new(["A", "B"], [event(0), event(1)], [event(0)], on_incomplete=Policy.STOP)
    assert builder.stage(ROOM, 10) == Stop.POLICY
    assert builder.n_staged == 1


def test_staging_is_limited_by_number_and_by_bytes_and_takes_one_event_at_least() -> None:
    builder = new(["A"], [adc(n, bytes(8)) for n in range(5)])
    assert builder.stage(1, 10) == Stop.ROOM
    assert builder.n_staged == 1
    builder.write_staged(1)
    assert builder.stage(2 * 48, 10) == Stop.ROOM
    assert builder.n_staged == 2
    builder.write_staged(1)
    assert builder.n_staged == 1
    assert builder.stage(ROOM, 2) == Stop.ROOM
    assert [int.from_bytes(builder.staged_events()[at : at + 4], "little") for at in (0, 8)] == [2, 3]
    assert serials(builder.write_staged(10)[0]) == [2, 3]


def test_what_user_code_sees_of_events_left_over_is_theirs() -> None:
    builder = new(["A", "B"], [adc(n, bytes([n, n])) for n in range(4)], [event(0), event(3)], headers=True)
    builder.stage(ROOM, 3)
    first = builder.write_staged(1)[0]
    builder.stage(ROOM, 4)
    assert builder.n_staged == 3
    assert builder.gather_bank(0, b"ADC0")[2] == b"\1\1\2\2\3\3"
    events = [*events_of(first), *events_of(builder.write_staged(3)[0])]
    assert [text_of(one, b"MISS") for one in events] == [[], ["B"], ["B"], []]
    whole = new(["A", "B"], [adc(n, bytes([n, n])) for n in range(4)], [event(0), event(3)], headers=True)
    assert b"".join(events) == whole.build(ROOM)[0]


def test_events_matched_by_time_and_shifted_ones_are_staged_as_they_would_be_built() -> None:
    a, b = [timed(n, 1000 * n) for n in range(6)], [timed(n, 1000 * (n + (n > 2))) for n in range(6)]
    for settings in ({"by_time": True, "match_window": 10}, {"check": 2, "match_window": 10}):
        plain, staged = (new(["A", "B"], a, b, **settings) for _ in range(2))
        expected, out = plain.build(ROOM)[0], b""
        while staged.stage(ROOM, 2) != Stop.DONE or staged.n_staged:
            out += staged.write_staged(2)[0]
        assert out == expected
        assert [staged.fates(s) for s in (0, 1)] == [plain.fates(s) for s in (0, 1)]


def test_a_checkpoint_lists_what_is_staged_as_undecided() -> None:
    builder = kernel.Builder(["A"], reorder=0, window=8)
    builder.begin_run(3)
    for sequence, numbers in ((5, (0, 1)), (6, (2,))):
        events = [event(n) for n in numbers]
        builder.add_bytes(0, 3, body(events), len(events), sequence)
    builder.stage(ROOM, 2)
    row = (
        48 + 24 + 104 + 16 + 8 + 24 + 32
    )  # head; where it reads; keys and fates; shifts; pairings; the last; 8 half words
    base = 2**33
    data = builder.checkpoint([0xAB])
    n_undecided = struct.unpack_from("<I", data, row - 12)[0]
    undecided = [struct.unpack_from("<QIIQq", data, row + 32 * n) for n in range(n_undecided)]
    assert undecided == [(5, 0, 0, base, 0), (5, 1, 0, base + 1, 0)]
    assert builder.released(0) == 0
    builder.write_staged(1)
    data = builder.checkpoint([0xAB])
    assert struct.unpack_from("<I", data, row - 12)[0] == 1
    assert struct.unpack_from("<QIIQq", data, row) == (5, 1, 0, base + 1, 0)
    builder.write_staged(1)
    assert builder.released(0) == 6
    assert struct.unpack_from("<I", builder.checkpoint([0xAB]), row - 12)[0] == 0


def test_a_new_run_forgets_what_is_staged() -> None:
    builder = two()
    builder.stage(ROOM, 10)
    builder.begin_run(2)
    assert builder.n_staged == 0
    assert builder.write_staged(5) == (b"", 0)


# ---------------------------------------------------------------- into a ring


@pytest.fixture
def ring(place: Path) -> tuple[RingWriter, RingReader]:
    """A small ring, and its reader."""
    writer = new_writer(place / "EB.ring", capacity=1 << 19)
    writer.begin_run(1)
    return writer, new_reader(place / "EB.ring")


def test_staged_events_fill_frames_of_a_small_ring_and_wait_where_it_is_full(
    ring: tuple[RingWriter, RingReader],
) -> None:
    writer, reader = ring
    size, n_events = 40_000, 60
    sent = [adc(n, bytes([n]) * size) for n in range(n_events)]
    builder = new(["A"], sent)
    expected = new(["A"], sent).build(n_events * (size + 100))[0]
    out, refused, written = b"", 0, 0
    builder.stage(1 << 30, n_events)
    while written < n_events:
        n = builder.write_staged_into(writer, n_events)
        if n is None:
            refused += 1
            frames = drain(reader)
            assert frames, "the ring is full of nothing"
            out += b"".join(frame["body"] for frame in frames)
            continue
        assert n > 0
        written += n
        writer.close_with(b"meta %d" % written)
    out += b"".join(frame["body"] for frame in drain(reader))
    assert refused > 0
    assert out == expected
    assert builder.fates(0) == (n_events, n_events, 0, 0, 0, 0, 0)
    assert writer.total_events == n_events


def test_what_is_skipped_needs_no_space_in_the_ring(ring: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ring
    builder = new(["A"], [adc(n, bytes(50_000)) for n in range(20)])
    builder.stage(1 << 30, 20)
    builder.set_outcomes(np.array([n != 7 for n in range(20)]), False, [])
    assert builder.write_staged_into(writer, 20) == 20
    writer.close_with(b"")
    (frame,) = drain(reader)
    assert serials(frame["body"]) == [7]
    assert (frame["first_serial"], frame["next_serial"], frame["n_events"]) == (7, 8, 1)
    assert builder.fates(0) == (20, 1, 0, 0, 0, 19, 0)

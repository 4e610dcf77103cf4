"""Events as bytes: layouts written out by hand, round trips, and damage that must end in a FormatError."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.formats.run_files import data_event

from phloem.formats.midas.events import (
    decode_event,
    encode_event,
    message_event,
    reassemble,
    run_event,
    scan,
    walk,
)
from phloem.model.errors import EventError, FormatError
from phloem.model.event import TID, Bank, BankFormat, Event, MessageType

# Event 5 of kind 1, mask 0xFFFF: bank WORD holds three 16-bit numbers, bank DBLE one double.
HAND = {
    BankFormat.BANK: struct.pack("<HHIII", 1, 0xFFFF, 5, 1700000000, 8 + 16 + 16)
    + struct.pack("<II", 32, 0x01)
    + struct.pack("<4sHHHHHH", b"WORD", 4, 6, 1, 2, 65535, 0)
    + struct.pack("<4sHHd", b"DBLE", 10, 8, 0.1),
    BankFormat.BANK32: struct.pack("<HHIII", 1, 0xFFFF, 5, 1700000000, 8 + 20 + 20)
    + struct.pack("<II", 40, 0x11)
    + struct.pack("<4sIIHHHH", b"WORD", 4, 6, 1, 2, 65535, 0)
    + struct.pack("<4sIId", b"DBLE", 10, 8, 0.1),
    BankFormat.BANK32A: struct.pack("<HHIII", 1, 0xFFFF, 5, 1700000000, 8 + 24 + 24)
    + struct.pack("<II", 48, 0x31)
    + struct.pack("<4sIIIHHHH", b"WORD", 4, 6, 0, 1, 2, 65535, 0)
    + struct.pack("<4sIIId", b"DBLE", 10, 8, 0, 0.1),
}


@pytest.mark.parametrize("form", BankFormat)
def test_a_hand_written_event_is_decoded(form: BankFormat) -> None:
    event, end = decode_event(HAND[form])
    assert end == len(HAND[form])
    assert (event.event_id, event.trigger_mask, event.serial_number, event.time_stamp) == (
        1,
        0xFFFF,
        5,
        1700000000,
    )
    assert event.data_size == len(HAND[form]) - 16
    assert event.format is form
    assert [(bank.name, bank.tid, bank.values.tolist()) for bank in event.banks] == [
        ("WORD", 4, [1, 2, 65535]),
        ("DBLE", 10, [0.1]),
    ]


@pytest.mark.parametrize("form", BankFormat)
def test_an_event_is_encoded_to_the_hand_written_bytes(form: BankFormat) -> None:
    words, doubles = np.array([1, 2, 65535], np.uint16), np.array([0.1])
    banks = (Bank("WORD", TID.UINT16, words), Bank("DBLE", TID.FLOAT64, doubles))
    assert encode_event(Event(1, 0xFFFF, 5, 1700000000, 0, form, banks)) == HAND[form]


def test_bit_5_is_looked_at_before_bit_4() -> None:
    data = bytearray(HAND[BankFormat.BANK32A])
    data[20] = 0x21
    event, _ = decode_event(data)
    assert event.format is BankFormat.BANK32A
    assert event.banks[0].values.tolist() == [1, 2, 65535]


def test_an_event_may_begin_anywhere_and_has_others_around_it() -> None:
    data = b"abc" + HAND[BankFormat.BANK] + HAND[BankFormat.BANK32]
    event, following = decode_event(data, 3)
    assert event.format is BankFormat.BANK
    event, end = decode_event(memoryview(data), following)
    assert event.format is BankFormat.BANK32
    assert end == len(data)


def test_values_are_read_only_views_of_the_buffer() -> None:
    data = bytearray(HAND[BankFormat.BANK])
    values = decode_event(data)[0].banks[0].values
    assert not values.flags.writeable
    data[32:34] = b"\x09\x00"
    assert values[0] == 9


VALUES: dict[TID, Any] = {
    TID.UINT8: np.array([0, 255], np.uint8),
    TID.INT8: np.array([-128, 127], np.int8),
    TID.CHAR: np.frombuffer(b"phloem", "S1"),
    TID.UINT16: np.array([1, 65535], np.uint16),
    TID.INT16: np.array([-32768, 5], np.int16),
    TID.UINT32: np.array([1 << 31], np.uint32),
    TID.INT32: np.array([-(1 << 31)], np.int32),
    TID.BOOL: np.array([0, 1, 1], np.uint32),
    TID.FLOAT32: np.array([0.5, np.inf], np.float32),
    TID.FLOAT64: np.array([1 / 3]),
    TID.BITFIELD: np.array([0xAAAA5555], np.uint32),
    TID.STRING: np.frombuffer(b"ab\0cd\0", "S1"),
    TID.ARRAY: np.arange(11, dtype=np.uint8),
    TID.STRUCT: np.arange(3, dtype=np.uint8),
    TID.KEY: np.arange(4, dtype=np.uint8),
    TID.LINK: np.frombuffer(b"/Runinfo\0", "S1"),
    TID.INT64: np.array([-(1 << 63)], np.int64),
    TID.UINT64: np.array([(1 << 64) - 1], np.uint64),
}


@pytest.mark.parametrize("form", BankFormat)
@pytest.mark.parametrize("tid", TID)
def test_every_type_survives_the_round_trip_in_every_format(tid: TID, form: BankFormat) -> None:
    bank = Bank("DATA", tid, VALUES[tid])
    data = encode_event(Event(3, 1, 9, 10, 0, form, (bank, Bank("NONE", tid, VALUES[tid][:0]))))
    event, end = decode_event(data)
    assert end == len(data)
    assert event.banks[0].values.dtype == tid.dtype
    assert event.banks[0].values.tobytes() == VALUES[tid].tobytes()
    assert len(event.banks[1].values) == 0
    assert encode_event(event) == data
    assert len(data) % 8 == 0 or form is not BankFormat.BANK32A


def test_a_bitfield_of_one_byte_as_midas_2017_has_it_is_read() -> None:
    data = struct.pack("<HHIIIII4sHHB7x", 1, 0, 0, 0, 24, 16, 1, b"BITS", 11, 1, 0x5A)
    values = decode_event(data)[0].banks[0].values
    assert (values.dtype, values.tolist()) == (np.dtype("u1"), [0x5A])
    assert encode_event(decode_event(data)[0]) == data


@pytest.mark.parametrize(
    ("values", "tid"),
    [
        (np.array([True, False]), TID.BOOL),
        (np.array([1, 2], ">u2"), TID.UINT16),
        (np.array([1, 2], np.uint8), TID.INT32),
        (np.array([[1, 2], [3, 4]], np.int16), TID.INT16),
    ],
)
def test_values_that_fit_without_loss_are_taken(values: Any, tid: TID) -> None:
    event = Event(1, 0, 0, 0, 0, BankFormat.BANK, (Bank("DATA", tid, values),))
    assert decode_event(encode_event(event))[0].banks[0].values.tolist() == values.ravel().tolist()


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Event(1, 0, 0, 0, 0, BankFormat.BANK, (Bank("DATA", TID.INT16, np.arange(3)),)), "without loss"),
        (Event(1, 0, 0, 0, 0, BankFormat.BANK, (Bank("DATA", 77, np.arange(3)),)), "type 77"),
        (Event(1, 0, 0, 0, 0, BankFormat.BANK, (Bank("LONG", 1, np.zeros(65536, np.uint8)),)), "BANK32A"),
        (Event(1, 0, 0, 0, 0, BankFormat.BANK, (Bank("LONGER", 1, np.zeros(6, np.uint8)),)), "LONGER"),
        (Event(1, 0, 0, 0, 0, None, (), b"abc"), "no bank format"),
        (Event(0x8002, 0, 0, 1 << 32, 0, None, (), b"abc"), "time_stamp 4294967296"),
    ],
)
def test_what_cannot_be_an_event_is_refused_by_name(event: Event, reason: str) -> None:
    with pytest.raises(EventError, match=reason):
        encode_event(event)


def test_a_bank_of_65535_bytes_fits_into_bank() -> None:
    bank = Bank("LONG", TID.UINT8, np.arange(65535, dtype=np.uint8))
    data = encode_event(Event(1, 0, 0, 0, 0, BankFormat.BANK, (bank,)))
    assert decode_event(data)[0].banks[0].values.tobytes() == bank.values.tobytes()


def damaged(offset: int, new: bytes, form: BankFormat = BankFormat.BANK) -> bytes:
    data = bytearray(HAND[form])
    data[offset : offset + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        (b"", 0, "0 bytes are left"),
        (HAND[BankFormat.BANK][:15], 0, "15 bytes are left"),
        (HAND[BankFormat.BANK][:-1], 0, "56 bytes by its header, and 55 are left"),
        (struct.pack("<HHIII", 1, 0, 3, 0, 4) + b"abcd", 0, "serial number 3 has 4 bytes"),
        (damaged(16, b"\x21"), 16, "33 bytes by its header"),
        (damaged(20, b"\x03"), 20, "flags are 0x3"),
        (damaged(20, b"\0\0\0\x01"), 20, "big-endian"),
        (damaged(24, b"\x07"), 24, "not 4 printable"),
        (damaged(28, b"\x13"), 24, "type 19"),
        (damaged(30, b"\x07"), 24, "no multiple of 2"),
        (damaged(30, b"\xf0"), 24, "240 bytes"),
        (
            struct.pack("<HHIIIII4sHH8x", 1, 0, 5, 0, 24, 16, 1, b"WORD", 4, 18),
            24,
            "18 bytes, padded 24, and 8 are left",
        ),
    ],
)
def test_damage_is_named_with_its_place(data: bytes, offset: int, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        decode_event(data, 0, "run.mid", 1000)
    assert caught.value.offset == 1000 + offset
    assert caught.value.path == "run.mid"
    assert str(caught.value).startswith(f"run.mid: byte {1000 + offset}: ")


def test_a_bank_header_that_does_not_fit_is_named() -> None:
    data = struct.pack("<HHIIIII", 1, 0, 0, 0, 12, 4, 0x11) + b"DATA"
    with pytest.raises(FormatError, match="4 bytes are left in the bank area, and a BANK32 header needs 12"):
        decode_event(data)


@given(st.binary(max_size=200), st.integers(-5, 210))
def test_random_bytes_give_an_event_or_a_format_error(data: bytes, offset: int) -> None:
    try:
        event, end = decode_event(data, offset)
    except FormatError:
        return
    assert end == offset + 16 + event.data_size <= len(data)


@settings(max_examples=300)
@given(
    st.sampled_from(list(BankFormat)),
    st.lists(st.tuples(st.integers(0, 71), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 8),
)
def test_mutated_events_give_an_event_or_a_format_error(
    form: BankFormat, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(HAND[form])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        event, _ = decode_event(bytes(data[: len(data) - cut]))
    except FormatError:
        return
    assert decode_event(encode_event(event))[0].banks == () or event.banks


def test_scan_gives_offsets_and_headers_and_names_a_torn_end() -> None:
    data = b"".join(HAND.values())
    found = list(scan(data))
    assert [offset for offset, _ in found] == [0, 56, 120]
    assert [header.data_size for _, header in found] == [40, 48, 56]
    with pytest.raises(FormatError, match="byte 1120: event 0x0001 serial number 5") as caught:
        list(scan(data[:-1], base=1000))
    assert caught.value.offset == 1120


@pytest.mark.parametrize("cut", range(192))
def test_walk_finds_the_whole_events_at_any_cut(cut: int) -> None:
    data = b"".join(HAND.values())
    offsets, end = walk(data[:cut])
    whole = [start for start, stop in ((0, 56), (56, 120), (120, 192)) if stop <= cut]
    assert offsets.tolist() == whole
    assert end == [0, 56, 120, 192][len(whole)]


def test_a_message_is_as_midas_writes_it() -> None:
    text = b"[ODBEdit,INFO] Run #2 started\0"
    assert message_event("ODBEdit", MessageType.INFO, "Run #2 started", 5, aligned=False) == (
        struct.pack("<HHIII", 0x8002, 2, 0, 5, 30) + text
    )
    aligned = message_event("ODBEdit", MessageType.INFO, "Run #2 started", 5)
    assert aligned == struct.pack("<HHIII", 0x8002, 2, 0, 5, 32) + text + b"\0\0"


def test_a_nul_in_a_message_does_not_end_it() -> None:
    event, _ = decode_event(message_event("a", MessageType.ERROR, "b\0c", 5))
    assert event.raw.rstrip(b"\0") == b"[a,ERROR] b c"


@pytest.mark.parametrize(("begin", "event_id"), [(True, 0x8000), (False, 0x8001)])
def test_run_borders_have_the_magic_the_run_number_and_a_nul(begin: bool, event_id: int) -> None:
    assert run_event(begin, 42, 5, b"{}", aligned=False) == (
        struct.pack("<HHIII", event_id, 0x494D, 42, 5, 3) + b"{}\0"
    )
    assert run_event(begin, 42, 5, b"{}") == struct.pack("<HHIII", event_id, 0x494D, 42, 5, 8) + b"{}" + bytes(6)
    assert run_event(True, 1, 5, b"")[:4] == b"\x00\x80\x4d\x49"


# Fragmented events: pieces by hand


def pieces(event: bytes, cut: int) -> list[bytes]:
    head, body = struct.unpack_from("<HHIII", event), event[16:]
    first = struct.pack("<HHIIII", head[0] | 0xC000, *head[1:4], 4, len(body))
    slices = [body[start : start + cut] for start in range(0, len(body), cut)]
    further = [struct.pack("<HHIII", head[0] | 0xD000, *head[1:4], len(part)) + part for part in slices]
    return [first, *further]


def decoded(parts: list[bytes]) -> list[tuple[int, Event]]:
    data = b"".join(parts)
    return [(offset, decode_event(data, offset)[0]) for offset, _ in scan(data)]


def as_bytes(events: list[tuple[int, Event]]) -> list[bytes]:
    return [encode_event(event) for _, event in events]


def test_pieces_become_the_event_again() -> None:
    one, two = data_event(1), data_event(2, event_id=5)
    mixed = pieces(one, 30)
    mixed[2:2] = [data_event(3), *pieces(two, 1000)]
    assert as_bytes(list(reassemble(decoded(mixed)))) == [data_event(3), two, one]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (pieces(data_event(1), 30)[1:], "without its first one"),
        (pieces(data_event(1), 30)[:-1], "serial number 1 has 60 of 64 bytes"),
        (pieces(data_event(1), 30)[:2] + pieces(data_event(1), 30), "has 30 of 64 bytes"),
        (pieces(data_event(1), 72)[:1] + 2 * pieces(data_event(1), 50)[1:2], "have 100 bytes, and"),
        ([struct.pack("<HHIIIH", 0xC001, 0, 0, 0, 2, 0)], "the total size needs 4"),
    ],
)
def test_pieces_that_do_not_make_an_event_are_named(parts: list[bytes], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        list(reassemble(decoded(parts)))

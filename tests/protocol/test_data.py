"""The sections behind a frame's events, byte by byte, and damaged ones."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phloem.kernel import Builder
from phloem.model.errors import ProtocolError
from phloem.protocol.data import (
    FrameKind,
    Section,
    Undecided,
    decode_checkpoint,
    decode_json,
    decode_marks,
    encode_json,
    encode_marks,
    join_sections,
    sections,
)

HEAD = struct.pack("<IIQQQIIIIQQ", 2, 42, 1000, 1001, 2**32 + 100, 1, 1, 0, 0, 99, 123_456)
SOURCE = (
    struct.pack("<QQII", 0xABCD, 17, 3, 1 | 4 | 16 | 64)
    + struct.pack("<3Q", 2**32 + 103, 2**32 + 101, 2**32 + 99)
    + struct.pack("<7Q", 9, 1, 2, 3, 1, 1, 1)
    + struct.pack("<QQQqqIIQqQ", 2**32 + 3, 777, 2**32 + 50, -2, 5, 3, 2, 2**64 - 1, 40, 2**32 + 60)
    + struct.pack("<8I", 2**31, 9, 0xFFFFFFFE, 3, 1, 2, 1, 1)
    + struct.pack("<QIIQq", 16, 7, 0, 2**32 + 101, -2)
    + struct.pack("<QIIQq", 17, 1, 1 | 3 << 1, 2**32 + 900, 0)
    + struct.pack("<QQ", 2**32 + 101, 2**32 + 102)
    + struct.pack("<QQ", 777, 8)
)


def test_the_wire_codes() -> None:
    codes = {"CHECKPOINT": 1, "MARKS": 2, "JSON": 3, "LATE": 4, "QUARANTINED": 5, "USER_STATE": 6}
    assert {kind.name: kind.value for kind in Section} == codes
    assert {kind.name: kind.value for kind in FrameKind} == {
        "BEGIN_OF_RUN": 1,
        "EVENTS": 2,
        "END_OF_RUN": 3,
        "INFO": 4,
        "CHECKPOINT": 5,
        "REJOIN": 6,
    }


def test_sections_stand_at_steps_of_8_bytes() -> None:
    data = join_sections([(Section.MARKS, b"12345"), (Section.JSON, b""), (Section.CHECKPOINT, b"12345678")])
    expected = b"\x02\0\0\0\x05\0\0\0" + b"12345\0\0\0" + b"\x03\0\0\0\0\0\0\0" + b"\x01\0\0\0\x08\0\0\0" + b"12345678"
    assert data == expected
    assert list(sections(data)) == [(2, b"12345"), (3, b""), (1, b"12345678")]
    assert list(sections(b"")) == []


def test_an_unknown_section_is_given_and_does_no_harm() -> None:
    data = struct.pack("<II", 99, 3) + b"new\0\0\0\0\0" + join_sections([encode_json({"a": 1})])
    assert [kind for kind, _ in sections(data)] == [99, 3]
    assert decode_json(data) == {"a": 1}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x01", "end within a section header at byte 0"),
        (struct.pack("<II", 2, 0) + b"\0\0\0", "end within a section header at byte 8"),
        (struct.pack("<II", 2, 9) + bytes(8), "section 2 of 9 bytes at byte 8 is longer than its frame"),
        (struct.pack("<II", 2, 0xFFFFFFFF) + bytes(8), "longer than its frame"),
    ],
)
def test_damaged_sections_are_the_peers_fault(data: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        list(sections(data))


def test_json_goes_there_and_back() -> None:
    kind, payload = encode_json({"client": "ebfe01", "sent": 5})
    assert (kind, payload) == (Section.JSON, b'{"client":"ebfe01","sent":5}')
    assert decode_json(join_sections([(kind, payload)])) == {"client": "ebfe01", "sent": 5}
    assert decode_json(join_sections([encode_marks([])])) == {}


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b'"text"', b"{}x", b"\xff\xfe"])
def test_damaged_json_is_the_peers_fault(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="JSON section"):
        decode_json(join_sections([(Section.JSON, payload)]))


@pytest.mark.parametrize("payload", [b'{"a":"\xff"}', b'{"a":' + b"[" * 100_000])
def test_json_that_is_no_text_or_nested_without_end_is_the_peers_fault(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="JSON section"):
        decode_json(join_sections([(Section.JSON, payload)]))


def test_marks_byte_by_byte() -> None:
    marks = [(0, 1, 5, 9), (3, 2, 0xFFFFFFFF, 0x100000002)]
    expected = struct.pack("<14I", 2, 0, 0, 1, 5, 0, 9, 0, 3, 2, 0xFFFFFFFF, 0, 2, 1)
    assert encode_marks(marks) == (Section.MARKS, expected)
    assert decode_marks(expected) == marks
    assert decode_marks(bytes(8)) == []


@pytest.mark.parametrize("payload", [b"", bytes(7), struct.pack("<II", 1, 0), struct.pack("<6I", 0, 0, 1, 2, 3, 4)])
def test_marks_that_disagree_with_their_count_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"MARKS section of {len(payload)} bytes does not agree"):
        decode_marks(payload)


def test_a_checkpoint_byte_by_byte() -> None:
    checkpoint = decode_checkpoint(HEAD + SOURCE)
    assert (checkpoint.run, checkpoint.next_serial, checkpoint.count) == (42, 1000, 1001)
    assert (checkpoint.near, checkpoint.discarding, checkpoint.history) == (2**32 + 100, False, ((99, 123_456),))
    (source,) = checkpoint.sources
    assert (source.generation, source.read) == (0xABCD, (17, 3))
    assert (source.started, source.ended, source.restarted, source.blind, source.absent) == (
        True,
        False,
        False,
        False,
        1,
    )
    assert (source.highest, source.next_pass, source.floor) == (2**32 + 103, 2**32 + 101, 2**32 + 99)
    assert source.fates == (9, 1, 2, 3, 1, 1, 1)
    assert (source.first, source.highest_time, source.again_next, source.again) == (2**32 + 3, 777, 2**32 + 50, 3)
    assert (source.total_shift, source.told, source.last_passed) == (-2, 5, None)
    assert (source.pairing, source.sure, source.paired) == (3, 2, (9, 40, 2**32 + 60))
    assert (source.begins, source.shift) == (2**31, 0xFFFFFFFE)
    assert source.undecided == (Undecided(16, 7, False, 2**32 + 101, -2, 0), Undecided(17, 1, True, 2**32 + 900, 0, 3))
    assert source.missed == ((2**32 + 101, 2**32 + 102),)
    assert source.recent == ((777, 8),)


def test_the_kernels_checkpoint_can_be_read() -> None:
    builder = Builder(["A", "B"])
    builder.begin_run(7)
    builder.end_source(1)
    checkpoint = decode_checkpoint(builder.checkpoint([11, 12]))
    first, second = checkpoint.sources
    assert (checkpoint.run, checkpoint.next_serial) == (7, 0)
    assert (first.generation, first.started, first.ended) == (11, False, False)
    assert (second.generation, second.started, second.ended) == (12, False, True)


@pytest.mark.parametrize("size", [0, 3, 47, 48, 100, 200, 300, len(HEAD + SOURCE) - 1])
def test_a_checkpoint_that_ends_early_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"CHECKPOINT section of {size} bytes ends early"):
        decode_checkpoint((HEAD + SOURCE)[:size])


def test_a_checkpoint_of_another_version_is_refused() -> None:
    with pytest.raises(ProtocolError, match="checkpoint of version 3; this is version 2"):
        decode_checkpoint(b"\x03" + (HEAD + SOURCE)[1:])


@settings(derandomize=True, database=None, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_refused_or_read_and_never_anything_else(noise: bytes) -> None:
    for decode in (decode_checkpoint, decode_marks, decode_json, lambda data: list(sections(data))):
        with contextlib.suppress(ProtocolError):
            decode(noise)

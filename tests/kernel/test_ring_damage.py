"""Damaged rings are refused: errors, not crashes and not endless loops."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.kernel.rings import (
    BODY_AT,
    CAPACITY,
    CAPACITY_AT,
    HEAD_AT,
    N_SLOTS_AT,
    SLOTS_AT,
    child,
    new_reader,
    new_writer,
    overwrite,
    send,
)

from phloem.kernel import RingError


@pytest.fixture
def ring(place: Path) -> Path:
    """A ring with two frames of 192 bytes that nobody has read."""
    path = place / "ring"
    writer = new_writer(path)
    for serial in range(2):
        send(writer, serial)
        writer.flush()
    return path


@pytest.mark.parametrize(
    ("at", "data", "complaint"),
    [
        (0, b"X", "is not a ring of this version"),
        (8, b"\x02", "is not a ring of this version"),
        (CAPACITY_AT, struct.pack("<Q", CAPACITY * 2), "does not agree with its size of 266240 bytes"),
        (N_SLOTS_AT, struct.pack("<I", 1 << 20), "damaged"),
        (HEAD_AT, struct.pack("<Q", 3 * CAPACITY), "damaged"),
        (HEAD_AT, struct.pack("<Q", 100), "damaged"),
        (SLOTS_AT, struct.pack("<Q", 1 << 40), "damaged"),
    ],
)
def test_a_damaged_header_is_refused(ring: Path, at: int, data: bytes, complaint: str) -> None:
    overwrite(ring, at, data)
    with pytest.raises(RingError, match=complaint):
        new_reader(ring).next()


@pytest.mark.parametrize(
    ("at", "data", "complaint"),
    [
        (0, b"XXXX", "damaged at position 0"),
        (4, b"\x02", "frames of version 2; this is version 1"),
        (24, struct.pack("<Q", 1 << 63), "damaged at position 0"),  # body size
        (32, struct.pack("<Q", (1 << 64) - 48), "damaged at position 0"),  # body and meta together wrap
        (88, struct.pack("<Q", 0), "damaged at position 0"),  # frame size
        (88, struct.pack("<Q", 200), "damaged at position 0"),
        (88, struct.pack("<Q", 64 * 1000), "damaged at position 0"),  # beyond what was committed
    ],
)
def test_a_damaged_frame_is_refused(ring: Path, at: int, data: bytes, complaint: str) -> None:
    overwrite(ring, BODY_AT + at, data)
    with pytest.raises(RingError, match=complaint):
        new_reader(ring).next()
    some = new_writer(ring.parent / "other", readers=[])
    assert some.drained


def test_a_file_that_is_no_ring_is_refused_by_writer_and_reader(place: Path) -> None:
    path = place / "ring"
    for data in (b"", b"PHLRING1", bytes(5000)):
        path.write_bytes(data)
        for opened in (new_reader, new_writer):
            with pytest.raises(RingError, match="is not a ring of this version"):
                opened(path)


def test_any_one_damaged_byte_leads_to_an_error_or_to_nothing(place: Path) -> None:
    with child("tests.kernel.damaged_process", place, 3) as process:
        out, _ = process.communicate(timeout=50)
        assert process.returncode == 0
    refused, used = map(int, out.split())
    assert refused > 0
    assert used > 0

"""The bytes of a ring file, at offsets written out by hand."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from tests.kernel.fragments import event
from tests.kernel.rings import BODY_AT, CAPACITY, RUN, SLOT_SIZE, SLOTS_AT, drain, new_reader, new_writer, send

from phloem.kernel import FRAME_HEADER_SIZE, FrameKind, RingError, check_events

DATA = (b"ADC0", 4, b"\x01\x02\x03\x04\x05\x06")


def test_the_rings_header(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path, readers=["EB", "Logger"], max_frame=8192, free_slots=1)
    data = path.read_bytes()
    assert len(data) == BODY_AT + CAPACITY
    magic, version, header_size, capacity, generation = struct.unpack_from("<8sIIQQ", data, 0)
    assert (magic, version, header_size, capacity, generation) == (b"PHLRING1", 1, 4096, CAPACITY, writer.generation)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    assert data[32:48].hex() == boot_id
    assert struct.unpack_from("<IIQ", data, 48) == (3, os.getpid(), 8192)
    assert data[64:128] == b"Trigger01".ljust(64, b"\0")
    assert data[128:192] == b"BUF01".ljust(64, b"\0")
    assert data[256:264] == data[320:328] == data[384:392] == data[448:456] == bytes(8)
    for i, (kind, name) in enumerate([(1, b"EB"), (1, b"Logger"), (0, b"")]):
        slot = data[SLOTS_AT + i * SLOT_SIZE :][:SLOT_SIZE]
        assert slot[:8] == bytes(8)
        assert struct.unpack_from("<IIQ", slot, 64) == (kind, 0, 0)
        assert slot[128:192] == name.ljust(64, b"\0")


def test_words_of_the_header_follow_what_is_sent_and_read(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    writer.begin_run(RUN)
    send(writer, 0)
    send(writer, 1)
    data = path.read_bytes()
    head, reserved, published, last = (struct.unpack_from("<Q", data, at)[0] for at in (256, 320, 384, 448))
    assert (head, published, last) == (0, 2 << 36 | 96, 0)
    assert reserved >= 128 + 96
    writer.flush()
    send(writer, 2)
    writer.flush()
    reader = new_reader(path)
    frame = reader.next()
    assert frame is not None
    assert frame.end == 256  # 128 and two events of 48, up to a multiple of 64
    frame.close()
    reader.release(256)
    data = path.read_bytes()
    head, published, last, tail = (struct.unpack_from("<Q", data, at)[0] for at in (256, 384, 448, SLOTS_AT))
    assert (head, published, last, tail) == (448, 0, 256, 256)
    assert struct.unpack_from("<I", data, SLOTS_AT + 80) == (os.getpid(),)


def test_the_frame_header_in_the_file(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    writer.begin_run(RUN)
    before_ns = time.time_ns()
    writer.send_frame(FrameKind.BEGIN_OF_RUN, b"x" * 24, 1, b"sections")
    writer.send_event(5, 0x0102, 0xFFFFFFFF, 99, [DATA])
    writer.send_event(5, 0x0102, 0, 99, [DATA])
    writer.flush()
    data = path.read_bytes()
    border, frame = data[BODY_AT : BODY_AT + 192], data[BODY_AT + 192 :]
    assert FRAME_HEADER_SIZE == 128
    assert border[0:16] == b"PHLF" + struct.pack("<HHIHH", 1, 1, RUN, 0, 0)
    assert struct.unpack_from("<QQQ", border, 16) == (0, 24, 8)  # sequence, body, meta
    assert struct.unpack_from("<IIII", border, 40) == (1, 0, 0, 0)
    assert struct.unpack_from("<QQ", border, 64) == (0, 0)  # borders are not counted
    assert border[128:160] == b"x" * 24 + b"sections"
    assert frame[0:16] == b"PHLF" + struct.pack("<HHIHH", 1, 2, RUN, 0, 0)
    assert struct.unpack_from("<QQQ", frame, 16) == (1, 96, 0)
    assert struct.unpack_from("<IIII", frame, 40) == (2, 0xFFFFFFFF, 1, 0)
    (time_ns,) = struct.unpack_from("<Q", frame, 56)
    assert before_ns <= time_ns <= time.time_ns()
    assert struct.unpack_from("<QQQQ", frame, 64) == (2, 96, writer.generation, 256)
    assert frame[96:128] == bytes(32)
    expected = (
        b"\x05\x00\x02\x01\xff\xff\xff\xff\x63\x00\x00\x00\x20\x00\x00\x00"
        b"\x18\x00\x00\x00\x31\x00\x00\x00"
        b"ADC0\x04\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x00\x00"
    )
    assert frame[128:176] == expected


def test_the_attributes_of_a_frame_are_its_header(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    writer.begin_run(RUN)
    send(writer, 6)
    writer.flush()
    reader = new_reader(path)
    frame = reader.next()
    assert frame is not None
    assert (frame.kind, frame.run, frame.flags, frame.sequence) == (FrameKind.EVENTS, RUN, 0, 0)
    assert (frame.n_events, frame.first_serial, frame.next_serial) == (1, 6, 7)
    assert (frame.total_events, frame.total_bytes, frame.body_size) == (1, 48, 48)
    assert (frame.generation, frame.end, frame.meta) == (writer.generation, 192, b"")
    assert struct.unpack_from("<Q", frame.header, 56) == (frame.time_ns,)
    assert check_events(frame, 6)[:3] == (1, 7, 0)


def test_a_batch_is_the_same_bytes_as_its_events_one_by_one(place: Path) -> None:
    one, many = new_writer(place / "one"), new_writer(place / "many")
    values = np.arange(12, dtype="<u2").reshape(4, 3)
    serials = np.array([5, 6, 9, 8], dtype="<u4")
    for i in range(4):
        one.send_event(1, 2, int(serials[i]), 7, [(b"ADC0", 4, values[i].copy()), (b"NONE", 6, b"")])
    assert many.send_batch(1, 2, 0, 7, [(b"ADC0", 4, values), (b"NONE", 6, b"")], 4, 0, serials) == 4
    bodies = []
    for writer, name in ((one, "one"), (many, "many")):
        writer.flush()
        (frame,) = drain(new_reader(place / name))
        bodies.append(frame["body"])
        assert (frame["n_events"], frame["first_serial"], frame["next_serial"]) == (4, 5, 9)
    assert bodies[0] == bodies[1]


def test_raw_events_are_padded_and_the_frame_says_so(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    odd = event(3, [(b"ADC0", 4, b"\x01\x02")], bank_format=0x01) + b""
    odd = odd[:12] + struct.pack("<I", 13) + b"a text of 13b"
    even = event(4, [(b"ADC0", 4, b"\x01\x02")])
    assert writer.send_raw(even) == len(even)
    writer.flush()
    assert writer.send_raw(odd + even) == len(odd) + len(even)
    writer.flush()
    first, second = drain(new_reader(path))
    assert (first["flags"], first["body"]) == (0, even)
    assert (second["flags"], second["body"]) == (2, odd + bytes(3) + even)
    assert second["body_size"] == len(second["body"])


@pytest.mark.parametrize("cut", [8, 20])
def test_raw_events_that_end_early_are_refused(place: Path, cut: int) -> None:
    writer = new_writer(place / "ring")
    with pytest.raises(RingError, match="raw events end within an event"):
        writer.send_raw(event(0, [DATA])[:cut])


def test_impossible_banks_are_refused(place: Path) -> None:
    writer = new_writer(place / "ring")
    with pytest.raises(ValueError, match="4 bytes"):
        writer.send_event(1, 1, 0, 7, [(b"ADC", 4, b"")])
    with pytest.raises(ValueError, match="do not divide"):
        writer.send_batch(1, 1, 0, 7, [(b"ADC0", 4, b"12345")], 2, 0, None)
    with pytest.raises(ValueError, match="one uint32 per event"):
        writer.send_batch(1, 1, 0, 7, [(b"ADC0", 4, b"1234")], 2, 0, np.zeros(3, dtype="<u4"))

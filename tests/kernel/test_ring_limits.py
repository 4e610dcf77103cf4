"""What a ring refuses, and what it keeps room for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tests.kernel.rings import CAPACITY, RUN, drain, new_reader, new_writer, send, until

from phloem.kernel import Bell, FrameKind, RingError, RingReader


def test_a_full_ring_blocks_its_writer_and_goes_on_after_release(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    sent = 0
    while send(writer, sent, bytes(1000)):
        sent += 1
    assert not writer.wait_space(0)
    reader = new_reader(path)
    done = threading.Event()

    def go_on() -> None:
        while not writer.wait_space(10**8):
            pass
        send(writer, sent, bytes(1000))
        writer.flush()
        done.set()

    thread = threading.Thread(target=go_on)
    thread.start()
    until(lambda: reader.writer_waiting, "the writer to wait")
    assert not done.is_set()
    frames = drain(reader)
    assert done.wait(10)
    thread.join()
    frames += drain(reader)
    assert sum(frame["n_events"] for frame in frames) == sent + 1
    assert [frame["sequence"] for frame in frames] == list(range(len(frames)))
    assert writer.blocked_ns > 0


def test_a_full_ring_can_still_be_ended(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    writer.begin_run(RUN)
    sent = 0
    while send(writer, sent, bytes(1000)):
        sent += 1
    writer.flush()
    assert not send(writer, sent)
    assert CAPACITY - writer.used >= 64 << 10
    assert writer.send_frame(FrameKind.END_OF_RUN, b"Ending r", 1, bytes(60_000))
    last = drain(new_reader(path))[-1]
    assert (last["kind"], last["total_events"]) == (FrameKind.END_OF_RUN, sent)


def test_wait_space_honours_its_time_limit(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    sent = 0
    while send(writer, sent, bytes(1000)):
        sent += 1
    for asked_s, at_most_s in ((0.02, 0.1), (30.0, 0.5)):  # never longer than 100 ms at a time
        began_s = time.monotonic()
        assert not writer.wait_space(int(asked_s * 1e9))
        assert min(asked_s, 0.1) * 0.9 <= time.monotonic() - began_s < at_most_s


def test_an_event_that_is_too_large_names_the_setting_to_raise(place: Path) -> None:
    writer = new_writer(place / "ring")
    with pytest.raises(RingError, match=r"131112 bytes is too large for buffer BUF01 of 262144 bytes.*sizes/BUF01"):
        send(writer, 0, bytes(CAPACITY // 2))
    assert send(writer, 0, bytes(CAPACITY // 2 - (66 << 10)))  # goes on with the next one that fits
    assert writer.total_events == 1


def test_an_event_larger_than_a_frame_gets_a_frame_of_its_own(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path, max_frame=1024)
    for serial, size in enumerate((100, 20_000, 100)):
        assert send(writer, serial, bytes(size))
    writer.flush()
    assert [frame["n_events"] for frame in drain(new_reader(path))] == [1, 1, 1]


def test_no_room_in_shared_memory_is_an_error_with_a_number(place: Path) -> None:
    path = place / "ring"
    with pytest.raises(RingError, match=rf"no room for ring .* of {(1 << 50) + 4096} bytes: .*smaller"):
        new_writer(path, capacity=1 << 50)
    assert [one.name for one in place.iterdir()] == ["ring.lock"]


@pytest.mark.parametrize("capacity", [0, 100_000, 3 << 16])
def test_an_impossible_capacity_is_refused(place: Path, capacity: int) -> None:
    with pytest.raises(RingError, match=rf"capacity {capacity} is (not a multiple of 65536|less than 262144) bytes"):
        new_writer(place / "ring", capacity=capacity)


def test_names_that_do_not_fit_are_refused(place: Path) -> None:
    with pytest.raises(RingError, match="longer than 63 bytes"):
        new_writer(place / "ring", readers=["x" * 64])


def test_the_last_frame_counts_as_unread_even_when_all_have_read_it(place: Path) -> None:
    path = place / "ring"
    writer, reader = new_writer(path), new_reader(path)
    big = CAPACITY // 2 - (66 << 10)
    for serial in range(8):
        assert send(writer, serial, bytes(big))
        writer.flush()
        drain(reader)
    before = path.read_bytes()
    assert send(writer, 9, bytes(big))
    writer.flush()
    del writer
    again = new_writer(path)
    assert again.next_serial == 10
    assert len(before) == len(path.read_bytes())


def test_a_doorbell_wakes_its_sleeper_and_bounds_each_sleep(place: Path) -> None:
    path, bell = place / "ring", Bell(str(place / "bell"))
    writer = new_writer(path)
    reader = RingReader(str(path), "EB", True, bell)
    token = bell.arm()
    began_s = time.monotonic()
    bell.sleep(token, 10**12)
    assert 0.09 <= time.monotonic() - began_s < 0.5  # nothing came: looks again after 100 ms
    woken: list[float] = []

    def sleeper() -> None:
        while not reader.has_data:
            token = bell.arm()
            if not reader.has_data:
                bell.sleep(token, 10**12)
        woken.append(time.monotonic())

    for serial in range(20):
        thread = threading.Thread(target=sleeper)
        thread.start()
        send(writer, serial)
        sent_s = time.monotonic()
        writer.flush()
        thread.join(5)
        assert woken.pop() - sent_s < 0.5
        drain(reader)


def test_the_flush_timer_closes_a_frame_while_nobody_calls(place: Path) -> None:
    path = place / "ring"
    patient = new_writer(place / "patient")  # does not keep the timer from the other one
    send(patient, 0)
    writer = new_writer(path, flush_ns=2_000_000)
    reader = new_reader(path)
    for serial in range(5):
        send(writer, serial)
        until(lambda: reader.has_data, "the frame to be closed")
        (frame,) = drain(reader)
        assert (frame["first_serial"], frame["n_events"]) == (serial, 1)
    assert patient.has_open

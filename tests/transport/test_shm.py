"""The two ends of a ring as the data flow uses them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.kernel.fragments import event
from tests.kernel.rings import Progress, child, until

from phloem.kernel import FrameKind
from phloem.model.errors import TransportError
from phloem.transport.shm import Doorbell, Receiver, Sender

CAPACITY = 1 << 18


def sender(place: Path, capacity: int = CAPACITY, readers: tuple[str, ...] = ("EB",)) -> Sender:
    return Sender(str(place / "ring"), "Trigger01", "BUF01", capacity, readers, lambda: None)


def receiver(place: Path) -> Receiver:
    return Receiver(str(place / "ring"), "EB", Doorbell(place / "bell"))


def test_a_receiver_may_be_there_before_its_ring(place: Path) -> None:
    receiving = receiver(place)
    assert not receiving.open()
    assert receiving.next() is None
    assert (receiving.has_data, receiving.generation, receiving.backlog_bytes, receiving.fill) == (False, 0, 0, 0.0)
    assert (receiving.writer_alive, receiving.writer_waiting, receiving.writer_process) == (False, False, 0)
    receiving.release(0)
    sending = sender(place)
    sending.send_frame(FrameKind.INFO, b"a text  ", 1)
    frame = receiving.next()
    assert frame is not None
    assert bytes(frame.body) == b"a text  "
    assert receiving.generation == sending.writer.generation
    assert receiving.writer_alive
    frame.close()


def test_a_receiver_follows_to_a_new_ring_once_it_has_read_the_old_one(place: Path) -> None:
    receiving, old = receiver(place), sender(place)
    old.send_frame(FrameKind.END_OF_RUN)
    generation = old.writer.generation
    frame = receiving.next()
    assert frame is not None
    receiving.release(frame.end)
    frame.close()
    del old, frame
    new = sender(place, 2 * CAPACITY)
    assert new.writer.generation != generation
    assert receiving.generation == generation
    assert receiving.open()
    assert receiving.generation == new.writer.generation


def test_the_folder_is_made_with_the_first_ring_and_bell(place: Path) -> None:
    Doorbell(place / "a" / "b" / "bell").remove()
    assert [one.name for one in (place / "a" / "b").iterdir()] == []
    assert sender(place / "c").fill == 0.0


def test_a_batch_larger_than_the_ring_waits_for_space_in_between(place: Path) -> None:
    sending, receiving = sender(place), receiver(place)
    n_events, got = 400, 0
    values = np.arange(n_events * 500, dtype="<u4")
    thread = threading.Thread(target=lambda: sending.send_batch(1, 1, 0, 7, [(b"DATA", 6, values)], n_events))
    thread.start()
    bodies = b""
    while got < n_events:
        until(lambda: receiving.open() and receiving.has_data, "a frame")
        frame = receiving.next()
        assert frame is not None
        got += frame.n_events
        bodies += bytes(frame.body)
        end = frame.end
        frame.close()
        receiving.release(end)
    thread.join()
    one_by_one = [values[n * 500 : (n + 1) * 500].tobytes() for n in range(n_events)]
    assert bodies == b"".join(event(n, [(b"DATA", 6, data)], trigger_mask=1) for n, data in enumerate(one_by_one))
    assert sending.blocked_s > 0


def test_errors_of_the_ring_are_errors_of_the_transport(place: Path) -> None:
    sending = sender(place)
    with pytest.raises(TransportError, match="too large for buffer BUF01"):
        sending.send_event(1, 1, 0, 7, [(b"DATA", 6, bytes(CAPACITY))])
    with pytest.raises(TransportError, match="too large for buffer BUF01"):
        sending.send_batch(1, 1, 0, 7, [(b"DATA", 6, bytes(CAPACITY))], 1)
    with pytest.raises(TransportError, match="too large for buffer BUF01"):
        sending.send_frame(FrameKind.INFO, bytes(CAPACITY), 1)
    with pytest.raises(TransportError, match="end within an event"):
        sending.send_raw(b"x" * 20)
    with pytest.raises(TransportError, match="no place for reader"):
        Receiver(str(place / "ring"), "Nobody", Doorbell(place / "bell")).open()
    with pytest.raises(TransportError, match="capacity 1000"):
        sender(place / "other", 1000)
    (place / "no-ring").write_bytes(b"nothing of a ring")
    with pytest.raises(TransportError, match="not a ring"):
        Receiver(str(place / "no-ring"), "EB", Doorbell(place / "bell")).settle()


def test_a_dead_senders_open_frame_is_received_after_settle(place: Path) -> None:
    receiving, progress = receiver(place), Progress(place / "progress")
    with child("tests.kernel.open_frame_process", place / "ring", progress.path) as process:
        until(lambda: progress[0] == 3, "three events")
        assert receiving.open()
        assert receiving.writer_alive
        assert receiving.writer_process == process.pid
        assert not receiving.settle()
    assert not receiving.writer_alive
    assert receiving.next() is None
    assert receiving.settle()
    frame = receiving.next()
    assert frame is not None
    assert frame.n_events == 3
    frame.close()
    progress.close()


def test_settle_without_a_ring_does_nothing(place: Path) -> None:
    assert not receiver(place).settle()


def test_a_doorbell_wakes_for_any_of_its_rings_and_for_a_call(place: Path) -> None:
    bell = Doorbell(place / "bell")
    paths = [str(place / name) for name in ("one", "two")]
    senders = [Sender(path, "Trigger01", "BUF01", CAPACITY, ["EB"], lambda: None) for path in paths]
    receivers = [Receiver(path, "EB", bell) for path in paths]
    for receiving in receivers:
        assert receiving.open()
    for sending, receiving in zip(senders, receivers, strict=True):
        sending.send_frame(FrameKind.INFO, b"a text  ", 1)
        began_s = time.monotonic()
        bell.wait(receivers, 10)
        assert time.monotonic() - began_s < 0.09  # there is something: it does not sleep
        frame = receiving.next()
        assert frame is not None
        frame.close()
    woken = threading.Event()

    def sleeper() -> None:
        bell.pause(10, woken.is_set)

    thread = threading.Thread(target=sleeper)
    thread.start()
    woken.set()
    bell.ring()
    thread.join(1)
    assert not thread.is_alive()


def test_pause_does_not_sleep_when_what_it_waits_for_is_there(place: Path) -> None:
    bell, began_s = Doorbell(place / "bell"), time.monotonic()
    bell.pause(10, lambda: True)
    assert time.monotonic() - began_s < 0.09
    bell.pause(10, lambda: False)
    assert time.monotonic() - began_s < 1.0  # at most 0.1 s at a time

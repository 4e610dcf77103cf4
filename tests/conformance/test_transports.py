"""What every transport must do, seen from outside: frames in order, whole events, back-pressure, an end after all.

A new transport adds a function to ``PAIRS`` that makes a sender and a receiver which are joined.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.kernel.fragments import event, pad8
from tests.kernel.rings import until

from phloem.kernel import FrameKind
from phloem.transport.base import Receiver
from phloem.transport.shm import BankBuffer, Doorbell
from phloem.transport.shm import Receiver as ShmReceiver
from phloem.transport.shm import Sender as ShmSender

CAPACITY = 1 << 18
RUN = 5


class Sending(Protocol):
    """What a transport's sender offers to a frontend."""

    def send_event(
        self, event_id: int, trigger_mask: int, serial_number: int, time_stamp: int, banks: list[BankBuffer]
    ) -> None: ...
    def send_raw(self, events: bytes) -> None: ...
    def send_frame(self, kind: FrameKind, body: bytes = b"", n_events: int = 0, meta: bytes = b"") -> None: ...


class Pair:
    """A sender, its receiver, ``flush``: what was sent so far can be received, ``again``: the receiver restarted."""

    def __init__(
        self, sender: Sending, receiver: Receiver, flush: Callable[[], None], again: Callable[[], Receiver]
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self.flush = flush
        self.again = again


class Patience:
    """Counts how often a blocked sender asks; gives up when told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.give_up = False

    def __call__(self) -> None:
        self.asked += 1
        if self.give_up:
            raise InterruptedError("told to give up")


def shm(place: Path, patience: Patience) -> Pair:
    """The ring in shared memory."""
    path = str(place / "ring")
    sender = ShmSender(path, "Trigger01", "BUF01", CAPACITY, ["EB"], patience, max_frame_bytes=8192)
    sender.writer.begin_run(RUN)

    def receiver() -> ShmReceiver:
        return ShmReceiver(path, "EB", Doorbell(place / "bell"))

    pair = Pair(sender, receiver(), sender.writer.flush, receiver)

    def again() -> ShmReceiver:
        del pair.receiver  # a reader has its place once
        return receiver()

    pair.again = again
    return pair


PAIRS: Sequence[Callable[[Path, Patience], Pair]] = [shm]


@pytest.fixture
def patience() -> Patience:
    return Patience()


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, place: Path, patience: Patience) -> Pair:
    made: Pair = request.param(place, patience)
    return made


def take(receiver: Receiver, kept: list[dict[str, Any]]) -> None:
    """All frames that have come, copied and released."""
    while (frame := receiver.next()) is not None:
        kept.append(
            {
                "kind": FrameKind(frame.kind),
                "run": frame.run,
                "sequence": frame.sequence,
                "n_events": frame.n_events,
                "total_events": frame.total_events,
                "total_bytes": frame.total_bytes,
                "body": bytes(frame.body),
                "meta": frame.meta,
            }
        )
        end = frame.end
        frame.close()
        receiver.release(end)


def events_of(frames: list[dict[str, Any]]) -> bytes:
    """The bytes of all events."""
    return b"".join(frame["body"] for frame in frames if frame["kind"] == FrameKind.EVENTS)


def fill_up(pair: Pair, patience: Patience) -> int:
    """Send until the sender gives up; how many were sent."""
    patience.give_up = True
    sent = 0
    try:
        while True:
            pair.sender.send_raw(event(sent, [(b"DATA", 6, bytes(1000))]))
            sent += 1
    except InterruptedError:
        return sent


def test_what_is_sent_is_received_byte_by_byte_and_in_order(pair: Pair) -> None:
    sent = b""
    frames: list[dict[str, Any]] = []
    for serial in range(2000):
        data = serial.to_bytes(4, "little") * (serial % 50)
        sent += event(serial, [(b"DATA", 6, data)])
        pair.sender.send_event(1, 0xFFFF, serial, 7, [(b"DATA", 6, data)])
        if serial % 100 == 0:
            take(pair.receiver, frames)
    pair.flush()
    take(pair.receiver, frames)
    assert events_of(frames) == sent
    assert [frame["sequence"] for frame in frames] == list(range(len(frames)))
    assert (frames[-1]["total_events"], frames[-1]["total_bytes"]) == (2000, len(sent))
    assert {frame["run"] for frame in frames} == {RUN}


def test_every_frame_holds_whole_events_and_says_how_many(pair: Pair) -> None:
    frames: list[dict[str, Any]] = []
    for serial in range(500):
        pair.sender.send_raw(event(serial, [(b"DATA", 6, bytes(serial * 4 % 3000))]))
        take(pair.receiver, frames)
    pair.flush()
    take(pair.receiver, frames)
    for frame in frames:
        at = n = 0
        while at < len(frame["body"]):
            size = 16 + int.from_bytes(frame["body"][at + 12 : at + 16], "little")
            at += size + -size % 8
            n += 1
        assert at == len(frame["body"])
        assert n == frame["n_events"]


def test_raw_events_arrive_as_they_are_at_steps_of_8_bytes(pair: Pair) -> None:
    events = [event(n, [(b"DATA", 4, bytes(range(2 * n)))], bank_format=0x01) for n in range(20)]
    frames: list[dict[str, Any]] = []
    pair.sender.send_raw(b"".join(events))
    pair.flush()
    take(pair.receiver, frames)
    assert events_of(frames) == b"".join(pad8(one) for one in events)


def test_borders_keep_their_place_among_the_events(pair: Pair) -> None:
    frames: list[dict[str, Any]] = []
    pair.sender.send_frame(FrameKind.BEGIN_OF_RUN, b"begin123", 1, b"sections")
    pair.sender.send_raw(event(0))
    pair.sender.send_frame(FrameKind.INFO, b"a text  ", 1)
    pair.sender.send_raw(event(1))
    pair.sender.send_frame(FrameKind.END_OF_RUN)
    take(pair.receiver, frames)
    kinds = [FrameKind.BEGIN_OF_RUN, FrameKind.EVENTS, FrameKind.INFO, FrameKind.EVENTS, FrameKind.END_OF_RUN]
    assert [frame["kind"] for frame in frames] == kinds
    assert (frames[0]["body"], frames[0]["meta"]) == (b"begin123", b"sections")
    assert [frame["total_events"] for frame in frames] == [0, 1, 1, 2, 2]


def test_a_slow_receiver_holds_the_sender_back_and_nothing_is_lost(pair: Pair, patience: Patience) -> None:
    n_events = 3000
    frames: list[dict[str, Any]] = []
    done = threading.Event()

    def send_all() -> None:
        for serial in range(n_events):
            pair.sender.send_raw(event(serial, [(b"DATA", 6, bytes(1000))]))
        pair.sender.send_frame(FrameKind.END_OF_RUN)
        done.set()

    thread = threading.Thread(target=send_all)
    thread.start()
    until(lambda: patience.asked, "the sender to be blocked")
    assert not done.is_set()

    def drained() -> bool:
        take(pair.receiver, frames)
        return done.is_set()

    until(drained, "the sender to end")
    thread.join()
    take(pair.receiver, frames)
    assert frames[-1]["kind"] == FrameKind.END_OF_RUN
    assert frames[-1]["total_events"] == n_events
    assert sum(frame["n_events"] for frame in frames[:-1]) == n_events


def test_a_blocked_sender_may_give_up_and_go_on_later(pair: Pair, patience: Patience) -> None:
    frames: list[dict[str, Any]] = []
    sent = fill_up(pair, patience)
    take(pair.receiver, frames)
    patience.give_up = False
    pair.sender.send_raw(event(sent, [(b"DATA", 6, bytes(1000))]))
    pair.flush()
    take(pair.receiver, frames)
    assert sum(frame["n_events"] for frame in frames) == sent + 1


def test_the_end_comes_through_although_nobody_has_read(pair: Pair, patience: Patience) -> None:
    frames: list[dict[str, Any]] = []
    sent = fill_up(pair, patience)
    pair.sender.send_frame(FrameKind.END_OF_RUN)
    take(pair.receiver, frames)
    assert (frames[-1]["kind"], frames[-1]["total_events"]) == (FrameKind.END_OF_RUN, sent)
    assert sum(frame["n_events"] for frame in frames) == sent


def test_what_was_not_released_is_still_there_for_the_next_receiver(pair: Pair) -> None:
    pair.sender.send_raw(event(0))
    pair.flush()
    frame = pair.receiver.next()
    assert frame is not None
    assert frame.n_events == 1
    assert pair.receiver.next() is None
    frame.close()
    again: list[dict[str, Any]] = []
    take(pair.again(), again)
    assert [one["n_events"] for one in again] == [1]

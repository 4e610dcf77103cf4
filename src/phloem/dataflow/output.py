"""One equipment's way out: the ring it sends into, its serial numbers and its counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from phloem.formats.midas.events import message_event
from phloem.model.event import EQ_SLOW, Equipment, MessageType
from phloem.protocol.control import Stream
from phloem.protocol.data import FrameKind, encode_json, join_sections
from phloem.transport.shm import BankBuffer, Sender

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Output", "border_text"]

BEGINNING = "Beginning run"
ENDING = "Ending run"
REJOINED = "Rejoined run"
RESTARTED = "Counter restarted"


def border_text(source: str, text: str) -> bytes:
    """The MESSAGE event that a border frame carries."""
    return message_event(source, MessageType.INFO, text, int(time.time()))


class Output:
    """Sends one source's fragments and its run borders.

    Serial numbers count up from 0 in each run unless the caller gives them. ``keep_waiting`` is called while the
    ring is full.
    """

    def __init__(self, stream: Stream, keep_waiting: Callable[[], None], flush_s: float = 0.002) -> None:
        self.stream = stream
        self.equipment: Equipment = stream.equipment
        self.sender = Sender(
            stream.ring,
            stream.source,
            stream.buffer,
            stream.capacity_bytes,
            stream.readers,
            keep_waiting,
            flush_s=flush_s,
        )
        self.missed = 0
        self._skipped = (0, 0)
        self._blocked_before_s = 0.0
        self._clock_s = 0
        self._clock_read = 0.0

    def fits(self, stream: Stream) -> bool:
        """Whether this output is what ``stream`` asks for, so that it need not be opened anew."""
        asked = (stream.ring, stream.source, stream.buffer, stream.capacity_bytes, tuple(stream.readers))
        return self.sender.settings == asked

    @property
    def left(self) -> int | None:
        """How many events it may still send in this run (Event limit); None for any number."""
        limit = 0 if self.equipment.type & EQ_SLOW else int(self.equipment.event_limit)
        return max(0, limit - self.sender.writer.total_events) if limit > 0 else None

    def begin(self, run: int, who: dict[str, Any]) -> None:
        """BEGIN_OF_RUN: from here on what is sent belongs to ``run``."""
        self.missed = 0
        self._skipped = (0, 0)
        self._blocked_before_s = self.sender.blocked_s
        self.sender.writer.begin_run(run)
        meta = join_sections([encode_json({**who, "equipment": msgspec.to_builtins(self.equipment)})])
        body = border_text(self.stream.source, BEGINNING)
        self.sender.send_frame(FrameKind.BEGIN_OF_RUN, body, 1, meta)

    def holds(self, run: int) -> bool:
        """Whether the newest frame of the ring is of that run: a process before this one has begun it."""
        return self.sender.writer.run == run

    def rejoin(self, who: dict[str, Any]) -> None:
        """REJOIN: counts, serial numbers and the frames' sequence go on from those of the process before.

        How long that one was blocked, and what its hardware missed, is not in the ring: both count from here.
        """
        self.missed = 0
        self._blocked_before_s = self.sender.blocked_s
        counted = {"sent": self.sender.writer.total_events, "next_serial": self.next_serial}
        self._send_rejoin({**who, "equipment": msgspec.to_builtins(self.equipment), **counted}, REJOINED)

    def counter_restarted(self, serial_number: int, event: int) -> None:
        """From here on the fragment that bears ``serial_number`` belongs to ``event``; both modulo 2^32."""
        restarted = {"serial_number": serial_number & 0xFFFFFFFF, "event": event & 0xFFFFFFFF}
        self._send_rejoin({"restarted": restarted}, RESTARTED)

    def _send_rejoin(self, meta: dict[str, Any], text: str) -> None:
        body = border_text(self.stream.source, text)
        self.sender.send_frame(FrameKind.REJOIN, body, 1, join_sections([encode_json(meta)]))

    def end(self) -> dict[str, Any]:
        """END_OF_RUN, with the counts; they are also the answer to run control."""
        counts = self.counts()
        meta = join_sections([encode_json(counts)])
        self.sender.send_frame(FrameKind.END_OF_RUN, border_text(self.stream.source, ENDING), 1, meta)
        return counts

    def counts(self) -> dict[str, Any]:
        """What was sent in this run: one unit is one send."""
        return {
            "sent": self.sender.writer.total_events,
            "blocked_s": round(self.sender.blocked_s - self._blocked_before_s, 3),
            "missed": self.missed,
        }

    @property
    def next_serial(self) -> int:
        """The serial number that the next event gets."""
        at, skipped = self._skipped
        following = self.sender.writer.next_serial
        return (following + skipped) & 0xFFFFFFFF if following == at else following

    def skip_serials(self, count: int) -> None:
        """The last event counts for ``count`` more than one: `next_serial` is so much higher."""
        self._skipped = self.sender.writer.next_serial, count

    def send_event(
        self, banks: list[BankBuffer], serial_number: int | None = None, time_stamp: int | None = None
    ) -> None:
        """One event; blocks while the ring is full."""
        equipment = self.equipment
        serial = self.sender.writer.next_serial if serial_number is None else serial_number & 0xFFFFFFFF
        stamp = self._now_s() if time_stamp is None else time_stamp
        self.sender.send_event(equipment.event_id, equipment.trigger_mask, serial, stamp, banks)

    def send_batch(
        self,
        banks: list[BankBuffer],
        n_events: int,
        serial_numbers: NDArray[np.uint32] | None = None,
        time_stamp: int | None = None,
    ) -> None:
        """``n_events`` events of equal shape; blocks while the ring is full."""
        first = self.sender.writer.next_serial
        stamp = self._now_s() if time_stamp is None else time_stamp
        self.sender.send_batch(
            self.equipment.event_id,
            self.equipment.trigger_mask,
            first,
            stamp,
            banks,
            n_events,
            serial_numbers,
        )

    def _now_s(self) -> int:
        now = time.monotonic()
        if now - self._clock_read > 0.05:  # header times have seconds: the clock need not be read for each event
            self._clock_read = now
            self._clock_s = int(time.time())
        return self._clock_s

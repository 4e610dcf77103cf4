"""Reads `.mid` files from the layout alone, so that what judges the files shares nothing with what writes them.

Event header, 16 bytes, little endian: ``i16 event id, u16 trigger mask, u32 serial number, u32 time, u32 data size``.
Bank area: ``u32 size of all banks, u32 flags`` (1 BANK, 0x11 BANK32, 0x31 BANK32A), then banks: a header of 8, 12 or
16 bytes (name, type, size, and 4 reserved bytes in BANK32A) and the data, padded to a multiple of 8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BEGIN_OF_RUN, END_OF_RUN, MESSAGE = 0x8000, 0x8001, 0x8002

_EVENT = struct.Struct("<HHIII")
_AREA = struct.Struct("<II")
_BANK_HEADERS = {
    0x01: struct.Struct("<4sHH"),
    0x11: struct.Struct("<4sII"),
    0x31: struct.Struct("<4sII4x"),
}
_VALUES = {1: "B", 2: "b", 3: "c", 4: "H", 5: "h", 6: "I", 7: "i", 8: "I", 9: "f", 10: "d", 17: "q", 18: "Q"}


class Event(NamedTuple):
    """``data``: what follows the header."""

    event_id: int
    trigger_mask: int
    serial_number: int
    time_stamp: int
    data: bytes

    @property
    def text(self) -> str:
        """Of a message, a begin or an end of run."""
        return self.data.rstrip(b"\0").decode()


class Bank(NamedTuple):
    """``data``: without padding."""

    name: str
    tid: int
    data: bytes

    @property
    def values(self) -> tuple[float, ...]:
        """As Python numbers."""
        code = _VALUES[self.tid]
        return struct.unpack(f"<{len(self.data) // struct.calcsize(code)}{code}", self.data)


def events_of(path: Path | str) -> Iterator[Event]:
    """All events of a file; a file that ends within one fails the test."""
    data = Path(path).read_bytes()
    at = 0
    while at < len(data):
        event_id, mask, serial, time, size = _EVENT.unpack_from(data, at)
        end = at + _EVENT.size + size
        assert end <= len(data), f"the event at byte {at} ends at {end}, the file at {len(data)}"
        yield Event(event_id, mask, serial, time, data[at + _EVENT.size : end])
        at = end


def banks_of(event: Event) -> list[Bank]:
    """The banks of an event, in order; every byte of the area belongs to one."""
    size, flags = _AREA.unpack_from(event.data)
    assert size + _AREA.size == len(event.data), f"bank area of {size} bytes in {len(event.data)} bytes of data"
    header = _BANK_HEADERS[flags]
    at, banks = _AREA.size, []
    while at < len(event.data):
        name, tid, length = header.unpack_from(event.data, at)
        at += header.size
        assert at + length <= len(event.data), f"bank {name!r} is longer than its event"
        banks.append(Bank(name.decode("ascii"), tid, event.data[at : at + length]))
        at += (length + 7) // 8 * 8
    return banks


class Run(NamedTuple):
    """A run's file taken apart: its borders, its messages, and everything else in the order of the file."""

    begin: Event
    events: list[Event]
    messages: list[Event]
    end: Event

    @property
    def serials(self) -> list[int]:
        """Serial numbers of the events, in the order of the file."""
        return [event.serial_number for event in self.events]


def run_of(path: Path | str) -> Run:
    """Begin of run first, end of run last and neither anywhere else, or the test fails."""
    everything = list(events_of(path))
    ids = [event.event_id for event in everything]
    assert ids[0] == BEGIN_OF_RUN
    assert ids[-1] == END_OF_RUN
    assert ids.count(BEGIN_OF_RUN) == ids.count(END_OF_RUN) == 1
    inside = everything[1:-1]
    return Run(
        begin=everything[0],
        events=[event for event in inside if event.event_id != MESSAGE],
        messages=[event for event in inside if event.event_id == MESSAGE],
        end=everything[-1],
    )

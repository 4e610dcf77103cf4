"""Bytes of events: what the reference reads and writes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = [
    "EVENT_HEADER",
    "TID_STRING",
    "TID_UINT8",
    "TID_UINT32",
    "banks_as_bank32a",
    "encode_bank32a",
    "encode_event",
    "first_uint64",
    "split_events",
]

EVENT_HEADER = struct.Struct("<HHIII")  # event id, trigger mask, serial number, time stamp, data size
BANK_AREA = struct.Struct("<II")  # size of all banks, format
BANK_HEADER = {0x01: struct.Struct("<4sHH"), 0x11: struct.Struct("<4sII"), 0x31: struct.Struct("<4sIIxxxx")}
BANK32A = 0x31
TID_UINT8, TID_UINT32, TID_STRING = 1, 6, 12


def split_events(body: bytes, n_events: int) -> Iterator[bytes | None]:
    """The events of a frame, each with its padding; None, once, for one that cannot be believed and all behind it."""
    at = 0
    for _ in range(n_events):
        size = None
        if len(body) - at >= EVENT_HEADER.size:
            size = aligned(EVENT_HEADER.size + EVENT_HEADER.unpack_from(body, at)[4])
        if size is None or size > len(body) - at:
            yield None
            return
        yield body[at : at + size]
        at += size


def banks_as_bank32a(event: bytes) -> bytes | None:
    """The event's banks as BANK32A (those that are, unchanged), or None if they do not fill the event exactly."""
    data_size = EVENT_HEADER.unpack_from(event)[4]
    if data_size < BANK_AREA.size:
        return None
    area_size, bank_format = BANK_AREA.unpack_from(event, EVENT_HEADER.size)
    if area_size != data_size - BANK_AREA.size or bank_format not in BANK_HEADER:
        return None
    start = EVENT_HEADER.size + BANK_AREA.size
    area, header, at, out = event[start : start + area_size], BANK_HEADER[bank_format], 0, b""
    while at < len(area):
        if len(area) - at < header.size:
            return None
        name, tid, size = header.unpack_from(area, at)
        at += header.size
        if aligned(size) > len(area) - at:
            return None
        out += encode_bank32a(name, tid, area[at : at + size])
        at += aligned(size)
    return area if bank_format == BANK32A else out


def first_uint64(banks: bytes, name: bytes) -> int | None:
    """The first value of the first bank of that name, 64 bits; ``banks`` in BANK32A."""
    at = 0
    while at < len(banks):
        found, _, size = BANK_HEADER[BANK32A].unpack_from(banks, at)
        at += BANK_HEADER[BANK32A].size
        if found == name:
            return int.from_bytes(banks[at : at + 8], "little") if size >= 8 else None
        at += aligned(size)
    return None


def encode_bank32a(name: bytes, tid: int, data: bytes) -> bytes:
    """A bank with its header and padding."""
    return BANK_HEADER[BANK32A].pack(name, tid, len(data)) + data + bytes(-len(data) % 8)


def encode_event(event_id: int, trigger_mask: int, serial: int, time_stamp: int, banks: bytes) -> bytes:
    """An event of banks in BANK32A."""
    header = EVENT_HEADER.pack(event_id, trigger_mask, serial % 2**32, time_stamp, BANK_AREA.size + len(banks))
    return header + BANK_AREA.pack(len(banks), BANK32A) + banks


def aligned(size: int) -> int:
    """The next multiple of 8."""
    return size + -size % 8

"""Events made byte by byte, from the layouts of MIDAS and nothing of ours: what the tests feed to the builder."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BANK, BANK32, BANK32A = 0x01, 0x11, 0x31

BankSpec = tuple[bytes, int, bytes]  # name, TID, data


def pad8(data: bytes) -> bytes:
    """``data`` and zeros up to a multiple of 8 bytes."""
    return data + bytes(-len(data) % 8)


def bank(spec: BankSpec, bank_format: int) -> bytes:
    """A bank in one of the three layouts."""
    name, tid, data = spec
    if bank_format == BANK:
        return name + struct.pack("<HH", tid, len(data)) + pad8(data)
    if bank_format == BANK32:
        return name + struct.pack("<II", tid, len(data)) + pad8(data)
    return name + struct.pack("<III", tid, len(data), 0) + pad8(data)


def event(
    serial: int,
    banks: Iterable[BankSpec] = (),
    bank_format: int = BANK32A,
    time_stamp: int = 7,
    event_id: int = 1,
    trigger_mask: int = 0xFFFF,
) -> bytes:
    """A MIDAS event, without padding behind it."""
    area = b"".join(bank(spec, bank_format) for spec in banks)
    header = struct.pack("<HHIII", event_id, trigger_mask, serial % 2**32, time_stamp, 8 + len(area))
    return header + struct.pack("<II", len(area), bank_format) + area


def body(events: Iterable[bytes]) -> bytes:
    """A frame's body: events at 8-byte steps."""
    return b"".join(pad8(one) for one in events)


@dataclass(frozen=True)
class Broken:
    """An event that is not one, and whether what follows it in the frame can still be found."""

    data: bytes
    rest_is_lost: bool = False


def broken_events(serial: int) -> Sequence[Broken]:
    """One of each way in which an event can be wrong."""

    def header(data_size: int) -> bytes:
        return struct.pack("<HHIII", 1, 0xFFFF, serial % 2**32, 7, data_size)

    whole = bank((b"ADC0", 4, bytes(8)), BANK32A)
    return (
        Broken(header(0)),
        Broken(header(7) + bytes(7)),  # no room for the bank area's header
        Broken(header(8) + struct.pack("<II", 8, BANK32A)),  # area larger than the event
        Broken(header(32) + struct.pack("<II", 16, BANK32A) + whole),  # area smaller than the event
        Broken(header(8) + struct.pack("<II", 0, 0x21)),  # no such format
        Broken(header(12) + struct.pack("<III", 4, BANK32A, 0)),  # half a bank header
        Broken(header(32) + struct.pack("<II", 24, BANK32A) + b"ADC0" + struct.pack("<III", 4, 9, 0) + bytes(8)),
        Broken(header(16) + struct.pack("<II", 8, BANK) + b"ADC0" + struct.pack("<HH", 4, 0xFFFF)),
        Broken(header(0xFFFFFFFF), rest_is_lost=True),
        Broken(header(0x01000000), rest_is_lost=True),
    )

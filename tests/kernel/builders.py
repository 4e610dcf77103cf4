"""A builder, of the kernel or of the reference, told by hand: frames in, events out."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tests.kernel.fragments import body, event
from tests.kernel.stories import AnyBuilder

__all__ = ["NEAR", "ROOM", "MakeBuilder", "add", "banks_of", "built", "events_of", "serials", "text_of", "timed"]

ROOM = 1 << 16
NEAR = 2**33  # what serial number 0 is when it is unwrapped
MakeBuilder = Callable[..., AnyBuilder]


def add(builder: AnyBuilder, source: int, *events: bytes, run: int = 1, **more: Any) -> None:
    """A frame of these events."""
    builder.add_bytes(source, run, body(events), len(events), 0, **more)


def timed(serial: int, time: int, **more: Any) -> bytes:
    """A fragment with a time."""
    return event(serial, [(b"TIME", 18, struct.pack("<Q", time))], **more)


def events_of(data: bytes) -> list[bytes]:
    """Events back to back, taken apart."""
    found, at = [], 0
    while at < len(data):
        size = 16 + int.from_bytes(data[at + 12 : at + 16], "little")
        found.append(data[at : at + size])
        at += size
    return found


def serials(events: bytes) -> list[int]:
    """Serial numbers of built events."""
    return [struct.unpack_from("<I", one, 4)[0] for one in events_of(events)]


def banks_of(one: bytes) -> list[tuple[bytes, bytes]]:
    """Names and data of the banks of an event in BANK32A."""
    found, at = [], 24
    while at < len(one):
        name, size = one[at : at + 4], int.from_bytes(one[at + 8 : at + 12], "little")
        found.append((name, one[at + 16 : at + 16 + size]))
        at += 16 + size + -size % 8
    return found


def text_of(one: bytes, name: bytes) -> list[str]:
    """The strings of an event's bank, [] if it has none."""
    data = b"".join(data for found, data in banks_of(one) if found == name)
    return data.decode().split("\0")[:-1]


def built(builder: AnyBuilder) -> list[bytes]:
    """All events that can be built now."""
    return events_of(builder.build(ROOM)[0])

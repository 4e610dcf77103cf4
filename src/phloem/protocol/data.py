"""What travels between frontends, builder and logger: frames, and the sections behind a frame's events.

Frame header, 128 bytes, little endian (kernel/frame.hpp writes it; the tests hold both to this table):

====== ===== ==============================================================================================
offset width meaning
====== ===== ==============================================================================================
0      4     magic ``PHLF``
4      2     version, 1
6      2     kind: 1 BEGIN_OF_RUN, 2 EVENTS, 3 END_OF_RUN, 4 INFO, 5 CHECKPOINT, 6 REJOIN
8      4     run number
12     2     lane, 0
14     2     flags: 1 crc32c is set, 2 an event is not a multiple of 8 bytes long (padding follows it)
16     8     sequence number in this ring's generation, from 0
24     8     body size: bytes of the events, each padded to a multiple of 8
32     8     meta size: bytes of the sections behind the events
40     4     number of events in the body
44     4     serial number of the first event
48     4     serial number of the last event + 1
52     4     crc32c of body and meta, where the flag is set
56     8     time of closing, ns since 1970 (for people; nothing is decided by it)
64     8     events that this source has sent in this run, this frame included (borders and texts not counted)
72     8     their bytes
80     8     the ring's generation
88     8     size of the whole frame in the ring, a multiple of 64
96     32    zero
====== ===== ==============================================================================================

Sections: ``u32 kind, u32 size``, payload, padding to 8. Kinds: 1 CHECKPOINT, 2 MARKS, 3 JSON, 4 LATE, 5 QUARANTINED,
6 USER_STATE.

CHECKPOINT: ``u32 version (2), u32 run, u64 next serial number, u64 events that have left or were discarded, u64
unwrapped number near to all others (0: none yet), u32 sources, u32 p, u32 the rest is discarded, u32 0``, p x ``u64
serial number, u64 time`` (of past events, for the check by time), then per source ``u64 ring generation, u64 sequence
of the first frame not read to its end, u32 first event in it that has not been read, u32 flags (1 started, 2 ended, 4
absent, 8 restarted, 16 told is known, 32 blind, 64 the last fragment was paired again), u64 highest key, u64 next to
pass on, u64 floor, 7 x u64 (received, built, incomplete, late, duplicate, discarded, quarantined), u64 first key, u64
highest time, u64 next one of a row that was seen before, i64 shift by time, i64 told shift, u32 times paired again,
u32 of these sure, u64 last passed on, i64 by how much the last fragment was paired again, u64 highest key before it,
u32 where it begins, u32 its number, u32 added to serial numbers, u32 length of the row, u32 why it is absent, u32 h,
u32 m, u32 r``, h x ``u64 frame sequence, u32 event, u32 far (bit 0) and times paired again, u64 key, i64 moved``
(read, but undecided), m x ``u64 first, u64 last`` (keys missed), r x ``u64 key, u64 serial number`` (recent ones, by
time). Keys are serial numbers unwrapped, or times in ns.

MARKS: ``u32 number``, ``u32 0``, then per mark ``u32 source, u32 cause (1 silence, 2 space, 3 optional, 4 check), u64
first, u64 last``: unwrapped serial numbers (times in ns where sources are matched by time); first 0: from the start.

LATE, QUARANTINED: whole events at 8-byte steps, banks in BANK32A, for the side files. A late one is the fragment with a
bank LATE (STRING, its source) behind its own; one in quarantine holds the bytes as they came in the bank QUAR (UINT8),
and its source and the reason in the bank WHYQ (STRING, two texts).

USER_STATE: ``ctx.state`` of the builder's user code, as it is after the events of this frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any

import msgspec

from phloem.kernel import FrameKind
from phloem.model.errors import ProtocolError

__all__ = [
    "FRAME_UNALIGNED",
    "Checkpoint",
    "CheckpointedSource",
    "FrameKind",
    "Section",
    "Undecided",
    "decode_checkpoint",
    "decode_json",
    "decode_marks",
    "encode_json",
    "encode_marks",
    "join_sections",
    "sections",
]

FRAME_UNALIGNED = 2

_SECTION = struct.Struct("<II")
_HEAD = struct.Struct("<IIQQQIIII")
_SOURCE = struct.Struct("<QQII13QqqIIQqQIIIIIIII")
_HELD = struct.Struct("<QIIQq")
_RANGE = struct.Struct("<QQ")
_NO_TIME = 2**64 - 1
_MARK = struct.Struct("<IIQQ")


class Section(IntEnum):
    """Kind of a section behind a frame's events."""

    CHECKPOINT = 1
    MARKS = 2
    JSON = 3
    LATE = 4
    QUARANTINED = 5
    USER_STATE = 6


def join_sections(parts: Iterable[tuple[Section, bytes]]) -> bytes:
    """The bytes of sections back to back."""
    out = bytearray()
    for kind, payload in parts:
        out += _SECTION.pack(kind, len(payload)) + payload + bytes(-len(payload) % 8)
    return bytes(out)


def sections(meta: bytes) -> Iterator[tuple[int, bytes]]:
    """The sections of a frame: (kind, payload). Unknown kinds are given too; their reader skips them."""
    at = 0
    while at < len(meta):
        if len(meta) - at < _SECTION.size:
            raise ProtocolError(f"frame sections end within a section header at byte {at}")
        kind, size = _SECTION.unpack_from(meta, at)
        at += _SECTION.size
        if size > len(meta) - at:
            raise ProtocolError(f"section {kind} of {size} bytes at byte {at} is longer than its frame")
        yield kind, meta[at : at + size]
        at += size + -size % 8


def encode_json(value: Any) -> tuple[Section, bytes]:
    """A JSON section: who a source is, what it counted."""
    return Section.JSON, msgspec.json.encode(value)


def decode_json(meta: bytes) -> dict[str, Any]:
    """The JSON section of a frame; empty if there is none."""
    for kind, payload in sections(meta):
        if kind == Section.JSON:
            try:
                return msgspec.json.decode(payload, type=dict[str, Any])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"JSON section: {error}") from None
    return {}


def encode_marks(marks: Iterable[tuple[int, int, int, int]]) -> tuple[Section, bytes]:
    """Marks as (source, cause, first, last), the last two unwrapped."""
    packed = [_MARK.pack(*mark) for mark in marks]
    return Section.MARKS, struct.pack("<II", len(packed), 0) + b"".join(packed)


def decode_marks(payload: bytes) -> list[tuple[int, int, int, int]]:
    """The marks of a MARKS section."""
    if len(payload) < 8 or len(payload) != 8 + _MARK.size * struct.unpack_from("<I", payload)[0]:
        raise ProtocolError(f"MARKS section of {len(payload)} bytes does not agree with its count")
    return [tuple(mark) for mark in _MARK.iter_unpack(payload[8:])]


class Undecided(msgspec.Struct, frozen=True):
    """A fragment that has been read and has no fate yet. ``far``: what comes next says whether it is believed."""

    frame: int
    event: int
    far: bool
    key: int
    moved: int
    pairing: int


class CheckpointedSource(msgspec.Struct, frozen=True):
    """Where a builder stands in one source. ``read``: (frame sequence, event). Times are None where there is none."""

    generation: int
    read: tuple[int, int]
    started: bool
    ended: bool
    restarted: bool
    blind: bool
    absent: int
    highest: int
    next_pass: int
    floor: int
    fates: tuple[int, ...]
    first: int
    highest_time: int | None
    again_next: int
    again: int
    total_shift: int
    told: int | None
    pairing: int
    sure: int
    last_passed: int | None
    paired: tuple[int, int, int] | None
    begins: int
    shift: int
    undecided: tuple[Undecided, ...]
    missed: tuple[tuple[int, int], ...]
    recent: tuple[tuple[int, int], ...]


class Checkpoint(msgspec.Struct, frozen=True):
    """All that a builder needs to go on. ``history``: (serial number, time) of past events."""

    run: int
    next_serial: int
    count: int
    near: int
    discarding: bool
    history: tuple[tuple[int, int], ...]
    sources: tuple[CheckpointedSource, ...]


def decode_checkpoint(payload: bytes) -> Checkpoint:
    """A CHECKPOINT section."""
    try:
        version, run, next_serial, count, near, n_sources, n_past, discarding, _ = _HEAD.unpack_from(payload)
        if version != 2:
            raise ProtocolError(f"checkpoint of version {version}; this is version 2")
        at = _HEAD.size
        history, at = _rows(_RANGE, payload, at, n_past)
        sources = []
        for _ in range(n_sources):
            source, at = _decode_source(payload, at)
            sources.append(source)
    except struct.error as error:
        raise ProtocolError(f"CHECKPOINT section of {len(payload)} bytes ends early: {error}") from None
    return Checkpoint(run, next_serial, count, near, bool(discarding), history, tuple(sources))


def _rows(row: struct.Struct, payload: bytes, at: int, n: int) -> tuple[tuple[Any, ...], int]:
    end = at + n * row.size
    if end > len(payload):
        raise struct.error(f"{n} rows of {row.size} bytes at byte {at}")
    return tuple(row.iter_unpack(payload[at:end])), end


def _decode_source(payload: bytes, at: int) -> tuple[CheckpointedSource, int]:
    fields = _SOURCE.unpack_from(payload, at)
    generation, frame, event, flags, highest, next_pass, floor = fields[:7]
    first, highest_time, again_next, total_shift, told, pairing, sure, last_passed, delta, before = fields[14:24]
    begins, number, shift, again, absent, n_held, n_missed, n_recent = fields[24:]
    held, at = _rows(_HELD, payload, at + _SOURCE.size, n_held)
    missed, at = _rows(_RANGE, payload, at, n_missed)
    recent, at = _rows(_RANGE, payload, at, n_recent)
    source = CheckpointedSource(
        generation=generation,
        read=(frame, event),
        started=bool(flags & 1),
        ended=bool(flags & 2),
        restarted=bool(flags & 8),
        blind=bool(flags & 32),
        absent=absent,
        highest=highest,
        next_pass=next_pass,
        floor=floor,
        fates=fields[7:14],
        first=first,
        highest_time=None if highest_time == _NO_TIME else highest_time,
        again_next=again_next,
        again=again,
        total_shift=total_shift,
        told=told if flags & 16 else None,
        pairing=pairing,
        sure=sure,
        last_passed=None if last_passed == _NO_TIME else last_passed,
        paired=(number, delta, before) if flags & 64 else None,
        begins=begins,
        shift=shift,
        undecided=tuple(Undecided(one[0], one[1], bool(one[2] & 1), one[3], one[4], one[2] >> 1) for one in held),
        missed=missed,
        recent=recent,
    )
    return source, at

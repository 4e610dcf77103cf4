"""MIDAS events as bytes: decoding, encoding, and finding where each one begins. Pure: no files, no clock.

All numbers are little endian. Layouts as in MIDAS ``midas.h`` (BANK32A since the 2020 version).

Event header, 16 bytes; the next event follows after ``data_size`` bytes, without padding of its own:

====== ====== ==============================================================================================
offset  width meaning
====== ====== ==============================================================================================
0           2 event_id: kind of event; 0x8000 begin of run, 0x8001 end of run, 0x8002 message; 0xC000 and
              0xD000 in the upper four bits: first and further piece of a fragmented event
2           2 trigger_mask; 0x494D in begin and end of run, the message's type in a message
4           4 serial_number; the run number in begin and end of run
8           4 time_stamp: seconds since 1970
12          4 data_size: bytes after this header
====== ====== ==============================================================================================

Bank area, at byte 16 of an event that has banks; ``data_size`` of the event is 8 more than that of the area:

====== ====== ==============================================================================================
offset  width meaning
====== ====== ==============================================================================================
0           4 data_size: all banks with their headers and padding
4           4 flags: bit 0 version (always set), bit 4 BANK32, bits 4 and 5 BANK32A. Bit 5 is looked at first
8             banks
====== ====== ==============================================================================================

Bank: a header, ``data_size`` bytes of values, padding to a multiple of 8 whose content nobody cares about:

======== ======== ========== ======================= ========================== ==========
format      flags name       type                    data_size                  reserved
======== ======== ========== ======================= ========================== ==========
BANK         0x01 4 bytes    2 bytes                 2 bytes (65535 at most)
BANK32       0x11 4 bytes    4 bytes                 4 bytes
BANK32A      0x31 4 bytes    4 bytes                 4 bytes                    4 bytes
======== ======== ========== ======================= ========================== ==========

A piece of a fragmented event has no banks: the first holds the total size (4 bytes), the others the slices.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from phloem.model.errors import EventError, FormatError
from phloem.model.event import TID, Bank, BankFormat, Event, EventId, MessageType, Values, check_bank_name

__all__ = [
    "FIRST_PIECE",
    "FURTHER_PIECE",
    "HEADER_BYTES",
    "MIDAS_MAGIC",
    "Buffer",
    "EventHeader",
    "Reassembly",
    "banks_of_area",
    "decode_event",
    "decode_header",
    "encode_event",
    "has_banks",
    "is_piece",
    "message_event",
    "reassemble",
    "run_event",
    "scan",
    "values_of",
    "walk",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

HEADER_BYTES = 16
MIDAS_MAGIC = 0x494D  # trigger mask of begin and end of run: "MI"
FIRST_PIECE = 0xC000
FURTHER_PIECE = 0xD000
PIECE_MASK = 0xF000
BANK_AREA_BYTES = 8
MAX_U32 = 0xFFFFFFFF

_HEADER = struct.Struct("<HHIII")
_SIZE = struct.Struct("<I")
_AREA = struct.Struct("<II")
_BANK = {
    BankFormat.BANK: struct.Struct("<4sHH"),
    BankFormat.BANK32: struct.Struct("<4sII"),
    BankFormat.BANK32A: struct.Struct("<4sII4x"),
}
# Bit 5 decides before bit 4: a reader that looks at bit 4 first takes BANK32A for BANK32.
_FORMATS = {
    0x01: BankFormat.BANK,
    0x11: BankFormat.BANK32,
    0x21: BankFormat.BANK32A,
    0x31: BankFormat.BANK32A,
}
_WITHOUT_BANKS = frozenset(int(event_id) for event_id in EventId)
_DTYPES = {int(tid): tid.dtype for tid in TID}
_BYTE = np.dtype("u1")
_BYTE_TYPES = frozenset({TID.ARRAY, TID.STRUCT, TID.KEY, TID.CHAR, TID.STRING, TID.LINK})


class EventHeader(NamedTuple):
    """The header of an event; ``data_size`` is in bytes and does not count the header itself."""

    event_id: int
    trigger_mask: int
    serial_number: int
    time_stamp: int
    data_size: int


def has_banks(event_id: int) -> bool:
    """Whether events of this id hold banks: all but run borders, messages, pieces of fragmented events."""
    return event_id not in _WITHOUT_BANKS and not is_piece(event_id)


def is_piece(event_id: int) -> bool:
    """Whether this is a piece of a fragmented event (EQ_FRAGMENTED)."""
    return event_id & PIECE_MASK in (FIRST_PIECE, FURTHER_PIECE)


def decode_header(buffer: Buffer, offset: int = 0, path: str = "", base: int = 0) -> EventHeader:
    """The header of the event at ``offset``; the whole event must be in the buffer.

    ``base`` is the position of the buffer's first byte in the file: errors name absolute positions.
    """
    left = len(buffer) - offset
    if offset < 0 or left < HEADER_BYTES:
        raise FormatError(
            f"{max(left, 0)} bytes are left, and an event header needs {HEADER_BYTES}", path, base + offset
        )
    header = EventHeader._make(_HEADER.unpack_from(buffer, offset))
    if HEADER_BYTES + header.data_size > left:
        raise FormatError(
            f"event {header.event_id:#06x} serial number {header.serial_number} has "
            f"{HEADER_BYTES + header.data_size} bytes by its header, and {left} are left",
            path,
            base + offset,
        )
    return header


def scan(buffer: Buffer, offset: int = 0, path: str = "", base: int = 0) -> Iterator[tuple[int, EventHeader]]:
    """Each event's offset in the buffer and its header; a `FormatError` where an event is not whole."""
    while offset < len(buffer):
        header = decode_header(buffer, offset, path, base)
        yield offset, header
        offset += HEADER_BYTES + header.data_size


def walk(buffer: Buffer) -> tuple[NDArray[np.int64], int]:
    """Offsets of all whole events from the buffer's first byte on, and where the last of them ends.

    Never raises: where the end is not the buffer's end, `decode_header` there says what is wrong.
    """
    sizes, size, found, offset = _SIZE.unpack_from, len(buffer), [], 0
    last_start = size - HEADER_BYTES
    while offset <= last_start:
        following = offset + HEADER_BYTES + sizes(buffer, offset + 12)[0]
        if following > size:
            break
        found.append(offset)
        offset = following
    return np.array(found, dtype=np.int64), offset


def decode_event(buffer: Buffer, offset: int = 0, path: str = "", base: int = 0) -> tuple[Event, int]:
    """The event at ``offset`` and the offset of the next one.

    Bank values are read-only views into the buffer, (n,) of the type's little-endian dtype: CHAR, STRING and
    LINK as ``S1`` (join them with ``.tobytes()``), ARRAY, STRUCT and KEY as ``u1``, BITFIELD as ``<u4``, or
    ``u1`` where its size is no multiple of 4 (MIDAS 2017 gave it one byte). Run borders, messages and pieces
    of fragmented events have no banks; their bytes are in ``raw``.
    """
    header = decode_header(buffer, offset, path, base)
    start = offset + HEADER_BYTES
    end = start + header.data_size
    if not has_banks(header.event_id):
        return Event(*header, raw=bytes(buffer[start:end])), end
    data = memoryview(buffer)[start:end]
    form = _decode_format(header, data, path, base + offset)
    banks = tuple(_decode_banks(data, form, path, base + start))
    return Event(*header, format=form, banks=banks), end


def _decode_format(header: EventHeader, data: memoryview, path: str, position: int) -> BankFormat:
    """The bank format, after checking the bank area against the event's size."""
    if len(data) < BANK_AREA_BYTES:
        raise FormatError(
            f"event {header.event_id:#06x} serial number {header.serial_number} has {len(data)} bytes of "
            f"data, and a bank area needs {BANK_AREA_BYTES}",
            path,
            position,
        )
    size, flags = _AREA.unpack_from(data)
    if flags >= 0x10000:
        raise FormatError(f"bank flags are {flags:#x}: banks in big-endian order are not read", path, position + 20)
    form = _FORMATS.get(flags)
    if form is None:
        raise FormatError(f"bank flags are {flags:#x}, expected 0x01, 0x11 or 0x31", path, position + 20)
    if size + BANK_AREA_BYTES != len(data):
        raise FormatError(
            f"the bank area has {size} bytes by its header, and the event has room for {len(data) - BANK_AREA_BYTES}",
            path,
            position + HEADER_BYTES,
        )
    return form


def _decode_banks(data: memoryview, form: BankFormat, path: str, position: int) -> Iterator[Bank]:
    """The banks of a bank area; ``position`` is where ``data`` begins in the file."""
    layout = _BANK[form]
    offset, end = BANK_AREA_BYTES, len(data)
    while offset < end:
        if end - offset < layout.size:
            raise FormatError(
                f"{end - offset} bytes are left in the bank area, and a {form.name} header needs {layout.size}",
                path,
                position + offset,
            )
        name, tid, size = layout.unpack_from(data, offset)
        start = offset + layout.size
        following = start + (size + 7 & ~7)
        if not name.isascii() or not name.decode("ascii").isprintable():
            raise FormatError(f"bank name {name!r} is not 4 printable ASCII characters", path, position + offset)
        if following > end:
            raise FormatError(
                f"bank {name.decode()} has {size} bytes, padded {following - start}, and {end - start} are left",
                path,
                position + offset,
            )
        yield Bank(
            name.decode("ascii"),
            tid,
            _decode_values(data[start : start + size], tid, path, position + offset),
        )
        offset = following


def _decode_values(data: memoryview, tid: int, path: str, position: int) -> Values:
    dtype = _DTYPES.get(tid)
    if dtype is None:
        raise FormatError(f"bank type {tid} is not a MIDAS type, which are 1 to {max(TID)}", path, position)
    if len(data) % dtype.itemsize:
        if tid != TID.BITFIELD:
            raise FormatError(
                f"a bank of {TID(tid).name} has {len(data)} bytes, which is no multiple of {dtype.itemsize}",
                path,
                position,
            )
        dtype = _BYTE
    if not data:
        values: Values = np.empty(0, dtype)
    else:
        values = np.frombuffer(data, dtype)
    values.flags.writeable = False
    return values


def values_of(data: Buffer, tid: int) -> Values:
    """The values of a bank from its bytes, as `decode_event` gives them; a read-only view."""
    return _decode_values(memoryview(data), tid, "", 0)


def banks_of_area(area: Buffer) -> list[Bank]:
    """Banks in BANK32A from the bytes behind their bank area's header."""
    return list(_decode_banks(memoryview(bytes(BANK_AREA_BYTES) + area), BankFormat.BANK32A, "", 0))


def encode_event(event: Event) -> bytes:
    """The bytes of an event: `banks` in its `format`, or `raw` if it has no format.

    Sizes are worked out from the content; the event's own ``data_size`` is not used. Padding is zero.
    Values must have the bank's type or fit it without loss; EventError otherwise.
    """
    if event.format is not None:
        body = _encode_banks(event.format, event.banks)
    elif event.banks or has_banks(event.event_id):
        raise EventError(
            f"event {event.event_id:#06x} serial number {event.serial_number} has no bank format; "
            "give one of BANK, BANK32, BANK32A",
            event_id=event.event_id,
        )
    else:
        body = event.raw
    return _with_header(event.event_id, event.trigger_mask, event.serial_number, event.time_stamp, body)


def _with_header(event_id: int, trigger_mask: int, serial_number: int, time_stamp: int, body: bytes) -> bytes:
    try:
        return _HEADER.pack(event_id, trigger_mask, serial_number, time_stamp, len(body)) + body
    except struct.error as error:
        raise EventError(
            f"event_id {event_id}, trigger_mask {trigger_mask}, serial_number {serial_number}, time_stamp "
            f"{time_stamp}, data_size {len(body)}: {error}",
            event_id=event_id,
            serial_number=serial_number,
        ) from None


def _encode_banks(form: BankFormat, banks: Iterable[Bank]) -> bytes:
    layout = _BANK[form]
    limit = 0xFFFF if form is BankFormat.BANK else MAX_U32
    parts: list[bytes] = []
    for bank in banks:
        name, data = check_bank_name(bank.name), _encode_values(bank)
        if len(data) > limit:
            raise EventError(
                f"bank {bank.name} has {len(data)} bytes, and {form.name} holds {limit}; use BANK32A",
                name=bank.name,
            )
        parts += (layout.pack(name, bank.tid, len(data)), data, bytes(-len(data) % 8))
    size = sum(map(len, parts))
    if size + BANK_AREA_BYTES > MAX_U32:
        raise EventError(f"the banks have {size} bytes, and an event holds {MAX_U32 - BANK_AREA_BYTES}")
    return _AREA.pack(size, form) + b"".join(parts)


def _encode_values(bank: Bank) -> bytes:
    """The values' bytes in the order and width of the bank's type."""
    dtype = _DTYPES.get(bank.tid)
    if dtype is None:
        raise EventError(f"bank {bank.name}: type {bank.tid} is not a MIDAS type", name=bank.name)
    values = np.asarray(bank.values)
    if values.dtype == dtype:
        return values.tobytes()
    if values.dtype.kind in "SV" and bank.tid in _BYTE_TYPES:
        return values.tobytes()
    if values.dtype == _BYTE and (bank.tid in _BYTE_TYPES or bank.tid == TID.BITFIELD):
        return values.tobytes()
    if dtype.kind not in "SV" and values.dtype.kind in "biuf" and np.can_cast(values.dtype, dtype, "safe"):
        return values.astype(dtype).tobytes()
    raise EventError(
        f"bank {bank.name} is of type {TID(bank.tid).name} and its values are {values.dtype}, which does not "
        f"fit {dtype} without loss",
        name=bank.name,
        dtype=values.dtype,
    )


def message_event(client: str, kind: MessageType, text: str, time_stamp: int, *, aligned: bool = True) -> bytes:
    """A MESSAGE event as MIDAS' logger writes it: ``[client,TYPE] text`` and a NUL.

    ``aligned`` adds NULs, counted in data_size, so that the event is a multiple of 8 bytes long. A NUL in the
    text would end it for every reader and becomes a blank.
    """
    line = f"[{client},{kind.name}] {text}".replace("\0", " ")
    return _text_event(EventId.MESSAGE, int(kind), 0, time_stamp, line.encode(), aligned)


def run_event(begin: bool, run_number: int, time_stamp: int, dump: bytes, *, aligned: bool = True) -> bytes:
    """A begin- or end-of-run event. ``dump``: the ODB as JSON or XML. NUL and padding as in messages."""
    event_id = EventId.BEGIN_OF_RUN if begin else EventId.END_OF_RUN
    return _text_event(event_id, MIDAS_MAGIC, run_number, time_stamp, dump, aligned)


def _text_event(event_id: int, mask: int, serial: int, time_stamp: int, text: bytes, aligned: bool) -> bytes:
    body = text if text.endswith(b"\0") else text + b"\0"
    if aligned:
        body += bytes(-len(body) % 8)
    return _with_header(event_id, mask, serial, time_stamp, body)


class _Pieces:
    """A fragmented event while its pieces come in."""

    def __init__(self, offset: int, first: Event, path: str) -> None:
        if len(first.raw) < 4:
            raise FormatError(
                f"the first piece of a fragmented event has {len(first.raw)} bytes, and the total size needs 4",
                path,
                offset,
            )
        self.offset = offset
        self.first = first
        self.total: int = _SIZE.unpack_from(first.raw)[0]
        self.body = bytearray()

    def whole(self) -> bytes:
        """The event as it was before it was cut."""
        first = self.first
        event_id = first.event_id & ~PIECE_MASK
        return _with_header(event_id, first.trigger_mask, first.serial_number, first.time_stamp, bytes(self.body))


class Reassembly:
    """Joins the pieces of fragmented events. FormatError for a piece without a first one, and for too many bytes."""

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._waiting: dict[tuple[int, int], _Pieces] = {}

    def take(self, offset: int, event: Event) -> tuple[int, bytes] | None:
        """A piece; the whole event as bytes, at the offset of its first piece, if this was the last one."""
        key = event.event_id & ~PIECE_MASK, event.serial_number
        if event.event_id & PIECE_MASK == FIRST_PIECE:
            if key in self._waiting:
                raise _unfinished(self._waiting[key], self._path)
            self._waiting[key] = _Pieces(offset, event, self._path)
        else:
            if key not in self._waiting:
                raise FormatError(
                    f"a piece of event {key[0]:#06x} serial number {key[1]} without its first one",
                    self._path,
                    offset,
                )
            self._waiting[key].body += event.raw
        pieces = self._waiting[key]
        if len(pieces.body) > pieces.total:
            raise FormatError(
                f"the pieces of event {key[0]:#06x} serial number {key[1]} have {len(pieces.body)} bytes, "
                f"and the first one says {pieces.total}",
                self._path,
                offset,
            )
        if len(pieces.body) < pieces.total:
            return None
        del self._waiting[key]
        return pieces.offset, pieces.whole()

    def end(self) -> None:
        """No more pieces come; FormatError if an event is not whole."""
        for pieces in self._waiting.values():
            raise _unfinished(pieces, self._path)


def reassemble(events: Iterable[tuple[int, Event]], path: str = "") -> Iterator[tuple[int, Event]]:
    """Events with the pieces of fragmented ones joined: each at the offset of its first piece.

    Takes and gives (offset, event). Pieces of different kinds may be mixed; what is not a piece passes on.
    FormatError for a piece without a first one, for too many bytes, and for an event that is never whole.
    """
    joining = Reassembly(path)
    for offset, event in events:
        if not is_piece(event.event_id):
            yield offset, event
        elif (whole := joining.take(offset, event)) is not None:
            first, data = whole
            yield first, decode_event(data, 0, path, first)[0]
    joining.end()


def _unfinished(pieces: _Pieces, path: str) -> FormatError:
    return FormatError(
        f"fragmented event {pieces.first.event_id & ~PIECE_MASK:#06x} serial number "
        f"{pieces.first.serial_number} has {len(pieces.body)} of {pieces.total} bytes",
        path,
        pieces.offset,
    )

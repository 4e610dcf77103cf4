"""Events, banks and equipment, as MIDAS defines them (numbers: MIDAS ``midas.h``; reference section 1 and 2).

Nothing here knows bytes: layouts are in :mod:`phloem.formats.midas` and in the kernel.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from phloem.model.errors import EventError, SettingsError

__all__ = [
    "EQ_EB",
    "EQ_FRAGMENTED",
    "EQ_INTERRUPT",
    "EQ_MANUAL_TRIG",
    "EQ_MULTITHREAD",
    "EQ_PERIODIC",
    "EQ_POLLED",
    "EQ_SLOW",
    "EQ_USER",
    "RO_BOR",
    "RO_EOR",
    "RO_ODB",
    "RO_RUNNING",
    "RO_STOPPED",
    "SUPPORTED_TYPES",
    "TID",
    "TRIGGER_ALL",
    "Bank",
    "BankFormat",
    "Equipment",
    "EquipmentType",
    "Event",
    "EventId",
    "MessageType",
    "ReadOn",
    "Values",
    "check_bank_name",
    "tid_of",
]

Values: TypeAlias = NDArray[Any]


class TID(IntEnum):
    """Type of the values in a bank."""

    UINT8 = 1
    INT8 = 2
    CHAR = 3
    UINT16 = 4
    INT16 = 5
    UINT32 = 6
    INT32 = 7
    BOOL = 8
    FLOAT32 = 9
    FLOAT64 = 10
    BITFIELD = 11
    STRING = 12
    ARRAY = 13
    STRUCT = 14
    KEY = 15
    LINK = 16
    INT64 = 17
    UINT64 = 18

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian dtype of one value; bytes for the types that have no fixed value."""
        return np.dtype(_DTYPES[self])

    @property
    def odb_name(self) -> str:
        """Name of the type in ODB listings, as odbedit prints it."""
        return _ODB_NAMES.get(self, self.name)


_DTYPES = {
    TID.UINT8: "u1",
    TID.INT8: "i1",
    TID.CHAR: "S1",
    TID.UINT16: "<u2",
    TID.INT16: "<i2",
    TID.UINT32: "<u4",
    TID.INT32: "<i4",
    TID.BOOL: "<u4",
    TID.FLOAT32: "<f4",
    TID.FLOAT64: "<f8",
    TID.BITFIELD: "<u4",
    TID.STRING: "S1",
    TID.ARRAY: "u1",
    TID.STRUCT: "u1",
    TID.KEY: "u1",
    TID.LINK: "S1",
    TID.INT64: "<i8",
    TID.UINT64: "<u8",
}

_ODB_NAMES = {
    TID.UINT8: "BYTE",
    TID.INT8: "SBYTE",
    TID.UINT16: "WORD",
    TID.INT16: "SHORT",
    TID.UINT32: "DWORD",
    TID.INT32: "INT",
    TID.FLOAT32: "FLOAT",
    TID.FLOAT64: "DOUBLE",
    TID.KEY: "DIR",
}

_TID_OF_DTYPE = {
    "|u1": TID.UINT8,
    "|i1": TID.INT8,
    "|S1": TID.CHAR,
    "<u2": TID.UINT16,
    "<i2": TID.INT16,
    "<u4": TID.UINT32,
    "<i4": TID.INT32,
    "|b1": TID.BOOL,
    "<f4": TID.FLOAT32,
    "<f8": TID.FLOAT64,
    "<i8": TID.INT64,
    "<u8": TID.UINT64,
}


def tid_of(dtype: np.dtype[Any]) -> TID:
    """The TID of an array's values. Byte order does not matter: values travel little endian."""
    tid = _TID_OF_DTYPE.get(dtype.newbyteorder("<").str)
    if tid is None:
        known = ", ".join(sorted(key.strip("<|") for key in _TID_OF_DTYPE))
        raise EventError(f"dtype {dtype} has no MIDAS type; use one of {known}", dtype=dtype)
    return tid


def check_bank_name(name: str) -> bytes:
    """The four bytes of a bank name, or an `EventError` that names it."""
    if len(name) != 4 or not name.isascii() or not name.isprintable():
        raise EventError(f"bank name {name!r} is not 4 printable ASCII characters", name=name)
    return name.encode("ascii")


class BankFormat(IntEnum):
    """The three bank layouts; the value is the ``flags`` word of the bank header."""

    BANK = 0x01
    BANK32 = 0x11
    BANK32A = 0x31


class EventId(IntEnum):
    """Event ids with a meaning of their own."""

    BEGIN_OF_RUN = 0x8000
    END_OF_RUN = 0x8001
    MESSAGE = 0x8002


class MessageType(IntFlag):
    """Trigger mask of a MESSAGE event."""

    ERROR = 1
    INFO = 2
    DEBUG = 4
    USER = 8
    LOG = 16
    TALK = 32
    CALL = 64


class EquipmentType(IntFlag):
    """``Common/Type``."""

    PERIODIC = 1
    POLLED = 2
    INTERRUPT = 4
    MULTITHREAD = 8
    SLOW = 16
    MANUAL_TRIG = 32
    FRAGMENTED = 64
    EB = 128
    USER = 256


EQ_PERIODIC = EquipmentType.PERIODIC
EQ_POLLED = EquipmentType.POLLED
EQ_INTERRUPT = EquipmentType.INTERRUPT
EQ_MULTITHREAD = EquipmentType.MULTITHREAD
EQ_SLOW = EquipmentType.SLOW
EQ_MANUAL_TRIG = EquipmentType.MANUAL_TRIG
EQ_FRAGMENTED = EquipmentType.FRAGMENTED
EQ_EB = EquipmentType.EB
EQ_USER = EquipmentType.USER

SUPPORTED_TYPES = EQ_POLLED | EQ_MULTITHREAD | EQ_PERIODIC | EQ_SLOW | EQ_FRAGMENTED | EQ_EB


class ReadOn(IntFlag):
    """``Common/Read on``: in which states and transitions an equipment is read."""

    RUNNING = 1
    STOPPED = 2
    PAUSED = 4
    BOR = 8
    EOR = 16
    PAUSE = 32
    RESUME = 64
    ODB = 256


RO_RUNNING = ReadOn.RUNNING
RO_STOPPED = ReadOn.STOPPED
RO_BOR = ReadOn.BOR
RO_EOR = ReadOn.EOR
RO_ODB = ReadOn.ODB
TRIGGER_ALL = 0xFFFF


class Bank(msgspec.Struct, frozen=True):
    """A named typed array in an event. ``values``: (n,) of the TID's dtype; raw bytes for types without one."""

    name: str
    tid: int
    values: Values


class Event(msgspec.Struct, frozen=True):
    """All that belongs to one serial number. A fragment, one source's part of it, is an event too.

    ``time_stamp``: seconds since 1970, 32 bit. ``data_size``: bytes after the 16-byte header, as in the header.
    ``format`` is None for events without banks (begin and end of run, messages); their bytes are in ``raw``.
    """

    event_id: int
    trigger_mask: int
    serial_number: int
    time_stamp: int
    data_size: int
    format: BankFormat | None = None
    banks: tuple[Bank, ...] = ()
    raw: bytes = b""

    def bank(self, name: str) -> Bank | None:
        """The first bank of that name, or None."""
        return next((bank for bank in self.banks if bank.name == name), None)


class Equipment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A declared readout unit: MIDAS' ``EQUIPMENT`` and the ODB's ``/Equipment/<name>/Common``.

    ``name`` and ``buffer`` may hold a format such as ``%02d``, which the frontend's index fills.
    ``type``: `EquipmentType` bits. ``source``: MIDAS' crate and station word (not used here).
    ``period``: ms; the interval for PERIODIC and SLOW, for POLLED how long a super-event may take.
    ``event_limit``: events after which the run ends, 0 for none. ``num_subevents``: triggers in a super-event, 0 for
    none. ``readout``: the frontend's method that reads it.
    """

    name: str
    event_id: int = 1
    trigger_mask: int = TRIGGER_ALL
    buffer: str = "SYSTEM"
    type: int = EQ_POLLED
    source: int = 0
    format: str = "MIDAS"
    enabled: bool = True
    read_on: int = RO_RUNNING | RO_ODB
    period: int = 500
    event_limit: float = 0.0
    num_subevents: int = 0
    log_history: int = 0
    hidden: bool = False
    readout: str = "read"

    def indexed(self, index: int) -> Equipment:
        """This equipment for frontend number ``index``: formats in name and buffer are filled, as mfe does."""
        return msgspec.structs.replace(
            self, name=_fill(self.name, index, "name"), buffer=_fill(self.buffer, index, "buffer")
        )

    def check(self) -> None:
        """Refuse, by name, what is not supported or cannot be."""
        kind = EquipmentType(self.type)
        unsupported = kind & ~SUPPORTED_TYPES
        if unsupported:
            names = ", ".join(f"EQ_{flag.name}" for flag in EquipmentType if flag & unsupported)
            raise SettingsError(
                f"equipment {self.name!r} has type {names or hex(unsupported)}, which is not supported; "
                "use EQ_POLLED, EQ_PERIODIC or EQ_SLOW, with EQ_EB for the event builder"
            )
        if not kind & (EQ_POLLED | EQ_MULTITHREAD | EQ_PERIODIC | EQ_SLOW):
            raise SettingsError(f"equipment {self.name!r} has type {self.type}: say EQ_POLLED, EQ_PERIODIC or EQ_SLOW")
        if not self.name or "/" in self.name or len(self.name) > 31:
            raise SettingsError(f"equipment name {self.name!r} must have 1 to 31 characters and no '/'")
        if not self.buffer or "/" in self.buffer or len(self.buffer) > 31:
            raise SettingsError(
                f"equipment {self.name!r}: buffer {self.buffer!r} must have 1 to 31 characters and no '/'"
            )


def _fill(text: str, index: int, what: str) -> str:
    if "%" not in text:
        return text
    try:
        return text % index
    except (TypeError, ValueError) as error:
        raise SettingsError(f"equipment {what} {text!r} is not a format for one number: {error}") from None

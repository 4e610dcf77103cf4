"""Recorded fragments made byte by byte: a source's file as it is left by MIDAS or a run, with its ODB."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.flow.lab import Ran
from tests.flow.reader import banks_of, events_of
from tests.kernel.fragments import BankSpec, event

UINT16, UINT64, STRING = 4, 18, 12
BEGIN_OF_RUN, END_OF_RUN, MAGIC = 0x8000, 0x8001, 0x494D
FIRST_PIECE, FURTHER_PIECE = 0xC000, 0xD000
STAMP = 1_700_000_000
XML = '<?xml version="1.0" encoding="ISO-8859-1"?>\n<odb root="/">\n</odb>\n'


def border(begin: bool, run: int, text: str) -> bytes:
    """A begin or end of run, of odd length as MIDAS writes it."""
    data = text.encode() + b"\0"
    event_id = BEGIN_OF_RUN if begin else END_OF_RUN
    return struct.pack("<HHIII", event_id, MAGIC, run, STAMP, len(data)) + data


def value(number: int) -> BankSpec:
    """A bank with one number, by which a fragment is known again."""
    return b"ADC0", UINT16, struct.pack("<H", number)


def at_ns(time_ns: int) -> BankSpec:
    """The bank that holds the fragment's time."""
    return b"TIME", UINT64, struct.pack("<Q", time_ns)


def fragments(serials: Iterable[int], base: int = 0) -> list[bytes]:
    """One fragment for each serial number, with ``base`` and the number as its value."""
    return [event(serial, [value(base + serial)], time_stamp=STAMP) for serial in serials]


def timed(times: Mapping[int, int]) -> list[bytes]:
    """Fragments by serial number and time in ns; the time in µs is their value as well."""
    return [event(serial, [value(ns // 1000), at_ns(ns)]) for serial, ns in times.items()]


def pieces(whole: bytes, size: int) -> list[bytes]:
    """An event as EQ_FRAGMENTED sends it: its total size, then slices of what follows its header."""
    event_id, mask, serial, stamp, length = struct.unpack_from("<HHIII", whole)
    data = whole[16:]
    slices = [(FIRST_PIECE, struct.pack("<I", length))]
    slices += [(FURTHER_PIECE, data[at : at + size]) for at in range(0, length, size)]
    return [struct.pack("<HHIII", event_id | kind, mask, serial, stamp, len(part)) + part for kind, part in slices]


def record(path: Path, events: Iterable[bytes], run: int | None = 42, odb: str = XML) -> Path:
    """A file of these events; without a run it has no borders."""
    body = b"".join(events)
    path.write_bytes(body if run is None else border(True, run, odb) + body + border(False, run, odb))
    return path


def odb(builder: Mapping[str, Any], event_id: int = 1, trigger_mask: int = 0) -> str:
    """The ODB of a run with the builder EB, in JSON: values beside what describes their keys, words in hexadecimal."""
    common = {"Event ID": f"0x{event_id:04x}", "Trigger mask": f"0x{trigger_mask:04x}", "Buffer": "BUF"}
    tree = {"Runinfo": {"Run number": 42}, "Equipment": {"EB": {"Common": common, "Settings": dict(builder)}}}
    return json.dumps({"/ODB path": "/", **_described(tree)})


def _described(tree: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in tree.items():
        if isinstance(item, Mapping):
            found[key] = _described(item)
        else:
            found[f"{key}/key"] = {"type": 12, "access_mode": 7, "last_written": STAMP}
            found[key] = item
    return found


class Built(NamedTuple):
    """A built event, without what every one of them has."""

    serial: int
    values: tuple[float, ...]
    miss: tuple[str, ...]
    names: tuple[str, ...]
    event_id: int
    trigger_mask: int


def built(path: Path) -> list[Built]:
    """The events of a built file, in its order: the values of their ADC0 banks, and who was missing."""
    found = []
    for one in events_of(path):
        if one.event_id >= BEGIN_OF_RUN:
            continue
        banks = banks_of(one)
        values = tuple(number for bank in banks if bank.name == "ADC0" for number in bank.values)
        miss = tuple(text for bank in banks if bank.name == "MISS" for text in bank.data.decode().split("\0") if text)
        names = tuple(bank.name for bank in banks)
        found.append(Built(one.serial_number, values, miss, names, one.event_id, one.trigger_mask))
    return found


def brief(path: Path) -> list[tuple[int, tuple[float, ...], tuple[str, ...]]]:
    """Serial number, values and missing sources of each built event."""
    return [(one.serial, one.values, one.miss) for one in built(path)]


def fates(ran: Ran) -> dict[str, dict[str, int]]:
    """The account of a build, source by source; what is 0 is left out."""
    sources = ran.document["account"]["sources"]
    return {name: {fate: n for fate, n in part.items() if n and isinstance(n, int)} for name, part in sources.items()}


def said(ran: Ran) -> Sequence[str]:
    """The lines on stderr."""
    return ran.err.splitlines()

"""Files that MIDAS wrote: each value by the formula it was written with, and as mdump prints it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.formats.run_files import GOLDEN

from phloem.formats.midas.events import decode_event, encode_event
from phloem.formats.midas.file import read_events, read_raw
from phloem.formats.midas.verify import verify
from phloem.model.event import Bank, BankFormat, Event

# file: (frontends in an event, None where each is of one; format by frontend; events with banks; messages)
FILES: dict[str, tuple[tuple[int, ...] | None, dict[int, BankFormat], int, int]] = {
    "built_2x50_bank16.mid": ((1, 2), {1: BankFormat.BANK, 2: BankFormat.BANK}, 50, 0),
    "built_2x50_bank32.mid": ((1, 2), {1: BankFormat.BANK32, 2: BankFormat.BANK32}, 50, 0),
    "unbuilt_2fe_x50_bank16_bank32_msgs.mid": (None, {1: BankFormat.BANK, 2: BankFormat.BANK32}, 100, 5),
    "unbuilt_fe01.mid": ((1,), {1: BankFormat.BANK}, 50, 5),
    "unbuilt_fe02.mid": ((2,), {2: BankFormat.BANK32}, 50, 0),
}
KINDS = ("BY", "SB", "CH", "WO", "SH", "DW", "IN", "BO", "FL", "DO")


def expected_bytes(kind: str, serial: int, fe: int, count: int) -> bytes:
    """The bytes of a bank by the formula of the files, packed by hand."""
    v = [100 * serial + 10 * fe + i for i in range(count)]
    match kind:
        case "BY":
            return bytes(x & 255 for x in v)
        case "SB":
            return struct.pack(f"<{count}b", *(-(i + fe) for i in range(count)))
        case "CH":
            return bytes(ord("A") + (serial + i) % 26 for i in range(count))
        case "WO":
            return struct.pack(f"<{count}H", *v)
        case "SH":
            return struct.pack(f"<{count}h", *(-x for x in v))
        case "DW":
            return struct.pack(f"<{count}I", *(0x80000000 + x for x in v))
        case "IN":
            return struct.pack(f"<{count}i", *(-x for x in v))
        case "BO":
            return struct.pack(f"<{count}I", *((serial + i) & 1 for i in range(count)))
        case "FL":
            return struct.pack(f"<{count}f", *(x / 8 for x in v))
        case _:
            return struct.pack(f"<{count}d", *(x / 3 for x in v))


def check_fragment(banks: tuple[Bank, ...], serial: int, fe: int) -> None:
    assert [bank.name for bank in banks] == [f"{kind}{fe:02d}" for kind in KINDS]
    for k, bank in enumerate(banks):
        assert bank.tid == k + 1
        count = 1 + (serial + k) % 9
        assert len(bank.values) == count
        assert bank.values.tobytes() == expected_bytes(KINDS[k], serial, fe, count)


@pytest.mark.parametrize("name", FILES)
def test_every_bank_value_is_what_the_formula_says(name: str) -> None:
    frontends, formats, n_events, n_messages = FILES[name]
    events = [event for _, event in read_events(GOLDEN / name)]
    assert (events[0].event_id, events[-1].event_id) == (0x8000, 0x8001)
    assert events[0].trigger_mask == events[-1].trigger_mask == 0x494D
    data = [event for event in events if event.format is not None]
    assert len(data) == n_events
    assert sum(event.event_id == 0x8002 for event in events) == n_messages
    assert len(events) == n_events + n_messages + 2
    for event in data:
        present = frontends or (int(event.banks[0].name[2:]),)
        assert event.format == formats[present[0]]
        for place, fe in enumerate(present):
            check_fragment(event.banks[10 * place : 10 * place + 10], event.serial_number, fe)


@pytest.mark.parametrize("name", FILES)
def test_every_frontend_gave_every_serial_number_once(name: str) -> None:
    serials: dict[str, list[int]] = {}
    for _, event in read_events(GOLDEN / name):
        for bank in event.banks:
            serials.setdefault(bank.name, []).append(event.serial_number)
    assert len(serials) in (10, 20)
    assert all(found == list(range(50)) for found in serials.values())


@pytest.mark.parametrize("name", FILES)
def test_offsets_and_raw_bytes_tile_the_file(name: str) -> None:
    content = (GOLDEN / name).read_bytes()
    raw = list(read_raw(GOLDEN / name))
    assert [offset for offset, _ in raw] == [offset for offset, _ in read_events(GOLDEN / name)]
    assert b"".join(data for _, data in raw) == content
    assert all(content[offset : offset + len(data)] == data for offset, data in raw)


def padding_masked(event: bytes) -> bytes:
    """An event with the bytes behind its banks' values set to zero, layouts by hand."""
    event_id, flags = struct.unpack_from("<H", event)[0], struct.unpack_from("<I", event, 20)[0]
    if event_id >= 0x8000:
        return event
    masked, at = bytearray(event), 24
    while at < len(event):
        if flags == 0x01:
            at, size = at + 8, struct.unpack_from("<H", event, at + 6)[0]
        else:
            at, size = at + 12, struct.unpack_from("<I", event, at + 8)[0]
        end = at + (size + 7) // 8 * 8
        masked[at + size : end] = bytes(end - at - size)
        at = end
    return bytes(masked)


@pytest.mark.parametrize("name", FILES)
def test_encoding_gives_back_the_bytes_but_for_padding(name: str) -> None:
    for _, raw in read_raw(GOLDEN / name):
        event, end = decode_event(raw)
        assert end == len(raw)
        assert encode_event(event) == padding_masked(bytes(raw))


@pytest.mark.parametrize("name", FILES)
def test_files_of_midas_are_proved_by_their_structure(name: str) -> None:
    result = verify(GOLDEN / name)
    assert result.ok
    assert result.bytes == (GOLDEN / name).stat().st_size
    assert any("no index" in note.text for note in result.notes)


def parse_mdump(path: Path) -> list[dict[str, Any]]:
    """The events that mdump printed in full: those with banks."""
    events: list[dict[str, Any]] = []
    header = re.compile(r"Evid:(\w+)- Mask:(\w+)- Serial:(\d+)- Time:(0x\w+)- Dsize:(\d+)/")
    bank_line = re.compile(r"Bank:(.{4}) Length: (\d+)\(I\*1\)/(\d+)\(I\*4\)/(\d+)\(Type\) Type:(.*)")
    for line in path.read_text().splitlines():
        if found := header.match(line):
            evid, mask, serial, time, size = found.groups()
            numbers = (int(evid, 16), int(mask, 16), int(serial), int(time, 16), int(size))
            events.append({"header": numbers, "banks": []})
        elif found := bank_line.match(line):
            events[-1]["banks"].append((found[1], int(found[2]), found[5], []))
        elif found := re.match(r" *\d+-> (.*)", line):
            events[-1]["banks"][-1][3].extend(found[1].split())
    return events


SHOWN: dict[str, Callable[[str], Any]] = {
    "Unsigned Bytes": lambda text: int(text, 16),
    "Signed Bytes": lambda text: int(text) - 256 if int(text) > 127 else int(text),
    "8 bit ASCII": lambda text: text.encode(),
    "Unsigned Integer*2": lambda text: int(text, 16),
    "Signed Integer*2": int,
    "Unsigned Integer*4": lambda text: int(text, 16),
    "Signed Integer*4": int,
    "Boolean": lambda text: int(text == "Y"),
    "Real*4 (FMT machine dependent)": float,
    "double*8": float,
}


def check_against_mdump(event: Event, printed: dict[str, Any]) -> None:
    found = (event.event_id, event.trigger_mask, event.serial_number, event.time_stamp, event.data_size)
    assert found == printed["header"]
    assert len(event.banks) == len(printed["banks"])
    for bank, (name, size, kind, shown) in zip(event.banks, printed["banks"], strict=True):
        assert (bank.name, bank.values.nbytes) == (name, size)
        values = [SHOWN[kind](value) for value in shown]
        rounded = kind in ("double*8", "Real*4 (FMT machine dependent)")
        assert bank.values.tolist() == (pytest.approx(values, rel=1e-3) if rounded else values)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.mdump.txt")), ids=lambda path: path.name)
def test_values_are_what_mdump_prints(path: Path) -> None:
    printed = parse_mdump(path)
    name = path.name.removesuffix(".mdump.txt") + ".mid"
    data = [event for _, event in read_events(GOLDEN / name) if event.format is not None]
    assert len(printed) == len(data) == FILES[name][2]
    for event, shown in zip(data, printed, strict=True):
        check_against_mdump(event, shown)

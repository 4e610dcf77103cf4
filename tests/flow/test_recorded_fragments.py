"""Fragments that MIDAS wrote, one source in BANK and one in BANK32, built offline and through running processes."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.flow.lab import Lab
from tests.flow.reader import Bank, Event, banks_of, events_of, run_of

GOLDEN = Path(__file__).parents[1] / "golden" / "midas"
FRAGMENTS = [GOLDEN / "unbuilt_fe01.mid", GOLDEN / "unbuilt_fe02.mid"]
EVENTS = 50
SIGNED_BYTE = 2
MDUMP_TYPES = {
    "Unsigned Bytes": 1,
    "Signed Bytes": SIGNED_BYTE,
    "8 bit ASCII": 3,
    "Unsigned Integer*2": 4,
    "Signed Integer*2": 5,
    "Unsigned Integer*4": 6,
    "Signed Integer*4": 7,
    "Boolean": 8,
    "Real*4": 9,
    "double*8": 10,
}
KINDS = ("BY", "SB", "CH", "WO", "SH", "DW", "IN", "BO", "FL", "DO")

REPLAY = """
[experiment]
name = "lab"

[logger]

[builder.EB]
buffer = "BUF"

[[frontend]]
code = "phloem.frontends.replay:Replay"
index = 1
settings = {{ "File" = "{0}" }}

[[frontend]]
code = "phloem.frontends.replay:Replay"
index = 2
settings = {{ "File" = "{1}" }}
"""


def data_of(kind: int, serial: int, fe: int) -> bytes:
    """The bytes of bank ``kind`` (0 to 9) by the formula with which MIDAS was made to write them."""
    number = 1 + (serial + kind) % 9
    v = [100 * serial + 10 * fe + i for i in range(number)]
    match KINDS[kind]:
        case "BY":
            return bytes(x & 255 for x in v)
        case "SB":
            return struct.pack(f"<{number}b", *(-(i + fe) for i in range(number)))
        case "CH":
            return bytes(ord("A") + (serial + i) % 26 for i in range(number))
        case "WO":
            return struct.pack(f"<{number}H", *v)
        case "SH":
            return struct.pack(f"<{number}h", *(-x for x in v))
        case "DW":
            return struct.pack(f"<{number}I", *(0x80000000 + x for x in v))
        case "IN":
            return struct.pack(f"<{number}i", *(-x for x in v))
        case "BO":
            return struct.pack(f"<{number}I", *((serial + i) & 1 for i in range(number)))
        case "FL":
            return struct.pack(f"<{number}f", *(x / 8 for x in v))
        case _:
            return struct.pack(f"<{number}d", *(x / 3 for x in v))


def expected_banks(serial: int) -> list[Bank]:
    """All 20 banks of a built event."""
    return [Bank(f"{name}{fe:02d}", k + 1, data_of(k, serial, fe)) for fe in (1, 2) for k, name in enumerate(KINDS)]


def check_built(events: list[Event]) -> None:
    assert [event.serial_number for event in events] == list(range(EVENTS))
    for event in events:
        assert banks_of(event) == expected_banks(event.serial_number)


def test_the_reader_of_these_tests_reads_what_midas_built() -> None:
    for name in ("built_2x50_bank16.mid", "built_2x50_bank32.mid"):
        check_built(run_of(GOLDEN / name).events)


def test_recorded_fragments_of_two_formats_build_to_the_values_of_the_formula(lab: Lab) -> None:
    document = lab.ask("build", *map(str, FRAGMENTS), "-o", "built.mid")
    sources = document["account"]["sources"]
    assert document["balanced"] is True
    assert {name: (part["sent"], part["built"]) for name, part in sources.items()} == {
        "unbuilt_fe01": (EVENTS, EVENTS),
        "unbuilt_fe02": (EVENTS, EVENTS),
    }
    check_built([event for event in events_of(lab.folder / "built.mid") if event.event_id < 0x8000])
    assert lab.ask("verify", "built.mid")["ok"] is True


def test_the_order_in_which_fragments_are_named_changes_no_byte(lab: Lab) -> None:
    lab.done("build", *map(str, FRAGMENTS), "-o", "one.mid")
    lab.done("build", *map(str, reversed(FRAGMENTS)), "-o", "two.mid")
    assert list(events_of(lab.folder / "one.mid")) == list(events_of(lab.folder / "two.mid"))


def test_the_same_files_replayed_by_live_frontends_give_the_same_events(lab: Lab) -> None:
    lab.done("build", *map(str, FRAGMENTS), "-o", "built.mid")
    lab.write(REPLAY.format(*FRAGMENTS))
    with lab.up() as live:
        live.start()
        live.until_events("EB", EVENTS)
        document = live.stop()
    assert document["balanced"] is True
    live_events = run_of(document["files"][0]).events
    check_built(live_events)
    built = [event for event in events_of(lab.folder / "built.mid") if event.event_id < 0x8000]
    assert live_events == built, "byte for byte, headers included"


@pytest.mark.parametrize("name", ["built_2x50_bank16", "built_2x50_bank32"])
def test_dump_shows_what_mdump_shows(lab: Lab, name: str) -> None:
    lines = lab.done("dump", str(GOLDEN / f"{name}.mid"), "--json").out.splitlines()
    dumped = [event for event in map(json.loads, lines) if event["event_id"] < 0x8000]
    shown = list(mdump_events((GOLDEN / f"{name}.mdump.txt").read_text()))
    assert len(dumped) == len(shown) == EVENTS
    for event, (head, banks) in zip(dumped, shown, strict=True):
        assert {key: event[key] for key in head} == head
        assert [(bank["name"], bank["size_bytes"]) for bank in event["banks"]] == [bank[:2] for bank in banks]
        for bank, (_, _, tid, values) in zip(event["banks"], banks, strict=True):
            assert bank["tid"] == tid
            assert close(bank["values"], values, tid), (bank, values)


def mdump_events(text: str) -> Any:
    """What `mdump -x` printed: (header fields, [(bank name, bytes, TID, words)]) of each event with banks."""
    for part in re.split(r"-+ Event# \d+ -+\n", text):
        head = re.search(r"Evid:(\w+)- Mask:(\w+)- Serial:(\d+)- Time:(0x\w+)- Dsize:(\d+)/", part)
        if head is None:
            continue
        names = ("event_id", "trigger_mask", "serial_number", "time_stamp", "data_size")
        numbers = (int(head[1], 16), int(head[2], 16), int(head[3]), int(head[4], 16), int(head[5]))
        banks = []
        for bank in re.split(r"\nBank:", part)[1:]:
            title, *rows = bank.splitlines()
            name, length, kind = re.findall(r"^(\w{4}) Length: (\d+)\(.*Type:([^(]*)", title)[0]
            words = " ".join(row.split("->")[1] for row in rows if "->" in row).split()
            banks.append((name, int(length), MDUMP_TYPES[kind.strip()], words))
        yield dict(zip(names, numbers, strict=True)), banks


def close(values: Any, words: list[str], tid: int) -> bool:
    """Whether values are those that mdump printed, to the digits that it printed."""
    if isinstance(values, str):
        return list(values) == words
    if all(isinstance(value, bool) for value in values):
        return ["Y" if value else "N" for value in values] == words
    shown = [float(int(word, 16)) if word.startswith("0x") else float(word) for word in words]
    if tid == SIGNED_BYTE:  # mdump prints these as unsigned ones
        shown = [value - 256 if value > 127 else value for value in shown]
    return bool(shown == pytest.approx([float(value) for value in values], rel=1e-3))

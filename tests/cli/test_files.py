"""`phloem dump` and `phloem verify` on files that MIDAS wrote and on damaged ones."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.formats.run_files import GOLDEN, write_run

from phloem.cli.files import dump, event_dict, verify_dict, verify_files, verify_report
from phloem.formats.midas.events import decode_event, encode_event
from phloem.model.errors import FormatError
from phloem.model.event import TID, Bank, BankFormat, Event, Values

MESSAGES = GOLDEN / "unbuilt_fe01.mid"


def shown(path: Path, as_json: bool, limit: int | None = None) -> list[str]:
    out = io.StringIO()
    dump(path, as_json, out, limit)
    return out.getvalue().splitlines()


def test_json_lines_have_one_event_each() -> None:
    events = [json.loads(line) for line in shown(MESSAGES, as_json=True)]
    assert len(events) == 57
    assert events[0]["text"].startswith("<?xml")
    assert events[1] == {
        "event_id": 0x8002,
        "trigger_mask": 2,
        "serial_number": 0,
        "time_stamp": 0x6B0100D3,
        "data_size": 30,
        "format": None,
        "text": "[ODBEdit,INFO] Run #2 started",
    }
    banks = {bank["name"]: bank for bank in events[5]["banks"]}
    assert events[5]["format"] == "BANK"
    assert banks["CH01"] == {"name": "CH01", "tid": 3, "size_bytes": 3, "values": "ABC"}
    assert banks["BO01"]["values"] == 4 * [False, True]
    assert banks["DO01"]["values"] == [10 / 3]
    assert banks["DW01"]["values"] == [0x8000000A + i for i in range(6)]


def values_of(tid: TID, values: Values) -> Any:
    event = Event(1, 0, 0, 0, 0, BankFormat.BANK32A, (Bank("DATA", tid, values),))
    return event_dict(decode_event(encode_event(event))[0])["banks"][0]["values"]


def test_values_that_json_does_not_know_are_texts() -> None:
    assert values_of(TID.FLOAT64, np.array([1.5, np.nan, np.inf, -np.inf])) == [
        1.5,
        "NaN",
        "Infinity",
        "-Infinity",
    ]
    assert values_of(TID.STRING, np.frombuffer(b"Trigger01\0Trigger02\0", "S1")) == ["Trigger01", "Trigger02"]
    assert values_of(TID.CHAR, np.frombuffer("µm".encode("latin-1"), "S1")) == "µm"
    assert values_of(TID.UINT64, np.array([(1 << 64) - 1], np.uint64)) == [(1 << 64) - 1]


def test_pieces_of_fragmented_events_are_hex() -> None:
    assert event_dict(Event(0xD001, 0, 0, 0, 2, None, (), b"\x01\xff"))["data_hex"] == "01ff"


def test_people_see_what_mdump_shows_with_the_true_types() -> None:
    lines = shown(MESSAGES, as_json=False, limit=6)
    assert lines[1].startswith(
        "Evid:8000- Mask:494d- Serial:2- Time:0x6b0100d3 (2026-11-21 02:24:19 UTC)- Dsize:17833/0x45a9"
    )
    assert "Message, type INFO: [ODBEdit,INFO] Run #2 started" in lines
    assert "#banks:10 - Bank list:-BY01SB01CH01WO01SH01DW01IN01BO01FL01DO01- Format:BANK" in lines
    place = lines.index("Bank:DO01 Length: 8(I*1)/1(values) Type:DOUBLE (10)")
    assert lines[place + 1].split() == ["1->", "3.33333333"]
    place = lines.index("Bank:WO01 Length: 8(I*1)/4(values) Type:WORD (4)")
    assert lines[place + 1].split() == ["1->", "0x000a", "0x000b", "0x000c", "0x000d"]
    assert sum(line.startswith("-----") for line in lines) == 6


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.mdump.txt")), ids=lambda path: path.name)
def test_integers_and_bank_lists_are_printed_as_mdump_prints_them(path: Path) -> None:
    """mdump breaks rows at other places, so the words of all rows are compared."""
    ours = shown(GOLDEN / (path.name.removesuffix(".mdump.txt") + ".mid"), as_json=False)
    theirs = path.read_text().splitlines()
    for letters in ("BY", "CH", "WO", "SH", "DW", "IN", "BO"):
        assert words_of(ours, letters) == words_of(theirs, letters)


def words_of(lines: list[str], letters: str) -> list[str]:
    words, within = [], False
    for line in lines:
        if line.startswith("Bank:"):
            within = line.startswith(f"Bank:{letters}")
        elif within and "->" in line:
            words += line.split("->")[1].split()
    return words


@pytest.mark.parametrize("tid", TID)
def test_every_type_can_be_shown(tmp_path: Path, tid: TID) -> None:
    path = tmp_path / "run.mid"
    bank = Bank("DATA", tid, np.frombuffer(bytes(range(64, 64 + 40)), tid.dtype))
    path.write_bytes(encode_event(Event(1, 0, 0, 0, 0, BankFormat.BANK32, (bank,))))
    lines = shown(path, as_json=False)
    assert any(line.startswith("Bank:DATA Length: 40(I*1)") for line in lines)
    assert "->" in lines[-1]
    assert len(shown(path, as_json=True)) == 1


def test_what_is_whole_is_shown_before_the_error(tmp_path: Path) -> None:
    path = tmp_path / "torn.mid"
    path.write_bytes(MESSAGES.read_bytes()[:-1])
    out = io.StringIO()
    with pytest.raises(FormatError, match=r"torn\.mid: byte 32497"):
        dump(path, True, out)
    assert len(out.getvalue().splitlines()) == 56
    assert shown(path, as_json=True, limit=0) == []


def test_the_report_says_what_is_wrong_and_where_the_last_whole_event_is(tmp_path: Path) -> None:
    good, torn = tmp_path / "run00007.mid", tmp_path / "run00008.mid"
    write_run(good)
    write_run(torn)
    os.truncate(torn, torn.stat().st_size - 1)
    results = verify_files([good, tmp_path / "run00008.idx", MESSAGES])
    lines = verify_report(results)
    assert lines[0] == f"{good}: ok, 8 events in 536 bytes (closed as complete)"
    assert lines[1].startswith(f"{torn}: DAMAGED, 7 events in 535 bytes")
    assert any("the file has 47 of its 48 bytes" in line for line in lines)
    assert "  last whole event: id 0x0001, serial number 4, at byte 408" in lines
    assert lines[-2].endswith("(no index)")
    assert lines[-1].startswith("  note: byte 0: index: no index beside the file")


def test_the_report_as_json_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.mid"
    write_run(path, close=False)
    plain = json.loads(json.dumps(verify_dict(verify_files([path]))))
    assert plain["ok"] is False
    (file,) = plain["files"]
    assert (file["ok"], file["events"], file["bytes"]) == (False, 8, 536)
    assert file["last_whole_event"] == {"offset": 488, "serial_number": 7, "event_id": 0x8001}
    assert [problem["law"] for problem in file["problems"]] == ["index"]
    assert verify_dict([]) == {"ok": True, "files": []}


def test_a_file_without_a_whole_event_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.mid"
    path.write_bytes(b"short")
    assert verify_report(verify_files([path]))[-1] == "  there is no whole event"

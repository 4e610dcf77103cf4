"""The reader of large files is judged: it sees one wrong event among many, whatever is wrong with it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.flow.faultlog import Fault, Log, Rules, Verdict
from tests.flow.reader import BEGIN_OF_RUN, END_OF_RUN, MESSAGE
from tests.flow.stream import check_stream

EVENTS = 1000
SOURCES = ("Trigger01", "Trigger02")
LOST = 700  # by Trigger02


def bank(name: str, tid: int, data: bytes) -> bytes:
    return struct.pack("<4sIII", name.encode(), tid, len(data), 0) + data.ljust((len(data) + 7) // 8 * 8, b"\0")


def event(serial: int, *banks: bytes) -> bytes:
    area = b"".join(banks)
    return struct.pack("<HHIII", 1, 0xFFFF, serial, 0, len(area) + 8) + struct.pack("<II", len(area), 0x31) + area


def identity(index: int, trigger: int, of: int | None = None) -> bytes:
    return bank(f"ID{index:02d}", 6, struct.pack("<II", index if of is None else of, trigger))


def complete(serial: int) -> bytes:
    return event(serial, identity(1, serial), bank("AD01", 4, bytes(10)), identity(2, serial))


def alone(serial: int, missing: bytes = b"Trigger02\0") -> bytes:
    return event(serial, identity(1, serial), bank("AD01", 4, bytes(10)), bank("MISS", 12, missing))


def border(event_id: int, text: bytes = b"odd") -> bytes:
    return struct.pack("<HHIII", event_id, 0x494D, 7, 0, len(text)) + text


EXPECTED = [complete(n) if n != LOST else alone(n) for n in range(EVENTS)]


def check(path: Path, events: list[bytes]) -> int:
    """Judge a file with these events, a message among them, against a log in which Trigger02 loses one."""
    middle = [*events[:300], border(MESSAGE), *events[300:]]
    path.write_bytes(b"".join([border(BEGIN_OF_RUN), *middle, border(END_OF_RUN)]))
    faults: list[list[Fault]] = [[], [Fault("drop", LOST, LOST, LOST, 1)]]
    logs = [
        Log(source, index, {"First serial": 0}, faults[index - 1], EVENTS - len(faults[index - 1]), True)
        for index, source in enumerate(SOURCES, start=1)
    ]
    verdict = Verdict(logs, {log.source: log.fragments for log in logs}, Rules())
    return check_stream(path, verdict, SOURCES)


def test_a_file_that_is_as_the_logs_say_is_read_to_its_last_event(tmp_path: Path) -> None:
    assert check(tmp_path / "run.mid", EXPECTED) == EVENTS


@pytest.mark.parametrize(
    ("at", "instead"),
    [
        (500, []),
        (999, []),
        (500, [complete(500), complete(500)]),
        (500, [complete(501)]),
        (500, [alone(500)]),
        (LOST, [complete(LOST)]),
        (LOST, [alone(LOST, b"Trigger03\0")]),
        (LOST, [event(LOST, identity(1, LOST))]),
        (500, [event(500, identity(1, 500), bank("AD01", 4, bytes(10)), identity(2, 501))]),
        (500, [event(500, identity(1, 500), bank("AD01", 4, bytes(10)), identity(2, 500, of=1))]),
        (500, [complete(500)[:-8]]),
    ],
    ids=[
        "one is not there",
        "the last is not there",
        "one is twice",
        "another number",
        "a fragment is not there",
        "a fragment too many",
        "MISS names another",
        "MISS is not there",
        "another trigger",
        "another source",
        "cut short",
    ],
)
def test_one_wrong_event_is_seen(tmp_path: Path, at: int, instead: list[bytes]) -> None:
    with pytest.raises((AssertionError, struct.error)):
        check(tmp_path / "run.mid", [*EXPECTED[:at], *instead, *EXPECTED[at + 1 :]])

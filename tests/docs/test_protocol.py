"""docs/protocol.md says the numbers that the code has."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from tests.docs.markdown import ROOT

from phloem.control.plan import DEFAULT_CAPACITY_BYTES
from phloem.kernel import RingWriter
from phloem.protocol.control import GONE_S, HEARTBEAT_S
from phloem.protocol.state import SEQUENCE

TEXT = (ROOT / "docs" / "protocol.md").read_text()
CAPACITY = 1 << 18


def fields(heading: str) -> dict[str, tuple[int, int]]:
    """Offset and width of each field in the first table after some words."""
    rows = re.findall(r"^\| (\d+) \| (\d+)[^|]*\| (\w+) \|", TEXT.split(heading)[1].split("\n\n")[1], re.MULTILINE)
    return {name: (int(offset), int(width)) for offset, width, name in rows}


def test_the_ring_is_laid_out_as_the_tables_say(tmp_path: Path) -> None:
    ring = tmp_path / "BUF01.Trigger01.ring"
    writer = RingWriter(str(ring), "Trigger01", "BUF01", CAPACITY, ["EB"])
    data = ring.read_bytes()
    header, slot = fields("### Layout"), fields("A slot:")

    def number(field: str) -> int:
        offset, width = header[field]
        return int(struct.unpack_from({4: "<I", 8: "<Q"}[width], data, offset)[0])

    def text(field: tuple[int, int], start: int = 0) -> str:
        offset, width = field
        return data[start + offset :][:width].rstrip(b"\0").decode()

    assert text(header["magic"]) == "PHLRING1"
    assert number("version") == 1
    assert number("capacity") == CAPACITY
    assert number("header_size") + CAPACITY == len(data)
    assert number("generation") == writer.generation
    assert (text(header["source"]), text(header["buffer"])) == ("Trigger01", "BUF01")
    slots, size = header["slots"]
    assert slots + number("n_slots") * size <= number("header_size")
    assert text(slot["name"], slots) == "EB"
    assert data[slots + slot["kind"][0]] == 1


def test_the_size_of_rings_is_the_default_of_the_plan() -> None:
    assert f"in bytes, {DEFAULT_CAPACITY_BYTES >> 20} MiB at first" in TEXT


def test_heartbeats_are_as_often_as_the_text_says() -> None:
    assert f"A heartbeat comes every {HEARTBEAT_S:g} s" in TEXT
    assert f"After {GONE_S:g} s without one" in " ".join(TEXT.split())


def test_the_sequence_numbers_are_those_of_the_state_table() -> None:
    kinds = re.findall(r"\w+", next(line for line in TEXT.splitlines() if line.startswith("| | logger")))
    for row, place in (("| PREPARE, BEGIN |", 0), ("| END, RELEASE |", 1)):
        line = next(line for line in TEXT.splitlines() if line.startswith(row))
        assert dict(zip(kinds, map(int, re.findall(r"\d+", line)), strict=True)) == {
            kind: numbers[place] for kind, numbers in SEQUENCE.items()
        }

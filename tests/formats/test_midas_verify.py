"""Each law has a test that breaks a file and sees the law complain; and cuts and flips at every byte."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.formats.run_files import GOLDEN, border, data_event, text, write_run

from phloem.formats.midas.events import decode_event, encode_event, walk
from phloem.formats.midas.index import (
    BlockRecord,
    CloseRecord,
    Journal,
    Record,
    RunRecord,
    StreamRecord,
    SubrunRecord,
    index_path,
    read_index,
)
from phloem.formats.midas.laws import sources_of, suspects, take_apart
from phloem.formats.midas.verify import Result, verify, verify_run
from phloem.model.errors import FormatError, NotFoundError
from phloem.model.event import TID, Bank, BankFormat, Event

EVENTS = [border(True), text(), *(data_event(n) for n in range(5)), border(False)]
STARTS = [sum(map(len, EVENTS[:n])) for n in range(len(EVENTS) + 1)]
SERIALS = [7, 0, 0, 1, 2, 3, 4, 7]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run of 8 events in 4 blocks."""
    path = tmp_path / "run00007.mid"
    write_run(path)
    assert path.read_bytes() == b"".join(EVENTS)
    return path


def laws(result: Result) -> set[str]:
    return {problem.law for problem in result.problems}


def texts(result: Result) -> str:
    return "\n".join(str(problem) for problem in result.problems)


def last_whole(cut: int) -> tuple[int, int] | None:
    whole = [n for n in range(len(EVENTS)) if STARTS[n + 1] <= cut]
    return (STARTS[whole[-1]], SERIALS[whole[-1]]) if whole else None


def test_a_whole_run_is_ok(run: Path) -> None:
    result = verify(run)
    assert result.ok
    assert (result.events, result.bytes, result.status) == (8, STARTS[-1], "complete")
    assert result.last_whole_event == (STARTS[7], 7, 0x8001)
    assert result.notes == ()


@pytest.mark.parametrize("indexed", [True, False])
def test_a_cut_at_every_byte_is_found_and_names_the_last_whole_event(run: Path, indexed: bool) -> None:
    content = run.read_bytes()
    if not indexed:
        index_path(run).unlink()
    for cut in range(len(content)):
        run.write_bytes(content[:cut])
        result = verify(run)
        assert not result.ok
        expected = last_whole(cut)
        assert (result.last_whole_event[:2] if result.last_whole_event else None) == expected
        assert result.events == sum(STARTS[n + 1] <= cut for n in range(8))
        assert result.bytes == cut


@pytest.mark.parametrize("suffix", [".gz", ".lz4", ".zst"])
def test_a_cut_at_every_byte_of_a_compressed_file_is_found(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run.mid{suffix}"
    write_run(path)
    content, told = path.read_bytes(), read_index(index_path(path)).blocks
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        result = verify(path)
        assert not result.ok
        whole = [block for block in told if block.offset + block.length <= cut]
        assert result.events >= sum(block.n_events for block in whole)
        if whole:
            assert result.last_whole_event is not None
            assert result.last_whole_event.offset >= whole[-1].raw_offset


def test_a_flip_of_every_byte_is_found_by_the_crc_of_its_block(run: Path) -> None:
    content, told = run.read_bytes(), read_index(index_path(run)).blocks
    for place in range(len(content)):
        for bit in (0x01, 0x80):
            run.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            problems = [p for p in verify(run).problems if "CRC32C" in p.text]
            block = next(block for block in told if block.offset <= place < block.offset + block.length)
            assert [p.offset for p in problems] == [block.offset]


@pytest.mark.parametrize("suffix", [".gz", ".lz4", ".zst"])
def test_a_flip_of_every_byte_of_a_compressed_file_is_found(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run.mid{suffix}"
    write_run(path)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :])
        assert "blocks" in laws(verify(path))


def test_a_flip_of_every_byte_of_the_index_is_found(run: Path) -> None:
    index, content = index_path(run), index_path(run).read_bytes()
    for place in range(len(content)):
        index.write_bytes(content[:place] + bytes([content[place] ^ 0x04]) + content[place + 1 :])
        result = verify(run)
        assert "index" in laws(result)
        assert result.last_whole_event == (STARTS[7], 7, 0x8001)
        assert result.events == 8


def test_a_cut_of_the_index_at_every_byte_is_found(run: Path) -> None:
    index, content = index_path(run), index_path(run).read_bytes()
    for cut in range(len(content)):
        index.write_bytes(content[:cut])
        result = verify(run)
        assert "index" in laws(result)
        assert result.events == 8


# One law after the other, in files without an index


def structure(tmp_path: Path, *events: bytes) -> Result:
    path = tmp_path / "run.mid"
    path.write_bytes(b"".join(events))
    return verify(path)


def test_without_an_index_the_structure_is_judged_and_that_is_said(tmp_path: Path) -> None:
    result = structure(tmp_path, *EVENTS)
    assert result.ok
    assert [note.text for note in result.notes] == ["no index beside the file: only its structure could be judged"]


def test_events_must_be_whole(tmp_path: Path) -> None:
    result = structure(tmp_path, border(True), data_event(0), data_event(1)[:-1])
    assert "whole" in laws(result)
    assert "byte 128: whole: event 0x0001 serial number 1 has 80 bytes by its header, and 79 are left" in texts(result)
    assert result.last_whole_event == (48, 0, 1)


DAMAGE: list[tuple[int, bytes, str]] = [
    (16, b"\x3f", "bank area has 63 bytes"),
    (20, b"\x30", "flags are 0x30"),
    (21, b"\x01", "flags are 0x131"),
    (24, b"\x1f", "not 4 printable"),
    (26, b"\x7f", "not 4 printable"),
    (27, b"\xe9", "not 4 printable"),
    (28, b"\x13", "type 19"),
    (29, b"\x01", "type 257"),
    (28, b"\x04\0\0\0\x03", "3 bytes, which is no multiple of 2"),
    (32, b"\x30", "48 bytes, padded 48, and 40 are left"),
    (32, b"\x18", "not 4 printable"),
    (35, b"\x80", "2147483650 bytes"),
    (12, b"\x04\0\0\0", "a bank area needs 8"),
]


@pytest.mark.parametrize(("offset", "new", "reason"), DAMAGE)
def test_banks_must_add_up(tmp_path: Path, offset: int, new: bytes, reason: str) -> None:
    event = bytearray(data_event(1))
    event[offset : offset + len(new)] = new
    if offset == 12:
        del event[20:]
    if "48 bytes, padded" in reason:
        event[28] = 1
    result = structure(tmp_path, border(True), data_event(0), bytes(event), data_event(2), border(False))
    assert laws(result) == {"banks"}
    assert reason in texts(result)
    assert result.problems[0].offset >= 128
    assert result.events == 5


def test_a_bank_header_at_the_very_end_is_judged(tmp_path: Path) -> None:
    for tid, ok in ((4, True), (19, False)):
        event = struct.pack("<HHIIIII4sHH", 1, 0, 0, 0, 16, 8, 0x01, b"NONE", tid, 0)
        result = structure(tmp_path, border(True), event)
        assert ("banks" in laws(result)) is not ok


MASKED = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)


@settings(max_examples=300)
@given(MASKED, st.sampled_from(list(BankFormat)))
def test_the_fast_look_at_banks_suspects_exactly_what_the_decoder_refuses(
    changes: list[tuple[int, int]], form: BankFormat
) -> None:
    data = bytearray(b"".join(data_event(n, n + 1, form=form) for n in range(4)))
    for place, value in changes:
        data[place % len(data)] = value
    offsets, end = walk(data)
    piece = take_apart("", 0, bytes(data[:end]), offsets, None)
    refused = []
    for number, offset in enumerate(offsets.tolist()):
        try:
            decode_event(piece.data, offset)
        except FormatError:
            refused.append(number)
    assert suspects(piece).tolist() == refused


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ((data_event(0), border(False)), "byte 0: borders: the first event is 0x0001, not the begin of run"),
        ((border(True), data_event(0)), "byte 128: borders: there is no end of run"),
        (
            (border(True), border(True), border(False)),
            "byte 48: borders: a begin of run that is not the first",
        ),
        ((border(True), border(False), data_event(0)), "byte 48: borders: 1 events after the end of run"),
        ((border(True), border(False), border(False)), "byte 96: borders: a second end of run"),
        ((border(True), border(False, 8)), "byte 48: borders: run number 8, expected 7"),
        ((), "byte 0: borders: there is no whole event"),
        (
            (border(True), border(False)[:2] + b"\0\0" + border(False)[4:]),
            "byte 48: borders: trigger mask 0x0000, expected 0x494d",
        ),
    ],
)
def test_borders_are_where_they_belong(tmp_path: Path, events: tuple[bytes, ...], complaint: str) -> None:
    result = structure(tmp_path, *events)
    assert laws(result) == {"borders"}
    assert complaint in texts(result)


def test_the_run_number_is_that_of_the_index(tmp_path: Path) -> None:
    path = tmp_path / "run.mid"
    rewritten(path, [border(True, 8), border(False, 8)])
    assert "run number 8, expected 7" in texts(verify(path))


def rewritten(
    path: Path, blocks: list[bytes], streams: int = 1, change: Callable[[Record], Record | None] | None = None
) -> None:
    """A file and its index record by record, each of which ``change`` may replace or leave out."""
    path.write_bytes(b"".join(blocks))
    records: list[Record] = [RunRecord(7, 0.0, "", ""), SubrunRecord(0, path.name)]
    records += [StreamRecord(number, f"stream{number}") for number in range(streams)]
    offset = events = 0
    for block in blocks:
        headers = [struct.unpack_from("<HHI", block, int(start)) for start in walk(block)[0]]
        serials = [serial for event_id, _, serial in headers if event_id < 0x8000] or [None]
        place = (offset, len(block), offset, len(block), crc(block))
        records.append(BlockRecord(0, *place, len(headers), serials[0], serials[-1]))
        offset, events = offset + len(block), events + len(headers)
    records.append(CloseRecord("complete", events, offset, b"{}"))
    index_path(path).unlink(missing_ok=True)
    journal = Journal.create(index_path(path))
    for record in records:
        new = change(record) if change else record
        if new is not None:
            journal.append(new)
    journal.close()


def crc(data: bytes) -> int:
    return int(crc32c.crc32c(data))


# Serial numbers


def serials_of(tmp_path: Path, *serials: int, streams: int = 1, event_id: int = 1) -> Result:
    path = tmp_path / "run.mid"
    data = b"".join(data_event(serial % (1 << 32), 0, event_id) for serial in serials)
    half = 56 * (len(serials) // 2)
    rewritten(path, [border(True), data[:half], data[half:], border(False)], streams)
    return verify(path)


def data_size() -> int:
    return len(data_event(0, 0))


def test_rising_serial_numbers_are_fine_across_the_wrap(tmp_path: Path) -> None:
    assert data_size() == 56
    result = serials_of(tmp_path, -3, -2, -1, 0, 1)
    assert result.ok, texts(result)
    assert result.notes == ()


@pytest.mark.parametrize(
    ("serials", "complaint"),
    [
        ((1, 2, 2, 3), "serial number 2 after 2"),
        ((5, 4, 6, 7), "serial number 4 after 5"),
        ((5, 6, 4, 7), "serial number 4 after 6"),
        ((0, -1, 0, 1), "serial number 4294967295 after 0"),
    ],
)
def test_serial_numbers_of_one_source_must_rise(tmp_path: Path, serials: tuple[int, ...], complaint: str) -> None:
    result = serials_of(tmp_path, *serials)
    assert laws(result) == {"serials"}
    assert f"event id 1 has {complaint}" in texts(result)


def test_gaps_are_told_and_are_no_damage(tmp_path: Path) -> None:
    result = serials_of(tmp_path, 0, 1, 4, 5, 10)
    assert result.ok
    assert [(note.law, note.offset, note.text) for note in result.notes] == [
        ("serials", 48 + 2 * 56, "event id 1: 6 serial numbers are absent in 2 gaps; the first is here")
    ]


def test_serial_numbers_of_several_streams_are_not_called_damage(tmp_path: Path) -> None:
    result = serials_of(tmp_path, 0, 0, 1, 1, 0, streams=2)
    assert result.ok
    assert "serial numbers are not judged" in result.notes[0].text


def odb_of(*equipment: tuple[int, str], logged: str = "SYSTEM") -> bytes:
    trees = {
        f"E{n}": {"Common": {"Event ID": event_id, "Buffer": buffer}} for n, (event_id, buffer) in enumerate(equipment)
    }
    logger = {"Channels": {"0": {"Settings": {"Buffer": logged}}}}
    return json.dumps({"Equipment": trees, "Logger": logger}).encode()


def test_sources_are_the_equipments_that_write_to_the_loggers_buffer() -> None:
    odb = odb_of((1, "BUF01"), (1, "BUF02"), (1, "SYSTEM"), (5, "SYSTEM"), (5, "SYSTEM"))
    assert sources_of(odb) == {1: 1, 5: 2}
    assert sources_of(odb_of((1, "BUF01"), (3, "OUT"), logged="OUT")) == {3: 1}
    assert sources_of(b"{}") == sources_of(b"not an ODB") == {}
    assert sources_of(b'{"Equipment": 5, "Logger": []}') == sources_of(b'{"Equipment": {"a": 1}}') == {}


def with_odb(tmp_path: Path, odb: bytes) -> Result:
    begin = struct.pack("<HHIII", 0x8000, 0x494D, 7, 0, len(odb) + 1) + odb + b"\0"
    return structure(tmp_path, begin, data_event(1), data_event(1), border(False))


def test_the_odb_of_the_run_tells_whether_an_event_id_has_one_source(tmp_path: Path) -> None:
    assert laws(with_odb(tmp_path, odb_of((1, "SYSTEM")))) == {"serials"}
    result = with_odb(tmp_path, odb_of((1, "SYSTEM"), (1, "SYSTEM")))
    assert result.ok
    assert "2 sources may give it" in result.notes[-1].text


def test_a_lost_trigger_in_a_file_of_midas_is_a_note_and_a_doubled_one_damage(tmp_path: Path) -> None:
    content = (GOLDEN / "built_2x50_bank16.mid").read_bytes()
    starts = walk(content)[0].tolist()
    events = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    lost = structure(tmp_path, *events[:10], *events[11:])
    assert lost.ok
    assert "1 serial numbers are absent in 1 gaps" in lost.notes[-1].text
    doubled = structure(tmp_path, *events[:11], *events[10:])
    assert "event id 1 has serial number 9 after 9" in texts(doubled)


# The index


def altered(path: Path, **values: object) -> Result:
    """The run with one value of its second block's record changed."""
    blocks = [EVENTS[0] + EVENTS[1], EVENTS[2] + EVENTS[3], b"".join(EVENTS[4:])]

    def change(record: Record) -> Record:
        if isinstance(record, BlockRecord) and record.offset == len(blocks[0]):
            return record._replace(**values)  # type: ignore[arg-type]
        return record

    rewritten(path, blocks, change=change)
    return verify(path)


@pytest.mark.parametrize(
    ("values", "law", "complaint"),
    [
        ({}, None, ""),
        ({"crc": 1}, "blocks", "the index says 0x00000001"),
        ({"n_events": 3}, "blocks", "has 2 events, the index says 3"),
        ({"raw_length": 161}, "blocks", "has 160 uncompressed bytes, the index says 161"),
        ({"first_serial": 1}, "blocks", "has (0, 1) as first and last serial number, the index says (1, 1)"),
        ({"last_serial": 9}, "blocks", "the index says (0, 9)"),
        ({"first_serial": None, "last_serial": None}, "blocks", "the index says (None, None)"),
        (
            {"offset": 89, "raw_offset": 89},
            "index",
            "a block begins at byte 89 (89 uncompressed), expected 88 (88)",
        ),
        ({"length": 100}, "index", "expected 188 (248)"),
        ({"n_events": 3}, "index", "says 8 events in"),
    ],
)
def test_file_and_index_agree(tmp_path: Path, values: dict[str, object], law: str | None, complaint: str) -> None:
    assert len(EVENTS[0] + EVENTS[1]) == 88
    result = altered(tmp_path / "run.mid", **values)
    assert result.ok == (law is None)
    found = "\n".join(problem.text for problem in result.problems if problem.law == law)
    assert complaint in found


def test_a_run_that_was_not_closed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.mid"
    write_run(path, close=False)
    result = verify(path)
    assert [problem.law for problem in result.problems] == ["index"]
    assert "the run is not closed" in texts(result)


def test_bytes_beyond_the_last_block_are_named_and_their_events_found(run: Path) -> None:
    with open(run, "ab") as file:
        file.write(data_event(9) + b"tail")
    result = verify(run)
    assert f"byte {STARTS[-1]}: index: 84 bytes are beyond the last block" in texts(result)
    assert result.last_whole_event == (STARTS[-1], 9, 1)
    assert {"index", "whole", "borders"} == laws(result)


def test_a_file_cut_at_a_block_border_misses_blocks(run: Path) -> None:
    os.truncate(run, STARTS[4])
    result = verify(run)
    assert f"the file ends at byte {STARTS[4]}; the index has 2 more blocks, up to byte {STARTS[-1]}" in texts(result)


def test_a_file_that_the_index_does_not_name_is_not_proved(run: Path) -> None:
    moved = run.with_name("run00008.mid")
    run.rename(moved)
    index_path(run).rename(index_path(moved))
    result = verify(moved)
    assert "it does not name the file run00008.mid" in texts(result)
    assert result.events == 8


def test_a_file_of_noise_has_a_bounded_list_of_problems(tmp_path: Path) -> None:
    bad = struct.pack("<HHIIIII", 1, 0, 5, 0, 8, 0, 0x77)
    result = structure(tmp_path, border(True), *(1500 * [bad]), border(False))
    assert len(result.problems) == 1000
    assert result.untold == 500


def test_large_events_with_many_banks_are_judged(tmp_path: Path) -> None:
    banks = tuple(Bank(f"B{n:03d}", TID.UINT32, np.arange(n, dtype=np.uint32)) for n in range(500))
    event = encode_event(Event(1, 0, 0, 0, 0, BankFormat.BANK32A, banks))
    assert structure(tmp_path, border(True), event, border(False)).ok
    broken = event[:-8] + b"\xff" * 8
    assert structure(tmp_path, border(True), broken, border(False)).ok  # padding and values are free
    assert len(event) > 500_000


def test_files_that_are_not_there_are_named(tmp_path: Path, run: Path) -> None:
    with pytest.raises(NotFoundError, match=r"there is no file .*nothing\.mid"):
        verify(tmp_path / "nothing.mid")
    run.unlink()
    with pytest.raises(NotFoundError, match=r"run00007\.mid"):
        verify_run(index_path(run))

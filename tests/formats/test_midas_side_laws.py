"""Each law of side files has a test that breaks one and sees the law complain; and cuts and flips at every byte."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import crc32c
import pytest
from tests.formats.run_files import border, data_event, late_event, quarantined_event

from phloem.formats.midas.index import (
    BlockRecord,
    CloseRecord,
    Journal,
    Record,
    RunRecord,
    SideRecord,
    StreamRecord,
    SubrunRecord,
)
from phloem.formats.midas.verify import Result, verify, verify_run
from phloem.formats.midas.writer import RunWriter
from phloem.model.errors import NotFoundError

EVENTS = [late_event(n) for n in (1, 2, 3)]
SIZE = 72  # of each: header 16, bank area 8, two banks of 16 + 8
STRETCHES = [EVENTS[0], EVENTS[1] + EVENTS[2]]


@pytest.fixture
def late(tmp_path: Path) -> Path:
    """The late fragments of a whole run: three events in two stretches. There is one in quarantine, too."""
    assert [len(event) for event in EVENTS] == [SIZE, SIZE, SIZE]
    writer = RunWriter(tmp_path / "run00007.mid", 7)
    writer.write(border(True), 1, None, None)
    writer.write_side("late", STRETCHES[0], 1)
    writer.write_side("quarantine", quarantined_event(), 1)
    writer.write(data_event(0), 1, 0, 0)
    writer.write_side("late", STRETCHES[1], 2)
    writer.write(border(False), 1, None, None)
    writer.close("complete")
    return tmp_path / "run00007.late.mid"


def laws(result: Result) -> set[str]:
    return {problem.law for problem in result.problems}


def texts(result: Result) -> list[str]:
    return [f"byte {problem.offset}: {problem.law}: {problem.text}" for problem in result.problems]


def test_a_whole_side_file_is_proved_through_its_runs_index(late: Path) -> None:
    result = verify(late)
    assert result.ok, texts(result)
    assert (result.events, result.bytes, result.status, result.notes) == (3, 3 * SIZE, "complete", ())
    assert result.index == str(late.with_name("run00007.idx"))
    assert result.last_whole_event == (2 * SIZE, 3, 1)
    assert verify(late.with_name("run00007.quarantine.mid")).ok


def test_a_run_is_proved_with_its_side_files(late: Path) -> None:
    results = verify_run(late.with_name("run00007.idx"))
    names = [Path(result.path).name for result in results]
    assert names == ["run00007.mid", "run00007.late.mid", "run00007.quarantine.mid"]
    assert [(result.ok, result.events) for result in results] == [(True, 3), (True, 3), (True, 1)]


def test_a_flip_of_every_byte_is_found_by_the_crc_of_its_stretch(late: Path) -> None:
    content = late.read_bytes()
    for place in range(len(content)):
        for bit in (0x01, 0x80):
            late.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            found = [problem.offset for problem in verify(late).problems if "CRC32C" in problem.text]
            assert found == [0 if place < SIZE else SIZE]


def test_a_cut_at_every_byte_is_found_and_names_the_last_whole_event(late: Path) -> None:
    content = late.read_bytes()
    for cut in range(len(content)):
        late.write_bytes(content[:cut])
        result = verify(late)
        assert {"length", "stretches"} <= laws(result)
        assert f"byte {cut}: length: the file ends at byte {cut}; the index has stretches up to byte 216" in texts(
            result
        )
        assert ("whole" in laws(result)) == (cut % SIZE > 0)
        assert result.events == cut // SIZE
        last = (cut // SIZE - 1) * SIZE, cut // SIZE, 1
        assert result.last_whole_event == (last if cut >= SIZE else None)


def test_a_flip_or_cut_of_the_index_at_every_byte_is_found(late: Path) -> None:
    index = late.with_name("run00007.idx")
    content = index.read_bytes()
    for place in range(len(content)):
        for damaged in (content[:place] + bytes([content[place] ^ 0x04]) + content[place + 1 :], content[:place]):
            index.write_bytes(damaged)
            result = verify(late)
            assert "index" in laws(result)
            assert not laws(result) - {"index"}


def test_a_side_file_that_is_gone_is_named(late: Path) -> None:
    late.unlink()
    complaint = "byte 0: exists: the file does not exist; the index tells of 3 events in 216 bytes"
    assert texts(verify(late)) == [complaint]
    assert [texts(result) for result in verify_run(late.with_name("run00007.idx"))] == [[], [complaint], []]


def test_a_side_file_that_never_was_is_not_there(late: Path, tmp_path: Path) -> None:
    late.with_name("run00007.idx").unlink()
    late.unlink()
    with pytest.raises(NotFoundError, match=r"there is no file .*run00007\.late\.mid"):
        verify(late)


def test_bytes_beyond_the_last_stretch_of_a_closed_run_are_damage(late: Path) -> None:
    with open(late, "ab") as file:
        file.write(late_event(4))
    complaint = "byte 216: length: 72 bytes are beyond the last stretch of the index, which ends at byte 216"
    assert texts(verify(late)) == [complaint]


def test_bytes_beyond_the_last_stretch_of_an_open_run_are_a_note(tmp_path: Path) -> None:
    """Those whose block has not been written yet, and those without a record."""
    writer = RunWriter(tmp_path / "run.mid", 7)
    writer.write_side("late", STRETCHES[0], 1)
    writer.write(border(True), 1, None, None)
    writer.write_side("late", STRETCHES[1], 2)
    writer.write_side("quarantine", quarantined_event(), 1)
    writer.abandon()
    with open(tmp_path / "run.late.mid", "ab") as file:
        file.write(b"torn")
    result = verify(tmp_path / "run.late.mid")
    assert [problem.text for problem in result.problems] == ["the run is not closed: no record says how it ended"]
    assert [(note.law, note.offset, note.text) for note in result.notes] == [
        (
            "length",
            72,
            "148 bytes are beyond the last stretch of the index, which ends at byte 72; the run is open",
        )
    ]
    assert (result.events, result.bytes) == (1, 220)
    result = verify(tmp_path / "run.quarantine.mid")
    assert laws(result) == {"index"}
    assert [note.law for note in result.notes] == ["length"]


def rewritten(folder: Path, data: bytes, *sides: SideRecord) -> Result:
    """A closed run whose side file has these bytes, and these records in the index."""
    (folder / "run.late.mid").write_bytes(data)
    main = border(True) + border(False)
    (folder / "run.mid").write_bytes(main)
    records: list[Record] = [RunRecord(7, 0.0, "", ""), SubrunRecord(0, "run.mid"), StreamRecord(0, "EB"), *sides]
    size = len(main)
    records.append(BlockRecord(0, 0, size, 0, size, crc(main), 2, None, None))
    records.append(CloseRecord("complete", 2, size, b"{}"))
    journal = Journal.create(folder / "run.idx")
    for record in records:
        journal.append(record)
    journal.close()
    assert verify(folder / "run.mid").ok
    return verify(folder / "run.late.mid")


def crc(data: bytes) -> int:
    return int(crc32c.crc32c(data))


DATA = b"".join(EVENTS)


@pytest.mark.parametrize(
    ("change", "complaints"),
    [
        (lambda side: side, []),
        (
            lambda side: side._replace(n_events=3),
            ["byte 72: counts: stretch at byte 72 has 2 events, the index says 3"],
        ),
        (
            lambda side: side._replace(crc=1),
            [
                f"byte 72: stretches: stretch at byte 72, 144 bytes: CRC32C is {crc(STRETCHES[1]):#010x}, "
                "the index says 0x00000001"
            ],
        ),
        (
            lambda side: side._replace(length=72, crc=crc(EVENTS[1]), n_events=1),
            ["byte 144: length: 72 bytes are beyond the last stretch of the index, which ends at byte 144"],
        ),
        (
            lambda side: side._replace(offset=144, length=72, crc=crc(EVENTS[2]), n_events=1),
            ["byte 144: length: a stretch of 72 bytes begins at byte 144, expected 72"],
        ),
        (
            lambda side: side._replace(offset=0, length=216, crc=crc(DATA), n_events=3),
            ["byte 0: length: a stretch of 216 bytes begins at byte 0, expected 72"],
        ),
        (
            lambda side: side._replace(length=145),
            [
                "byte 216: length: the file ends at byte 216; the index has stretches up to byte 217",
                "byte 72: stretches: stretch at byte 72, 145 bytes: the file has 144 of them",
            ],
        ),
    ],
)
def test_side_file_and_index_agree(
    tmp_path: Path, change: Callable[[SideRecord], SideRecord], complaints: list[str]
) -> None:
    first = SideRecord("run.late.mid", 0, 72, crc(STRETCHES[0]), 1)
    second = SideRecord("run.late.mid", 72, 144, crc(STRETCHES[1]), 2)
    assert texts(rewritten(tmp_path, DATA, first, change(second))) == complaints


def test_a_stretch_holds_whole_events(tmp_path: Path) -> None:
    data = DATA[:-8]
    result = rewritten(tmp_path, data, SideRecord("run.late.mid", 0, len(data), crc(data), 2))
    assert texts(result) == [
        "byte 144: whole: event 0x0001 serial number 3 has 72 bytes by its header, and 64 are left"
    ]


def test_the_banks_of_events_in_a_stretch_add_up(tmp_path: Path) -> None:
    data = bytearray(DATA)
    data[SIZE + 28] = 19  # type of the second event's first bank
    result = rewritten(tmp_path, bytes(data), SideRecord("run.late.mid", 0, 216, crc(bytes(data)), 3))
    assert texts(result) == ["byte 96: banks: bank type 19 is not a MIDAS type, which are 1 to 18"]


# A side file alone


def test_a_side_file_without_an_index_is_judged_by_its_structure_and_not_as_a_run(late: Path) -> None:
    late.with_name("run00007.idx").unlink()
    result = verify(late)
    assert result.ok, texts(result)
    assert [note.text for note in result.notes] == ["no index beside the file: only its structure could be judged"]
    os.truncate(late, 84)
    assert texts(verify(late)) == ["byte 72: whole: 12 bytes are left, and an event header needs 16"]


def test_a_side_file_that_the_index_does_not_name_is_not_proved(late: Path) -> None:
    for path in (late.with_name("run00007.idx"), late.with_name("run00007.mid"), late):
        path.rename(path.with_name(path.name.replace("run00007", "run00008")))
    result = verify(late.with_name("run00008.late.mid"))
    assert texts(result) == ["byte 0: index: it does not name the file run00008.late.mid"]
    assert result.events == 3


def test_a_side_file_of_a_run_with_subruns_is_proved_through_the_runs_index(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run00007_0.mid", 7, index=tmp_path / "run00007.idx")
    writer.write(border(True), 1, None, None)
    writer.rotate(tmp_path / "run00007_1.mid")
    writer.write_side("late", STRETCHES[0], 1)
    writer.write(border(False), 1, None, None)
    writer.close("complete")
    result = verify(tmp_path / "run00007_0.late.mid")
    assert (result.ok, result.index) == (True, str(tmp_path / "run00007.idx"))
    assert len(verify_run(tmp_path / "run00007.idx")) == 3


def test_a_run_file_that_is_named_like_a_side_file_is_judged_as_a_run(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.late.mid", 7)
    writer.write(border(True), 1, None, None)
    writer.close("complete")
    assert "there is no end of run" in texts(verify(tmp_path / "run.late.mid"))[0]


def test_zeros_that_a_writer_put_for_lost_bytes_are_damage(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    writer.write_side("late", DATA, 3)
    writer.write(border(True), 1, None, None)
    writer.abandon()
    os.truncate(tmp_path / "run.late.mid", 0)
    writer, _ = RunWriter.resume(tmp_path / "run.idx")
    writer.write(border(False), 1, None, None)
    writer.close("complete")
    assert {"stretches", "counts", "banks"} <= laws(verify(tmp_path / "run.late.mid"))
    assert verify(tmp_path / "run.mid").ok

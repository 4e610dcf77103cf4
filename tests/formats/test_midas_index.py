"""The index: records written out by hand, every torn end, and how an index is found."""

from __future__ import annotations

import struct
from pathlib import Path

import crc32c
import pytest

from phloem.formats.base import Mark, Position
from phloem.formats.midas.index import (
    BlockRecord,
    CloseRecord,
    Journal,
    Record,
    RunRecord,
    SideRecord,
    StreamRecord,
    SubrunRecord,
    find_index,
    index_path,
    read_index,
)
from phloem.model.errors import NotFoundError, SettingsError

RECORDS: tuple[Record, ...] = (
    RunRecord(42, 1.5, "phloem 0.1", "run%05d.mid"),
    SubrunRecord(0, "run00042.mid"),
    StreamRecord(0, "EB"),
    BlockRecord(0, 0, 100, 0, 300, 0xDEADBEEF, 3, None, None),
    BlockRecord(0, 100, 50, 300, 60, 7, 2, 4294967295, 0, ((0, 1 << 60, 5, 2),)),
    Mark("Trigger01", 17, 18, "silence", b"\x00\x01"),
    CloseRecord("complete", 5, 150, b'{"streams":{}}'),
)


def record(kind: int, sequence: int, payload: bytes) -> bytes:
    data = struct.pack("<4sHHIQ", b"PIDX", kind, 1, len(payload), sequence) + payload
    return data + struct.pack("<I", crc32c.crc32c(data))


HAND = (
    record(1, 0, struct.pack("<Id", 42, 1.5) + b"\x0a\0phloem 0.1" + b"\x0b\0run%05d.mid"),
    record(2, 1, struct.pack("<I", 0) + b"\x0c\0run00042.mid"),
    record(3, 2, struct.pack("<H", 0) + b"\x02\0EB"),
    record(4, 3, struct.pack("<IIQQQQIIIIH", 0, 0, 0, 100, 0, 300, 0xDEADBEEF, 3, 0, 0, 0)),
    record(
        4,
        4,
        struct.pack("<IIQQQQIIIIH", 0, 1, 100, 50, 300, 60, 7, 2, 0xFFFFFFFF, 0, 1)
        + struct.pack("<HQQQ", 0, 1 << 60, 5, 2),
    ),
    record(5, 5, b"\x09\0Trigger01" + struct.pack("<II", 17, 18) + b"\x07\0silence" + b"\x02\0\0\0\x00\x01"),
    record(6, 6, b"\x08\0complete" + struct.pack("<QQ", 5, 150) + b"\x0e\0\0\0" + b'{"streams":{}}'),
)


def written(path: Path) -> bytes:
    journal = Journal.create(path)
    for each in RECORDS:
        journal.append(each)
    journal.close()
    return path.read_bytes()


# Two stretches, of which a block follows the first, and then the close.
SIDE_RECORDS: tuple[Record, ...] = (
    SideRecord("run00042.late.mid", 72, 144, 0xFEEDBEEF, 2),
    BlockRecord(0, 150, 8, 360, 8, 1, 0, None, None),
    SideRecord("run00042.quarantine.mid", 1 << 33, 8, 9, 1),
    CloseRecord("complete", 5, 158, b"{}"),
)
SIDE_HAND = (
    *HAND[:6],
    record(7, 6, b"\x11\0run00042.late.mid" + struct.pack("<QQII", 72, 144, 0xFEEDBEEF, 2)),
    record(4, 7, struct.pack("<IIQQQQIIIIH", 0, 0, 150, 8, 360, 8, 1, 0, 0, 0, 0)),
    record(7, 8, b"\x17\0run00042.quarantine.mid" + struct.pack("<QQII", 1 << 33, 8, 9, 1)),
    record(6, 9, b"\x08\0complete" + struct.pack("<QQ", 5, 158) + b"\x02\0\0\0" + b"{}"),
)


def test_records_are_the_bytes_written_by_hand(tmp_path: Path) -> None:
    assert written(tmp_path / "run.idx") == b"".join(HAND)


def test_records_of_side_files_are_the_bytes_written_by_hand(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "run.idx")
    for each in (*RECORDS[:6], *SIDE_RECORDS):
        journal.append(each)
    journal.close()
    assert (tmp_path / "run.idx").read_bytes() == b"".join(SIDE_HAND)


def test_a_stretch_of_a_side_file_counts_once_a_block_or_the_close_follows(tmp_path: Path) -> None:
    late, quarantine = SIDE_RECORDS[0], SIDE_RECORDS[2]
    at = [sum(map(len, SIDE_HAND[:n])) for n in range(len(SIDE_HAND) + 1)]
    for n_records, sides, waiting, waiting_from in (
        (6, [], [], 0),
        (7, [], [late], at[6]),
        (8, [late], [], at[6]),
        (9, [late], [quarantine], at[8]),
        (10, [late, quarantine], [], at[8]),
    ):
        (tmp_path / "run.idx").write_bytes(b"".join(SIDE_HAND[:n_records]))
        index = read_index(tmp_path / "run.idx")
        assert (index.damage, index.sides, index.waiting, index.waiting_from) == (None, sides, waiting, waiting_from)
        assert index.end == at[n_records]
        assert index.files() == {"run00042.mid", *(side.file for side in (*sides, *waiting))}  # type: ignore[union-attr]
    assert index.side_files() == ["run00042.late.mid", "run00042.quarantine.mid"]
    assert index.sides_of("run00042.late.mid") == [late]


def test_a_flip_or_cut_at_any_byte_of_a_side_record_is_found(tmp_path: Path) -> None:
    path, data = tmp_path / "run.idx", b"".join(SIDE_HAND[:7])
    for place in range(len(data) - len(SIDE_HAND[6]), len(data)):
        for damaged in (data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], data[:place]):
            path.write_bytes(damaged)
            index = read_index(path)
            assert (index.records, index.waiting) == (6, [])
            assert (index.damage is None) == (len(damaged) == index.end)


def test_the_reader_gives_back_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "run00042.idx"
    path.write_bytes(b"".join(HAND))
    index = read_index(path)
    assert index.run == RECORDS[0]
    assert index.subruns == [RECORDS[1]]
    assert index.streams == {0: "EB"}
    assert index.blocks == list(RECORDS[3:5])
    assert index.marks == [RECORDS[5]]
    assert index.close == RECORDS[6]
    assert index.account() == {"streams": {}}
    assert index.positions() == {"EB": Position("EB", 1 << 60, 5, 2)}
    assert (index.damage, index.torn, index.records, index.end) == (None, False, 7, len(b"".join(HAND)))
    assert index.places == [sum(map(len, HAND[:3])), sum(map(len, HAND[:4]))]


def test_a_cut_at_any_byte_keeps_the_whole_records_and_reports_the_torn_one(tmp_path: Path) -> None:
    path, data = tmp_path / "run.idx", b"".join(HAND)
    borders = [sum(map(len, HAND[:n])) for n in range(len(HAND) + 1)]
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        index = read_index(path)
        whole = max(border for border in borders if border <= cut)
        assert index.end == whole
        assert index.records == borders.index(whole)
        assert (index.damage is None) == (cut in borders)
        assert index.torn == (cut not in borders)
        assert index.close is None


def test_a_flip_of_any_byte_is_found_and_ends_the_reading_there(tmp_path: Path) -> None:
    path, data = tmp_path / "run.idx", b"".join(HAND)
    last = len(data) - len(HAND[-1])
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        index = read_index(path)
        assert index.damage is not None
        assert index.end <= place
        assert index.torn == (place >= last)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HAND[1], "expected number 0"),
        (HAND[0] + record(1, 1, HAND[0][20:-4]), "no other, is the run's"),
        (record(2, 0, HAND[1][20:-4]), "the first record"),
        (HAND[0] + record(9, 1, b""), "kind 9"),
        (HAND[0] + record(2, 1, HAND[1][20:-4] + b"x"), "payload has 19 bytes, expected 18"),
        (HAND[0] + record(2, 1, HAND[1][20:-5]), "expected 18 or more"),
        (HAND[0] + HAND[1] + record(4, 2, HAND[4][20:-4]), r"streams \[0\]: not defined"),
        (HAND[0] + record(7, 1, SIDE_HAND[6][20:-4] + b"x"), "payload has 44 bytes, expected 43"),
        (HAND[0] + record(7, 1, SIDE_HAND[6][20:-5]), "payload has 42 bytes, expected 43 or more"),
        (HAND[0] + record(4, 1, HAND[3][20:-4]), "subrun 0"),
    ],
)
def test_whole_records_that_make_no_sense_are_damage(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "run.idx"
    path.write_bytes(data)
    damage = read_index(path).damage
    assert damage is not None
    with pytest.raises(type(damage), match=reason):
        raise damage


def test_records_after_a_close_open_the_run_again(tmp_path: Path) -> None:
    path = tmp_path / "run.idx"
    path.write_bytes(b"".join(HAND) + record(5, 7, HAND[5][20:-4]))
    assert read_index(path).close is None


def test_an_index_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.idx"
    path.write_bytes(b"precious")
    with pytest.raises(SettingsError, match=r"run\.idx exists and is not overwritten"):
        Journal.create(path)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["run1.mid", "run1.mid.gz", "run1.mid.lz4", "run1.mid.zst"])
def test_an_index_is_beside_the_file_and_bears_its_name(tmp_path: Path, name: str) -> None:
    assert index_path(tmp_path / name) == tmp_path / "run1.idx"
    assert find_index(tmp_path / name) is None
    (tmp_path / "run1.idx").write_bytes(b"")
    assert find_index(tmp_path / name) == tmp_path / "run1.idx"


def test_the_index_of_a_subrun_is_the_one_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "run.idx").write_bytes(b"")
    (tmp_path / "run00042.idx").write_bytes(HAND[0] + HAND[1] + record(2, 2, b"\1\0\0\0\x0e\0run00042_1.mid"))
    assert find_index(tmp_path / "run00042_1.mid") == tmp_path / "run00042.idx"
    assert find_index(tmp_path / "run00042_2.mid") is None


def test_the_index_of_a_side_file_is_that_of_its_run(tmp_path: Path) -> None:
    assert find_index(tmp_path / "run00042.late.mid") is None
    (tmp_path / "run00042.idx").write_bytes(b"")  # damaged: it names nothing
    assert find_index(tmp_path / "run00042.late.mid") == tmp_path / "run00042.idx"
    assert find_index(tmp_path / "run00042.early.mid") is None
    # Named after the first file of a run with subruns, whose index bears another name.
    name = b"run00042_0.quarantine.mid"
    side = record(7, 2, len(name).to_bytes(2, "little") + name + bytes(24))
    (tmp_path / "run00042.idx").write_bytes(HAND[0] + HAND[1] + side)
    assert find_index(tmp_path / name.decode()) == tmp_path / "run00042.idx"
    assert find_index(tmp_path / "run00042_0.late.mid") is None


def test_an_index_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.idx"):
        read_index(tmp_path / "nothing.idx")

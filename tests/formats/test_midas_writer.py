"""Writing runs: the bytes in file and index, disks that fill up, rotation, and going on after a kill."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import crc32c
import pytest
from tests.formats.run_files import border, data_event, text, write_run

from phloem.formats.base import Mark, Position, RunFile
from phloem.formats.midas.file import read_bytes, read_raw
from phloem.formats.midas.index import index_path, read_index
from phloem.formats.midas.verify import verify, verify_run
from phloem.formats.midas.writer import RunWriter
from phloem.model.errors import FormatError, SettingsError

BLOCKS = [
    border(True) + text(),
    data_event(0) + data_event(1),
    data_event(2) + data_event(3) + data_event(4),
    border(False),
]


def test_file_and_index_hold_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run00007.mid"
    write_run(path)
    assert path.read_bytes() == b"".join(BLOCKS)
    index = read_index(index_path(path))
    assert index.run is not None
    assert index.run[:] == (7, 1_700_000_000.0, "test", "run%05d.mid")
    assert [subrun.file for subrun in index.subruns] == ["run00007.mid"]
    offset = 0
    for block, content, n_events in zip(index.blocks, BLOCKS, (2, 2, 3, 1), strict=True):
        assert (block.offset, block.length) == (block.raw_offset, block.raw_length) == (offset, len(content))
        assert (block.crc, block.n_events) == (crc32c.crc32c(content), n_events)
        offset += len(content)
    serials = [(block.first_serial, block.last_serial) for block in index.blocks]
    assert serials == [(None, None), (0, 1), (2, 4), (None, None)]
    assert index.positions() == {"EB": Position("EB", 11, 1, 5)}
    assert index.close is not None
    assert index.close[:3] == ("complete", 8, offset)
    assert index.account() == {"streams": {"EB": {"sent": 5, "written": 5, "lost": 0}}}


def test_a_run_writer_is_a_run_file(tmp_path: Path) -> None:
    file: RunFile = RunWriter(tmp_path / "run.mid", 1)
    file.mark(Mark("Trigger01", 4, 9, "silence", b"x"))
    file.close("released")
    index = read_index(tmp_path / "run.idx")
    assert index.marks == [Mark("Trigger01", 4, 9, "silence", b"x")]
    assert index.close is not None
    assert index.close.status == "released"


def test_blocks_larger_than_a_piece_and_of_any_kind_of_buffer_are_written(tmp_path: Path) -> None:
    large = data_event(0, 40_000) * 2
    writer = RunWriter(tmp_path / "run.mid", 1)
    writer.write([bytearray(large), memoryview(large)[16:], b""], 4, 0, 0)
    writer.write(memoryview(large), 2, 0, 0)
    writer.close("complete")
    assert (tmp_path / "run.mid").read_bytes() == large + large[16:] + large
    assert writer.bytes == 3 * len(large) - 16


@pytest.mark.parametrize("name", ["run.mid", "run.idx"])
def test_an_existing_file_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(SettingsError, match=f"{name} exists and is not overwritten"):
        RunWriter(tmp_path / "run.mid", 1)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"precious")]


def test_an_unknown_fsync_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="choose one of never, close, block"):
        RunWriter(tmp_path / "run.mid", 1, fsync="sometimes")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


PWRITE = os.pwrite


class Disk:
    """Stands for os.pwrite: writes as long as ``room`` bytes are left, in steps of at most ``step``."""

    def __init__(self, room: int, step: int = 1 << 30) -> None:
        self.room = room
        self.step = step

    def __call__(self, fd: int, data: Any, offset: int) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        size = min(len(data), self.room, self.step)
        self.room -= size
        return PWRITE(fd, memoryview(data)[:size], offset)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", Disk(1 << 30, step=7))
    write_run(tmp_path / "run.mid")
    assert (tmp_path / "run.mid").read_bytes() == b"".join(BLOCKS)
    assert verify(tmp_path / "run.mid").ok


@pytest.mark.parametrize("fsync", ["never", "block"])
def test_a_full_disk_at_any_byte_is_an_error_that_can_be_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Any
) -> None:
    block = data_event(2) + data_event(3)
    for room in range(len(block) + 100):
        path = tmp_path / f"run{room}.mid"
        disk = Disk(1 << 30)
        monkeypatch.setattr(os, "pwrite", disk)
        writer = RunWriter(path, 7, fsync=fsync)
        writer.write(border(True), 1, None, None)
        before, disk.room = writer.file_bytes, room
        with pytest.raises(OSError, match="No space left"):
            writer.write(block, 2, 2, 3, [Position("EB", 1, 1, 2)])
        assert writer.file_bytes == before == path.stat().st_size
        disk.room = 1 << 30
        writer.write(block, 2, 2, 3, [Position("EB", 1, 1, 2)])
        writer.write(border(False), 1, None, None)
        writer.close("complete")
        assert path.read_bytes() == border(True) + block + border(False)
        assert verify(path).ok


def test_a_sync_that_fails_takes_the_block_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.mid"
    writer = RunWriter(path, 7, fsync="block")
    writer.write(border(True), 1, None, None)
    calls, fdatasync = [0], os.fdatasync

    def failing(fd: int) -> None:
        calls[0] += 1
        if calls[0] in (1, 3):  # first the file's, then, at the second try, the index's
            raise OSError(errno.EIO, "Input/output error")
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", failing)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            writer.write(data_event(0), 1, 0, 0)
        assert path.stat().st_size == writer.file_bytes == len(border(True))
    writer.write(data_event(0), 1, 0, 0)
    writer.write(border(False), 1, None, None)
    writer.close("complete")
    assert verify(path).ok
    assert len(list(read_raw(path))) == 3


@pytest.mark.parametrize(("fsync", "synced"), [("never", 0), ("close", 1), ("block", 5)])
def test_the_fsync_policy_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Any, synced: int) -> None:
    files: list[str] = []
    for name in ("fsync", "fdatasync"):
        original = getattr(os, name)

        def noted(fd: int, original: Any = original) -> None:
            files.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
            original(fd)

        monkeypatch.setattr(os, name, noted)
    write_run(tmp_path / "run.mid", fsync=fsync)
    assert files.count("run.mid") == files.count("run.idx") == synced
    assert (files[-1:] == [tmp_path.name]) == (fsync != "never")


@pytest.mark.parametrize("suffix", ["", ".gz", ".lz4", ".zst"])
def test_compressed_runs_have_one_member_per_block(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run.mid{suffix}"
    write_run(path)
    assert b"".join(read_bytes(path)) == b"".join(BLOCKS)
    index = read_index(index_path(path))
    for block, content in zip(index.blocks, BLOCKS, strict=True):
        assert next(read_bytes(path, block.offset)).startswith(content)
    result = verify(path)
    assert result.ok, result.problems
    assert (result.events, result.bytes, result.index) == (8, path.stat().st_size, str(index_path(path)))


def test_rotation_loses_nothing_and_the_run_has_one_index(tmp_path: Path) -> None:
    files = [tmp_path / f"run00007_{n}.mid" for n in range(3)]
    writer = RunWriter(files[0], 7, index=tmp_path / "run00007.idx")
    writer.write(BLOCKS[0], 2, None, None)
    writer.rotate(files[1])
    writer.write(BLOCKS[1], 2, 0, 1, [Position("EB", 1, 0, 2)])
    writer.write(BLOCKS[2], 3, 2, 4, [Position("EB", 1, 1, 5)])
    with pytest.raises(SettingsError, match=r"run00007_0\.mid exists"):
        writer.rotate(files[0])
    writer.rotate(files[2])
    writer.write(BLOCKS[3], 1, None, None)
    writer.close("complete")
    assert [path.read_bytes() for path in files] == [BLOCKS[0], BLOCKS[1] + BLOCKS[2], BLOCKS[3]]
    results = verify_run(tmp_path / "run00007.idx")
    assert [(result.ok, result.events) for result in results] == [(True, 2), (True, 5), (True, 1)]
    assert [verify(path).ok for path in files] == [True, True, True]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files} | {"run00007.idx"}


def test_a_file_in_another_folder_is_refused(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    with pytest.raises(SettingsError, match="not in the folder"):
        writer.rotate(tmp_path / "other" / "run_1.mid")
    writer.abandon()
    writer.abandon()


def finished(index: Path) -> None:
    """Resume, write what is missing of `BLOCKS`, and close."""
    writer, state = RunWriter.resume(index)
    done = len(state.blocks)
    numbers = ((2, None, None), (2, 0, 1), (3, 2, 4), (1, None, None))
    for number in range(done, 4):
        positions = [Position("EB", 1, number, number)] if number in (1, 2) else []
        n_events, first, last = numbers[number]
        writer.write(BLOCKS[number], n_events, first, last, positions)
    writer.close("complete")


def test_a_writer_that_was_killed_at_any_byte_of_the_file_goes_on_in_it(tmp_path: Path) -> None:
    """The block's bytes come before its record: cut the file, and the index to the blocks that were whole."""
    ends = [sum(map(len, BLOCKS[:n])) for n in range(5)]
    for cut in range(0, ends[-1] + 1, 5):
        folder = tmp_path / str(cut)
        folder.mkdir()
        path = folder / "run.mid"
        write_run(path, close=False)
        state = read_index(folder / "run.idx")
        os.truncate(path, cut)
        whole = max(n for n in range(5) if ends[n] <= cut)
        if whole < 4:
            os.truncate(folder / "run.idx", state.places[whole])
        finished(folder / "run.idx")
        assert path.read_bytes() == b"".join(BLOCKS)
        assert verify(path).ok


def test_a_writer_that_was_killed_at_any_byte_of_the_index_goes_on(tmp_path: Path) -> None:
    write_run(tmp_path / "model.mid", close=False)
    index, content = (tmp_path / "model.idx").read_bytes(), (tmp_path / "model.mid").read_bytes()
    first = read_index(tmp_path / "model.idx").places[0]
    path = tmp_path / "model.mid"
    for cut in range(first, len(index) + 1):
        path.write_bytes(content)
        (tmp_path / "model.idx").write_bytes(index[:cut])
        finished(tmp_path / "model.idx")
        assert path.read_bytes() == content
        assert verify(path).ok


def test_blocks_that_did_not_reach_the_disk_are_dropped(tmp_path: Path) -> None:
    """A loss of power may leave a record without its block: the index is cut where the bytes are wrong."""
    path = tmp_path / "run.mid"
    write_run(path, close=False)
    data = bytearray(path.read_bytes())
    data[len(BLOCKS[0]) + 3] ^= 1
    path.write_bytes(data)
    writer, state = RunWriter.resume(tmp_path / "run.idx")
    assert (len(state.blocks), writer.events, writer.bytes) == (1, 2, len(BLOCKS[0]))
    writer.abandon()
    finished(tmp_path / "run.idx")
    assert verify(path).ok


def test_a_kill_between_record_and_file_of_a_rotation_is_continued(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    writer.write(BLOCKS[0], 2, None, None)
    writer.rotate(tmp_path / "run_1.mid")
    writer.abandon()
    (tmp_path / "run_1.mid").unlink()
    finished(tmp_path / "run.idx")
    assert (tmp_path / "run_1.mid").read_bytes() == b"".join(BLOCKS[1:])
    assert all(result.ok for result in verify_run(tmp_path / "run.idx"))


def test_what_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    write_run(tmp_path / "run.mid")
    with pytest.raises(SettingsError, match=r"run 7 is closed \(complete\)"):
        RunWriter.resume(tmp_path / "run.idx")
    data = bytearray((tmp_path / "run.idx").read_bytes())
    data[100] ^= 1
    (tmp_path / "run.idx").write_bytes(data)
    with pytest.raises(FormatError, match=r"run\.idx: byte .* CRC32C"):
        RunWriter.resume(tmp_path / "run.idx")
    (tmp_path / "run.idx").write_bytes(b"")
    with pytest.raises(FormatError, match="no record of its run"):
        RunWriter.resume(tmp_path / "run.idx")

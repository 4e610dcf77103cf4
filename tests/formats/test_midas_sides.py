"""Side files: their bytes and records, disks that fill up, and what a writer that goes on keeps of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crc32c
import pytest
from tests.formats.run_files import border, data_event, late_event, quarantined_event

from phloem.formats.base import Position
from phloem.formats.midas.file import read_events
from phloem.formats.midas.index import SideRecord, read_index
from phloem.formats.midas.writer import RunWriter
from phloem.model.errors import SettingsError

LATE = [late_event(1), late_event(2) + late_event(3), late_event(4)]
QUARANTINE = quarantined_event()
BLOCKS = [data_event(n) for n in range(3)]

Step = Callable[[RunWriter], None]


def block(serial: int) -> Step:
    """A data event of the given serial number, as a block of its own."""
    position = [Position("EB", 1, serial, serial + 1)]
    return lambda writer: writer.write(BLOCKS[serial], 1, serial, serial, position)


# A run in the order in which a logger writes it. What a killed writer lost is done again from its last block on.
STEPS: tuple[Step, ...] = (
    lambda writer: writer.write(border(True), 1, None, None),
    lambda writer: writer.write_side("late", LATE[0], 1),
    block(0),
    lambda writer: writer.write_side("late", LATE[1], 2),
    lambda writer: writer.write_side("quarantine", QUARANTINE, 1),
    block(1),
    lambda writer: writer.write_side("late", LATE[2], 1),
    block(2),
    lambda writer: writer.write(border(False), 1, None, None),
)
# Which step follows each block, by the number of blocks.
AFTER_BLOCK = (0, 1, 3, 6, 8, 9)
MAIN = border(True) + b"".join(BLOCKS) + border(False)


def whole_run(folder: Path) -> None:
    """All the run's files are as they must be."""
    assert (folder / "run.mid").read_bytes() == MAIN
    assert (folder / "run.late.mid").read_bytes() == b"".join(LATE)
    assert (folder / "run.quarantine.mid").read_bytes() == QUARANTINE
    assert {path.name for path in folder.iterdir()} == {"run.mid", "run.idx", "run.late.mid", "run.quarantine.mid"}
    index = read_index(folder / "run.idx")
    assert index.damage is None
    assert index.waiting == []
    at, a, b, c = 0, *map(len, LATE)
    late = [(at, 0, 0), (at, a, 1), (a, b, 2), (a + b, c, 1)]
    assert [(side.offset, side.length, side.n_events) for side in index.sides_of("run.late.mid")] == late
    assert [side.crc for side in index.sides_of("run.late.mid")[1:]] == [crc32c.crc32c(part) for part in LATE]
    assert index.sides_of("run.quarantine.mid") == [
        SideRecord("run.quarantine.mid", 0, 0, 0, 0),
        SideRecord("run.quarantine.mid", 0, len(QUARANTINE), crc32c.crc32c(QUARANTINE), 1),
    ]


def finished(index: Path) -> None:
    """Go on with a run, do what is missing of `STEPS`, and close it."""
    writer, state = RunWriter.resume(index)
    for step in STEPS[AFTER_BLOCK[len(state.blocks)] :]:
        step(writer)
    writer.close("complete")


def test_side_files_hold_what_was_written_and_the_index_tells_of_each_stretch(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    assert writer.side_files == []
    for step in STEPS:
        step(writer)
    assert writer.side_files == [tmp_path / "run.late.mid", tmp_path / "run.quarantine.mid"]
    assert (writer.events, writer.bytes) == (5, len(MAIN))
    writer.close("complete")
    whole_run(tmp_path)
    assert [event.serial_number for _, event in read_events(tmp_path / "run.late.mid")] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["run00042.mid.gz", "run00042.mid.zst", "run00042.mid"])
def test_side_files_are_plain_and_named_after_the_first_file(tmp_path: Path, name: str) -> None:
    writer = RunWriter(tmp_path / name, 42)
    writer.rotate(tmp_path / "run00042_1.mid")
    writer.write_side("late", bytearray(LATE[0]), 1)
    writer.write_side("quarantine", memoryview(QUARANTINE), 1)
    writer.close("complete")
    assert (tmp_path / "run00042.late.mid").read_bytes() == LATE[0]
    assert (tmp_path / "run00042.quarantine.mid").read_bytes() == QUARANTINE


def test_nothing_to_write_makes_no_file(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    writer.write_side("late", b"", 0)
    writer.close("complete")
    assert writer.side_files == []
    assert {path.name for path in tmp_path.iterdir()} == {"run.mid", "run.idx"}


def test_an_unknown_side_file_is_refused(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    with pytest.raises(SettingsError, match=r"'early' is no side file; choose one of late, quarantine"):
        writer.write_side("early", LATE[0], 1)
    writer.abandon()


@pytest.mark.parametrize("name", ["late", "quarantine"])
def test_a_side_file_that_exists_is_refused_at_the_begin_of_the_run(tmp_path: Path, name: str) -> None:
    precious = tmp_path / f"run.{name}.mid"
    precious.write_bytes(b"precious")
    with pytest.raises(SettingsError, match=rf"run\.{name}\.mid exists and is not overwritten"):
        RunWriter(tmp_path / "run.mid", 7)
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(precious, b"precious")]


def test_a_file_that_came_in_the_meantime_is_neither_overwritten_nor_removed(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    precious = tmp_path / "run.late.mid"
    precious.write_bytes(b"precious")
    with pytest.raises(SettingsError, match=r"run\.late\.mid exists and is not overwritten"):
        writer.write_side("late", LATE[0], 1)
    writer.write(border(True), 1, None, None)
    writer.abandon()
    writer, state = RunWriter.resume(tmp_path / "run.idx")
    writer.abandon()
    assert (state.sides, writer.side_files, precious.read_bytes()) == ([], [], b"precious")


PWRITE = os.pwrite


class Disk:
    """Stands for os.pwrite: writes as long as ``room`` bytes are left."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, fd: int, data: Any, offset: int) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        size = min(len(data), self.room)
        self.room -= size
        return PWRITE(fd, memoryview(data)[:size], offset)


def until_done(writer: RunWriter, step: Step, disk: Disk) -> int:
    """Call until the disk, which gets room after each failure, takes it: how often it failed."""
    failures = 0
    while True:
        try:
            step(writer)
            return failures
        except OSError:
            failures += 1
            disk.room = 1 << 30


@pytest.mark.parametrize(("fsync", "step_bytes"), [("never", 1), ("block", 29)])
def test_a_full_disk_at_any_byte_of_any_file_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Any, step_bytes: int
) -> None:
    room = failures = 0
    while failures or not room:
        room += step_bytes
        folder = tmp_path / str(room)
        folder.mkdir()
        disk = Disk(1 << 30)
        monkeypatch.setattr(os, "pwrite", disk)
        writer = RunWriter(folder / "run.mid", 7, fsync=fsync)
        disk.room, failures = room, 0
        for step in STEPS:
            failures += until_done(writer, step, disk)
        failures += until_done(writer, lambda writer: writer.close("complete"), disk)
        whole_run(folder)
    assert room > len(MAIN) + sum(map(len, LATE)) + len(QUARANTINE)


def test_a_failed_write_leaves_the_side_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    writer.write_side("late", LATE[0], 1)
    before = (tmp_path / "run.idx").read_bytes()
    monkeypatch.setattr(os, "pwrite", Disk(5))
    with pytest.raises(OSError, match="No space left"):
        writer.write_side("late", LATE[1], 2)
    assert (tmp_path / "run.late.mid").read_bytes() == LATE[0]
    assert (tmp_path / "run.idx").read_bytes() == before
    writer.abandon()


def test_a_sync_that_fails_takes_the_stretch_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7, fsync="block")
    writer.write_side("late", LATE[0], 1)
    fdatasync = os.fdatasync

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output"):
        writer.write_side("late", LATE[1], 2)
    assert (tmp_path / "run.late.mid").read_bytes() == LATE[0]
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    writer.write_side("late", LATE[1], 2)
    writer.close("complete")
    assert (tmp_path / "run.late.mid").read_bytes() == LATE[0] + LATE[1]
    assert [side.offset for side in read_index(tmp_path / "run.idx").sides] == [0, 0, len(LATE[0])]


@pytest.mark.parametrize(("fsync", "late", "quarantine"), [("never", 0, 0), ("close", 1, 1), ("block", 4, 2)])
def test_the_fsync_policy_holds_for_side_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Any, late: int, quarantine: int
) -> None:
    """With block: each stretch, and once more at the end, as the main file."""
    files: list[str] = []
    for name in ("fsync", "fdatasync"):
        original = getattr(os, name)

        def noted(fd: int, original: Any = original) -> None:
            files.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
            original(fd)

        monkeypatch.setattr(os, name, noted)
    writer = RunWriter(tmp_path / "run.mid", 7, fsync=fsync)
    for step in STEPS:
        step(writer)
    writer.close("complete")
    assert (files.count("run.late.mid"), files.count("run.quarantine.mid")) == (late, quarantine)


@pytest.mark.parametrize("n_steps", range(1, len(STEPS) + 1))
def test_a_writer_that_was_killed_after_any_step_goes_on_and_doubles_nothing(tmp_path: Path, n_steps: int) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    for step in STEPS[:n_steps]:
        step(writer)
    writer.abandon()
    finished(tmp_path / "run.idx")
    whole_run(tmp_path)


def test_a_writer_that_was_killed_at_any_byte_of_the_index_goes_on(tmp_path: Path) -> None:
    """The files hold all of the run, as torn as files can be: the index alone says what counts."""
    writer = RunWriter(tmp_path / "run.mid", 7)
    for step in STEPS:
        step(writer)
    writer.abandon()
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = files[tmp_path / "run.idx"]
    first, named = read_index(tmp_path / "run.idx").places[0], {}
    for name in ("run.late.mid", "run.quarantine.mid"):
        named[tmp_path / name] = model.index(name.encode()) + len(name) + 28  # its first record's last byte
    for cut in range(first, len(model) + 1):
        for path, content in files.items():
            path.unlink(missing_ok=True)
            if cut >= named.get(path, 0):  # a side file is made after its first record only
                path.write_bytes(content + b"torn")
        (tmp_path / "run.idx").write_bytes(model[:cut])
        finished(tmp_path / "run.idx")
        whole_run(tmp_path)


def test_a_side_file_is_cut_at_any_byte_beyond_what_counts(tmp_path: Path) -> None:
    """Killed within the second stretch: the first one counts, for its block was written."""
    for cut in range(len(LATE[0]), len(LATE[0] + LATE[1]) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        writer = RunWriter(folder / "run.mid", 7)
        for step in STEPS[:4]:
            step(writer)
        writer.abandon()
        os.truncate(folder / "run.late.mid", cut)
        writer, state = RunWriter.resume(folder / "run.idx")
        assert writer.side_files == [folder / "run.late.mid"]
        assert (folder / "run.late.mid").read_bytes() == LATE[0]
        assert [side.length for side in state.sides] == [0, len(LATE[0])]
        writer.abandon()
        finished(folder / "run.idx")
        whole_run(folder)


def test_a_side_file_that_no_block_followed_is_removed(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    STEPS[0](writer)
    STEPS[1](writer)
    writer.abandon()
    assert (tmp_path / "run.late.mid").exists()
    index = read_index(tmp_path / "run.idx")
    assert index.sides == []
    assert [side.length for side in index.waiting] == [0, len(LATE[0])]
    writer, state = RunWriter.resume(tmp_path / "run.idx")
    assert (state.sides, state.waiting, writer.side_files) == ([], [], [])
    assert not (tmp_path / "run.late.mid").exists()
    writer.abandon()


def test_stretches_of_blocks_that_did_not_reach_the_disk_are_dropped(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    for step in STEPS:
        step(writer)
    writer.abandon()
    data = bytearray((tmp_path / "run.mid").read_bytes())
    data[len(border(True) + BLOCKS[0]) + 3] ^= 1
    (tmp_path / "run.mid").write_bytes(data)
    writer, state = RunWriter.resume(tmp_path / "run.idx")
    writer.abandon()
    assert len(state.blocks) == 2
    assert (tmp_path / "run.late.mid").read_bytes() == LATE[0]
    assert not (tmp_path / "run.quarantine.mid").exists()
    finished(tmp_path / "run.idx")
    whole_run(tmp_path)


def test_a_subrun_that_began_after_a_dropped_stretch_begins_again(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    writer.write(border(True), 1, None, None)
    writer.write_side("late", LATE[0], 1)
    writer.rotate(tmp_path / "run_1.mid")
    writer.abandon()
    writer, state = RunWriter.resume(tmp_path / "run.idx")
    assert [subrun.file for subrun in state.subruns] == ["run.mid"]
    writer.write_side("late", LATE[0], 1)
    writer.rotate(tmp_path / "run_1.mid")
    writer.write(border(False), 1, None, None)
    writer.close("complete")
    assert (tmp_path / "run.mid").read_bytes() == border(True)
    assert (tmp_path / "run_1.mid").read_bytes() == border(False)
    assert (tmp_path / "run.late.mid").read_bytes() == LATE[0]


def test_bytes_that_the_disk_lost_leave_zeros_and_what_follows_at_its_place(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    for step in STEPS[:3]:
        step(writer)
    writer.abandon()
    os.truncate(tmp_path / "run.late.mid", 10)
    finished(tmp_path / "run.idx")
    expected = LATE[0][:10] + bytes(len(LATE[0]) - 10) + LATE[1] + LATE[2]
    assert (tmp_path / "run.late.mid").read_bytes() == expected


def test_a_close_lets_stretches_count_as_a_block_does(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run.mid", 7)
    writer.write_side("late", LATE[0], 1)
    writer.close("complete")
    index = read_index(tmp_path / "run.idx")
    assert ([side.length for side in index.sides], index.waiting) == ([0, len(LATE[0])], [])

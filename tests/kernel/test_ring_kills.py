"""A writer is killed at any moment: nothing whose send had returned is lost, nothing is there twice."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from tests.kernel.rings import (
    BODY_AT,
    BOOT_ID_AT,
    HEAD_AT,
    LAST_AT,
    PUBLISHED_AT,
    RUN,
    Progress,
    child,
    drain,
    new_reader,
    new_writer,
    overwrite,
    read_u64,
    send,
    until,
)

from phloem.kernel import RingError, RingReader, settle, writer_pid

WRITER = "tests.kernel.writer_process"


class Checking:
    """Reads a ring to its end and judges every byte: each serial number once, in order, with its own payload."""

    def __init__(self, reader: RingReader) -> None:
        self.reader = reader
        self.next_serial = 0
        self.next_sequence = 0
        self.generation = reader.generation

    def look(self) -> None:
        for frame in drain(self.reader):
            assert frame["sequence"] == self.next_sequence
            assert frame["generation"] == self.generation
            assert frame["run"] == RUN
            self.next_sequence += 1
            body, at, first = frame["body"], 0, self.next_serial
            while at < len(body):
                at = self._check(body, at)
            assert frame["n_events"] == self.next_serial - first
            assert frame["first_serial"] == first
            assert frame["next_serial"] == frame["total_events"] == self.next_serial

    def came_to(self, progress: Progress, serial: int) -> bool:
        """Whether the writer has sent so much; reads on, so that it can."""
        self.look()
        return progress[0] >= serial

    def _check(self, body: bytes, at: int) -> int:
        serial, _, size, area = struct.unpack_from("<IIII", body, at + 4)
        assert serial == self.next_serial
        assert area == size - 8
        name, _, n_bytes, _ = struct.unpack_from("<4sIII", body, at + 24)
        assert name == b"DATA"
        assert set(struct.iter_unpack("<I", body[at + 40 : at + 40 + n_bytes])) == {(serial,)}
        self.next_serial += 1
        return at + 16 + int(size)


@pytest.mark.parametrize(("batch", "n_kills"), [(1, 16), (60, 10)])
def test_killed_at_any_moment_what_was_sent_is_there_once(place: Path, batch: int, n_kills: int) -> None:
    path, progress, chance = place / "ring", Progress(place / "progress"), random.Random(batch)
    new_writer(path, max_frame=2048)
    checking = Checking(new_reader(path))
    for kill in range(n_kills):
        progress[1] = 0
        with child(WRITER, path, progress.path, batch, "EB") as process:
            until(lambda: progress[1], "the writer")
            checking.look()  # its predecessor's frame is closed by now, at the latest
            enough = progress[0] + chance.randrange(1500)
            until(lambda: checking.came_to(progress, enough), f"event {enough}")  # noqa: B023
            process.kill()
            process.wait()
        sent = progress[0]
        if kill % 2:
            assert settle(str(path))
            checking.look()
            assert sent <= checking.next_serial <= sent + batch
    settle(str(path))
    checking.look()
    assert progress[0] <= checking.next_serial <= progress[0] + batch
    progress.close()


def test_a_killed_writers_open_frame_is_closed_at_what_was_published_by_settle(place: Path) -> None:
    path, progress = place / "ring", Progress(place / "progress")
    with child("tests.kernel.open_frame_process", path, progress.path):
        until(lambda: progress[0] == 3, "three events")
        reader = new_reader(path)
        assert drain(reader) == []  # published, but its frame is open
        assert not settle(str(path))  # its writer lives
    assert settle(str(path))
    (frame,) = drain(reader)
    assert (frame["n_events"], frame["first_serial"], frame["next_serial"]) == (3, 10, 13)
    assert (frame["total_events"], frame["total_bytes"]) == (3, 3 * 48)
    assert frame["run"] == RUN
    settle(str(path))
    assert drain(reader) == []
    progress.close()


def test_a_continued_ring_goes_on_with_sequence_counts_and_serial_number(place: Path) -> None:
    path, progress = place / "ring", Progress(place / "progress")
    with child("tests.kernel.open_frame_process", path, progress.path):
        until(lambda: progress[0] == 3, "three events")
    writer = new_writer(path)
    assert writer.continued
    assert (writer.run, writer.sequence, writer.next_serial) == (RUN, 1, 13)
    assert (writer.total_events, writer.total_bytes) == (3, 144)
    assert send(writer, writer.next_serial)
    writer.flush()
    first, second = drain(new_reader(path))
    assert (first["n_events"], second["n_events"]) == (3, 1)
    assert (second["sequence"], second["first_serial"], second["total_events"]) == (1, 13, 4)
    assert first["generation"] == second["generation"]
    progress.close()


def test_killed_between_commit_and_clearing_what_was_published(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    writer.begin_run(RUN)
    ends = []
    for serial in range(2):
        send(writer, serial)
        writer.flush()
        ends.append(read_u64(path, HEAD_AT))
    del writer
    overwrite(path, PUBLISHED_AT, struct.pack("<Q", 1 << 36 | 48))
    overwrite(path, LAST_AT, struct.pack("<Q", 0))
    again = new_writer(path)
    assert (again.sequence, again.next_serial, again.total_events) == (2, 2, 2)
    assert read_u64(path, HEAD_AT) == ends[-1]
    assert read_u64(path, PUBLISHED_AT) == 0
    assert [frame["first_serial"] for frame in drain(new_reader(path))] == [0, 1]


def test_killed_before_the_first_event_of_a_frame_was_published(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    writer.begin_run(RUN)
    send(writer, 0)
    writer.flush()
    del writer
    half_written = path.read_bytes()[BODY_AT : BODY_AT + 40]
    overwrite(path, BODY_AT + read_u64(path, HEAD_AT), half_written)
    again = new_writer(path)
    assert (again.sequence, again.next_serial) == (1, 1)
    send(again, 1)
    again.flush()
    assert [frame["first_serial"] for frame in drain(new_reader(path))] == [0, 1]


def test_the_writers_lock_refuses_and_names_the_process_that_has_it(place: Path) -> None:
    path, progress = place / "ring", Progress(place / "progress")
    with child("tests.kernel.open_frame_process", path, progress.path) as process:
        until(lambda: progress[0] == 3, "three events")
        assert writer_pid(str(path)) == process.pid
        assert new_reader(path).writer_alive
        with pytest.raises(RingError, match=f"taken by process {process.pid}; end that one first"):
            new_writer(path)
    assert writer_pid(str(path)) == 0
    assert not new_reader(path).writer_alive
    progress.close()


def test_after_settle_the_dead_writer_is_still_dead(place: Path) -> None:
    path, progress = place / "ring", Progress(place / "progress")
    with child("tests.kernel.open_frame_process", path, progress.path):
        until(lambda: progress[0] == 3, "three events")
    assert settle(str(path))
    reader = new_reader(path)
    assert not reader.writer_alive
    assert settle(str(path))
    assert not reader.writer_alive
    progress.close()


def test_unread_data_refuse_to_be_remade_with_other_settings(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    generation = writer.generation
    send(writer, 0)
    writer.flush()
    del writer
    with pytest.raises(RingError, match=r"holds 192 bytes that a reader has not read; it cannot be remade"):
        new_writer(path, readers=["EB", "Logger"])
    reader = new_reader(path)
    assert len(drain(reader)) == 1
    remade = new_writer(path, readers=["EB", "Logger"])
    assert not remade.continued
    assert remade.generation != generation
    assert remade.sequence == 0
    assert reader.replaced


def test_a_ring_of_another_boot_is_moved_aside(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    send(writer, 0)
    writer.flush()
    del writer
    overwrite(path, BOOT_ID_AT, bytes(16))
    old = path.read_bytes()
    writer = new_writer(path)
    assert not writer.continued
    assert (writer.sequence, writer.next_serial) == (0, 0)
    assert (place / "ring.before-boot").read_bytes() == old


def test_a_process_does_not_get_the_writers_place_twice(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    with pytest.raises(RingError, match="taken by this process"):
        new_writer(path)
    assert not settle(str(path))
    assert new_reader(path).writer_alive
    del writer
    assert not new_reader(path).writer_alive
    assert not new_writer(path).total_events

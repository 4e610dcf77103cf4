"""Readers: those that hold the writer back, those that may be overtaken, and views that die."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from tests.kernel.rings import (
    RUN,
    SLOT_SIZE,
    SLOTS_AT,
    Progress,
    child,
    drain,
    frame_fields,
    new_reader,
    new_writer,
    send,
    until,
)

from phloem.kernel import FrameKind, RingError


def test_two_readers_each_get_every_frame_and_the_slower_one_holds_the_writer(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path, readers=["EB", "Logger"])
    fast, slow = new_reader(path, "EB"), new_reader(path, "Logger")
    sent = 0
    while send(writer, sent, bytes(1000)):
        sent += 1
    writer.flush()
    got = drain(fast)
    assert not writer.wait_space(0)
    assert drain(slow) == got
    assert writer.wait_space(0)
    assert writer.drained


def test_a_reader_that_comes_back_goes_on_where_it_was(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    for serial in range(3):
        send(writer, serial)
        writer.flush()
    reader = new_reader(path)
    first = reader.next()
    assert first is not None
    reader.release(first.end)
    second = reader.next()  # taken, and not released
    assert second is not None
    first.close()
    second.close()
    del reader, first, second
    gc.collect()
    assert [frame["first_serial"] for frame in drain(new_reader(path))] == [1, 2]


def test_a_dead_readers_place_is_kept_and_still_holds_the_writer(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    with child("tests.kernel.reader_process", path, "EB") as process:
        until(lambda: process.stdout and process.stdout.readline() == b"open\n", "the reader")
        with pytest.raises(RingError, match=rf"place of reader 'EB' .* taken by process {process.pid}"):
            new_reader(path)
    sent = 0
    while send(writer, sent, bytes(1000)):
        sent += 1
    assert not writer.wait_space(0)
    assert sum(frame["n_events"] for frame in drain(new_reader(path))) > 0


def test_a_reader_that_was_not_declared_is_refused_by_name(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path, readers=["EB", "Logger"])
    with pytest.raises(RingError, match="no place for reader 'Monitor'; its readers are: EB, Logger"):
        new_reader(path, "Monitor")
    assert writer.drained


def test_there_is_no_ring(place: Path) -> None:
    with pytest.raises(RingError, match=r"there is no ring .*/none: No such file"):
        new_reader(place / "none")


def test_a_view_dies_at_release_and_an_array_that_looks_at_it_forbids_that(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path)
    send(writer, 0)
    writer.flush()
    reader = new_reader(path)
    frame = reader.next()
    assert frame is not None
    view = frame.body
    assert view.readonly
    array = np.frombuffer(view, dtype="<u4")
    with pytest.raises(BufferError):
        frame.close()
    assert frame.n_events == 1
    del array
    frame.close()
    with pytest.raises(ValueError, match="released"):
        view[0]
    for name in ("kind", "run", "n_events", "body", "meta", "header", "body_size", "sequence"):
        with pytest.raises(RingError, match="this frame has been released"):
            getattr(frame, name)
    frame.close()


def test_some_readers_are_overtaken_count_what_they_missed_and_never_get_a_torn_frame(place: Path) -> None:
    path, progress = place / "ring", Progress(place / "progress")
    new_writer(path, readers=[], max_frame=2048)
    reader = new_reader(path, "Monitor", everything=False)
    got = first = 0
    last: dict[str, int] = {}
    with child("tests.kernel.writer_process", path, progress.path, 1):
        until(lambda: progress[1], "the writer")
        while not (got >= 3000 and reader.missed_events > 10_000):
            copy = reader.copy_next()
            if copy is None:
                continue
            fields = frame_fields(copy)
            check_payload(copy[128 : 128 + fields["body_size"]], fields["first_serial"], fields["next_serial"])
            first = first or fields["first_serial"] + 1
            got += fields["n_events"]
            last = fields
    assert got + reader.missed_events == last["next_serial"] - (first - 1)
    progress.close()


def check_payload(body: bytes, first_serial: int, next_serial: int) -> None:
    """Each event of a frame has its number in each word of its data."""
    words, at, serial = np.frombuffer(body, dtype="<u4"), 0, first_serial
    while at < len(words):
        size = int(words[at + 8])
        assert words[at + 1] == serial
        assert size == 4 * (1 + serial % 37)
        assert np.all(words[at + 10 : at + 10 + size // 4] == serial)
        at += 4 + int(words[at + 3]) // 4
        serial += 1
    assert serial == next_serial


def test_what_was_missed_is_counted_when_the_next_frame_is_a_border(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path, readers=[])
    writer.begin_run(RUN)
    reader = new_reader(path, "Monitor", everything=False)
    send(writer, 0)
    writer.flush()
    assert reader.copy_next() is not None
    for serial in range(1, 1001):
        send(writer, serial, bytes(1000))
    writer.flush()
    assert reader.copy_next() is None  # overtaken: it goes on with what comes
    writer.send_frame(FrameKind.END_OF_RUN, b"Ending r", 1, b"")
    border = reader.copy_next()
    assert border is not None
    assert frame_fields(border)["kind"] == FrameKind.END_OF_RUN
    assert reader.missed_events == 1000


def test_places_of_dead_some_readers_are_used_again(place: Path) -> None:
    path = place / "ring"
    writer = new_writer(path, readers=[], free_slots=1)
    with child("tests.kernel.reader_process", path, "") as process:
        until(lambda: process.stdout and process.stdout.readline() == b"open\n", "the reader")
        with pytest.raises(RingError, match="no free place"):
            new_reader(path, "Monitor", everything=False)
    assert new_reader(path, "Monitor", everything=False).copy_next() is None
    assert writer.drained


def test_a_reader_that_may_be_overtaken_gets_no_views(place: Path) -> None:
    writer = new_writer(place / "ring", readers=[])
    reader = new_reader(place / "ring", "Monitor", everything=False)
    send(writer, 0)
    writer.flush()
    with pytest.raises(RingError, match="copies"):
        reader.next()


def test_two_readers_of_one_process_that_may_be_overtaken_have_two_places(place: Path) -> None:
    writer = new_writer(place / "ring", readers=[])
    readers = [new_reader(place / "ring", name, everything=False) for name in ("Monitor", "Page")]
    send(writer, 0)
    writer.flush()
    assert readers[0].copy_next() == readers[1].copy_next() != None  # noqa: E711
    data = (place / "ring").read_bytes()
    names = [data[SLOTS_AT + i * SLOT_SIZE + 128 :][:8].rstrip(bytes(1)) for i in range(2)]
    assert names == [b"Monitor", b"Page"]


def test_a_frame_and_its_views_keep_the_ring_mapped(place: Path) -> None:
    writer = new_writer(place / "ring")
    send(writer, 5)
    writer.flush()
    reader = new_reader(place / "ring")
    frame = reader.next()
    assert frame is not None
    array = np.frombuffer(frame.body, dtype="<u4")
    del reader, writer
    gc.collect()
    assert frame.first_serial == 5
    del frame
    gc.collect()
    assert array[1] == 5

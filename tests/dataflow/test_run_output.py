"""One file of a run: what reaches its writer, in which order, and how often when the disk is full now and then."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.kernel.rings import ring_place

from phloem.dataflow.logger_input import LoggerInput
from phloem.dataflow.run_output import RunOutput, recorded_path
from phloem.formats.midas.writer import RunWriter
from phloem.kernel import FrameKind, RingWriter
from phloem.model.event import Equipment
from phloem.protocol.control import Stream
from phloem.protocol.data import Section, join_sections
from phloem.transport.shm import Doorbell

RUN = 7
NEVER_NS = 10**15  # a frame is closed by the test alone


def event(serial: int, words: int = 1) -> bytes:
    """A MIDAS event with one BANK32A of UINT32, a multiple of 8 bytes long."""
    bank = b"DATA" + struct.pack("<III", 6, 4 * words, 0) + struct.pack(f"<{words}I", *range(words))
    bank += bytes(-len(bank) % 8)
    area = struct.pack("<II", len(bank), 0x31) + bank
    return struct.pack("<HHIII", 1, 0, serial, 0, len(area)) + area


class FullNowAndThen:
    """A writer that notes what it is given, and whose disk is full at every other call."""

    path = Path("/data/run00007.mid")

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refused = 0
        self._full = False

    def _try(self, call: tuple[Any, ...]) -> None:
        self._full = not self._full
        if self._full:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self.calls.append(call)

    def write(self, blocks: Any, n_events: int, first: int | None, last: int | None, positions: Any) -> None:
        self._try(("block", b"".join(blocks), n_events, first, last))

    def write_side(self, name: str, events: bytes, n_events: int) -> None:
        self._try((name, bytes(events), n_events))

    @property
    def side_files(self) -> list[Path]:
        return [Path("/data/run00007.late.mid")]


class Bench:
    """A ring of one source, and the output that reads it."""

    def __init__(self, place: Path, writer: object) -> None:
        ring = str(place / "SYSTEM.EB.ring")
        self.bell = Doorbell(place / "bell")
        self.sender = RingWriter(ring, "EB", "SYSTEM", 1 << 20, ["logger"], flush_ns=NEVER_NS)
        self.sender.begin_run(RUN)
        stream = Stream("EB", "SYSTEM", ring, 1 << 20, ("logger",), Equipment("EB", type=0))
        self.input = LoggerInput(stream, "EB", "logger", self.bell)
        self.output = RunOutput([self.input], cast(RunWriter | None, writer), self.again)

    def again(self, write: Callable[[], None], path: Path) -> None:
        while True:
            try:
                write()
                return
            except OSError:
                continue

    def send(self, *events: bytes, **side: bytes) -> None:
        """A frame of events, and one with what is late and what is in quarantine."""
        parts = [(Section[name.upper()], payload) for name, payload in side.items()]
        body = b"".join(events)
        assert self.sender.send_raw(body) == len(body)
        assert self.sender.send_frame(FrameKind.CHECKPOINT, b"", 0, join_sections(parts))

    def write_all(self) -> None:
        assert self.output.gather(RUN)
        frames = self.output.hand_over()
        self.output.write(frames)
        for stream, frame in frames:
            stream.count(frame)
            frame.close()


@pytest.fixture
def place() -> Iterator[Path]:
    with ring_place() as path:
        yield path


def test_side_events_come_before_their_block_and_nothing_is_doubled_when_the_disk_is_full(place: Path) -> None:
    writer = FullNowAndThen()
    bench = Bench(place, writer)
    bench.send(event(4), event(5), late=event(1) + event(2, words=5))
    bench.send(event(6), late=event(3), quarantined=event(0))
    bench.write_all()
    assert writer.calls == [
        ("late", event(1) + event(2, words=5) + event(3), 3),
        ("quarantine", event(0), 1),
        ("block", event(4) + event(5) + event(6), 3, 4, 6),
    ]
    assert writer.refused == 3
    assert bench.output.files == ["/data/run00007.mid", "/data/run00007.late.mid"]
    assert (bench.input.written, bench.output.events) == (3, 3)


def test_without_such_fragments_only_the_block_is_written(place: Path) -> None:
    writer = FullNowAndThen()
    bench = Bench(place, writer)
    bench.send(event(0))
    bench.write_all()
    assert writer.calls == [("block", event(0), 1, 0, 0)]


def test_a_run_that_writes_no_data_writes_nothing_and_counts(place: Path) -> None:
    bench = Bench(place, None)
    bench.send(event(0), late=event(1))
    bench.write_all()
    assert bench.output.files == []
    assert (bench.output.is_written, bench.output.events, bench.output.size_bytes) == (False, 1, len(event(0)))


NAMES = [
    ("run00042.mid", "Trigger01", "run00042.Trigger01.mid"),
    ("run00042.mid.lz4", "Trigger01", "run00042.Trigger01.mid.lz4"),
    ("run00042.mid", "A/D 1.5%", "run00042.A%2FD%201%2E5%25.mid"),
    ("run00042.mid", "late", "run00042.%6Cate.mid"),
    ("run00042.mid", "Quarantine", "run00042.%51uarantine.mid"),
    ("run00042.dat", "Trigger01", "run00042.dat.Trigger01.mid"),
]


@pytest.mark.parametrize(("file", "source", "name"), NAMES)
def test_recorded_files_have_names_that_no_other_file_has(file: str, source: str, name: str) -> None:
    assert recorded_path(Path("/data") / file, source) == Path("/data") / name

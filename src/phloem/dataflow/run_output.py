"""One file of a run: the streams that go into it, what is held of them, and the blocks that are written.

Order (datapath, section 7): fragments for the side files, the block, its record in the index, the builder's marks;
only then does the logger free the rings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from phloem.dataflow.logger_input import LoggerInput
from phloem.formats.base import Block, Mark, Position, SideFiles
from phloem.formats.midas.events import HEADER_BYTES, run_event
from phloem.formats.midas.index import stem_of
from phloem.formats.midas.writer import RunWriter
from phloem.kernel import Frame, FrameKind
from phloem.protocol.data import FRAME_UNALIGNED, Section, decode_json, decode_marks, sections

__all__ = ["BLOCK_BYTES", "FRAMES_PER_BLOCK", "RunOutput", "UntilWritten", "recorded_path"]

BLOCK_BYTES = 1 << 20  # written at once, at most
ENOUGH_BYTES = 128 << 10  # worth a write by itself; less than that waits for more, the logger's hold_s at most
FRAMES_PER_BLOCK = 256
CAUSES = {1: "silence", 2: "space", 3: "optional", 4: "check"}
SIDE_FILES = {Section.LATE: "late", Section.QUARANTINED: "quarantine"}

Held: TypeAlias = list[tuple[LoggerInput, Frame]]
UntilWritten: TypeAlias = Callable[[Callable[[], None], Path], None]


class RunOutput:
    """``writer`` None: nothing is written, as in a run that writes no data.

    ``until_written`` does a write, and does it again while the disk takes nothing.
    """

    def __init__(self, inputs: Sequence[LoggerInput], writer: RunWriter | None, until_written: UntilWritten) -> None:
        self.inputs = inputs
        self.held: Held = []  # taken from the rings, neither written nor freed yet
        self._held_since_s = 0.0
        self._writer = writer
        self._until_written = until_written

    # ------------------------------------------------------------------ what is held

    def gather(self, run: int, preparing: bool = False) -> bool:
        """Take what is there now, up to one block; whether there was anything. ``preparing``: see `LoggerInput`."""
        if not self.held:
            self._held_since_s = time.monotonic()
        before = len(self.held)
        self.held += self._next_frames(run, preparing)
        return len(self.held) > before

    def _next_frames(self, run: int, preparing: bool) -> Held:
        frames: Held = []
        size, room = 0, FRAMES_PER_BLOCK - len(self.held)
        for stream in self.inputs:
            while not stream.ended and size < BLOCK_BYTES and len(frames) < room:
                frame = stream.next(preparing)
                if frame is None:
                    break
                size += frame.body_size
                if frame.run == run and frame.kind == FrameKind.END_OF_RUN:
                    stream.ended = True
                frames.append((stream, frame))
        return frames

    def is_enough(self, hold_s: float) -> bool:
        """Whether what is held is worth a write: at low rates many frames make one block."""
        if self.held_for_s() >= hold_s or len(self.held) >= FRAMES_PER_BLOCK:
            return True
        return sum(frame.body_size for _, frame in self.held) >= ENOUGH_BYTES

    def held_for_s(self) -> float:
        """How long the oldest frame has been held."""
        return time.monotonic() - self._held_since_s

    def hand_over(self) -> Held:
        """What is held; from here on it is not."""
        held, self.held = self.held, []
        return held

    @property
    def all_ended(self) -> bool:
        """Whether every stream has ended."""
        return all(stream.ended for stream in self.inputs)

    # ------------------------------------------------------------------ the file

    @property
    def is_written(self) -> bool:
        """Whether there is a file, so that what is taken counts as written."""
        return self._writer is not None

    @property
    def files(self) -> list[str]:
        """The file and what was kept beside it; none in a run that writes no data."""
        writer = self._writer
        if writer is None:
            return []
        beside = [str(path) for path in writer.side_files] if isinstance(writer, SideFiles) else []
        return [str(writer.path), *beside]

    @property
    def events(self) -> int:
        """Of all streams, in this run."""
        return sum(stream.written for stream in self.inputs)

    @property
    def size_bytes(self) -> int:
        """On disk; without a file, those that were read."""
        return self._writer.bytes if self._writer is not None else sum(stream.bytes for stream in self.inputs)

    def write(self, frames: Held) -> None:
        """Write frames of this run as one block."""
        writer = self._writer
        if writer is None or not frames:
            return
        blocks: list[Block] = []
        n_events = 0
        serials: list[int] = []
        positions: dict[str, Position] = {}
        marks: list[Mark] = []
        side: dict[str, list[bytes]] = {}
        for stream, frame in frames:
            blocks.extend(_unpadded(frame) if frame.flags & FRAME_UNALIGNED else [frame.body])
            n_events += frame.n_events
            if frame.kind == FrameKind.EVENTS and frame.n_events:
                serials += [frame.first_serial, (frame.next_serial - 1) & 0xFFFFFFFF]
            positions[stream.source] = Position(stream.source, frame.generation, frame.sequence, frame.total_events)
            _read_sections(stream, frame, marks, side)
        first, last = (serials[0], serials[-1]) if serials else (None, None)
        for name, payloads in side.items():
            self._write_side(name, b"".join(payloads))
        for mark in marks:  # before the block: a kill in between must not leave its position without them
            self._until_written(partial(writer.mark, mark), writer.path)
        write = partial(writer.write, blocks, n_events, first, last, list(positions.values()))
        self._until_written(write, writer.path)

    def _write_side(self, name: str, events: bytes) -> None:
        writer = self._writer
        if isinstance(writer, SideFiles):
            self._until_written(partial(writer.write_side, name, events, _n_events(events)), writer.path)

    def write_run_event(self, begin: bool, number: int, odb: bytes) -> None:
        """The begin-of-run or end-of-run event, with the ODB."""
        writer = self._writer
        if writer is not None:
            event = run_event(begin, number, int(time.time()), odb)
            self._until_written(partial(writer.write, [event], 1, None, None), writer.path)

    def close(self, status: str, report: dict[str, Any]) -> None:
        """End the file."""
        writer = self._writer
        if writer is not None:
            self._until_written(partial(writer.close, status, report), writer.path)

    def abandon(self) -> None:
        """Leave the file open, as a killed logger would."""
        if self._writer is not None:
            self._writer.abandon()


def recorded_path(file: Path, source: str) -> Path:
    """Where the fragments of a source are recorded, beside the run's ``file``: ``run00042.Trigger01.mid``.

    What file names cannot hold is written as %XX, and so is the dot. A source that bears the name of a side file
    has its first letter written so, or both would be one file.
    """
    stem = stem_of(file)
    part = quote(source, safe="").replace(".", "%2E")
    if source.lower() in SIDE_FILES.values():
        part = f"%{ord(source[0]):02X}{part[1:]}"
    return file.with_name(f"{stem}.{part}{file.name.removeprefix(stem) or '.mid'}")


def _read_sections(stream: LoggerInput, frame: Frame, marks: list[Mark], side: dict[str, list[bytes]]) -> None:
    """Add what stands behind the events of a frame: the builder's marks, and fragments for the side files."""
    meta = frame.meta
    if not meta:
        return
    if frame.kind == FrameKind.BEGIN_OF_RUN:
        stream.sources = [str(name) for name in decode_json(meta).get("sources", ())]
    for kind, payload in sections(meta):
        if kind == Section.MARKS:
            marks.extend(_marks(stream, payload))
        elif kind in SIDE_FILES:
            side.setdefault(SIDE_FILES[Section(kind)], []).append(payload)


def _marks(stream: LoggerInput, payload: bytes) -> Iterator[Mark]:
    for number, cause, first, last in decode_marks(payload):
        source = stream.sources[number] if number < len(stream.sources) else str(number)
        unwrapped = first.to_bytes(8, "little") + last.to_bytes(8, "little")
        yield Mark(source, first & 0xFFFFFFFF, last & 0xFFFFFFFF, CAUSES.get(cause, str(cause)), unwrapped)


def _unpadded(frame: Frame) -> Iterator[Block]:
    """The events of a frame without the padding that the frame needs and the file must not have."""
    body = frame.body
    for at, size in _places(body):
        yield bytes(body[at : at + size])


def _n_events(events: bytes) -> int:
    return sum(1 for _ in _places(events))


def _places(events: Block) -> Iterator[tuple[int, int]]:
    """Offset and size of each event of several at 8-byte steps."""
    at = 0
    while at < len(events):
        size = HEADER_BYTES + int.from_bytes(events[at + 12 : at + HEADER_BYTES], "little")
        yield at, size
        at += size + -size % 8

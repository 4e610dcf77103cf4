"""The logger: writes the events of its buffer to the run's file, whole frames at a time.

Order (datapath, section 7): the block, its record in the index, then the rings are freed. It has ended when every
writer of its buffer has, so that the end of a run loses nothing at any rate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from phloem.dataflow.component import IDLE_S, Component, Place, Result
from phloem.formats.base import Block, Mark, Position
from phloem.formats.midas.events import run_event
from phloem.formats.midas.writer import RunWriter
from phloem.kernel import Frame, FrameKind
from phloem.model.errors import PhloemError, SettingsError
from phloem.model.run import Account
from phloem.protocol.control import ComponentStatus, Stream, TransitionRequest
from phloem.protocol.data import FRAME_UNALIGNED, Section, decode_json, decode_marks, sections
from phloem.transport.shm import Doorbell, Receiver

__all__ = ["Logger", "LoggerInput"]

BLOCK_BYTES = 1 << 20  # written at once, at most
ENOUGH_BYTES = 128 << 10  # worth a write by itself; less than that waits for more, HOLD_S at most
HOLD_S = 0.1
FRAMES_PER_BLOCK = 256
RETRY_S = 1.0  # how often a disk that took nothing is tried again
CAUSES = {1: "silence", 2: "space", 3: "optional", 4: "check"}


class LoggerInput:
    """One stream into the file."""

    def __init__(self, stream: Stream, client: str, bell: Doorbell) -> None:
        self.name = stream.source
        self.receiver = Receiver(stream.ring, client, bell)
        self.begun = False
        self.ended = False
        self.written = 0
        self.sources: list[str] = []  # of a builder: its marks name them by their place
        self.sent: int | None = None  # as the newest frame says: the source's own count
        self.gone = False


class Logger(Component):
    """``reads``: the buffer that it writes to disk, SYSTEM as a rule."""

    kind: ClassVar[str] = "logger"
    hold_s: ClassVar[float] = HOLD_S

    def __init__(self, name: str, place: Place, reads: str = "SYSTEM") -> None:
        super().__init__(name, place)
        self._reads = reads
        self._held: list[tuple[LoggerInput, Frame]] = []  # taken from the rings, neither written nor freed yet
        self._held_since_s = 0.0
        self._inputs: list[LoggerInput] = []
        self._writer: RunWriter | None = None
        self._open = False
        self._end_request: TransitionRequest | None = None
        self._events = 0
        self._bytes = 0
        self._files: list[str] = []
        self._retry_at_s = 0.0
        self._began_odb = ""

    def describe(self) -> tuple[tuple[Any, ...], str, dict[str, dict[str, Any]], str]:
        return (), self._reads, {}, ""

    # ------------------------------------------------------------------ transitions

    def prepare(self, request: TransitionRequest) -> Result | None:
        self._inputs = [LoggerInput(stream, self.name, self.bell) for stream in request.plan.inputs]
        self._end_request = None
        self._events = self._bytes = 0
        self._files = []
        self._began_odb = request.plan.odb_json
        self.open_run(request)
        self._open = True
        return {"files": self._files}

    def open_run(self, request: TransitionRequest) -> None:
        """Make the file and write the begin-of-run event. A run that writes no data has none."""
        if not request.plan.file:
            self._writer = None
            return
        number = request.run.number
        self._writer = RunWriter(
            Path(request.plan.file),
            number,
            started_s=request.run.started_s,
            fsync=_fsync(request.plan.settings),
        )
        self._files = [str(self._writer.path)]
        self._write_run_event(True, number, request.plan.odb_json.encode())

    def end(self, request: TransitionRequest) -> Result | None:
        self._end_request = request  # answered by `_close`, when every stream has ended
        return None

    # ------------------------------------------------------------------ the loop

    def turn(self) -> None:
        self.still_waiting()
        if not self._open:
            self.bell.wait((), IDLE_S)
            return
        if not self._held:
            self._held_since_s = time.monotonic()
        more = list(self._next_frames())
        self._held += more
        if self._held and (self._is_enough() or (not more and self._all_ended())):
            frames, self._held = self._held, []
            self.take(frames)
        elif not self._held and self._end_request is not None and self._all_ended():
            self._close(self._end_request)
        elif not more:
            self._wait()

    def _is_enough(self) -> bool:
        """Whether what is held is worth a write: at low rates many frames make one block."""
        size = sum(frame.body_size for _, frame in self._held)
        late = time.monotonic() - self._held_since_s >= self.hold_s
        return late or size >= ENOUGH_BYTES or len(self._held) >= FRAMES_PER_BLOCK

    def _all_ended(self) -> bool:
        return all(stream.ended for stream in self._inputs)

    def _next_frames(self) -> Iterator[tuple[LoggerInput, Frame]]:
        """What is there now, up to one block."""
        size, count = 0, len(self._held)
        for stream in self._inputs:
            while not stream.ended and size < BLOCK_BYTES and count < FRAMES_PER_BLOCK:
                frame = stream.receiver.next()
                if frame is None:
                    break
                size += frame.body_size
                count += 1
                if frame.run == self._run_number and frame.kind == FrameKind.END_OF_RUN:
                    stream.ended = True
                yield stream, frame

    def take(self, frames: list[tuple[LoggerInput, Frame]]) -> None:
        """Write frames, then free them."""
        mine = [(stream, frame) for stream, frame in frames if frame.run == self._run_number]
        if self._writer is not None and mine:
            self._write(self._writer, mine)
        for stream, frame in mine:
            self.count(stream, frame)
        last: dict[str, tuple[LoggerInput, int]] = {}
        for stream, frame in frames:
            if frame.run != self._run_number:
                self._foreign(stream, frame)
            last[stream.name] = (stream, frame.end)
            frame.close()
        for stream, end in last.values():
            stream.receiver.release(end)

    def count(self, stream: LoggerInput, frame: Frame) -> None:
        """One frame of this run is dealt with."""
        stream.begun = True
        stream.sent = frame.total_events
        if frame.kind == FrameKind.EVENTS:
            stream.written += frame.n_events
            self._events += frame.n_events
            self._bytes += frame.body_size

    def _foreign(self, stream: LoggerInput, frame: Frame) -> None:
        if frame.n_events and frame.kind == FrameKind.EVENTS:
            self.message(
                f"{stream.name} has {frame.n_events} events of run {frame.run} in its ring; "
                f"they are not of run {self._run_number} and are dropped",
                "error",
            )

    def _write(self, writer: RunWriter, frames: list[tuple[LoggerInput, Frame]]) -> None:
        blocks: list[Block] = []
        n_events = 0
        serials: list[int] = []
        positions: dict[str, Position] = {}
        for stream, frame in frames:
            blocks.extend(_unpadded(frame) if frame.flags & FRAME_UNALIGNED else [frame.body])
            n_events += frame.n_events
            if frame.kind == FrameKind.EVENTS and frame.n_events:
                serials += [frame.first_serial, (frame.next_serial - 1) & 0xFFFFFFFF]
            positions[stream.name] = Position(stream.name, frame.generation, frame.sequence, frame.total_events)
        first, last = (serials[0], serials[-1]) if serials else (None, None)
        self._until_written(lambda: writer.write(blocks, n_events, first, last, list(positions.values())), writer)
        for stream, frame in frames:
            if frame.kind == FrameKind.BEGIN_OF_RUN:
                stream.sources = [str(name) for name in decode_json(frame.meta).get("sources", ())]
            for mark in self._marks(stream, frame):
                writer.mark(mark)

    def _until_written(self, write: Any, writer: RunWriter) -> None:
        """A disk that takes nothing (full, say) stops the reading, not the run: tried again until it does."""
        told = False
        while True:
            try:
                write()
                break
            except OSError as error:
                if not told:
                    self.message(f"{self.name} cannot write {writer.path}: {error.strerror}; waiting", "error")
                told = True
                if self.ending:
                    raise SettingsError(f"{writer.path}: {error.strerror}") from None
                until_s = time.monotonic() + RETRY_S
                while time.monotonic() < until_s and not self.ending:
                    self.still_waiting(f"space on disk for {writer.path.name}")
                    self.bell.wait((), IDLE_S)
        if told:
            self.message(f"{self.name} writes {writer.path} again")

    def _marks(self, stream: LoggerInput, frame: Frame) -> Iterator[Mark]:
        for kind, payload in sections(frame.meta):
            if kind == Section.MARKS:
                for number, cause, first, last in decode_marks(payload):
                    source = stream.sources[number] if number < len(stream.sources) else str(number)
                    unwrapped = first.to_bytes(8, "little") + last.to_bytes(8, "little")
                    yield Mark(source, first & 0xFFFFFFFF, last & 0xFFFFFFFF, CAUSES.get(cause, str(cause)), unwrapped)

    def _wait(self) -> None:
        receivers = [stream.receiver for stream in self._inputs]
        for stream in self._inputs:
            if not stream.begun:
                stream.receiver.open()  # the ring may have been made, or made anew, since
        if self._end_request is not None:
            waited = ", ".join(stream.name for stream in self._inputs if not stream.ended)
            self.still_waiting(f"the end of {waited}")
            for stream in self._inputs:
                self._end_if_gone(stream)
        held_s = time.monotonic() - self._held_since_s
        self.bell.wait(receivers, max(0.0, self.hold_s - held_s) if self._held else IDLE_S)

    def _end_if_gone(self, stream: LoggerInput) -> None:
        receiver = stream.receiver
        if stream.ended or receiver.has_data:
            return
        if not stream.begun and self._end_request is not None and self._end_request.why == "failed":
            stream.ended = True  # PREPARE failed before it came to this stream: no border will come
            return
        if receiver.writer_alive:
            return
        if receiver.settle() and receiver.has_data:
            return
        stream.ended = stream.gone = True
        self.message(f"{stream.name} is gone and has not ended the run", "warning")

    # ------------------------------------------------------------------ the end

    def _close(self, request: TransitionRequest) -> None:
        self._open = False
        self._end_request = None
        key = "written" if self._writer is not None else "discarded"
        told = {stream.name: {key: stream.written} for stream in self._inputs}
        gone = {s.name: {"sent": s.sent} for s in self._inputs if s.gone and s.sent is not None}
        results = [*request.collected.values(), {"written": told, "sent": gone}]
        account = Account.assembled(results, [stream.name for stream in self._inputs])
        writer = self._writer
        if writer is not None:
            report = {**account.report(), "balanced": account.balanced}
            odb = request.odb_json or self._began_odb
            try:
                self._write_run_event(False, request.run.number, _with_account(odb, report))
                self._until_written(lambda: writer.close(_status(request), report), writer)
            except PhloemError as error:
                self.message(f"{error}", "error")
                raise
            self._bytes = writer.bytes
            self._writer = None
        self.done({"written": told, "sent": gone, "files": self._files, "events": self._events, "bytes": self._bytes})

    def _write_run_event(self, begin: bool, number: int, odb: bytes) -> None:
        writer = self._writer
        if writer is None:
            return
        event = run_event(begin, number, int(time.time()), odb)
        self._until_written(lambda: writer.write([event], 1, None, None), writer)

    @property
    def _run_number(self) -> int:
        return self.run_info.number if self.run_info else -1

    def status(self) -> ComponentStatus:
        writer = self._writer
        size = writer.bytes if writer is not None else self._bytes
        counters = {"events": self._events, "bytes": size}
        per_s = self.rates.update(counters)
        return ComponentStatus(
            rates={"events_per_s": per_s.get("events", 0.0), "kb_per_s": per_s.get("bytes", 0.0) / 1024},
            counters=counters,
            sources={
                stream.name: {
                    "written": stream.written,
                    "backlog_bytes": stream.receiver.backlog_bytes,
                    "backlog_percent": round(100 * stream.receiver.fill, 1),
                }
                for stream in self._inputs
            },
        )

    def leave(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None


def _unpadded(frame: Frame) -> Iterator[Block]:
    """The events of a frame without the padding that the frame needs and the file must not have."""
    body, at = frame.body, 0
    while at < len(body):
        size = 16 + int.from_bytes(body[at + 12 : at + 16], "little")
        yield bytes(body[at : at + size])
        at += size + -size % 8


def _fsync(settings: dict[str, Any]) -> Any:
    return settings.get("Fsync", "close")


def _status(request: TransitionRequest) -> str:
    return {"released": "released", "failed": "failed"}.get(request.why, "complete")


def _with_account(odb_json: str, report: dict[str, Any]) -> bytes:
    """The ODB dump of the end-of-run event, with the account as a key of its own at the top."""
    tree = msgspec.json.decode(odb_json, type=dict[str, Any]) if odb_json else {}
    tree["Account"] = report
    return msgspec.json.format(msgspec.json.encode(tree), indent=2)

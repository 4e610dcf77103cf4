"""The event builder: judges each source's fragments, joins those of one serial number, writes what timing decided.

Matching is the kernel's (`phloem.kernel.Builder`; its meaning in plain Python in ``kernel/reference/``); this is
the shell around it: frames in, frames out, what silence and space force, and the account. Input is freed only
after the output frame that holds the checkpoint of it is committed.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any, ClassVar

import msgspec

from phloem.dataflow.component import IDLE_S, Component, Place, Result
from phloem.dataflow.output import BEGINNING, ENDING, border_text
from phloem.formats.midas.events import decode_event
from phloem.kernel import Builder, Cause, Frame, FrameKind, Policy, Stop
from phloem.model.errors import FormatError, SettingsError, TransportError
from phloem.model.event import Equipment
from phloem.protocol.control import ComponentStatus, Stream, TransitionRequest
from phloem.protocol.data import Section, encode_json, encode_marks, join_sections
from phloem.transport.shm import Doorbell, Receiver, Sender

__all__ = ["FATES", "BuilderSettings", "EventBuilder"]

FATES = ("received", "built", "incomplete", "late", "duplicate", "discarded", "quarantined")
LOOK_S = 0.1  # what one look at an empty ring counts towards silence, at most (datapath, section 3)
FRAME_ROOM_BYTES = 192 << 10  # of half a ring, for all but the event: reserve for borders, header, checkpoint
FRAMES_AHEAD = 8  # taken from a source before the others have come as far


_ODB_KEYS = {
    "timeout_ms": "Timeout ms",
    "reorder": "Reorder",
    "duplicate_window": "Duplicate window",
    "on_incomplete": "On incomplete",
    "user_field": "User Field",
}


class BuilderSettings(msgspec.Struct, rename=_ODB_KEYS):
    """`/Equipment/<EB>/Settings`. Times in ms, as the keys say."""

    timeout_ms: int = 10_000
    reorder: int = 0
    duplicate_window: int = 4096
    on_incomplete: str = "build"
    user_field: str = "100"


class _Source:
    """One source as the builder sees it."""

    def __init__(self, number: int, stream: Stream, client: str, bell: Doorbell) -> None:
        self.number = number
        self.name = stream.source
        self.receiver = Receiver(stream.ring, client, bell)
        self.border: Frame | None = None  # a frame that waits until all before it has been read
        self.begun = False
        self.ended = False
        self.silent_s = 0.0
        self.freed = 0
        self.sent: int | None = None
        self.last_total = 0


class EventBuilder(Component):
    """``reads``: prefix of the buffers whose EQ_EB equipment it joins (``-b``). ``equipment``: what it sends as."""

    kind: ClassVar[str] = "builder"

    def __init__(
        self,
        name: str,
        place: Place,
        reads: str,
        equipment: Equipment,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(name, place)
        self._reads = reads
        self._equipment = equipment
        self._first_settings = {**msgspec.to_builtins(BuilderSettings()), **(settings or {})}
        self._sources: list[_Source] = []
        self._kernel: Builder | None = None
        self._out: Sender | None = None
        self._out_ring = ""
        self._timeout_s = 10.0
        self._finishing = False
        self._undone = False
        self._finished = True
        self._names_checked = False
        self._told_too_large = False
        self._blocked_before_s = 0.0

    def describe(self) -> tuple[tuple[Equipment, ...], str, dict[str, dict[str, Any]], str]:
        return (self._equipment,), self._reads, {self._equipment.name: self._first_settings}, ""

    # ------------------------------------------------------------------ transitions

    def prepare(self, request: TransitionRequest) -> Result | None:
        plan = request.plan
        if not plan.inputs or not plan.outputs:
            raise SettingsError(f"builder {self.name} has no source in buffers that begin with {self._reads!r}")
        settings = self._parse(plan.settings)
        self._timeout_s = settings.timeout_ms / 1e3
        output = plan.outputs[0]
        self._sources = [_Source(i, s, self.name, self.bell) for i, s in enumerate(sorted(plan.inputs, key=_by_source))]
        self._kernel = Builder(
            [source.name for source in self._sources],
            event_id=output.equipment.event_id,
            trigger_mask=output.equipment.trigger_mask,
            reorder=settings.reorder,
            window=max(settings.duplicate_window, settings.reorder + 1),
            on_incomplete=Policy[settings.on_incomplete.upper()],
            max_event=output.capacity_bytes // 2 - FRAME_ROOM_BYTES,
        )
        self._kernel.begin_run(request.run.number)
        self._open_output(output)
        self._finishing = self._finished = self._names_checked = self._told_too_large = False
        beginning = join_sections([encode_json(self._who(output))])
        self._writer.send_frame(FrameKind.BEGIN_OF_RUN, border_text(self._equipment.name, BEGINNING), 1, beginning)
        table = ", ".join(f"{s.name} ({s.receiver.path.rsplit('/', 1)[-1]})" for s in self._sources)
        self.message(f"{self.name} builds run {request.run.number} from {table}")
        return {}

    def _parse(self, plain: dict[str, Any]) -> BuilderSettings:
        try:
            settings = msgspec.convert(plain, BuilderSettings, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"/Equipment/{self._equipment.name}/Settings: {error}") from None
        if settings.on_incomplete.upper() not in ("BUILD", "DISCARD"):
            raise SettingsError(
                f"/Equipment/{self._equipment.name}/Settings/On incomplete is {settings.on_incomplete!r}; "
                f"use build or discard"
            )
        return settings

    def _who(self, output: Stream) -> dict[str, Any]:
        return {
            "client": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "equipment": msgspec.to_builtins(output.equipment),
            "sources": [source.name for source in self._sources],
        }

    def _open_output(self, output: Stream) -> None:
        asked = (output.ring, output.source, output.buffer, output.capacity_bytes, tuple(output.readers))
        if self._out is None or self._out.settings != asked:
            self._out = None  # lets go of the ring's lock first
            self._out = Sender(*asked, keep_waiting=self._keep_waiting)
        self._blocked_before_s = self._out.blocked_s
        assert self.run_info is not None
        self._out.writer.begin_run(self.run_info.number)

    def end(self, request: TransitionRequest) -> Result | None:
        self._undone = request.why == "failed"
        self._finishing = True  # answered by `_finish`, when every source has ended and all is built
        return None

    # ------------------------------------------------------------------ the loop

    def turn(self) -> None:
        self.still_waiting()
        kernel = self._kernel
        if kernel is None or self._finished:
            self.bell.wait((), IDLE_S)
            return
        for source in self._sources:
            self._take_frames(kernel, source)
        why = self._build(kernel)
        if why is None or why == Stop.ROOM:
            return
        # The sources may all have ended before run control asks this one: there is nobody to answer until then.
        if self._finishing and why == Stop.DONE and all(source.ended for source in self._sources):
            self._finish(kernel)
            return
        self._wait_for_input(kernel)

    def _take_frames(self, kernel: Builder, source: _Source) -> None:
        while kernel.frames_waiting(source.number) < FRAMES_AHEAD and not source.ended:
            if source.border is not None:
                if not kernel.all_read(source.number):
                    return
                frame, source.border = source.border, None
                self._take_border(kernel, source, frame)
                continue
            taken = source.receiver.next()
            if taken is None:
                return
            source.silent_s = 0.0
            if taken.run != self._run_number:
                self._drop_foreign(kernel, source, taken)
            elif taken.kind == FrameKind.EVENTS:
                source.begun = True
                kernel.add_frame(source.number, taken)
                source.last_total = taken.total_events
            else:
                source.border = taken

    def _drop_foreign(self, kernel: Builder, source: _Source, frame: Frame) -> None:
        """Of a run that is closed: it has its place in that run's account, as lost, and none in this one's."""
        if frame.kind == FrameKind.EVENTS and frame.n_events:
            self._warn(f"{source.name} has {frame.n_events} fragments of run {frame.run} in its ring; they are dropped")
        kernel.add_border(source.number, frame)

    def _take_border(self, kernel: Builder, source: _Source, frame: Frame) -> None:
        """A border or text: it goes into the file as it is, in its place among the source's events."""
        source.begun = True
        if frame.kind == FrameKind.END_OF_RUN:
            source.sent = frame.total_events
            source.ended = True
        self._commit(kernel)
        self._send_frame(FrameKind.INFO, bytes(frame.body), frame.n_events, kernel)
        kernel.add_border(source.number, frame)
        if source.ended:
            kernel.end_source(source.number)

    def _build(self, kernel: Builder) -> Stop | None:
        out = self._writer
        result = kernel.build_into(out.writer)
        if result is None:
            out.wait_space()
            return None
        why = Stop(result[0])
        if kernel.events_too_large and not self._told_too_large:
            self._tell_too_large(kernel)
        if out.writer.open_events or self._has_freed(kernel):
            self._commit(kernel)
        return why

    def _has_freed(self, kernel: Builder) -> bool:
        return any(kernel.released(source.number) > source.freed for source in self._sources)

    def _commit(self, kernel: Builder) -> None:
        """Close the open frame with a checkpoint, and only then free what is decided in it."""
        out = self._writer
        if not out.writer.has_open:
            if not self._has_freed(kernel):
                return
            self._open_frame(kernel)
        if not self._names_checked and out.writer.open_events:
            self._check_names()
        out.writer.close_with(self._meta(kernel))
        self._free(kernel)

    def _open_frame(self, kernel: Builder) -> None:
        """Have a frame open for a checkpoint, with what can be built now in it."""
        while kernel.build_into(self._writer.writer) is None:
            self._writer.wait_space()

    def _free(self, kernel: Builder) -> None:
        for source in self._sources:
            position = kernel.released(source.number)
            if position > source.freed:
                source.freed = position
                source.receiver.release(position)

    def _meta(self, kernel: Builder, *more: tuple[Section, bytes]) -> bytes:
        generations = [source.receiver.generation for source in self._sources]
        parts = [(Section.CHECKPOINT, kernel.checkpoint(generations)), *more]
        marks = kernel.take_marks()
        if marks:
            parts.append(encode_marks(marks))
        return join_sections(parts)

    def _send_frame(self, kind: FrameKind, body: bytes, n_events: int, kernel: Builder) -> None:
        self._writer.send_frame(kind, body, n_events, self._meta(kernel))

    # ------------------------------------------------------------------ silence and space

    def _wait_for_input(self, kernel: Builder) -> None:
        # One that is far ahead of the others always has data: waiting for it would be spinning, and no silence at all.
        receivers = [source.receiver for source in self._sources if self._takes(kernel, source)]
        for source in self._sources:
            if not source.begun:
                source.receiver.open()  # the ring may have been made, or made anew, since
        began_s = time.monotonic()
        self.bell.wait(receivers, IDLE_S)
        looked_s = min(time.monotonic() - began_s, LOOK_S)
        waited = [self._sources[number] for number in kernel.waited_for()]
        if waited:
            names = ", ".join(source.name for source in waited)
            self.still_waiting(f"{names} (event {kernel.oldest_serial})")
        for source in waited:
            if not source.receiver.has_data:
                self._count_silence(kernel, source, looked_s)
        if self._finishing:
            for source in self._sources:
                self._end_if_gone(kernel, source)

    def _takes(self, kernel: Builder, source: _Source) -> bool:
        """Whether the next frame of a source would be taken now."""
        return source.border is None and not source.ended and kernel.frames_waiting(source.number) < FRAMES_AHEAD

    def _count_silence(self, kernel: Builder, source: _Source, looked_s: float) -> None:
        source.silent_s += looked_s
        if source.silent_s < min(self._timeout_s, 0.3):
            return
        alive = source.receiver.writer_alive
        if self._deadlocked(source):
            kernel.close_without(source.number, Cause.SPACE)
            self._warn(
                f"event {kernel.oldest_serial} is closed without {source.name}: its frontend is blocked by another "
                f"full ring; raise /Experiment/Buffer sizes for that buffer"
            )
        elif source.silent_s >= self._timeout_s or not alive:
            if not alive and source.receiver.settle() and source.receiver.has_data:
                return  # what it had sent before it died is there now
            kernel.close_without(source.number, Cause.SILENCE)
            why = "is silent" if alive else "is gone"
            self._warn(
                f"{source.name} {why} since event {kernel.oldest_serial}; events are built without it "
                f"until it sends again"
            )

    def _deadlocked(self, source: _Source) -> bool:
        """The writer of this empty ring is the process that waits for space in another ring of ours."""
        writer = source.receiver.writer_process
        return writer != 0 and any(
            other is not source and other.receiver.writer_waiting and other.receiver.writer_process == writer
            for other in self._sources
        )

    def _end_if_gone(self, kernel: Builder, source: _Source) -> None:
        """END was asked, and this source's process is no more: its ring says what it had sent."""
        if source.ended or source.border is not None or source.receiver.has_data:
            return
        if self._undone and not source.begun:  # PREPARE failed before it came to this source: no border will come
            source.ended = True
            kernel.end_source(source.number)
            return
        if source.receiver.writer_alive:
            return
        if source.receiver.settle() and source.receiver.has_data:
            return
        source.ended = True
        kernel.end_source(source.number)
        self._warn(f"{source.name} is gone and has not ended the run; it had sent {source.last_total} fragments")

    def _tell_too_large(self, kernel: Builder) -> None:
        self._told_too_large = True
        _, _, buffer, capacity, _ = self._writer.settings
        self.message(
            f"a built event of {kernel.largest_refused} bytes is too large for buffer {buffer} of {capacity} bytes "
            f"and is discarded; raise /Experiment/Buffer sizes/{buffer}",
            "error",
        )

    def _warn(self, text: str) -> None:
        self.message(text, "warning")

    def _check_names(self) -> None:
        """Two fragments with the same bank name: readers that key banks by name see one of them only."""
        self._names_checked = True
        try:
            event = decode_event(self._writer.writer.first_open_event)[0]
        except FormatError:
            return
        names = [bank.name for bank in event.banks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            self._warn(
                f"bank {', '.join(twice)} is in more than one fragment of event {event.serial_number}: give each "
                f"frontend its own bank names (say, with the index)"
            )

    def _keep_waiting(self) -> None:
        self.still_waiting("space in its output ring, which the logger must read")
        if self.ending:
            raise TransportError(f"builder {self.name} was told to end while its output ring was full")

    # ------------------------------------------------------------------ the end

    def _finish(self, kernel: Builder) -> None:
        self._commit(kernel)
        fates = {s.name: self._fates(kernel, s) for s in self._sources}
        sent = {
            "sent": self._writer.writer.total_events,
            "blocked_s": round(self._writer.blocked_s - self._blocked_before_s, 3),
        }
        lost = {name: part["sent"] - _accounted(part) for name, part in fates.items() if part["sent"] is not None}
        for name, number in lost.items():
            if number:
                self._warn(f"{name} sent {number} fragments that never came here")
        ending = self._meta(kernel, encode_json({"sources": fates, **sent}))
        self._writer.send_frame(FrameKind.END_OF_RUN, border_text(self._equipment.name, ENDING), 1, ending)
        self._finished, self._finishing = True, False
        self._free(kernel)
        told = {name: {k: v for k, v in part.items() if k not in ("received", "sent")} for name, part in fates.items()}
        gone = {s.name: {"sent": s.last_total} for s in self._sources if s.sent is None and s.begun}
        self.done({"fates": told, "sent": {self._equipment.name: sent, **gone}})

    def _fates(self, kernel: Builder, source: _Source) -> dict[str, Any]:
        return {"sent": source.sent, **dict(zip(FATES, kernel.fates(source.number), strict=True))}

    @property
    def _run_number(self) -> int:
        return self.run_info.number if self.run_info else -1

    @property
    def _writer(self) -> Sender:
        if self._out is None:
            raise SettingsError(f"builder {self.name} is not prepared")
        return self._out

    def status(self) -> ComponentStatus:
        kernel, out = self._kernel, self._out
        if kernel is None or out is None:
            return ComponentStatus()
        counters = {
            "events": kernel.events_built,
            "incomplete": kernel.events_incomplete,
            "bytes": out.writer.total_bytes,
        }
        per_s = self.rates.update(counters)
        sources: dict[str, dict[str, float]] = {}
        for source in self._sources:
            part: dict[str, float] = dict(zip(FATES, kernel.fates(source.number), strict=True))
            part["last_serial"] = kernel.last_serial(source.number)
            part["backlog_bytes"] = source.receiver.backlog_bytes
            part["backlog_percent"] = round(100 * source.receiver.fill, 1)
            sources[source.name] = part
        return ComponentStatus(
            rates={"events_per_s": per_s.get("events", 0.0), "kb_per_s": per_s.get("bytes", 0.0) / 1024},
            counters=counters,
            sources=sources,
        )

    def leave(self) -> None:
        self._out = None


def _by_source(stream: Stream) -> str:
    return stream.source


def _accounted(part: dict[str, Any]) -> int:
    return sum(part[name] for name in FATES[1:])

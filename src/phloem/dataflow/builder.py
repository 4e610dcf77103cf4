"""The event builder: judges each source's fragments, joins those of one serial number, writes what timing decided.

Matching is the kernel's (`phloem.kernel.Builder`; its meaning in plain Python in ``kernel/reference/``); this is
the shell around it: transitions, frames in, what silence and space force, and the account. Frames go out in
``builder_output.py``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from traceback import format_exception
from types import ModuleType
from typing import Any, ClassVar

import msgspec

from phloem.dataflow.builder_input import SHIFTS_TOLD, BuilderInput
from phloem.dataflow.builder_output import BuilderOutput
from phloem.dataflow.building import (
    FATES,
    BuilderSettings,
    make_builder,
    parse_settings,
    shift_text,
    source_settings,
)
from phloem.dataflow.component import IDLE_S, Component, Place, Result
from phloem.dataflow.eb_user import UserCode
from phloem.dataflow.output import BEGINNING, ENDING, border_text
from phloem.formats.midas.events import decode_event
from phloem.kernel import Builder, Cause, Frame, FrameKind, Stop
from phloem.model.errors import FormatError, PhloemError, ProtocolError, SettingsError, TransportError, UserCodeError
from phloem.model.event import Equipment
from phloem.protocol.control import ComponentStatus, Stream, TransitionRequest
from phloem.protocol.data import decode_json, encode_json, join_sections
from phloem.transport.shm import Sender

__all__ = ["EventBuilder"]

LOOK_AGAIN_S = 0.2  # how often the counters for the status are gathered
FRAME_ROOM_BYTES = 192 << 10  # of half a ring, for all but the event: reserve for borders, header, checkpoint
FRAMES_AHEAD = 8  # taken from a source before the kernel has read them
END_NOTE = "fragments that still come are drained and counted as discarded"


class EventBuilder(Component):
    """``reads``: prefix of the buffers whose EQ_EB equipment it joins (``-b``). ``equipment``: what it sends as.

    ``load``: gives the module of a user file that the setting 'User code' names.
    """

    kind: ClassVar[str] = "builder"

    def __init__(
        self,
        name: str,
        place: Place,
        reads: str,
        equipment: Equipment,
        settings: dict[str, Any] | None = None,
        load: Callable[[str], ModuleType] | None = None,
    ) -> None:
        super().__init__(name, place)
        self._reads = reads
        self._equipment = equipment
        self._first_settings = {**msgspec.to_builtins(BuilderSettings()), **(settings or {})}
        self._load = load
        self._inputs: list[BuilderInput] = []
        self._kernel: Builder | None = None
        self._sender: Sender | None = None
        self._out: BuilderOutput | None = None
        self._user: UserCode | None = None
        self._event_limit = 0.0
        self._finishing = False
        self._undone = False
        self._finished = True
        self._names_checked = False
        self._told_too_large = False
        self._blocked_before_s = 0.0
        self._open: tuple[int, float] | None = None  # the oldest open event, and since when it is that
        self._status = ComponentStatus()
        self._status_due_s = 0.0

    def describe(self) -> tuple[tuple[Equipment, ...], str, dict[str, dict[str, Any]], str]:
        return (self._equipment,), self._reads, {self._equipment.name: self._first_settings}, ""

    # ------------------------------------------------------------------ transitions

    def prepare(self, request: TransitionRequest) -> Result | None:
        plan = request.plan
        if not plan.inputs or not plan.outputs:
            raise SettingsError(f"builder {self.name} has no source in buffers that begin with {self._reads!r}")
        where = f"/Equipment/{self._equipment.name}/Settings"
        settings = parse_settings(plan.settings, where)
        output, streams = plan.outputs[0], sorted(plan.inputs, key=lambda stream: stream.source)
        own = source_settings(plan.settings, [stream.source for stream in streams], where)
        self._kernel = kernel = make_builder(
            settings,
            own,
            output.equipment.event_id,
            output.equipment.trigger_mask,
            max_event_bytes=output.capacity_bytes // 2 - FRAME_ROOM_BYTES,
        )
        kernel.begin_run(request.run.number)
        self._inputs = [
            BuilderInput(i, stream, self.name, self.bell, settings, own[stream.source])
            for i, stream in enumerate(streams)
        ]
        self._user = self._load_user(settings, request.run.number, list(own))
        sender = self._open_output(output)
        self._out = BuilderOutput(sender, kernel, self._inputs, self._user, self._user_failed)
        self._event_limit = output.equipment.event_limit
        self._finishing = self._finished = self._names_checked = self._told_too_large = False
        self._open = None
        beginning = join_sections([encode_json(self._who(output))])
        sender.send_frame(FrameKind.BEGIN_OF_RUN, border_text(self._equipment.name, BEGINNING), 1, beginning)
        if self._user is not None:
            self._user.begin_of_run(settings.user_field, restarted=False)
        self._tell_sources(request.run.number)
        return {}

    def _load_user(self, settings: BuilderSettings, run: int, names: list[str]) -> UserCode | None:
        if not settings.user_code:
            if settings.user_build:
                raise SettingsError("User build is y, but User code names no file; the builder would send nothing")
            return None
        if self._load is None:
            raise SettingsError(f"this builder has no way to load User code {settings.user_code!r}")
        module = self._load(settings.user_code)
        return UserCode(module, run, names, settings.user_build, settings.user_error.lower() == "skip")

    def _tell_sources(self, run: int) -> None:
        table = ", ".join(
            f"{source.name} ({source.stream.buffer}{'' if source.required else ', optional'})"
            for source in self._inputs
        )
        self.message(f"{self.name} builds run {run} from {table}")

    def _who(self, output: Stream) -> dict[str, Any]:
        return {
            "client": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "equipment": msgspec.to_builtins(output.equipment),
            "sources": [source.name for source in self._inputs],
        }

    def _open_output(self, output: Stream) -> Sender:
        asked = (output.ring, output.source, output.buffer, output.capacity_bytes, tuple(output.readers))
        if self._sender is None or self._sender.settings != asked:
            self._out = self._sender = None  # lets go of the ring's lock first
            self._sender = Sender(*asked, keep_waiting=self._keep_waiting)
        self._blocked_before_s = self._sender.blocked_s
        assert self.run_info is not None
        self._sender.writer.begin_run(self.run_info.number)
        return self._sender

    def end(self, request: TransitionRequest) -> Result | None:
        self._undone = request.why == "failed"
        self._finishing = True  # answered by `_finish`, when every source has ended and all is built
        return None

    # ------------------------------------------------------------------ the loop

    def turn(self) -> None:
        self.still_waiting()
        kernel, out = self._kernel, self._out
        if kernel is None or out is None or self._finished:
            self.bell.wait((), IDLE_S)
            return
        for source in self._inputs:
            self._take_frames(kernel, out, source)
        why = out.build()
        self._look_at(kernel, out, why)
        if why is None or why == Stop.ROOM:
            return
        if why in (Stop.POLICY, Stop.SHIFTED):
            self._stop_run(kernel, why)
            return
        # The sources may all have ended before run control asks this one: there is nobody to answer until then.
        if self._finishing and why == Stop.DONE and all(source.ended for source in self._inputs):
            self._finish(kernel, out)
            return
        self._wait_for_input(kernel)

    def _take_frames(self, kernel: Builder, out: BuilderOutput, source: BuilderInput) -> None:
        while kernel.frames_unread(source.number) < FRAMES_AHEAD and not source.ended:
            if source.border is not None:
                if not kernel.all_read(source.number):
                    return
                frame, source.border = source.border, None
                self._take_border(kernel, out, source, frame)
                continue
            taken = source.receiver.next()
            if taken is None:
                return
            source.silent_s = 0.0
            if taken.run != self._run_number:
                self._drop_foreign(kernel, source, taken)
            elif taken.kind == FrameKind.EVENTS:
                source.begun = True
                self._add_frame(kernel, source, taken)
                source.last_total = taken.total_events
            else:
                source.border = taken
                kernel.border_follows(source.number)

    def _add_frame(self, kernel: Builder, source: BuilderInput, frame: Frame) -> None:
        if self._user is None or not self._user.gives_times:
            kernel.add_frame(source.number, frame)
            return
        try:
            times = self._user.times(source.name, bytes(frame.body), frame.n_events)
        except UserCodeError as error:
            self._user_failed(error)
            times = None
        kernel.add_frame(source.number, frame, times)

    def _drop_foreign(self, kernel: Builder, source: BuilderInput, frame: Frame) -> None:
        """Of a run that is closed: it has its place in that run's account, as lost, and none in this one's."""
        if frame.kind == FrameKind.EVENTS and frame.n_events:
            self._warn(f"{source.name} has {frame.n_events} fragments of run {frame.run} in its ring; they are dropped")
        kernel.add_border(source.number, frame)

    def _take_border(self, kernel: Builder, out: BuilderOutput, source: BuilderInput, frame: Frame) -> None:
        """A border or text: it goes into the file as it is, in its place among the source's events."""
        source.begun = True
        if frame.kind == FrameKind.END_OF_RUN:
            source.sent = frame.total_events
            source.ended = True
        elif frame.kind == FrameKind.REJOIN:
            self._take_rejoin(kernel, source, frame)
        out.send(FrameKind.INFO, bytes(frame.body), frame.n_events)
        kernel.add_border(source.number, frame)
        if source.ended:
            kernel.end_source(source.number)

    def _take_rejoin(self, kernel: Builder, source: BuilderInput, frame: Frame) -> None:
        """The source is back, or says that its counter starts again."""
        try:
            told = decode_json(frame.meta).get("restarted")
            if told is None:
                self.message(f"{source.name} is back in run {self._run_number}")
                return
            serial, event = int(told["serial_number"]), int(told["event"])
        except (ProtocolError, KeyError, TypeError, ValueError) as error:
            self._warn(f"{source.name} sent a REJOIN frame that cannot be read: {error!r}")
            return
        kernel.renumber(source.number, serial & 0xFFFFFFFF, event & 0xFFFFFFFF)
        source.restart_told = False
        self.message(f"{source.name} says that its counter starts again: {serial} is event {event} from here on")

    # ------------------------------------------------------------------ what it sees

    def _look_at(self, kernel: Builder, out: BuilderOutput, why: Stop | None) -> None:
        """After each building: what people must be told, and what the status shows."""
        if kernel.events_too_large and not self._told_too_large:
            self._tell_too_large(kernel, out)
        if not self._names_checked and kernel.events_built:
            self._check_names(out)
        for number, event, shift in kernel.take_reports():
            source = self._inputs[number]
            source.shifts_told += 1
            if source.shifts_told <= SHIFTS_TOLD:
                last = "; further changes of it are not told" if source.shifts_told == SHIFTS_TOLD else ""
                self._warn(shift_text(source.name, event, shift) + last)
        for source in self._inputs:
            if not source.restart_told and kernel.restarted(source.number):
                source.restart_told = True
                self._tell_restarted(kernel, source)
        if self._user is not None and self._user.first_error is not None:
            self._tell_user_error(self._user.first_error, "the event is skipped; further ones are only counted")
            self._user.first_error = None
        if 0 < self._event_limit <= kernel.events_built:
            self.ask_end(f"it has its {self._event_limit:.0f} events")
        now_s = time.monotonic()
        if now_s >= self._status_due_s or why == Stop.DONE:
            self._status_due_s = now_s + LOOK_AGAIN_S
            self._status = self._gather_status(kernel, out, now_s)

    def _tell_restarted(self, kernel: Builder, source: BuilderInput) -> None:
        self.message(
            f"{source.name} numbers its fragments anew (now {kernel.last_serial(source.number)}) without having said "
            f"so: nobody knows which belongs to which event. They are not built any more and are kept as late until "
            f"the run ends; see 'Counters that restart' in docs/event-building.md",
            "error",
        )

    def _tell_too_large(self, kernel: Builder, out: BuilderOutput) -> None:
        self._told_too_large = True
        _, _, buffer, capacity, _ = out.sender.settings
        self.message(
            f"a built event of {kernel.largest_refused} bytes is too large for buffer {buffer} of {capacity} bytes "
            f"and is discarded; raise /Experiment/Buffer sizes/{buffer}",
            "error",
        )

    def _check_names(self, out: BuilderOutput) -> None:
        """Two fragments with the same bank name: readers that key banks by name see one of them only."""
        self._names_checked = True
        try:
            event = decode_event(out.first_event)[0]
        except FormatError:
            return
        names = [bank.name for bank in event.banks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            self._warn(
                f"bank {', '.join(twice)} is more than once in event {event.serial_number}: give each frontend its own "
                f"bank names (say, with the index)"
            )

    def _warn(self, text: str) -> None:
        self.message(text, "warning")

    # ------------------------------------------------------------------ what ends a run

    def _stop_run(self, kernel: Builder, why: Stop) -> None:
        event = kernel.oldest_serial
        if why == Stop.POLICY:
            reason = f"event {event} is not complete, and On incomplete is stop"
        else:
            reason = f"times disagree at event {event}, and Time check is stop"
        self._discard_rest(kernel, reason)

    def _user_failed(self, error: UserCodeError) -> None:
        self._tell_user_error(error, "the run is ended")
        if self._kernel is not None:
            self._discard_rest(self._kernel, str(error))

    def _tell_user_error(self, error: UserCodeError, consequence: str) -> None:
        cause = error.__cause__
        where = error.where or ("".join(format_exception(cause)) if cause is not None else "")
        self.message(f"{error}; {consequence}\n{where}".rstrip(), "error")

    def _discard_rest(self, kernel: Builder, reason: str) -> None:
        self.message(f"{reason}; {END_NOTE}", "error")
        kernel.discard_rest()
        self.ask_end(reason)

    # ------------------------------------------------------------------ silence and space

    def _wait_for_input(self, kernel: Builder) -> None:
        # One that is far ahead of the others always has data: waiting for it would be spinning, and no silence at all.
        receivers = [source.receiver for source in self._inputs if self._takes(kernel, source)]
        for source in self._inputs:
            if not source.begun:
                source.receiver.open()  # the ring may have been made, or made anew, since
        waited = [self._inputs[number] for number in kernel.waited_for()]
        began_s = time.monotonic()
        self.bell.wait(receivers, min([IDLE_S, *(source.patience_s for source in waited)]))
        looked_s = time.monotonic() - began_s
        if waited:
            names = ", ".join(source.name for source in waited)
            self.still_waiting(f"{names} (event {kernel.oldest_serial})")
        for source in waited:
            if not source.receiver.has_data and source.look(looked_s):
                self._close_without(kernel, source)
        if self._finishing:
            for source in self._inputs:
                self._end_if_gone(kernel, source)

    def _takes(self, kernel: Builder, source: BuilderInput) -> bool:
        """Whether the next frame of a source would be taken now."""
        return source.border is None and not source.ended and kernel.frames_unread(source.number) < FRAMES_AHEAD

    def _close_without(self, kernel: Builder, source: BuilderInput) -> None:
        """It was silent for long enough to ask why."""
        alive = source.receiver.writer_alive
        if self._deadlocked(source):
            kernel.close_without(source.number, Cause.SPACE)
            self._warn(
                f"event {kernel.oldest_serial} is closed without {source.name}: its frontend is blocked by another "
                f"full ring; raise /Experiment/Buffer sizes for that buffer"
            )
        elif source.silent_s >= source.timeout_s or not alive:
            if not alive and source.receiver.settle() and source.receiver.has_data:
                return  # what it had sent before it died is there now
            kernel.close_without(source.number, source.cause)
            if not source.required and alive:
                return  # that is what optional means
            why = "is silent" if alive else "is gone"
            self._warn(
                f"{source.name} {why} since event {kernel.oldest_serial}; events are built without it "
                f"until it sends again"
            )

    def _deadlocked(self, source: BuilderInput) -> bool:
        """The writer of this empty ring is the process that waits for space in another ring of ours."""
        writer = source.receiver.writer_process
        return writer != 0 and any(o is not source and o.shares_process(writer) for o in self._inputs)

    def _end_if_gone(self, kernel: Builder, source: BuilderInput) -> None:
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

    def _keep_waiting(self) -> None:
        self.still_waiting("space in its output ring, which the logger must read")
        if self.ending:
            raise TransportError(f"builder {self.name} was told to end while its output ring was full")

    # ------------------------------------------------------------------ the end

    def _finish(self, kernel: Builder, out: BuilderOutput) -> None:
        if self._user is not None:
            try:
                self._user.end_of_run()
            except PhloemError as error:
                self.message(str(error), "error")
        out.commit()
        fates = {s.name: self._fates(kernel, s) for s in self._inputs}
        sent = {
            "sent": out.sender.writer.total_events,
            "blocked_s": round(out.sender.blocked_s - self._blocked_before_s, 3),
        }
        lost = {name: part["sent"] - _accounted(part) for name, part in fates.items() if part["sent"] is not None}
        for name, number in lost.items():
            if number:
                self._warn(f"{name} sent {number} fragments that never came here")
        if self._user is not None and self._user.errors:
            self._warn(f"user code failed in {self._user.errors} events, which are counted as discarded")
        if kernel.not_kept:
            self._warn(f"{kernel.not_kept} late fragments were too large for a frame and are counted, but not kept")
        text = border_text(self._equipment.name, ENDING)
        out.send(FrameKind.END_OF_RUN, text, 1, encode_json({"sources": fates, **sent}))
        out.free()
        self._finished, self._finishing = True, False
        self._status = self._gather_status(kernel, out, time.monotonic())
        told = {name: {k: v for k, v in part.items() if k not in ("received", "sent")} for name, part in fates.items()}
        gone = {s.name: {"sent": s.last_total} for s in self._inputs if s.sent is None and s.begun}
        self.done({"fates": told, "sent": {self._equipment.name: sent, **gone}})

    def _fates(self, kernel: Builder, source: BuilderInput) -> dict[str, Any]:
        return {"sent": source.sent, **dict(zip(FATES, kernel.fates(source.number), strict=True))}

    @property
    def _run_number(self) -> int:
        return self.run_info.number if self.run_info else -1

    # ------------------------------------------------------------------ status

    def status(self) -> ComponentStatus:
        return self._status  # gathered by the main loop: the kernel is not for two threads

    def _gather_status(self, kernel: Builder, out: BuilderOutput, now_s: float) -> ComponentStatus:
        counters = {
            "events": kernel.events_built,
            "incomplete": kernel.events_incomplete,
            "bytes": out.sender.writer.total_bytes,
        }
        sources: dict[str, dict[str, float]] = {source.name: self._part(kernel, source) for source in self._inputs}
        received = {f"{name} received": int(part["received"]) for name, part in sources.items()}
        per_s = self.rates.update({**counters, **received})
        for name, part in sources.items():
            part["events_per_s"] = per_s.get(f"{name} received", 0.0)
        rates = {"events_per_s": per_s.get("events", 0.0), "kb_per_s": per_s.get("bytes", 0.0) / 1024}
        if self._user is not None:
            counters["user_errors"] = self._user.errors
        if kernel.has_open:
            if self._open is None or self._open[0] != kernel.oldest_serial:
                self._open = (kernel.oldest_serial, now_s)
            counters["oldest_open"] = self._open[0]
            rates["oldest_open_s"] = round(now_s - self._open[1], 3)
        else:
            self._open = None
            counters["oldest_open"], rates["oldest_open_s"] = 0, 0.0
        return ComponentStatus(rates=rates, counters=counters, sources=sources)

    def _part(self, kernel: Builder, source: BuilderInput) -> dict[str, float]:
        number, receiver = source.number, source.receiver
        part: dict[str, float] = dict(zip(FATES, kernel.fates(number), strict=True))
        part["last_serial"] = kernel.last_serial(number)
        part["skew"] = self._skew(kernel, source)
        waiting = receiver.newest_total(self._run_number) - source.last_total
        part["backlog_events"] = max(0, waiting) + kernel.backlog(number)
        part["backlog_bytes"] = receiver.backlog_bytes
        part["backlog_percent"] = round(100 * receiver.fill, 1)
        part["required"] = int(source.required)
        part["flagged"] = int(kernel.restarted(number))
        part["absent"] = int(kernel.absent(number))
        return part

    def _skew(self, kernel: Builder, source: BuilderInput) -> int:
        """How far it is ahead of all others (positive) or behind the first of them: events, or ns by time."""
        own = kernel.highest_key(source.number)
        others = [kernel.highest_key(other.number) for other in self._inputs if other is not source]
        return own - max(others) if own and any(others) else 0

    def leave(self) -> None:
        self._out = self._sender = None


def _accounted(part: dict[str, Any]) -> int:
    return sum(part[name] for name in FATES[1:])

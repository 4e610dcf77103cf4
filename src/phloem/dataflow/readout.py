"""The process around a user's `Frontend`: polls, reads, sends, and answers run control.

Between two events only one attribute is looked at, so that a slow control plane never slows the readout.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from traceback import FrameSummary, extract_tb
from typing import Any, ClassVar

import numpy as np

from phloem.dataflow.component import Component, Place, Result, user_error
from phloem.dataflow.frontend import BatchDraft, EventDraft, Frontend, SupereventDraft
from phloem.dataflow.output import Output
from phloem.dataflow.schedule import Schedule, Superevent, has_no_effect, is_clocked, is_polled
from phloem.dataflow.variables import Copies
from phloem.model.errors import PhloemError, SettingsError, TransitionError
from phloem.model.event import Equipment, ReadOn
from phloem.protocol.control import ComponentStatus, Registered, Stream, TransitionRequest
from phloem.protocol.state import State

__all__ = ["Readout", "client_name"]

BUSY_ON, BUSY_OFF = 0.75, 0.5  # design, section 7
LEAVE_S = 5.0  # how long a frontend that was told to end tries to send what it has in hand
SLICE_S = 0.05  # of uninterrupted polling, at most, between two looks at run control


def client_name(name: str, index: int | None) -> str:
    """``fe`` and 1 become ``fe01``, as mfe does with ``-i``."""
    return name if index is None else f"{name}{index:02d}"


class Readout(Component):
    """Runs one `Frontend`. ``settings``: first values for its equipment's Settings, from the experiment file."""

    kind: ClassVar[str] = "frontend"

    def __init__(
        self,
        frontend_class: type[Frontend],
        place: Place,
        index: int | None = None,
        name: str = "",
        settings: dict[str, Any] | None = None,
        file: str = "",
    ) -> None:
        self.frontend = frontend_class(index, self)
        super().__init__(name or client_name(self.frontend.name, index), place)
        self._equipment = tuple(e.indexed(self.frontend.index) for e in self.frontend.equipment)
        if not self._equipment:
            raise SettingsError(f"frontend {self.name} declares no equipment: give it a list `equipment`")
        for equipment in self._equipment:
            equipment.check()
            if not callable(getattr(self.frontend, equipment.readout, None)):
                raise SettingsError(
                    f"equipment {equipment.name!r} is read by {equipment.readout!r}, and {frontend_class.__name__} has "
                    f"no such method"
                )
        self._first_settings = {**self.frontend.default_settings, **(settings or {})}
        self.frontend.settings.update(self._first_settings)
        self._file = file
        self._current = self._equipment  # as the ODB has it
        self._outputs: dict[str, Output] = {}
        self._schedule = Schedule(self._equipment)
        self._superevents: dict[str, tuple[Superevent, SupereventDraft]] = {}
        self._copies = Copies(lambda copy: self._link.offer(copy.equipment, copy), self._warn)
        self._complaints: dict[str, str] = {}
        self._busy_told = False
        self._rejoins = False  # prepared to go on in a run that has begun; `rejoin` is called at BEGIN
        self._ending_since_s: float | None = None
        self._read_batch: Callable[..., None] | None = getattr(self.frontend, "read_batch", None)

    def describe(self) -> tuple[tuple[Equipment, ...], str, dict[str, dict[str, Any]], str]:
        settings = {e.name: dict(self._first_settings) for e in self._equipment}
        return self._equipment, "", settings, self._file

    def started(self) -> None:
        self._take_settings()
        for equipment in self._current:
            for what in has_no_effect(equipment, self._reads_batches(equipment)):
                self.message(f"/Equipment/{equipment.name}/Common has a value without effect: {what}", "warning")
        self._hook("init")
        self._schedule.restart(time.monotonic())

    def _take_registered(self, registered: Registered) -> None:
        super()._take_registered(registered)
        if registered.equipment:
            self._current = registered.equipment
        if self.state == State.STOP:
            self._schedule = Schedule(self._current)
            self._schedule.restart(time.monotonic())

    # ------------------------------------------------------------------ transitions

    def prepare(self, request: TransitionRequest) -> Result | None:
        self._take_settings()
        self._flush()
        streams = {stream.source: stream for stream in request.plan.outputs}
        self._outputs = {name: self._open(stream) for name, stream in streams.items()}
        self._schedule = Schedule(output.equipment for output in self._outputs.values())
        self._superevents.clear()
        self._complaints.clear()
        self.frontend.run = request.run
        self.frontend.ended_at_s = None
        self.state = State.READY
        who = {"client": self.name, "host": socket.gethostname(), "pid": os.getpid(), "file": self._file}
        self._rejoins = request.begun and any(output.holds(request.run.number) for output in self._outputs.values())
        for output in self._outputs.values():
            if output.holds(request.run.number):
                output.rejoin(who)
            else:
                output.begin(request.run.number, who)
        try:
            if not self._rejoins:
                self._hook("prepare", request.run.number)
        except PhloemError:
            self._give_up(request)
            raise
        return {"notes": {name: {"continued": o.sender.writer.continued} for name, o in self._outputs.items()}}

    def _flush(self) -> None:
        # on its own: what `prepare` names keeps its ring's lock until `prepare` is over
        for output in self._outputs.values():
            output.sender.writer.flush()

    def _open(self, stream: Stream) -> Output:
        kept = self._outputs.pop(stream.source, None)
        if kept is not None and kept.fits(stream):
            kept.stream, kept.equipment = stream, stream.equipment
            return kept
        del kept  # lets go of the ring's lock before the new one is made
        return Output(stream, self._keep_waiting)

    def _give_up(self, request: TransitionRequest) -> None:
        """What has begun must end, or those who read it wait for the end. But a source that was to come back stays as
        it was, without a writer, so that it can still come back when the fault is mended."""
        if request.why == "rejoin":
            self._outputs.clear()
        for output in self._outputs.values():
            output.end()
        self._rejoins = False

    def begin(self, request: TransitionRequest) -> Result | None:
        self.frontend.begun_at_s = request.time_s
        try:
            self._hook_begin(request.run.number)
            if request.why != "rejoin":
                for output in self._read_at(ReadOn.BOR):
                    self._read(output, "at begin of run")
        except PhloemError:
            if request.why == "rejoin":
                self._give_up(request)
            raise
        self._schedule.restart(time.monotonic())
        return {}

    def _hook_begin(self, run: int) -> None:
        if not self._rejoins:
            self._hook("begin_of_run", run)
            return
        self._rejoins = False
        sent = {name: output.sender.writer.total_events for name, output in self._outputs.items()}
        self._hook("rejoin", run, sent, {name: output.next_serial for name, output in self._outputs.items()})

    def end(self, request: TransitionRequest) -> Result | None:
        self.frontend.ended_at_s = request.time_s or None
        try:
            if not self._rejoins:  # else the end came before the user's code knew of the run
                self._hook("end_of_run", request.run.number)
            if self.state == State.RUN:
                self._drain()
        except PhloemError as error:  # whatever user code does: the border is sent, or the others would wait for it
            self._report(error)
        self._read_last()
        sent = {name: output.end() for name, output in self._outputs.items()}
        self._tell_busy(0.0)
        self._schedule = Schedule(self._current)
        self._rejoins = False
        self.frontend.run = None
        return {"sent": sent}

    def _drain(self) -> None:
        """Read what the hardware still holds: the last event of a run must not be lost (MIDAS elog 489)."""
        until_s = time.monotonic() + self.frontend.drain_s
        polled = self._polled()
        while polled and time.monotonic() < until_s and self._polls():
            polled = [output for output in polled if self._read_trigger(output)]

    def _read_last(self) -> None:
        """What is behind the triggers' events: open super-events, and equipment that is read at the end of a run."""
        sends = [partial(self._send_superevent, self._outputs[name]) for name in self._superevents]
        if self.state == State.RUN:
            sends += [partial(self._read, output, "at end of run") for output in self._read_at(ReadOn.EOR)]
        for send in sends:
            try:
                send()
            except PhloemError as error:
                self._report(error)

    def _read_at(self, when: ReadOn) -> list[Output]:
        return [o for o in self._outputs.values() if o.equipment.read_on & when and o.left != 0]

    # ------------------------------------------------------------------ the loop

    def turn(self) -> None:
        self.still_waiting()
        self._guarded(self.frontend.loop)
        if self.state != State.RUN:
            self._look_at_clocked()
            self._sleep(max(0.001, self._schedule.until_next_s(self.state, time.monotonic())))
            return
        try:
            self._read_clocked()
            polled = self._polled()
            if polled:
                self._poll_for(polled)
            else:
                self._sleep(self._schedule.until_next_s(State.RUN, time.monotonic()))
        except PhloemError as error:
            self._readout_failed(error)

    def _poll_for(self, polled: list[Output]) -> None:
        until_s = time.monotonic() + SLICE_S
        if len(polled) == 1 and self._is_plain(polled[0].equipment):
            if self._copies.due(polled[0].equipment, time.monotonic()) and self._polls():
                self._read(polled[0])  # which copies it
            self._poll_events(polled[0], until_s)
            return
        while polled and not self.asked:
            if not self._polls():
                self._send_old_superevents()
                self._sleep(self.frontend.poll_interval_s)
                return
            polled = [output for output in polled if self._read_trigger(output)]
            if time.monotonic() > until_s:
                self._tell_busy(max((output.sender.fill for output in polled), default=0.0))
                return

    def _poll_events(self, output: Output, until_s: float) -> None:
        """The same for one equipment read event by event without a limit, as most are: nothing is looked up twice."""
        poll, read = self.frontend.poll, getattr(self.frontend, output.equipment.readout)
        name, send, clock = output.equipment.name, output.send_event, time.monotonic
        what, reading = "poll()", f"{output.equipment.readout}()"
        try:
            while not self.asked:
                what = "poll()"
                if not poll():
                    break
                what = reading
                draft = EventDraft(name)
                read(draft)
                if draft.raw:
                    output.sender.send_raw(draft.raw)
                elif draft.banks:
                    send(draft.banks, draft.serial_number, draft.time_stamp)
                if clock() > until_s:
                    self._tell_busy(output.sender.fill)
                    return
        except PhloemError:
            raise
        except Exception as error:
            raise user_error(what, error) from error
        self._sleep(0.0 if self.asked else self.frontend.poll_interval_s)

    def _polled(self) -> list[Output]:
        return [o for o in self._outputs.values() if is_polled(o.equipment) and o.left != 0]

    def _is_plain(self, equipment: Equipment) -> bool:
        """Read event by event, each event for itself, and as many as come."""
        counted = equipment.event_limit > 0 or equipment.num_subevents
        return not counted and not self._reads_batches(equipment)

    def _reads_batches(self, equipment: Equipment) -> bool:
        """Equipment with a readout method of its own is read by it even if the class has `read_batch`."""
        return self._read_batch is not None and equipment.readout == "read" and not is_clocked(equipment)

    def _polls(self) -> bool:
        try:
            return self.frontend.poll()
        except PhloemError:
            raise
        except Exception as error:
            raise user_error("poll()", error) from error

    def _read(self, output: Output, when: str = "") -> None:
        """Read once, send, and copy to the ODB if it is time. ``when``: for an error's text."""
        draft = self._filled(output.equipment, when)
        self._send_to(output, draft)
        self._copy(output.equipment, draft)

    def _filled(self, equipment: Equipment, when: str = "") -> EventDraft | BatchDraft:
        batches = self._reads_batches(equipment)
        draft = BatchDraft(equipment.name) if batches else EventDraft(equipment.name)
        self._fill(equipment, draft, "read_batch" if batches else equipment.readout, when)
        return draft

    def _fill(self, equipment: Equipment, draft: EventDraft | BatchDraft, method: str, when: str = "") -> None:
        try:
            getattr(self.frontend, method)(draft)
        except PhloemError:
            raise
        except Exception as error:
            where = f" of {equipment.name} {when}" if when else ""
            raise user_error(f"{method}(){where}", error) from error

    def _copy(self, equipment: Equipment, draft: EventDraft | BatchDraft) -> None:
        now_s = time.monotonic()
        if self._copies.due(equipment, now_s):
            self._copies.take(equipment, draft, now_s)

    def _read_clocked(self) -> None:
        for due in self._schedule.due(State.RUN, time.monotonic()):
            output = self._outputs[due.equipment.name]
            if not due.sent:
                self._copy(due.equipment, self._filled(due.equipment))
            elif output.left != 0:
                self._read(output)

    def _look_at_clocked(self) -> None:
        """Outside of RUN nothing is sent, and hardware that fails is asked again: it is no reason to end."""
        for due in self._schedule.due(self.state, time.monotonic()):
            try:
                self._copy(due.equipment, self._filled(due.equipment))
                self._complaints.pop(due.equipment.name, None)
            except PhloemError as error:
                if self._complaints.get(due.equipment.name) != str(error):  # once, not every Period
                    self._complaints[due.equipment.name] = str(error)
                    self._report(error)

    # ------------------------------------------------------------------ super-events

    def _read_trigger(self, output: Output) -> bool:
        """Read what `poll` announced; whether the equipment may be read again in this run."""
        if output.equipment.num_subevents and not self._reads_batches(output.equipment):
            self._add_trigger(output)
        else:
            self._read(output)
        return output.left != 0

    def _add_trigger(self, output: Output) -> None:
        equipment = output.equipment
        if equipment.name not in self._superevents:
            counter = Superevent(equipment.num_subevents, equipment.period / 1e3)
            self._superevents[equipment.name] = counter, SupereventDraft(equipment.name)
        counter, draft = self._superevents[equipment.name]
        banks = len(draft.banks)
        draft.subevent = counter.triggers
        try:
            self._fill(equipment, draft, equipment.readout)
        except PhloemError:
            del draft.banks[banks:]  # the triggers before this one were read well
            raise
        if draft.raw:  # whole events go out as they are
            whole = EventDraft(equipment.name)
            whole.raw, draft.raw = draft.raw, b""
            self._send_to(output, whole)
        now_s = time.monotonic()
        if len(draft.banks) > banks:
            counter.add(now_s)
        if counter.whole(now_s):
            self._send_superevent(output)

    def _send_old_superevents(self) -> None:
        now_s = time.monotonic()
        for name, (counter, _) in list(self._superevents.items()):
            if counter.whole(now_s):
                self._send_superevent(self._outputs[name])

    def _send_superevent(self, output: Output) -> None:
        """It has the number of its first trigger, and the next one that of the trigger behind it, as in mfe."""
        counter, draft = self._superevents.pop(output.equipment.name)
        if counter.triggers == 0:
            return
        self._send_to(output, draft)
        output.skip_serials(counter.triggers - 1)
        self._copy(output.equipment, draft)

    # ------------------------------------------------------------------ time and errors

    def _sleep(self, timeout_s: float) -> None:
        if timeout_s > 0:
            self.bell.pause(min(timeout_s, 0.1), lambda: self.asked)

    def _readout_failed(self, error: PhloemError) -> None:
        """A readout that raises is not called again in this run: a broken event must not be sent on and on."""
        self._report(error)
        self.message("reading stopped for this run; end it, mend the frontend, start again", "error")
        self.state = State.READY

    def _report(self, error: PhloemError) -> None:
        """An error of user code, and where it was."""
        where = ""
        if error.__cause__ is not None:
            lines = [f"{f.filename}:{f.lineno}" for f in _frames(error.__cause__)]
            where = f" (at {' < '.join(reversed(lines))})"
        self.message(f"{error}{where}", "error")

    # ------------------------------------------------------------------ what the user's frontend calls

    def send(self, draft: EventDraft | BatchDraft) -> None:
        """Send outside of `read`, in READY or RUN."""
        output = self._output(draft.equipment)
        if output.left == 0:
            raise TransitionError(
                f"{output.equipment.name} has its {output.equipment.event_limit:g} events of this run"
            )
        self._send_to(output, draft)
        self._copy(output.equipment, draft)

    def full(self, draft: EventDraft | BatchDraft) -> bool:
        """Whether the equipment has all its events in this run (Event limit)."""
        return self.state != State.STOP and bool(self._outputs) and self._output(draft.equipment).left == 0

    def _output(self, equipment: str) -> Output:
        """The way out of an equipment, or of the first one."""
        if self.state == State.STOP or not self._outputs:
            raise TransitionError(f"{self.name} cannot send: no run is prepared")
        name = equipment or next(iter(self._outputs))
        output = self._outputs.get(name)
        if output is None:
            raise SettingsError(f"{self.name} has no equipment {name!r} in this run; it has {list(self._outputs)}")
        return output

    def counter_restarted(self, serial_number: int, event: int, equipment: str) -> None:
        """The hardware counter begins anew."""
        self._output(equipment).counter_restarted(serial_number, event)

    def wait(self, timeout_s: float) -> None:
        """Sleep, but not through what run control asks."""
        self._sleep(timeout_s)

    def missed(self, events: int, equipment: str) -> None:
        """The hardware lost events."""
        for name, output in self._outputs.items():
            if name == equipment or not equipment:
                output.missed += events
                return

    def _send_to(self, output: Output, draft: EventDraft | BatchDraft) -> None:
        """Send an event or a batch, cut to what the Event limit leaves; with the last event the run's end is asked."""
        left = output.left
        if left is not None:
            draft.cut(left)
        self._send_whole(output, draft)
        if left and output.left == 0:
            self.ask_end(f"{output.equipment.name} has its {output.equipment.event_limit:g} events")

    def _send_whole(self, output: Output, draft: EventDraft | BatchDraft) -> None:
        if isinstance(draft, EventDraft):
            if draft.raw:
                output.sender.send_raw(draft.raw)
            elif draft.banks:
                counted = draft.serial_number is None and output.equipment.num_subevents
                serial = output.next_serial if counted else draft.serial_number
                output.send_event(draft.banks, serial, draft.time_stamp)
            return
        if not draft.banks:
            return
        serials = draft.serial_numbers
        if serials is not None:
            serials = np.ascontiguousarray(serials, dtype="<u4")
        output.send_batch(draft.banks, draft.n_events, serials, draft.time_stamp)

    # ------------------------------------------------------------------ inside

    def changed(self, equipment: str, key: str, value: Any) -> None:
        self.frontend.settings[key] = value
        self.frontend.settings_changed(key, value)

    def _warn(self, text: str) -> None:
        self.message(text, "warning")

    def _take_settings(self) -> None:
        for equipment in self._equipment:
            self.frontend.settings.update(self.settings.get(equipment.name, {}))

    def _hook(self, name: str, *args: Any) -> None:
        try:
            getattr(self.frontend, name)(*args)
        except PhloemError:
            raise
        except Exception as error:
            raise user_error(f"{name}()", error) from error

    def _keep_waiting(self) -> None:
        """The ring is full: the readout is blocked, and says so."""
        full = max((o.sender.fill for o in self._outputs.values()), default=0.0)
        readers = {reader: None for o in self._outputs.values() for reader in o.stream.readers}
        names = ", ".join(readers)
        self.still_waiting(f"space in its ring ({full:.0%} full), which {names} must read")
        self._tell_busy(1.0)
        if self.ending and self._terminated_long_ago():
            raise TransitionError(f"{self.name} was told to end while its ring was full")

    def _terminated_long_ago(self) -> bool:
        if self._ending_since_s is None:
            self._ending_since_s = time.monotonic()
        return time.monotonic() - self._ending_since_s > LEAVE_S

    def _tell_busy(self, fill: float) -> None:
        if not self._busy_told and fill >= BUSY_ON:
            self._busy_told = True
            self._guarded(lambda: self.frontend.busy(True))
        elif self._busy_told and fill <= BUSY_OFF:
            self._busy_told = False
            self._guarded(lambda: self.frontend.busy(False))

    def status(self) -> ComponentStatus:
        outputs = list(self._outputs.values())
        events = sum(o.sender.writer.total_events for o in outputs)
        size = sum(o.sender.writer.total_bytes for o in outputs)
        counters = {"events": events, "bytes": size}
        per_s = self.rates.update(counters)
        return ComponentStatus(
            rates={"events_per_s": per_s.get("events", 0.0), "kb_per_s": per_s.get("bytes", 0.0) / 1024},
            counters=counters,
            sources={
                o.stream.source: {
                    "events": o.sender.writer.total_events,
                    "fill_percent": round(100 * o.sender.fill, 1),
                    "blocked_s": round(o.counts()["blocked_s"], 3),
                    "missed": o.missed,
                }
                for o in outputs
            },
        )

    def leave(self) -> None:
        for output in self._outputs.values():
            output.sender.writer.flush()
        self._outputs.clear()
        self._guarded(self.frontend.exit)


def _frames(error: BaseException) -> list[FrameSummary]:
    return [f for f in extract_tb(error.__traceback__) if Path(f.filename).name != "readout.py"]

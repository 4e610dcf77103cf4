"""What every component is: a main loop, a wire to run control, and its part in the transitions.

The loop is `turn` after `turn`: each does what there is to do and sleeps at most 100 ms on the doorbell. Transition
requests are answered in the loop, between two turns: a handler returns its result, or None to answer later.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import msgspec

from phloem.dataflow.control_link import ControlLink
from phloem.dataflow.rates import Rates
from phloem.model.errors import PhloemError, SettingsError, UserCodeError
from phloem.model.event import Equipment
from phloem.model.run import RunInfo
from phloem.protocol.control import (
    VERSION,
    ComponentStatus,
    EndRun,
    Goodbye,
    Heartbeat,
    Refused,
    Register,
    RegisterAgain,
    Registered,
    SettingsChanged,
    Terminate,
    Text,
    TransitionReply,
    TransitionRequest,
)
from phloem.protocol.state import SEQUENCE, State, Transition, after
from phloem.transport.shm import Doorbell

__all__ = ["Component", "Place"]

IDLE_S = 0.1
Result = dict[str, Any]


class Place(msgspec.Struct, frozen=True):
    """Where a component runs: run control's address, and the directory of the experiment's rings on this host."""

    address: str
    runtime_dir: Path
    connect_s: float = 10.0


class Component:
    """Base of frontend, builder and logger processes.

    ``name``: unique client name. Subclasses say their ``kind`` and write `turn` and the transition handlers.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, place: Place) -> None:
        if not name or "/" in name or len(name) > 31:
            raise SettingsError(f"component name {name!r} must have 1 to 31 characters and no '/'")
        self.name = name
        self.place = place
        self.state = State.STOP
        self.run_info: RunInfo | None = None
        self.settings: dict[str, dict[str, Any]] = {}
        self.bell = Doorbell(place.runtime_dir / f"{name}.{os.getpid()}.bell")
        self.rates = Rates()
        self._link = ControlLink(place.address, self._heartbeat, self.bell.ring)
        self._turned = time.monotonic()
        self._busy = False
        self._ending = False
        self._open_request: TransitionRequest | None = None
        self._replies: dict[str, TransitionReply] = {}
        self._waiting_for = ""
        self._end_asked: EndRun | None = None
        self._incarnation = uuid4().hex
        self._handlers: Mapping[Transition, Callable[[TransitionRequest], Result | None]] = {
            Transition.PREPARE: self.prepare,
            Transition.BEGIN: self.begin,
            Transition.END: self.end,
            Transition.RELEASE: self.end,
        }

    # ------------------------------------------------------------------ what subclasses write

    def describe(self) -> tuple[tuple[Equipment, ...], str, dict[str, dict[str, Any]], str]:
        """Equipment, buffer prefix that it reads, first values of the settings, source file."""
        return (), "", {}, ""

    def started(self) -> None:
        """Called once, when run control has taken the component in."""

    def turn(self) -> None:
        """Do what there is to do; sleep at most 100 ms if there is nothing."""
        self.bell.wait((), IDLE_S)

    def prepare(self, request: TransitionRequest) -> Result | None:
        """Get ready for the run; data may come from now on."""
        return {}

    def begin(self, request: TransitionRequest) -> Result | None:
        """The run begins."""
        return {}

    def end(self, request: TransitionRequest) -> Result | None:
        """The run ends (END and RELEASE): give the counts."""
        return {}

    def changed(self, equipment: str, key: str, value: Any) -> None:
        """A setting of this component's equipment was set."""

    def status(self) -> ComponentStatus:
        """Rates and counters; called in the link's thread: only reads."""
        return ComponentStatus()

    def leave(self) -> None:
        """Called once at the end of the process, after the loop."""

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        """Register, then turn until told to end. Blocks; call it from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        reason = ""
        try:
            self.attach()
            while not self._ending:
                self.step()
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.detach(reason)

    def attach(self) -> None:
        """Register with run control."""
        registered = self._link.register(self._register(), self.place.connect_s)
        self._take_registered(registered)
        self.started()

    def step(self) -> None:
        """One turn of the loop: answer what run control asked, then do the work."""
        self._turned = time.monotonic()
        self._answer_requests()
        if not self._ending:
            self.turn()

    def detach(self, reason: str = "") -> None:
        """Leave: flush, say goodbye, close."""
        try:
            self.leave()
        finally:
            if self._link.started:
                self._link.send(Goodbye(reason))
            self._link.close()
            self.bell.remove()

    def stop(self) -> None:
        """End after this turn."""
        self._ending = True
        self.bell.ring()

    @property
    def ending(self) -> bool:
        """Whether the process is to end."""
        return self._ending

    @property
    def asked(self) -> bool:
        """Whether run control waits for the loop to turn."""
        return self._ending or self._link.pending

    def message(self, text: str, severity: str = "info") -> None:
        """A message for people: debug, info, warning or error."""
        self._link.send(Text(severity, text))

    def ask_end(self, reason: str) -> None:
        """Ask run control to end this component's run, once per run; it ends after the transition under way."""
        run = self.run_info
        if run is not None and (self._end_asked is None or self._end_asked.run != run.number):
            self._end_asked = EndRun(run.number, reason)
            self._link.send(self._end_asked)

    def still_waiting(self, reason: str = "") -> None:
        """Called from within a turn that is held up: the loop is alive, and this is what it waits for."""
        self._turned = time.monotonic()
        self._waiting_for = reason

    def done(self, result: Result) -> None:
        """Answer the transition request whose handler returned None."""
        request, self._open_request = self._open_request, None
        if request is not None:
            self._reply(request, TransitionReply(request.id, result=result))

    # ------------------------------------------------------------------ inside

    def _on_signal(self, number: int, frame: object) -> None:
        self._ending = True
        self.bell.ring()

    def _register(self) -> Register:
        equipment, reads, settings, file = self.describe()
        start, stop = SEQUENCE[self.kind]
        return Register(
            version=VERSION,
            name=self.name,
            kind=self.kind,
            pid=os.getpid(),
            host=socket.gethostname(),
            incarnation=self._incarnation,
            sequence={
                Transition.PREPARE: start,
                Transition.BEGIN: start,
                Transition.END: stop,
                Transition.RELEASE: stop,
            },
            equipment=equipment,
            reads=reads,
            settings=settings,
            file=file,
            state=self.state,
            run=self.run_info.number if self.run_info else None,
        )

    def _take_registered(self, registered: Registered) -> None:
        self.settings = {name: dict(values) for name, values in registered.settings.items()}

    def _heartbeat(self) -> Heartbeat:
        status = self.status()
        if self._waiting_for and not status.waiting_for:
            status = msgspec.structs.replace(status, waiting_for=self._waiting_for)
        return Heartbeat(
            turned_ago_s=time.monotonic() - self._turned,
            state=self.state,
            run=self.run_info.number if self.run_info else None,
            busy=self._busy,
            status=status,
        )

    def _answer_requests(self) -> None:
        while (message := self._link.next()) is not None:
            if isinstance(message, TransitionRequest):
                self._transition(message)
            elif isinstance(message, SettingsChanged):
                self.settings.setdefault(message.equipment, {})[message.key] = message.value
                self._guarded(lambda m=message: self.changed(m.equipment, m.key, m.value))  # type: ignore[misc]
            elif isinstance(message, Registered):
                self._take_registered(message)
            elif isinstance(message, RegisterAgain):
                self._link.send(self._register())
                if self._end_asked is not None:  # a run control that was restarted has not heard it
                    self._link.send(self._end_asked)
            elif isinstance(message, Refused):
                raise SettingsError(message.reason)
            elif isinstance(message, Terminate):
                self._ending = True

    def _transition(self, request: TransitionRequest) -> None:
        known = self._replies.get(request.id)
        if known is not None:  # asked again, by a run control that was restarted
            self._link.send(known)
            return
        if self._open_request is not None and self._open_request.id == request.id:
            return
        self.settings.update({name: dict(values) for name, values in request.settings.items()})
        ends = request.transition in (Transition.END, Transition.RELEASE)
        if ends and self.state is State.STOP:  # another component failed first: there is nothing to undo here
            self._reply(request, TransitionReply(request.id))
            return
        self._busy = True
        before, run_before = self.state, self.run_info
        try:
            target = after(self.state, request.transition)
            self.run_info = request.run
            self._open_request = request
            result = self._handlers[request.transition](request)
        except PhloemError as error:
            self._undo(ends, before, run_before)
            self._failed(request, str(error))
        except Exception as error:  # noqa: BLE001  user code may raise anything; run control must know
            self._undo(ends, before, run_before)
            self.message(traceback.format_exc(), "error")
            self._failed(request, f"{type(error).__name__}: {error}")
        else:
            self.state = target
            if result is not None:
                self._open_request = None
                self._reply(request, TransitionReply(request.id, result=result))
        finally:
            self._busy = False

    def _undo(self, ends: bool, state: State, run: RunInfo | None) -> None:
        """A handler failed. An end is never undone: whatever went wrong, the run is over here."""
        self.state = State.STOP if ends else state
        self.run_info = None if ends else run

    def _failed(self, request: TransitionRequest, text: str) -> None:
        self._open_request = None
        self._reply(request, TransitionReply(request.id, error=text))

    def _reply(self, request: TransitionRequest, reply: TransitionReply) -> None:
        if request.transition in (Transition.END, Transition.RELEASE):
            self.run_info = None
            self._replies.clear()
        self._replies[request.id] = reply
        self._link.send(reply)

    def _guarded(self, hook: Callable[[], object]) -> None:
        try:
            hook()
        except Exception as error:  # noqa: BLE001  a hook outside the data must not end the component
            self.message(f"{type(error).__name__}: {error}\n{traceback.format_exc()}", "error")


def user_error(what: str, error: BaseException) -> UserCodeError:
    """User code raised: one line for the answer; the traceback goes to the messages."""
    return UserCodeError(f"{what} raised {type(error).__name__}: {error}")

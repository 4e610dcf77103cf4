"""Small stand-ins over real sockets: a component, and a hall in which run control runs in a thread."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from phloem.control.operator import Operator
from phloem.control.run_control import RunControl
from phloem.model.event import EQ_EB, EQ_POLLED, Equipment
from phloem.protocol.control import (
    ComponentStatus,
    EndRun,
    FromRunControl,
    Goodbye,
    Heartbeat,
    Message,
    Refused,
    Register,
    RegisterAgain,
    Registered,
    SettingsChanged,
    Terminate,
    Text,
    TransitionReply,
    TransitionRequest,
    decode,
    encode,
)
from phloem.protocol.state import State, Transition, after

PATIENCE_S = 10.0
BEAT_S = 0.1


def until(condition: Callable[[], bool], what: str) -> None:
    """Ask again and again until it is so; each ``condition`` does a round trip, so that nothing spins."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come about within {PATIENCE_S:g} s"


class FakeComponent:
    """Registers, sends heartbeats, and answers transitions as it is told.

    ``refuse``: transitions that it answers with an error; ``silent``: those that it does not answer until
    `answer_now`; ``result``: its answer at END and RELEASE; ``log``: shared by all, in the order of asking.
    """

    def __init__(
        self,
        address: str,
        name: str,
        kind: str,
        log: list[tuple[str, str, str]],
        *equipment: Equipment,
        reads: str = "",
        incarnation: str = "",
        refuse: dict[Transition, str] | None = None,
        silent: set[Transition] | None = None,
        **register: Any,
    ) -> None:
        self.register = Register(
            **{"version": 1, "pid": 4242, "host": "hall", "sequence": {}, **register},
            name=name,
            kind=kind,
            incarnation=incarnation or name,
            equipment=equipment,
            reads=reads,
        )
        self.name = name
        self.log = log
        self.refuse: dict[Transition, str] = refuse or {}
        self.silent: set[Transition] = silent or set()
        self.result: dict[str, Any] = {}
        self.state = self.register.state
        self.run: int | None = self.register.run
        self.turned_ago_s = 0.0
        self.status = ComponentStatus()
        self.first: Registered | Refused | None = None
        self.requests: list[TransitionRequest] = []
        self.inbox: queue.Queue[FromRunControl] = queue.Queue()
        self.asked: queue.Queue[TransitionRequest] = queue.Queue()
        self._out: queue.Queue[bytes] = queue.Queue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(address,), daemon=True)
        self._thread.start()

    def welcome(self) -> Registered | Refused:
        """What run control answered to the registration."""
        answer: Registered | Refused = self.next(Registered, Refused)
        return answer

    def next(self, *kinds: type[Message]) -> Any:
        """The next message of one of these kinds."""
        while True:
            message = self.inbox.get(timeout=PATIENCE_S)
            if isinstance(message, kinds):
                return message

    def say(self, severity: str, text: str) -> None:
        """A message for people."""
        self._out.put(encode(Text(severity, text)))

    def ask_end(self, run: int, reason: str) -> None:
        """Ask run control to end a run."""
        self._out.put(encode(EndRun(run, reason)))

    def answer_now(self, request: TransitionRequest, error: str = "") -> None:
        """Answer what was kept in silence."""
        self._out.put(encode(TransitionReply(request.id, error, self.result)))

    def leave(self, reason: str = "") -> None:
        """End in good order."""
        self._out.put(encode(Goodbye(reason)))

    def kill(self) -> None:
        """Vanish without a word."""
        self._ended.set()
        self._thread.join()

    def _work(self, address: str) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        socket.send(encode(self.register))
        next_beat_s = 0.0
        while not self._ended.is_set():
            if time.monotonic() >= next_beat_s:
                next_beat_s = time.monotonic() + BEAT_S
                socket.send(encode(Heartbeat(self.turned_ago_s, self.state, self.run, status=self.status)))
            while not self._out.empty():
                socket.send(self._out.get())
            if socket.poll(10):
                self._take(socket, decode(socket.recv()))
        socket.close()
        context.term()

    def _take(self, socket: zmq.Socket[bytes], message: FromRunControl) -> None:
        self.inbox.put(message)
        if isinstance(message, RegisterAgain):
            socket.send(encode(self.register))
        if isinstance(message, TransitionRequest):
            self._transition(socket, message)

    def _transition(self, socket: zmq.Socket[bytes], request: TransitionRequest) -> None:
        self.requests.append(request)
        self.log.append((self.name, request.transition, request.why))
        self.asked.put(request)
        error = self.refuse.get(request.transition, "")
        ends = request.transition in (Transition.END, Transition.RELEASE)
        if not error and not (ends and self.state is State.STOP):  # as a real one, which has nothing to end then
            self.state = after(self.state, request.transition)
            self.run = request.run.number if self.state is not State.STOP else None
        if request.transition in self.silent:
            return
        socket.send(encode(TransitionReply(request.id, error, self.result if ends else {})))


class Hall:
    """Run control in a thread, an operator, and components as they are called in. Use with ``with``."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.data_dir = path / "data"
        self.runtime_dir = path / "runtime"
        self.log: list[tuple[str, str, str]] = []
        self.components: dict[str, FakeComponent] = {}
        self._settings = {"experiment": "hall", "address": "tcp://127.0.0.1:0", **settings}
        self.run_control, self.operator = self._start()

    def __enter__(self) -> Hall:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for component in self.components.values():
            component.kill()
        self.stop()

    def stop(self) -> None:
        """End run control and hang up."""
        self.operator.close()
        self.run_control.stop()
        self._thread.join()

    def restart(self) -> None:
        """A new run control on the same data, at the same address."""
        self.stop()
        self._settings["address"] = self.run_control.address
        self.run_control, self.operator = self._start()

    def _start(self) -> tuple[RunControl, Operator]:
        settings = self._settings
        run_control = RunControl(data_dir=self.data_dir, runtime_dir=self.runtime_dir, **settings)
        self._thread = threading.Thread(target=lambda: asyncio.run(run_control.serve()), daemon=True)
        self._thread.start()
        deadline_s = time.monotonic() + PATIENCE_S
        path = self.runtime_dir / "run_control.json"
        while not path.exists() and time.monotonic() < deadline_s:
            self._thread.join(0.01)
        return run_control, Operator(run_control.address, connect_timeout_s=PATIENCE_S)

    def call_in(self, name: str, kind: str, *equipment: Equipment, **fields: Any) -> FakeComponent:
        """A component that registers; returns when it has been answered."""
        component = FakeComponent(self.run_control.address, name, kind, self.log, *equipment, **fields)
        self.components[f"{name}{fields.get('incarnation', '')}"] = component
        component.first = component.welcome()
        return component

    def frontend(self, n: int, **fields: Any) -> FakeComponent:
        """``ebfe01`` with ``Trigger01`` into ``BUF01``, and so on; it says that it sent 100."""
        equipment = Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB).indexed(n)
        component = self.call_in(f"ebfe{n:02d}", "frontend", equipment, **fields)
        component.result = {"sent": {equipment.name: {"sent": 100, "blocked_s": 0.5, "missed": 2}}}
        return component

    def builder(self, sources: int, **fields: Any) -> FakeComponent:
        """``mevb -b BUF`` that built 100 of each source."""
        component = self.call_in("mevb", "builder", Equipment("EB", type=0), reads="BUF", **fields)
        fates = {f"Trigger{n:02d}": {"built": 100} for n in range(1, sources + 1)}
        component.result = {"fates": fates, "sent": {"EB": {"sent": 100, "blocked_s": 0.0}}}
        return component

    def logger(self, **fields: Any) -> FakeComponent:
        """Wrote what the builder sent."""
        component = self.call_in("logger", "logger", reads="SYSTEM", **fields)
        written = {"EB": {"written": 100, "discarded": 0}}
        component.result = {"written": written, "files": ["run.mid"], "bytes": 6400, "events": 100}
        return component

    def all(self, frontends: int = 2) -> None:
        """Logger, builder and frontends."""
        self.logger()
        self.builder(frontends)
        for n in range(1, frontends + 1):
            self.frontend(n)

    def component_status(self, name: str) -> dict[str, Any]:
        """What `status` says of one component."""
        status = self.operator.status().result(PATIENCE_S)
        return next(c for c in status["components"] if c["name"] == name)

    def wait_for_health(self, name: str, health: str) -> dict[str, Any]:
        """The component's status once it has that health."""
        until(lambda: self.component_status(name)["health"] == health, f"{name} {health}")
        return self.component_status(name)


__all__ = ["PATIENCE_S", "FakeComponent", "Hall", "SettingsChanged", "Terminate", "until"]

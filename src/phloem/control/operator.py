"""The operator's side: every call returns at once a `Call`, from which the responses come as they arrive.

::

    with Operator("tcp://127.0.0.1:24400") as operator:
        for response in operator.start_run(comment="pedestals"):
            print(response.kind, response.component, response.value)
        account = operator.end_run().result()["account"]

For plain threads; calls interleave. One background thread owns the one DEALER socket. A request that nobody
takes within ``connect_timeout_s`` is withdrawn: it does not reach a run control that is started later.
"""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from phloem.control.odb import KeyRow
from phloem.model import errors
from phloem.model.errors import PhloemError, ProtocolError, UnreachableError
from phloem.protocol.control import VERSION, Request, Response, decode, encode

__all__ = ["Call", "Operator"]

T = TypeVar("T")

_POLL_MS = 20  # while a request waits for a connection
_WATCH_MS = 200  # while answers are missing
_SILENCE_S = 10.0  # run control speaks at least once a second while it works on a request
_FINAL = ("result", "error")


class Call(Generic[T]):
    """One request and what comes back: iterate for the responses, or ask `result` for the final value.

    The responses are ticket, progress..., and last always a result or an error. Iterating again begins anew.
    Dropping a call does not cancel it.
    """

    def __init__(self, method: str, params: dict[str, Any], convert: Callable[[Any], T]) -> None:
        self.method = method
        self.params = params
        self._convert = convert
        self._responses: list[Response] = []
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Response]:
        for place in itertools.count():
            response = self._at(place)
            yield response
            if response.kind in _FINAL:
                return

    def _at(self, place: int) -> Response:
        with self._changed:
            while len(self._responses) <= place:
                self._changed.wait()
            return self._responses[place]

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"<Call {self.method}({arguments}): {self._standing()}>"

    @property
    def done(self) -> bool:
        """Whether the final response is there."""
        return bool(self._responses) and self._responses[-1].kind in _FINAL

    def result(self, timeout_s: float | None = None) -> T:
        """The final value, or the error that run control answered is raised.

        `UnreachableError` after ``timeout_s``: the call goes on then, and may be asked again.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout_s):
                raise UnreachableError(f"no result of {self.method!r} within {timeout_s:g} s; {self._standing()}")
            final = self._responses[-1]
        if final.kind == "error":
            raise _error_of(final)
        return self._convert(final.value)

    def add(self, response: Response) -> None:
        """A response arrived (called by the operator's thread)."""
        with self._changed:
            if not self.done:
                self._responses.append(response)
                self._changed.notify_all()

    def _standing(self) -> str:
        if not self._responses:
            return "no answer yet"
        last = self._responses[-1]
        if last.kind == "error":
            return f"{last.error}: {last.value}"
        if last.kind == "result":
            text = repr(last.value)
            return f"result {text if len(text) <= 60 else text[:57] + '...'}"
        waiting = last.value.get("waiting_for", ()) if isinstance(last.value, dict) else ()
        return f"waiting for {', '.join(waiting)}" if waiting else "in progress"


class _Pending(msgspec.Struct):
    """A call that is not finished. ``sent``: it left; ``heard_s``: monotonic time of the last response."""

    call: Call[Any]
    data: bytes
    heard_s: float
    sent: bool = False
    answered: bool = False


class Operator:
    """The operator's calls to the run control at ``address``.

    ``connect_timeout_s``: how long to wait for somebody who answers.
    """

    def __init__(self, address: str, connect_timeout_s: float = 3.0) -> None:
        self.address = address
        self.connect_timeout_s = connect_timeout_s
        self._ids = (f"{prefix}-{n}" for prefix in [secrets.token_hex(6)] for n in itertools.count(1))
        self._lock = threading.Lock()
        self._new: deque[tuple[str, _Pending]] = deque()
        self._pending: dict[str, _Pending] = {}
        self._closed = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for somebody who is not there
        self._wake_in = self._context.socket(zmq.PAIR)
        self._wake_out = self._context.socket(zmq.PAIR)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise UnreachableError(f"{address!r} is no address like tcp://127.0.0.1:24400: {error}") from None
        self._wake_in.bind("inproc://wake")
        self._wake_out.connect("inproc://wake")
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._thread.start()

    def __enter__(self) -> Operator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; calls that are not finished end with an error. What run control is doing goes on."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake_out.send(b"")
        self._thread.join()
        self._context.destroy(linger=0)

    # the calls

    def prepare_run(
        self, operator: str = "", comment: str = "", write_data: bool | None = None
    ) -> Call[dict[str, Any]]:
        """STOP to READY. ``write_data``: False for a test run; None: as ``/Logger/Write data`` says."""
        return self._call("prepare", _dict, operator=operator, comment=comment, write_data=write_data)

    def begin_run(self) -> Call[dict[str, Any]]:
        """READY to RUN."""
        return self._call("begin", _dict)

    def end_run(self) -> Call[dict[str, Any]]:
        """RUN (or READY) to STOP; the result is the run's document with its account."""
        return self._call("end", _dict)

    def release_run(self) -> Call[dict[str, Any]]:
        """READY to STOP without a run; the result is the document as of `end_run`."""
        return self._call("release", _dict)

    def start_run(self, operator: str = "", comment: str = "", write_data: bool | None = None) -> Call[dict[str, Any]]:
        """Prepare and begin."""
        return self._call("start", _dict, operator=operator, comment=comment, write_data=write_data)

    prepare_physics_run = prepare_run  # as LArPix DAQ calls them
    begin_physics_run = begin_run
    end_physics_run = end_run

    def status(self) -> Call[dict[str, Any]]:
        """State, run, components with health and rates, last messages."""
        return self._call("status", _dict)

    def odb_get(self, path: str) -> Call[Any]:
        """The value at ``path``; a dict for a directory."""
        return self._call("odb_get", _same, path=path)

    def odb_set(self, path: str, value: Any) -> Call[Any]:
        """Set a key; text is understood by the key's type. The result is the value as stored."""
        return self._call("odb_set", _same, path=path, value=value)

    def odb_ls(self, path: str = "/", recursive: bool = False) -> Call[list[KeyRow]]:
        """The rows of a listing."""
        return self._call("odb_ls", _rows, path=path, recursive=recursive)

    def messages(self, n: int = 20) -> Call[list[dict[str, Any]]]:
        """The last messages, oldest first: time_s, severity, origin, text."""
        return self._call("messages", list, n=n)

    def runs(self, n: int = 20) -> Call[list[dict[str, Any]]]:
        """The last runs, newest first."""
        return self._call("runs", list, n=n)

    def terminate(self) -> Call[dict[str, Any] | None]:
        """End a run in progress, then ask all components to end; the result is the run's document or None."""
        return self._call("terminate", lambda value: value)

    # the inside

    def _call(self, method: str, convert: Callable[[Any], T], **params: Any) -> Call[T]:
        call = Call(method, params, convert)
        with self._lock:
            if self._closed:
                raise UnreachableError(f"the operator of {self.address} is closed; make a new one")
            request_id = next(self._ids)
            data = encode(Request(VERSION, request_id, method, params))
            self._new.append((request_id, _Pending(call, data, time.monotonic())))
            self._wake_out.send(b"")
        return call

    def _run(self) -> None:
        """The thread that owns the socket."""
        poller = zmq.Poller()
        poller.register(self._wake_in, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(self._patience_ms()))
            if self._wake_in in ready:
                self._wake_in.recv()
            if self._socket in ready:
                self._receive()
            with self._lock:
                self._pending.update(self._new)
                self._new.clear()
                closed = self._closed
            for request_id, pending in list(self._pending.items()):
                self._look_after(request_id, pending)
            if closed:
                for pending in self._pending.values():
                    pending.call.add(_unreachable(f"the operator of {self.address} was closed"))
                return

    def _patience_ms(self) -> int | None:
        if not self._pending:
            return None
        return _WATCH_MS if all(pending.sent for pending in self._pending.values()) else _POLL_MS

    def _receive(self) -> None:
        try:
            message = decode(self._socket.recv())
        except ProtocolError:
            return  # not for us: what is missing is noticed by time
        pending = self._pending.get(message.id) if isinstance(message, Response) else None
        if pending is None or not isinstance(message, Response):
            return
        pending.answered = True
        pending.heard_s = time.monotonic()
        pending.call.add(message)
        if message.kind in _FINAL:
            del self._pending[message.id]

    def _look_after(self, request_id: str, pending: _Pending) -> None:
        if not pending.sent:
            try:
                self._socket.send(pending.data, zmq.NOBLOCK)
                pending.sent = True
            except zmq.Again:
                pass  # nobody is connected
        limit_s = _SILENCE_S if pending.answered else self.connect_timeout_s
        if time.monotonic() - pending.heard_s <= limit_s:
            return
        text = f"nobody answers at {self.address} within {limit_s:g} s; is run control running?"
        if pending.answered:
            text = f"run control at {self.address} has fallen silent in the middle of {pending.call.method!r}"
        pending.call.add(_unreachable(text))
        del self._pending[request_id]


def _unreachable(text: str) -> Response:
    return Response("", "error", "", time.time(), text, "UnreachableError")


def _error_of(response: Response) -> PhloemError:
    """The error that a response names; one that this side does not know is a plain `PhloemError`."""
    found = getattr(errors, response.error, PhloemError) if response.error in errors.__all__ else PhloemError
    return found(str(response.value)) if issubclass(found, PhloemError) else PhloemError(str(response.value))


def _dict(value: Any) -> dict[str, Any]:
    return dict(value)


def _same(value: Any) -> Any:
    return value


def _rows(value: Any) -> list[KeyRow]:
    return msgspec.convert(value, list[KeyRow])

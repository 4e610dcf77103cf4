"""A component's wire to run control: one thread with one DEALER socket, beside the data loop and never in it.

The thread sends the heartbeats, which also say when the main loop last turned, so that a hung component is seen
and not only a dead one. What run control says is queued for the main loop, which is woken.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import zmq

from phloem.model.errors import ProtocolError, SettingsError, UnreachableError
from phloem.protocol.control import (
    HEARTBEAT_S,
    FromRunControl,
    Heartbeat,
    Message,
    Refused,
    Register,
    Registered,
    decode,
    encode,
)

__all__ = ["ControlLink"]


class ControlLink:
    """``address``: of run control. ``beat`` makes a heartbeat, in the link's thread; ``wake`` wakes the main loop."""

    def __init__(self, address: str, beat: Callable[[], Heartbeat], wake: Callable[[], None]) -> None:
        self._address = address
        self._beat = beat
        self._wake = wake
        self._inbox: queue.SimpleQueue[FromRunControl] = queue.SimpleQueue()
        self._context = zmq.Context()
        self._pipe_out, pipe_in = self._pair()
        self._sending = threading.Lock()
        self._registered = threading.Event()
        self._latest: dict[str, Message] = {}
        self.started = False
        self._thread = threading.Thread(target=self._serve, args=(pipe_in,), name="control-link", daemon=True)

    def _pair(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        out, inner = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        inner.bind("inproc://out")
        out.connect("inproc://out")
        return out, inner

    def register(self, register: Register, timeout_s: float) -> Registered:
        """Say who we are and wait for the answer. `SettingsError` if refused, `UnreachableError` if nobody answers."""
        self._thread.start()
        self.started = True
        self.send(register)
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._inbox.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                raise UnreachableError(
                    f"run control does not answer at {self._address}; start it with `phloem up` or `phloem core`"
                ) from None
            if isinstance(answer, Refused):
                raise SettingsError(answer.reason)
            if isinstance(answer, Registered):
                break
            # A setting that changed while run control took us in is in its answer too.
        self._registered.set()
        return answer

    def send(self, message: Message) -> None:
        """Send a message; from any thread."""
        with self._sending:
            self._pipe_out.send(encode(message))

    def offer(self, key: str, message: Message) -> None:
        """Send with the next heartbeat, unless a newer one of the same ``key`` comes first; never blocks."""
        self._latest[key] = message

    def next(self) -> FromRunControl | None:
        """What run control said next, or None."""
        try:
            return self._inbox.get_nowait()
        except queue.Empty:
            return None

    @property
    def pending(self) -> bool:
        """Whether run control has said something that is not taken yet."""
        return not self._inbox.empty()

    def close(self) -> None:
        """Send what is queued, and end the thread."""
        if self.started:
            with self._sending:
                self._pipe_out.send(b"")
            self._thread.join(timeout=2)
        self._pipe_out.close(linger=0)
        self._context.destroy(linger=0)

    def _serve(self, pipe: zmq.Socket[bytes]) -> None:
        wire = self._context.socket(zmq.DEALER)
        wire.setsockopt(zmq.LINGER, 500)
        wire.connect(self._address)
        poller = zmq.Poller()
        poller.register(wire, zmq.POLLIN)
        poller.register(pipe, zmq.POLLIN)
        next_beat = time.monotonic()
        while True:
            wait_s = max(0.0, next_beat - time.monotonic())
            ready = dict(poller.poll(int(wait_s * 1e3) + 1))
            if pipe in ready:
                message = pipe.recv()
                if not message:
                    break
                wire.send(message)
            if wire in ready:
                self._take(wire.recv())
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + HEARTBEAT_S
                if self._registered.is_set():
                    wire.send(encode(self._beat()))
                    self._send_latest(wire)
        wire.close()
        pipe.close(linger=0)

    def _send_latest(self, wire: zmq.Socket[bytes]) -> None:
        for key in list(self._latest):
            with suppress(zmq.Again):  # nobody reads: the next one will tell
                wire.send(encode(self._latest.pop(key)), zmq.NOBLOCK)

    def _take(self, data: bytes) -> None:
        try:
            self._inbox.put(decode(data))
        except ProtocolError:
            return  # a newer run control may say things that this version does not know
        self._wake()

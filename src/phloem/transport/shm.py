"""Frames between processes of one host, through a ring in shared memory (rules: docs/protocol.md).

The ring itself is in the kernel; here are its two ends as the data flow uses them: a `Sender` that waits for space,
a `Receiver` that opens its ring when it appears and follows when another takes its place, and `Doorbell`, on
which a process waits for all its rings at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from phloem.kernel import Bell, Frame, FrameKind, RingError, RingReader, RingWriter, settle, writer_pid
from phloem.model.errors import TransportError

__all__ = ["BankBuffer", "Doorbell", "Receiver", "Sender"]

Buffer: TypeAlias = bytes | bytearray | memoryview | NDArray[Any]
BankBuffer: TypeAlias = tuple[bytes, int, Buffer]  # name, TID, data
LOOK_AGAIN_NS = 100_000_000


class Doorbell:
    """The one place on which a process sleeps until one of its rings has something, or `ring` is called."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self.bell = Bell(str(path))
        except RingError as error:
            raise TransportError(str(error)) from None

    def ring(self) -> None:
        """Wake the sleeper; from any thread."""
        self.bell.ring()

    def wait(self, receivers: Iterable[Receiver], timeout_s: float) -> None:
        """Sleep until a receiver has data, the bell rings, or ``timeout_s`` (at most 0.1 s) is over."""
        token = self.bell.arm()
        if any(receiver.has_data for receiver in receivers):
            self.bell.disarm()
            return
        self.bell.sleep(token, int(timeout_s * 1e9))

    def pause(self, timeout_s: float, wanted: Callable[[], bool]) -> None:
        """Sleep until ``wanted()``, the bell rings, or ``timeout_s`` (at most 0.1 s) is over."""
        token = self.bell.arm()
        if wanted():
            self.bell.disarm()
            return
        self.bell.sleep(token, int(timeout_s * 1e9))

    def remove(self) -> None:
        """Take the doorbell's file away."""
        self._path.unlink(missing_ok=True)


class Sender:
    """The writing end of one source's ring. ``keep_waiting`` is called while it is blocked; it may raise."""

    def __init__(
        self,
        path: str,
        source: str,
        buffer: str,
        capacity_bytes: int,
        readers: Sequence[str],
        keep_waiting: Callable[[], None],
        max_frame_bytes: int = 256 << 10,
        flush_s: float = 0.002,
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._keep_waiting = keep_waiting
        self.settings = (path, source, buffer, capacity_bytes, tuple(readers))
        try:
            self.writer = RingWriter(
                path,
                source,
                buffer,
                capacity_bytes,
                list(readers),
                max_frame=max_frame_bytes,
                flush_ns=int(flush_s * 1e9),
            )
        except RingError as error:
            raise TransportError(str(error)) from None

    def send_event(
        self, event_id: int, trigger_mask: int, serial_number: int, time_stamp: int, banks: list[BankBuffer]
    ) -> None:
        """One event; its banks are copied. When this returns, it is sent."""
        try:
            while not self.writer.send_event(event_id, trigger_mask, serial_number, time_stamp, banks):
                self.wait_space()
        except RingError as error:
            raise TransportError(str(error)) from None

    def send_batch(
        self,
        event_id: int,
        trigger_mask: int,
        first_serial: int,
        time_stamp: int,
        banks: list[BankBuffer],
        n_events: int,
        serials: Buffer | None = None,
    ) -> None:
        """``n_events`` events of equal shape: each bank's data hold them one after the other."""
        sent = 0
        try:
            while sent < n_events:
                sent = self.writer.send_batch(
                    event_id, trigger_mask, first_serial, time_stamp, banks, n_events, sent, serials
                )
                if sent < n_events:
                    self.wait_space()
        except RingError as error:
            raise TransportError(str(error)) from None

    def send_raw(self, events: bytes) -> None:
        """Whole events, back to back, as they stand in a ``.mid`` file."""
        sent = 0
        try:
            while sent < len(events):
                sent = self.writer.send_raw(events, sent)
                if sent < len(events):
                    self.wait_space()
        except RingError as error:
            raise TransportError(str(error)) from None

    def send_frame(self, kind: FrameKind, body: bytes = b"", n_events: int = 0, meta: bytes = b"") -> None:
        """A frame of its own: a border or texts."""
        try:
            while not self.writer.send_frame(kind, body, n_events, meta):
                self.wait_space()
        except RingError as error:
            raise TransportError(str(error)) from None

    def wait_space(self) -> None:
        """Wait for space once, at most 100 ms."""
        if not self.writer.wait_space(LOOK_AGAIN_NS):
            self._keep_waiting()

    @property
    def fill(self) -> float:
        """How full the ring is, 0 to 1."""
        return self.writer.used / self.writer.capacity

    @property
    def blocked_s(self) -> float:
        """For how long this writer has waited for space, since the ring was made."""
        return self.writer.blocked_ns / 1e9


class Receiver:
    """The reading end, of kind `all`, for the reader ``name``. The ring may not be there yet: `next` looks for it."""

    def __init__(self, path: str, name: str, bell: Doorbell) -> None:
        self.path = path
        self._name = name
        self._bell = bell
        self._reader: RingReader | None = None

    def open(self) -> bool:
        """Open the ring if it is there; follow to a new one if this one was replaced (which is so only when it
        was read to its end)."""
        if self._reader is not None and (self._reader.has_data or not self._reader.replaced):
            return True
        if not Path(self.path).exists():
            return self._reader is not None
        self._reader = None
        try:
            self._reader = RingReader(self.path, self._name, True, self._bell.bell)
        except RingError as error:
            raise TransportError(str(error)) from None
        return True

    @property
    def has_data(self) -> bool:
        """Whether `next` would give a frame."""
        return self._reader is not None and self._reader.has_data

    def next(self) -> Frame | None:
        """The next frame, or None if there is none yet."""
        if self._reader is None and not self.open():
            return None
        try:
            return self._reader.next() if self._reader else None
        except RingError as error:
            raise TransportError(str(error)) from None

    def release(self, position: int) -> None:
        """All frames that end at or before ``position`` may be overwritten."""
        if self._reader is not None:
            self._reader.release(position)

    @property
    def generation(self) -> int:
        """Of the ring; 0 while there is none."""
        return self._reader.generation if self._reader else 0

    @property
    def backlog_bytes(self) -> int:
        """Committed and not yet taken."""
        return self._reader.backlog if self._reader else 0

    def newest_total(self, run: int) -> int:
        """Events that the writer had sent in ``run`` by its last committed frame; 0 if that is of another run."""
        return self._reader.newest_total(run) if self._reader else 0

    @property
    def fill(self) -> float:
        """Backlog as a part of the ring, 0 to 1."""
        return self._reader.backlog / self._reader.capacity if self._reader else 0.0

    @property
    def writer_waiting(self) -> bool:
        """Whether the writer waits for space."""
        return self._reader is not None and self._reader.writer_waiting

    @property
    def writer_process(self) -> int:
        """The writer's pid, for comparing writers with each other."""
        return self._reader.writer_pid if self._reader else 0

    @property
    def writer_alive(self) -> bool:
        """Whether a process holds the writer's place."""
        if self._reader is not None:
            return self._reader.writer_alive
        return writer_pid(self.path) != 0

    def settle(self) -> bool:
        """Close the open frame of a dead writer, so that what it had sent can be read."""
        try:
            return settle(self.path)
        except RingError as error:
            raise TransportError(str(error)) from None

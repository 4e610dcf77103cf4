"""One stream as the logger reads it: its ring, and how far it has come in the run."""

from __future__ import annotations

from phloem.kernel import Frame, FrameKind
from phloem.model.errors import TransportError
from phloem.protocol.control import Stream
from phloem.transport.shm import Doorbell, Receiver

__all__ = ["LoggerInput"]


class LoggerInput:
    """One stream into a file. ``name``: as the account has it; ``client``: who reads."""

    def __init__(self, stream: Stream, name: str, client: str, bell: Doorbell) -> None:
        self.name = name
        self.source = stream.source
        self.receiver = Receiver(stream.ring, client, bell)
        self.begun = False
        self.ended = False
        self.written = 0
        self.bytes = 0
        self.sources: list[str] = []  # of a builder: its marks name them by their place
        self.sent: int | None = None  # as the newest frame says: the source's own count
        self.gone = False

    def open(self, preparing: bool) -> None:
        """Look for the ring: it may have been made, or made anew, since.

        ``preparing``: not everybody has prepared yet. A ring of the last run, which had other readers, is passed over
        then, since its writer will make it anew; later it is a `TransportError`.
        """
        try:
            self.receiver.open()
        except TransportError:
            if not preparing or self.receiver.generation:
                raise

    def next(self, preparing: bool) -> Frame | None:
        """The next frame, or None if there is none yet; ``preparing`` as in `open`."""
        try:
            return self.receiver.next()
        except TransportError:
            if not preparing or self.receiver.generation:
                raise
            return None

    def count(self, frame: Frame) -> None:
        """One frame of the run is dealt with."""
        self.begun = True
        self.sent = frame.total_events
        if frame.kind == FrameKind.EVENTS:
            self.written += frame.n_events
            self.bytes += frame.body_size

    def end_if_gone(self, never_begun: bool) -> bool:
        """Whether its writer is gone without a border, and all that it had sent has been read: it ends so.

        ``never_begun``: a PREPARE failed, so that a stream that has not begun never will.
        """
        if self.ended or self.receiver.has_data:
            return False
        if never_begun and not self.begun:
            self.ended = True
            return False
        if self.receiver.writer_alive:
            return False
        if self.receiver.settle() and self.receiver.has_data:
            return False
        self.ended = self.gone = True
        return True

"""One source as the event builder sees it: its ring, where it stands, and for how long it has been silent."""

from __future__ import annotations

from phloem.dataflow.building import BuilderSettings, SourceSettings
from phloem.kernel import Cause, Frame
from phloem.protocol.control import Stream
from phloem.transport.shm import Doorbell, Receiver

__all__ = ["SHIFTS_TOLD", "BuilderInput"]

LOOK_S = 0.1  # what one look at an empty ring counts towards silence, at most (datapath, section 3)
GRACE_S = 0.3  # silent for so long: it is looked whether its process lives
SHIFTS_TOLD = 20  # of one source in one run: a clock that flaps must not fill the messages


class BuilderInput:
    """``border``: a frame that waits until all before it has been read. ``sent``: by the source's own word."""

    def __init__(
        self,
        number: int,
        stream: Stream,
        client: str,
        bell: Doorbell,
        settings: BuilderSettings,
        own: SourceSettings,
    ) -> None:
        self.number = number
        self.name = stream.source
        self.stream = stream
        self.receiver = Receiver(stream.ring, client, bell)
        self.required = own.required
        timeout_ms = settings.timeout_ms if own.timeout_ms < 0 else own.timeout_ms
        self.timeout_s = (timeout_ms if own.required else settings.optional_wait_ms) / 1e3
        self.border: Frame | None = None
        self.begun = False
        self.ended = False
        self.silent_s = 0.0
        self.freed = 0
        self.sent: int | None = None
        self.last_total = 0
        self.shifts_told = 0
        self.restart_told = False

    @property
    def cause(self) -> Cause:
        """What a mark says when silence closes an event without it."""
        return Cause.SILENCE if self.required else Cause.OPTIONAL

    def look(self, looked_s: float) -> bool:
        """Count a look at the empty ring; whether it is time to ask what is the matter."""
        self.silent_s += min(looked_s, LOOK_S)
        return self.silent_s >= min(self.timeout_s, GRACE_S)

    @property
    def patience_s(self) -> float:
        """How long it may stay silent until then."""
        return max(0.001, min(self.timeout_s, GRACE_S) - self.silent_s)

    def shares_process(self, writer: int) -> bool:
        """Whether the process ``writer`` waits for space in this ring."""
        return self.receiver.writer_waiting and self.receiver.writer_process == writer

"""The way out of the event builder: events into the open frame, behind them the checkpoint and all that timing decided.

Input is freed only after the frame that holds the checkpoint of it is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from phloem.dataflow.builder_input import BuilderInput
from phloem.dataflow.eb_user import BATCH_BYTES, BATCH_EVENTS, UserCode
from phloem.kernel import Builder, FrameKind, Stop
from phloem.model.errors import UserCodeError
from phloem.protocol.data import Section, encode_marks, join_sections
from phloem.transport.shm import Sender

__all__ = ["BuilderOutput"]


class BuilderOutput:
    """``user``: its code, if it sees events. ``failed`` is told once of an error that ends the run."""

    def __init__(
        self,
        sender: Sender,
        kernel: Builder,
        inputs: Sequence[BuilderInput],
        user: UserCode | None,
        failed: Callable[[UserCodeError], None],
    ) -> None:
        self.sender = sender
        self.kernel = kernel
        self._inputs = inputs
        self._user = user if user is not None and user.sees_events else None
        self._failed = failed
        self._state = b""
        self.first_event = b""  # a copy of the first one that left

    # ------------------------------------------------------------------ events

    def build(self) -> Stop | None:
        """Build what can be built and commit it; None: the ring is full, and was waited for once."""
        if self._user is not None:
            return self._build_staged(self._user)
        result = self.kernel.build_into(self.sender.writer)
        if result is None:
            self.sender.wait_space()
            return None
        if self.sender.writer.open_events or self._is_due:
            self.commit()
        return Stop(result[0])

    def _build_staged(self, user: UserCode) -> Stop | None:
        why = Stop(self.kernel.stage(BATCH_BYTES, BATCH_EVENTS))
        if self.kernel.n_staged == 0:
            if self._is_due:
                self.commit()
            return why
        problem = user.decide(self.kernel)
        if problem is not None:
            self._failed(problem)
        while self.kernel.n_staged:
            written = self.kernel.write_staged_into(self.sender.writer, self.kernel.n_staged)
            if written is None:
                self.sender.wait_space()
                continue
            self._state = user.state_after(written)
            self.commit()
        return why

    @property
    def _is_due(self) -> bool:
        """Whether a frame without events is worth it: input to be freed, fragments for the side files."""
        return self.kernel.has_side or any(self.kernel.released(i.number) > i.freed for i in self._inputs)

    # ------------------------------------------------------------------ frames

    def commit(self) -> None:
        """Close the open frame with a checkpoint, and only then free what is decided in it."""
        writer = self.sender.writer
        if not writer.has_open:
            if not self._is_due:
                return
            while self.kernel.write_staged_into(writer, 0) is None:
                self.sender.wait_space()
        if not self.first_event and writer.open_events:
            self.first_event = writer.first_open_event
        writer.close_with(self._meta())
        self.free()

    def send(self, kind: FrameKind, body: bytes, n_events: int, *more: tuple[Section, bytes]) -> None:
        """A border or text, behind all that was built before it."""
        self.commit()
        self.sender.send_frame(kind, body, n_events, self._meta(*more))

    def free(self) -> None:
        """Give the sources' rings back what is decided in a committed frame."""
        for source in self._inputs:
            position = self.kernel.released(source.number)
            if position > source.freed:
                source.freed = position
                source.receiver.release(position)

    def _meta(self, *more: tuple[Section, bytes]) -> bytes:
        kernel = self.kernel
        generations = [source.receiver.generation for source in self._inputs]
        parts = [(Section.CHECKPOINT, kernel.checkpoint(generations)), *more]
        marks = kernel.take_marks()
        if marks:
            parts.append(encode_marks(marks))
        late, quarantined = kernel.take_side()
        if late:
            parts.append((Section.LATE, late))
        if quarantined:
            parts.append((Section.QUARANTINED, quarantined))
        if self._state:
            parts.append((Section.USER_STATE, self._state))
        return join_sections(parts)

"""Replays a ``.mid`` file as a live frontend: its events are sent as they stand, serial numbers and banks included.

Settings: ``File``; ``Event id`` to send only events of that id (0: all); ``Rate Hz`` (0: as fast as it can).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

from phloem.dataflow.frontend import EventDraft, Frontend
from phloem.formats.midas.events import decode_header
from phloem.formats.midas.file import read_whole
from phloem.model.errors import SettingsError
from phloem.model.event import EQ_EB, EQ_POLLED, Equipment

__all__ = ["Replay"]


class Replay(Frontend):
    """One recorded source, live again. Begin and end of run and messages are left out; events in pieces are whole."""

    name: str = "replay"
    equipment: Sequence[Equipment] = (
        Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB, format="MIDAS"),
    )
    default_settings: ClassVar[Mapping[str, Any]] = {"File": "", "Event id": 0, "Rate Hz": 0.0}

    def prepare(self, run_number: int) -> None:
        if not self.settings["File"]:
            raise SettingsError(f"{self.name}: the setting 'File' is empty; name a .mid file")
        self._events: Iterator[bytes] = self._recorded(str(self.settings["File"]))
        self._next_event: bytes | None = None
        self._sent = 0

    def begin_of_run(self, run_number: int) -> None:
        self._began_s = time.monotonic()
        self._next_event = next(self._events, None)

    def rejoin(self, run_number: int, sent: dict[str, int], next_serial: dict[str, int]) -> None:
        """Go on behind what was sent before."""
        self.prepare(run_number)
        self._events = islice(self._events, sum(sent.values()), None)
        self.begin_of_run(run_number)

    def _recorded(self, path: str) -> Iterator[bytes]:
        wanted = int(self.settings["Event id"])
        for raw in read_whole(path):
            if wanted in (0, decode_header(raw).event_id):
                yield bytes(raw)

    def poll(self) -> bool:
        rate_hz = float(self.settings["Rate Hz"])
        if self._next_event is None:
            self.wait(0.1)
            return False
        if rate_hz:
            due_s = self._began_s + self._sent / rate_hz - time.monotonic()
            if due_s > 0:
                self.wait(due_s)
                return False
        return True

    def read(self, event: EventDraft) -> None:
        if self._next_event is not None:
            event.raw = self._next_event
            self._sent += 1
            self._next_event = next(self._events, None)

"""Messages for people: the last ones in memory, all of them in a file, each once on stderr."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

__all__ = ["Messages", "Note"]

_SEVERITIES = ("debug", "info", "warning", "error")
_LONGEST = 2000  # a peer's text; longer ones are cut, so that one message cannot fill the log


class Note(msgspec.Struct, frozen=True):
    """One message. ``time_s``: seconds since 1970; ``origin``: the component that said it."""

    time_s: float
    severity: str
    origin: str
    text: str

    def line(self) -> str:
        """As it is printed and logged: local time, origin and severity as MIDAS does, text."""
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time_s))
        return f"{clock}.{int(self.time_s % 1 * 1000):03d} [{self.origin},{self.severity.upper()}] {self.text}"


class Messages:
    """``path``: the file that they are appended to. ``printed``: on stderr as well."""

    def __init__(
        self,
        path: Path,
        kept: int = 1000,
        printed: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._kept: deque[Note] = deque(maxlen=kept)
        self._printed = printed
        self._clock = clock

    def add(self, severity: str, origin: str, text: str) -> Note:
        """Say something. Line breaks are written as blanks: one message, one line."""
        known = severity if severity in _SEVERITIES else "info"
        note = Note(self._clock(), known, origin, " ".join(text[:_LONGEST].split()))
        self._kept.append(note)
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:  # a full disk stops no run control
            print(note.line(), file=file)
        if self._printed and known != "debug":
            with suppress(OSError, ValueError):  # nor does a terminal that was closed
                print(note.line(), file=sys.stderr)
        return note

    def last(self, count: int) -> list[Note]:
        """The last ``count`` messages, oldest first."""
        return list(self._kept)[-count:] if count > 0 else []

"""The tree of errors. Who is to blame is in the class; the values are attributes as well as text.

::

    PhloemError
    ├── SettingsError      the experiment file, an option or an ODB value says something impossible
    ├── TransitionError    the caller asked for a transition that is not allowed or not possible now
    ├── ProtocolError      a peer said something that the protocol does not know
    ├── FormatError        a file or a piece of it is not what its format says (path, offset)
    ├── EventError         user code gave an event that cannot be (bank name, size, dtype)
    ├── TransportError     a ring or link cannot do what was asked (owned, full, stale)
    ├── UserCodeError      user code raised or could not be loaded
    ├── UnreachableError   nobody answers at an address, or an answer took too long
    └── NotFoundError      something that was named does not exist (component, ODB key, run)
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "EventError",
    "FormatError",
    "NotFoundError",
    "PhloemError",
    "ProtocolError",
    "SettingsError",
    "TransitionError",
    "TransportError",
    "UnreachableError",
    "UserCodeError",
]


class PhloemError(Exception):
    """Base of all errors that this system raises on purpose: one line that names the thing, what was
    found, and what to do. Keyword arguments become attributes."""

    def __init__(self, text: str, **values: Any) -> None:
        super().__init__(text)
        self.text = text
        for name, value in values.items():
            setattr(self, name, value)


class SettingsError(PhloemError):
    """The experiment file, an option or an ODB value says something impossible."""


class TransitionError(PhloemError):
    """A transition that is not allowed in this state, or that a component refused."""


class ProtocolError(PhloemError):
    """A peer said something that the protocol does not know."""


class FormatError(PhloemError):
    """A file, or a piece of one, is not what its format says.

    ``path`` names the file (empty for bytes in memory), ``offset`` the byte at which it goes wrong.
    """

    path: str
    offset: int

    def __init__(self, text: str, path: str = "", offset: int = 0) -> None:
        place = f"{path}: byte {offset}: " if path else f"byte {offset}: "
        super().__init__(place + text, path=path, offset=offset)
        self.reason = text


class EventError(PhloemError):
    """User code gave an event that cannot be: a bank name, a size or a dtype."""


class TransportError(PhloemError):
    """A ring or link cannot do what was asked."""


class UserCodeError(PhloemError):
    """User code raised, or could not be loaded. ``where``: the traceback as text."""

    where: str = ""


class UnreachableError(PhloemError):
    """Nobody answers at an address, or an answer took too long."""


class NotFoundError(PhloemError):
    """Something that was named does not exist."""

"""What a transport is: frames in order, with back-pressure, kept until the reader has released them.

A sender blocks while there is no space, and asks `keep_waiting` at least every 100 ms: it may raise to give up.
A `Receiver` gives frames; each is a view that dies at `release`.
"""

from __future__ import annotations

from typing import Protocol

from phloem.kernel import Frame

__all__ = ["Receiver"]


class Receiver(Protocol):
    """The reading end."""

    def next(self) -> Frame | None:
        """The next frame, or None if there is none yet."""
        ...

    def release(self, position: int) -> None:
        """All frames that end at or before ``position`` may be overwritten."""
        ...

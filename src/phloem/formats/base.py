"""What a format of run files offers: one run, written block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

__all__ = ["Block", "Mark", "Position", "RunFile", "SideFiles"]

Block: TypeAlias = bytes | bytearray | memoryview


class Position(NamedTuple):
    """How far one stream has been read: what a restarted reader needs to go on.

    ``stream``: its name. ``generation`` and ``frame``: of its ring, and the sequence number of the last frame
    taken. ``events``: how many events it had sent up to there, all in all.
    """

    stream: str
    generation: int
    frame: int
    events: int


class Mark(NamedTuple):
    """A decision that timing forced on the builder.

    Serial numbers are inclusive. ``data``: both unwrapped, two u64 (times in ns where sources are matched by time).
    """

    source: str
    first_serial: int
    last_serial: int
    cause: str
    data: bytes = b""


class RunFile(Protocol):
    """One run on disk. Errors of the disk come as OSError; a call that raised one may be made again."""

    def write(
        self,
        block: Block | Sequence[Block],
        n_events: int,
        first_serial: int | None,
        last_serial: int | None,
        positions: Sequence[Position] = (),
    ) -> None:
        """Write whole events back to back, and remember with them how far each stream has been read."""

    def mark(self, mark: Mark) -> None:
        """Keep a decision of the builder."""

    def close(self, status: str, account: Mapping[str, object] | None = None) -> None:
        """End the run: ``status`` such as complete, released, interrupted, forced, and its account."""


@runtime_checkable
class SideFiles(Protocol):
    """What a format offers that keeps fragments which are in no event, in files beside the run's."""

    def write_side(self, name: str, events: Block, n_events: int) -> None:
        """Write whole events to the side file ``name`` (late, quarantine); made when there is something for it."""

    @property
    def side_files(self) -> Sequence[Path | str]:
        """The side files that there are."""

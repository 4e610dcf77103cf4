"""Runs and their accounts: each fragment has one fate, and what has none is lost and named.

The identity (design, section 1; datapath, section 5), exact integers, per source and run::

    sent = built + incomplete + late + duplicate + discarded + quarantined + lost

and for each stream into the logger ``sent = written + lost``. ``sent`` is counted by the sender alone; it is
None where the sender could not be asked. Only a ``lost`` of 0 everywhere, with every ``sent`` known, is balanced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

__all__ = ["Account", "RunInfo", "RunStatus", "SourceAccount", "StreamAccount"]


class RunStatus(StrEnum):
    """How a run stands in the runs table."""

    OPEN = "open"
    COMPLETE = "complete"
    RELEASED = "released"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class RunInfo(msgspec.Struct, frozen=True):
    """What a run is called and who takes it. ``write_data`` False: a test run, nothing is kept."""

    number: int
    operator: str = ""
    comment: str = ""
    write_data: bool = True
    started_s: float = 0.0


class SourceAccount(msgspec.Struct, frozen=True):
    """The fates of one source's fragments. ``missed``: what the hardware itself lost, beside the account."""

    sent: int | None = None
    built: int = 0
    incomplete: int = 0
    late: int = 0
    duplicate: int = 0
    discarded: int = 0
    quarantined: int = 0
    blocked_s: float = 0.0
    missed: int = 0

    @property
    def accounted(self) -> int:
        """Fragments that have a fate."""
        return self.built + self.incomplete + self.late + self.duplicate + self.discarded + self.quarantined

    @property
    def lost(self) -> int | None:
        """Fragments sent that have no fate; None while ``sent`` is not known."""
        return None if self.sent is None else self.sent - self.accounted


class StreamAccount(msgspec.Struct, frozen=True):
    """One stream into the logger. ``discarded``: drained on purpose (a run that does not write data)."""

    sent: int | None = None
    written: int = 0
    discarded: int = 0
    blocked_s: float = 0.0
    missed: int = 0

    @property
    def lost(self) -> int | None:
        """Events sent that were not written; None while ``sent`` is not known."""
        return None if self.sent is None else self.sent - self.written - self.discarded


class Account(msgspec.Struct, frozen=True):
    """The account of one run."""

    sources: dict[str, SourceAccount] = {}
    streams: dict[str, StreamAccount] = {}

    @classmethod
    def assembled(cls, results: Iterable[Mapping[str, Any]], streams: Iterable[str]) -> Account:
        """The account from what the components answered at the end of the run.

        Each result may hold ``sent``: {name: {sent, blocked_s, missed}}, by the sender alone; ``fates``: {source:
        {built, incomplete, ...}}, by a builder; ``written``: {stream: {written, discarded}}, by the logger.
        ``streams`` names what goes into the logger; all other names are sources of a builder.
        """
        gathered: dict[str, dict[str, Any]] = {}
        into_logger = set(streams)
        for result in results:
            for kind in ("sent", "fates", "written"):
                for name, part in result.get(kind, {}).items():
                    gathered.setdefault(name, {}).update(part)
        for name in into_logger:
            gathered.setdefault(name, {})
        return cls(
            sources={
                name: msgspec.convert(part, SourceAccount)
                for name, part in sorted(gathered.items())
                if name not in into_logger
            },
            streams={
                name: msgspec.convert(part, StreamAccount)
                for name, part in sorted(gathered.items())
                if name in into_logger
            },
        )

    @property
    def balanced(self) -> bool:
        """True only if nothing is lost on either side and every ``sent`` is known."""
        parts: list[SourceAccount | StreamAccount] = [*self.sources.values(), *self.streams.values()]
        return all(part.lost == 0 for part in parts)

    def report(self) -> dict[str, dict[str, dict[str, int | float | None]]]:
        """The account as plain values, with ``lost`` worked out: the form of JSON answers and of the file."""
        return {
            "sources": {name: _plain(part) for name, part in self.sources.items()},
            "streams": {name: _plain(part) for name, part in self.streams.items()},
        }

    def losses(self) -> list[str]:
        """One sentence for each source or stream that does not balance."""
        found = []
        parts: list[tuple[str, SourceAccount | StreamAccount]] = [*self.sources.items(), *self.streams.items()]
        for name, part in parts:
            if part.lost is None:
                found.append(f"{name}: how much was sent is not known")
            elif part.lost:
                found.append(f"{name}: lost {part.lost} of {part.sent} sent")
        return found


def _plain(part: SourceAccount | StreamAccount) -> dict[str, int | float | None]:
    return {**{field: getattr(part, field) for field in part.__struct_fields__}, "lost": part.lost}

"""Serial numbers, with the times as a cross-check: does a source's fragment belong to the event of its number?

The times of an event's fragments agree if they lie within a window of each other. What most of them agree on is the
event's time; where there is no most, the first source in name order says it. A source that disagrees is *shifted*:
its fragment belongs to the event, a few numbers before or after this one, whose time is its own. Those before are
known; those after are looked up in the source that said this event's time, which is waited for as far as needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from phloem.kernel.reference.source import Fragment, Source

__all__ = ["LOOK_EVENTS", "Agreed", "Blind", "Checker", "Found"]

LOOK_EVENTS = 256  # so far a shift is looked for, in both directions


@dataclass(frozen=True, slots=True)
class Agreed:
    """What most sources say of an event: its time, and who was the first to say it."""

    time: int
    anchor: Source
    off: list[Source]


@dataclass(frozen=True, slots=True)
class Found:
    """``shift``: by how many events the source's fragment belongs later; None: nowhere near."""

    shift: int | None


class Blind(Exception):
    """It cannot be said before ``source`` has sent more."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.rule.name)
        self.source = source


class Checker:
    """``window_ns``: how far times may lie apart that agree."""

    def __init__(self, window_ns: int) -> None:
        self.window_ns = window_ns
        self.history: deque[tuple[int, int]] = deque(maxlen=LOOK_EVENTS)  # (serial number, time) of past events
        self.blind: set[int] = set()  # sources that are silent: nothing that they have not sent is waited for
        self.blind_at: dict[tuple[int, int], int] = {}  # (source, event): what it was looked up to, in vain
        self.looked: list[tuple[int, int]] = []  # the same that is new, as (source, key)

    def agreed(self, present: Sequence[Source]) -> Agreed | None:
        """None if no fragment has a time."""
        timed = [(s, s.passed_on[0].time) for s in present if s.passed_on[0].time is not None]
        if not timed:
            return None

        def with_it(time: int) -> list[Source]:
            return [s for s, other in timed if other is not None and abs(other - time) <= self.window_ns]

        best, time = max(((s, t) for s, t in timed if t is not None), key=lambda pair: len(with_it(pair[1])))
        agree = with_it(time)
        return Agreed(time, best, [s for s, _ in timed if s not in agree])

    def look_for(self, source: Source, serial: int, said: Agreed) -> Found:
        """The shift of a source that is off, or `Blind`."""
        time = source.passed_on[0].time
        assert time is not None
        if time < said.time:
            for number, other in reversed(self.history):
                if abs(other - time) <= self.window_ns:
                    return Found(number - serial)
            return Found(None)
        return self.look_ahead(said.anchor, serial, time)

    def look_ahead(self, anchor: Source, serial: int, time: int) -> Found:
        """In what the anchor has passed on beyond this event."""
        given = self.blind_at.get((anchor.number, serial))
        ahead: list[Fragment] = list(anchor.passed_on)[1 : LOOK_EVENTS + 1]
        for fragment in ahead:
            if given is not None and fragment.key > given:
                break
            if fragment.time is None or anchor.is_given(fragment.key):
                continue
            if abs(fragment.time - time) <= self.window_ns:
                return Found(fragment.key - serial)
            if fragment.time > time:
                return Found(None)
        if len(ahead) == LOOK_EVENTS or anchor.over or given is not None:
            return Found(None)
        if anchor.number not in self.blind:
            raise Blind(anchor)
        last = anchor.passed_on[-1].key
        self.blind_at[anchor.number, serial] = last  # what it sends from now on changes nothing of this event
        self.looked.append((anchor.number, last))
        return Found(None)

    def take_looked(self) -> list[tuple[int, int]]:
        """What was looked up in vain since this was asked last."""
        taken, self.looked = self.looked, []
        return taken

    def remember(self, serial: int, said: Agreed) -> None:
        """The event leaves."""
        self.history.append((serial, said.time))

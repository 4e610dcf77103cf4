"""When is which equipment read, and what becomes of the event. Pure: state and times are arguments.

As in mfe (``scheduler``, ``send_all_periodic_events``; design, section 7), except that events are sent in RUN only:

=================== ========================================== =====================================================
equipment           in RUN                                     in STOP and READY
=================== ========================================== =====================================================
POLLED, MULTITHREAD when `poll` says yes, with RUNNING (1)     not
PERIODIC            every Period ms, with RUNNING (1)          every Period ms, with STOPPED (2) and ODB (256),
                                                               for the copy in the ODB
SLOW                every Period ms; sent with RUNNING (1)     every Period ms
=================== ========================================== =====================================================

Any of them is read once more, and sent, at BEGIN with BOR (8) and at END with EOR (16). Period 0 is never over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from phloem.model.event import EQ_FRAGMENTED, EQ_PERIODIC, EQ_SLOW, Equipment, ReadOn
from phloem.protocol.state import State

__all__ = ["Due", "Schedule", "Superevent", "has_no_effect", "is_clocked", "is_polled"]

_NOWHERE = ReadOn.PAUSED | ReadOn.PAUSE | ReadOn.RESUME


class Due(msgspec.Struct, frozen=True):
    """``equipment`` is to be read now; its event is sent, or else only looked at."""

    equipment: Equipment
    sent: bool


def is_clocked(equipment: Equipment) -> bool:
    """Whether time says when it is read, and not the hardware."""
    return bool(equipment.type & (EQ_PERIODIC | EQ_SLOW))


def is_polled(equipment: Equipment) -> bool:
    """Whether it is read when `poll` says yes."""
    return not is_clocked(equipment) and bool(equipment.read_on & ReadOn.RUNNING)


def has_no_effect(equipment: Equipment, batches: bool = False) -> Iterator[str]:
    """What in an equipment's Common is set and has no effect. ``batches``: it is read by `read_batch`."""
    kind, read_on = equipment.type, ReadOn(equipment.read_on)
    ignored = read_on & _NOWHERE
    if ignored:
        names = ", ".join(flag.name or "" for flag in _NOWHERE if flag & ignored)
        yield f"Read on: {names} (there is no pause)"
    if read_on & ReadOn.STOPPED and not kind & EQ_SLOW:
        if not is_clocked(equipment):
            yield "Read on: STOPPED (polled equipment is read in RUN only)"
        elif not read_on & ReadOn.ODB:
            yield "Read on: STOPPED without ODB (events are sent in RUN only)"
    if kind & EQ_SLOW and equipment.event_limit:
        yield "Event limit (of slow control)"
    if equipment.num_subevents and (is_clocked(equipment) or batches):
        yield "Num subevents (of equipment that is not read event by event when it is triggered)"
    if kind & EQ_FRAGMENTED:
        yield "Type: FRAGMENTED (events may be large without it; if EB of an old MIDAS is meant, that is 128 now)"
    if equipment.log_history:
        yield "Log history"


class Schedule:
    """The clock of PERIODIC and SLOW equipment. ``equipment``: what takes part; times are monotonic seconds."""

    def __init__(self, equipment: Iterable[Equipment] = ()) -> None:
        self._clocked = [e for e in equipment if e.enabled and is_clocked(e) and e.period > 0]
        self._next_s: dict[str, float] = {}

    def restart(self, now_s: float) -> None:
        """All periods begin now: everything is due at once."""
        self._next_s = {equipment.name: now_s for equipment in self._clocked}

    def due(self, state: State, now_s: float) -> list[Due]:
        """What is to be read now; each period is then counted from when it should have been over."""
        found = []
        for equipment in self._clocked:
            if now_s < self._next_s.get(equipment.name, now_s) or not _is_read(equipment, state):
                continue
            next_s = self._next_s.get(equipment.name, now_s) + equipment.period / 1e3
            self._next_s[equipment.name] = max(next_s, now_s)
            sent = state is State.RUN and bool(equipment.read_on & ReadOn.RUNNING)
            found.append(Due(equipment, sent))
        return found

    def until_next_s(self, state: State, now_s: float) -> float:
        """Seconds until something is due; infinite if nothing will be."""
        times = (self._next_s.get(e.name, now_s) for e in self._clocked if _is_read(e, state))
        return max(0.0, min(times, default=float("inf")) - now_s)


def _is_read(equipment: Equipment, state: State) -> bool:
    if equipment.type & EQ_SLOW:
        return True
    if state is State.RUN:
        return bool(equipment.read_on & ReadOn.RUNNING)
    return bool(equipment.read_on & ReadOn.STOPPED and equipment.read_on & ReadOn.ODB)


class Superevent:
    """Counts the triggers of one super-event: it is whole after ``size`` of them, or ``period_s`` after the first.

    mfe waits for the rest as long as its poll's time slice, Period, lasts.
    """

    def __init__(self, size: int, period_s: float) -> None:
        self._size = size
        self._period_s = period_s
        self._first_s = 0.0
        self.triggers = 0

    def add(self, now_s: float) -> None:
        """One more trigger was read."""
        if self.triggers == 0:
            self._first_s = now_s
        self.triggers += 1

    def whole(self, now_s: float) -> bool:
        """Whether it is to be sent now."""
        return self.triggers >= self._size or (self.triggers > 0 and now_s - self._first_s >= self._period_s)

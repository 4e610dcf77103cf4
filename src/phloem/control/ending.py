"""Runs that run control ends by itself: because a component asks for it, or because the run's duration is over.

Such an end is as that of `phloem stop`: the document goes to the runs table, with the reason in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from phloem.control.messages import Messages
from phloem.control.odb import Odb
from phloem.control.transitions import Transitions
from phloem.model.event import TID
from phloem.protocol.state import State, Transition

__all__ = ["RUN_DURATION", "Ending", "Wish"]

RUN_DURATION = "/Logger/Run duration"
_ORIGIN = "run control"
_AGAIN_S = 5.0


class Wish:
    """When the run that is going on has to end, and why. Pure: monotonic times are arguments, in seconds."""

    def __init__(self) -> None:
        self._run: int | None = None
        self._reason = ""
        self._begun_s: float | None = None

    def ask(self, run: int, reason: str) -> None:
        """Somebody asks for the end of ``run``; the first reason stands."""
        self._follow(run)
        self._reason = self._reason or reason

    def began(self, run: int, begun_s: float) -> None:
        """``run`` has reached RUN; the first time stands."""
        self._follow(run)
        if self._begun_s is None:
            self._begun_s = begun_s

    def knows_begin_of(self, run: int) -> bool:
        """Whether `began` was called for ``run``."""
        return self._run == run and self._begun_s is not None

    def reason(self, run: int, duration_s: float, now_s: float) -> str:
        """Why ``run`` ends now; empty if it goes on. ``duration_s``: 0 for none."""
        if self._run != run:
            return ""
        if not self._reason and duration_s > 0 and self._begun_s is not None and now_s - self._begun_s >= duration_s:
            self._reason = f"{_ORIGIN}: its duration of {duration_s:g} s is over"
        return self._reason

    def _follow(self, run: int) -> None:
        if self._run != run:
            self._run, self._reason, self._begun_s = run, "", None


class Ending:
    """Is asked several times a second whether the run is `due` to end, and `end`s it."""

    def __init__(self, odb: Odb, messages: Messages, transitions: Transitions) -> None:
        self._odb = odb
        self._messages = messages
        self._transitions = transitions
        self._wish = Wish()
        self._under_way = False
        self._not_before_s = 0.0
        odb.create(RUN_DURATION, TID.FLOAT64, 0.0)

    def ask(self, run: int, who: str, reason: str) -> None:
        """A component asks for the end of ``run``; of another run than today's it has no effect."""
        today = self._transitions.run
        if today is not None and today.info.number == run:
            self._wish.ask(run, f"{who}: {reason}")

    def due(self, clock: Callable[[], float] = time.monotonic) -> str:
        """Why the run has to be ended now; empty if not, or not yet since a transition is under way."""
        run, state = self._transitions.run, self._transitions.state
        if run is None or state is State.STOP:
            return ""
        number, now_s = run.info.number, clock()
        if state is State.RUN and not self._wish.knows_begin_of(number):
            ago_s = max(0.0, time.time() - run.begun_s) if run.begun_s else 0.0  # a restart knows no monotonic time
            self._wish.began(number, now_s - ago_s)
        if self._under_way or self._transitions.under_way is not None or now_s < self._not_before_s:
            return ""
        return self._wish.reason(number, float(self._odb.value(RUN_DURATION, 0.0)), now_s)

    async def end(self, reason: str) -> None:
        """END, as an operator would ask for it."""
        run = self._transitions.run
        if run is None or self._under_way:
            return
        self._under_way = True
        try:
            self._messages.add("info", _ORIGIN, f"Run {run.info.number} ends: {reason}")
            await self._transitions.end(Transition.END, lambda name, what: None, reason)
        except Exception as error:  # noqa: BLE001 - an operator was faster, or the disk is full: nobody else would say so
            self._not_before_s = time.monotonic() + _AGAIN_S
            self._messages.add("error", _ORIGIN, f"Run {run.info.number} was not ended: {error}")
        finally:
            self._under_way = False

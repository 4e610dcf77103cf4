"""Frontends that come back in mid-run: each is taken into the run that it has a plan in.

A frontend that is started again while its run is READY or RUN is asked for PREPARE, and in RUN for BEGIN, with the
plan and the settings that the run was prepared with, not those of today (datapath, section 9). This goes on beside
whatever else happens: a transition that is asked for meanwhile asks it too, and what it is told arrives in order. No
such request is sent while a transition is under way, nor once the end of the run has been asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from phloem.control.asking import Answer, Asking, Outcome
from phloem.control.directory import Directory, Member
from phloem.control.messages import Messages
from phloem.control.odb import Odb
from phloem.control.preparation import CurrentRun, Preparation
from phloem.control.runs import Runs
from phloem.formats.midas.dump import parse_dump
from phloem.model.errors import PhloemError
from phloem.protocol.control import Register, TransitionRequest
from phloem.protocol.state import State, Transition

__all__ = ["Rejoining"]

_ORIGIN = "run control"
Settings = dict[str, dict[str, Any]]


class Rejoining:
    """Knows which processes have their part in the run; whoever else is there is new."""

    def __init__(
        self,
        odb: Odb,
        runs: Runs,
        directory: Directory,
        messages: Messages,
        preparation: Preparation,
        asking: Asking,
        incarnation: str,
    ) -> None:
        self._odb = odb
        self._runs = runs
        self._directory = directory
        self._messages = messages
        self._preparation = preparation
        self._asking = asking
        self._incarnation = incarnation
        self._known: dict[str, str] = {}  # name to the incarnation that has its part, or was told that it has none
        self._tasks: set[asyncio.Task[None]] = set()

    def take_part(self, names: Iterable[str]) -> None:
        """These are asked for their part of PREPARE or BEGIN as they are now."""
        for name in names:
            member = self._directory.by_name(name)
            if member is not None:
                self._known[name] = member.register.incarnation

    def forget(self) -> None:
        """The run is closed: nobody is waited for any more."""
        self._known.clear()
        for task in self._tasks:
            task.cancel()

    def look(self, run: CurrentRun, state: State, undisturbed: Callable[[], bool]) -> None:
        """Take in who came back. ``undisturbed``: whether the run goes on and no transition is under way."""
        for member in self._directory.living(time.monotonic()):
            register = member.register
            if self._known.get(register.name) == register.incarnation:
                continue
            self._known[register.name] = register.incarnation
            if register.state is State.STOP and self._may_rejoin(run, register):
                task = asyncio.ensure_future(self._rejoin(run, state, member, undisturbed))
                self._tasks.add(task)  # asyncio holds tasks weakly
                task.add_done_callback(self._tasks.discard)

    def _may_rejoin(self, run: CurrentRun, register: Register) -> bool:
        """Whether a component that is in no run can be taken in; if not, a message says so."""
        plan = run.plans.get(register.name)
        waits = f"it takes part from the next PREPARE on, not in run {run.info.number}"
        if plan is None:
            self._messages.add("info", _ORIGIN, f"{register.name} is new: {waits}")
            return False
        if register.kind != "frontend":
            return False
        declared = {equipment.name for equipment in register.equipment}
        lacking = [stream.source for stream in plan.outputs if stream.source not in declared]
        if lacking:
            self._messages.add("warning", _ORIGIN, f"{register.name} came back without {', '.join(lacking)}: {waits}")
            return False
        steps = self._runs.steps(run.info.number)
        return not any(step.transition in (Transition.END, Transition.RELEASE) for step in steps)

    async def _rejoin(self, run: CurrentRun, state: State, member: Member, undisturbed: Callable[[], bool]) -> None:
        if not undisturbed():
            self._known.pop(member.name, None)  # looked at again when the transition is done
            return
        number = run.info.number
        try:
            problem = await self._ask(run, state is State.RUN, member, undisturbed)
            note = "" if problem else self._differing(self._settings(run, member.register), member.register)
        except PhloemError as error:
            problem = str(error)
        if problem:
            self._messages.add("error", _ORIGIN, f"{member.name} could not be taken back into run {number}: {problem}")
        else:
            self._messages.add("info", _ORIGIN, f"{member.name} is back in run {number}{note}")

    async def _ask(self, run: CurrentRun, begun: bool, member: Member, undisturbed: Callable[[], bool]) -> str:
        """Ask for its transitions one after the other; why it failed, or an empty text."""
        for transition in (Transition.PREPARE, Transition.BEGIN) if begun else (Transition.PREPARE,):
            if not undisturbed():
                return ""  # it is prepared: the END that is under way asks it as it asks all others
            request = self._request(run, begun, transition, member.register)
            timeout_s = float(self._odb.get("/Experiment/Transition timeout ms")) / 1000
            answers = await self._asking.ask({member.name: request}, timeout_s, _tell_nobody, all_or_none=True)
            if answers[member.name].error:
                return _said(answers[member.name])
        return ""

    def _request(self, run: CurrentRun, begun: bool, transition: Transition, register: Register) -> TransitionRequest:
        """Its id names the process, since the one before it may have been asked for the same transition."""
        return TransitionRequest(
            id=f"{run.info.number}.{transition}.rejoin.{register.incarnation}",
            transition=transition,
            run=run.info,
            run_control=self._incarnation,
            time_s=(run.begun_s or 0.0) if begun else run.info.started_s,
            plan=run.plans[register.name],
            settings=self._settings(run, register),
            why="rejoin",
            begun=begun,
        )

    def _settings(self, run: CurrentRun, register: Register) -> Settings:
        """The settings of its equipment in the run's snapshot."""
        tree = parse_dump(self._runs.settings_json(run.info.number).encode())
        known = {name.lower(): record for name, record in tree.get("Equipment", {}).items()}
        return {e.name: dict(known.get(e.name.lower(), {}).get("Settings", {})) for e in register.equipment}

    def _differing(self, settings: Settings, register: Register) -> str:
        today = self._preparation.settings(register)
        paths = [
            f"/Equipment/{equipment}/Settings/{key}"
            for equipment, values in settings.items()
            for key, value in values.items()
            if today.get(equipment, {}).get(key) != value
        ]
        return f" with the settings of that run; the ODB has another {', '.join(paths)} now" if paths else ""


def _tell_nobody(component: str, what: object) -> None:
    """No operator waits for this."""


def _said(answer: Answer) -> str:
    return f"it says: {answer.error}" if answer.outcome is Outcome.REFUSED else f"it {answer.error}"

"""The transitions of a run: who is asked, in which order, and what is done when one of them fails.

The order (design, section 7): ascending sequence numbers, equal ones in parallel, each group after the one
before has answered. PREPARE and BEGIN succeed everywhere or are undone with END (why="failed") in stop
order, and the run is closed as ``failed`` with its account. END and RELEASE are never undone: who does not
answer is left out, and the account says what is not known. Each step is in the journal before it is asked;
its id follows from run and transition, so that a restarted run control asks the same thing again, and not a
second one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import msgspec

from phloem.control.asking import Answer, Asking, Outcome, Progress
from phloem.control.directory import Directory, Member
from phloem.control.messages import Messages
from phloem.control.odb import Odb
from phloem.control.preparation import CurrentRun, Preparation
from phloem.control.rejoining import Rejoining
from phloem.control.runs import Runs
from phloem.model.errors import TransitionError
from phloem.model.run import Account, RunStatus
from phloem.protocol.control import Plan, TransitionRequest
from phloem.protocol.state import RUNINFO_STATE, SEQUENCE, State, Transition, after

__all__ = ["Transitions"]

_ORIGIN = "run control"


class _EndResult(msgspec.Struct, frozen=True):
    """What a component may answer at END; a reply of another form is its failure, not run control's."""

    sent: dict[str, dict[str, int | float | None]] = {}
    fates: dict[str, dict[str, int]] = {}
    written: dict[str, dict[str, int]] = {}
    files: list[str] = []
    bytes: int = 0
    events: int = 0


class Transitions:
    """Takes the experiment from state to state, one transition at a time."""

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
        self._rejoining = Rejoining(odb, runs, directory, messages, preparation, asking, incarnation)
        self.state = State.STOP
        self.run: CurrentRun | None = None
        self.under_way: Transition | None = None
        self._asked_s = 0.0
        self._reach(State.STOP)

    # what an operator can ask for

    async def prepare(self, operator: str, comment: str, write_data: bool | None, progress: Progress) -> dict[str, Any]:
        """STOP to READY: draw the run number, plan, and prepare every component."""
        with self._only_one(Transition.PREPARE):
            self._directory.forget_left()
            living = [member.register for member in self._directory.living(time.monotonic())]
            run, planned = self._preparation.open_run(operator, comment, write_data, living)
            self.run = run
            test = "" if run.info.write_data else " (test run: no data are written)"
            self._messages.add("info", _ORIGIN, f"Preparing run {run.info.number}{test}")
            for note in planned.notes:
                self._messages.add("warning", _ORIGIN, note)
            await self._everywhere_or_undone(Transition.PREPARE, run, progress)
            return {
                "run": run.info.number,
                "state": self.state,
                "write_data": run.info.write_data,
                "file": next((plan.file for plan in run.plans.values() if plan.file), ""),
                "sources": planned.sources,
                "fragments": planned.fragments,
                "streams": planned.streams,
                "notes": planned.notes,
            }

    async def begin(self, progress: Progress) -> dict[str, Any]:
        """READY to RUN. Refused if settings changed since PREPARE."""
        with self._only_one(Transition.BEGIN):
            run = self._current()
            changed = self._preparation.changed_since(run)
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                raise TransitionError(
                    f"BEGIN is not possible: {changed[0]}{more} changed since run {run.info.number} was "
                    f"prepared. Release the run and prepare again, or set it back.",
                    changed=changed,
                )
            run.begun_s = self._asked_s
            self._preparation.note_time("Start", run.begun_s)
            await self._everywhere_or_undone(Transition.BEGIN, run, progress)
            self._messages.add("info", _ORIGIN, f"Run {run.info.number} started")
            return {"run": run.info.number, "state": self.state}

    async def end(self, transition: Transition, progress: Progress, reason: str = "") -> dict[str, Any]:
        """READY or RUN to STOP; returns the document of the run with its account and the ``reason``."""
        with self._only_one(transition):
            run = self._current()
            released = self.state is State.READY
            asked = Transition.RELEASE if released else transition
            why = "released" if released else "end"
            self._preparation.note_time("Stop", self._asked_s)  # for the ODB dump in the end-of-run event
            results, problems = await self._stop_order(asked, run, why, run.plans, progress)
            torn = any(run.keeps_data(name) for name in problems)
            status = RunStatus.RELEASED if released else RunStatus.COMPLETE
            return self._close(run, RunStatus.INTERRUPTED if torn else status, results, problems, reason)

    def adopt(self, member: Member) -> None:
        """A component came back in a run that this run control knows from its table only: go on with it."""
        record = self._runs.unclosed()
        register = member.register
        if record is None or register.run != record.number or register.state is State.STOP:
            return
        if self.run is None:
            self.run = self._preparation.again(record)
            self._messages.add("warning", _ORIGIN, f"Taking over run {record.number}, which was going on")
        if self.under_way is None and self.state is not State.RUN:
            self._reach(register.state)

    def take_back(self) -> None:
        """Frontends that were started again in mid-run go on in it, unless a transition is under way."""
        run = self.run
        if run is not None and self.under_way is None and self.state is not State.STOP:
            self._rejoining.look(run, self.state, lambda: self.run is run and self.under_way is None)

    # the order

    async def _everywhere_or_undone(self, transition: Transition, run: CurrentRun, progress: Progress) -> None:
        touched: dict[str, Answer] = {}
        for group in self._groups(transition, run.plans):
            requests = {name: self._request(transition, run, name) for name in group}
            self._rejoining.take_part(group)
            answers = await self._asking.ask(requests, self._timeout_s(), progress, all_or_none=True)
            touched.update(answers)
            failed = [name for name, answer in answers.items() if answer.error and answer.outcome is not Outcome.LEFT]
            if failed:
                reason = "; ".join(f"{name} {_said(answers[name])}" for name in failed)
                await self._undo(transition, run, touched, reason, progress)
                raise TransitionError(
                    f"{transition} of run {run.info.number} failed: {reason}. It was undone: the state is "
                    f"STOP and run {run.info.number} is closed as failed.",
                    run=run.info.number,
                )
        self._reach(after(self.state, transition))

    async def _undo(
        self,
        transition: Transition,
        run: CurrentRun,
        touched: dict[str, Answer],
        reason: str,
        progress: Progress,
    ) -> None:
        """Back to STOP for all that were prepared; those that hang are told, but not waited for again."""
        self._messages.add("error", _ORIGIN, f"{transition} of run {run.info.number} failed: {reason}")
        late = [name for name, answer in touched.items() if answer.outcome is Outcome.LATE]
        prepared = set(run.plans)
        if transition is Transition.PREPARE:
            prepared = {n for n, answer in touched.items() if answer.outcome in (Outcome.DONE, Outcome.LEFT)}
        names = [name for name in run.plans if name in prepared and name not in late]
        self._asking.notify({name: self._request(Transition.END, run, name, why="failed") for name in late})
        results, problems = await self._stop_order(Transition.END, run, "failed", names, progress)
        self._close(run, RunStatus.FAILED, results, problems, reason)

    async def _stop_order(
        self, transition: Transition, run: CurrentRun, why: str, names: Iterable[str], progress: Progress
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Results by component, and what went wrong by component."""
        results: dict[str, dict[str, Any]] = {}
        problems: dict[str, str] = {}
        for group in self._groups(transition, names):
            requests = {name: self._request(transition, run, name, why, results) for name in group}
            answers = await self._asking.ask(requests, self._timeout_s(), progress, all_or_none=False)
            for name, answer in answers.items():
                results[name], problem = _checked_result(answer)
                if problem:
                    problems[name] = problem
                    self._messages.add("error", _ORIGIN, f"{name} {problem} ({transition} of run {run.info.number})")
        return results, problems

    def _groups(self, transition: Transition, names: Iterable[str]) -> Iterator[list[str]]:
        placed = sorted(((self._place(transition, name), name) for name in names), key=lambda pair: pair[0])
        for _, group in groupby(placed, key=lambda pair: pair[0]):
            yield [name for _, name in group]

    def _place(self, transition: Transition, name: str) -> int:
        member = self._directory.by_name(name)
        if member is None:
            return 0
        stops = transition in (Transition.END, Transition.RELEASE)
        default = SEQUENCE[member.register.kind][1 if stops else 0]
        return member.register.sequence.get(transition, default)

    def _request(
        self,
        transition: Transition,
        run: CurrentRun,
        name: str,
        why: str = "",
        collected: dict[str, dict[str, Any]] | None = None,
    ) -> TransitionRequest:
        member = self._directory.by_name(name)
        plan = run.plans[name]
        ends = transition in (Transition.END, Transition.RELEASE)
        return TransitionRequest(
            id=f"{run.info.number}.{transition}",
            transition=transition,
            run=run.info,
            run_control=self._incarnation,
            time_s=self._asked_s,
            plan=plan if transition is Transition.PREPARE else Plan(),
            settings=self._preparation.settings(member.register) if member is not None else {},
            collected=dict(collected or {}),
            odb_json=self._odb.dump_json() if ends and plan.odb_json else "",
            why=why,
        )

    # the state

    @contextmanager
    def _only_one(self, transition: Transition) -> Iterator[None]:
        if self.under_way is not None:
            waiting = ", ".join(self._asking.waiting_for)
            raise TransitionError(
                f"{transition} is not possible now: {self.under_way} is in progress"
                f"{f', waiting for {waiting}' if waiting else ''}. Try again when it is done.",
                under_way=self.under_way,
            )
        after(self.state, transition)
        self.under_way = transition
        self._asked_s = time.time()  # the same for all components: simulated triggers share it
        self._odb.set("/Runinfo/Transition in progress", 1, revision=False, force=True)
        try:
            yield
        finally:
            self.under_way = None
            self._odb.set("/Runinfo/Transition in progress", 0, revision=False, force=True)
            self.take_back()

    def _current(self) -> CurrentRun:
        if self.run is None:
            raise TransitionError(f"the state is {self.state}, but run control has no run")
        return self.run

    def _reach(self, state: State) -> None:
        self.state = state
        self._odb.set("/Runinfo/State", RUNINFO_STATE[state], revision=False, force=True)
        if self.run is not None:
            self._runs.reach(self.run.info.number, state, self.run.begun_s)

    def _timeout_s(self) -> float:
        return float(self._odb.get("/Experiment/Transition timeout ms")) / 1000

    def _close(
        self,
        run: CurrentRun,
        status: RunStatus,
        results: dict[str, dict[str, Any]],
        problems: dict[str, str],
        reason: str = "",
    ) -> dict[str, Any]:
        """Store the run's document, be in STOP, and return it."""
        ended_s = time.time()
        known: dict[str, Any] = {"sent": {source: {} for source in run.sources}}
        account = Account.assembled([known, *results.values()], run.streams)
        document = {
            "run": run.info.number,
            "status": status,
            "files": [file for result in results.values() for file in result.get("files", [])],
            "account": account.report(),
            "balanced": account.balanced,
            "seconds": ended_s - (run.begun_s or run.info.started_s),
            "events": sum(result.get("events", 0) for result in results.values()),
            "bytes": sum(result.get("bytes", 0) for result in results.values()),
            "losses": account.losses(),
            "problems": [f"{name} {problem}" for name, problem in problems.items()],
            "reason": reason,
        }
        self._runs.close(run.info.number, status, ended_s, document)
        self._preparation.note_time("Stop", ended_s)
        self.run = None
        self._rejoining.forget()
        self._reach(State.STOP)
        severity = "info" if account.balanced and not problems else "warning"
        balance = "balanced" if account.balanced else f"NOT balanced: {'; '.join(account.losses())}"
        self._messages.add(severity, _ORIGIN, f"Run {run.info.number} {status}: {document['events']} events, {balance}")
        return document


def _said(answer: Answer) -> str:
    return f"says: {answer.error}" if answer.outcome is Outcome.REFUSED else answer.error


def _checked_result(answer: Answer) -> tuple[dict[str, Any], str]:
    """The result as far as it can be read, and what is wrong with the answer."""
    problem = _said(answer) if answer.error else ""
    try:
        result = msgspec.convert(answer.result, _EndResult)
        Account.assembled([msgspec.to_builtins(result)], [])
    except msgspec.ValidationError as error:
        return {}, f"{problem}; " * bool(problem) + f"answered a result that cannot be read: {error}"
    return answer.result, problem

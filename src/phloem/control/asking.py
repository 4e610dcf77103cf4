"""Asking components for their part of a transition, and waiting for what comes of it.

A wait ends for a component when it answers, when it is gone or was started anew, or when its time is up; the
operator is told about once a second whom it is for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

import msgspec

from phloem.control.directory import Directory, Member
from phloem.control.runs import Runs
from phloem.protocol.control import Message, TransitionReply, TransitionRequest

__all__ = ["Answer", "Asking", "Link", "Outcome", "Progress"]

_LOOK_S = 0.1  # how often a wait looks whether those it waits for are still there
_PROGRESS_S = 1.0

Progress = Callable[[str, Any], None]
"""Called with the component concerned (or "") and what to tell the operator."""


class Link(Protocol):
    """The way to a component or operator."""

    def send(self, identity: bytes, message: Message) -> None:
        """Send and do not wait."""


class Outcome(Enum):
    """What came of asking one component."""

    DONE = "done"
    REFUSED = "refused"
    GONE = "gone"
    LATE = "late"
    LEFT = "left"  # another one failed first; it may still answer


class Answer(msgspec.Struct, frozen=True):
    """``error``: why not, in one line, without the component's name; empty if done."""

    outcome: Outcome
    error: str = ""
    result: dict[str, Any] = {}


class Asking:
    """The requests that are out."""

    def __init__(self, directory: Directory, runs: Runs, link: Link) -> None:
        self._directory = directory
        self._runs = runs
        self._link = link
        self._replies: dict[tuple[str, str], asyncio.Future[TransitionReply]] = {}
        self._waiting: dict[object, list[str]] = {}  # by call of `ask`: a rejoin goes on beside a transition

    @property
    def waiting_for(self) -> list[str]:
        """Names of those who have not answered yet."""
        return [name for names in self._waiting.values() for name in names]

    def replied(self, name: str, reply: TransitionReply) -> bool:
        """A component answered; False if nobody waits for that (any more)."""
        future = self._replies.get((name.lower(), reply.id))
        if future is None or future.done():
            return False
        future.set_result(reply)
        return True

    async def ask(
        self,
        requests: Mapping[str, TransitionRequest],
        timeout_s: float,
        progress: Progress,
        all_or_none: bool,
    ) -> dict[str, Answer]:
        """Ask all of them at once; one answer each. ``all_or_none``: the first failure ends all waits."""
        answers: dict[str, Answer] = {}
        waits: dict[str, tuple[Member, asyncio.Future[TransitionReply]]] = {}
        for name, request in requests.items():
            member = self._directory.by_name(name)
            if member is None or member.gone(time.monotonic()):
                answers[name] = Answer(Outcome.GONE, _gone_text(member))
            else:
                waits[name] = (member, self._send(name, member, request))
        call = object()
        try:
            await self._wait(call, requests, waits, answers, timeout_s, progress, all_or_none)
        finally:
            self._waiting.pop(call, None)
            for name, request in requests.items():
                self._replies.pop((name.lower(), request.id), None)
        return {name: answers[name] for name in requests}

    def notify(self, requests: Mapping[str, TransitionRequest]) -> None:
        """Ask without waiting: for those whose answer came too late before."""
        for name, request in requests.items():
            member = self._directory.by_name(name)
            if member is not None:
                self._journal(name, request)
                self._link.send(member.identity, request)

    def _send(self, name: str, member: Member, request: TransitionRequest) -> asyncio.Future[TransitionReply]:
        future = asyncio.get_running_loop().create_future()
        self._replies[(name.lower(), request.id)] = future
        self._journal(name, request)
        self._link.send(member.identity, request)
        return future

    def _journal(self, name: str, request: TransitionRequest) -> None:
        self._runs.asked(request.run.number, request.id, request.transition, name, time.time())

    async def _wait(
        self,
        call: object,
        requests: Mapping[str, TransitionRequest],
        waits: dict[str, tuple[Member, asyncio.Future[TransitionReply]]],
        answers: dict[str, Answer],
        timeout_s: float,
        progress: Progress,
        all_or_none: bool,
    ) -> None:
        began_s = told_s = time.monotonic()
        while waits and not (all_or_none and any(answer.error for answer in answers.values())):
            self._waiting[call] = list(waits)
            await asyncio.wait(
                [future for _, future in waits.values()], timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED
            )
            now_s = time.monotonic()
            self._directory.turned(now_s)
            for name, (member, future) in list(waits.items()):
                answer = self._answer(name, member, future, now_s, now_s - began_s > timeout_s, timeout_s)
                if answer is not None:
                    del waits[name]
                    answers[name] = answer
                    self._note(name, requests[name], answer, progress)
            if waits and now_s - told_s >= _PROGRESS_S:
                told_s = now_s
                transition = requests[next(iter(waits))].transition
                progress("", {"transition": transition, "waiting_for": list(waits), "seconds": now_s - began_s})
        for name in waits:
            answers[name] = Answer(Outcome.LEFT, "was not waited for, since another one failed")

    def _answer(
        self,
        name: str,
        member: Member,
        future: asyncio.Future[TransitionReply],
        now_s: float,
        late: bool,
        timeout_s: float,
    ) -> Answer | None:
        if future.done():
            reply = future.result()
            return Answer(Outcome.REFUSED if reply.error else Outcome.DONE, reply.error, reply.result)
        today = self._directory.by_name(name)
        if today is None or today.gone(now_s):
            return Answer(Outcome.GONE, _gone_text(today))
        if today.register.incarnation != member.register.incarnation:
            return Answer(Outcome.GONE, "was started anew while it was asked")
        if late:
            return Answer(Outcome.LATE, f"has not answered within {timeout_s:g} s")
        return None

    def _note(self, name: str, request: TransitionRequest, answer: Answer, progress: Progress) -> None:
        run = request.run.number
        self._runs.answered(run, request.id, name, time.time(), answer.error, answer.result)
        member = self._directory.by_name(name)
        if member is not None:
            refused = answer.outcome in (Outcome.REFUSED, Outcome.LATE)
            member.fault = f"{request.transition} of run {run}: {answer.error}" if refused else ""
        progress(name, {"transition": request.transition, "outcome": answer.outcome.value, "error": answer.error})


def _gone_text(member: Member | None) -> str:
    reason = f" ({member.left})" if member is not None and member.left else ""
    return f"is gone{reason}"

"""What operators can ask of run control: one method here for each method of the protocol.

Each takes checked parameters and returns plain values for the final response; what goes wrong is an error
of `phloem.model.errors`. Methods: prepare, begin, end, release, start, status, odb_ls, odb_get, odb_set,
messages, runs, terminate.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from phloem.control.asking import Asking, Link, Progress
from phloem.control.directory import Directory, Member
from phloem.control.messages import Messages
from phloem.control.odb import Odb
from phloem.control.runs import Runs
from phloem.control.transitions import Transitions
from phloem.model.errors import NotFoundError, ProtocolError, SettingsError, TransitionError
from phloem.protocol.control import Terminate
from phloem.protocol.state import State, Transition

__all__ = ["Answers", "hang_limit_s"]

_RUN_NUMBER = "/Runinfo/Run number"
_STATUS_MESSAGES = 20


class _NoParams(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _PrepareParams(msgspec.Struct, forbid_unknown_fields=True):
    operator: str = ""
    comment: str = ""
    write_data: bool | None = None


class _ListParams(msgspec.Struct, forbid_unknown_fields=True):
    path: str = "/"
    recursive: bool = False


class _GetParams(msgspec.Struct, forbid_unknown_fields=True):
    path: str


class _SetParams(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    value: bool | int | float | str | list[bool | int | float | str]


class _CountParams(msgspec.Struct, forbid_unknown_fields=True):
    n: int = 20


class Answers:
    """Answers the operators' requests from the parts of run control."""

    def __init__(
        self,
        odb: Odb,
        runs: Runs,
        directory: Directory,
        messages: Messages,
        transitions: Transitions,
        asking: Asking,
        link: Link,
        about: dict[str, Any],
    ) -> None:
        self._odb = odb
        self._runs = runs
        self._directory = directory
        self._messages = messages
        self._transitions = transitions
        self._asking = asking
        self._link = link
        self._about = about
        self._methods: dict[str, tuple[type[Any], Callable[[Any, Progress], Awaitable[Any]]]] = {
            "prepare": (_PrepareParams, self._prepare),
            "begin": (_NoParams, self._begin),
            "end": (_NoParams, self._end),
            "release": (_NoParams, self._release),
            "start": (_PrepareParams, self._start),
            "status": (_NoParams, self._status),
            "odb_ls": (_ListParams, self._odb_ls),
            "odb_get": (_GetParams, self._odb_get),
            "odb_set": (_SetParams, self._odb_set),
            "messages": (_CountParams, self._last_messages),
            "runs": (_CountParams, self._last_runs),
            "terminate": (_NoParams, self._terminate),
        }

    async def answer(self, method: str, params: dict[str, Any], progress: Progress) -> Any:
        """The final value of one request, in types that msgpack has."""
        if method not in self._methods:
            raise NotFoundError(f"run control has no method {method!r}; it has {', '.join(self._methods)}")
        params_type, call = self._methods[method]
        try:
            checked = msgspec.convert(params, params_type)
        except msgspec.ValidationError as error:
            raise ProtocolError(f"parameters of {method!r} are wrong: {error}") from None
        return msgspec.to_builtins(await call(checked, progress))

    async def _prepare(self, params: _PrepareParams, progress: Progress) -> Any:
        return await self._transitions.prepare(params.operator, params.comment, params.write_data, progress)

    async def _begin(self, _: _NoParams, progress: Progress) -> Any:
        return await self._transitions.begin(progress)

    async def _end(self, _: _NoParams, progress: Progress) -> Any:
        return await self._transitions.end(Transition.END, progress)

    async def _release(self, _: _NoParams, progress: Progress) -> Any:
        return await self._transitions.end(Transition.RELEASE, progress)

    async def _start(self, params: _PrepareParams, progress: Progress) -> Any:
        prepared = await self._prepare(params, progress)
        progress("", {"transition": Transition.PREPARE, "result": prepared})
        return {**prepared, **await self._transitions.begin(progress)}

    async def _odb_ls(self, params: _ListParams, _: Progress) -> Any:
        return self._odb.rows(params.path, params.recursive)

    async def _odb_get(self, params: _GetParams, _: Progress) -> Any:
        return self._odb.get(params.path)

    async def _odb_set(self, params: _SetParams, _: Progress) -> Any:
        if params.path.strip("/").lower() == _RUN_NUMBER.strip("/").lower():
            self._check_run_number(params.value)
        return self._odb.set(params.path, params.value, by="operator")

    def _check_run_number(self, value: Any) -> None:
        if self._transitions.state is not State.STOP or self._transitions.under_way is not None:
            raise TransitionError(f"{_RUN_NUMBER} can be set in STOP only; the state is {self._transitions.state}")
        last = self._runs.last_number()
        number = int(value) if str(value).strip().isdecimal() else -1
        if number < last:
            raise SettingsError(f"{_RUN_NUMBER} is that of the last run and cannot be less than {last}; {value!r} is")

    async def _last_messages(self, params: _CountParams, _: Progress) -> Any:
        return self._messages.last(params.n)

    async def _last_runs(self, params: _CountParams, _: Progress) -> Any:
        return self._runs.last(params.n)

    async def _terminate(self, _: _NoParams, progress: Progress) -> Any:
        document = None
        if self._transitions.state is not State.STOP:
            document = await self._transitions.end(Transition.END, progress)
        for member in self._directory.living(time.monotonic()):
            self._link.send(member.identity, Terminate())
        return document

    async def _status(self, _: _NoParams, __: Progress) -> Any:
        run = self._transitions.run
        now_s, clock_s = time.monotonic(), time.time()
        return {
            **self._about,
            "state": self._transitions.state,
            "run": run.info.number if run else None,
            "last_run": self._odb.get(_RUN_NUMBER),
            "operator": run.info.operator if run else "",
            "comment": run.info.comment if run else "",
            "write_data": run.info.write_data if run else self._odb.get("/Logger/Write data"),
            "seconds": clock_s - (run.begun_s or run.info.started_s) if run else 0.0,
            "transition": self._transitions.under_way,
            "waiting_for": self._asking.waiting_for,
            "components": [self._component(member, now_s) for member in self._directory.members()],
            "messages": self._messages.last(_STATUS_MESSAGES),
        }

    def _component(self, member: Member, now_s: float) -> dict[str, Any]:
        register, heartbeat = member.register, member.heartbeat
        health, why = member.health(now_s, hang_limit_s(self._odb, member.name))
        return {
            "name": register.name,
            "kind": register.kind,
            "pid": register.pid,
            "host": register.host,
            "health": health,
            "why": why,
            "state": heartbeat.state,
            "run": heartbeat.run,
            "busy": heartbeat.busy,
            "heartbeat_age_s": now_s - member.heard_s,
            "turned_ago_s": heartbeat.turned_ago_s,
            "rates": heartbeat.status.rates,
            "counters": heartbeat.status.counters,
            "sources": heartbeat.status.sources,
            "waiting_for": heartbeat.status.waiting_for,
        }


def hang_limit_s(odb: Odb, name: str) -> float:
    """How long a component's main loop may take for one turn; ``/Programs/<name>/Hang limit ms``."""
    return float(odb.value(f"/Programs/{name}/Hang limit ms", 1000)) / 1000

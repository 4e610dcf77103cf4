"""Run control: the one process that owns the state of the run, the ODB and the runs table.

It listens on a ZeroMQ ROUTER for components and operators alike (`phloem.protocol.control`). Everything runs
in one asyncio loop; a request of an operator is a task of its own, so that a long transition holds up nobody.
What a peer sends, of whatever kind, cannot end it: bad bytes are counted, errors are answered.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from phloem.control.address import RunControlAddress, bind, check_loopback, read_address
from phloem.control.answers import Answers, hang_limit_s
from phloem.control.asking import Asking
from phloem.control.builder_statistics import write_builder_statistics
from phloem.control.database import Database
from phloem.control.directory import Directory, Health, Member
from phloem.control.ending import Ending
from phloem.control.equipment import DESCRIPTIVE, current_equipment, write_statistics
from phloem.control.messages import Messages
from phloem.control.odb import Difference, Odb
from phloem.control.preparation import Preparation
from phloem.control.registration import Registration
from phloem.control.runs import Runs
from phloem.control.transitions import Transitions
from phloem.control.variables import write_variables
from phloem.model.errors import PhloemError, ProtocolError
from phloem.protocol.control import (
    VERSION,
    EndRun,
    FromComponent,
    Goodbye,
    Heartbeat,
    Message,
    Refused,
    Register,
    RegisterAgain,
    Registered,
    Request,
    Response,
    SettingsChanged,
    Text,
    TransitionReply,
    Variables,
    decode_request,
    encode,
)

__all__ = ["DATABASE_FILE", "LOG_FILE", "RunControl"]

DATABASE_FILE = "phloem.db"
LOG_FILE = "phloem.log"

_ORIGIN = "run control"
_LARGEST_MESSAGE_BYTES = 64 << 20
_LOOK_S = 0.1
_STATISTICS_S = 1.0
_LINGER_MS = 300  # so that the last answers leave


class RunControl:
    """Construct, then `serve` in an asyncio loop until `stop`.

    ``data_dir``: the runs' files, database and log. ``runtime_dir``: rings and the address file. ``address``:
    empty for the first free port from 24400 on, ``tcp://127.0.0.1:0`` for any. ``first_values``: ODB path:
    value, from the experiment file; ``reset``: paths below which they replace what the ODB has.
    """

    def __init__(
        self,
        experiment: str,
        data_dir: Path,
        runtime_dir: Path,
        address: str = "",
        first_values: Mapping[str, Any] | None = None,
        file_pattern: str = "run{run:05d}.mid",
        reset: Iterable[str] = (),
    ) -> None:
        check_loopback(address)
        self.experiment = experiment
        self.address = address
        self.incarnation = secrets.token_hex(8)
        self.bad_messages = 0
        self.idle = False  # when `serve` has ended: whether every run was closed by then
        self._data_dir = data_dir.resolve()
        self._runtime_dir = runtime_dir.resolve()
        self._stop: asyncio.Event | None = None
        self._stop_asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._healths: dict[str, Health] = {}
        self._statistics_s = 0.0
        self._runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._database = Database(self._data_dir / DATABASE_FILE)
        try:
            self._join_parts(first_values or {}, file_pattern, reset)
        except BaseException:
            self._database.close()
            raise

    def _join_parts(self, first_values: Mapping[str, Any], file_pattern: str, reset: Iterable[str]) -> None:
        odb = Odb(self._database)
        runs = Runs(self._database)
        messages = Messages(self._data_dir / LOG_FILE)
        directory = Directory()
        registration = Registration(self._database, odb, directory, messages, first_values, reset)
        registration.apply_first_values(self.experiment)
        preparation = Preparation(self._database, odb, runs, self._data_dir, self._runtime_dir, file_pattern)
        asking = Asking(directory, runs, self)
        transitions = Transitions(odb, runs, directory, messages, preparation, asking, self.incarnation)
        self._about = {
            "experiment": self.experiment,
            "address": "",
            "pid": os.getpid(),
            "data_dir": str(self._data_dir),
        }
        self._answers = Answers(odb, runs, directory, messages, transitions, asking, self, self._about)
        self._odb, self._messages, self._directory, self._runs = odb, messages, directory, runs
        self._registration, self._preparation = registration, preparation
        self._asking, self._transitions = asking, transitions
        self._ending = Ending(odb, messages, transitions)
        odb.watch("/Equipment", self._setting_changed)
        unclosed = runs.unclosed()
        if unclosed is not None:
            text = f"Run {unclosed.number} is not closed; waiting for its components to come back"
            messages.add("warning", _ORIGIN, text)

    @property
    def differences(self) -> list[Difference]:
        """Where the ODB stands against the experiment file or the code, as far as is known by now."""
        return list(self._registration.differences)

    # life

    async def serve(self) -> None:
        """Listen and answer until `stop`; the address file exists as long as this listens."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        if self._stop_asked:
            self._stop.set()
        context = zmq.asyncio.Context()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _LARGEST_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a peer that connects again keeps its identity
        try:
            about = self._listen(self._socket)
            try:
                await self._until_stopped(self._socket, self._stop)
            finally:
                about.remove(self._runtime_dir)
        finally:
            self.idle = self._transitions.run is None and self._runs.unclosed() is None
            self._socket.close()
            context.term()
            self._database.close()

    def stop(self) -> None:
        """End `serve` soon; from any thread. Components and a run in progress are left as they are."""
        self._stop_asked = True
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._stop.set)

    def _listen(self, socket: zmq.asyncio.Socket) -> RunControlAddress:
        last = read_address(self._runtime_dir)
        ours = last if last is not None and last.data_dir == str(self._data_dir) else None
        self.address = self._about["address"] = bind(socket, self.address, ours)
        about = RunControlAddress(self.address, os.getpid(), self.experiment, str(self._data_dir))
        about.write(self._runtime_dir)
        self._messages.add("info", _ORIGIN, f"Experiment {self.experiment} at {self.address}")
        return about

    async def _until_stopped(self, socket: zmq.asyncio.Socket, stop: asyncio.Event) -> None:
        receiving = asyncio.ensure_future(self._receive(socket))
        try:
            while not stop.is_set():
                self._look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOOK_S)
        finally:
            ending = [receiving, *self._tasks]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    # messages

    def send(self, identity: bytes, message: Message) -> None:
        """Send to a peer; one that is not there any more does not get it."""
        if self._socket is not None:
            self._keep(asyncio.ensure_future(self._socket.send_multipart([identity, encode(message)])))

    def _keep(self, task: asyncio.Future[Any]) -> None:
        """asyncio holds tasks weakly: without this they may vanish before they are done."""
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            identity, *rest = await socket.recv_multipart()
            try:
                if len(rest) != 1:
                    raise ProtocolError(f"a control message is one frame, not {len(rest)}")
                self._handle(identity, decode_request(rest[0]))
            except PhloemError as error:
                self._note_bad(identity, str(error))
            except Exception as error:  # noqa: BLE001 - no peer may end run control
                self._messages.add("error", _ORIGIN, f"failed on a message of {self._who(identity)}: {error!r}")

    def _note_bad(self, identity: bytes, why: str) -> None:
        self.bad_messages += 1
        if self.bad_messages & (self.bad_messages - 1) == 0:  # 1, 2, 4, 8...: a flood does not fill the log
            who = self._who(identity)
            self._messages.add("warning", _ORIGIN, f"{self.bad_messages} bad message(s), last from {who}: {why}")

    def _who(self, identity: bytes) -> str:
        member = self._directory.by_identity(identity)
        return member.name if member is not None else f"peer {identity.hex()}"

    def _handle(self, identity: bytes, message: FromComponent) -> None:
        match message:
            case Heartbeat():
                if not self._directory.heard(identity, message, time.monotonic()):
                    self.send(identity, RegisterAgain())
            case Register():
                self._register(identity, message)
            case TransitionReply():
                name = self._who(identity)
                if not self._asking.replied(name, message):
                    outcome = message.error or "done"
                    self._messages.add("debug", _ORIGIN, f"{name} answered {message.id} unasked: {outcome}")
            case Text():
                self._messages.add(message.severity, self._who(identity), message.text)
            case EndRun():
                if self._directory.by_identity(identity) is not None:
                    self._ending.ask(message.run, self._who(identity), message.reason)
            case Variables():
                self._take_variables(identity, message)
            case Goodbye():
                member = self._directory.leave(identity, message.reason)
                if member is not None:
                    self._messages.add("info", _ORIGIN, f"{member.name} {member.left}")
            case Request():
                self._keep(asyncio.ensure_future(self._answer(identity, message)))

    def _register(self, identity: bytes, register: Register) -> None:
        known = self._directory.by_name(register.name)
        try:
            member = self._registration.take_in(identity, register, time.monotonic())
        except PhloemError as error:
            self._messages.add("error", _ORIGIN, f"Refused {register.name}: {error}")
            self.send(identity, Refused(str(error)))
            return
        self._transitions.adopt(member)
        self.send(identity, self._welcome(register))
        if known is None or known.register.incarnation != register.incarnation:
            where = f"{register.kind}, pid {register.pid} on {register.host}"
            self._messages.add("info", _ORIGIN, f"{register.name} is here ({where})")
        self._transitions.take_back()  # after the welcome: until that has come, nothing else is listened to

    def _welcome(self, register: Register) -> Registered:
        run = self._transitions.run
        return Registered(
            run_control=self.incarnation,
            experiment=self.experiment,
            data_dir=str(self._data_dir),
            state=self._transitions.state,
            run=run.info.number if run is not None else None,
            settings=self._preparation.settings(register),
            equipment=tuple(current_equipment(self._odb, declared) for declared in register.equipment),
        )

    def _take_variables(self, identity: bytes, variables: Variables) -> None:
        member = self._directory.by_identity(identity)
        if member is None or variables.equipment not in (e.name for e in member.register.equipment):
            return
        with self._database.transaction():
            write_variables(self._odb, variables)

    async def _answer(self, identity: bytes, request: Request) -> None:
        def respond(kind: str, value: Any, component: str = "", error: str = "") -> None:
            self.send(identity, Response(request.id, kind, component, time.time(), value, error))

        respond("ticket", {"method": request.method})
        try:
            if request.version != VERSION:
                raise ProtocolError(
                    f"the operator speaks version {request.version} of the control protocol, run control "
                    f"speaks {VERSION}; use the same phloem for both"
                )
            value = await self._answers.answer(
                request.method, request.params, lambda name, what: respond("progress", what, name)
            )
            respond("result", value)
        except PhloemError as error:
            respond("error", error.text, error=type(error).__name__)
        except Exception as error:  # noqa: BLE001 - no request may end run control
            self._messages.add("error", _ORIGIN, f"failed on {request.method}: {error!r}")
            respond("error", f"run control failed on {request.method}: {error!r}", error="PhloemError")

    def _setting_changed(self, path: str, value: Any) -> None:
        parts = path.split("/", 4)
        if len(parts) < 5:
            return
        if parts[3].lower() == "common" and parts[4] not in DESCRIPTIVE and self._loop is not None:
            self._loop.call_soon(self._common_changed, parts[2])  # when a registration that sets it is done
        if parts[3].lower() != "settings":
            return
        member = self._directory.owner(parts[2], time.monotonic())
        if member is not None:
            self.send(member.identity, SettingsChanged(parts[2], parts[4], value))

    def _common_changed(self, equipment: str) -> None:
        member = self._directory.owner(equipment, time.monotonic())
        if member is not None:
            self.send(member.identity, self._welcome(member.register))

    # what happens without being asked

    def _look(self) -> None:
        now_s = time.monotonic()
        self._directory.turned(now_s)
        reason = self._ending.due()
        if reason:
            self._keep(asyncio.ensure_future(self._ending.end(reason)))
        try:
            for member in self._directory.members():
                self._look_at(member, now_s)
            if now_s - self._statistics_s >= _STATISTICS_S:
                self._statistics_s = now_s
                self._write_statistics(now_s)
        except (PhloemError, sqlite3.Error, OSError) as error:
            self._messages.add("error", _ORIGIN, f"status could not be kept: {error}")

    def _write_statistics(self, now_s: float) -> None:
        """All in one transaction, since each one costs more than what is written in it."""
        sent = {
            source: part
            for member in self._directory.members()
            if member.register.kind == "frontend"
            for source, part in member.heartbeat.status.sources.items()
        }
        with self._database.transaction():
            for member in self._directory.living(now_s):
                register, status = member.register, member.heartbeat.status
                write_statistics(self._odb, register, status)
                if register.kind == "builder":
                    write_builder_statistics(self._odb, register.equipment[0].name, status, sent)

    def _look_at(self, member: Member, now_s: float) -> None:
        health, why = member.health(now_s, hang_limit_s(self._odb, member.name))
        before = self._healths.get(member.name, Health.OK)
        self._healths[member.name] = health
        if health is before or (health is Health.GONE and member.left is not None):
            return
        severity = {Health.OK: "info", Health.WARNING: "warning"}.get(health, "error")
        text = f"{member.name} is {health}: {why}" if why else f"{member.name} is {health} again"
        self._messages.add(severity, _ORIGIN, text)

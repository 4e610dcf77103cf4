"""The logger: writes the events of its buffer to the run's file, whole frames at a time.

Where fragments are recorded, each source of a builder has a file of its own beside that, from the same ring that the
builder reads. Rings are freed when what was in them is in the file and its index. It has ended when every writer of
its streams has, so that the end of a run loses nothing at any rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from phloem.dataflow.component import IDLE_S, Component, Place, Result
from phloem.dataflow.logger_input import LoggerInput
from phloem.dataflow.run_output import Held, RunOutput, recorded_path
from phloem.formats.midas.writer import RunWriter
from phloem.kernel import Frame, FrameKind
from phloem.model.errors import PhloemError, SettingsError
from phloem.model.run import Account
from phloem.protocol.control import ComponentStatus, Plan, TransitionRequest
from phloem.protocol.state import State

__all__ = ["Logger"]

HOLD_S = 0.1
RETRY_S = 1.0  # how often a disk that took nothing is tried again


class Logger(Component):
    """``reads``: the buffer that it writes to disk, SYSTEM as a rule."""

    kind: ClassVar[str] = "logger"
    hold_s: ClassVar[float] = HOLD_S
    writes: ClassVar[bool] = True

    def __init__(self, name: str, place: Place, reads: str = "SYSTEM") -> None:
        super().__init__(name, place)
        self._reads = reads
        self._outputs: list[RunOutput] = []  # the run's file; then, where fragments are recorded, one per source
        self._open = False
        self._end_request: TransitionRequest | None = None
        self._began_odb = ""

    def describe(self) -> tuple[tuple[Any, ...], str, dict[str, dict[str, Any]], str]:
        return (), self._reads, {}, ""

    # ------------------------------------------------------------------ transitions

    def prepare(self, request: TransitionRequest) -> Result | None:
        plan = request.plan
        direct = [LoggerInput(stream, stream.source, self.name, self.bell) for stream in plan.inputs]
        recorded = [LoggerInput(stream, stream.recorded_name, self.name, self.bell) for stream in plan.recorded]
        self._end_request = None
        self._began_odb = plan.odb_json
        writers = self._writers(request) if self.writes and plan.file else [None] * (1 + len(recorded))
        groups = [direct, *([stream] for stream in recorded)]
        self._outputs = [
            RunOutput(inputs, writer, self._until_written) for inputs, writer in zip(groups, writers, strict=True)
        ]
        for output in self._outputs:
            output.write_run_event(True, request.run.number, plan.odb_json.encode())
        self._open = True
        return {"files": self._files}

    def _writers(self, request: TransitionRequest) -> list[RunWriter | None]:
        """The writers of all files of the run, or none of them."""
        writers: list[RunWriter] = []
        number, started_s, fsync = request.run.number, request.run.started_s, _fsync(request.plan.settings)
        try:
            for path in _paths(request.plan):
                writers.append(RunWriter(path, number, started_s=started_s, fsync=fsync))
        except (OSError, SettingsError):
            for writer in writers:  # nothing is in them yet, and what is left would look like a run that was torn
                writer.abandon()
                writer.path.unlink()
                writer.index.unlink()
            raise
        return [*writers]

    def end(self, request: TransitionRequest) -> Result | None:
        self._end_request = request  # answered by `_close`, when every stream has ended
        return None

    # ------------------------------------------------------------------ the loop

    def turn(self) -> None:
        self.still_waiting()
        if not self._open:
            self.bell.wait((), IDLE_S)
            return
        worked = [self._work(output) for output in self._outputs]
        if any(worked):
            return
        if self._end_request is not None and not any(o.held or not o.all_ended for o in self._outputs):
            self._close(self._end_request)
        else:
            self._wait()

    def _work(self, output: RunOutput) -> bool:
        """Take what is there, and write if that is worth it; whether there was anything to do."""
        more = output.gather(self._run_number, self._preparing)
        if output.held and (output.is_enough(self.hold_s) or (not more and output.all_ended)):
            self._take(output)
            return True
        return more

    def _take(self, output: RunOutput) -> None:
        """Write what an output holds, then free it."""
        frames = output.hand_over()
        mine = [(stream, frame) for stream, frame in frames if frame.run == self._run_number]
        output.write(mine)
        for stream, frame in mine:
            self.count(stream, frame)
        self._free(frames)

    def _free(self, frames: Held) -> None:
        last: dict[str, tuple[LoggerInput, int]] = {}
        for stream, frame in frames:
            if frame.run != self._run_number:
                self._foreign(stream, frame)
            last[stream.name] = (stream, frame.end)
            frame.close()
        for stream, end in last.values():
            stream.receiver.release(end)

    def count(self, stream: LoggerInput, frame: Frame) -> None:
        """One frame of this run is dealt with."""
        stream.count(frame)

    def _foreign(self, stream: LoggerInput, frame: Frame) -> None:
        if frame.n_events and frame.kind == FrameKind.EVENTS:
            self.message(
                f"{stream.name} has {frame.n_events} events of run {frame.run} in its ring; "
                f"they are not of run {self._run_number} and are dropped",
                "error",
            )

    def _until_written(self, write: Callable[[], None], path: Path) -> None:
        """A disk that takes nothing (full, say) stops the reading, not the run: tried again until it does."""
        told = False
        while True:
            try:
                write()
                break
            except OSError as error:
                if not told:
                    self.message(f"{self.name} cannot write {path}: {error.strerror}; waiting", "error")
                told = True
                if self.ending:
                    raise SettingsError(f"{path}: {error.strerror}") from None
                until_s = time.monotonic() + RETRY_S
                while time.monotonic() < until_s and not self.ending:
                    self.still_waiting(f"space on disk for {path.name}")
                    self.bell.wait((), IDLE_S)
        if told:
            self.message(f"{self.name} writes {path} again")

    def _wait(self) -> None:
        inputs = self._inputs
        for stream in inputs:
            if not stream.begun:
                stream.open(self._preparing)
        if self._end_request is not None:
            waited = ", ".join(stream.name for stream in inputs if not stream.ended)
            self.still_waiting(f"the end of {waited}")
            for stream in inputs:
                if stream.end_if_gone(never_begun=self._preparing):
                    self.message(f"{stream.name} is gone and has not ended the run", "warning")
        held_s = max((output.held_for_s() for output in self._outputs if output.held), default=None)
        timeout_s = IDLE_S if held_s is None else max(0.0, self.hold_s - held_s)
        self.bell.wait([stream.receiver for stream in inputs], timeout_s)

    # ------------------------------------------------------------------ the end

    def _close(self, request: TransitionRequest) -> None:
        self._open = False
        self._end_request = None
        told = self._counts(request)
        account = Account.assembled([*request.collected.values(), told], [stream.name for stream in self._inputs])
        report = {**account.report(), "balanced": account.balanced}
        odb = _with_account(request.odb_json or self._began_odb, report) if self._outputs[0].is_written else b""
        try:
            for output in reversed(self._outputs):  # a run's file that is closed says that all its files are
                output.write_run_event(False, request.run.number, odb)
                output.close(_status(request), report)
        except PhloemError as error:
            self.message(f"{error}", "error")
            raise
        main = self._outputs[0]
        self.done({**told, "files": self._files, "events": main.events, "bytes": main.size_bytes})

    def _counts(self, request: TransitionRequest) -> dict[str, dict[str, dict[str, int]]]:
        """What was written of each stream, and what was sent of those whose senders say it under another name."""
        main, *recorded = self._outputs
        key = "written" if main.is_written else "discarded"
        sent = {s.name: {"sent": s.sent} for s in self._inputs if s.gone and s.sent is not None}
        for stream in (stream for output in recorded for stream in output.inputs):
            for result in request.collected.values():
                number = result.get("sent", {}).get(stream.source, {}).get("sent")
                if number is not None:
                    sent[stream.name] = {"sent": number}
        return {"written": {s.name: {key: s.written} for s in self._inputs}, "sent": sent}

    @property
    def _inputs(self) -> list[LoggerInput]:
        return [stream for output in self._outputs for stream in output.inputs]

    @property
    def _files(self) -> list[str]:
        return [file for output in self._outputs for file in output.files]

    @property
    def _preparing(self) -> bool:
        """Whether others may not have prepared yet, or never will, who make rings anew then."""
        request = self._end_request
        return self.state is State.READY if request is None else request.why == "failed"

    @property
    def _run_number(self) -> int:
        return self.run_info.number if self.run_info else -1

    def status(self) -> ComponentStatus:
        counters = {"events": 0, "bytes": 0}
        if self._outputs:
            counters = {"events": self._outputs[0].events, "bytes": self._outputs[0].size_bytes}
        per_s = self.rates.update(counters)
        return ComponentStatus(
            rates={"events_per_s": per_s.get("events", 0.0), "kb_per_s": per_s.get("bytes", 0.0) / 1024},
            counters=counters,
            sources={
                stream.name: {
                    "written": stream.written,
                    "backlog_bytes": stream.receiver.backlog_bytes,
                    "backlog_percent": round(100 * stream.receiver.fill, 1),
                }
                for stream in self._inputs
            },
        )

    def leave(self) -> None:
        for output in self._outputs:
            output.abandon()


def _paths(plan: Plan) -> list[Path]:
    """The run's file, then one for each source whose fragments are recorded."""
    file = Path(plan.file)
    return [file, *(recorded_path(file, stream.source) for stream in plan.recorded)]


def _fsync(settings: dict[str, Any]) -> Any:
    return settings.get("Fsync", "close")


def _status(request: TransitionRequest) -> str:
    return {"released": "released", "failed": "failed"}.get(request.why, "complete")


def _with_account(odb_json: str, report: dict[str, Any]) -> bytes:
    """The ODB dump of the end-of-run event, with the account as a key of its own at the top."""
    tree = msgspec.json.decode(odb_json, type=dict[str, Any]) if odb_json else {}
    tree["Account"] = report
    return msgspec.json.format(msgspec.json.encode(tree), indent=2)

"""Starts the components of an experiment as processes of their own, and ends them in order.

Each is a session of its own, so that Ctrl-C in a terminal reaches only the one who supervises them, which ends a run
in progress before it ends them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from phloem.app.experiment import Experiment, FrontendSection
from phloem.app.places import find_running, runtime_dir, tidy
from phloem.control.operator import Operator
from phloem.dataflow.readout import client_name
from phloem.model.errors import PhloemError, UnreachableError

__all__ = ["Launcher", "Process"]

START_S = 30.0
LEAVE_S = 10.0
END_S = 150.0  # a little more than what run control waits for a component


class Process(msgspec.Struct):
    """A component's process: ``what`` it is, for people; ``log``: where its output goes."""

    what: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Process id."""
        return self.popen.pid

    def last_lines(self, n: int = 5) -> str:
        """The end of its output, or how it ended."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-n:]
        except OSError:
            lines = []
        status = self.popen.returncode
        how = f"killed by signal {-status}" if (status or 0) < 0 else f"without a word, status {status}"
        return "\n".join(lines) or how


class Launcher:
    """``experiment``: what to start. Use as a context manager: leaving it ends what was started.

    ``reset``: ODB paths below which the values of the experiment file and the code replace what the ODB has.
    """

    def __init__(self, experiment: Experiment, reset: Sequence[str] = ()) -> None:
        self.experiment = experiment
        self._reset = reset
        self.runtime_dir = runtime_dir(experiment.experiment.name, experiment.data_dir)
        self.processes: list[Process] = []
        self._operator: Operator | None = None

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def operator(self) -> Operator:
        """Asks this experiment's run control."""
        if self._operator is None:
            self._operator = Operator(find_running(self.runtime_dir).address)
        return self._operator

    def start(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Start run control, logger, builders and frontends; return when all have registered."""
        self.experiment.data_dir.mkdir(parents=True, exist_ok=True)
        self._refuse_second()
        self._spawn("core", ["core", *(part for path in self._reset for part in ("--reset", path))])
        self._wait_until(self._listening, "run control listens", should_stop)
        names = []
        if self.experiment.logger is not None:
            names.append(self.experiment.logger.name)
            self._spawn(names[-1], ["logger"])
        for equipment, section in self.experiment.builder.items():
            names.append(equipment)
            self._spawn(equipment, ["builder", "-b", section.buffer, "--equipment", equipment])
        for frontend in self.experiment.frontend:
            self._spawn(_title(frontend), self._frontend_args(frontend))
        wanted = len(names) + len(self.experiment.frontend)
        self._wait_until(lambda: self._registered() >= wanted, "all components have registered", should_stop)

    def close(self) -> None:
        """End what was started, frontends first, run control last."""
        clean = self._stopped() or self._ended()
        if self._operator is not None:
            self._operator.close()
            self._operator = None
        for process in reversed(self.processes):
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
        until_s = time.monotonic() + LEAVE_S
        for process in reversed(self.processes):
            try:
                process.popen.wait(max(0.1, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self.processes.clear()
        if clean:
            tidy(self.runtime_dir)

    def dead(self) -> list[Process]:
        """Processes that have ended by themselves."""
        return [process for process in self.processes if process.popen.poll() is not None]

    # ------------------------------------------------------------------ inside

    def _refuse_second(self) -> None:
        try:
            running = find_running(self.runtime_dir)
        except PhloemError:
            return
        raise UnreachableError(
            f"experiment {running.experiment} with data in {running.data_dir} is running already "
            f"(process {running.pid}); end that one first"
        )

    def _spawn(self, what: str, args: list[str]) -> None:
        log = self.experiment.data_dir / "logs" / f"{what.replace('/', '_')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if k != "MIDAS_FRONTEND_INDEX"}
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [sys.executable, "-m", "phloem", *args, "-e", self.experiment.path],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        self.processes.append(Process(what, popen, log))

    def _frontend_args(self, section: FrontendSection) -> list[str]:
        args = ["frontend", section.code]
        if section.index is not None:
            args += ["-i", str(section.index)]
        return [*args, "--name", section.name] if section.name else args

    def _listening(self) -> bool:
        try:
            find_running(self.runtime_dir)
        except PhloemError:
            return False
        return True

    def _registered(self) -> int:
        status = self.operator.status().result(timeout_s=5)
        return sum(1 for part in status["components"] if part["health"] != "gone")

    def _stopped(self) -> bool:
        try:
            return bool(self.operator.status().result(timeout_s=2)["state"] == "STOP")
        except PhloemError:
            return False

    def _ended(self) -> bool:
        """End a run that was left open: whoever leaves by an error or a signal must not tear it."""
        try:
            return bool(self._operator and self._operator.end_run().result(timeout_s=END_S))
        except PhloemError:
            return False

    def _wait_until(self, reached: Callable[[], bool], what: str, should_stop: Callable[[], bool]) -> None:
        until_s = time.monotonic() + START_S
        while not reached():
            for process in self.dead():
                reason = process.last_lines(1).removeprefix("phloem: ")
                raise UnreachableError(f"{process.what} did not start: {reason}")
            if should_stop():
                raise UnreachableError("told to end while starting")
            if time.monotonic() > until_s:
                raise UnreachableError(f"not {what} within {START_S:.0f} s; see {self.experiment.data_dir / 'logs'}")
            time.sleep(0.02)


def _title(section: FrontendSection) -> str:
    """What people see of a frontend before it has said its own name: its class or file, and index."""
    where, _, cls = section.code.rpartition(":") if ":" in section.code else (section.code, "", "")
    return section.name or client_name(cls or Path(where).stem, section.index)

"""A small laboratory for tests: an experiment in a directory of its own, and the `phloem` command to run it with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.flow.leftovers import processes_of

from phloem.control.operator import Operator
from phloem.model.errors import PhloemError

DEADLINE_S = 30.0
LEAVE_S = 15.0
TURN_S = 0.02

TWO_FRONTENDS = """
[experiment]
name = "lab"

[logger]

[builder.EB]
buffer = "BUF"

[[frontend]]
code = "{code}"
index = 1
[frontend.settings]
{settings}

[[frontend]]
code = "{code}"
index = 2
[frontend.settings]
{settings}
"""


class Ran(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout: anything beside it fails the test."""
        return json.loads(self.out)


def until(reached: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Look until ``reached()`` is true, and return what it said."""
    turn = threading.Event()
    end_s = time.monotonic() + deadline_s
    while not (found := reached()):
        assert time.monotonic() < end_s, f"not {what} within {deadline_s:g} s"
        turn.wait(TURN_S)
    return found


class Lab:
    """``folder``: of the experiment file, which is ``lab.toml``, and the data. ``shm``: of its rings."""

    def __init__(self, folder: Path, shm: Path) -> None:
        self.folder = folder
        self.shm = shm
        self.file = folder / "lab.toml"
        self.data = folder / "data"

    # ------------------------------------------------------------------ files

    def write(self, text: str, name: str = "lab.toml") -> Path:
        """A file of the experiment."""
        path = self.folder / name
        path.write_text(text)
        return path

    def two_frontends(self, code: str = "phloem.frontends.simulated:Simulated", **settings: float) -> None:
        """The experiment file of two frontends, the builder and the logger. ``_`` in a setting is a blank."""
        lines = "\n".join(f'"{key.replace("_", " ")}" = {value}' for key, value in settings.items())
        self.write(TWO_FRONTENDS.format(code=code, settings=lines))

    def ring(self, name: str) -> Path:
        """The ring file of that name, such as ``BUF01.Trigger01``."""
        return next(self.shm.glob(f"*/*/{name}.ring"))

    # ------------------------------------------------------------------ commands

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of the lab."""
        kept = {k: v for k, v in os.environ.items() if k not in ("MIDAS_FRONTEND_INDEX", "PHLOEM_TRACEBACK")}
        return {**kept, **self.variables}

    @property
    def variables(self) -> dict[str, str]:
        """What is set for the lab."""
        return {"PHLOEM_SHM": str(self.shm), "COLUMNS": "200"}

    def popen(self, *args: str, **more: str) -> subprocess.Popen[str]:
        """Start `phloem ARGS`. ``more``: environment variables."""
        return subprocess.Popen(
            [sys.executable, "-m", "phloem", *args],
            cwd=self.folder,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, deadline_s: float = DEADLINE_S, **more: str) -> Ran:
        """Run `phloem ARGS` to its end."""
        process = self.popen(*args, **more)
        try:
            out, err = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"phloem {' '.join(args)} did not end within {deadline_s:g} s: {out}{err}") from None
        return Ran(process.returncode, out, err)

    def done(self, *args: str) -> Ran:
        """Run a command that must succeed."""
        ran = self.run(*args)
        assert ran.status == 0, f"phloem {' '.join(args)}: {ran}"
        return ran

    def ask(self, *args: str) -> Any:
        """The JSON document of a command that must succeed."""
        return self.done(*args, "--json").document

    @contextmanager
    def component(self, *args: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        """`phloem ARGS` in the foreground for as long as the block lasts; it must leave cleanly at SIGTERM."""
        process = self.popen(*args, **more)
        try:
            yield process
        except BaseException:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(LEAVE_S)
            process.kill()
            print(_rest(process), file=sys.stderr)
            raise
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            err = _rest(process)
        assert process.returncode == 0, f"phloem {' '.join(args)} left with {process.returncode}: {err}"

    @contextmanager
    def up(self) -> Iterator[Live]:
        """`phloem up` of its experiment file for as long as the block lasts."""
        with self.component("up", self.file.name) as process:
            address = self._address(process)
            with Operator(address) as operator:
                yield Live(self, operator, process)

    def _address(self, process: subprocess.Popen[str]) -> str:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            if " is up: " in line:
                return line.split(" is up: ")[1].strip()
            said.append(line)
        raise AssertionError(f"phloem up ended with {process.wait()}: {''.join(said)}")


def _rest(process: subprocess.Popen[str]) -> str:
    """What is left on stderr, to its end; closes the pipes."""
    with process:
        return process.stderr.read() if process.stderr else ""


class Live:
    """An experiment that is up; asks its run control as an operator's program would."""

    def __init__(self, lab: Lab, operator: Operator, process: subprocess.Popen[str]) -> None:
        self.lab = lab
        self.operator = operator
        self.process = process

    def status(self) -> dict[str, Any]:
        """As `phloem status --json`."""
        return self.operator.status().result(DEADLINE_S)

    def part(self, name: str) -> dict[str, Any]:
        """One component of the status."""
        return next(part for part in self.status()["components"] if part["name"] == name)

    def count(self, name: str, counter: str = "events") -> int:
        """A counter of a component in this run."""
        return int(self.part(name)["counters"].get(counter, 0))

    def sent(self, name: str, source: str) -> int:
        """What one source of a component has sent in this run."""
        return int(self.part(name)["sources"].get(source, {}).get("events", 0))

    def until_events(self, name: str, number: int) -> None:
        """Wait until a component has counted so many events in this run."""
        until(lambda: self.count(name) >= number, f"{number} events at {name}")

    def start(self) -> dict[str, Any]:
        """PREPARE and BEGIN."""
        return self.operator.start_run().result(DEADLINE_S)

    def stop(self) -> dict[str, Any]:
        """END; the document of the run."""
        return self.operator.end_run().result(DEADLINE_S)

    def close_run(self) -> None:
        """End a run that a test left open, whatever comes of it."""
        if self.status()["state"] != "STOP":
            with suppress(PhloemError):
                self.stop()

    def set(self, path: str, value: Any) -> None:
        """Set a key of the ODB."""
        self.operator.odb_set(path, value).result(DEADLINE_S)

    def messages(self) -> list[str]:
        """What people would see, who said it and the text, oldest first."""
        return [f"[{m['origin']}] {m['text']}" for m in self.operator.messages(500).result(DEADLINE_S)]

    def pids(self, *words: str) -> list[int]:
        """Processes whose command line has all these words."""
        found = processes_of(self.lab.shm)
        return [pid for pid, command in found.items() if all(word in command for word in words)]

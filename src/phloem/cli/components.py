"""Commands that are a component: core, frontend, builder (mevb), logger; and `up`, which starts them all."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from phloem.app import Experiment, Launcher, find_running, load, runtime_dir
from phloem.app.experiment import BuilderSection, LoggerSection
from phloem.app.places import tidy
from phloem.app.user_code import load_class, load_module
from phloem.cli.building import builder_status
from phloem.cli.common import ExperimentOption
from phloem.control.run_control import RunControl
from phloem.dataflow.builder import EventBuilder
from phloem.dataflow.component import Place
from phloem.dataflow.frontend import Frontend
from phloem.dataflow.logger import Logger
from phloem.dataflow.readout import Readout
from phloem.model.errors import PhloemError, SettingsError, UnreachableError
from phloem.model.event import Equipment

__all__ = ["add_to"]

ResetOption = Annotated[
    list[str] | None, typer.Option(metavar="PATH", help="take the experiment file's values below this ODB path")
]
INDEX_VARIABLE = "MIDAS_FRONTEND_INDEX"


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(core)
    app.command()(frontend)
    building = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
    building.callback()(builder)
    building.command(name="status")(builder_status)
    app.add_typer(building, name="builder")
    app.command(name="mevb", help="The event builder, under its MIDAS name: phloem mevb -b BUF")(builder)
    app.command()(logger)


def _experiment(context: typer.Context, given: str) -> Experiment:
    path = given or (context.obj.experiment if context.obj else "")
    if path:
        return load(path)
    running = find_running()
    file = Path(running.data_dir) / "experiment.path"
    try:
        return load(file.read_text())
    except OSError:
        raise UnreachableError(f"say which experiment with -e EXPERIMENT.toml ({running.experiment} runs)") from None


def _place(context: typer.Context, experiment: Experiment) -> Place:
    directory = runtime_dir(experiment.experiment.name, experiment.data_dir)
    address = context.obj.core if context.obj and context.obj.core else find_running(directory).address
    return Place(address, directory)


def core(
    context: typer.Context,
    experiment: ExperimentOption = "",
    reset: ResetOption = None,
) -> None:
    """Run control by itself: state, ODB, runs. Example: phloem core -e lab.toml"""
    path = experiment or (context.obj.experiment if context.obj else "")
    if not path:
        raise SettingsError("say which experiment: phloem core -e EXPERIMENT.toml")
    described = load(path)
    described.data_dir.mkdir(parents=True, exist_ok=True)
    directory = runtime_dir(described.experiment.name, described.data_dir)
    logger_section = described.logger or LoggerSection()
    run_control = RunControl(
        described.experiment.name,
        described.data_dir,
        directory,
        described.run_control.address,
        first_values=described.odb,
        file_pattern=logger_section.file,
        reset=reset or (),
    )
    (described.data_dir / "experiment.path").write_text(described.path)
    for difference in run_control.differences:
        print(f"note: {difference}", file=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: run_control.stop())
    asyncio.run(run_control.serve())
    if run_control.idle:
        tidy(directory)


def frontend(
    context: typer.Context,
    code: Annotated[str, typer.Argument(metavar="MODULE-or-FILE.py[:Class]")],
    index: Annotated[
        int | None, typer.Option("-i", "--index", min=0, help=f"frontend index (or {INDEX_VARIABLE})")
    ] = None,
    experiment: ExperimentOption = "",
    name: Annotated[str, typer.Option(help="client name, instead of the class's with the index")] = "",
) -> None:
    """A frontend by itself. Example: phloem frontend ebfe.py -i 1 -e lab.toml"""
    described = _experiment(context, experiment)
    number = _index(index)
    section = described.frontend_section(code, number)
    found, file = load_class(code, Frontend, _code_folder(described, code))
    Readout(
        found,
        _place(context, described),
        index=number,
        name=name,
        settings=section.settings if section else {},
        file=file,
    ).run()


def _code_folder(experiment: Experiment, code: str) -> Path:
    """A file named on the command line is looked for here first, then beside the experiment file."""
    file = code.rpartition(":")[0] or code
    return Path.cwd() if file.endswith(".py") and Path(file).is_file() else experiment.folder


def _index(index: int | None) -> int | None:
    if index is not None or INDEX_VARIABLE not in os.environ:
        return index
    value = os.environ[INDEX_VARIABLE]
    if not value.isdigit():
        raise SettingsError(f"{INDEX_VARIABLE} is {value!r}; it must be a number")
    return int(value)


def builder(
    context: typer.Context,
    buffer: Annotated[str, typer.Option("-b", "--buffer", help="prefix of the buffers whose fragments it joins")] = "",
    equipment: Annotated[str, typer.Option(help="the equipment that it sends as")] = "EB",
    experiment: ExperimentOption = "",
) -> None:
    """The event builder by itself. Example: phloem builder -b BUF -e lab.toml"""
    if context.invoked_subcommand is not None:
        return
    described = _experiment(context, experiment)
    section = described.builder.get(equipment) or BuilderSection(buffer=buffer)
    reads = buffer or section.buffer
    if not reads:
        raise SettingsError("say which buffers to build from: phloem builder -b BUF")
    sends_as = Equipment(
        equipment,
        event_id=section.event_id,
        trigger_mask=section.trigger_mask,
        buffer=section.destination,
        type=0,
        format=section.format,
    )
    place = _place(context, described)
    EventBuilder(
        equipment, place, reads, sends_as, section.settings, lambda code: load_module(code, described.folder)
    ).run()


def logger(context: typer.Context, experiment: ExperimentOption = "") -> None:
    """The logger by itself. Example: phloem logger -e lab.toml"""
    described = _experiment(context, experiment)
    section = described.logger or LoggerSection()
    found, _ = load_class(section.code, Logger, described.folder)
    found(section.name, _place(context, described), section.buffer).run()


def up(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT.toml")],
    background: Annotated[bool, typer.Option("-D", help="in the background; stop it with SIGTERM")] = False,
    reset: ResetOption = None,
) -> None:
    """Start an experiment's components and keep them until Ctrl-C. Example: phloem up lab.toml"""
    described = load(experiment)
    if background:
        _up_in_background(described, reset or [])
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Launcher(described, reset or []) as launcher:
        launcher.start(stop.is_set)
        for message in launcher.operator.messages(100).result(timeout_s=10):
            if message["severity"] in ("warning", "error"):  # where the ODB stands against the file, say
                print(f"[{message['origin']}] {message['text']}", file=sys.stderr)
        print(f"{described.experiment.name} is up: {launcher.operator.address}", file=sys.stderr)
        print("start a run with `phloem start`, end it with `phloem stop`; Ctrl-C ends all", file=sys.stderr)
        _supervise(launcher, stop)
        _end_run(launcher)


def _supervise(launcher: Launcher, stop: threading.Event) -> None:
    told: set[int] = set()
    while not stop.wait(0.5):
        for process in launcher.dead():
            if process.pid not in told:
                told.add(process.pid)
                print(f"{process.what} has ended: {process.last_lines(3)}", file=sys.stderr)


def _end_run(launcher: Launcher) -> None:
    try:
        if launcher.operator.status().result(timeout_s=5)["state"] != "STOP":
            print("ending the run in progress", file=sys.stderr)
            launcher.operator.end_run().result(timeout_s=150)
    except PhloemError as error:
        print(f"the run was not ended: {error}", file=sys.stderr)


def _up_in_background(experiment: Experiment, reset: list[str]) -> None:
    experiment.data_dir.mkdir(parents=True, exist_ok=True)
    log = experiment.data_dir / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "phloem", "up", experiment.path, *(f"--reset={path}" for path in reset)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while b" is up: " not in log.read_bytes():
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        lines = log.read_text(errors="replace").splitlines() or ["it ended without a word"]
        raise UnreachableError(lines[-1].removeprefix("phloem: "))
    print(f"{experiment.experiment.name} is up in the background (process {process.pid}, {log})", file=sys.stderr)

"""`phloem demo`: a whole run on the screen, from frontends to a verified file."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from phloem.app import Experiment, Launcher, load
from phloem.app.demo import DemoOptions, experiment_text
from phloem.cli import files
from phloem.cli.common import JsonOption, print_json
from phloem.cli.live import account_table, status_table
from phloem.model.errors import PhloemError, SettingsError

__all__ = ["add_to"]

LOOK_S = 0.2


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    frontends: Annotated[int, typer.Option(help="how many simulated frontends", min=1, max=99)] = 4,
    events: Annotated[int, typer.Option(help="each frontend sends exactly so many fragments", min=0)] = 0,
    seconds: Annotated[float, typer.Option(help="how long the run takes", min=0.1)] = 5.0,
    payload: Annotated[int, typer.Option(help="bytes of data in each fragment", min=2)] = 256,
    rate: Annotated[float | None, typer.Option(help="triggers per second; 0 is as fast as it can", min=0.0)] = None,
    directory: Annotated[str, typer.Option("--dir", help="where the experiment and its data go")] = "phloem-demo",
    write_experiment: Annotated[
        str, typer.Option(metavar="FILE", help="only write the experiment file, for `phloem up` and as a start")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """A run with simulated frontends, the event builder and the logger. Example: phloem demo --frontends 4"""
    rate_hz = rate if rate is not None else (0.0 if events else 1000.0)
    options = DemoOptions(frontends=frontends, events=events, payload_bytes=payload, rate_hz=rate_hz)
    if write_experiment:
        _write(Path(write_experiment), experiment_text(options))
        print(f"wrote {write_experiment}; start it with: phloem up {write_experiment}", file=sys.stderr)
        return
    path = Path(directory) / "demo.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(experiment_text(options))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupted)
    document, verified = _run(load(path), options, seconds, quiet=as_json)
    results = files.verify_files(document["files"])
    if as_json:
        print_json(document)
    else:
        _report(document, files.verify_report(results))
    if not (document["balanced"] and verified and all(result.ok for result in results)):
        raise typer.Exit(1)


def _interrupted(number: int, frame: object) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)  # a second one would tear the run that the first one ends
    raise KeyboardInterrupt


def _write(path: Path, text: str) -> None:
    if path.exists():
        raise SettingsError(f"{path} exists and is not overwritten; choose another name")
    path.write_text(text)


def _run(experiment: Experiment, options: DemoOptions, seconds: float, quiet: bool) -> tuple[dict[str, Any], bool]:
    """Start everything, take one run, end everything."""
    console = Console(stderr=True)
    with Launcher(experiment, reset=["/Equipment"]) as launcher:
        console.print(
            f"starting run control, {options.frontends} frontends, event builder and logger ...", highlight=False
        )
        launcher.start()
        launcher.operator.start_run(operator="demo", comment="phloem demo").result(timeout_s=60)
        try:
            _watch(launcher, console, _reached(options, seconds), quiet)
        finally:
            document = launcher.operator.end_run().result(timeout_s=180)
        problems = [m for m in launcher.operator.messages(200).result(10) if m["severity"] in ("error", "warning")]
    for message in problems:
        console.print(f"[{message['origin']}] {message['text']}", highlight=False, markup=False)
    if options.events:
        sent = [part["sent"] for part in document["account"]["sources"].values()]
        if sent != [options.events] * options.frontends:
            console.print(f"expected {options.events} fragments of each frontend; sent were {sent}", style="red")
            return document, False
    return document, True


def _reached(options: DemoOptions, seconds: float) -> Callable[[dict[str, Any]], bool]:
    """Whether the run is to end, from the status."""
    until_s = time.monotonic() + seconds
    if not options.events:
        return lambda status: time.monotonic() >= until_s

    def all_sent(status: dict[str, Any]) -> bool:
        sent = [p["counters"].get("events", 0) for p in status["components"] if p["kind"] == "frontend"]
        return len(sent) >= options.frontends and min(sent) >= options.events

    return all_sent


def _watch(launcher: Launcher, console: Console, reached: Callable[[dict[str, Any]], bool], quiet: bool) -> None:
    """Show the status until the run is to end. Not a terminal: a line a second."""
    live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal and not quiet else None
    if live:
        live.start()
    told_s = time.monotonic()
    try:
        while True:
            status = launcher.operator.status().result(timeout_s=10)
            _check_alive(launcher, status)
            if live:
                live.update(status_table(status), refresh=True)
            elif time.monotonic() - told_s >= 1.0:
                told_s = time.monotonic()
                console.print(_line(status), highlight=False)
            if reached(status):
                return
            time.sleep(LOOK_S)
    finally:
        if live:
            live.stop()


def _line(status: dict[str, Any]) -> str:
    built = [p for p in status["components"] if p["kind"] == "builder"]
    events = sum(p["counters"].get("events", 0) for p in built)
    rate = sum(p["rates"].get("events_per_s", 0.0) for p in built)
    return f"{status['state']} run {status['run']}: {status['seconds']:.0f} s, {events:,} events, {rate:,.0f}/s"


def _check_alive(launcher: Launcher, status: dict[str, Any]) -> None:
    dead = launcher.dead()
    if dead:
        raise PhloemError(f"{dead[0].what} has ended: {dead[0].last_lines(1)}")


def _report(document: dict[str, Any], verified: list[str]) -> None:
    console = Console()
    console.print()
    console.print(account_table(document))
    for loss in document["losses"]:
        console.print(f"  {loss}", highlight=False)
    console.print()
    for line in verified:
        console.print(f"verified: {line}", highlight=False, soft_wrap=True)
    if document["files"]:
        console.print(f"look into it: phloem dump {document['files'][0]} | less", highlight=False, soft_wrap=True)

"""`phloem bench`: what this machine does with the processes that `phloem up` starts, beside its memcpy ceiling."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from phloem.app import Launcher, load
from phloem.app.demo import DemoOptions, experiment_text
from phloem.cli.common import JsonOption, print_json
from phloem.kernel import Bell, RingReader, RingWriter, check_events

__all__ = ["add_to"]

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Measure this machine.", no_args_is_help=True, rich_markup_mode=None)
    group.command()(evb)
    group.command()(ring)
    group.command()(latency)
    app.add_typer(group, name="bench")


FragmentsOption = Annotated[int, typer.Option(help="frontends", min=1, max=99)]
PayloadOption = Annotated[int, typer.Option(help="bytes in each fragment", min=2)]
SecondsOption = Annotated[float, typer.Option(help="length of the run", min=0.5)]
DropOption = Annotated[
    float | None,
    typer.Option(metavar="RATE", help="faulty frontends that lose so many of their fragments", min=0, max=0.5),
]
DuplicateOption = Annotated[
    float | None,
    typer.Option(metavar="RATE", help="faulty frontends that send so many of their fragments twice", min=0, max=0.5),
]


def evb(
    fragments: FragmentsOption = 2,
    payload: PayloadOption = 64,
    seconds: SecondsOption = 5.0,
    log: Annotated[str, typer.Option(metavar="DIR", help="write the events to a file in this directory")] = "",
    per_event: Annotated[bool, typer.Option(help="one Python call per event instead of batches")] = False,
    drop: DropOption = None,
    duplicate: DuplicateOption = None,
    user_code: Annotated[str, typer.Option(metavar="FILE.py", help="the builder's user code")] = "",
    as_json: JsonOption = False,
) -> None:
    """Frontends at full speed, builder, and a reader of every byte. Example: phloem bench evb --payload 1024

    With --drop or --duplicate the frontends give each serial number themselves: compare with --drop 0.
    """
    faulty = drop is not None or duplicate is not None
    if faulty and per_event:
        raise typer.BadParameter("faulty frontends send batches: leave out --per-event, or --drop and --duplicate")
    options = DemoOptions(
        frontends=fragments,
        payload_bytes=payload,
        rate_hz=0.0,
        per_event=per_event,
        name="bench",
        checker=not log,
    )
    text = experiment_text(options)
    if faulty:
        text = _with_faults(text, drop or 0.0, duplicate or 0.0)
    if user_code:
        text += f'\n[builder.EB.settings]\n"User code" = "{Path(user_code).resolve()}"\n'
    found = _measured(text, seconds, log)
    document = found["document"]
    parts = document["account"]["sources"].values()
    # Of a trigger that no source has there is no event: the reader sees a gap where nothing is lost.
    gaps = 0 if faulty else found["out_of_order"]
    events = sum(part["built"] for part in parts) // fragments
    result = {
        "fragments": fragments,
        "payload_bytes": payload,
        "events_per_s": events / document["seconds"],
        "mb_per_s": events * fragments * payload / document["seconds"] / 1e6,
        "seconds": document["seconds"],
        "events": events,
        **{fate: sum(part[fate] for part in parts) for fate in ("incomplete", "late", "duplicate") if faulty},
        "lost": sum(part["lost"] or 0 for part in parts) + gaps,
        "balanced": document["balanced"],
        "cpu_s": found["cpu_s"],
        "memory_bytes": found["memory_bytes"],
        "memcpy_gb_per_s": _memcpy_gb_per_s(),
        "logged": bool(log),
        "machine": platform.processor() or platform.machine(),
    }
    _show(result, as_json)
    if result["lost"] or not result["balanced"]:
        raise typer.Exit(1)


def latency(
    rate: Annotated[float, typer.Option(help="triggers per second", min=1.0)] = 1000.0,
    fragments: FragmentsOption = 2,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Time from a frontend's read to the built event at its reader. Example: phloem bench latency --rate 1000"""
    options = DemoOptions(frontends=fragments, payload_bytes=64, rate_hz=rate, name="bench", checker=True, latency=True)
    found = _measured(experiment_text(options), seconds, "")
    rates = found["rates"]
    result = {
        "rate_hz": rate,
        "latency_ms_median": rates.get("latency_ms_median"),
        "latency_ms_99": rates.get("latency_ms_99"),
        "events": found["document"]["events"],
        "cpu_s": found["cpu_s"],
        "cpu_percent_of_a_core": 100 * sum(found["cpu_s"].values()) / found["document"]["seconds"],
    }
    _show(result, as_json)


def ring(
    size: Annotated[int, typer.Option(help="bytes of an event's bank", min=8)] = 1 << 20,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """One ring, one writer process, one reader of every byte. Example: phloem bench ring --size 262144"""
    with tempfile.TemporaryDirectory(dir=os.environ.get("PHLOEM_SHM", "/dev/shm"), prefix="phloem-bench-") as folder:
        path = f"{folder}/bench.ring"
        data = np.zeros((max(1, (1 << 20) // size), size), "u1")
        writer = RingWriter(path, "bench", "BENCH", 16 << 20, ["reader"], max_frame=1 << 20)
        child = os.fork()
        if child == 0:
            _read_ring(path, folder)
        began_s = time.monotonic()
        while time.monotonic() - began_s < seconds:
            at = 0
            while at < len(data):
                at = writer.send_batch(1, 0, writer.next_serial - at, 0, [(b"DATA", 1, data)], len(data), at, None)
                if at < len(data):
                    writer.wait_space(100_000_000)
        while not writer.send_frame(3, b"", 0, b""):
            writer.wait_space(100_000_000)
        _, status = os.waitpid(child, 0)
        past_s = time.monotonic() - began_s
        result = {
            "size_bytes": size,
            "events_per_s": writer.total_events / past_s,
            "gb_per_s": writer.total_events * size / past_s / 1e9,
            "in_order": status == 0,
            "memcpy_gb_per_s": _memcpy_gb_per_s(),
        }
    _show(result, as_json)


def _read_ring(path: str, folder: str) -> None:
    """The reader's process: ends with status 0 if every serial number came in order."""
    bell = Bell(f"{folder}/reader.bell")
    reader = RingReader(path, "reader", True, bell)
    expected = wrong = 0
    while True:
        frame = reader.next()
        if frame is None:
            token = bell.arm()
            if reader.has_data:
                bell.disarm()
            else:
                bell.sleep(token, 100_000_000)
            continue
        if frame.kind == 3:
            os._exit(1 if wrong else 0)
        _, expected, out, _ = check_events(frame, expected)
        wrong += out
        end = frame.end
        frame.close()
        reader.release(end)


def _with_faults(text: str, drop: float, duplicate: float) -> str:
    """The experiment file with faulty frontends in the place of the simulated ones."""
    faults = f'"Drop rate" = {drop}\n"Duplicate rate" = {duplicate}\n'
    text = text.replace('"phloem.frontends.simulated:Simulated"', '"phloem.frontends.repeated:RepeatedFaults"')
    return text.replace("[frontend.settings]\n", f"[frontend.settings]\n{faults}")


def _measured(text: str, seconds: float, log: str) -> dict[str, Any]:
    """One run with real processes: its document, CPU seconds and memory per process, the reader's rates."""
    with tempfile.TemporaryDirectory(prefix="phloem-bench-", dir=log or None) as folder:
        path = Path(folder) / "bench.toml"
        path.write_text(text)
        with Launcher(load(path)) as launcher:
            launcher.start()
            launcher.operator.start_run().result(timeout_s=60)
            before = {p.what: _cpu_s(p.pid) for p in launcher.processes}
            time.sleep(seconds)
            status = launcher.operator.status().result(timeout_s=10)
            after = {p.what: _cpu_s(p.pid) for p in launcher.processes}
            memory = {p.what: _memory_bytes(p.pid) for p in launcher.processes}
            document = launcher.operator.end_run().result(timeout_s=180)
    reader = next(part for part in status["components"] if part["kind"] == "logger")
    return {
        "document": document,
        "cpu_s": {what: round(after[what] - before[what], 2) for what in after},
        "memory_bytes": memory,
        "rates": reader["rates"],
        "out_of_order": reader["counters"].get("out_of_order", 0),
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _memory_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _memcpy_gb_per_s() -> float:
    """One thread, 64 MB, touched before: the ceiling of this machine in this minute."""
    source, target = np.ones(64 << 20, "u1"), np.ones(64 << 20, "u1")
    speeds = []
    for _ in range(7):
        began = time.perf_counter()
        np.copyto(target, source)
        speeds.append(len(source) / (time.perf_counter() - began) / 1e9)
    return statistics.median(speeds)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    console = Console()
    for name, value in result.items():
        if isinstance(value, dict):
            text = ", ".join(f"{k} {v:,}" for k, v in value.items())
        else:
            text = (
                f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
            )
        console.print(f"{name:>22}  {text}", highlight=False, soft_wrap=True)

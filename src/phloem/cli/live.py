"""What people look at in a terminal: the status of a run as a table, and the account at its end."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

FLOW = ("frontend", "builder", "logger", "monitor")
COLUMNS = ("sent", "built", "incomplete", "late", "duplicate", "discarded", "quarantined", "lost")
ALWAYS = ("sent", "built", "lost")

__all__ = ["COLOURS", "STATES", "account_table", "size_text", "status_table"]

COLOURS = {"ok": "green", "warning": "yellow", "error": "red", "gone": "red"}
STATES = {"STOP": "bold white on red", "READY": "bold black on yellow", "RUN": "bold white on green"}


def size_text(size: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def status_table(status: dict[str, Any]) -> RenderableType:
    """State and run on a line, then a row for each component."""
    head = Text.assemble(
        (f" {status['state']} ", STATES.get(status["state"], "")),
        f"  {status['experiment']}",
        f"  run {status['run']}" if status["run"] else f"  last run {status['last_run']}",
        f"  {status['seconds']:.0f} s" if status["run"] else "",
        "" if status["write_data"] else ("  TEST RUN: no data are written", "bold red"),
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("component")
    table.add_column("health")
    for name in ("events/s", "MB/s", "events", "backlog"):
        table.add_column(name, justify="right")
    table.add_column("", no_wrap=False)
    for part in sorted(status["components"], key=_place):
        table.add_row(*_row(part))
    waits = [Text(f"waiting for {name}", style="yellow") for name in status.get("waiting_for") or []]
    return Group(head, Text(""), table, *waits)


def _place(part: dict[str, Any]) -> tuple[int, str]:
    """In the order in which the data pass them."""
    return FLOW.index(part["kind"]) if part["kind"] in FLOW else len(FLOW), part["name"]


def _row(part: dict[str, Any]) -> list[RenderableType]:
    rates, counters = part["rates"], part["counters"]
    fills = [s.get("backlog_percent", s.get("fill_percent", 0.0)) for s in part["sources"].values()]
    notes = []
    if counters.get("incomplete"):
        notes.append(f"{counters['incomplete']} incomplete")
    if part["kind"] == "logger" and counters.get("bytes"):
        notes.append(f"file {size_text(counters['bytes'])}")
    if part["waiting_for"] and part["state"] != "STOP":
        notes.append(f"waits for {part['waiting_for']}")
    if part["why"]:
        notes.append(part["why"])
    return [
        part["name"],
        Text(part["health"], style=COLOURS.get(part["health"], "")),
        f"{rates.get('events_per_s', 0.0):,.0f}",
        f"{rates.get('kb_per_s', 0.0) * 1024 / 1e6:,.1f}",
        f"{counters.get('events', 0):,}",
        f"{max(fills, default=0.0):.0f} %",
        "; ".join(notes),
    ]


def account_table(document: dict[str, Any]) -> RenderableType:
    """The account of a closed run: a row for each source and each stream."""
    sources = document["account"]["sources"].values()
    names = [n for n in COLUMNS if n in ALWAYS or any(part.get(n) for part in sources)]  # room for what happened
    verdict = ("balanced", "bold green") if document["balanced"] else ("NOT BALANCED", "bold white on red")
    head = Text.assemble(
        f"run {document['run']} {document['status']}: {document['events']:,} events, "
        f"{size_text(document['bytes'])}, {document['seconds']:.1f} s, ",
        verdict,
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("source")
    for name in names:
        table.add_column(name, justify="right")
    for source, part in document["account"]["sources"].items():
        table.add_row(source, *[_count(part.get(name), name) for name in names])
    streams = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    streams.add_column("into the logger")
    for name in ("sent", "written", "lost"):
        streams.add_column(name, justify="right")
    for stream, part in document["account"]["streams"].items():
        streams.add_row(stream, *[_count(part.get(name), name) for name in ("sent", "written", "lost")])
    parts: list[RenderableType] = [table, Text("")] if document["account"]["sources"] else []
    return Group(head, Text(""), *parts, *([streams] if document["account"]["streams"] else []))


def _count(value: int | None, name: str) -> Text:
    if value is None:
        return Text("?", style="bold red")
    return Text(f"{value:,}", style="bold white on red" if name == "lost" and value else "")

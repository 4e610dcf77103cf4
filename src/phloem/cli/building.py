"""`phloem builder status`: what each event builder does with each of its sources; and PREPARE's list of fragments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from phloem.cli.common import JsonOption, Target, print_json
from phloem.cli.live import COLOURS, STATES, size_text
from phloem.model.errors import NotFoundError

__all__ = ["builder_documents", "builder_status", "builder_table", "fragments_table"]

# what a builder says of a source, and its heading; the columns of what went wrong are coloured if there is any
_COUNTS = (
    ("late", "late"),
    ("duplicate", "dupli-\ncate"),
    ("incomplete", "incom-\nplete"),
    ("quarantined", "quaran-\ntined"),
)
_MANY = 100_000_000
_FRACTIONS = ("events_per_s", "kb_per_s", "backlog_percent", "blocked_s")
_BY_FRONTEND = ("missed", "blocked_s")


def builder_status(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="of one builder; all if left out")] = "",
    as_json: JsonOption = False,
) -> None:
    """What the event builders do, source by source. Example: phloem builder status EB"""
    target: Target = context.obj
    with target.operator() as operator:
        status = operator.status().result()
    documents = builder_documents(status)
    if name:
        known = ", ".join(document["name"] for document in documents) or "none"
        documents = [document for document in documents if document["name"].lower() == name.lower()]
        if not documents:
            raise NotFoundError(f"there is no builder {name!r}; there is {known}")
    if as_json:
        print_json(documents)
        return
    console = Console()
    for document in documents:
        console.print(builder_table(document), highlight=False)
    if not documents:
        print("no builder is here; `phloem builder -b BUF` starts one")


def builder_documents(status: dict[str, Any]) -> list[dict[str, Any]]:
    """A document for each builder, from run control's status; ``missed`` and ``blocked_s`` are the frontends'."""
    frontends = {
        source: part for part in status["components"] if part["kind"] == "frontend" for source in part["sources"]
    }
    return [
        {
            "name": part["name"],
            "health": part["health"],
            "state": part["state"],
            "run": part["run"],
            "counters": part["counters"],
            "rates": part["rates"],
            "waiting_for": part["waiting_for"],
            "sources": {
                source: {**_whole(said), **_of_frontend(frontends.get(source), source)}
                for source, said in part["sources"].items()
            },
        }
        for part in status["components"]
        if part["kind"] == "builder"
    ]


def _whole(said: dict[str, Any]) -> dict[str, Any]:
    """Heartbeats carry all numbers of a source as floats; counts are whole."""
    return {name: value if name in _FRACTIONS else int(value) for name, value in said.items()}


def _of_frontend(part: dict[str, Any] | None, source: str) -> dict[str, Any]:
    if part is None:
        return {"frontend": "", "frontend_health": "gone"}
    said = part["sources"][source]
    own = _whole({name: said[name] for name in _BY_FRONTEND if name in said})
    return {"frontend": part["name"], "frontend_health": part["health"], **own}


def builder_table(document: dict[str, Any]) -> RenderableType:
    """One builder: a row for each source, below it what it waits for and what it has built."""
    head = Text.assemble(
        (f" {document['state']} ", STATES.get(document["state"], "")),
        f"  {document['name']}",
        f"  run {document['run']}" if document["run"] else "",
        "  ",
        (document["health"], COLOURS.get(document["health"], "")),
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))  # to fit 120 columns
    table.add_column("source", vertical="bottom", overflow="fold")  # the only one that may be broken
    table.add_column("req", vertical="bottom", no_wrap=True)
    headings = ["received", "rate/s", "backlog", "bytes", "skew", "last\nserial"]
    for heading in (*headings, *(text for _, text in _COUNTS), "blocked\ns", "missed"):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    table.add_column("flags", vertical="bottom", no_wrap=True)
    for source, part in document["sources"].items():
        table.add_row(source, *_row(part))
    return Group(head, Text(""), table, Text(""), *_summary(document), Text(""))


def _row(part: dict[str, Any]) -> Iterator[RenderableType]:
    yield "" if "required" not in part else "y" if part["required"] else "n"
    yield _number(part, "received")
    yield _number(part, "events_per_s")
    yield _number(part, "backlog_events")
    yield size_text(part["backlog_bytes"]) if "backlog_bytes" in part else ""
    yield f"{part['skew']:+,.0f}" if part.get("skew") else _number(part, "skew")
    yield f"{part['last_serial']:.0f}" if "last_serial" in part else ""
    for name, _ in _COUNTS:
        yield Text(_number(part, name), style="yellow" if part.get(name) else "")
    yield Text(f"{part.get('blocked_s', 0.0):.1f}", style="yellow" if part.get("blocked_s", 0.0) >= 0.1 else "")
    yield Text(_number(part, "missed"), style="yellow" if part.get("missed") else "")
    yield _flags(part)


def _flags(part: dict[str, Any]) -> Text:
    """The frontend's health if it is not well; ``restarted``: its counter has, and nothing of it is built any more;
    ``absent``: not waited for until it sends again."""
    if part["frontend_health"] != "ok":
        return Text(part["frontend_health"], style=COLOURS.get(part["frontend_health"], ""))
    if part.get("flagged"):
        return Text("restarted", style="bold red")
    return Text("absent", style="red") if part.get("absent") else Text("")


def _number(part: dict[str, Any], name: str) -> str:
    """A count, in millions where it would take the room of others; --json has all digits."""
    if name not in part:
        return ""
    value = part[name]
    return f"{value:,.0f}" if value < _MANY else f"{value / 1e6:,.1f} M"


def _summary(document: dict[str, Any]) -> Iterator[Text]:
    counters, rates = document["counters"], document["rates"]
    waiting = document["waiting_for"] if document["state"] != "STOP" else ""
    if waiting and "oldest_open" in counters:
        age_s = rates.get("oldest_open_s", 0.0)
        text = f"oldest open event {counters['oldest_open']}, for {age_s:.1f} s, waits for {waiting}"
        yield Text(text, style="yellow")
    elif waiting:
        yield Text(f"waits for {waiting}", style="yellow")
    events, incomplete = counters.get("events", 0), counters.get("incomplete", 0)
    yield Text.assemble(
        f"{events:,} events built, ",
        (f"{incomplete:,} of them incomplete", "yellow" if incomplete else ""),
        f"; {rates.get('events_per_s', 0.0):,.0f} events/s, {rates.get('kb_per_s', 0.0) * 1024 / 1e6:,.1f} MB/s",
    )


def fragments_table(fragments: dict[str, list[dict[str, Any]]]) -> RenderableType:
    """The sources of each builder in a run, as PREPARE found them."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("builder", "source", "frontend", "buffer"):
        table.add_column(heading)
    table.add_column("event id", justify="right")
    table.add_column("trigger mask", justify="right")
    for heading in ("format", "required"):
        table.add_column(heading)
    for builder, rows in fragments.items():
        for row in rows:
            table.add_row(
                builder,
                row["source"],
                row["frontend"],
                row["buffer"],
                str(row["event_id"]),
                f"0x{row['trigger_mask']:04X}",
                row["format"],
                Text("y") if row["required"] else Text("n", style="yellow"),
            )
    return table

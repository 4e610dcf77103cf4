"""`phloem builder status` source by source, and the list of fragments that PREPARE prints."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console
from tests.cli.conftest import Here
from tests.flow.lab import Lab, Live, until

from phloem.cli.building import builder_documents, builder_table, fragments_table

SAID = {
    "received": 1200.0,
    "built": 1190.0,
    "incomplete": 4.0,
    "late": 1.0,
    "duplicate": 2.0,
    "discarded": 0.0,
    "quarantined": 3.0,
    "last_serial": 1234.0,
    "backlog_events": 56.0,
    "backlog_bytes": 7800.0,
    "backlog_percent": 0.2,
    "skew": -12.0,
    "events_per_s": 98.7,
    "required": 1.0,
    "flagged": 0.0,
}
STATUS: dict[str, Any] = {
    "components": [
        {
            "name": "ebfe01",
            "kind": "frontend",
            "health": "ok",
            "sources": {"Trigger01": {"missed": 6.0, "blocked_s": 1.5, "fill_percent": 1.0}},
        },
        {"name": "ebfe02", "kind": "frontend", "health": "gone", "sources": {"Trigger02": {"blocked_s": 0.0}}},
        {
            "name": "EB",
            "kind": "builder",
            "health": "ok",
            "state": "RUN",
            "run": 42,
            "counters": {"events": 1190, "incomplete": 4, "oldest_open": 1235},
            "rates": {"events_per_s": 98.0, "kb_per_s": 1000.0, "oldest_open_s": 3.25},
            "waiting_for": "Trigger02 (event 1235)",
            "sources": {"Trigger01": SAID, "Trigger02": {**SAID, "required": 0.0, "absent": 1.0, "skew": 0.0}},
        },
        {"name": "Logger", "kind": "logger", "health": "ok", "sources": {"EB": {}}},
    ]
}


def lines(shown: Any, width: int = 120) -> list[str]:
    """What people see, without colours."""
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(shown, highlight=False)
    return [line.rstrip() for line in captured.get().splitlines()]


def shown(status: dict[str, Any]) -> list[str]:
    return lines(builder_table(builder_documents(status)[0]))


def test_a_builders_document_joins_what_it_says_and_what_the_frontends_say() -> None:
    (document,) = builder_documents(STATUS)
    assert (document["name"], document["run"], document["waiting_for"]) == ("EB", 42, "Trigger02 (event 1235)")
    first, second = document["sources"]["Trigger01"], document["sources"]["Trigger02"]
    assert (first["frontend"], first["frontend_health"], first["missed"], first["blocked_s"]) == (
        "ebfe01",
        "ok",
        6,
        1.5,
    )
    assert (second["frontend_health"], "missed" in second) == ("gone", False)
    assert (first["received"], type(first["received"]), first["events_per_s"]) == (1200, int, 98.7)


def test_each_source_has_a_row_and_the_oldest_open_event_a_line() -> None:
    found = shown(STATUS)
    assert found[0] == " RUN   EB  run 42  ok"
    rows = {line.split()[0]: line.split()[1:] for line in found if line.startswith("Trigger")}
    first = ["y", "1,200", "99", "56", "7.8", "kB", "-12", "1234", "1", "2", "4", "3", "1.5", "6"]
    second = ["n", "1,200", "99", "56", "7.8", "kB", "0", "1234", "1", "2", "4", "3", "0.0", "gone"]
    assert rows == {"Trigger01": first, "Trigger02": second}
    assert found[-3:-1] == [
        "oldest open event 1235, for 3.2 s, waits for Trigger02 (event 1235)",
        "1,190 events built, 4 of them incomplete; 98 events/s, 1.0 MB/s",
    ]


def test_a_source_that_is_not_waited_for_is_said_to_be_absent() -> None:
    status = copy.deepcopy(STATUS)
    status["components"][1]["health"] = "ok"
    row = next(line for line in shown(status) if line.startswith("Trigger02"))
    assert row.endswith(" absent")


def test_the_table_fits_a_terminal_of_120_columns_at_any_number() -> None:
    status = copy.deepcopy(STATUS)
    builder = status["components"][2]
    builder["sources"]["Trigger01"] = {
        **SAID,
        "received": 12_345_678_901.0,
        "last_serial": 4294967295.0,
        "backlog_events": 123456.0,
        "backlog_bytes": 3.9e6,
        "events_per_s": 123456.0,
        "late": 1234.0,
        "incomplete": 12345.0,
    }
    found = shown(status)
    assert max(map(len, found)) <= 120
    assert not [line for line in found if "…" in line]
    assert next(line for line in found if line.startswith("Trigger01")).split()[2:4] == ["12,345.7", "M"]


def test_a_builder_that_says_little_is_shown_with_what_it_says() -> None:
    status = copy.deepcopy(STATUS)
    builder = status["components"][2]
    builder.update(counters={}, rates={}, waiting_for="", sources={"Trigger01": {"received": 5.0}}, run=None)
    found = shown(status)
    assert next(line for line in found if line.startswith("Trigger01")).split() == ["Trigger01", "5", "1.5", "6"]
    assert found[-2] == "0 events built, 0 of them incomplete; 0 events/s, 0.0 MB/s"


def test_prepare_lists_the_fragments_of_each_builder() -> None:
    row = {
        "source": "Trigger01",
        "frontend": "ebfe01",
        "buffer": "BUF01",
        "event_id": 1,
        "trigger_mask": 255,
        "format": "MIDAS",
        "required": True,
    }
    found = lines(fragments_table({"EB": [row], "EB2": [{**row, "source": "Wave01", "required": False}]}))
    assert [line.split() for line in found[1:]] == [
        ["EB", "Trigger01", "ebfe01", "BUF01", "1", "0x00FF", "MIDAS", "y"],
        ["EB2", "Wave01", "ebfe01", "BUF01", "1", "0x00FF", "MIDAS", "n"],
    ]


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.two_frontends(Rate_Hz=500.0)
    with shared_lab.up() as live:
        yield live


def test_a_running_builder_is_shown_and_prepare_says_what_it_joins(live: Live, within: Callable[[Lab], Here]) -> None:
    here = within(live.lab)
    started = here.done("start")
    assert started.out == "run 1: RUN\n"
    rows = [line.split() for line in started.err.splitlines() if line.startswith("EB ")]
    assert rows == [
        ["EB", "Trigger01", "simfe01", "BUF01", "1", "0xFFFF", "MIDAS", "y"],
        ["EB", "Trigger02", "simfe02", "BUF02", "1", "0xFFFF", "MIDAS", "y"],
    ]
    live.until_events("EB", 100)
    (document,) = here.ask("builder", "status", "eb")
    assert document["sources"]["Trigger01"]["received"] >= 100
    assert document["sources"]["Trigger02"]["frontend"] == "simfe02"
    assert "Trigger02" in here.done("builder", "status").out
    refused = here("builder", "status", "EB9")
    assert (refused.status, refused.err) == (1, "phloem: there is no builder 'EB9'; there is EB\n")
    top = "/Equipment/EB/Statistics/Trigger01"
    until(lambda: here.ask("odb", "get", f"{top}/Built") >= 100, "the builder's statistics in the ODB")
    live.stop()


def test_a_choice_is_set_from_the_shell_by_its_index(live: Live, within: Callable[[Lab], Here]) -> None:
    here = within(live.lab)
    path = "/Equipment/EB/Settings/Fragment Required"
    live.operator.prepare_run().result(10)
    live.operator.release_run().result(10)
    assert here.done("odb", "set", f"{path}[1]", "n").out == "y\nn\n"
    prepared = here.ask("prepare")
    assert [(row["source"], row["required"]) for row in prepared["fragments"]["EB"]] == [
        ("Trigger01", True),
        ("Trigger02", False),
    ]
    assert here.ask("release")["balanced"] is True
    assert here.done("odb", "set", path, "[y, y]").out == "y\ny\n"

"""A builder's Statistics: keys and types, what its heartbeats fill, and what is zeroed when a run is prepared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from phloem.control.builder_statistics import clear_builder_statistics, write_builder_statistics
from phloem.control.database import Database
from phloem.control.odb import Odb
from phloem.protocol.control import ComponentStatus

TOP = "/Equipment/EB/Statistics"
UINT32, DOUBLE, STRING, INT64, UINT64 = 6, 10, 12, 17, 18

OF_BUILDER = [
    ("Events incomplete", UINT64),
    ("Oldest open event", UINT32),
    ("Oldest open s", DOUBLE),
    ("Waiting for", STRING),
]
OF_SOURCE = [
    ("Received", UINT64),
    ("Built", UINT64),
    ("Incomplete", UINT64),
    ("Late", UINT64),
    ("Duplicate", UINT64),
    ("Discarded", UINT64),
    ("Quarantined", UINT64),
    ("Missed", UINT64),
    ("Backlog events", UINT64),
    ("Backlog bytes", UINT64),
    ("Last serial number", UINT64),
    ("Skew", INT64),
    ("Rate", DOUBLE),
    ("Blocked s", DOUBLE),
]

# numbers of a heartbeat: no two alike
SAID = {
    "received": 1.0,
    "built": 2.0,
    "incomplete": 3.0,
    "late": 4.0,
    "duplicate": 5.0,
    "discarded": 6.0,
    "quarantined": 7.0,
    "backlog_events": 9.0,
    "backlog_bytes": 10.0,
    "backlog_percent": 11.0,
    "last_serial": 4294967295.0,
    "skew": -13.0,
    "events_per_s": 14.5,
    "required": 1.0,
    "flagged": 0.0,
}
WRITTEN = {
    "Received": 1,
    "Built": 2,
    "Incomplete": 3,
    "Late": 4,
    "Duplicate": 5,
    "Discarded": 6,
    "Quarantined": 7,
    "Missed": 8,
    "Backlog events": 9,
    "Backlog bytes": 10,
    "Last serial number": 4294967295,
    "Skew": -13,
    "Rate": 14.5,
    "Blocked s": 15.5,
}
SENT = {"Trigger01": {"missed": 8.0, "blocked_s": 15.5, "events": 99.0, "fill_percent": 50.0}}


@pytest.fixture
def odb(tmp_path: Path) -> Iterator[Odb]:
    database = Database(tmp_path / "phloem.db")
    odb = Odb(database)
    clear_builder_statistics(odb, "EB", ["Trigger01", "Trigger02"])
    yield odb
    database.close()


def status(**fields: object) -> ComponentStatus:
    given = {"sources": {"Trigger01": SAID}, **fields}
    return ComponentStatus(**given)  # type: ignore[arg-type]


def test_the_keys_are_there_with_their_types_before_the_run(odb: Odb) -> None:
    assert [(row.name, row.tid) for row in odb.rows(TOP)][:4] == OF_BUILDER
    assert odb.names(TOP)[4:] == ["Trigger01", "Trigger02"]
    for source in ("Trigger01", "Trigger02"):
        assert [(row.name, row.tid) for row in odb.rows(f"{TOP}/{source}")] == OF_SOURCE


def test_heartbeats_of_builder_and_frontend_fill_the_keys_and_leave_no_revisions(odb: Odb) -> None:
    said = status(
        counters={"incomplete": 21, "oldest_open": 22},
        rates={"oldest_open_s": 0.25},
        waiting_for="Trigger02 (event 22)",
    )
    write_builder_statistics(odb, "EB", said, SENT)
    assert odb.get(f"{TOP}/Trigger01") == WRITTEN
    assert set(odb.get(f"{TOP}/Trigger02").values()) == {0}
    own = odb.get(TOP)
    assert {name: own[name] for name, _ in OF_BUILDER} == {
        "Events incomplete": 21,
        "Oldest open event": 22,
        "Oldest open s": 0.25,
        "Waiting for": "Trigger02 (event 22)",
    }
    assert len(odb.history(f"{TOP}/Trigger01/Built")) == 1


def test_what_a_heartbeat_does_not_say_stays(odb: Odb) -> None:
    write_builder_statistics(odb, "EB", status(counters={"oldest_open": 22}), SENT)
    write_builder_statistics(odb, "EB", status(sources={"Trigger01": {"built": 30.0}}), {})
    assert odb.get(f"{TOP}/Trigger01") == {**WRITTEN, "Built": 30}
    assert odb.get(f"{TOP}/Oldest open event") == 22
    write_builder_statistics(odb, "EB", ComponentStatus(), {})
    assert odb.get(f"{TOP}/Trigger01") == {**WRITTEN, "Built": 30}


def test_numbers_and_texts_that_no_key_takes_do_no_harm(odb: Odb) -> None:
    said = status(
        counters={"oldest_open": 2**32 + 5, "incomplete": -1},
        rates={"oldest_open_s": float("nan")},
        waiting_for="é" * 200,
        sources={"Trigger01": {"built": -1.0}, "Unknown": {"built": 1.0}},
    )
    write_builder_statistics(odb, "EB", said, {})
    own = odb.get(TOP)
    assert (own["Oldest open event"], own["Events incomplete"], own["Oldest open s"]) == (5, 0, 0.0)
    assert own["Waiting for"] == "é" * 127
    assert own["Trigger01"]["Built"] == 0
    assert "Unknown" not in own


def test_the_next_run_begins_with_zeros_also_for_who_is_not_in_it(odb: Odb) -> None:
    write_builder_statistics(odb, "EB", status(counters={"incomplete": 21}, waiting_for="x"), SENT)
    clear_builder_statistics(odb, "EB", ["Trigger02", "Trigger03"])
    own = odb.get(TOP)
    assert (own["Events incomplete"], own["Waiting for"]) == (0, "")
    for source in ("Trigger01", "Trigger02", "Trigger03"):
        assert set(own[source].values()) == {0}


def test_watchers_hear_of_measurements_that_changed(odb: Odb) -> None:
    heard: list[tuple[str, object]] = []
    odb.watch(TOP, lambda path, value: heard.append((path, value)))
    odb.measure_below(f"{TOP}/Trigger01", {"Built": 3, "Late": 0, "Nothing": 4})
    assert heard == [(f"{TOP}/Trigger01/Built", 3)]

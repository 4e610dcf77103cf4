"""The whole way, with the demo: frontends, builder, logger, a verified file."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.flow.lab import DEADLINE_S, Lab, until
from tests.flow.reader import Run, banks_of, run_of

EVENTS, PAYLOAD = 100_000, 256
SOURCES = ("Trigger01", "Trigger02", "Trigger03", "Trigger04")


def test_every_fragment_of_the_demo_is_sent_built_written_and_found_in_the_file(lab: Lab) -> None:
    document = lab.ask("demo", "--frontends", "4", "--events", str(EVENTS), "--payload", str(PAYLOAD), "--dir", "d")
    sources, streams = document["account"]["sources"], document["account"]["streams"]
    assert document["balanced"] is True
    assert (document["run"], document["events"]) == (1, EVENTS)
    assert {name: (part["sent"], part["built"], part["lost"]) for name, part in sources.items()} == dict.fromkeys(
        SOURCES, (EVENTS, EVENTS, 0)
    )
    assert {name: (part["sent"], part["written"], part["lost"]) for name, part in streams.items()} == {
        "EB": (EVENTS, EVENTS, 0)
    }
    [file] = document["files"]
    assert document["bytes"] == Path(file).stat().st_size
    run = run_of(file)
    assert run.serials == list(range(EVENTS))
    check_fragments(run)
    check_borders(run)
    assert lab.ask("verify", file)["ok"] is True


def check_fragments(run: Run) -> None:
    """In every event the bank of every frontend, with the payload that was asked for, and nothing else."""
    wanted = [(f"AD{index:02d}", 4, PAYLOAD) for index in (1, 2, 3, 4)]
    for event in run.events:
        assert event.event_id == 1
        found = [(bank.name, bank.tid, len(bank.data)) for bank in banks_of(event)]
        assert found == wanted, f"event {event.serial_number} has {found}"


def check_borders(run: Run) -> None:
    """First the ODB, last the account, and in between the two texts of each source, in this order."""
    assert run.begin.serial_number == run.end.serial_number == 1
    assert run.begin.trigger_mask == run.end.trigger_mask == 0x494D
    began = json.loads(run.begin.text)
    assert began["Runinfo"]["Run number"] == 1
    assert sorted(name for name in began["Equipment"] if not name.endswith("/key")) == ["EB", *SOURCES]
    account = json.loads(run.end.text)["Account"]
    assert account["balanced"] is True
    assert {name: part["built"] for name, part in account["sources"].items()} == dict.fromkeys(SOURCES, EVENTS)
    texts = [message.text for message in run.messages]
    for source in (*SOURCES, "EB"):
        begin, end = (next(t for t in texts if source in t and what in t) for what in ("Beginning run", "Ending run"))
        assert texts.index(begin) < texts.index(end)


def test_a_demo_of_some_seconds_prints_one_document_and_every_event_is_in_the_file(lab: Lab) -> None:
    document = lab.ask("demo", "--frontends", "2", "--seconds", "0.5", "--rate", "500", "--dir", "d")
    run = run_of(document["files"][0])
    assert document["balanced"] is True
    assert run.serials == list(range(document["events"]))
    assert document["events"] > 100
    assert all(part["incomplete"] == 0 for part in document["account"]["sources"].values())


def test_a_second_demo_in_the_same_place_takes_the_next_run_and_obeys_its_own_options(lab: Lab) -> None:
    first = lab.ask("demo", "--frontends", "1", "--events", "10", "--dir", "d")
    second = lab.ask("demo", "--frontends", "2", "--events", "20", "--payload", "1000", "--dir", "d")
    assert (first["run"], second["run"]) == (1, 2)
    assert run_of(first["files"][0]).serials == list(range(10))
    run = run_of(second["files"][0])
    assert run.serials == list(range(20))
    assert [len(bank.data) for bank in banks_of(run.events[0])] == [1000, 1000]


def test_a_demo_that_is_interrupted_twice_ends_its_run_all_the_same(lab: Lab) -> None:
    file = lab.folder / "d" / "data" / "run00001.mid"
    with lab.popen("demo", "--frontends", "2", "--seconds", "60", "--rate", "500", "--dir", "d") as process:
        until(lambda: file.exists() and file.stat().st_size > 100_000, "data in the file")
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 130
    run = run_of(file)
    assert run.serials == list(range(len(run.events)))
    assert json.loads(run.end.text)["Account"]["balanced"] is True
    assert lab.ask("verify", str(file))["ok"] is True


def test_a_demo_for_people_says_where_the_file_is_and_that_it_is_verified(lab: Lab) -> None:
    ran = lab.done("demo", "--frontends", "2", "--events", "10", "--dir", "d")
    assert "run 1 complete: 10 events" in ran.out
    assert "balanced" in ran.out
    assert "run00001.mid: ok" in ran.out

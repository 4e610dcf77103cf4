"""READY: everybody is prepared, and data that arrive count as in RUN; RELEASE and END both close the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.flow.lab import DEADLINE_S, Lab, Live
from tests.flow.reader import Run, run_of

EARLY = 1000


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.two_frontends(Send_in_READY=EARLY, Rate_Hz=2000.0, Payload_bytes=64)
    with shared_lab.up() as live:
        yield live


def prepare(live: Live) -> int:
    return int(live.operator.prepare_run().result(DEADLINE_S)["run"])


def closed_run(live: Live, document: dict[str, Any], status: str) -> Run:
    """The file of a run that ended well: whole, with the account, and nothing lost on the way."""
    assert document["status"] == status
    assert document["balanced"] is True
    assert live.status()["state"] == "STOP"
    [file] = document["files"]
    assert live.lab.ask("verify", file)["ok"] is True
    run = run_of(file)
    assert run.end.serial_number == document["run"]
    assert json.loads(run.end.text)["Account"]["balanced"] is True
    texts = " ".join(message.text for message in run.messages)
    for source in ("Trigger01", "Trigger02"):
        assert {part["sent"] for part in document["account"]["sources"].values()} == {len(run.events)}
        assert source in texts
    assert texts.count("Beginning run") == texts.count("Ending run") == 3
    return run


def test_fragments_sent_in_ready_are_in_the_file_of_the_run(live: Live) -> None:
    number = prepare(live)
    assert live.status()["state"] == "READY"
    live.until_events("EB", EARLY)
    live.operator.begin_run().result(DEADLINE_S)
    live.until_events("EB", EARLY + 100)
    document = live.stop()
    assert document["run"] == number
    run = closed_run(live, document, "complete")
    assert run.serials == list(range(document["events"]))
    assert document["events"] > EARLY


def test_release_closes_the_run_with_what_was_sent_in_ready(live: Live) -> None:
    number = prepare(live)
    document = live.operator.release_run().result(DEADLINE_S)
    assert document["run"] == number
    assert closed_run(live, document, "released").serials == list(range(EARLY))


def test_end_from_ready_does_the_same_as_release(live: Live) -> None:
    number = prepare(live)
    document = live.operator.end_run().result(DEADLINE_S)
    assert document["run"] == number
    assert closed_run(live, document, "released").serials == list(range(EARLY))


def test_a_run_number_is_drawn_at_prepare_and_never_again(live: Live) -> None:
    numbers = []
    for _ in range(3):
        numbers.append(prepare(live))
        live.operator.release_run().result(DEADLINE_S)
    assert numbers == sorted(set(numbers))
    assert numbers[0] > max(run["number"] for run in live.operator.runs(50).result(DEADLINE_S)[3:])
    names = sorted(path.name for path in live.lab.data.glob("run*.mid"))
    assert names == [f"run{number:05d}.mid" for number in range(1, numbers[-1] + 1)]


def test_begin_is_refused_when_a_setting_changed_since_prepare(live: Live) -> None:
    prepare(live)
    live.set("/Equipment/Trigger01/Settings/Payload bytes", 128)
    ran = live.lab.run("begin")
    assert ran.status == 1
    assert "/Equipment/Trigger01/Settings/Payload bytes" in ran.err
    assert live.status()["state"] == "READY"
    assert live.operator.release_run().result(DEADLINE_S)["balanced"] is True

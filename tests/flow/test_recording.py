"""Recorded fragments: a file for each source beside the run's, with what the source sent, unchanged.

What is in a recorded file is judged by the built events: in these runs no fragment has another fate than *built*, so
that each built event holds the banks of one fragment of each source, in name order.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.flow.lab import Lab, Live, until
from tests.flow.reader import Bank, banks_of, run_of
from tests.flow.rings import ring_of

SOURCES = ("Trigger01", "Trigger02")
EVENTS = 300


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.two_frontends(Rate_Hz=1000.0, Payload_bytes=64)
    with shared_lab.up() as live:
        yield live


def record(live: Live, wanted: bool) -> None:
    live.set("/Logger/Record fragments", wanted)


def until_built(live: Live) -> None:
    """Counters of the status may still be those of the run before; the ring's are of this one."""
    with ring_of(live.lab.ring("SYSTEM.EB")) as ring:
        until(lambda: ring.sent >= EVENTS, f"{EVENTS} events built")


def take_run(live: Live) -> dict[str, Any]:
    live.start()
    until_built(live)
    return live.stop()


def names(document: dict[str, Any]) -> list[str]:
    return [Path(file).name for file in document["files"]]


def beside(document: dict[str, Any]) -> set[str]:
    """All files in the data directory that are named after the run."""
    return {path.name for path in Path(document["files"][0]).parent.glob(f"run{document['run']:05d}*")}


def banks_by_serial(path: str) -> dict[int, list[Bank]]:
    return {event.serial_number: banks_of(event) for event in run_of(path).events}


def check_files(live: Live, document: dict[str, Any]) -> None:
    """Each file is proven, and the recorded ones hold every fragment once, in order, as it is in the built event."""
    for file in document["files"]:
        assert live.lab.ask("verify", file)["ok"] is True
    built, *recorded = document["files"]
    assert len(recorded) == len(SOURCES)
    fragments = [banks_by_serial(file) for file in recorded]
    for source, file in zip(SOURCES, recorded, strict=True):
        sent = document["account"]["sources"][source]["sent"]
        assert run_of(file).serials == list(range(sent)), f"{source} sent {sent}"
        stream = document["account"]["streams"][f"{source}/fragments"]
        assert (stream["sent"], stream["written"], stream["lost"]) == (sent, sent, 0)
    for serial, banks in banks_by_serial(built).items():
        own = [bank for bank in banks if bank.name != "MISS"]
        assert own == [bank for part in fragments for bank in part.get(serial, [])]


def test_each_source_has_a_file_with_exactly_what_it_sent(live: Live) -> None:
    record(live, True)
    document = take_run(live)
    run = f"run{document['run']:05d}"
    assert names(document) == [f"{run}.mid", f"{run}.Trigger01.mid", f"{run}.Trigger02.mid"]
    assert beside(document) == {
        f"{run}{part}{end}" for part in ("", ".Trigger01", ".Trigger02") for end in (".mid", ".idx")
    }
    assert document["balanced"] is True
    assert document["account"]["streams"].keys() == {"EB", "Trigger01/fragments", "Trigger02/fragments"}
    assert document["events"] == document["account"]["streams"]["EB"]["written"] >= EVENTS, "nothing is counted twice"
    check_files(live, document)


def test_recorded_files_build_to_the_events_of_the_run(live: Live) -> None:
    record(live, True)
    built, *recorded = take_run(live)["files"]
    copies = [shutil.copy(file, live.lab.folder / f"{name}.mid") for name, file in zip(SOURCES, recorded, strict=True)]
    assert live.lab.ask("build", *map(str, copies), "-o", "again.mid")["balanced"] is True
    again = banks_by_serial(str(live.lab.folder / "again.mid"))
    assert len(again) >= EVENTS
    assert again == banks_by_serial(built)


def test_a_buffer_may_have_another_size_in_the_next_run(live: Live) -> None:
    record(live, False)
    for size in (1 << 20, 1 << 21):
        live.set("/Experiment/Buffer sizes/BUF01", size)
        assert take_run(live)["balanced"] is True
        assert live.lab.ring("BUF01.Trigger01").stat().st_size // size == 1


def test_a_recorded_file_has_borders_and_texts_like_the_run_s_own(live: Live) -> None:
    record(live, True)
    document = take_run(live)
    built, *recorded = (run_of(file) for file in document["files"])
    for source, run in zip(SOURCES, recorded, strict=True):
        assert run.begin.data == built.begin.data, "the same dump of the ODB"
        assert run.end.data == built.end.data
        assert run.begin.serial_number == run.end.serial_number == document["run"]
        assert [message.text for message in run.messages] == [
            f"[{source},INFO] Beginning run",
            f"[{source},INFO] Ending run",
        ]


def test_without_the_setting_or_without_data_there_are_no_such_files(live: Live) -> None:
    record(live, False)
    document = take_run(live)
    run = f"run{document['run']:05d}"
    assert names(document) == [f"{run}.mid"]
    assert beside(document) == {f"{run}.mid", f"{run}.idx"}
    assert document["account"]["streams"].keys() == {"EB"}
    assert document["balanced"] is True
    record(live, True)
    live.operator.prepare_run(write_data=False).result(20.0)
    live.operator.begin_run().result(20.0)
    until_built(live)
    document = live.stop()
    assert document["files"] == []
    assert (document["account"]["streams"].keys(), document["balanced"]) == ({"EB"}, True)
    document = take_run(live)
    assert len(document["files"]) == 3, "and again there are: the rings are made anew with the other readers"
    check_files(live, document)


def test_the_file_of_a_frontend_that_is_killed_holds_all_that_it_had_sent(lab: Lab) -> None:
    lab.two_frontends(Rate_Hz=1000.0, Payload_bytes=64)
    with lab.up() as live:
        record(live, True)
        live.start()
        live.until_events("EB", EVENTS)
        os.kill(live.part("simfe02")["pid"], signal.SIGKILL)
        until(lambda: live.part("simfe02")["health"] == "gone", "the frontend is seen to be gone")
        live.until_events("EB", live.count("EB") + EVENTS)
        document = live.stop()
        assert document["balanced"] is True
        check_files(live, document)
        sent = {source: part["sent"] for source, part in document["account"]["sources"].items()}
        assert sent["Trigger01"] >= sent["Trigger02"] + EVENTS >= 2 * EVENTS
        assert run_of(document["files"][2]).messages[-1].text == "[Trigger02,INFO] Beginning run"

"""What went wrong with MIDAS when these faults were made in it (reference, section 6), and what happens here.

Three more of them have files of their own: that a stop at 1 and 5 kHz loses nothing is in test_stop_at_rate.py, that
BANK and BANK32 may meet in one event in test_recorded_fragments.py, and a killed frontend in all its variants in
test_rejoin.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.flow.faultlog import Rules
from tests.flow.faulty_runs import EXPERIMENT, Finished, begin, ended, finish, stop
from tests.flow.lab import Lab, Live, until
from tests.flow.reader import Event, banks_of, run_of

SIMULATED = "phloem.frontends.simulated:Simulated"
EVENTS = 500
ONE_LOST = {"Burst drop at": 20, "Burst drop": 1}
OTHERS = [n for n in range(EVENTS) if n != 20]

NOBODY_YET = """
[experiment]
name = "lab"

[logger]

[builder.EB]
buffer = "BUF"
"""


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.write(EXPERIMENT.format(logs=shared_lab.folder / "logs"))
    with shared_lab.up() as live:
        yield live


def start(live: Live, code: str = "", **builder: Any) -> int:
    """A run of 500 triggers at 5 kHz, of which the second frontend loses one."""
    if code:
        live.lab.write(code, "mine.py")
        builder["User code"] = "mine.py"
    return begin(live, both={"Events": EVENTS, "Rate Hz": 5000.0}, second=ONE_LOST, builder=builder)


def serials(done: Finished, bank: str = "") -> list[int]:
    """Serial numbers of the events; of those with this bank, if one is named."""
    return [e.serial_number for e in done.events if not bank or bank in [b.name for b in banks_of(e)]]


def first_value(event: Event, bank: str) -> float:
    return next(b for b in banks_of(event) if b.name == bank).values[0]


def test_one_lost_trigger_makes_one_incomplete_event_and_the_run_goes_on(live: Live) -> None:
    done = finish(live, start(live))
    done.check()
    assert serials(done) == list(range(EVENTS)), "MIDAS: the run was stopped after 20"
    assert (serials(done, "ID02"), serials(done, "MISS")) == (OTHERS, [20])
    assert (done.fate("built"), done.fate("incomplete")) == ((EVENTS - 1, EVENTS - 1), (1, 0))


SKIPS = """
from phloem import EB_SKIP, EB_SUCCESS

def eb_user(fragments, event):
    return EB_SKIP if fragments.missing else EB_SUCCESS
"""


def test_user_code_that_skips_the_incomplete_event_loses_no_other(live: Live) -> None:
    done = finish(live, start(live, SKIPS))
    assert done.document["balanced"] is True
    assert serials(done) == serials(done, "ID01") == serials(done, "ID02") == OTHERS, "MIDAS: 20 of 500"
    assert (done.fate("built"), done.fate("discarded")) == ((EVENTS - 1, EVENTS - 1), (1, 0))


def test_an_optional_fragment_is_in_the_events_where_it_came(live: Live) -> None:
    required: dict[str, Any] = {"Fragment Required": [True, False], "Optional wait ms": 5000}
    done = finish(live, start(live, **required))
    assert done.document["balanced"] is True
    assert serials(done) == serials(done, "ID01") == list(range(EVENTS))
    assert serials(done, "ID02") == OTHERS, "MIDAS: in none"
    assert serials(done, "MISS") == []
    assert (done.fate("built"), done.fate("incomplete")) == ((EVENTS, EVENTS - 1), (0, 0))


LOOKS = """
import numpy as np

def eb_user(fragments, event):
    second = fragments["Trigger02"]
    event.bank("SIZE", np.array([0 if second is None else second.data_size], "u4"))
"""
LOOKS_BLINDLY = """
def eb_user(fragments, event):
    assert len(fragments["Trigger01"].bank("AD01")) == len(fragments["Trigger02"].bank("AD02"))
"""


@pytest.mark.parametrize("required", [True, False])
def test_user_code_gets_none_for_a_fragment_that_is_missing(live: Live, required: bool) -> None:
    builder: dict[str, Any] = {"Fragment Required": [True, required], "Optional wait ms": 5000}
    done = finish(live, start(live, LOOKS, **builder))
    size = 8 + (16 + 32) + (16 + 8)  # bank area, waveform of 32 bytes, ID
    assert [first_value(event, "SIZE") for event in done.events] == [0 if n == 20 else size for n in range(EVENTS)]


def test_user_code_that_does_not_expect_it_ends_the_run_and_not_the_builder(live: Live) -> None:
    builder = live.part("EB")["pid"]
    done = ended(live, start(live, LOOKS_BLINDLY))
    assert "eb_user() at event 20: AttributeError: 'NoneType' object has no attribute 'bank'" in done.document["reason"]
    assert done.document["balanced"] is True
    assert serials(done) == list(range(20))
    finish(live, start(live)).check()
    assert live.part("EB")["pid"] == builder, "MIDAS: segmentation fault"


def test_without_a_killed_frontend_building_goes_on_and_it_joins_in_again(lab: Lab) -> None:
    lab.write(EXPERIMENT.format(logs=lab.folder / "logs"))
    with lab.up() as live:
        run = begin(live, both={"Rate Hz": 5000.0})
        live.until_events("EB", 500)
        os.kill(live.part("faulty02")["pid"], signal.SIGKILL)
        until(lambda: live.count("EB", "incomplete") > 1000, "events without it")
        with lab.component("frontend", "phloem.frontends.faulty:Faulty", "-i", "2", "-e", lab.file.name):
            built = live.part("EB")["sources"]["Trigger02"]["built"]
            until(lambda: live.part("EB")["sources"]["Trigger02"]["built"] > built + 1000, "it is built again")
            done = stop(live, run)
    assert serials(done) == list(range(len(done.events)))
    assert len(serials(done, "ID01")) == done.fates["Trigger01"]["sent"], "MIDAS: 1726 of 12722"
    ranges = [(mark.first_serial, mark.last_serial) for mark in done.marks if mark.source == "Trigger02"]
    assert len(ranges) == len(done.marks)
    done.check(Rules(marks={"Trigger02": ranges}))
    assert serials(done, "MISS")[-1] < serials(done, "ID02")[-1]


def test_frontends_that_start_in_the_same_instant_all_take_part_and_of_two_twins_one_is_refused(lab: Lab) -> None:
    lab.write(NOBODY_YET)
    with lab.up() as live, ExitStack() as started:
        twins = [lab.popen("frontend", SIMULATED, "-i", "1", "-e", lab.file.name) for _ in range(2)]
        for index in "234":
            started.enter_context(lab.component("frontend", SIMULATED, "-i", index, "-e", lab.file.name))
        there = {"simfe01", "simfe02", "simfe03", "simfe04"}
        until(lambda: there <= {part["name"] for part in live.status()["components"]}, f"{there} are there")
        until(lambda: any(twin.poll() is not None for twin in twins), "one of the twins has left")
        [refused] = [twin for twin in twins if twin.poll() is not None]
        [other] = [twin for twin in twins if twin is not refused]
        assert refused.returncode == 1
        assert f"the name 'simfe01' is taken by pid {other.pid}" in refused.communicate()[1]
        assert live.start()["sources"] == {"EB": ["Trigger01", "Trigger02", "Trigger03", "Trigger04"]}
        live.until_events("EB", 1000)
        assert live.stop()["balanced"] is True
        other.send_signal(signal.SIGTERM)
        other.communicate()
        assert other.returncode == 0


def test_two_experiments_of_one_name_run_on_one_host_at_the_same_time(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    labs = {64: lab, 128: Lab(folder, lab.shm)}
    for payload, one in labs.items():
        one.two_frontends(Payload_bytes=payload, Rate_Hz=2000.0)
    with labs[64].up() as here, labs[128].up() as there:
        lives = {64: here, 128: there}
        for live in lives.values():
            live.start()
        for live in lives.values():
            live.until_events("EB", 1000)
        documents = {payload: live.stop() for payload, live in lives.items()}
    for payload, document in documents.items():
        assert (document["run"], document["balanced"]) == (1, True)
        assert Path(document["files"][0]).is_relative_to(labs[payload].data)
        events = run_of(document["files"][0]).events
        assert [event.serial_number for event in events] == list(range(len(events)))
        assert {len(bank.data) for event in events for bank in banks_of(event)} == {payload}

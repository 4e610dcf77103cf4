"""Who joins whom in whole runs: several builders, one buffer for all, several equipments of one frontend."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from tests.flow.lab import Lab, Live, until
from tests.flow.reader import banks_of, run_of

EVENTS = 400

# Serial number n is in the bank of event n of each source.
COUNTING = """
import numpy as np
from phloem import EQ_EB, EQ_PERIODIC, EQ_POLLED, Equipment, Frontend

class Counting(Frontend):
    sent = 0

    def begin_of_run(self, run):
        self.sent = 0

    def poll(self):
        return self.sent < self.settings.get("Events", 400)

    def read(self, event):
        event.bank(f"{self.letter}{self.index:03d}", np.array([self.sent], "u4"))
        self.sent += 1

class Trigger(Counting):
    name, letter = "trig", "T"
    equipment = [Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB)]

    def begin_of_run(self, run):
        super().begin_of_run(run)
        self.missed(self.index)

class Wave(Counting):
    name, letter = "wave", "W"
    equipment = [Equipment("Wave%02d", buffer="WAVE%02d", type=EQ_POLLED | EQ_EB)]

class Shared(Counting):
    name, letter = "share", "S"
    equipment = [Equipment("Trigger%02d", buffer="BUFFER", type=EQ_POLLED | EQ_EB)]

class Crate(Counting):
    name = "crate"
    equipment = [
        Equipment("Adc", buffer="BUFA", type=EQ_POLLED | EQ_EB, readout="adc"),
        Equipment("Slow", event_id=9, type=EQ_PERIODIC, period=10, readout="slow"),
        Equipment("Tdc", buffer="BUFT", type=EQ_POLLED | EQ_EB, readout="tdc"),
        Equipment("Scaler", buffer="BUFT", type=EQ_POLLED | EQ_EB, readout="scaler"),
    ]

    def adc(self, event):
        event.bank("ADC0", np.array([self.sent], "u4"))

    def tdc(self, event):
        event.bank("TDC0", np.array([self.sent], "u4"))

    def slow(self, event):
        event.bank("TEMP", np.array([21.5], "f4"))

    def scaler(self, event):  # the last of the three
        event.bank("SCLR", np.array([self.sent], "u4"))
        self.sent += 1
"""

TWO_BUILDERS = """
[experiment]
name = "lab"

[logger]

[builder.EB]
buffer = "BUF"

[builder.EBW]
buffer = "WAVE"
event_id = 2
"""


def frontends(*which: tuple[str, int | None]) -> str:
    lines = []
    for name, index in which:
        lines += ["[[frontend]]", f'code = "counting.py:{name}"', f"index = {index}" if index else ""]
    return "\n".join(lines)


def built(document: dict[str, Any]) -> dict[str, int]:
    return {name: part["built"] for name, part in document["account"]["sources"].items()}


def values(event: Any) -> dict[str, int]:
    """The one number in each bank of an event, in the order of the banks."""
    return {bank.name: struct.unpack("<I", bank.data)[0] for bank in banks_of(event)}


def until_here(live: Live, name: str) -> None:
    """Wait for a component that was started by hand."""
    until(lambda: name in [part["name"] for part in live.status()["components"]], f"{name} is there")


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.write(COUNTING, "counting.py")
    shared_lab.write(TWO_BUILDERS + frontends(("Trigger", 1), ("Trigger", 2), ("Wave", 1), ("Wave", 2), ("Wave", 3)))
    with shared_lab.up() as live:
        yield live


@pytest.fixture(autouse=True)
def _closed(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves no open run to the next one."""
    yield
    if "live" in request.fixturenames:
        request.getfixturevalue("live").close_run()


def test_two_builders_join_the_sources_of_their_own_prefixes_in_one_run(live: Live) -> None:
    started = live.start()
    assert started["sources"] == {"EB": ["Trigger01", "Trigger02"], "EBW": ["Wave01", "Wave02", "Wave03"]}
    live.until_events("EB", EVENTS)
    live.until_events("EBW", EVENTS)
    document = live.stop()
    assert document["balanced"] is True
    assert built(document) == dict.fromkeys(("Trigger01", "Trigger02", "Wave01", "Wave02", "Wave03"), EVENTS)
    events = run_of(document["files"][0]).events
    for event_id, names in ((1, ("T001", "T002")), (2, ("W001", "W002", "W003"))):
        own = [event for event in events if event.event_id == event_id]
        assert [event.serial_number for event in own] == list(range(EVENTS))
        assert [values(event) for event in own] == [dict.fromkeys(names, n) for n in range(EVENTS)]
    assert len(events) == 2 * EVENTS
    assert live.lab.ask("verify", document["files"][0])["ok"] is True


def test_what_the_hardware_lost_stands_beside_what_the_builder_counts(live: Live) -> None:
    live.start()
    live.until_events("EB", EVENTS)
    top = "/Equipment/EB/Statistics/Trigger02"
    until(lambda: live.operator.odb_get(f"{top}/Missed").result(10) == 2, "what Trigger02 missed")
    until(lambda: live.operator.odb_get(f"{top}/Built").result(10) == EVENTS, "what was built of it")
    (document,) = live.lab.ask("builder", "status", "EB")
    assert {source: part["missed"] for source, part in document["sources"].items()} == {"Trigger01": 1, "Trigger02": 2}
    assert live.stop()["balanced"] is True


def test_each_builder_keeps_settings_of_its_own(live: Live) -> None:
    live.start()
    live.stop()
    for builder, names in (("EB", ["Trigger01", "Trigger02"]), ("EBW", ["Wave01", "Wave02", "Wave03"])):
        settings = live.operator.odb_get(f"/Equipment/{builder}/Settings").result(10)
        assert settings["Fragment Names"] == list(settings["Fragments"]) == names
        assert settings["Number of Fragment"] == len(names)


def test_a_source_that_two_builders_claim_refuses_the_prepare_by_name(live: Live) -> None:
    with live.lab.component("builder", "-b", "BUF0", "--equipment", "EB9", "-e", "lab.toml"):
        until_here(live, "EB9")
        ran = live.lab.run("start")
    assert ran.status == 1
    assert re.search(r"Trigger01 .*which EB \(-b BUF\) and EB9 \(-b BUF0\) both claim", ran.err)
    assert live.status()["state"] == "STOP"


def test_a_source_of_another_format_refuses_the_prepare_by_name(live: Live) -> None:
    path = "/Equipment/Wave02/Common/Format"
    live.set(path, "FIXED")
    ran = live.lab.run("start")
    live.set(path, "MIDAS")
    assert ran.status == 1
    assert "equipment Wave02 has format FIXED, but its builder EBW builds MIDAS" in ran.err


def test_no_required_source_refuses_the_prepare_and_draws_no_number(live: Live) -> None:
    live.start()
    number = live.stop()["run"]
    path = "/Equipment/EB/Settings/Fragment Required"
    live.set(path, [False, False])
    ran = live.lab.run("prepare")
    live.set(path, [True, True])
    assert ran.status == 1
    assert "no source of builder EB is required" in ran.err
    assert f"'{path}[0]' to y for Trigger01" in ran.err
    assert live.start()["run"] == number + 1


def test_a_choice_survives_that_its_source_leaves_and_comes_back(live: Live) -> None:
    top = "/Equipment/EB/Settings"
    with live.lab.component("frontend", "counting.py:Trigger", "-i", "0", "-e", "lab.toml"):
        until_here(live, "trig00")
        live.start()
        live.stop()
        assert live.operator.odb_get(f"{top}/Fragment Names").result(10) == ["Trigger00", "Trigger01", "Trigger02"]
        live.set(f"{top}/Fragment Required[0]", "n")
    until(lambda: live.part("trig00")["health"] == "gone", "trig00 has left")
    without = live.start()
    live.stop()
    assert without["sources"]["EB"] == ["Trigger01", "Trigger02"]
    note = "equipment Trigger00 is enabled, but its frontend trig00 is not running: it is no source of this run"
    assert note in without["notes"]
    settings = live.operator.odb_get(top).result(10)
    assert (settings["Fragment Names"], settings["Fragment Required"], settings["Number of Fragment"]) == (
        ["Trigger01", "Trigger02", "Trigger00"],
        [True, True, False],
        2,
    )
    with live.lab.component("frontend", "counting.py:Trigger", "-i", "0", "-e", "lab.toml"):
        until_here(live, "trig00")
        back = live.start()
        live.stop()
    assert [(row["source"], row["required"]) for row in back["fragments"]["EB"]] == [
        ("Trigger00", False),
        ("Trigger01", True),
        ("Trigger02", True),
    ]


def one_builder(lab: Lab, *which: tuple[str, int | None]) -> None:
    lab.write(COUNTING, "counting.py")
    lab.write('[experiment]\nname = "lab"\n[logger]\n[builder.EB]\nbuffer = "BUF"\n' + frontends(*which))


def test_frontends_that_share_one_buffer_are_matched_by_serial_number(lab: Lab) -> None:
    one_builder(lab, ("Shared", 1), ("Shared", 2), ("Shared", 3))
    with lab.up() as live:
        started = live.start()
        rows = [(row["source"], row["frontend"], row["buffer"]) for row in started["fragments"]["EB"]]
        assert rows == [(f"Trigger{n:02d}", f"share{n:02d}", "BUFFER") for n in (1, 2, 3)]
        live.until_events("EB", EVENTS)
        document = live.stop()
    assert document["balanced"] is True
    assert built(document) == dict.fromkeys(("Trigger01", "Trigger02", "Trigger03"), EVENTS)
    run = run_of(document["files"][0])
    assert run.serials == list(range(EVENTS))
    assert [values(e) for e in run.events] == [dict.fromkeys(("S001", "S002", "S003"), n) for n in range(EVENTS)]


def test_several_equipments_of_one_frontend_are_joined_and_a_periodic_one_goes_straight_to_the_file(lab: Lab) -> None:
    one_builder(lab, ("Crate", None))
    with lab.up() as live:
        started = live.start()
        assert started["sources"] == {"EB": ["Adc", "Scaler", "Tdc"]}
        assert sorted(started["streams"]) == ["EB", "Slow"]
        live.until_events("EB", EVENTS)
        until(lambda: live.sent("crate", "Slow") >= 3, "three readings")
        document = live.stop()
    assert document["balanced"] is True
    assert built(document) == dict.fromkeys(("Adc", "Scaler", "Tdc"), EVENTS)
    events = run_of(document["files"][0]).events
    joined = [event for event in events if event.event_id == 1]
    assert [values(e) for e in joined] == [{"ADC0": n, "SCLR": n, "TDC0": n} for n in range(EVENTS)]
    assert all(list(values(e)) == ["ADC0", "SCLR", "TDC0"] for e in joined), "in the order of their sources' names"
    slow = [event for event in events if event.event_id == 9]
    assert len(slow) == document["account"]["streams"]["Slow"]["sent"] >= 3
    assert {banks_of(event)[0].name for event in slow} == {"TEMP"}

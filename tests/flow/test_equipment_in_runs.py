"""Equipment as MIDAS has it: limits, super-events, Read on, slow control, several equipments in one frontend."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.flow.lab import DEADLINE_S, Lab, Live, until
from tests.flow.reader import Event, banks_of, run_of

from phloem.model.errors import TransitionError

FRONTENDS = """
import numpy as np
from phloem import (
    EQ_EB, EQ_MULTITHREAD, EQ_PERIODIC, EQ_POLLED, EQ_SLOW, RO_BOR, RO_EOR, RO_ODB, RO_RUNNING, RO_STOPPED,
    Equipment, Frontend,
)

class Limited(Frontend):
    name = "limited"
    equipment = [Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB, event_limit=1000)]
    reads = 0

    def poll(self):
        return True

    def read(self, event):
        event.bank(f"AD{self.index:02d}", np.array([self.reads], "u4"))
        self.reads += 1

class LimitedBatches(Limited):
    name = "batches"

    def read_batch(self, batch):
        batch.bank(f"AD{self.index:02d}", np.arange(7, dtype="u4") + self.reads)
        self.reads += 7

class LimitedPair(Limited):
    name = "pair"
    equipment = [
        Equipment("Left", buffer="BUF01", type=EQ_MULTITHREAD | EQ_EB, event_limit=30, readout="left"),
        Equipment("Right", event_id=2, type=EQ_POLLED, readout="right"),
    ]

    def left(self, event):
        event.bank("LEFT", np.array([1], "u1"))

    def right(self, event):
        event.bank("RGHT", np.array([2], "u1"))

class Super(Frontend):
    name = "super"
    equipment = [Equipment("Super", type=EQ_POLLED, num_subevents=4, period=60_000)]
    triggers = 10
    reads = 0

    def begin_of_run(self, run_number):
        self.reads = 0

    def poll(self):
        return self.reads < self.triggers

    def read(self, event):
        event.bank("WAVE", np.array([event.subevent, self.reads], "u2"))
        self.reads += 1

class SuperFragments(Super):
    name = "fragments"
    equipment = [Equipment("Super%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB, num_subevents=4, period=60_000)]

    def read(self, event):
        event.bank(f"WA{self.index:02d}", np.array([event.subevent, self.reads], "u2"))
        self.reads += 1

class Slowly(Super):
    name = "slowly"
    equipment = [Equipment("Super", type=EQ_POLLED, num_subevents=4, period=20)]

class Broken(Super):
    name = "broken"

    def read(self, event):
        super().read(event)
        if self.reads == 7:
            raise OSError(5, "bus error")

class Scalers(Frontend):
    name = "scalers"
    equipment = [
        Equipment("Trigger", type=EQ_POLLED),
        Equipment("Scaler", event_id=2, type=EQ_PERIODIC, period=20, readout="scaler"),
        Equipment("Pedestal", event_id=3, type=EQ_PERIODIC, period=1, read_on=RO_BOR | RO_EOR | RO_ODB,
                  readout="pedestal"),
    ]
    reads = 0
    ended = False

    def poll(self):
        return self.reads < 50 or (self.ended and self.reads < 60)

    def end_of_run(self, run_number):
        self.ended = True

    def read(self, event):
        event.bank("ADC0", np.array([self.reads], "u2"))
        self.reads += 1

    def scaler(self, event):
        event.bank("SCLR", np.array([1, 2, 3], "i4"))

    def pedestal(self, event):
        event.bank("PEDE", np.array([self.reads], "f8"))

class NoPedestalAtBegin(Scalers):
    name = "nobegin"

    def pedestal(self, event):
        raise OSError(5, "bus error")

class NoPedestalAtEnd(Scalers):
    name = "noend"

    def pedestal(self, event):
        if self.ended:
            raise OSError(5, "bus error")
        super().pedestal(event)

class Sender(Frontend):
    name = "sender"
    equipment = [Equipment("Sent", type=EQ_POLLED, event_limit=5)]
    refused = ""

    def prepare(self, run_number):
        self.send({"DATA": np.array([1, 2], "i2")})
        self.send_batch({"DATA": np.array([[3, 4], [5, 6]], "i2")})

    def begin_of_run(self, run_number):
        self.send_batch({"DATA": np.array([[7, 8]] * 10, "i2")})
        self.send({"DATA": np.array([0, 0], "i2")})

class Slow(Frontend):
    name = "slow"
    equipment = [
        Equipment("HV", event_id=10, type=EQ_SLOW, period=20, readout="voltages"),
        Equipment("Hidden", event_id=11, type=EQ_PERIODIC, period=20, read_on=RO_RUNNING | RO_STOPPED, readout="only"),
        Equipment("Weather", event_id=12, type=EQ_PERIODIC, period=20, read_on=RO_STOPPED | RO_ODB, readout="outside"),
    ]
    default_settings = {"Demand": 100.0}
    demand = 0.0
    ticks = 0

    def init(self):
        self.demand = self.settings["Demand"]

    def settings_changed(self, key, value):
        self.demand = value

    def voltages(self, event):
        self.ticks += 1
        if self.demand < 0:
            raise OSError(5, "no power")
        event.bank("VOLT", np.array([self.demand, self.demand / 2], "f4"))
        event.bank("TICK", np.array([self.ticks], "u4"))
        event.bank("NAME", "crate one")
        event.bank("ON__", np.array([True, False]))

    def only(self, event):
        event.bank("HIDD", np.array([1], "u1"))

    def outside(self, event):
        event.bank("TEMP", np.array([21.5], "f8"))
"""

EXPERIMENT = """
[experiment]
name = "lab"

[logger]
"""

BUILDER = """
[builder.EB]
buffer = "BUF"
"""

FRONTEND = """
[[frontend]]
code = "lab.py:{cls}"
index = {index}
"""


@contextmanager
def running(lab: Lab, *classes: str, builder: bool = False) -> Iterator[Live]:
    """An experiment with these frontends."""
    lab.write(FRONTENDS, "lab.py")
    frontends = [FRONTEND.format(cls=cls, index=number) for number, cls in enumerate(classes, 1)]
    lab.write(EXPERIMENT + BUILDER * builder + "".join(frontends))
    with lab.up() as live:
        yield live


def ended_run(live: Live, number: int = 1) -> dict[str, Any]:
    """The document of a run that ends by itself."""
    until(lambda: live.operator.runs(50).result(DEADLINE_S)[-number]["status"] != "open", f"the end of run {number}")
    document: dict[str, Any] = live.operator.runs(50).result(DEADLINE_S)[-number]["result"]
    assert document["run"] == number
    assert document["balanced"] is True
    return document


def events_by_id(document: dict[str, Any]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    for event in run_of(document["files"][0]).events:
        found.setdefault(event.event_id, []).append(event)
    return found


def variables(live: Live, equipment: str) -> dict[str, Any]:
    found: dict[str, Any] = live.operator.odb_get(f"/Equipment/{equipment}/Variables").result(DEADLINE_S)
    return found


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize("cls", ["Limited", "LimitedBatches"])
def test_a_run_ends_with_exactly_the_events_of_the_limit(lab: Lab, cls: str) -> None:
    with running(lab, cls, cls, builder=True) as live:
        for number in (1, 2):
            live.start()
            document = ended_run(live, number)
            assert "Trigger0" in document["reason"]
            assert document["reason"].endswith("has its 1000 events")
            sources = document["account"]["sources"]
            assert {name: (part["sent"], part["built"]) for name, part in sources.items()} == {
                "Trigger01": (1000, 1000),
                "Trigger02": (1000, 1000),
            }
            assert run_of(document["files"][0]).serials == list(range(1000))
        said = [text for text in live.messages() if " ends: " in text]
        assert len(said) == 2
        assert said[0].startswith("[run control] Run 1 ends: ")


def test_the_limit_of_one_equipment_does_not_stop_the_reading_of_another_before_the_end(lab: Lab) -> None:
    with running(lab, "LimitedPair", builder=True) as live:
        live.start()
        document = ended_run(live)
    assert document["reason"] == "pair01: Left has its 30 events"
    assert document["account"]["sources"]["Left"]["built"] == 30
    streams = document["account"]["streams"]
    assert streams["EB"]["written"] == 30
    assert streams["Right"]["sent"] == streams["Right"]["written"] > 30
    events = run_of(document["files"][0]).events
    assert [banks_of(e)[0].name for e in events].count("LEFT") == 30


def test_what_is_sent_without_being_asked_counts_too_and_more_than_the_limit_is_refused_by_name(lab: Lab) -> None:
    with running(lab, "Sender") as live:
        live.operator.prepare_run().result(DEADLINE_S)
        until(lambda: "DATA" in variables(live, "Sent"), "a copy of what was sent in READY")
        assert variables(live, "Sent") == {"DATA": [1, 2]}
        with pytest.raises(TransitionError, match="Sent has its 5 events of this run"):
            live.operator.begin_run().result(DEADLINE_S)
        [run] = live.operator.runs(50).result(DEADLINE_S)
        assert (run["status"], run["result"]["balanced"]) == ("failed", True)
    values = [banks_of(event)[0].values for event in run_of(run["files"][0]).events]
    assert values == [(1, 2), (3, 4), (5, 6), (7, 8), (7, 8)]


def test_a_run_ends_when_its_duration_is_over(lab: Lab) -> None:
    with running(lab, "Scalers") as live:
        live.set("/Logger/Run duration", 0.5)
        live.start()
        document = ended_run(live)
        assert document["reason"] == "run control: its duration of 0.5 s is over"
        assert 0.5 <= document["seconds"] < 5
        live.set("/Logger/Run duration", 0)
        live.start()
        assert live.stop()["reason"] == ""


# ------------------------------------------------------------------ super-events


def subevents(event: Event) -> list[tuple[float, ...]]:
    banks = banks_of(event)
    assert {bank.name for bank in banks} == {"WAVE"}
    return [bank.values for bank in banks]


def test_several_triggers_are_one_event_and_the_last_one_is_sent_at_the_end(lab: Lab) -> None:
    with running(lab, "Super") as live:
        live.start()
        until(lambda: live.sent("super01", "Super") == 2, "two super-events")
        document = live.stop()
    assert document["balanced"] is True
    assert document["account"]["streams"]["Super"]["sent"] == 3, "a super-event counts once"
    run = run_of(document["files"][0])
    assert [subevents(event) for event in run.events] == [
        [(0, 0), (1, 1), (2, 2), (3, 3)],
        [(0, 4), (1, 5), (2, 6), (3, 7)],
        [(0, 8), (1, 9)],
    ]
    assert run.serials == [0, 4, 8], "the number of its first trigger"


def test_superevents_of_two_sources_are_joined_by_their_first_triggers(lab: Lab) -> None:
    with running(lab, "SuperFragments", "SuperFragments", builder=True) as live:
        live.start()
        live.until_events("EB", 2)
        document = live.stop()
    assert {name: part["built"] for name, part in document["account"]["sources"].items()} == {
        "Super01": 3,
        "Super02": 3,
    }
    run = run_of(document["files"][0])
    assert run.serials == [0, 4, 8]
    names = [[bank.name for bank in banks_of(event)] for event in run.events]
    assert names == [["WA01"] * n + ["WA02"] * n for n in (4, 4, 2)]


def test_a_superevent_does_not_wait_longer_than_the_period(lab: Lab) -> None:
    with running(lab, "Slowly") as live:
        live.start()
        until(lambda: live.sent("slowly01", "Super") == 3, "the incomplete super-event")
        document = live.stop()
    assert [len(subevents(event)) for event in run_of(document["files"][0]).events] == [4, 4, 2]


def test_triggers_before_one_that_cannot_be_read_are_not_lost(lab: Lab) -> None:
    with running(lab, "Broken") as live:
        live.start()
        until(lambda: any("bus error" in text for text in live.messages()), "the error")
        document = live.stop()
    assert document["balanced"] is True
    assert [len(subevents(event)) for event in run_of(document["files"][0]).events] == [4, 2]


# ------------------------------------------------------------------ read on


def test_equipment_is_read_at_begin_and_end_of_run_and_every_period(lab: Lab) -> None:
    with running(lab, "Scalers") as live:
        live.start()
        until(lambda: live.sent("scalers01", "Scaler") >= 5, "five periods")
        until(lambda: live.sent("scalers01", "Trigger") == 50, "all triggers")
        document = live.stop()
        assert document["balanced"] is True
        until(lambda: variables(live, "Trigger").get("ADC0") is not None, "a copy of a trigger")
    found = events_by_id(document)
    assert [banks_of(event)[0].values for event in found[1]] == [(n,) for n in range(60)], "ten are from the drain"
    assert [banks_of(event)[0].values for event in found[2]] == [(1, 2, 3)] * len(found[2])
    assert [banks_of(event)[0].values for event in found[3]] == [(0.0,), (60.0,)], "before the first, after the last"
    assert [event.serial_number for event in found[3]] == [0, 1]
    for name, number in (("Trigger", 1), ("Scaler", 2), ("Pedestal", 3)):
        assert document["account"]["streams"][name]["written"] == len(found[number])


def test_an_error_at_begin_of_run_fails_the_begin_by_name(lab: Lab) -> None:
    with running(lab, "NoPedestalAtBegin") as live:
        with pytest.raises(TransitionError) as caught:
            live.start()
        text = str(caught.value)
        assert "nobegin01" in text
        assert "pedestal() of Pedestal at begin of run raised OSError: [Errno 5] bus error" in text
        assert live.status()["state"] == "STOP"


def test_an_error_at_end_of_run_does_not_hold_up_the_end(lab: Lab) -> None:
    with running(lab, "NoPedestalAtEnd") as live:
        live.start()
        document = live.stop()
        assert (document["status"], document["balanced"], document["problems"]) == ("complete", True, [])
        assert any("pedestal() of Pedestal at end of run" in text for text in live.messages())
    assert len(events_by_id(document)[3]) == 1


# ------------------------------------------------------------------ slow control, and the copy in the ODB


def test_slow_control_is_read_while_stopped_and_its_values_are_in_the_odb(lab: Lab) -> None:
    with running(lab, "Slow") as live:
        assert any("/Equipment/Hidden/Common" in text and "STOPPED without ODB" in text for text in live.messages())
        until(lambda: "ON__" in variables(live, "HV") and "TEMP" in variables(live, "Weather"), "the first copies")
        first = variables(live, "HV")
        assert {name: first[name] for name in ("VOLT", "NAME", "ON__")} == {
            "VOLT": [100.0, 50.0],
            "NAME": "crate one",
            "ON__": [True, False],
        }
        rows = {row.name: (row.tid, row.num_values) for row in live.operator.odb_ls("/Equipment/HV/Variables").result()}
        assert rows == {"VOLT": (9, 2), "TICK": (6, 1), "NAME": (12, 1), "ON__": (8, 2)}
        assert variables(live, "Weather") == {"TEMP": [21.5]}
        assert variables(live, "Hidden") == {}
        live.set("/Equipment/HV/Settings/Demand", 60.0)
        until(lambda: variables(live, "HV")["VOLT"] == [60.0, 30.0], "the new demand")
        assert live.status()["state"] == "STOP"


def test_slow_control_sends_events_in_run_only(lab: Lab) -> None:
    with running(lab, "Slow") as live:
        until(lambda: "TICK" in variables(live, "HV"), "the first copy")
        live.start()
        until(lambda: live.sent("slow01", "HV") >= 3 and live.sent("slow01", "Hidden") >= 3, "three events")
        document = live.stop()
        assert document["balanced"] is True
        ticks = variables(live, "HV")["TICK"]
        until(lambda: variables(live, "HV")["TICK"] > ticks, "reading after the run")
    found = events_by_id(document)
    assert sorted(found) == [10, 11], "Weather has not the bit RUNNING"
    ticks = [struct.unpack("<I", banks_of(event)[1].data)[0] for event in found[10]]
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))


def test_hardware_that_fails_while_stopped_is_reported_once_and_asked_again(lab: Lab) -> None:
    with running(lab, "Slow") as live:
        live.set("/Equipment/HV/Settings/Demand", -1.0)
        until(lambda: any("no power" in text for text in live.messages()), "the error")
        live.set("/Equipment/HV/Settings/Demand", 5.0)
        until(lambda: variables(live, "HV").get("VOLT") == [5.0, 2.5], "the recovery")
        assert len([text for text in live.messages() if "no power" in text]) == 1


def test_a_period_that_is_set_while_stopped_counts_at_once(lab: Lab) -> None:
    with running(lab, "Slow") as live:
        until(lambda: "TICK" in variables(live, "HV"), "the first copy")
        live.set("/Equipment/HV/Common/Read on", 1)
        live.set("/Equipment/HV/Settings/Demand", 7.0)
        live.set("/Equipment/HV/Common/Read on", 257)
        until(lambda: variables(live, "HV")["VOLT"] == [7.0, 3.5], "copies again")

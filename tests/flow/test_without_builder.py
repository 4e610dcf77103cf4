"""Frontends straight to the logger, and frontends with more than one equipment."""

from __future__ import annotations

import struct

from tests.flow.lab import Lab, until
from tests.flow.reader import banks_of, run_of

STRAIGHT = """
import numpy as np
from phloem import EQ_PERIODIC, EQ_POLLED, Equipment, Frontend

class Straight(Frontend):
    name = "straight"
    equipment = [
        Equipment("Scaler", event_id=2, type=EQ_PERIODIC, period=20, readout="read_scaler"),
        Equipment("Trigger", event_id=1, type=EQ_POLLED),
    ]
    sent = 0

    def poll(self):
        return self.sent < 300

    def read(self, event):
        event.bank("ADC0", np.array([self.sent], "f8"))
        self.sent += 1

    def read_scaler(self, event):
        event.bank("SCLR", np.arange(3, dtype="i4"))
        event.bank("TEXT", "two words")
"""

TWO_EQUIPMENTS = """
import numpy as np
from phloem import EQ_EB, EQ_POLLED, Equipment, Frontend

class Double(Frontend):
    name = "double"
    equipment = [
        Equipment("Left", buffer="BUFL", type=EQ_POLLED | EQ_EB, readout="left"),
        Equipment("Right", buffer="BUFR", type=EQ_POLLED | EQ_EB, readout="right"),
    ]
    sent = 0

    def poll(self):
        return self.sent < 500

    def left(self, event):
        event.bank("LEFT", np.array([self.sent], "u4"))

    def right(self, event):
        event.bank("RGHT", np.array([self.sent], "u4"))
        self.sent += 1
"""

LOGGER_ONLY = """
[experiment]
name = "lab"

[logger]

[[frontend]]
code = "straight.py"
"""

ONE_FRONTEND = """
[experiment]
name = "lab"

[logger]

[builder.EB]
buffer = "BUF"
event_id = 7
trigger_mask = 3

[[frontend]]
code = "double.py"
"""


def test_an_experiment_without_a_builder_writes_its_equipment_straight_to_the_file(lab: Lab) -> None:
    lab.write(STRAIGHT, "straight.py")
    lab.write(LOGGER_ONLY)
    with lab.up() as live:
        live.start()
        until(lambda: live.sent("straight", "Scaler") >= 5, "five scaler events")
        until(lambda: live.sent("straight", "Trigger") == 300, "all triggers")
        document = live.stop()
    assert document["balanced"] is True
    assert document["account"]["sources"] == {}
    streams = document["account"]["streams"]
    assert sorted(streams) == ["Scaler", "Trigger"]
    events = run_of(document["files"][0]).events
    by_id = {number: [event for event in events if event.event_id == number] for number in (1, 2)}
    assert len(by_id[1]) + len(by_id[2]) == len(events) == document["events"]
    for number, name in ((1, "Trigger"), (2, "Scaler")):
        assert [event.serial_number for event in by_id[number]] == list(range(streams[name]["sent"]))
        assert streams[name]["written"] == streams[name]["sent"]
    assert [banks_of(event)[0].values for event in by_id[1]] == [(float(n),) for n in range(300)]
    scaler, text = banks_of(by_id[2][0])
    assert (scaler.name, scaler.tid, scaler.values) == ("SCLR", 7, (0, 1, 2))
    assert (text.name, text.tid, text.data) == ("TEXT", 12, b"two words\0")
    assert lab.ask("verify", document["files"][0])["ok"] is True


def test_two_equipments_of_one_frontend_are_two_sources_of_an_event(lab: Lab) -> None:
    lab.write(TWO_EQUIPMENTS, "double.py")
    lab.write(ONE_FRONTEND)
    with lab.up() as live:
        live.start()
        live.until_events("EB", 500)
        document = live.stop()
    assert document["balanced"] is True
    assert {name: part["built"] for name, part in document["account"]["sources"].items()} == {"Left": 500, "Right": 500}
    run = run_of(document["files"][0])
    assert run.serials == list(range(500))
    for event in run.events:
        assert (event.event_id, event.trigger_mask) == (7, 3), "the builder's own, as its equipment says"
        word = struct.pack("<I", event.serial_number)
        assert [(bank.name, bank.data) for bank in banks_of(event)] == [("LEFT", word), ("RGHT", word)]

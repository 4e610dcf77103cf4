"""Stopping a run in full flow loses nothing (MIDAS loses 287 to 389 built events at 1 to 5 kHz; reference, 6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.flow.lab import Lab, Live
from tests.flow.reader import banks_of, run_of

STOPS = 10
UNEVEN = """
import numpy as np
from phloem import EQ_EB, EQ_POLLED, Equipment, Frontend

class Uneven(Frontend):
    \"\"\"No common trigger: each sends as fast as it can, until it is told to end.\"\"\"

    name = "uneven"
    equipment = [Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB)]

    def poll(self):
        return True

    def read(self, event):
        event.bank(f"AD{self.index:02d}", np.full(8, self.run.number, "u4"))
"""


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.two_frontends(Payload_bytes=64, Rate_Hz=1000.0)
    with shared_lab.up() as live:
        yield live


def check_nothing_lost(document: dict[str, Any]) -> int:
    """Sent = built + incomplete for each source, and each event is in this run's file once, in order."""
    assert document["balanced"] is True, document
    sources = document["account"]["sources"].values()
    assert all(part["sent"] == part["built"] + part["incomplete"] for part in sources)
    stream = document["account"]["streams"]["EB"]
    assert stream["sent"] == stream["written"] == document["events"]
    assert document["events"] == max(part["sent"] for part in sources)
    [file] = document["files"]
    run = run_of(file)
    assert run.serials == list(range(document["events"]))
    assert run.begin.serial_number == run.end.serial_number == document["run"]
    Path(file).unlink()
    return len(run.events)


@pytest.mark.parametrize("rate_hz", [1000.0, 5000.0])
def test_a_stop_at_this_rate_loses_nothing(live: Live, rate_hz: float) -> None:
    for index in (1, 2):
        live.set(f"/Equipment/Trigger{index:02d}/Settings/Rate Hz", rate_hz)
    for stop in range(STOPS):
        live.start()
        live.until_events("EB", int(rate_hz * 0.02 * (stop + 1)))
        document = live.stop()
        written = check_nothing_lost(document)
        assert written >= rate_hz * 0.02
        sources = document["account"]["sources"].values()
        assert all(part["incomplete"] == 0 for part in sources), "one trigger fires both"


def test_a_stop_at_full_speed_loses_nothing(live: Live) -> None:
    for index in (1, 2):
        live.set(f"/Equipment/Trigger{index:02d}/Settings/Rate Hz", 0.0)
        live.set(f"/Equipment/Trigger{index:02d}/Settings/Payload bytes", 4096)
    for _ in range(STOPS):
        live.start()
        live.until_events("EB", 1000)
        check_nothing_lost(live.stop())


def test_a_stop_right_after_the_start_loses_nothing(live: Live) -> None:
    for _ in range(STOPS):
        live.start()
        check_nothing_lost(live.stop())


def test_frontends_without_a_common_trigger_end_unevenly_and_leak_nothing_into_the_next_run(lab: Lab) -> None:
    lab.write(UNEVEN, "uneven.py")
    lab.two_frontends("uneven.py:Uneven")
    with lab.up() as live:
        for _ in range(3):
            live.start()
            live.until_events("EB", 2000)
            document = live.stop()
            events = run_of(document["files"][0]).events
            foreign = {value for event in events for bank in banks_of(event) if bank.tid == 6 for value in bank.values}
            assert foreign == {document["run"]}
            check_nothing_lost(document)

"""What the settings of a builder do in a run: policies, patience, times, counters that restart, headers, limits.

Drops, duplicates, disorder and garbage, and silence as such, are in test_faulty.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.flow.faultlog import Rules
from tests.flow.faulty_runs import EXPERIMENT, Finished, begin, ended, finish
from tests.flow.lab import Lab, Live, until
from tests.flow.reader import Bank, Event, banks_of, run_of

EVENTS = 10_000
UINT32, STRING = 6, 12
Triggers = tuple[int | None, int | None]


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.write(EXPERIMENT.format(logs=shared_lab.folder / "logs"))
    with shared_lab.up() as live:
        yield live


def start(live: Live, **of: dict[str, Any]) -> int:
    return begin(live, **{**of, "both": {"Events": EVENTS, **of.get("both", {})}})


def take(live: Live, **of: dict[str, Any]) -> Finished:
    """A run from its first to its last event."""
    done = finish(live, start(live, **of))
    assert done.document["balanced"] is True, done.document
    return done


def bank(event: Event, name: str) -> Bank | None:
    return next((bank for bank in banks_of(event) if bank.name == name), None)


def text(event: Event, name: str) -> str:
    """Of a STRING bank; empty if there is none."""
    found = bank(event, name)
    return "" if found is None else found.data.rstrip(b"\0").decode().replace("\0", ", ")


def triggers(event: Event) -> Triggers:
    """The true trigger of each source's fragment."""
    first, second = (bank(event, name) for name in ("ID01", "ID02"))
    return (int(first.values[1]) if first else None, int(second.values[1]) if second else None)


def told(live: Live, run: int, words: str) -> str:
    """The one message of the builder in this run with these words."""
    lines = live.messages()
    begun = max(at for at, line in enumerate(lines) if f"EB builds run {run} " in line)
    found = [line for line in lines[begun:] if line.startswith("[EB]") and words in line]
    assert len(found) == 1, lines[begun:]
    return found[0]


# ---------------------------------------------------------------------- On incomplete


def test_one_source_discards_what_it_is_missing_in_and_the_other_does_not(live: Live) -> None:
    done = take(
        live,
        first={"Burst drop at": 1000, "Burst drop": 100},
        second={"Burst drop at": 3000, "Burst drop": 200},
        builder={"Fragments/Trigger02/On incomplete": "discard"},
    )
    assert done.fate("built") == (EVENTS - 300, EVENTS - 300)
    assert done.fate("incomplete") == (0, 100), "without Trigger01 events are built"
    assert done.fate("discarded") == (200, 0), "without Trigger02 they are not"
    assert [event.serial_number for event in done.events] == [n for n in range(EVENTS) if not 3000 <= n < 3200]
    assert {event.serial_number for event in done.events if text(event, "MISS")} == set(range(1000, 1100))


@pytest.mark.parametrize("key", ["On incomplete", "Fragments/Trigger02/On incomplete"])
def test_stop_ends_the_run_by_itself_and_the_rest_is_discarded(live: Live, key: str) -> None:
    own = key.startswith("Fragments")
    run = start(
        live,
        first={"Burst drop at": 1000 if own else 0, "Burst drop": 100 if own else 0},
        second={"Burst drop at": 5000, "Burst drop": 1},
        builder={key: "stop"},
    )
    done = ended(live, run)
    why = "event 5000 is not complete, and On incomplete is stop"
    assert why in done.document["reason"]
    assert told(live, run, why)
    assert done.document["balanced"] is True
    assert [event.serial_number for event in done.events] == list(range(5000))
    assert done.fate("incomplete") == (0, 100 if own else 0)
    for fates in done.fates.values():
        assert fates["discarded"] == fates["sent"] - fates["built"] - fates["incomplete"]


# ---------------------------------------------------------------------- patience


def test_a_source_may_have_a_timeout_of_its_own(live: Live) -> None:
    done = take(
        live,
        both={"Rate Hz": 5000.0},
        first={"Freeze at": 2000, "Freeze s": 0.6},
        second={"Freeze at": 4000, "Freeze s": 0.8},
        builder={"Fragments/Trigger02/Timeout ms": 300},
    )
    assert {(mark.source, mark.cause) for mark in done.marks} == {("Trigger02", "silence")}
    ranges = [(mark.first_serial, mark.last_serial) for mark in done.marks]
    assert ranges[0][0] == 4000
    done.check(Rules(marks={"Trigger02": ranges}))
    assert done.fates["Trigger01"]["late"] == 0 < done.fates["Trigger02"]["late"]


@pytest.mark.parametrize("wait_ms", [0, 400])
def test_an_optional_source_that_fires_now_and_then_costs_no_timeout(live: Live, wait_ms: int) -> None:
    began_s = time.monotonic()
    run = start(
        live,
        both={"Rate Hz": 2000.0, "Events": 3000},
        second={"Drop rate": 0.98},
        builder={"Fragment Required": [True, False], "Optional wait ms": wait_ms},
    )
    live.until_events("EB", 2900)
    assert time.monotonic() - began_s < 8, "and not 10 s for each of some 60 gaps"
    done = finish(live, run)
    present = {event.serial_number for event in done.events if bank(event, "ID02")}
    sent = set(range(3000)) - {fault.serial for fault in done.logs[1].faults}
    assert [event.serial_number for event in done.events] == list(range(3000))
    assert not any(text(event, "MISS") for event in done.events)
    assert done.fate("built") == (3000, len(present))
    assert done.fate("incomplete") == (0, 0)
    assert (done.fates["Trigger02"]["late"], present <= sent) == (len(sent - present), True)
    assert {mark.cause for mark in done.marks} <= {"optional"}
    if wait_ms == 400:
        assert present == sent, "it was never silent for so long"


# ---------------------------------------------------------------------- matched by time


def test_matched_by_time_serial_numbers_do_not_matter_and_the_offset_does(live: Live) -> None:
    done = take(
        live,
        both={"Time": True},
        first={"Burst drop at": 500, "Burst drop": 50},
        second={"First serial": 77_000},
        builder={"Match": "time", "Fragments/Trigger02/Time offset ns": 40_300, "Keep headers": True},
    )
    # Trigger n is at n * 10 us, and that of Trigger02 now at 40.3 us more: n + 4 of the one meets n of the other.
    expected: list[Triggers] = [(n, None) for n in range(4)]
    expected += [(None if 500 <= n < 550 else n, n - 4) for n in range(4, EVENTS)]
    expected += [(None, n) for n in range(EVENTS - 4, EVENTS)]
    assert [triggers(event) for event in done.events] == expected
    assert [event.serial_number for event in done.events] == list(range(EVENTS + 4))
    assert done.fate("built") == (EVENTS - 54, EVENTS - 54)
    assert done.fate("incomplete") == (4, 54)
    check_headers(done, {0: 0, 1: 77_000})


def check_headers(done: Finished, first_serials: dict[int, int]) -> None:
    """FRAG has six words for each fragment: its place, event id, trigger mask, serial number, time, bytes of data."""
    size = 8 + (16 + 32) + (16 + 8)  # bank area, waveform of 32 bytes, ID; and TIME below
    for event in done.events:
        found = bank(event, "FRAG")
        assert found is not None
        assert found.tid == UINT32
        rows = [found.values[at : at + 6] for at in range(0, len(found.values), 6)]
        present = [(place, trigger) for place, trigger in enumerate(triggers(event)) if trigger is not None]
        assert [row[:4] for row in rows] == [(p, 1, 0xFFFF, first_serials[p] + trigger) for p, trigger in present]
        assert {row[5] for row in rows} == {size + 16 + 8}
        assert event.time_stamp == rows[0][4]
        assert all(abs(row[4] - time.time()) < 60 for row in rows)


def test_times_farther_apart_than_the_window_are_events_of_their_own(live: Live) -> None:
    done = take(
        live,
        both={"Time": True, "Events": 1000},
        builder={"Match": "time", "Fragments/Trigger02/Time offset ns": 3000, "Window ns": 2999},
    )
    assert done.fate("incomplete") == (1000, 1000)
    alone: list[Triggers] = [pair for n in range(1000) for pair in ((n, None), (None, n))]
    assert [triggers(event) for event in done.events] == alone
    done = take(
        live,
        both={"Time": True, "Events": 1000},
        builder={"Match": "time", "Fragments/Trigger02/Time offset ns": 3000, "Window ns": 3000},
    )
    assert done.fate("built") == (1000, 1000)


def test_disorder_within_reorder_ns_costs_nothing_where_times_are_matched(live: Live) -> None:
    done = take(
        live,
        both={"Time": True, "Reorder rate": 1e-2, "Reorder distance": 4},
        builder={"Match": "time", "Reorder ns": 40_000},
    )
    assert min(len(log.faults) for log in done.logs) > 100
    assert done.fate("built") == (EVENTS, EVENTS)
    assert [triggers(event) for event in done.events] == [(n, n) for n in range(EVENTS)]


# ---------------------------------------------------------------------- Time check

SHIFTED = {"Shift at": 7000}


def test_a_shifted_counter_is_named_and_its_events_say_so(live: Live) -> None:
    run = start(live, both={"Time": True}, second=SHIFTED, builder={"Time check": "continue"})
    done = finish(live, run)
    assert told(live, run, "Trigger02 shifted by +1 since event 7000")
    expected: list[Triggers] = [(n, n) for n in range(7000)]
    expected += [(n, n + 1) for n in range(7000, EVENTS - 1)]
    both = [event for event in done.events if None not in triggers(event)]
    assert [triggers(event) for event in both] == expected
    assert [event.serial_number for event in both if text(event, "SHFT")] == list(range(7000, EVENTS - 1))
    assert {text(event, "SHFT") for event in both} == {"", "Trigger02 +1"}


def test_a_shifted_counter_is_repaired_so_that_each_event_is_of_one_trigger(live: Live) -> None:
    run = start(live, both={"Time": True}, second=SHIFTED, builder={"Time check": "repair"})
    done = finish(live, run)
    assert told(live, run, "Trigger02 shifted by +1 since event 7001"), "in 7000 nothing of it is left"
    assert done.document["balanced"] is True
    assert [event.serial_number for event in done.events] == list(range(EVENTS))
    expected: list[Triggers] = [(n, n) for n in range(EVENTS)]
    expected[7000] = (7000, None)
    assert [triggers(event) for event in done.events] == expected
    assert {text(event, "SHFT") for event in done.events[:7000]} == {""}
    assert {text(event, "SHFT") for event in done.events[7001:]} == {"Trigger02 +1"}


def test_a_shifted_counter_ends_the_run_where_it_is_told_to(live: Live) -> None:
    run = start(live, both={"Time": True}, second=SHIFTED, builder={"Time check": "stop"})
    done = ended(live, run)
    why = "times disagree at event 7000, and Time check is stop"
    assert why in done.document["reason"]
    assert told(live, run, why)
    assert done.document["balanced"] is True
    assert [triggers(event) for event in done.events] == [(n, n) for n in range(7000)]
    assert all(fates["discarded"] == fates["sent"] - 7000 for fates in done.fates.values())


# ---------------------------------------------------------------------- counters that restart


@pytest.mark.parametrize(("reset_at", "late"), [(2000, EVENTS - 2002), (6000, EVENTS - 6000)])
def test_a_counter_that_restarts_is_flagged_and_nothing_behind_it_is_built(
    live: Live, reset_at: int, late: int
) -> None:
    run = start(live, second={"Reset at": reset_at})
    until(lambda: live.part("EB")["sources"]["Trigger02"]["flagged"] == 1, "the flag")
    done = finish(live, run)
    assert "Trigger02 numbers its fragments anew" in told(live, run, "Trigger02 numbers")
    assert done.document["balanced"] is True
    first, second = done.fates.values()
    # Within the window, the two numbers in a row that show it are duplicates.
    assert (second["built"], second["late"], second["duplicate"]) == (reset_at, late, EVENTS - reset_at - late)
    assert (first["built"], first["incomplete"]) == (reset_at, EVENTS - reset_at)
    expected: list[Triggers] = [(n, n if n < reset_at else None) for n in range(EVENTS)]
    assert [triggers(event) for event in done.events] == expected


@pytest.mark.parametrize("reset_at", [2000, 6000])
def test_a_counter_that_restarts_is_paired_again_by_time(live: Live, reset_at: int) -> None:
    done = take(live, both={"Time": True}, second={"Reset at": reset_at}, builder={"Time check": "repair"})
    assert done.fate("built") == (EVENTS, EVENTS)
    assert [triggers(event) for event in done.events] == [(n, n) for n in range(EVENTS)]


DECLARES = """
import numpy as np
from phloem import EQ_EB, EQ_POLLED, Equipment, Frontend

class Declares(Frontend):
    name = "fe"
    equipment = [Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB)]

    def prepare(self, run_number):
        self.trigger = 0

    def poll(self):
        return self.trigger < 3000

    def read(self, event):
        counts_from = 0
        if self.index == 2 and self.trigger >= 1000:
            counts_from = 1000
            if self.trigger == 1000:
                self.counter_restarted(0, 1000)
        event.serial_number = self.trigger - counts_from
        event.bank(f"ID{self.index:02d}", np.array([self.index, self.trigger], "u4"))
        self.trigger += 1
"""


def test_a_counter_whose_restart_is_declared_is_read_accordingly(lab: Lab) -> None:
    lab.write(DECLARES, "declares.py")
    lab.two_frontends("declares.py:Declares")
    with lab.up() as live:
        run = int(live.start()["run"])
        live.until_events("EB", 3000)
        assert live.part("EB")["sources"]["Trigger02"]["flagged"] == 0
        assert told(live, run, "Trigger02 says that its counter starts again: 0 is event 1000 from here on")
        document = live.stop()
    assert document["balanced"] is True
    assert [part["built"] for part in document["account"]["sources"].values()] == [3000, 3000]
    events = [event for event in run_events(document) if bank(event, "ID01")]
    assert [(event.serial_number, *triggers(event)) for event in events] == [(n, n, n) for n in range(3000)]


def run_events(document: dict[str, Any]) -> list[Event]:
    return run_of(document["files"][0]).events


# ---------------------------------------------------------------------- Event limit


def test_the_builders_event_limit_ends_the_run_by_itself(live: Live) -> None:
    live.set("/Equipment/EB/Common/Event limit", 4000.0)
    try:
        run = begin(live, both={"Rate Hz": 20_000.0})
        done = ended(live, run)
    finally:
        live.set("/Equipment/EB/Common/Event limit", 0.0)
    assert "it has its 4000 events" in done.document["reason"]
    assert len(done.events) >= 4000
    done.check()

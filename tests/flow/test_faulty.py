"""Faults made on purpose: the account equals what the fault logs say, and each event has what it must have."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from tests.flow.faultlog import Rules
from tests.flow.faulty_runs import AS_THEY_STAND, EVENTS, EXPERIMENT, begin, finish, stop
from tests.flow.lab import Lab, Live
from tests.flow.reader import banks_of, run_of

from phloem.model.errors import TransitionError

SIMULATED = "phloem.frontends.simulated:Simulated"


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.write(EXPERIMENT.format(logs=shared_lab.folder / "logs"))
    with shared_lab.up() as live:
        yield live


def test_without_faults_it_sends_what_the_simulated_frontend_sends(live: Live, lab: Lab) -> None:
    run = begin(live)
    done = finish(live, run)
    done.check()
    assert done.fate("built") == (EVENTS, EVENTS)
    assert [log.faults for log in done.logs] == [[], []]
    lab.two_frontends(SIMULATED, Payload_bytes=32, Events=EVENTS)
    with lab.up() as simulated:
        simulated.start()
        simulated.until_events("EB", EVENTS)
        events = run_of(simulated.stop()["files"][0]).events
    assert [event.serial_number for event in events] == [event.serial_number for event in done.events]
    for ours, theirs in zip(done.events, events, strict=True):
        assert [bank for bank in banks_of(ours) if bank.name[:2] == "AD"] == banks_of(theirs)


def test_drops_and_duplicates_are_in_the_account_one_by_one(live: Live) -> None:
    faults = {"Drop rate": 1e-3, "Duplicate rate": 1e-3, "Duplicate distance": 20}
    done = finish(live, begin(live, both=faults))
    done.check()
    for log, fates in zip(done.logs, done.fates.values(), strict=True):
        drops = sum(fault.what == "drop" for fault in log.faults)
        duplicates = sum(fault.what == "duplicate" for fault in log.faults)
        assert 5 < drops < 50
        assert 5 < duplicates < 50
        assert (fates["sent"], fates["duplicate"]) == (EVENTS - drops + duplicates, duplicates)


def test_a_duplicate_beyond_the_window_is_late(live: Live) -> None:
    faults = {"Duplicate rate": 1e-2, "Duplicate distance": 100}
    done = finish(live, begin(live, first=faults, builder={"Duplicate window": 50}))
    done.check(Rules(duplicate_window=50))
    assert all(done.fates["Trigger01"][fate] > 0 for fate in ("late", "duplicate"))
    assert done.fate("built") == (EVENTS, EVENTS)


def test_incomplete_events_are_discarded_if_the_builder_is_told_so(live: Live) -> None:
    done = finish(live, begin(live, both={"Drop rate": 1e-3}, builder={"On incomplete": "discard"}))
    done.check(Rules(on_incomplete="discard"))
    assert len(done.events) == done.fate("built")[0] < EVENTS
    assert done.fate("incomplete") == (0, 0)


def test_garbage_is_quarantined_and_costs_no_other_fragment(live: Live) -> None:
    done = finish(live, begin(live, first={"Garbage rate": 2e-3}))
    done.check()
    garbage = sum(fault.what == "garbage" for fault in done.logs[0].faults)
    assert 10 < garbage < 100
    assert done.fate("quarantined") == (garbage, 0)
    assert done.fate("incomplete") == (0, garbage)


@pytest.mark.parametrize(("reorder", "distance"), [(8, 8), (8, 20), (0, 3)])
def test_what_is_behind_by_more_than_the_setting_is_late_and_all_else_is_built(
    live: Live, reorder: int, distance: int
) -> None:
    faults = {"Reorder rate": 1e-2, "Reorder distance": distance}
    done = finish(live, begin(live, both=faults, builder={"Reorder": reorder}))
    done.check(Rules(reorder=reorder))
    for log, fates in zip(done.logs, done.fates.values(), strict=True):
        too_far = sum(fault.what == "reorder" and fault.by > reorder for fault in log.faults)
        assert 0.9 * too_far <= fates["late"] <= too_far, "fewer if those before it were moved back as well"
        assert (fates["late"] > 0) is (distance > reorder)


def test_a_burst_of_lost_events_ends_where_it_ends(live: Live) -> None:
    done = finish(live, begin(live, second={"Burst drop at": 5000, "Burst drop": 3000}))
    done.check()
    assert done.fate("incomplete") == (3000, 0)
    alone = [event.serial_number for event in done.events if "ID02" not in [bank.name for bank in banks_of(event)]]
    assert alone == list(range(5000, 8000))


def test_serial_numbers_wrap_within_all_faults_at_once(live: Live) -> None:
    faults = {"Drop rate": 1e-3, "Duplicate rate": 1e-3, "Reorder rate": 1e-3, "Garbage rate": 1e-3}
    settings = {**faults, "Reorder distance": 12, "First serial": 2**32 - 5000}
    done = finish(live, begin(live, both=settings, builder={"Reorder": 8}))
    done.check(Rules(reorder=8))
    assert {2**32 - 1, 0} <= {event.serial_number for event in done.events}


def test_a_shifted_counter_mixes_triggers_and_only_the_true_time_shows_it(live: Live) -> None:
    done = finish(live, begin(live, both={"Time": True}, second={"Shift at": 7000}))
    assert done.document["balanced"] is True
    assert done.fates == done.verdict(AS_THEY_STAND).account()
    assert done.fate("built") == (EVENTS - 1, EVENTS - 1)
    for event in done.events[:-1]:
        banks = banks_of(event)
        times = [bank.values[0] for bank in banks if bank.name == "TIME"]
        shift = event.serial_number >= 7000
        assert times == [10_000 * event.serial_number, 10_000 * (event.serial_number + shift)]
    with pytest.raises(AssertionError, match="event 7000 mixes triggers"):
        done.verdict(AS_THEY_STAND).check_events(done.events)


FREEZE = {"Events": 8000, "Rate Hz": 5000.0, "Freeze at": 4000}


def test_a_source_that_freezes_for_less_than_the_timeout_is_waited_for(live: Live) -> None:
    done = finish(live, begin(live, both={**FREEZE, "Drop rate": 1e-3}, second={"Freeze s": 0.6}))
    done.check()
    assert [fault.by for fault in done.logs[1].faults if fault.what == "freeze"] == [600]


def test_what_a_source_sends_after_its_events_were_closed_without_it_is_late(live: Live) -> None:
    settings = {**FREEZE, "Events": 16_000, "Drop rate": 1e-3, "Duplicate rate": 1e-3}
    done = finish(live, begin(live, both=settings, second={"Freeze s": 1.2}, builder={"Timeout ms": 400}))
    assert {(mark.source, mark.cause) for mark in done.marks} == {("Trigger02", "silence")}
    ranges = [(mark.first_serial, mark.last_serial) for mark in done.marks]
    assert ranges[0][0] == 4000
    done.check(Rules(marks={"Trigger02": ranges}))
    late = done.fates["Trigger02"]["late"]
    assert 1000 < late < 12_000, "at 5 kHz, most of 1.2 s"
    assert done.fates["Trigger02"]["built"] > 4000, "also behind the freeze"


def test_a_run_that_is_ended_in_full_flow_ends_where_each_source_was(live: Live) -> None:
    faults = {"Drop rate": 1e-3, "Duplicate rate": 1e-3, "Reorder rate": 1e-3, "Reorder distance": 8}
    settings = {**faults, "Events": 0, "Rate Hz": 20_000.0}
    run = begin(live, both=settings, builder={"Reorder": 8})
    live.until_events("EB", 10_000)
    done = stop(live, run)
    done.check(Rules(reorder=8))
    assert not any(log.done for log in done.logs)


def test_a_source_that_is_killed_ends_where_its_ring_says(lab: Lab) -> None:
    lab.write(EXPERIMENT.format(logs=lab.folder / "logs").replace("4294967295", "4294960000"))
    with lab.up() as live:
        rates = {"Drop rate": 1e-3, "Duplicate rate": 1e-3, "Garbage rate": 1e-3, "First serial": 4294960000}
        run = begin(live, both={**rates, "Events": 0, "Rate Hz": 20_000.0})
        live.until_events("EB", 5000)
        os.kill(live.part("faulty02")["pid"], signal.SIGKILL)
        built = live.count("EB")
        live.until_events("EB", built + 20_000)
        done = stop(live, run)
    ranges = [(mark.first_serial, mark.last_serial) for mark in done.marks if mark.source == "Trigger02"]
    assert len(done.marks) == len(ranges) > 0
    done.check(Rules(marks={"Trigger02": ranges}))
    assert done.fates["Trigger01"]["incomplete"] > 10_000


def test_settings_that_cannot_be_refuse_the_run_by_name(live: Live) -> None:
    with pytest.raises(TransitionError, match="none may be below 0, nor their sum above 1"):
        begin(live, first={"Drop rate": 2.0})
    finish(live, begin(live)).check()


def test_bench_measures_with_faults(lab: Lab) -> None:
    found = lab.ask("bench", "evb", "--seconds", "0.5", "--drop", "0.01", "--duplicate", "0.02")
    assert found["balanced"] is True
    assert found["lost"] == found["late"] == 0
    assert 0.01 < found["duplicate"] / (2 * found["events"]) < 0.03
    assert found["incomplete"] / (2 * found["events"]) > 0.005
    ran = lab.run("bench", "evb", "--drop", "0.01", "--per-event")
    assert ran.status != 0
    assert "leave out --per-event" in ran.err

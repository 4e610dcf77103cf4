"""When which equipment is read: times are passed in, what is due is written out."""

from __future__ import annotations

import pytest

from phloem.dataflow.schedule import Schedule, Superevent, has_no_effect, is_polled
from phloem.model.event import Equipment
from phloem.protocol.state import State

POLLED, PERIODIC, MULTITHREAD, SLOW, FRAGMENTED = 2, 1, 8, 16, 64
RUNNING, STOPPED, PAUSED, BOR, EOR, ODB = 1, 2, 4, 8, 16, 256


def due(schedule: Schedule, state: State, now_s: float) -> list[tuple[str, bool]]:
    return [(d.equipment.name, d.sent) for d in schedule.due(state, now_s)]


@pytest.mark.parametrize(
    ("kind", "read_on", "in_run", "in_stop"),
    [
        (PERIODIC, RUNNING, True, None),
        (PERIODIC, RUNNING | ODB, True, None),
        (PERIODIC, RUNNING | STOPPED | ODB, True, False),
        (PERIODIC, STOPPED | ODB, None, False),
        (PERIODIC, STOPPED, None, None),
        (PERIODIC, BOR | EOR, None, None),
        (SLOW, RUNNING | ODB, True, False),
        (SLOW, ODB, False, False),
        (SLOW, 0, False, False),
        (POLLED, RUNNING | STOPPED | ODB, None, None),
        (MULTITHREAD, RUNNING, None, None),
    ],
)
def test_the_bits_say_in_which_state_time_makes_it_due_and_whether_it_is_sent(
    kind: int, read_on: int, in_run: bool | None, in_stop: bool | None
) -> None:
    schedule = Schedule([Equipment("E", type=kind, read_on=read_on, period=100)])
    schedule.restart(0.0)
    for state, sent in ((State.RUN, in_run), (State.READY, in_stop), (State.STOP, in_stop)):
        schedule.restart(0.0)
        assert due(schedule, state, 0.0) == ([] if sent is None else [("E", sent)])
        assert (schedule.until_next_s(state, 0.0) < 1.0) == (sent is not None)


def test_periods_are_counted_from_when_they_should_have_been_over() -> None:
    schedule = Schedule([Equipment("E", type=PERIODIC, period=100)])
    schedule.restart(10.0)
    assert due(schedule, State.RUN, 10.0) == [("E", True)]
    assert due(schedule, State.RUN, 10.09) == []
    assert schedule.until_next_s(State.RUN, 10.09) == pytest.approx(0.01)
    assert due(schedule, State.RUN, 10.13) == [("E", True)]
    assert schedule.until_next_s(State.RUN, 10.13) == pytest.approx(0.07)


def test_after_a_long_pause_it_is_read_once_and_not_for_each_period_that_was_missed() -> None:
    schedule = Schedule([Equipment("E", type=PERIODIC, period=100)])
    schedule.restart(0.0)
    assert due(schedule, State.RUN, 0.0)
    assert due(schedule, State.RUN, 60.0)
    assert due(schedule, State.RUN, 60.0), "the one that is due now"
    assert not due(schedule, State.RUN, 60.05)


def test_each_equipment_has_its_own_period() -> None:
    schedule = Schedule([Equipment("A", type=PERIODIC, period=250), Equipment("B", type=PERIODIC, period=375)])
    schedule.restart(0.0)
    found = {ms: [name for name, _ in due(schedule, State.RUN, ms / 1e3)] for ms in range(0, 751, 125)}
    assert found == {0: ["A", "B"], 125: [], 250: ["A"], 375: ["B"], 500: ["A"], 625: [], 750: ["A", "B"]}


@pytest.mark.parametrize("fields", [{"period": 0}, {"enabled": False}])
def test_without_a_period_or_disabled_it_is_never_due(fields: dict[str, int]) -> None:
    schedule = Schedule([Equipment("E", type=PERIODIC, **fields)])  # type: ignore[arg-type]
    schedule.restart(0.0)
    assert due(schedule, State.RUN, 1e6) == []
    assert schedule.until_next_s(State.RUN, 0.0) == float("inf")


def test_polled_equipment_needs_the_bit_running() -> None:
    assert is_polled(Equipment("E", type=POLLED, read_on=RUNNING))
    assert is_polled(Equipment("E", type=MULTITHREAD | 128, read_on=RUNNING | ODB))
    assert not is_polled(Equipment("E", type=POLLED, read_on=BOR | EOR))
    assert not is_polled(Equipment("E", type=SLOW, read_on=RUNNING))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": POLLED, "read_on": RUNNING | ODB}, []),
        ({"type": PERIODIC, "read_on": RUNNING | STOPPED | BOR | EOR | ODB}, []),
        ({"type": PERIODIC, "read_on": 127 | ODB}, ["PAUSED, PAUSE, RESUME"]),
        ({"type": POLLED, "read_on": RUNNING | STOPPED | ODB}, ["polled equipment is read in RUN only"]),
        ({"type": PERIODIC, "read_on": STOPPED}, ["STOPPED without ODB"]),
        ({"type": SLOW, "read_on": RUNNING | STOPPED}, []),
        ({"type": SLOW, "event_limit": 10.0}, ["Event limit"]),
        ({"type": POLLED, "event_limit": 10.0, "num_subevents": 10}, []),
        ({"type": PERIODIC, "num_subevents": 10}, ["Num subevents"]),
        ({"type": POLLED | FRAGMENTED}, ["FRAGMENTED"]),
        ({"type": POLLED, "log_history": 1}, ["Log history"]),
    ],
)
def test_what_has_no_effect_is_said(fields: dict[str, int], words: list[str]) -> None:
    said = list(has_no_effect(Equipment("E", **fields)))  # type: ignore[arg-type]
    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said, strict=True))


def test_num_subevents_have_no_effect_on_batches() -> None:
    assert len(list(has_no_effect(Equipment("E", num_subevents=10), batches=True))) == 1


def test_a_superevent_is_whole_when_it_has_its_triggers_or_its_time_is_over() -> None:
    counter = Superevent(3, 0.5)
    assert not counter.whole(1e6), "nothing is in it"
    counter.add(10.0)
    counter.add(10.3)
    assert not counter.whole(10.4)
    assert counter.whole(10.5), "half a second after its first trigger"
    counter.add(10.4)
    assert counter.whole(10.4)
    assert counter.triggers == 3

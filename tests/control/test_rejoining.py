"""A frontend that comes back in mid-run, as run control sees it: who is asked for what, and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.control.fakes import PATIENCE_S, FakeComponent, Hall, until

from phloem.model.event import Equipment
from phloem.protocol.control import Registered, TransitionRequest
from phloem.protocol.state import State, Transition


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with Hall(tmp_path) as opened:
        yield opened


def asked(component: FakeComponent, transition: Transition) -> TransitionRequest:
    """Its next request, which must be for that transition."""
    request = component.asked.get(timeout=PATIENCE_S)
    assert request.transition is transition
    return request


def is_killed(hall: Hall, name: str) -> None:
    hall.components[name].kill()
    hall.wait_for_health(name, "gone")


def texts(hall: Hall) -> list[str]:
    return [message["text"] for message in hall.operator.messages(200).result(PATIENCE_S)]


def says(hall: Hall, text: str) -> None:
    """Wait for a message of exactly these words."""
    until(lambda: text in texts(hall), f"the message {text!r}")


def is_running(*components: FakeComponent) -> None:
    """From now on they register as what they are: in run 1."""
    for component in components:
        fields = {name: getattr(component.register, name) for name in component.register.__struct_fields__}
        component.register = type(component.register)(**fields | {"state": State.RUN, "run": 1})


def test_in_run_it_is_prepared_and_begun_as_the_run_was(hall: Hall) -> None:
    hall.logger()
    hall.builder(2)
    hall.frontend(1)
    first = hall.frontend(2, settings={"Trigger02": {"Threshold": 12, "Gain": 1.0}})
    hall.operator.start_run(comment="long").result(PATIENCE_S)
    was_prepared, was_begun = asked(first, Transition.PREPARE), asked(first, Transition.BEGIN)
    is_killed(hall, "ebfe02")
    hall.operator.odb_set("/Equipment/Trigger02/Settings/Threshold", 99).result(PATIENCE_S)
    second = hall.frontend(2, incarnation="second")
    assert isinstance(second.first, Registered)
    prepare, begin = asked(second, Transition.PREPARE), asked(second, Transition.BEGIN)
    for request in (prepare, begin):
        assert (request.why, request.begun, request.run) == ("rejoin", True, was_prepared.run)
        assert request.settings == {"Trigger02": {"Threshold": 12, "Gain": 1.0}}
        assert request.time_s == was_begun.time_s
    assert prepare.plan == was_prepared.plan
    assert prepare.id not in (was_prepared.id, begin.id)
    says(
        hall,
        "ebfe02 is back in run 1 with the settings of that run; "
        "the ODB has another /Equipment/Trigger02/Settings/Threshold now",
    )
    assert hall.operator.status().result(PATIENCE_S)["waiting_for"] == []
    document = hall.operator.end_run().result(PATIENCE_S)
    assert (document["balanced"], document["problems"]) == (True, [])
    assert hall.components["ebfe01"].requests[-1].transition is Transition.END
    assert [request.transition for request in hall.components["ebfe01"].requests] == ["PREPARE", "BEGIN", "END"]


def test_in_ready_it_is_prepared_only_and_begins_with_the_others(hall: Hall) -> None:
    hall.all()
    hall.operator.prepare_run().result(PATIENCE_S)
    is_killed(hall, "ebfe02")
    second = hall.frontend(2, incarnation="second")
    prepare = asked(second, Transition.PREPARE)
    assert (prepare.why, prepare.begun) == ("rejoin", False)
    says(hall, "ebfe02 is back in run 1")
    assert second.asked.empty()
    assert hall.operator.begin_run().result(PATIENCE_S)["state"] == "RUN"
    begin = asked(second, Transition.BEGIN)
    assert (begin.id, begin.why) == ("1.BEGIN", "")
    assert hall.operator.end_run().result(PATIENCE_S)["balanced"] is True


def test_it_may_come_back_twice(hall: Hall) -> None:
    hall.all()
    hall.operator.start_run().result(PATIENCE_S)
    is_killed(hall, "ebfe02")
    second = hall.frontend(2, incarnation="second")
    asked(second, Transition.PREPARE)
    asked(second, Transition.BEGIN)
    second.kill()
    hall.wait_for_health("ebfe02", "gone")
    third = hall.frontend(2, incarnation="third")
    asked(third, Transition.PREPARE)
    asked(third, Transition.BEGIN)
    assert hall.operator.end_run().result(PATIENCE_S)["balanced"] is True


def test_it_waits_until_the_transition_that_is_under_way_is_done(hall: Hall) -> None:
    hall.all()
    slow = hall.components["ebfe01"]
    slow.silent = {Transition.BEGIN}
    hall.operator.prepare_run().result(PATIENCE_S)
    asked(slow, Transition.PREPARE)
    call = hall.operator.begin_run()
    request = asked(slow, Transition.BEGIN)
    until(lambda: hall.operator.status().result(PATIENCE_S)["waiting_for"] == ["ebfe01"], "ebfe02's answer")
    is_killed(hall, "ebfe02")
    second = hall.frontend(2, incarnation="second")
    assert second.asked.empty()
    slow.answer_now(request)
    assert call.result(PATIENCE_S)["state"] == "RUN"
    assert asked(second, Transition.PREPARE).begun is True
    assert asked(second, Transition.BEGIN).why == "rejoin"
    assert hall.operator.end_run().result(PATIENCE_S)["balanced"] is True


def test_end_works_while_it_is_coming_back(hall: Hall) -> None:
    hall.all()
    hall.operator.start_run().result(PATIENCE_S)
    is_killed(hall, "ebfe02")
    second = hall.frontend(2, incarnation="second", silent={Transition.PREPARE})
    prepare = asked(second, Transition.PREPARE)
    document = hall.operator.end_run().result(PATIENCE_S)
    assert asked(second, Transition.END).why == "end"
    assert (document["balanced"], document["problems"]) == (True, [])
    status = hall.operator.status().result(PATIENCE_S)
    assert (status["state"], status["waiting_for"]) == ("STOP", [])
    second.answer_now(prepare)
    second.silent = set()
    assert hall.operator.start_run().result(PATIENCE_S)["run"] == 2


def test_a_new_one_without_a_plan_waits_for_the_next_prepare(hall: Hall) -> None:
    hall.all(1)
    hall.operator.start_run().result(PATIENCE_S)
    new = hall.frontend(2)
    says(hall, "ebfe02 is new: it takes part from the next PREPARE on, not in run 1")
    hall.operator.end_run().result(PATIENCE_S)
    assert new.requests == []
    hall.components["mevb"].result["fates"]["Trigger02"] = {"built": 100}
    assert hall.operator.start_run().result(PATIENCE_S)["sources"] == {"mevb": ["Trigger01", "Trigger02"]}
    assert asked(new, Transition.PREPARE).why == ""


def test_one_that_lacks_an_equipment_of_the_run_waits_for_the_next_prepare(hall: Hall) -> None:
    hall.all()
    hall.operator.start_run().result(PATIENCE_S)
    is_killed(hall, "ebfe02")
    other = hall.call_in("ebfe02", "frontend", Equipment("Slow", buffer="SYSTEM"), incarnation="second")
    says(hall, "ebfe02 came back without Trigger02: it takes part from the next PREPARE on, not in run 1")
    assert other.requests == []


def test_one_that_refuses_is_named_and_the_run_goes_on_without_it(hall: Hall) -> None:
    hall.all()
    hall.operator.start_run().result(PATIENCE_S)
    is_killed(hall, "ebfe02")
    second = hall.frontend(2, incarnation="second", refuse={Transition.PREPARE: "no crate at VME 0x1000"})
    says(hall, "ebfe02 could not be taken back into run 1: it says: no crate at VME 0x1000")
    assert hall.component_status("ebfe02")["health"] == "error"
    assert len(second.requests) == 1, "it is not asked again and again"
    assert hall.operator.status().result(PATIENCE_S)["state"] == "RUN"
    second.kill()
    hall.wait_for_health("ebfe02", "gone")
    third = hall.frontend(2, incarnation="third")
    asked(third, Transition.PREPARE)
    asked(third, Transition.BEGIN)
    assert hall.operator.end_run().result(PATIENCE_S)["balanced"] is True


def test_a_run_control_that_was_restarted_takes_it_back_too(hall: Hall) -> None:
    hall.all()
    hall.operator.start_run().result(PATIENCE_S)
    is_running(*(hall.components[name] for name in ("logger", "mevb", "ebfe01")))
    is_killed(hall, "ebfe02")
    hall.restart()
    second = hall.frontend(2, incarnation="second")
    assert asked(second, Transition.PREPARE).begun is True
    assert asked(second, Transition.BEGIN).why == "rejoin"
    until(lambda: len(hall.operator.status().result(PATIENCE_S)["components"]) == 4, "all back")
    assert [request.transition for request in hall.components["ebfe01"].requests] == ["PREPARE", "BEGIN"]
    assert hall.operator.end_run().result(PATIENCE_S)["balanced"] is True


def test_one_that_has_ended_its_part_is_not_taken_back_into_it(hall: Hall) -> None:
    hall.all(1)
    hall.operator.start_run().result(PATIENCE_S)
    builder, frontend = hall.components["mevb"], hall.components["ebfe01"]
    builder.silent = {Transition.END}
    hall.operator.end_run()
    while builder.asked.get(timeout=PATIENCE_S).transition is not Transition.END:
        pass
    builder.state = State.RUN
    builder.silent = set()
    is_running(builder, hall.components["logger"])
    hall.restart()
    until(lambda: len(hall.operator.status().result(PATIENCE_S)["components"]) == 3, "all back")
    assert hall.operator.status().result(PATIENCE_S)["state"] == "RUN"
    document = hall.operator.end_run().result(PATIENCE_S)
    assert [request.transition for request in frontend.requests] == ["PREPARE", "BEGIN", "END", "END"]
    assert document["status"] == "complete"

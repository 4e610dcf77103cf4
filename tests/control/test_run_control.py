"""Whole lifecycles: a real run control, real sockets, small fake components."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.control.fakes import PATIENCE_S, FakeComponent, Hall, until

from phloem.control.operator import Operator
from phloem.control.run_control import RunControl
from phloem.control.runs import Runs
from phloem.model.errors import (
    NotFoundError,
    PhloemError,
    ProtocolError,
    SettingsError,
    TransitionError,
)
from phloem.protocol.control import (
    ComponentStatus,
    Refused,
    Registered,
    Request,
    Response,
    SettingsChanged,
    Terminate,
    TransitionRequest,
    decode,
    encode,
)
from phloem.protocol.state import State, Transition

BALANCED = {
    "run": 1,
    "status": "complete",
    "files": ["run.mid"],
    "account": {
        "sources": {
            name: {
                "sent": 100,
                "built": 100,
                "incomplete": 0,
                "late": 0,
                "duplicate": 0,
                "discarded": 0,
                "quarantined": 0,
                "blocked_s": 0.5,
                "missed": 2,
                "lost": 0,
            }
            for name in ("Trigger01", "Trigger02")
        },
        "streams": {"EB": {"sent": 100, "written": 100, "discarded": 0, "blocked_s": 0.0, "missed": 0, "lost": 0}},
    },
    "balanced": True,
    "events": 100,
    "bytes": 6400,
    "losses": [],
    "problems": [],
    "reason": "",
}


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with Hall(tmp_path) as opened:
        yield opened


def names(hall: Hall, transition: str) -> list[str]:
    """Who was asked for a transition, in order."""
    return [name for name, asked, _ in hall.log if asked == transition]


def runs_of(hall: Hall) -> Runs:
    return hall.run_control._transitions._runs


def test_a_run_goes_through_its_states_and_ends_with_a_balanced_account(hall: Hall) -> None:
    hall.all()
    operator = hall.operator
    prepared = operator.prepare_run(operator="ann", comment="pedestals").result(PATIENCE_S)
    assert (prepared["run"], prepared["state"], prepared["write_data"]) == (1, "READY", True)
    assert prepared["file"] == str(hall.data_dir / "run00001.mid")
    assert prepared["sources"] == {"mevb": ["Trigger01", "Trigger02"]}
    assert operator.odb_get("/Runinfo/Run number").result() == 1
    assert operator.odb_get("/Runinfo/State").result() == 1
    assert operator.begin_run().result(PATIENCE_S) == {"run": 1, "state": "RUN"}
    assert operator.odb_get("/Runinfo/State").result() == 3
    status = operator.status().result()
    assert (status["state"], status["run"], status["operator"], status["comment"]) == ("RUN", 1, "ann", "pedestals")
    document = operator.end_run().result(PATIENCE_S)
    assert document.pop("seconds") > 0
    assert document == BALANCED
    assert operator.odb_get("/Runinfo/State").result() == 1
    assert operator.odb_get("/Runinfo/Transition in progress").result() == 0
    assert operator.odb_get("/Runinfo/Stop time binary").result() > 0
    (row,) = operator.runs().result()
    assert (row["number"], row["status"], row["comment"], row["files"]) == (1, "complete", "pedestals", ["run.mid"])
    assert row["account"] == document["account"]
    assert len(row["settings_sha256"]) == 64


def test_components_are_asked_in_the_order_of_their_sequence_numbers(hall: Hall) -> None:
    hall.frontend(1)
    hall.frontend(2, sequence={Transition.PREPARE: 510, Transition.BEGIN: 510, Transition.END: 490})
    hall.builder(2)
    hall.logger()
    hall.operator.start_run().result(PATIENCE_S)
    hall.operator.end_run().result(PATIENCE_S)
    assert names(hall, "PREPARE") == ["logger", "mevb", "ebfe01", "ebfe02"]
    assert names(hall, "BEGIN") == ["logger", "mevb", "ebfe01", "ebfe02"]
    assert names(hall, "END") == ["ebfe02", "ebfe01", "mevb", "logger"]


def test_equal_numbers_are_asked_in_parallel_and_later_ones_wait(hall: Hall) -> None:
    hall.all()
    first, second = hall.components["ebfe01"], hall.components["ebfe02"]
    hall.operator.start_run().result(PATIENCE_S)
    first.silent = second.silent = {Transition.END}
    call = hall.operator.end_run()
    requests: list[tuple[FakeComponent, TransitionRequest]] = []
    for component in (first, second):
        while not requests or requests[-1][1].transition != Transition.END or requests[-1][0] is not component:
            requests.append((component, component.asked.get(timeout=PATIENCE_S)))
    assert names(hall, "END").count("mevb") == 0
    status = hall.operator.status().result()
    assert status["transition"] == "END"
    assert sorted(status["waiting_for"]) == ["ebfe01", "ebfe02"]
    for component, request in requests:
        if request.transition == Transition.END:
            component.answer_now(request)
    assert call.result(PATIENCE_S)["balanced"] is True
    assert names(hall, "END")[2:] == ["mevb", "logger"]


def test_the_logger_gets_what_the_others_answered_and_the_odb(hall: Hall) -> None:
    hall.all(1)
    hall.operator.start_run(comment="xyz").result(PATIENCE_S)
    hall.operator.end_run().result(PATIENCE_S)
    prepare, _, end = hall.components["logger"].requests
    assert json.loads(prepare.plan.odb_json)["Runinfo"]["Run number"] == 1
    assert prepare.run.comment == "xyz"
    assert set(end.collected) == {"ebfe01", "mevb"}
    assert end.collected["ebfe01"]["sent"]["Trigger01"]["sent"] == 100
    assert json.loads(end.odb_json)["Equipment"]["Trigger01"]["Common"]["Buffer"] == "BUF01"
    assert hall.components["ebfe01"].requests[-1].odb_json == ""
    assert [r.id for r in hall.components["ebfe01"].requests] == ["1.PREPARE", "1.BEGIN", "1.END"]


def test_a_loss_is_named_and_not_balanced(hall: Hall) -> None:
    hall.all(1)
    hall.components["mevb"].result["fates"]["Trigger01"] = {"built": 99}
    hall.operator.start_run().result(PATIENCE_S)
    document = hall.operator.end_run().result(PATIENCE_S)
    assert document["account"]["sources"]["Trigger01"]["lost"] == 1
    assert document["balanced"] is False
    assert document["losses"] == ["Trigger01: lost 1 of 100 sent"]


def test_a_transition_that_is_not_allowed_says_what_is(hall: Hall) -> None:
    with pytest.raises(TransitionError, match=r"BEGIN needs READY; the state is STOP\. Allowed now: PREPARE"):
        hall.operator.begin_run().result(PATIENCE_S)
    with pytest.raises(TransitionError, match="END needs READY or RUN; the state is STOP"):
        hall.operator.end_run().result(PATIENCE_S)


@pytest.mark.parametrize("way", ["release_run", "end_run"])
def test_a_prepared_run_is_released_with_an_account(hall: Hall, way: str) -> None:
    hall.all(1)
    hall.operator.prepare_run().result(PATIENCE_S)
    document = getattr(hall.operator, way)().result(PATIENCE_S)
    assert (document["status"], document["balanced"]) == ("released", True)
    assert [(transition, why) for _, transition, why in hall.log[3:]] == [("RELEASE", "released")] * 3
    assert hall.operator.status().result()["state"] == "STOP"


def test_a_prepare_that_fails_is_undone_and_its_number_not_used_again(hall: Hall) -> None:
    hall.all()
    hall.components["ebfe02"].refuse = {Transition.PREPARE: "no crate at VME 0x1000"}
    hall.components["mevb"].result = {}
    with pytest.raises(TransitionError) as caught:
        hall.operator.start_run().result(PATIENCE_S)
    text = str(caught.value)
    assert text.startswith("PREPARE of run 1 failed: ebfe02 says: no crate at VME 0x1000.")
    assert "the state is STOP and run 1 is closed as failed" in text
    undone = [(name, why) for name, transition, why in hall.log if transition == "END"]
    assert undone == [("ebfe01", "failed"), ("mevb", "failed"), ("logger", "failed")]
    (row,) = hall.operator.runs().result()
    assert (row["status"], row["result"]["balanced"]) == ("failed", False)
    assert row["account"]["sources"]["Trigger01"]["sent"] == 100
    assert hall.component_status("ebfe02")["health"] == "error"
    hall.components["ebfe02"].refuse = {}
    assert hall.operator.prepare_run().result(PATIENCE_S)["run"] == 2
    assert hall.component_status("ebfe02")["health"] == "ok"


def test_a_begin_that_fails_ends_the_run_everywhere(hall: Hall) -> None:
    hall.all(1)
    hall.components["mevb"].refuse = {Transition.BEGIN: "eb_begin_of_run said no"}
    with pytest.raises(TransitionError, match="BEGIN of run 1 failed: mevb says: eb_begin_of_run said no"):
        hall.operator.start_run().result(PATIENCE_S)
    assert [name for name, transition, why in hall.log if why == "failed"] == ["ebfe01", "mevb", "logger"]
    assert hall.operator.status().result()["state"] == "STOP"


def test_a_component_that_vanishes_while_it_is_waited_for_fails_at_once(hall: Hall) -> None:
    hall.all()
    hanging = hall.components["ebfe02"]
    hanging.silent = {Transition.PREPARE}
    call = hall.operator.prepare_run()
    hanging.asked.get(timeout=PATIENCE_S)
    hanging.kill()
    with pytest.raises(TransitionError, match="PREPARE of run 1 failed: ebfe02 is gone"):
        call.result(PATIENCE_S)
    assert hall.operator.status().result()["state"] == "STOP"


def test_a_component_that_does_not_answer_in_time_fails_the_prepare(hall: Hall) -> None:
    hall.all()
    hall.operator.odb_set("/Experiment/Transition timeout ms", 300).result()
    hanging = hall.components["ebfe02"]
    hanging.silent = {Transition.PREPARE}
    with pytest.raises(TransitionError, match=r"ebfe02 has not answered within 0\.3 s"):
        hall.operator.prepare_run().result(PATIENCE_S)
    until(lambda: ("ebfe02", "END", "failed") in hall.log or not hall.component_status("ebfe02"), "the undoing")


def test_end_goes_on_without_who_is_gone_and_the_account_says_what_is_not_known(hall: Hall) -> None:
    hall.all()
    hall.operator.start_run().result(PATIENCE_S)
    hall.components["ebfe02"].kill()
    hall.wait_for_health("ebfe02", "gone")
    document = hall.operator.end_run().result(PATIENCE_S)
    assert document["account"]["sources"]["Trigger02"]["sent"] is None
    assert document["balanced"] is False
    assert document["losses"] == ["Trigger02: how much was sent is not known"]
    assert document["problems"] == ["ebfe02 is gone"]
    assert document["status"] == "complete"


def test_a_run_whose_logger_is_gone_is_interrupted(hall: Hall) -> None:
    hall.all(1)
    hall.operator.start_run().result(PATIENCE_S)
    hall.components["logger"].kill()
    hall.wait_for_health("logger", "gone")
    document = hall.operator.end_run().result(PATIENCE_S)
    assert (document["status"], document["balanced"]) == ("interrupted", False)
    assert document["account"]["streams"]["EB"]["lost"] == 100


def test_an_answer_that_cannot_be_read_is_the_components_failure(hall: Hall) -> None:
    hall.all(1)
    hall.components["ebfe01"].result = {"sent": {"Trigger01": {"sent": "many"}}}
    hall.operator.start_run().result(PATIENCE_S)
    document = hall.operator.end_run().result(PATIENCE_S)
    assert document["balanced"] is False
    assert "ebfe01 answered a result that cannot be read" in document["problems"][0]


def test_only_one_transition_at_a_time(hall: Hall) -> None:
    hall.all(1)
    slow = hall.components["ebfe01"]
    slow.silent = {Transition.PREPARE}
    first = hall.operator.prepare_run()
    request = slow.asked.get(timeout=PATIENCE_S)
    with pytest.raises(TransitionError, match="END is not possible now: PREPARE is in progress, waiting for ebfe01"):
        hall.operator.end_run().result(PATIENCE_S)
    slow.answer_now(request)
    assert first.result(PATIENCE_S)["state"] == "READY"


def test_an_operator_sees_whom_a_transition_waits_for(hall: Hall) -> None:
    hall.all(1)
    slow = hall.components["ebfe01"]
    slow.silent = {Transition.PREPARE}
    call = hall.operator.prepare_run()
    responses = []
    for response in call:
        responses.append(response)
        waiting = response.value.get("waiting_for") if isinstance(response.value, dict) else None
        if waiting:
            assert waiting == ["ebfe01"]
            slow.answer_now(slow.asked.get(timeout=PATIENCE_S))
    kinds = [response.kind for response in responses]
    assert kinds[0] == "ticket"
    assert kinds[-1] == "result"
    assert set(kinds[1:-1]) == {"progress"}
    assert [r.component for r in responses if r.component] == ["logger", "mevb", "ebfe01"]


def test_begin_is_refused_if_a_setting_changed_since_prepare(hall: Hall) -> None:
    hall.all(1)
    hall.operator.prepare_run().result(PATIENCE_S)
    hall.operator.odb_set("/Equipment/Trigger01/Common/Period", 7).result()
    with pytest.raises(TransitionError, match="/Equipment/Trigger01/Common/Period changed since run 1 was prepared"):
        hall.operator.begin_run().result(PATIENCE_S)
    assert hall.operator.status().result()["state"] == "READY"
    hall.operator.odb_set("/Equipment/Trigger01/Common/Period", 500).result()
    hall.frontend(9)
    assert hall.operator.begin_run().result(PATIENCE_S)["state"] == "RUN"


def test_what_the_odb_cannot_plan_refuses_prepare_and_draws_no_number(hall: Hall) -> None:
    hall.all(1)
    hall.operator.odb_set("/Equipment/Trigger01/Common/Buffer", "OTHER").result()
    with pytest.raises(TransitionError, match="Trigger01 sends to buffer OTHER"):
        hall.operator.prepare_run().result(PATIENCE_S)
    assert hall.operator.runs().result() == []
    assert hall.operator.odb_get("/Runinfo/Run number").result() == 0
    assert hall.log == []
    hall.operator.odb_set("/Programs/ebfe01/Required", "y").result()
    hall.components["ebfe01"].leave("shift is over")
    until(lambda: hall.component_status("ebfe01")["health"] == "gone", "the goodbye")
    with pytest.raises(TransitionError, match="PREPARE needs ebfe01, which /Programs/ebfe01/Required asks for"):
        hall.operator.prepare_run().result(PATIENCE_S)


def test_run_numbers_go_on_from_the_odb_the_disk_and_the_table(hall: Hall) -> None:
    hall.all(1)

    def number() -> int:
        drawn = int(hall.operator.prepare_run().result(PATIENCE_S)["run"])
        hall.operator.release_run().result(PATIENCE_S)
        return drawn

    assert [number(), number()] == [1, 2]
    (hall.data_dir / "run00017.mid.lz4").touch()
    assert number() == 18
    hall.operator.odb_set("/Runinfo/Run number", 41).result()
    assert number() == 42
    with pytest.raises(SettingsError, match="cannot be less than 42"):
        hall.operator.odb_set("/Runinfo/Run number", 7).result()
    hall.operator.prepare_run().result(PATIENCE_S)
    with pytest.raises(TransitionError, match="can be set in STOP only; the state is READY"):
        hall.operator.odb_set("/Runinfo/Run number", 99).result()
    with pytest.raises(SettingsError, match="/Runinfo/State is written by run control alone"):
        hall.operator.odb_set("/Runinfo/State", 3).result()


def test_a_test_run_has_no_file(hall: Hall) -> None:
    hall.all(1)
    assert hall.operator.prepare_run(write_data=False).result(PATIENCE_S)["file"] == ""
    assert hall.components["logger"].requests[0].plan.file == ""
    assert hall.operator.status().result()["write_data"] is False
    hall.operator.release_run().result(PATIENCE_S)
    hall.operator.odb_set("/Logger/Write data", "n").result()
    assert hall.operator.prepare_run().result(PATIENCE_S)["write_data"] is False


def test_two_components_of_one_name_are_refused_until_the_first_is_gone(hall: Hall) -> None:
    first = hall.frontend(1)
    second = hall.frontend(1, incarnation="second")
    assert isinstance(second.first, Refused)
    assert "the name 'ebfe01' is taken by pid 4242" in second.first.reason
    first.kill()
    hall.wait_for_health("ebfe01", "gone")
    third = hall.frontend(1, incarnation="third")
    assert isinstance(third.first, Registered)
    assert hall.wait_for_health("ebfe01", "ok")["pid"] == 4242


def test_a_component_of_another_version_is_refused(hall: Hall) -> None:
    answer = hall.frontend(1, version=99).first
    assert isinstance(answer, Refused)
    assert "speaks version 99" in answer.reason


def test_a_hung_component_is_seen_and_its_limit_can_be_set(hall: Hall) -> None:
    component = hall.frontend(1)
    component.turned_ago_s = 2.0
    assert "hung" in hall.wait_for_health("ebfe01", "warning")["why"]
    hall.operator.odb_set("/Programs/ebfe01/Hang limit ms", 3000).result()
    hall.wait_for_health("ebfe01", "ok")


def test_a_set_setting_reaches_its_component_and_others_do_not(hall: Hall) -> None:
    component = hall.frontend(1, settings={"Trigger01": {"Threshold": 12}})
    other = hall.frontend(2)
    assert isinstance(component.first, Registered)
    assert component.first.settings == {"Trigger01": {"Threshold": 12}}
    hall.operator.odb_set("/equipment/trigger01/settings/threshold", "15").result()
    message = component.next(SettingsChanged)
    assert (message.equipment, message.key, message.value) == ("Trigger01", "Threshold", 15)
    assert other.inbox.empty()


def test_first_values_of_the_file_go_before_the_code_and_differences_are_said(tmp_path: Path) -> None:
    first = {"Equipment": {"Trigger01": {"Common": {"Period": 10}}}, "/Experiment/Buffer sizes/BUF01": 1 << 20}
    with Hall(tmp_path, first_values=first) as hall:
        hall.all(1)
        assert hall.operator.odb_get("/Equipment/Trigger01/Common/Period").result() == 10
        assert hall.operator.odb_ls("/Experiment/Buffer sizes/BUF01").result()[0].tid == 6
        hall.operator.odb_set("/Equipment/Trigger01/Common/Period", 30).result()
        hall.operator.prepare_run().result(PATIENCE_S)
        assert hall.components["ebfe01"].requests[0].plan.outputs[0].capacity_bytes == 1 << 20
    with Hall(tmp_path, first_values=first) as hall:
        hall.frontend(1)
        assert [str(d) for d in hall.run_control.differences] == [
            "/Equipment/Trigger01/Common/Period: the file says 10, the ODB has 30, which stands; "
            "--reset '/Equipment/Trigger01/Common/Period' takes the other"
        ]
    with Hall(tmp_path, first_values=first, reset=["/Equipment/Trigger01"]) as hall:
        hall.frontend(1)
        assert hall.operator.odb_get("/Equipment/Trigger01/Common/Period").result() == 10
        assert hall.run_control.differences == []


def test_a_first_value_of_the_wrong_type_refuses_its_component_by_name(tmp_path: Path) -> None:
    with Hall(tmp_path, first_values={"/Equipment/Trigger01/Common/Period": "soon"}) as hall:
        answer = hall.frontend(1).first
        assert isinstance(answer, Refused)
        assert "/Equipment/Trigger01/Common/Period is INT and takes a whole number" in answer.reason
        assert hall.operator.status().result()["components"] == []
        assert hall.operator.odb_get("/Equipment").result() == {}


def test_status_shows_what_heartbeats_carry_and_the_odb_has_statistics(hall: Hall) -> None:
    component = hall.frontend(1)
    component.status = ComponentStatus(
        rates={"events_per_s": 10.0}, counters={"events": 7}, sources={"Trigger01": {"fill_percent": 3.0, "events": 7}}
    )
    until(lambda: hall.component_status("ebfe01")["counters"] == {"events": 7}, "the heartbeat")
    seen = hall.component_status("ebfe01")
    assert (seen["kind"], seen["pid"], seen["host"], seen["health"]) == ("frontend", 4242, "hall", "ok")
    assert seen["rates"] == {"events_per_s": 10.0}
    assert seen["sources"]["Trigger01"]["fill_percent"] == 3.0
    assert 0 <= seen["heartbeat_age_s"] < 1.0
    path = "/Equipment/Trigger01/Statistics/Events sent"
    until(lambda: hall.operator.odb_get(path).result() == 7.0, "the statistics")


def test_messages_are_kept_printed_and_logged(hall: Hall) -> None:
    component = hall.frontend(1)
    component.say("warning", "crate is hot\nvery hot")

    def said() -> list[dict[str, Any]]:
        return [m for m in hall.operator.messages(50).result() if m["origin"] == "ebfe01"]

    until(lambda: bool(said()), "the message")
    assert (said()[0]["severity"], said()[0]["text"]) == ("warning", "crate is hot very hot")
    assert "[ebfe01,WARNING] crate is hot very hot\n" in (hall.data_dir / "phloem.log").read_text()
    assert any(m["text"].startswith("crate") for m in hall.operator.status().result()["messages"])


def test_bytes_of_any_kind_do_not_end_run_control(hall: Hall) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(hall.run_control.address)
    for data in (b"", b"\xff" * 100, b"\x81\xa4type\xa8Register", encode(Terminate())):
        socket.send(data)
    socket.send_multipart([b"", encode(Request(1, "1", "status"))])
    socket.send(encode(Request(7, "2", "status")))
    assert socket.poll(10_000)
    ticket = decode(socket.recv())
    assert isinstance(ticket, Response)
    assert (ticket.id, ticket.kind) == ("2", "ticket")
    assert socket.poll(10_000)
    answer = decode(socket.recv())
    assert isinstance(answer, Response)
    assert (answer.kind, answer.error) == ("error", "ProtocolError")
    assert hall.run_control.bad_messages == 5
    socket.close()
    context.term()
    assert hall.operator.status().result()["state"] == "STOP"


def test_the_odb_answers_over_the_wire(hall: Hall) -> None:
    hall.frontend(1)
    with pytest.raises(NotFoundError, match="the nearest is /Equipment/Trigger01/Common/Period"):
        hall.operator.odb_set("/Equipment/Trigger01/Common/Periode", 1).result()
    with pytest.raises(SettingsError, match="Period is INT and takes"):
        hall.operator.odb_set("/Equipment/Trigger01/Common/Period", "soon").result()
    rows = hall.operator.odb_ls("/Equipment", recursive=True).result()
    assert [(row.level, row.name) for row in rows[:4]] == [
        (0, "Equipment"),
        (1, "Trigger01"),
        (2, "Common"),
        (3, "Event ID"),
    ]


def test_wrong_methods_and_parameters_are_refused(hall: Hall) -> None:
    with pytest.raises(NotFoundError, match="run control has no method 'dance'; it has prepare, begin"):
        hall.operator._call("dance", str).result(PATIENCE_S)
    with pytest.raises(ProtocolError, match=r"parameters of 'prepare' are wrong: .*`colour`"):
        hall.operator._call("prepare", str, colour="red").result(PATIENCE_S)
    with pytest.raises(ProtocolError, match="parameters of 'odb_set' are wrong"):
        hall.operator._call("odb_set", str, path=1, value=1).result(PATIENCE_S)


def test_terminate_ends_the_run_and_then_the_components(hall: Hall) -> None:
    hall.all(1)
    hall.operator.start_run().result(PATIENCE_S)
    document = hall.operator.terminate().result(PATIENCE_S)
    assert document is not None
    assert document["balanced"] is True
    for component in hall.components.values():
        assert isinstance(component.next(Terminate), Terminate)
    assert hall.operator.terminate().result(PATIENCE_S) is None


def test_a_restarted_run_control_takes_the_run_over_and_can_end_it(hall: Hall) -> None:
    hall.all(1)
    hall.operator.start_run(comment="long").result(PATIENCE_S)
    for component in hall.components.values():
        component.register = type(component.register)(
            **{f: getattr(component.register, f) for f in component.register.__struct_fields__}
            | {"state": State.RUN, "run": 1}
        )
    hall.restart()
    until(lambda: hall.operator.status().result()["state"] == "RUN", "the taking over")
    until(lambda: len(hall.operator.status().result()["components"]) == 3, "all back")
    status = hall.operator.status().result()
    assert (status["run"], status["comment"]) == (1, "long")
    document = hall.operator.end_run().result(PATIENCE_S)
    assert (document["run"], document["status"], document["balanced"]) == (1, "complete", True)


def test_a_run_that_nobody_closed_refuses_prepare(hall: Hall) -> None:
    hall.all(1)
    hall.operator.prepare_run().result(PATIENCE_S)
    for component in hall.components.values():
        component.kill()
    hall.restart()
    hall.logger(incarnation="new")
    assert hall.operator.status().result()["state"] == "STOP"
    with pytest.raises(TransitionError, match="run 1 is not closed: `phloem recover`"):
        hall.operator.prepare_run().result(PATIENCE_S)


def test_every_step_is_in_the_journal_before_it_is_asked(hall: Hall) -> None:
    hall.all(1)
    slow = hall.components["ebfe01"]
    slow.silent = {Transition.PREPARE}
    call = hall.operator.prepare_run()
    request = slow.asked.get(timeout=PATIENCE_S)
    hall.operator.status().result()
    steps = {s.component: s.answered_s for s in runs_of(hall).steps(1)}
    assert steps.pop("ebfe01") is None
    assert all(answered_s is not None for answered_s in steps.values())
    slow.answer_now(request)
    call.result(PATIENCE_S)
    assert [(s.id, s.component) for s in runs_of(hall).steps(1)] == [
        ("1.PREPARE", "logger"),
        ("1.PREPARE", "mevb"),
        ("1.PREPARE", "ebfe01"),
    ]


def test_the_address_file_is_there_while_run_control_listens(tmp_path: Path) -> None:
    with Hall(tmp_path, address="") as hall:
        found = json.loads((tmp_path / "runtime" / "run_control.json").read_text())
        assert found["address"] == hall.run_control.address
        assert 24400 <= int(found["address"].rpartition(":")[2]) < 24500
        assert (found["experiment"], found["data_dir"]) == ("hall", str(tmp_path / "data"))
        assert isinstance(found["pid"], int)
        with Hall(tmp_path / "other", address="") as other:
            assert other.run_control.address != hall.run_control.address
    assert not (tmp_path / "runtime" / "run_control.json").exists()


def test_other_hosts_are_not_served_without_keys(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="without keys it serves loopback only"):
        RunControl("x", tmp_path, tmp_path, address="tcp://0.0.0.0:24400")
    with pytest.raises(SettingsError, match="file pattern"):
        RunControl("x", tmp_path, tmp_path, file_pattern="run.mid")
    with Hall(tmp_path) as hall, pytest.raises(PhloemError, match="is owned by the run control with pid"):
        RunControl("x", hall.data_dir, hall.runtime_dir)


def test_operators_from_several_places_share_one_run_control(hall: Hall) -> None:
    hall.all(1)
    with Operator(hall.run_control.address, PATIENCE_S) as second:
        hall.operator.prepare_run().result(PATIENCE_S)
        assert second.begin_run().result(PATIENCE_S)["state"] == "RUN"
        assert hall.operator.end_physics_run().result(PATIENCE_S)["balanced"] is True


def test_fakes_are_gone_when_they_are_killed(hall: Hall) -> None:
    component: FakeComponent = hall.frontend(1)
    component.kill()
    assert "no heartbeat" in hall.wait_for_health("ebfe01", "gone")["why"]

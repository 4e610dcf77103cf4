"""When run control ends a run by itself: the decision with times passed in, and whole ends over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.control.fakes import PATIENCE_S, Hall, until

from phloem.control.ending import Wish
from phloem.protocol.state import Transition


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with Hall(tmp_path) as opened:
        yield opened


def stopped(hall: Hall) -> bool:
    return bool(hall.operator.status().result(PATIENCE_S)["state"] == "STOP")


def texts(hall: Hall) -> list[str]:
    return [message["text"] for message in hall.operator.messages(100).result(PATIENCE_S)]


def test_a_run_goes_on_until_its_duration_is_over() -> None:
    wish = Wish()
    wish.began(7, 100.0)
    assert wish.reason(7, 10.0, 109.9) == ""
    assert wish.reason(7, 0.0, 1e9) == "", "0 is no duration"
    assert wish.reason(7, 10.0, 110.0) == "run control: its duration of 10 s is over"


def test_a_run_that_has_not_begun_has_no_duration() -> None:
    wish = Wish()
    wish.ask(6, "fe01: enough")
    assert wish.reason(7, 10.0, 1e9) == ""
    wish.began(7, 100.0)
    wish.began(7, 200.0)
    assert wish.reason(7, 10.0, 110.0) != "", "the first time stands"


def test_the_first_reason_stands_and_dies_with_its_run() -> None:
    wish = Wish()
    wish.ask(7, "fe01: enough")
    wish.ask(7, "fe02: enough too")
    assert wish.reason(7, 0.0, 0.0) == "fe01: enough"
    assert wish.reason(8, 0.0, 0.0) == ""
    wish.ask(8, "fe02: again")
    assert wish.reason(8, 0.0, 0.0) == "fe02: again"


def test_a_component_ends_its_run_and_the_document_says_why(hall: Hall) -> None:
    hall.all()
    hall.operator.start_run().result(PATIENCE_S)
    for reason in ("Trigger01 has its 1000 events", "asked again"):
        hall.components["ebfe01"].ask_end(1, reason)
    until(lambda: stopped(hall), "STOP")
    (row,) = hall.operator.runs().result(PATIENCE_S)
    assert row["status"] == "complete"
    assert row["result"]["reason"] == "ebfe01: Trigger01 has its 1000 events"
    assert [text for text in texts(hall) if " ends: " in text] == ["Run 1 ends: ebfe01: Trigger01 has its 1000 events"]
    assert [name for name, asked, _ in hall.log if asked == "END"][-2:] == ["mevb", "logger"]


def test_a_wish_that_comes_too_late_or_for_another_run_has_no_effect(hall: Hall) -> None:
    hall.all()
    frontend = hall.components["ebfe01"]
    frontend.ask_end(1, "nothing is prepared")
    hall.operator.start_run().result(PATIENCE_S)
    hall.operator.end_run().result(PATIENCE_S)
    frontend.ask_end(1, "too late")
    hall.operator.start_run().result(PATIENCE_S)
    frontend.ask_end(1, "another run")
    frontend.say("info", "all said")
    until(lambda: "all said" in texts(hall), "the last word")
    assert hall.operator.end_run().result(PATIENCE_S)["reason"] == ""
    assert not [text for text in texts(hall) if " ends: " in text]


def test_a_wish_in_a_transition_is_granted_after_it(hall: Hall) -> None:
    hall.all()
    frontend = hall.components["ebfe01"]
    frontend.silent = {Transition.BEGIN}
    hall.operator.prepare_run().result(PATIENCE_S)
    call = hall.operator.begin_run()
    until(lambda: any(r.transition is Transition.BEGIN for r in frontend.requests), "BEGIN")
    frontend.ask_end(1, "one event is enough")
    frontend.say("info", "asked")
    until(lambda: "asked" in texts(hall), "the wish")
    assert not [text for text in texts(hall) if " ends: " in text]
    frontend.answer_now(frontend.requests[-1])
    assert call.result(PATIENCE_S)["state"] == "RUN"
    until(lambda: stopped(hall), "STOP")


def test_a_wish_in_ready_releases_the_run(hall: Hall) -> None:
    hall.all()
    hall.operator.prepare_run().result(PATIENCE_S)
    hall.components["mevb"].ask_end(1, "policy stop")
    until(lambda: stopped(hall), "STOP")
    (row,) = hall.operator.runs().result(PATIENCE_S)
    assert (row["status"], row["result"]["reason"]) == ("released", "mevb: policy stop")


def test_a_run_ends_when_its_duration_is_over(hall: Hall) -> None:
    hall.all()
    hall.operator.odb_set("/Logger/Run duration", 0.2).result(PATIENCE_S)
    hall.operator.start_run().result(PATIENCE_S)
    until(lambda: stopped(hall), "STOP")
    (row,) = hall.operator.runs().result(PATIENCE_S)
    assert row["result"]["reason"] == "run control: its duration of 0.2 s is over"
    assert 0.2 <= row["ended_s"] - row["begun_s"] < 5.0


def test_a_whole_number_in_the_experiment_file_is_a_duration_too(tmp_path: Path) -> None:
    with Hall(tmp_path, first_values={"/Logger/Run duration": 60}) as hall:
        [row] = hall.operator.odb_ls("/Logger/Run duration").result(PATIENCE_S)
        assert (row.tid, row.value) == (10, 60.0)

"""A builder's keys in the ODB, with a real run control: statistics, and which fragments are required."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.control.fakes import PATIENCE_S, Hall, until

from phloem.model.errors import TransitionError
from phloem.protocol.control import ComponentStatus
from phloem.protocol.state import Transition


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with Hall(tmp_path) as opened:
        yield opened


def test_a_builders_statistics_join_what_it_says_and_what_the_frontends_say(hall: Hall) -> None:
    hall.all()
    hall.operator.prepare_run().result(PATIENCE_S)
    hall.components["mevb"].status = ComponentStatus(
        counters={"incomplete": 3}, sources={"Trigger01": {"built": 5.0}}, waiting_for="Trigger02"
    )
    hall.components["ebfe01"].status = ComponentStatus(sources={"Trigger01": {"missed": 6.0, "blocked_s": 0.5}})
    top = "/Equipment/EB/Statistics"
    until(lambda: hall.operator.odb_get(f"{top}/Trigger01/Missed").result() == 6, "the frontend's count")
    until(lambda: hall.operator.odb_get(f"{top}/Trigger01/Built").result() == 5, "the builder's count")
    seen = hall.operator.odb_get(top).result()
    assert (seen["Events incomplete"], seen["Waiting for"], seen["Trigger01"]["Blocked s"]) == (3, "Trigger02", 0.5)
    assert seen["Trigger02"]["Built"] == 0


def test_prepare_writes_the_fragments_and_begin_does_not_take_that_for_a_change(hall: Hall) -> None:
    hall.all()
    for _ in range(2):
        hall.operator.start_run().result(PATIENCE_S)
        hall.operator.end_run().result(PATIENCE_S)
    top = "/Equipment/EB/Settings"
    settings = hall.operator.odb_get(top).result()
    assert (settings["Fragment Names"], settings["Fragment Required"]) == (["Trigger01", "Trigger02"], [True, True])
    plan = next(r.plan for r in hall.components["mevb"].requests if r.transition is Transition.PREPARE)
    assert plan.settings["Fragment Required"] == [True, True]
    of_source = {"Timeout ms": -1, "On incomplete": "", "Reorder": -1, "Time offset ns": 0}
    assert plan.settings["Fragments"] == {"Trigger01": of_source, "Trigger02": of_source}


@pytest.mark.parametrize(
    ("key", "value"), [("Fragment Required[1]", "n"), ("Fragments/Trigger02/Timeout ms", 5), ("User Field", "x")]
)
def test_begin_is_refused_when_a_choice_of_fragments_changed(hall: Hall, key: str, value: object) -> None:
    hall.all()
    hall.operator.prepare_run().result(PATIENCE_S)
    hall.operator.odb_set(f"/Equipment/EB/Settings/{key}", value).result()
    with pytest.raises(TransitionError, match=re.escape(f"/Equipment/EB/Settings/{key.partition('[')[0]} changed")):
        hall.operator.begin_run().result(PATIENCE_S)


def test_a_run_in_which_no_source_is_required_is_not_prepared(hall: Hall) -> None:
    hall.all()
    hall.operator.start_run().result(PATIENCE_S)
    hall.operator.end_run().result(PATIENCE_S)
    path = "/Equipment/EB/Settings/Fragment Required"
    hall.operator.odb_set(path, "[n, n]").result()
    with pytest.raises(TransitionError, match=re.escape(f"Set '{path}[0]' to y for Trigger01")):
        hall.operator.prepare_run().result(PATIENCE_S)
    assert hall.operator.odb_get("/Runinfo/Run number").result() == 1, "no number is drawn"
    hall.operator.odb_set(f"{path}[1]", "y").result()
    assert [row["required"] for row in hall.operator.prepare_run().result(PATIENCE_S)["fragments"]["mevb"]] == [
        False,
        True,
    ]

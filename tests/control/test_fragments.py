"""A builder's Settings by source: MIDAS' keys and types, and choices that are kept by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phloem.control.database import Database
from phloem.control.equipment import create_equipment
from phloem.control.fragments import keep_choices, plan_settings
from phloem.control.odb import Odb
from phloem.model.errors import SettingsError, TransitionError
from phloem.model.event import Equipment
from phloem.protocol.control import Register

TOP = "/Equipment/EB/Settings"

# name, TID, #val, item size: MIDAS' four (reference, section 2) and the names beside them
MIDAS_KEYS = [
    ("Number of Fragment", 7, 1, 4),
    ("User build", 8, 1, 4),
    ("User Field", 12, 1, 64),
    ("Fragment Required", 8, 2, 4),
    ("Fragment Names", 12, 2, 32),
]
OF_SOURCE = [("Timeout ms", 7, 4), ("On incomplete", 12, 32), ("Reorder", 7, 4), ("Time offset ns", 17, 8)]


@pytest.fixture
def odb(tmp_path: Path) -> Iterator[Odb]:
    database = Database(tmp_path / "phloem.db")
    yield Odb(database)
    database.close()


def builder(**settings: Any) -> Register:
    return Register(1, "EB", "builder", 1, "daq", "x", {}, (Equipment("EB", type=0),), "BUF", {"EB": settings})


def names(odb: Odb) -> list[str]:
    return list(odb.get(f"{TOP}/Fragment Names"))


def required(odb: Odb) -> list[bool]:
    return list(odb.get(f"{TOP}/Fragment Required"))


def test_the_keys_have_midas_names_types_and_sizes(odb: Odb) -> None:
    keep_choices(odb, "EB", ["Trigger01", "Trigger02"])
    rows = {row.name: row for row in odb.rows(TOP)}
    assert [(name, rows[name].tid, rows[name].num_values, rows[name].item_size) for name, *_ in MIDAS_KEYS] == (
        MIDAS_KEYS
    )
    assert odb.get(TOP) == {
        "Number of Fragment": 2,
        "User build": False,
        "User Field": "100",
        "Fragment Required": [True, True],
        "Fragment Names": ["Trigger01", "Trigger02"],
        "Fragments": {
            "Trigger01": {"Timeout ms": -1, "On incomplete": "", "Reorder": -1, "Time offset ns": 0},
            "Trigger02": {"Timeout ms": -1, "On incomplete": "", "Reorder": -1, "Time offset ns": 0},
        },
    }
    assert [(r.name, r.tid, r.item_size) for r in odb.rows(f"{TOP}/Fragments/Trigger01")] == OF_SOURCE


def test_a_choice_is_kept_by_name_while_sources_come_and_go_and_come_back(odb: Odb) -> None:
    keep_choices(odb, "EB", ["Trigger01", "Trigger02", "Trigger03"])
    odb.set(f"{TOP}/Fragment Required[1]", "n")
    keep_choices(odb, "EB", ["Trigger00", "Trigger01", "Trigger02", "Trigger03"])
    assert names(odb) == ["Trigger00", "Trigger01", "Trigger02", "Trigger03"]
    assert required(odb) == [True, True, False, True]
    keep_choices(odb, "EB", ["Trigger03"])
    assert (names(odb), required(odb)) == (["Trigger03", "Trigger02"], [True, False])
    assert odb.get(f"{TOP}/Number of Fragment") == 1
    keep_choices(odb, "EB", ["Trigger02", "Trigger03"])
    assert (names(odb), required(odb)) == (["Trigger02", "Trigger03"], [False, True])


def test_whole_arrays_may_be_given_as_people_type_them(odb: Odb) -> None:
    keep_choices(odb, "EB", ["Trigger01", "Trigger02"])
    assert odb.set(f"{TOP}/Fragment Required", "[y, n]") == [True, False]
    assert odb.set(f"{TOP}/Fragment Required", "[true, true]") == [True, True]
    odb.set(f"{TOP}/Fragment Required", "[n]")
    keep_choices(odb, "EB", ["Trigger01", "Trigger02"])
    assert required(odb) == [False, True], "what has no choice is required"


def test_the_number_of_fragments_is_not_for_people_to_set(odb: Odb) -> None:
    keep_choices(odb, "EB", ["Trigger01"])
    with pytest.raises(SettingsError, match="Number of Fragment is written by run control alone"):
        odb.set(f"{TOP}/Number of Fragment", 3)


def test_no_required_source_is_refused_with_the_key_to_set(odb: Odb) -> None:
    keep_choices(odb, "EB", ["Trigger01", "Trigger02", "Trigger03"])
    for n in (1, 2):
        odb.set(f"{TOP}/Fragment Required[{n}]", "n")
    refused = (
        f"no source of builder EB is required: {TOP}/Fragment Required is n for Trigger02, Trigger03. "
        f"Set '{TOP}/Fragment Required[1]' to y for Trigger02"
    )
    with pytest.raises(TransitionError) as raised:
        keep_choices(odb, "EB", ["Trigger02", "Trigger03"])
    assert str(raised.value).startswith(refused)
    assert names(odb) == ["Trigger01", "Trigger02", "Trigger03"]


def test_first_values_of_the_experiment_file_get_the_right_types(odb: Odb) -> None:
    first = {
        "Timeout ms": 500,
        "User Field": "run at 5 T",
        "Fragments/Trigger01/Time offset ns": 40,
        "Fragments": {"Trigger02": {"On incomplete": "discard"}},
        "Fragment Names": ["Trigger02"],
        "Fragment Required": [False],
    }
    create_equipment(odb, builder(**first), {}, ())
    keep_choices(odb, "EB", ["Trigger01", "Trigger02"])
    assert required(odb) == [True, False]
    assert odb.get(f"{TOP}/User Field") == "run at 5 T"
    assert odb.get(f"{TOP}/Timeout ms") == 500
    offset, *_ = (row for row in odb.rows(f"{TOP}/Fragments/Trigger01") if row.name == "Time offset ns")
    assert (offset.tid, offset.value) == (17, 40)
    assert odb.get(f"{TOP}/Fragments/Trigger01/Timeout ms") == -1
    (policy,) = (row for row in odb.rows(f"{TOP}/Fragments/Trigger02") if row.name == "On incomplete")
    assert (policy.item_size, policy.value) == (32, "discard")
    (field,) = (row for row in odb.rows(TOP) if row.name == "User Field")
    assert field.item_size == 64


def test_one_name_in_the_experiment_file_needs_no_brackets(odb: Odb) -> None:
    create_equipment(odb, builder(**{"Fragment Names": "Trigger02", "Fragment Required": False}), {}, ())
    assert create_equipment(odb, builder(**{"Fragment Names": "Trigger02"}), {}, ()) == []
    keep_choices(odb, "EB", ["Trigger01", "Trigger02"])
    assert (names(odb), required(odb)) == (["Trigger01", "Trigger02"], [True, False])


def test_first_choices_are_compared_with_the_odb_by_name(odb: Odb) -> None:
    first = builder(**{"Fragment Names": ["Trigger02", "Trigger09"], "Fragment Required": [False, True]})
    create_equipment(odb, first, {}, ())
    keep_choices(odb, "EB", ["Trigger01", "Trigger02"])
    assert create_equipment(odb, first, {}, ()) == [], "another order, but the same choices"
    odb.set(f"{TOP}/Fragment Required[1]", "y")
    found = create_equipment(odb, first, {}, ())
    assert {d.path for d in found} == {f"{TOP}/Fragment Names", f"{TOP}/Fragment Required"}
    assert create_equipment(odb, first, {}, [TOP]) == []
    assert (names(odb), required(odb)) == (["Trigger02", "Trigger09"], [False, True])


def test_a_setting_that_no_source_has_is_refused_with_the_nearest_one(odb: Odb) -> None:
    with pytest.raises(SettingsError, match=r"'Timout ms' of source Trigger01 .* did you mean 'Timeout ms'\?"):
        create_equipment(odb, builder(**{"Fragments/Trigger01/Timout ms": 5}), {}, ())
    with pytest.raises(SettingsError, match=r"'Colour' of source Trigger01 .* known are Timeout ms, On incomplete"):
        create_equipment(odb, builder(), {f"{TOP}/Fragments/Trigger01/Colour": 5}, ())


def test_the_plan_has_the_settings_of_this_runs_sources_only() -> None:
    settings = {
        "Timeout ms": 500,
        "Fragment Names": ["Trigger01", "Trigger09"],
        "Fragment Required": [True, False],
        "Fragments": {"trigger01": {"Reorder": 7}, "Trigger09": {"Reorder": 9}},
    }
    assert plan_settings(settings, ["Trigger01", "Trigger02"]) == {
        "Timeout ms": 500,
        "Fragment Names": ["Trigger01", "Trigger02"],
        "Fragment Required": [True, True],
        "Fragments": {"Trigger01": {"Reorder": 7}, "Trigger02": {}},
    }

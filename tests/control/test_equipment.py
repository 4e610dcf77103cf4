"""The Common record is MIDAS', key for key, and first values of file and code find their place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from phloem.control.database import Database
from phloem.control.equipment import (
    create_equipment,
    equipment_common,
    equipment_from_common,
    write_statistics,
)
from phloem.control.odb import Odb
from phloem.model.errors import SettingsError
from phloem.model.event import EQ_EB, EQ_POLLED, Equipment
from phloem.protocol.control import ComponentStatus, Register

# name, TID, item size: MIDAS, equipment_2fe_EB sample and reference section 2
COMMON = [
    ("Event ID", 4, 0),
    ("Trigger mask", 4, 0),
    ("Buffer", 12, 32),
    ("Type", 7, 0),
    ("Source", 7, 0),
    ("Format", 12, 8),
    ("Enabled", 8, 0),
    ("Read on", 7, 0),
    ("Period", 7, 0),
    ("Event limit", 10, 0),
    ("Num subevents", 6, 0),
    ("Log history", 7, 0),
    ("Frontend host", 12, 32),
    ("Frontend name", 12, 32),
    ("Frontend file name", 12, 256),
    ("Status", 12, 256),
    ("Status color", 12, 32),
    ("Hidden", 8, 0),
]


def equipment(**fields: object) -> Equipment:
    given = {"name": "Trigger01", "buffer": "BUF01", "type": EQ_POLLED | EQ_EB, **fields}
    return Equipment(**given)  # type: ignore[arg-type]


def register(**fields: object) -> Register:
    given = {
        "version": 1,
        "name": "ebfe01",
        "kind": "frontend",
        "pid": 1,
        "host": "daq",
        "incarnation": "x",
        "sequence": {},
        "equipment": (equipment(),),
        "settings": {"Trigger01": {"Threshold": 12, "Channels": [0, 1]}},
        "file": "ebfe.py",
        **fields,
    }
    return Register(**given)  # type: ignore[arg-type]


@pytest.fixture
def odb(tmp_path: Path) -> Iterator[Odb]:
    database = Database(tmp_path / "phloem.db")
    yield Odb(database)
    database.close()


def test_common_has_exactly_midas_keys_types_and_sizes() -> None:
    keys = equipment_common(equipment(), "host", "ebfe01", "ebfe.py")
    assert [(key.name, int(key.tid), key.size) for key in keys] == COMMON


def test_common_and_back_is_the_same_equipment() -> None:
    given = equipment(event_id=7, source=0xFFFFFF, period=3, event_limit=10.0, hidden=True, enabled=False)
    record = {key.name: key.value for key in equipment_common(given, "h", "n", "f")}
    assert equipment_from_common("Trigger01", record) == given
    assert equipment_from_common("Trigger01", {"event id": 7}).event_id == 7
    with pytest.raises(SettingsError, match=r"/Equipment/Trigger01/Common: .*period"):
        equipment_from_common("Trigger01", {"Period": "soon"})


def test_long_names_are_cut_where_they_say_least() -> None:
    record = {k.name: k.value for k in equipment_common(equipment(), "h" * 40, "n", "/very" * 60 + "/ebfe.py")}
    assert record["Frontend host"] == "h" * 31
    assert record["Frontend file name"].startswith("...")
    assert record["Frontend file name"].endswith("/ebfe.py")
    assert len(record["Frontend file name"]) == 255


def test_a_declared_equipment_appears_with_all_its_directories(odb: Odb) -> None:
    assert create_equipment(odb, register(), {}, ()) == []
    assert odb.names("/Equipment/Trigger01") == ["Common", "Settings", "Variables", "Statistics"]
    assert odb.get("/Equipment/Trigger01/Settings") == {"Threshold": 12, "Channels": [0, 1]}
    assert odb.get("/Equipment/Trigger01/Statistics") == {
        "Events sent": 0.0,
        "Events per sec.": 0.0,
        "kBytes per sec.": 0.0,
    }
    assert [(row.name, row.tid) for row in odb.rows("/Equipment/Trigger01/Common")] == [
        (name, tid) for name, tid, _ in COMMON
    ]


def test_the_file_goes_before_the_code_and_the_odb_before_both(odb: Odb) -> None:
    first = {"/Equipment/Trigger01/Common/Period": 10, "/equipment/trigger01/settings/threshold": 20}
    assert create_equipment(odb, register(), first, ()) == []
    assert odb.get("/Equipment/Trigger01/Common/Period") == 10
    assert odb.get("/Equipment/Trigger01/Settings/Threshold") == 20
    odb.set("/Equipment/Trigger01/Common/Period", 30)
    odb.set("/Equipment/Trigger01/Common/Buffer", "BUF09")
    found = create_equipment(odb, register(), first, ())
    assert [(d.path, d.origin, d.first, d.odb) for d in found] == [
        ("/Equipment/Trigger01/Common/Buffer", "code", "BUF01", "BUF09"),
        ("/Equipment/Trigger01/Common/Period", "file", 10, 30),
    ]
    assert create_equipment(odb, register(), first, ["/Equipment/trigger01/Common"]) == []
    assert odb.get("/Equipment/Trigger01/Common/Period") == 10
    assert odb.get("/Equipment/Trigger01/Common/Buffer") == "BUF01"


def test_who_runs_it_is_written_each_time(odb: Odb) -> None:
    create_equipment(odb, register(), {}, ())
    assert create_equipment(odb, register(host="other", name="fe"), {}, ()) == []
    assert odb.get("/Equipment/Trigger01/Common/Frontend host") == "other"
    assert odb.get("/Equipment/Trigger01/Common/Status") == "fe@other"


def test_statistics_come_from_the_heartbeat_and_leave_no_revisions(odb: Odb) -> None:
    create_equipment(odb, register(), {}, ())
    top = "/Equipment/Trigger01/Statistics"
    write_statistics(odb, register(), ComponentStatus(counters={"events": 5}, rates={"events_per_s": 2.5}))
    assert odb.get(top) == {"Events sent": 5.0, "Events per sec.": 2.5, "kBytes per sec.": 0.0}
    write_statistics(odb, register(), ComponentStatus(sources={"Trigger01": {"events": 6, "kb_per_s": 1.5}}))
    assert odb.get(top) == {"Events sent": 6.0, "Events per sec.": 2.5, "kBytes per sec.": 1.5}
    assert len(odb.history(f"{top}/Events sent")) == 1

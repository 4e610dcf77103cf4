"""The tree: paths, types, ranges, revisions, watchers, dumps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phloem.control.database import Database
from phloem.control.odb import Odb
from phloem.model.errors import NotFoundError, SettingsError
from phloem.model.event import TID


class Clock:
    """Says what it is told."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "phloem.db")
    yield opened
    opened.close()


@pytest.fixture
def odb(database: Database, clock: Clock) -> Odb:
    return Odb(database, clock)


def test_a_key_is_found_without_regard_to_case_and_keeps_its_name(odb: Odb) -> None:
    assert odb.create("/Equipment/Trigger01/Common/Event ID", TID.UINT16, 1)
    assert not odb.create("/equipment/TRIGGER01/common/event id", TID.UINT16, 2)
    assert odb.get("/equipment/trigger01/COMMON/Event Id") == 1
    assert odb.names("/equipment") == ["Trigger01"]
    assert odb.get("/") == {"Equipment": {"Trigger01": {"Common": {"Event ID": 1}}}}


def test_keys_stand_in_the_order_of_creation(odb: Odb) -> None:
    for name in ("zeta", "alpha", "Mid"):
        odb.create(f"/Top/{name}", TID.INT32, 0)
    odb.set("/Top/zeta", 5)
    assert odb.names("/Top") == ["zeta", "alpha", "Mid"]


def test_the_tree_is_the_same_after_the_process_that_kept_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.db")
    odb = Odb(database)
    odb.create("/Top/Zeta", TID.FLOAT64, [1.5, 2.5])
    odb.create("/Top/Name", TID.STRING, "x", 32)
    odb.set("/Top/name", "ü")
    before = odb.dump_json()
    database.close()
    database = Database(tmp_path / "a.db")
    again = Odb(database)
    assert again.dump_json() == before
    assert again.get("/Top") == {"Zeta": [1.5, 2.5], "Name": "ü"}
    again.create("/Top/Later", TID.BOOL, True)
    assert again.names("/Top") == ["Zeta", "Name", "Later"]
    database.close()


def test_a_second_owner_is_refused_and_told_who_the_first_is(database: Database) -> None:
    with pytest.raises(SettingsError, match=r"phloem\.db is owned by the run control with pid \d+"):
        Database(database.path)


@pytest.mark.parametrize(
    ("tid", "low", "high"),
    [
        (TID.UINT8, 0, 255),
        (TID.INT8, -128, 127),
        (TID.UINT16, 0, 65535),
        (TID.INT16, -32768, 32767),
        (TID.UINT32, 0, 4294967295),
        (TID.INT32, -2147483648, 2147483647),
        (TID.INT64, -9223372036854775808, 9223372036854775807),
        (TID.UINT64, 0, 18446744073709551615),
    ],
)
def test_integers_are_held_to_the_range_of_their_type(odb: Odb, tid: TID, low: int, high: int) -> None:
    odb.create("/N", tid, 1)
    for value in (low, high):
        assert odb.set("/N", value) == odb.get("/N") == value
    for value in (low - 1, high + 1):
        with pytest.raises(SettingsError, match=f"/N is {tid.odb_name} and takes a whole number from {low} to {high}"):
            odb.set("/N", value)
    assert odb.get("/N") == high


@pytest.mark.parametrize(
    ("tid", "size", "wrong"),
    [
        (TID.INT32, 0, 1.5),
        (TID.INT32, 0, "abc"),
        (TID.INT32, 0, True),
        (TID.BOOL, 0, "maybe"),
        (TID.BOOL, 0, 2),
        (TID.FLOAT64, 0, "much"),
        (TID.FLOAT64, 0, False),
        (TID.FLOAT32, 0, 1e39),
        (TID.CHAR, 0, "ab"),
        (TID.STRING, 8, 7),
        (TID.STRING, 8, "12345678"),
        (TID.STRING, 8, "üüüü"),
        (TID.STRING, 8, "a\0b"),
        (TID.INT32, 0, [1]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name_and_changes_nothing(
    odb: Odb, tid: TID, size: int, wrong: Any
) -> None:
    first: dict[TID, Any] = {TID.BOOL: True, TID.STRING: "old", TID.CHAR: "x"}
    odb.create("/Some/Key", tid, first.get(tid, 1), size)
    with pytest.raises(SettingsError, match="/Some/Key"):
        odb.set("/Some/Key", wrong)
    assert odb.get("/Some/Key") == first.get(tid, 1)


def test_people_type_text_and_the_type_understands_it(odb: Odb) -> None:
    odb.create("/b", TID.BOOL, False)
    odb.create("/i", TID.UINT32, 0)
    odb.create("/d", TID.FLOAT64, 0.0)
    odb.create("/s", TID.STRING, "", 32)
    odb.create("/a", TID.INT32, [1, 2, 3])
    assert odb.set("/b", "y") is True
    assert odb.set("/b", "false") is False
    assert odb.set("/i", "0xFFFF") == 65535
    assert odb.set("/d", "1e-3") == 0.001
    assert odb.set("/s", "12") == "12"
    assert odb.set("/a", "[4, 5]") == [4, 5]
    assert odb.set("/a[1]", "7") == [4, 7]
    assert odb.get("/a[1]") == 7


def test_an_array_is_not_overwritten_by_one_value_in_passing(odb: Odb) -> None:
    odb.create("/a", TID.INT32, [1, 2, 3])
    with pytest.raises(SettingsError, match=r"/a is an array of 3; give \[a, b\] or set /a\[0\]"):
        odb.set("/a", 5)
    with pytest.raises(NotFoundError, match=r"/a has 3 value\(s\): there is no \[3\]"):
        odb.set("/a[3]", 5)
    with pytest.raises(SettingsError, match="/a is an array"):
        odb.set("/a", "[1, 2")


def test_a_path_that_does_not_exist_names_the_nearest(odb: Odb) -> None:
    odb.create("/Equipment/Trigger01/Common/Event ID", TID.UINT16, 1)
    with pytest.raises(NotFoundError) as caught:
        odb.get("/Equipment/Trigger01/Common/EventID")
    assert str(caught.value) == (
        "the ODB has no key /Equipment/Trigger01/Common/EventID; the nearest is /Equipment/Trigger01/Common/Event ID"
    )
    with pytest.raises(NotFoundError, match=r"the ODB has no key /zzz$"):
        odb.set("/zzz", 1)


def test_a_directory_has_no_value_and_a_key_has_no_children(odb: Odb) -> None:
    odb.create("/Top/Key", TID.INT32, 1)
    with pytest.raises(SettingsError, match="/Top is a directory"):
        odb.set("/Top", 1)
    with pytest.raises(SettingsError, match="/Top/Key is a INT key: /Top/Key/Below cannot be below it"):
        odb.create("/Top/Key/Below", TID.INT32, 1)
    with pytest.raises(SettingsError, match="at most 31 printable"):
        odb.create("/Top/" + "x" * 32, TID.INT32, 1)


def test_a_key_without_write_access_is_for_run_control_alone(odb: Odb) -> None:
    odb.create("/Runinfo/State", TID.INT32, 1, mode=1)
    with pytest.raises(SettingsError, match="/Runinfo/State is written by run control alone"):
        odb.set("/Runinfo/State", 3)
    assert odb.set("/Runinfo/State", 3, force=True) == 3


def test_every_value_that_was_set_is_kept_with_time_and_author(odb: Odb, clock: Clock) -> None:
    odb.create("/HV/Demand", TID.FLOAT64, 100.0)
    clock.now_s += 10
    odb.set("/HV/Demand", 200.0, by="operator")
    clock.now_s += 10
    odb.set("/HV/Demand", 200.0, by="operator")
    odb.set("/HV/Demand", 300.0, revision=False)
    found = [(r.written_s, r.by, r.value) for r in odb.history("/hv/demand")]
    assert found == [(1_000_000.0, "", 100.0), (1_000_010.0, "operator", 200.0)]


def test_watchers_hear_what_is_set_below_their_prefix_until_they_end(odb: Odb) -> None:
    heard: list[tuple[str, Any]] = []
    odb.create("/Equipment/A/Settings/Gain", TID.INT32, 1)
    odb.create("/Equipment/AB/Settings/Gain", TID.INT32, 1)
    end = odb.watch("/equipment/a", lambda path, value: heard.append((path, value)))
    odb.set("/Equipment/A/Settings/Gain", 2)
    odb.set("/Equipment/AB/Settings/Gain", 3)
    end()
    odb.set("/Equipment/A/Settings/Gain", 4)
    assert heard == [("/Equipment/A/Settings/Gain", 2)]


def test_a_first_value_creates_a_key_and_never_overrules_one(odb: Odb) -> None:
    assert odb.first("/E/Settings", {"On": True, "N": 3, "X": 0.5, "Name": "a", "List": [1, 2], "Sub": {}}) == []
    assert odb.get("/E/Settings") == {"On": True, "N": 3, "X": 0.5, "Name": "a", "List": [1, 2], "Sub": {}}
    types = {row.name: row.tid for row in odb.rows("/E/Settings")}
    assert types == {"On": 8, "N": 7, "X": 10, "Name": 12, "List": 7, "Sub": 15}
    odb.set("/E/Settings/N", 4)
    (difference,) = odb.first("/E/Settings", {"On": True, "N": 3})
    assert (difference.path, difference.first, difference.odb) == ("/E/Settings/N", 3, 4)
    assert str(difference) == (
        "/E/Settings/N: the file says 3, the ODB has 4, which stands; --reset '/E/Settings/N' takes the other"
    )
    assert odb.get("/E/Settings/N") == 4
    assert odb.first("/E/Settings", {"N": 3}, reset=True) == []
    assert odb.get("/E/Settings/N") == 3


def test_large_first_numbers_get_a_type_that_holds_them(odb: Odb) -> None:
    odb.first("/Big", 2**40)
    assert odb.rows("/Big")[0].tid == 17
    with pytest.raises(SettingsError, match="/None: None is no ODB value"):
        odb.first("/None", None)


def test_what_a_transaction_did_is_undone_in_memory_too(odb: Odb, database: Database) -> None:
    odb.create("/Runinfo/Run number", TID.INT32, 41)

    def fail() -> None:
        with database.transaction():
            odb.set("/Runinfo/Run number", 42)
            odb.create("/New", TID.INT32, 1)
            raise SettingsError("refused")

    with pytest.raises(SettingsError, match="refused"):
        fail()
    assert odb.get("/Runinfo/Run number") == 41
    assert not odb.exists("/New")
    assert [r.value for r in odb.history("/Runinfo/Run number")] == [41]


def test_a_dump_has_the_form_of_midas(odb: Odb) -> None:
    odb.create("/Experiment/Name", TID.STRING, "exp", 32)
    odb.create("/Experiment/Hosts", TID.STRING, ["localhost", ""], 256)
    odb.create("/Experiment/Size", TID.UINT32, 0x800000)
    odb.create("/Experiment/Mask", TID.UINT16, 1)
    odb.create("/Experiment/On", TID.BOOL, True)
    odb.create("/Experiment/Sent", TID.FLOAT64, 50.0)
    odb.create("/Experiment/Rate", TID.FLOAT64, 0.1)
    odb.create("/Tmp", TID.KEY)
    assert (
        odb.dump_json()
        == """{
  "/ODB path" : "/",
  "Experiment" : {
    "Name/key" : { "type" : 12, "item_size" : 32, "access_mode" : 7, "last_written" : 1000000 },
    "Name" : "exp",
    "Hosts/key" : { "type" : 12, "num_values" : 2, "item_size" : 256, "access_mode" : 7, "last_written" : 1000000 },
    "Hosts" : [ "localhost", "" ],
    "Size/key" : { "type" : 6, "access_mode" : 7, "last_written" : 1000000 },
    "Size" : "0x00800000",
    "Mask/key" : { "type" : 4, "access_mode" : 7, "last_written" : 1000000 },
    "Mask" : "0x0001",
    "On/key" : { "type" : 8, "access_mode" : 7, "last_written" : 1000000 },
    "On" : true,
    "Sent/key" : { "type" : 10, "access_mode" : 7, "last_written" : 1000000 },
    "Sent" : 50,
    "Rate/key" : { "type" : 10, "access_mode" : 7, "last_written" : 1000000 },
    "Rate" : 0.1
  },
  "Tmp" : {
  }
}
"""
    )


def test_a_snapshot_is_valid_json_whatever_people_write(odb: Odb) -> None:
    odb.create('/Odd "name" \\', TID.STRING, 'line\none "two" ü \t', 64)
    odb.create("/Nan", TID.FLOAT64, [float("nan"), float("inf")])
    text, digest = odb.snapshot()
    tree = json.loads(text)
    assert tree['Odd "name" \\'] == 'line\none "two" ü \t'
    assert tree["Nan"] == ["NaN", "Infinity"]
    assert digest == hashlib.sha256(text.encode()).hexdigest()

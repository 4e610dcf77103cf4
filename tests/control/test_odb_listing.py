"""`phloem odb ls`: the table of the seed, column for column, written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from phloem.cli.odb import age, listing, plain_value, table
from phloem.control.database import Database
from phloem.control.equipment import equipment_common
from phloem.control.odb import Odb
from phloem.model.event import EQ_EB, EQ_POLLED, RO_ODB, RO_RUNNING, TID, Equipment

HOURS_18 = 18 * 3600.0

SEED = """\
Key name                        Type    #Val  Size  Last Opn Mode Value
---------------------------------------------------------------------------
Trigger01                       DIR
    Common                      DIR
        Event ID                WORD    1     2     18h  0   RWD  1
        Trigger mask            WORD    1     2     18h  0   RWD  65535
        Buffer                  STRING  1     32    18h  0   RWD  BUF01
        Type                    INT     1     4     18h  0   RWD  130
        Source                  INT     1     4     18h  0   RWD  16777215
        Format                  STRING  1     8     18h  0   RWD  MIDAS
        Enabled                 BOOL    1     4     18h  0   RWD  y
        Read on                 INT     1     4     18h  0   RWD  257
        Period                  INT     1     4     18h  0   RWD  500
        Event limit             DOUBLE  1     8     18h  0   RWD  0
        Num subevents           DWORD   1     4     18h  0   RWD  0
        Log history             INT     1     4     18h  0   RWD  0
        Frontend host           STRING  1     32    18h  0   RWD  hostname
        Frontend name           STRING  1     32    18h  0   RWD  ebfe01
        Frontend file name      STRING  1     256   18h  0   RWD  .../eventbuilder/ebfe.c
        Status                  STRING  1     256   18h  0   RWD  ebfe01@hostname
        Status color            STRING  1     32    18h  0   RWD  greenLight
        Hidden                  BOOL    1     4     18h  0   RWD  n"""


class Clock:
    """Says what it is told."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def seed_equipment() -> Equipment:
    declared = Equipment(
        "Trigger%02d",
        event_id=1,
        trigger_mask=0xFFFF,
        buffer="BUF%02d",
        type=EQ_POLLED | EQ_EB,
        source=0xFFFFFF,
        format="MIDAS",
        read_on=RO_RUNNING | RO_ODB,
        period=500,
    )
    return declared.indexed(1)


def test_ls_lr_prints_the_table_of_the_seed(tmp_path: Path) -> None:
    clock = Clock()
    database = Database(tmp_path / "phloem.db")
    odb = Odb(database, clock)
    for key in equipment_common(seed_equipment(), "hostname", "ebfe01", ".../eventbuilder/ebfe.c"):
        odb.create(f"/Equipment/Trigger01/Common/{key.name}", key.tid, key.value, key.size)
    clock.now_s += HOURS_18
    assert table(odb.rows("/Equipment/Trigger01", recursive=True)) == SEED
    database.close()


def test_ls_l_of_a_directory_lists_its_keys_and_of_a_key_the_key(tmp_path: Path) -> None:
    clock = Clock()
    database = Database(tmp_path / "phloem.db")
    odb = Odb(database, clock)
    odb.create("/Top/Sub/Key", TID.INT32, 1)
    odb.create("/Top/Hosts", TID.STRING, ["a", "bb"], 64)
    odb.create("/Top/State", TID.INT32, 3, mode=1)
    odb.create("/Top/Text", TID.STRING, "one\ntwo", 64)
    odb.create("/Top/Quite a long name that fills it", TID.FLOAT32, 0.5)
    clock.now_s += 12
    odb.watch("/Top/State", lambda path, value: None)
    assert table(odb.rows("/Top")).splitlines()[2:] == [
        "Sub                             DIR",
        "Hosts                           STRING  2     64    12s  0   RWD",
        "                                        [0]             a",
        "                                        [1]             bb",
        "State                           INT     1     4     12s  1   R    3",
        "Text                            STRING  1     64    12s  0   RWD  <multi-line>",
        "one",
        "two",
        "Quite a long name that fills it FLOAT   1     4     12s  0   RWD  0.5",
    ]
    assert table(odb.rows("/Top/State")).endswith("INT     1     4     12s  1   R    3")
    assert listing(odb.rows("/Top")).splitlines() == [
        "Sub",
        "Hosts",
        "                                a",
        "                                bb",
        "State                           3",
        "Text                            one",
        "two",
        "Quite a long name that fills it 0.5",
    ]
    assert listing(odb.rows("/", recursive=True)).splitlines()[:2] == ["Top", "    Sub"]
    assert listing(odb.rows("/Top/Sub", recursive=True)).splitlines() == [
        "Sub",
        "    Key                         1",
    ]
    database.close()


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        (0.0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "60m"),
        (HOURS_18, "18h"),
        (86400 * 5, "5d"),
        (86400 * 98, "98d"),
        (86400 * 99, ">99d"),
    ],
)
def test_last_is_short(age_s: float, text: str) -> None:
    assert age(age_s) == text


def test_get_prints_values_as_they_are() -> None:
    assert plain_value(True) == "y"
    assert plain_value([1, 2]) == "1\n2"
    assert plain_value(0.1) == "0.1"
    assert plain_value("BUF01") == "BUF01"
    assert plain_value({"Event ID": 1}) == '{\n  "Event ID": 1\n}'

"""The example of the README, as it stands: two frontends of fifteen lines, built and written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flow.lab import Lab, Live, until
from tests.flow.reader import banks_of, run_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "eventbuilder"
UINT16 = 4

# The seed's listing of a frontend started with -i 1. Type is POLLED|EB = 130: there EB was 64, of an older MIDAS.
# Columns: name 0 (indented by 4 for each level), type 32, #val 40, size 46, last 52, opn 57, mode 61, value 66.
COMMON = """\
Key name                        Type    #Val  Size  Last Opn Mode Value
---------------------------------------------------------------------------
Trigger01                       DIR
    Common                      DIR
        Event ID                WORD    1     2     *    0   RWD  1
        Trigger mask            WORD    1     2     *    0   RWD  65535
        Buffer                  STRING  1     32    *    0   RWD  BUF01
        Type                    INT     1     4     *    0   RWD  130
        Source                  INT     1     4     *    0   RWD  0
        Format                  STRING  1     8     *    0   RWD  MIDAS
        Enabled                 BOOL    1     4     *    0   RWD  y
        Read on                 INT     1     4     *    0   RWD  257
        Period                  INT     1     4     *    0   RWD  500
        Event limit             DOUBLE  1     8     *    0   RWD  0
        Num subevents           DWORD   1     4     *    0   RWD  0
        Log history             INT     1     4     *    0   RWD  0
        Frontend host           STRING  1     32    *    0   RWD  *
        Frontend name           STRING  1     32    *    0   RWD  ebfe01
        Frontend file name      STRING  1     256   *    0   RWD  *
"""


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    for file in ("ebfe.py", "experiment.toml"):
        shutil.copy(EXAMPLE / file, shared_lab.folder)
    shared_lab.file = shared_lab.folder / "experiment.toml"
    with shared_lab.up() as live:
        yield live


def test_the_example_takes_a_run_with_the_banks_of_both_frontends(live: Live) -> None:
    live.start()
    live.until_events("EB", 100)
    document = live.stop()
    assert document["balanced"] is True
    run = run_of(document["files"][0])
    assert run.serials == list(range(document["events"]))
    for event in run.events:
        banks = {bank.name: bank for bank in banks_of(event)}
        built = [name for name in ("AD01", "AD02") if name in banks]
        assert built == ["AD01", "AD02"] or event.serial_number >= 100, "only the last ones may lack a fragment"
        for name in built:
            assert (banks[name].tid, len(banks[name].data)) == (UINT16, 32 * 2)
            assert all(0 < value < 300 for value in banks[name].values), "Poisson of mean 100"


def test_the_equipment_is_in_the_odb_as_midas_lists_it(live: Live) -> None:
    lines = live.lab.done("odb", "ls", "-lr", "/Equipment/Trigger01").out.splitlines()
    wanted = COMMON.splitlines()
    for line, found in zip(wanted, lines, strict=False):
        for part, at in (("name", slice(0, 52)), ("the rest", slice(57, 66))):
            assert found[at].rstrip() == line[at].rstrip(), f"{part} of {line!r}"
        assert found[66:] == line[66:] or line[66:] == "*"


def test_the_environment_gives_the_index_of_a_frontend_that_is_started_by_hand(live: Live) -> None:
    args = ("frontend", "ebfe.py", "-e", "experiment.toml")
    with live.lab.component(*args, MIDAS_FRONTEND_INDEX="3"):
        until(lambda: "ebfe03" in [part["name"] for part in live.status()["components"]], "ebfe03 is there")
        document = live.lab.ask("start")
        assert document["sources"] == {"EB": ["Trigger01", "Trigger02", "Trigger03"]}
        live.until_events("EB", 10)
        document = live.stop()
        names = [bank.name for bank in banks_of(run_of(document["files"][0]).events[0])]
        assert names == ["AD01", "AD02", "AD03"]
        assert document["balanced"] is True


def test_an_index_in_the_environment_that_is_no_number_is_an_error(live: Live) -> None:
    ran = live.lab.run("frontend", "ebfe.py", "-e", "experiment.toml", MIDAS_FRONTEND_INDEX="two")
    assert ran.status == 1
    assert ran.err == "phloem: MIDAS_FRONTEND_INDEX is 'two'; it must be a number\n"


def test_the_same_frontend_twice_with_one_index_is_refused_by_name(live: Live) -> None:
    ran = live.lab.run("frontend", "ebfe.py", "-i", "1", "-e", "experiment.toml")
    assert ran.status == 1
    assert "ebfe01" in ran.err
    assert ran.err.count("\n") == 1

"""Run numbers, the runs table and the journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from phloem.control.database import Database
from phloem.control.runs import Runs, file_name, last_number_on_disk
from phloem.model.errors import NotFoundError, SettingsError
from phloem.model.run import RunInfo, RunStatus
from phloem.protocol.control import Plan
from phloem.protocol.state import State


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    database = Database(tmp_path / "phloem.db")
    yield Runs(database)
    database.close()


def test_the_last_number_on_disk_is_found_whatever_follows_it(tmp_path: Path) -> None:
    pattern = "run{run:05d}.mid"
    assert last_number_on_disk(tmp_path, pattern) == 0
    assert last_number_on_disk(tmp_path / "nowhere", pattern) == 0
    for name in ("run00007.mid", "run00041.mid.lz4", "run00040_0003.mid", "run00042.idx", "xrun00099.mid", "run.mid"):
        (tmp_path / name).touch()
    assert last_number_on_disk(tmp_path, pattern) == 42
    (tmp_path / "run123456.mid").touch()
    assert last_number_on_disk(tmp_path, pattern) == 123456


def test_a_pattern_with_a_directory_and_signs_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a+b.17.mid").touch()
    assert last_number_on_disk(tmp_path, "data/a+b.{run}.mid") == 17
    assert file_name("data/a+b.{run}.mid", 18) == "data/a+b.18.mid"


@pytest.mark.parametrize("pattern", ["run.mid", "run{number}.mid", "run{run", "run{}.mid"])
def test_a_pattern_without_a_run_number_is_refused(pattern: str) -> None:
    with pytest.raises(SettingsError, match="file pattern"):
        file_name(pattern, 1)


def test_a_run_is_open_until_it_is_closed_and_keeps_what_was_said_of_it(runs: Runs) -> None:
    assert runs.last_number() == 0
    assert runs.unclosed() is None
    info = RunInfo(42, "ann", "pedestals", False, 1000.5)
    runs.open(info, "abc", '{"a": 1}', {"logger": Plan(file="run00042.mid")})
    runs.reach(42, State.RUN, 1001.5)
    record = runs.unclosed()
    assert record is not None
    assert record.info == info
    assert (record.state, record.begun_s, record.ended_s) == (State.RUN, 1001.5, None)
    assert runs.plans(42) == {"logger": Plan(file="run00042.mid")}
    assert runs.settings_json(42) == '{"a": 1}'
    result = {"files": ["run00042.mid"], "account": {"sources": {}}, "balanced": True}
    runs.close(42, RunStatus.COMPLETE, 1002.5, result)
    assert runs.unclosed() is None
    closed = runs.get(42)
    assert (closed.status, closed.state, closed.ended_s) == (RunStatus.COMPLETE, State.STOP, 1002.5)
    assert (closed.files, closed.account, closed.result) == (["run00042.mid"], {"sources": {}}, result)


def test_a_number_cannot_be_used_again(runs: Runs) -> None:
    runs.open(RunInfo(7), "", "{}", {})
    runs.close(7, RunStatus.FAILED, 1.0, {})
    with pytest.raises(sqlite3.IntegrityError):
        runs.open(RunInfo(7), "", "{}", {})


def test_runs_are_listed_newest_first(runs: Runs) -> None:
    for number in (1, 2, 3):
        runs.open(RunInfo(number), "", "{}", {})
        runs.close(number, RunStatus.COMPLETE, 1.0, {})
    assert [record.number for record in runs.last(2)] == [3, 2]
    with pytest.raises(NotFoundError, match="no run 9 in the runs table; the last is 3"):
        runs.get(9)


def test_the_journal_keeps_the_first_asking_and_the_answer(runs: Runs) -> None:
    runs.open(RunInfo(1), "", "{}", {})
    runs.asked(1, "1.END", "END", "ebfe01", 10.0)
    runs.asked(1, "1.END", "END", "ebfe02", 10.5)
    runs.answered(1, "1.END", "ebfe01", 11.0, "", {"sent": {}})
    runs.asked(1, "1.END", "END", "ebfe01", 12.0)
    found = [(s.component, s.asked_s, s.answered_s, s.error, s.result) for s in runs.steps(1)]
    assert found == [("ebfe01", 10.0, 11.0, "", {"sent": {}}), ("ebfe02", 10.5, None, "", {})]

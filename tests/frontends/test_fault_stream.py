"""The stream of a faulty frontend, its log, and how it goes on after a kill: no process, values by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phloem.dataflow.frontend import BatchDraft, EventDraft
from phloem.frontends.faulty import FaultSettings, Faulty, What, stream
from phloem.model.errors import SettingsError

EVERYTHING = {
    "Drop rate": 0.02,
    "Duplicate rate": 0.02,
    "Duplicate distance": 5,
    "Reorder rate": 0.02,
    "Reorder distance": 9,
    "Garbage rate": 0.02,
    "Burst drop at": 300,
    "Burst drop": 40,
    "Shift at": 500,
    "First serial": 2**32 - 700,
    "Reset at": 900,
}


def sent(settings: dict[str, Any], slots: int, start: int = 0, index: int = 1) -> np.ndarray[Any, Any]:
    return stream(FaultSettings.parsed(settings), index, start, slots)


def rows(settings: dict[str, Any], slots: int) -> list[tuple[int, int, int, int]]:
    """(serial, trigger, what, by) of each fragment."""
    return [tuple(row) for row in sent(settings, slots).tolist()]


# ---------------------------------------------------------------------- the stream


def test_without_faults_serial_and_trigger_number_are_the_count() -> None:
    assert rows({}, 3) == [(0, 0, 0, 0), (1, 1, 0, 0), (2, 2, 0, 0)]


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
def test_the_stream_is_the_same_wherever_it_is_cut(step: int) -> None:
    whole = sent(EVERYTHING, 2000)
    parts = [sent(EVERYTHING, min(step, 2000 - start), start) for start in range(0, 2000, step)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert {int(what) for what in whole["what"]} == {What.CLEAN, What.DUPLICATE, What.REORDER, What.GARBAGE}


def test_another_seed_or_source_has_other_faults() -> None:
    streams = [sent({"Drop rate": 0.1, "Seed": seed}, 1000, index=index) for seed in (1, 2) for index in (1, 2)]
    assert len({tuple(one["serial"]) for one in streams}) == 4


@pytest.mark.parametrize(("rate", "low", "high"), [(1e-3, 900, 1100), (0.1, 99_000, 101_000), (1.0, 10**6, 10**6)])
def test_faults_are_as_frequent_as_the_rate_says(rate: float, low: int, high: int) -> None:
    assert low <= 10**6 - len(sent({"Drop rate": rate}, 10**6)) <= high


def test_a_duplicate_follows_its_fragment() -> None:
    assert rows({"Duplicate rate": 1}, 2) == [
        (0, 0, 0, 0),
        (0, 0, What.DUPLICATE, 0),
        (1, 1, 0, 0),
        (1, 1, What.DUPLICATE, 0),
    ]


def test_what_is_moved_back_leaves_behind_the_later_one_also_at_the_end_of_the_events() -> None:
    moved = {"Events": 3, "Reorder rate": 1, "Reorder distance": 1}
    assert rows(moved, 1) == []
    assert rows(moved, 10) == [(0, 0, What.REORDER, 1), (1, 1, What.REORDER, 1), (2, 2, What.REORDER, 1)]
    some = sent({"Reorder rate": 0.1, "Reorder distance": 4}, 1000)
    places = {int(trigger): at for at, trigger in enumerate(some["trigger"])}
    for row in some[some["what"] == What.REORDER]:
        trigger, behind = int(row["trigger"]), int(row["trigger"]) + int(row["by"])
        assert behind not in places or some["what"][places[behind]] == What.REORDER or places[trigger] > places[behind]


def test_the_serial_number_wraps() -> None:
    assert [row[0] for row in rows({"First serial": 2**32 - 2}, 4)] == [2**32 - 2, 2**32 - 1, 0, 1]


def test_a_shift_loses_one_trigger_and_the_serial_number_does_not_show_it() -> None:
    assert [row[:2] for row in rows({"Shift at": 2, "Events": 5}, 9)] == [(0, 0), (1, 1), (2, 3), (3, 4)]


def test_a_reset_lets_the_serial_number_begin_at_0() -> None:
    reset = {"Reset at": 2, "First serial": 100}
    assert [row[:2] for row in rows(reset, 4)] == [(100, 0), (101, 1), (0, 2), (1, 3)]


def test_a_burst_loses_consecutive_ones_whatever_else_is_set() -> None:
    lost = {"Burst drop at": 2, "Burst drop": 3, "Garbage rate": 1}
    assert [row[0] for row in rows(lost, 7)] == [0, 1, 5, 6]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"Drop rate": 0.6, "Garbage rate": 0.6}, "nor their sum above 1"),
        ({"Drop rate": -0.1}, "none may be below 0"),
        ({"Reorder distance": 0}, "'Reorder distance': 0"),
        ({"Burst drop": -1}, "'Burst drop': -1"),
        ({"Seed": "x"}, "Expected `int`"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        FaultSettings.parsed(settings)


# ---------------------------------------------------------------------- frontend and log


class Killed(Exception):
    """The process is no more."""


class Host:
    """Takes what is sent: (serial, trigger) of each fragment, None for garbage. Dies when it has taken ``limit``."""

    def __init__(self, limit: int = 10**9) -> None:
        self.taken: list[tuple[int, int] | None] = []
        self.limit = limit

    def send(self, draft: EventDraft | BatchDraft) -> None:
        assert isinstance(draft, BatchDraft)
        assert draft.serial_numbers is not None
        identity = next(np.asarray(data) for name, _, data in draft.banks if name == b"ID01")
        assert all(len(np.asarray(data)) == draft.n_events == len(draft.serial_numbers) for _, _, data in draft.banks)
        for serial, (source, trigger) in zip(draft.serial_numbers.tolist(), identity.tolist(), strict=True):
            assert source == 1
            self.take((serial, trigger))

    def take(self, fragment: tuple[int, int] | None) -> None:
        if len(self.taken) == self.limit:
            raise Killed
        self.taken.append(fragment)

    def wait(self, timeout_s: float) -> None:
        raise AssertionError("nothing to wait for")

    def message(self, text: str, severity: str) -> None:
        raise AssertionError(text)

    def missed(self, events: int, equipment: str) -> None:
        raise AssertionError("the hardware missed nothing")

    def counter_restarted(self, serial_number: int, event: int, equipment: str) -> None:
        raise AssertionError("its counter did not restart")


def frontend(host: Host, log: Path | str, **settings: Any) -> Faulty:
    """One with index 1 in RUN. ``_`` in a setting is a blank. Its batches are 8 slots long."""
    made = Faulty(1, host)
    made.settings.update({"Log": str(log), "Payload bytes": 512 << 10})
    made.settings.update({key.replace("_", " "): value for key, value in settings.items()})
    made.init()
    return made


def read_all(reading: Faulty, host: Host) -> None:
    """Until nothing more comes, or the host dies."""
    while reading._triggered():
        event = EventDraft("Trigger01")
        reading.read(event)
        if event.raw:
            host.take(None)


def begun(host: Host, log: Path | str, **settings: Any) -> Faulty:
    made = frontend(host, log, **settings)
    made.prepare(42)
    made.begin_of_run(42)
    return made


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {key.replace(" ", "_"): value for key, value in settings.items()}


def test_the_log_of_a_run_line_by_line(tmp_path: Path) -> None:
    host = Host()
    made = begun(host, tmp_path, Events=12, Burst_drop_at=2, Burst_drop=8, Shift_at=10, First_serial=100)
    read_all(made, host)
    lines = (tmp_path / "Trigger01.faults").read_text().splitlines()
    assert lines[0].startswith('run 42 Trigger01 1 {"Events":12,"Drop rate":0.0,')
    assert lines[1:] == [
        "drop 2 2 102 6",
        "batch 0 0 8 2",
        "drop 2 8 108 2",
        "shift 2 10 110 1",
        "batch 2 8 3 1",
        "done 3",
    ]
    assert host.taken == [(100, 0), (101, 1), (110, 11)]


def test_what_is_logged_of_single_faults(tmp_path: Path) -> None:
    host = Host()
    read_all(begun(host, tmp_path, Events=2, Duplicate_rate=1), host)
    text = (tmp_path / "Trigger01.faults").read_text()
    assert text.splitlines()[1:] == ["duplicate 1 0 0 0", "duplicate 3 1 1 0", "batch 0 0 2 4", "done 4"]
    read_all(begun(host, tmp_path, Events=2, Reorder_rate=1), host)
    behind = (tmp_path / "Trigger01.faults").read_text()
    assert behind.startswith(text), "it is appended"
    assert behind[len(text) :].splitlines()[1:] == [
        "hold 0 0 0 1",
        "hold 0 1 1 1",
        "reorder 0 0 0 1",
        "reorder 1 1 1 1",
        "batch 0 0 3 2",
        "done 2",
    ]


def test_the_log_has_the_batch_before_it_is_sent(tmp_path: Path) -> None:
    host = Host(limit=0)
    with pytest.raises(Killed):
        read_all(begun(host, tmp_path, Events=4, Garbage_rate=0.0), host)
    assert (tmp_path / "Trigger01.faults").read_text().endswith("batch 0 0 4 4\ndone 4\n")


def test_a_log_directory_that_is_not_named_means_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    host = Host()
    read_all(begun(host, "", Events=4), host)
    assert len(host.taken) == 4
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- killed, and started again


@pytest.mark.parametrize("limit", [0, 1, 7, 8, 9, 50, 333, 334, 335, 1000])
def test_it_goes_on_exactly_behind_the_last_fragment_that_was_sent(tmp_path: Path, limit: int) -> None:
    settings = plain({**EVERYTHING, "Events": 1200})
    whole = Host()
    read_all(begun(whole, tmp_path / "whole", **settings), whole)
    first, second = Host(limit), Host()
    with pytest.raises(Killed):
        read_all(begun(first, tmp_path, **settings), first)
    again = frontend(second, tmp_path, **settings)
    again.rejoin(42, {"Trigger01": limit}, {"Trigger01": 0})
    read_all(again, second)
    assert first.taken + second.taken == whole.taken
    log, expected = ((at / "Trigger01.faults").read_text() for at in (tmp_path, tmp_path / "whole"))
    assert log.replace(f"rejoin {limit}\n", "") == expected, "no batch and no fault is missing or twice"


def test_it_goes_on_after_a_second_kill(tmp_path: Path) -> None:
    settings = plain({**EVERYTHING, "Events": 600})
    whole, hosts = Host(), [Host(100), Host(60), Host()]
    read_all(begun(whole, tmp_path / "whole", **settings), whole)
    with pytest.raises(Killed):
        read_all(begun(hosts[0], tmp_path, **settings), hosts[0])
    for host, number in zip(hosts[1:], (100, 160), strict=True):
        again = frontend(host, tmp_path, **settings)
        again.rejoin(42, {"Trigger01": number}, {})
        try:
            read_all(again, host)
        except Killed:
            assert host is hosts[1]
    assert [fragment for host in hosts for fragment in host.taken] == whole.taken


def test_a_batch_of_which_only_a_part_was_logged_is_taken_off_and_made_again(tmp_path: Path) -> None:
    settings = plain({"Drop rate": 0.5, "Events": 64})
    host = Host()
    read_all(begun(host, tmp_path, **settings), host)
    log = tmp_path / "Trigger01.faults"
    expected = log.read_text()
    ends = [at + 1 for at in range(len(expected)) if expected[at] == "\n" and "batch" in expected[:at].split("\n")[-1]]
    number = int(expected[: ends[2]].split("\n")[-2].split()[1]) + int(expected[: ends[2]].split("\n")[-2].split()[4])
    log.write_text(expected[: ends[2] + 15])
    second = Host()
    again = frontend(second, tmp_path, **settings)
    again.rejoin(42, {"Trigger01": number}, {})
    read_all(again, second)
    assert host.taken[:number] + second.taken == host.taken
    assert log.read_text().replace(f"rejoin {number}\n", "") == expected


@pytest.mark.parametrize(
    ("run", "number", "log", "text"),
    [
        (42, 5, "", "without 'Log' it has no fault log"),
        (43, 5, "here", "has no line 'run 43 Trigger01 '"),
        (42, 999, "here", "ends with fragment 20 of run 42, and 999 were sent"),
    ],
)
def test_where_it_was_cannot_be_guessed(tmp_path: Path, run: int, number: int, log: str, text: str) -> None:
    host = Host()
    read_all(begun(host, tmp_path / "here", Events=20), host)
    again = frontend(Host(), tmp_path / log if log else "", Events=20)
    with pytest.raises(SettingsError, match=text):
        again.rejoin(run, {"Trigger01": number}, {})

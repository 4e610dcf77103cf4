"""User code in the event builder: the examples as they stand, what it may return, and what becomes of its errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.flow.lab import Lab, Live, until
from tests.flow.reader import Event, banks_of, run_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "user_code"
UINT16, UINT32, FLOAT32 = 4, 6, 9
PEDESTAL = 400.0


def take_run(live: Live, events: int = 300) -> tuple[dict[str, Any], list[Event]]:
    """A run until so many events came to the builder; its document and the events of its file."""
    live.start()
    until(lambda: live.part("EB")["sources"].get("Trigger01", {}).get("received", 0) >= events, "events at EB")
    document = live.stop()
    assert document["balanced"] is True, document
    return document, run_of(document["files"][0]).events


def example(lab: Lab, code: str, **settings: str) -> None:
    """The example's experiment, with another code file."""
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, lab.folder)
    text = (EXAMPLE / "experiment.toml").read_text().replace('"per_event.py"', f'"{code}"')
    for key, value in settings.items():
        text = text.replace('"User Field"', f'"{key.replace("_", " ")}" = {value}\n"User Field"')
    lab.write(text)


def height(event: Event, bank: str) -> float:
    """Highest sample of a waveform over the pedestal."""
    return max(next(b for b in banks_of(event) if b.name == bank).values) - PEDESTAL


def fate(document: dict[str, Any], name: str) -> int:
    return int(document["account"]["sources"]["Trigger01"][name])


@pytest.mark.parametrize("code", ["per_event.py", "batch.py"])
def test_the_example_leaves_out_what_is_below_threshold_and_adds_a_bank(lab: Lab, code: str) -> None:
    example(lab, code)
    with lab.up() as live:
        document, events = take_run(live)
    complete = [event for event in events if {"AD01", "AD02"} <= {b.name for b in banks_of(event)}]
    assert len(complete) > 50
    for event in complete:
        banks = banks_of(event)
        assert banks[0].name == "SUMM", "banks of the user come first"
        assert banks[0].tid == FLOAT32
        assert banks[0].values == (height(event, "AD01"), height(event, "AD02"))
        assert max(banks[0].values) >= 100
    assert fate(document, "discarded") > 0
    assert fate(document, "sent") == fate(document, "built") + fate(document, "discarded") + fate(
        document, "incomplete"
    )
    if code == "per_event.py":
        seen = [next(b for b in banks_of(event) if b.name == "SEEN").values[0] for event in events]
        assert seen == list(range(1, len(events) + 1)), "ctx.state counts the events that left"


def test_the_code_may_make_the_whole_event(lab: Lab) -> None:
    example(lab, "compose.py", User_build="true")
    with lab.up() as live:
        document, events = take_run(live)
    assert {tuple(bank.name for bank in banks_of(event)) for event in events} <= {("PEAK",), ("PEAK", "MISS")}
    whole = [banks_of(event)[0].values for event in events if len(banks_of(event)) == 1]
    assert all(values[0] == 1 and values[2] == 2 and 400 <= values[1] <= 4095 for values in whole)
    assert fate(document, "built") == len(whole)


RETURNS = """
from phloem import EB_SKIP, EB_SUCCESS, EB_USER_ERROR

def eb_begin_of_run(run, user_field, restarted):
    open("begun.txt", "w").write(f"{run} {user_field} {restarted}")

def eb_user(fragments, event):
    if event.serial_number == 20:
        {at_20}
    return EB_SKIP if event.serial_number % 2 else EB_SUCCESS

def eb_end_of_run(run):
    open("ended.txt", "w").write(str(run))
"""


def with_code(lab: Lab, at_20: str, error: str = "stop") -> None:
    lab.write(RETURNS.replace("{at_20}", at_20), "mine.py")
    lab.write(
        (EXAMPLE / "experiment.toml")
        .read_text()
        .replace('"per_event.py"', '"mine.py"')
        .replace('"User error" = "stop"', f'"User error" = "{error}"')
    )


def test_skip_leaves_an_event_out_and_begin_and_end_are_called(lab: Lab) -> None:
    with_code(lab, "pass")
    with lab.up() as live:
        document, events = take_run(live)
    assert [event.serial_number for event in events] == list(range(0, 2 * len(events), 2))
    assert fate(document, "discarded") == fate(document, "sent") // 2
    assert (lab.folder / "begun.txt").read_text() == "1 100 False"
    assert (lab.folder / "ended.txt").read_text() == "1"


@pytest.mark.parametrize(
    ("at_20", "said"),
    [
        ("return EB_USER_ERROR", "eb_user() returned EB_USER_ERROR"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return 'yes'", "eb_user() returned 'yes'"),
    ],
)
def test_an_error_ends_the_run_by_itself_with_its_place_in_the_messages(lab: Lab, at_20: str, said: str) -> None:
    with_code(lab, at_20)
    with lab.up() as live:
        live.start()
        until(lambda: live.status()["state"] == "STOP", "the run has ended by itself")
        told = "\n".join(live.messages())
        run = live.operator.runs(1).result(10)[0]
    assert said in told
    assert "event 20" in told
    if "1 / 0" in at_20:
        assert 'mine.py", line 9, in eb_user' in told, "the traceback"
    document = run["result"]
    assert document["balanced"] is True
    assert run_of(document["files"][0]).serials == list(range(0, 20, 2))
    assert fate(document, "built") == 10
    assert fate(document, "discarded") == fate(document, "sent") - 10
    assert "eb_user" in document["reason"]


def test_by_setting_an_error_leaves_its_event_out_and_is_told_once(lab: Lab) -> None:
    with_code(lab, "pass\n    if event.serial_number % 10 == 0:\n        raise RuntimeError('broken')", error="skip")
    with lab.up() as live:
        _, events = take_run(live)
        told = [text for text in live.messages() if "broken" in text]
        take_run(live)  # the error must not hold anything that the next run needs
    assert all(event.serial_number % 10 for event in events)
    assert len(events) > 20
    assert len(told) == 1


def test_code_that_cannot_be_loaded_refuses_prepare_and_says_where(lab: Lab) -> None:
    with_code(lab, "this is no Python")
    with lab.up():
        ran = lab.run("start")
        assert ran.status == 1
        assert "mine.py" in ran.err
        assert "line 9" in ran.err
        lab.write(RETURNS.replace("{at_20}", "pass"), "mine.py")
        lab.done("start")
        lab.done("stop")


SEES = """
import numpy as np

def eb_user(fragments, event):
    global kept
    one = fragments["Trigger01"]
    if event.serial_number == 0:
        kept = one
        assert fragments.names == ("Trigger01", "Trigger02") and fragments.missing == [] and len(fragments) == 2
        assert one.source == "Trigger01" and one.event_id == 1 and one.trigger_mask == 0xFFFF
        assert one.serial_number == 0 and [b.name for b in one.banks] == ["AD01"]
        assert one.bank("NONE") is None and fragments[1].bank("AD02").dtype == np.uint16
    else:
        try:
            kept.bank("AD01")
        except Exception as error:
            event.bank("TEXT", f"{type(error).__name__}")
"""


def test_what_the_code_sees_and_that_a_fragment_dies_when_its_event_leaves(lab: Lab) -> None:
    with_code(lab, "pass")
    lab.write(SEES, "mine.py")
    with lab.up() as live:
        _, events = take_run(live, 50)
    last = {bank.name: bank for bank in banks_of(events[-1])}
    assert last["TEXT"].data == b"EventError\0"


def test_times_may_come_from_a_function_of_the_user(lab: Lab) -> None:
    example(lab, "by_time.py", Match='"time"', Window_ns="20_000_000")
    text = (lab.folder / "lab.toml").read_text().replace("simulated:Simulated", "simulated:Timed")
    lab.write(text.replace('"Rate Hz" = 1000.0', '"Rate Hz" = 20.0'))
    with lab.up() as live:
        document, events = take_run(live, 20)
    times = [[bank.values[0] for bank in banks_of(event) if bank.name in ("TI01", "TI02")] for event in events]
    assert [event.serial_number for event in events] == list(range(len(events)))
    assert sum(len(both) == 2 for both in times) >= 15
    assert all(max(both) - min(both) <= 20_000_000 for both in times)
    assert document["account"]["sources"]["Trigger01"]["quarantined"] == 0

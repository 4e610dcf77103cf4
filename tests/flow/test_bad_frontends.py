"""What frontends do wrong is said in one line that names it; the run goes on, ends, and the next one is well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.flow.lab import DEADLINE_S, Lab, Live, until
from tests.flow.reader import banks_of, run_of

from phloem.model.errors import TransitionError

FRONTENDS = """
import numpy as np
from phloem import EQ_EB, EQ_INTERRUPT, EQ_POLLED, Equipment, Frontend

class Good(Frontend):
    name = "good"
    equipment = [Equipment("Good%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB)]
    read_so_far = 0

    def poll(self):
        self.read_so_far += 1
        return self.read_so_far <= 5

    def read(self, event):
        event.bank("ADC0", np.zeros(4, "u1"))

    def prepare(self, run_number):
        self.read_so_far = 0

class Large(Good):
    name = "large"
    def read(self, event):
        event.bank("ADC0", np.zeros(9_000_000, "u1"))

class LongName(Good):
    name = "longname"
    def read(self, event):
        event.bank("ADC00", np.zeros(5, "u1"))

class Umlaut(Good):
    name = "umlaut"
    def read(self, event):
        event.bank("ADÜ0", np.zeros(5, "u1"))

class Complex(Good):
    name = "complex"
    def read(self, event):
        event.bank("ADC0", np.zeros(5, "c8"))

class Raising(Good):
    name = "raising"
    def read(self, event):
        if self.read_so_far > 3:
            raise ValueError("no bus")
        super().read(event)

class PollRaising(Good):
    name = "pollraising"
    def poll(self):
        raise OSError(5, "bus error")

class Unprepared(Good):
    name = "unprepared"
    def prepare(self, run_number):
        raise RuntimeError("no clock")

class Unbegun(Good):
    name = "unbegun"
    def begin_of_run(self, run_number):
        raise RuntimeError("trigger is off")

class Unended(Good):
    name = "unended"
    def end_of_run(self, run_number):
        raise RuntimeError("trigger is stuck")

class Exiting(Good):
    name = "exiting"
    def read(self, event):
        raise SystemExit("enough")

class Interrupt(Good):
    name = "interrupt"
    equipment = [Equipment("Irq%02d", buffer="BUF%02d", type=EQ_INTERRUPT | EQ_EB)]

class Uninitialized(Good):
    name = "uninitialized"
    def init(self):
        raise RuntimeError("no hardware")

class Nothing(Good):
    name = "nothing"
    equipment = []
"""

EXPERIMENT = """
[experiment]
name = "lab"

[logger]

[builder.EB]
buffer = "BUF"
"""


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.write(FRONTENDS, "bad.py")
    shared_lab.write(EXPERIMENT)
    with shared_lab.up() as live:
        yield live


@pytest.fixture(autouse=True)
def closed(live: Live) -> Iterator[None]:
    """A test that fails leaves no open run to the next one."""
    yield
    live.close_run()


@contextmanager
def frontend(live: Live, cls: str, index: int = 1) -> Iterator[str]:
    """One of these frontends, started by hand; its client name."""
    name = f"{cls.lower()}{index:02d}"
    with live.lab.component("frontend", f"bad.py:{cls}", "-i", str(index), "-e", "lab.toml"):
        until(lambda: name in [part["name"] for part in alive(live)], f"{name} is there")
        yield name


def alive(live: Live) -> list[dict[str, object]]:
    return [part for part in live.status()["components"] if part["health"] != "gone"]


def said(live: Live, name: str, *words: str) -> str:
    """Wait until a message with all these words is there; a traceback in any message fails the test."""
    wanted = (name, *words)

    def found() -> str:
        texts = live.messages()
        assert not any("Traceback" in text for text in texts), texts
        return next((text for text in texts if all(word in text for word in wanted)), "")

    return str(until(found, f"a message with {wanted}", 10.0))


def test_a_builder_without_a_frontend_refuses_to_prepare_and_says_what_is_missing(live: Live) -> None:
    ran = live.lab.run("start")
    assert ran.status == 1
    assert ran.err.count("\n") == 1
    assert "builder EB (-b BUF) has no source" in ran.err
    assert live.status()["state"] == "STOP"


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        ("Large", ["9000040 bytes", "raise /Experiment/Buffer sizes/BUF01"]),
        ("LongName", ["'ADC00'", "not 4 printable ASCII characters"]),
        ("Umlaut", ["'ADÜ0'", "not 4 printable ASCII characters"]),
        ("Complex", ["complex64", "use one of"]),
        ("Raising", ["read() raised ValueError: no bus", "bad.py:"]),
        ("PollRaising", ["poll() raised OSError: [Errno 5] bus error", "bad.py:"]),
    ],
)
def test_a_readout_that_fails_is_named_and_the_run_ends_balanced(live: Live, cls: str, words: list[str]) -> None:
    with frontend(live, cls) as name:
        live.start()
        assert "\n" not in said(live, name, *words)
        said(live, name, "reading stopped for this run")
        document = live.stop()
        assert document["balanced"] is True
        wanted = 3 if cls == "Raising" else 0
        assert document["account"]["sources"]["Good01"]["sent"] == wanted
        assert len(run_of(document["files"][0]).events) == wanted


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        ("Unprepared", "unprepared01 says: prepare() raised RuntimeError: no clock"),
        ("Unbegun", "unbegun01 says: begin_of_run() raised RuntimeError: trigger is off"),
    ],
)
def test_a_start_that_fails_is_undone_at_once_and_the_next_one_works(live: Live, cls: str, text: str) -> None:
    with frontend(live, cls), frontend(live, "Good", index=2):
        for _ in range(2):  # the second time the rings are there already
            with pytest.raises(TransitionError, match="It was undone: the state is STOP") as failed:
                live.operator.start_run().result(10.0)
            assert text in str(failed.value)
            assert live.status()["state"] == "STOP"
    with frontend(live, "Good", index=2):
        live.start()
        live.until_events("EB", 5)
        assert live.stop()["balanced"] is True


def test_a_builder_that_refuses_its_settings_is_undone_at_once(live: Live) -> None:
    with frontend(live, "Good"):
        live.set("/Equipment/EB/Settings/On incomplete", "guess")
        with pytest.raises(TransitionError, match="'guess'; use build or discard"):
            live.operator.start_run().result(10.0)
        live.set("/Equipment/EB/Settings/On incomplete", "build")
        live.start()
        live.until_events("EB", 5)
        assert live.stop()["balanced"] is True


def test_an_end_of_run_that_raises_is_said_and_costs_nothing(live: Live) -> None:
    with frontend(live, "Unended") as name:
        live.start()
        live.until_events("EB", 5)
        document = live.stop()
        assert document["balanced"] is True
        said(live, name, "end_of_run() raised RuntimeError: trigger is stuck")


def test_a_frontend_that_exits_in_its_read_is_missed_with_its_reason(live: Live) -> None:
    with live.lab.popen("frontend", "bad.py:Exiting", "-i", "1", "-e", "lab.toml") as process:
        until(lambda: "exiting01" in [part["name"] for part in alive(live)], "it is there")
        live.start()
        process.communicate(timeout=DEADLINE_S)
    said(live, "exiting01", "SystemExit: enough")
    document = live.stop()
    assert any("exiting01 is gone" in problem for problem in document["problems"])
    assert live.status()["state"] == "STOP"


def test_two_fragments_with_the_same_bank_name_are_said_once_by_name(live: Live) -> None:
    with frontend(live, "Good", 1), frontend(live, "Good", 2):
        live.start()
        live.until_events("EB", 5)
        document = live.stop()
    texts = [text for text in live.messages() if "is more than once in event" in text]
    assert len(texts) == 1
    assert "bank ADC0" in texts[0]
    assert document["balanced"] is True
    names = [[bank.name for bank in banks_of(event)] for event in run_of(document["files"][0]).events]
    assert names == [["ADC0", "ADC0"]] * 5, "both are written all the same"


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        ("Interrupt", ["'Irq01'", "EQ_INTERRUPT, which is not supported", "use EQ_POLLED"]),
        ("Uninitialized", ["init() raised RuntimeError: no hardware"]),
        ("Nothing", ["nothing01", "declares no equipment"]),
        ("Missing", ["bad.py has no Frontend class 'Missing'", "Good, Large"]),
    ],
)
def test_a_frontend_that_cannot_be_is_refused_in_one_line(live: Live, cls: str, words: list[str]) -> None:
    ran = live.lab.run("frontend", f"bad.py:{cls}", "-i", "1", "-e", "lab.toml")
    assert ran.status == 1
    assert ran.err.startswith("phloem: ")
    assert ran.err.count("\n") == 1
    assert all(word in ran.err for word in words), ran.err
    assert ran.out == ""


def test_a_required_component_that_is_missing_refuses_the_prepare_by_name(live: Live) -> None:
    with frontend(live, "Good"), frontend(live, "Good", 2):
        live.set("/Programs/good02/Required", True)
    with frontend(live, "Good"):
        ran = live.lab.run("start")
        assert ran.status == 1
        assert "good02" in ran.err
        assert "/Programs/good02/Required" in ran.err
        live.set("/Programs/good02/Required", False)
        live.start()
        assert live.stop()["balanced"] is True

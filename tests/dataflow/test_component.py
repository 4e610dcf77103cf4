"""What a component says to run control by itself, over a wire that only remembers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from phloem.dataflow.component import Component, Place
from phloem.model.run import RunInfo
from phloem.protocol.control import EndRun, FromRunControl, Message, Register, RegisterAgain


class Wire:
    """Stands in for the control link."""

    started = False

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.inbox: list[FromRunControl] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def next(self) -> FromRunControl | None:
        return self.inbox.pop(0) if self.inbox else None

    def close(self) -> None:
        """Nothing is open."""


class Idle(Component):
    kind = "frontend"

    def turn(self) -> None:
        """Nothing to do."""


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def component(tmp_path: Path, wire: Wire) -> Iterator[Component]:
    idle = Idle("idle", Place("tcp://127.0.0.1:1", tmp_path))
    idle._link.close()
    idle._link = wire  # type: ignore[assignment]
    yield idle
    idle.detach()


def test_the_end_of_a_run_is_asked_for_once(component: Component, wire: Wire) -> None:
    component.run_info = RunInfo(7)
    component.ask_end("enough")
    component.ask_end("enough")
    assert wire.sent == [EndRun(7, "enough")]
    component.run_info = RunInfo(8)
    component.ask_end("enough again")
    assert wire.sent[1:] == [EndRun(8, "enough again")]


def test_without_a_run_there_is_nothing_to_end(component: Component, wire: Wire) -> None:
    component.ask_end("enough")
    assert wire.sent == []


def test_a_run_control_that_was_restarted_is_asked_again(component: Component, wire: Wire) -> None:
    component.run_info = RunInfo(7)
    component.ask_end("enough")
    wire.sent.clear()
    wire.inbox.append(RegisterAgain())
    component.step()
    assert [type(message) for message in wire.sent] == [Register, EndRun]

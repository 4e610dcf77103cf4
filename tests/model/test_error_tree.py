"""The tree of errors: who is to blame is in the class, the values are attributes as well."""

from __future__ import annotations

import pytest

from phloem.model import errors
from phloem.model.errors import FormatError, PhloemError, TransitionError

LEAVES = [
    "SettingsError",
    "TransitionError",
    "ProtocolError",
    "FormatError",
    "EventError",
    "TransportError",
    "UserCodeError",
    "UnreachableError",
    "NotFoundError",
]


@pytest.mark.parametrize("name", LEAVES)
def test_every_error_is_one_of_ours_and_stands_in_the_drawing(name: str) -> None:
    assert issubclass(getattr(errors, name), PhloemError)
    assert name in str(errors.__doc__)


def test_all_that_is_offered_is_in_the_list() -> None:
    assert sorted([*LEAVES, "PhloemError"]) == sorted(errors.__all__)


def test_values_are_attributes_and_the_text_stays_one_line() -> None:
    error = TransitionError("BEGIN needs READY", state="STOP", run=42)
    assert (error.text, error.state, error.run) == ("BEGIN needs READY", "STOP", 42)  # type: ignore[attr-defined]
    assert str(error) == "BEGIN needs READY"


def test_a_format_error_says_where() -> None:
    error = FormatError("half an event", path="run00042.mid", offset=96)
    assert str(error) == "run00042.mid: byte 96: half an event"
    assert (error.path, error.offset, error.reason) == ("run00042.mid", 96, "half an event")
    assert str(FormatError("half an event")) == "byte 0: half an event"

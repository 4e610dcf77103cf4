"""The law of states, written out by hand: every pair of state and transition."""

from __future__ import annotations

import pytest

from phloem.model.errors import TransitionError
from phloem.protocol.state import RUNINFO_STATE, SEQUENCE, State, Transition, after

LEGAL = {
    ("STOP", "PREPARE"): "READY",
    ("READY", "BEGIN"): "RUN",
    ("READY", "RELEASE"): "STOP",
    ("READY", "END"): "STOP",
    ("RUN", "END"): "STOP",
}
REFUSED = [
    ("STOP", "BEGIN", "BEGIN needs READY; the state is STOP. Allowed now: PREPARE."),
    ("STOP", "END", "END needs READY or RUN; the state is STOP. Allowed now: PREPARE."),
    ("STOP", "RELEASE", "RELEASE needs READY; the state is STOP. Allowed now: PREPARE."),
    ("READY", "PREPARE", "PREPARE needs STOP; the state is READY. Allowed now: BEGIN or RELEASE or END."),
    ("RUN", "PREPARE", "PREPARE needs STOP; the state is RUN. Allowed now: END."),
    ("RUN", "BEGIN", "BEGIN needs READY; the state is RUN. Allowed now: END."),
    ("RUN", "RELEASE", "RELEASE needs READY; the state is RUN. Allowed now: END."),
]


@pytest.mark.parametrize(("before", "transition"), LEGAL)
def test_a_legal_transition_leads_to_its_state(before: str, transition: str) -> None:
    assert after(State(before), Transition(transition)) == LEGAL[before, transition]


@pytest.mark.parametrize(("before", "transition", "text"), REFUSED)
def test_any_other_transition_is_refused_with_what_is_allowed(before: str, transition: str, text: str) -> None:
    with pytest.raises(TransitionError) as caught:
        after(State(before), Transition(transition))
    assert str(caught.value) == text


def test_the_two_lists_cover_every_pair() -> None:
    pairs = {*LEGAL, *((before, transition) for before, transition, _ in REFUSED)}
    assert pairs == {(s, t) for s in ("STOP", "READY", "RUN") for t in ("PREPARE", "BEGIN", "END", "RELEASE")}
    assert [str(state) for state in State] == ["STOP", "READY", "RUN"]
    assert [str(transition) for transition in Transition] == ["PREPARE", "BEGIN", "END", "RELEASE"]


def test_the_odb_has_midas_numbers_for_the_states() -> None:
    assert {str(state): number for state, number in RUNINFO_STATE.items()} == {"STOP": 1, "READY": 1, "RUN": 3}


def test_data_are_received_before_they_are_sent_and_kept_until_the_last_has_stopped() -> None:
    assert SEQUENCE == {
        "logger": (200, 800),
        "monitor": (300, 700),
        "builder": (400, 600),
        "frontend": (500, 500),
    }

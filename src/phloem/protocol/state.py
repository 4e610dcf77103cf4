"""The law of run states: one table, and one function that reads it.

::

    STOP --PREPARE--> READY --BEGIN--> RUN --END--> STOP        READY --RELEASE or END--> STOP

STOP: nobody expects data. READY: everybody is prepared, and data that arrive count as in RUN. RUN: data flow.
The words are those of LArPix DAQ; ``/Runinfo/State`` in the ODB has MIDAS' numbers.
"""

from __future__ import annotations

from enum import StrEnum

from phloem.model.errors import TransitionError

__all__ = ["RUNINFO_STATE", "SEQUENCE", "TABLE", "State", "Transition", "after"]


class State(StrEnum):
    """State of the run."""

    STOP = "STOP"
    READY = "READY"
    RUN = "RUN"


class Transition(StrEnum):
    """What leads from one state to the next."""

    PREPARE = "PREPARE"
    BEGIN = "BEGIN"
    END = "END"
    RELEASE = "RELEASE"


TABLE: dict[State, dict[Transition, State]] = {
    State.STOP: {Transition.PREPARE: State.READY},
    State.READY: {
        Transition.BEGIN: State.RUN,
        Transition.RELEASE: State.STOP,
        Transition.END: State.STOP,
    },
    State.RUN: {Transition.END: State.STOP},
}

# MIDAS: 1 stopped, 3 running. READY is a prepared run that does not take data yet: MIDAS calls that stopped.
RUNINFO_STATE: dict[State, int] = {State.STOP: 1, State.READY: 1, State.RUN: 3}

# Default sequence numbers: kind of component to its place in (start, stop) transitions; ascending.
# MIDAS: START logger 200, analyzer 300, mevb 400, frontends 500; STOP frontends 500, 600, 700, logger 800.
SEQUENCE: dict[str, tuple[int, int]] = {
    "logger": (200, 800),
    "monitor": (300, 700),
    "builder": (400, 600),
    "frontend": (500, 500),
}


def after(state: State, transition: Transition) -> State:
    """The state that ``transition`` leads to from ``state``, or a `TransitionError` that says what is allowed."""
    allowed = TABLE[state]
    if transition not in allowed:
        names = " or ".join(allowed)
        needs = " or ".join(s for s in State if transition in TABLE[s])
        raise TransitionError(
            f"{transition} needs {needs}; the state is {state}. Allowed now: {names}.",
            state=state,
            transition=transition,
        )
    return allowed[transition]

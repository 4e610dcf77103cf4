"""The kernel: the shared-memory ring and the builder, in C++; their meaning in plain Python in ``reference``.

No Python objects inside; the GIL is released where it takes time. Layouts: :mod:`phloem.protocol.data`.
"""

from __future__ import annotations

from enum import IntEnum

from phloem.kernel._kernel import (
    CAPACITY_STEP,
    FRAME_HEADER_SIZE,
    Bell,
    Builder,
    Frame,
    RingError,
    RingReader,
    RingWriter,
    check_events,
    monotonic_ns,
    settle,
    writer_pid,
)

__all__ = [
    "CAPACITY_STEP",
    "FRAME_HEADER_SIZE",
    "Bell",
    "Builder",
    "Cause",
    "Check",
    "Frame",
    "FrameKind",
    "Policy",
    "RingError",
    "RingReader",
    "RingWriter",
    "Stop",
    "check_events",
    "monotonic_ns",
    "settle",
    "writer_pid",
]


class FrameKind(IntEnum):
    """What a frame carries."""

    BEGIN_OF_RUN = 1
    EVENTS = 2
    END_OF_RUN = 3
    INFO = 4
    CHECKPOINT = 5
    REJOIN = 6


class Policy(IntEnum):
    """What the builder does with an event that is not complete."""

    BUILD = 0
    DISCARD = 1
    STOP = 2


class Cause(IntEnum):
    """Why a mark closed an event. CHECK closed none: the cross-check by time was done without that source."""

    SILENCE = 1
    SPACE = 2
    OPTIONAL = 3
    CHECK = 4


class Check(IntEnum):
    """What is done where times disagree with serial numbers."""

    OFF = 0
    CONTINUE = 1
    REPAIR = 2
    STOP = 3


class Stop(IntEnum):
    """Why the builder stopped building."""

    WAITING = 0
    ROOM = 1
    DONE = 2
    POLICY = 3
    SHIFTED = 4

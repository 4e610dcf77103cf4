"""phloem: data acquisition for physics experiments; run control and event building.

What a frontend needs is here: `Frontend`, `Equipment` and MIDAS' constants, or `Producer` for a program that has
its own loop; and what the event builder's user code may return.
"""

from phloem.app.producer import Producer
from phloem.dataflow.eb_user import EB_SKIP, EB_SUCCESS, EB_USER_ERROR
from phloem.dataflow.frontend import Frontend
from phloem.model.event import (
    EQ_EB,
    EQ_FRAGMENTED,
    EQ_INTERRUPT,
    EQ_MANUAL_TRIG,
    EQ_MULTITHREAD,
    EQ_PERIODIC,
    EQ_POLLED,
    EQ_SLOW,
    EQ_USER,
    RO_BOR,
    RO_EOR,
    RO_ODB,
    RO_RUNNING,
    RO_STOPPED,
    TRIGGER_ALL,
    Equipment,
)

__all__ = [
    "EB_SKIP",
    "EB_SUCCESS",
    "EB_USER_ERROR",
    "EQ_EB",
    "EQ_FRAGMENTED",
    "EQ_INTERRUPT",
    "EQ_MANUAL_TRIG",
    "EQ_MULTITHREAD",
    "EQ_PERIODIC",
    "EQ_POLLED",
    "EQ_SLOW",
    "EQ_USER",
    "RO_BOR",
    "RO_EOR",
    "RO_ODB",
    "RO_RUNNING",
    "RO_STOPPED",
    "TRIGGER_ALL",
    "Equipment",
    "Frontend",
    "Producer",
]

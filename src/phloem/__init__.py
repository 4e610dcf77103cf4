"""phloem: data acquisition for physics experiments; run control and event building.

What a frontend needs is here: `Frontend`, `Equipment` and MIDAS' constants, or `Producer` for a program that has
its own loop.
"""

from phloem.app.producer import Producer
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

"""``/Equipment/<EB>/Statistics`` of an event builder: made and zeroed at PREPARE, written from heartbeats.

Beside MIDAS' three (`phloem.control.equipment`)::

    Events incomplete UINT64, Oldest open event UINT32, Oldest open s DOUBLE, Waiting for STRING[256]
    <source>/  counters UINT64, Skew INT64, Rate DOUBLE (fragments per s), Blocked s DOUBLE

Counters are of this run. Missed and Blocked s are the frontend's own, all others the builder's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from phloem.control.odb import Odb
from phloem.model.event import TID
from phloem.protocol.control import ComponentStatus

__all__ = ["clear_builder_statistics", "write_builder_statistics"]

_WAITING_SIZE = 256

# ODB key: its type, and what a heartbeat calls it
_OF_BUILDER = {
    "Events incomplete": (TID.UINT64, "incomplete"),
    "Oldest open event": (TID.UINT32, "oldest_open"),
    "Oldest open s": (TID.FLOAT64, "oldest_open_s"),
}
_OF_SOURCE = {
    "Received": (TID.UINT64, "received"),
    "Built": (TID.UINT64, "built"),
    "Incomplete": (TID.UINT64, "incomplete"),
    "Late": (TID.UINT64, "late"),
    "Duplicate": (TID.UINT64, "duplicate"),
    "Discarded": (TID.UINT64, "discarded"),
    "Quarantined": (TID.UINT64, "quarantined"),
    "Missed": (TID.UINT64, "missed"),
    "Backlog events": (TID.UINT64, "backlog_events"),
    "Backlog bytes": (TID.UINT64, "backlog_bytes"),
    "Last serial number": (TID.UINT64, "last_serial"),
    "Skew": (TID.INT64, "skew"),
    "Rate": (TID.FLOAT64, "events_per_s"),
    "Blocked s": (TID.FLOAT64, "blocked_s"),
}
_BY_FRONTEND = ("missed", "blocked_s")


def clear_builder_statistics(odb: Odb, builder: str, sources: Iterable[str]) -> None:
    """Make what is missing, and set all to 0: of sources that are not in this run, too."""
    top = f"/Equipment/{builder}/Statistics"
    for name, (tid, _) in _OF_BUILDER.items():
        odb.create(f"{top}/{name}", tid, 0)
    odb.create(f"{top}/Waiting for", TID.STRING, "", _WAITING_SIZE)
    for source in sources:
        for name, (tid, _) in _OF_SOURCE.items():
            odb.create(f"{top}/{source}/{name}", tid, 0)
    odb.measure_below(top, {**dict.fromkeys(_OF_BUILDER, 0), "Waiting for": ""})
    for name in odb.names(top):
        odb.measure_below(f"{top}/{name}", dict.fromkeys(_OF_SOURCE, 0))


def write_builder_statistics(
    odb: Odb, builder: str, status: ComponentStatus, sent: Mapping[str, Mapping[str, float]]
) -> None:
    """What a builder's heartbeat says. ``sent``: by source, what its frontend says. What is not said stays."""
    if not status.sources:
        return
    top = f"/Equipment/{builder}/Statistics"
    values = _values(_OF_BUILDER, {**status.counters, **status.rates})
    values["Waiting for"] = status.waiting_for.encode()[: _WAITING_SIZE - 1].decode("utf-8", "ignore")
    odb.measure_below(top, values)
    for source, part in status.sources.items():
        own = {name: value for name, value in sent.get(source, {}).items() if name in _BY_FRONTEND}
        odb.measure_below(f"{top}/{source}", _values(_OF_SOURCE, {**part, **own}))


def _values(keys: Mapping[str, tuple[TID, str]], said: Mapping[str, float]) -> dict[str, Any]:
    known = ((key, tid, said[name]) for key, (tid, name) in keys.items() if name in said)
    return {key: _fitting(tid, value) for key, tid, value in known if math.isfinite(value)}


def _fitting(tid: TID, value: float) -> float | int:
    """As that type: a builder that has nothing open may say so with -1, which no unsigned key takes."""
    if tid is TID.FLOAT64:
        return float(value)
    whole = int(value)
    if tid is TID.INT64:
        return whole
    return max(0, whole) & (2**32 - 1 if tid is TID.UINT32 else 2**64 - 1)

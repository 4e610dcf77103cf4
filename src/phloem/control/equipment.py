"""``/Equipment/<name>`` in the ODB: MIDAS' Common record from a declared equipment and back, and the rest.

Common (MIDAS ``EQUIPMENT_COMMON``; reference, section 2), in this order::

    Event ID WORD, Trigger mask WORD, Buffer STRING[32], Type INT, Source INT, Format STRING[8], Enabled BOOL,
    Read on INT, Period INT, Event limit DOUBLE, Num subevents DWORD, Log history INT,
    Frontend host STRING[32], Frontend name STRING[32], Frontend file name STRING[256], Status STRING[256],
    Status color STRING[32], Hidden BOOL

The first twelve and Hidden are settings: where the ODB has another value than the code, the ODB stands. The
others say who runs it now and are written anew each time that its frontend registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from phloem.control.fragments import as_setting, flat_settings, is_same_choice, setting_type
from phloem.control.odb import Difference, Odb, is_below
from phloem.model.errors import SettingsError
from phloem.model.event import TID, Equipment
from phloem.protocol.control import ComponentStatus, Register

__all__ = [
    "DESCRIPTIVE",
    "CommonKey",
    "create_equipment",
    "current_equipment",
    "equipment_common",
    "equipment_from_common",
    "write_statistics",
]

DESCRIPTIVE = ("Frontend host", "Frontend name", "Frontend file name", "Status", "Status color")
_STATISTICS = ("Events sent", "Events per sec.", "kBytes per sec.")

# ODB key: the field of Equipment that it holds
_FIELDS = {
    "Event ID": "event_id",
    "Trigger mask": "trigger_mask",
    "Buffer": "buffer",
    "Type": "type",
    "Source": "source",
    "Format": "format",
    "Enabled": "enabled",
    "Read on": "read_on",
    "Period": "period",
    "Event limit": "event_limit",
    "Num subevents": "num_subevents",
    "Log history": "log_history",
    "Hidden": "hidden",
}


class CommonKey(msgspec.Struct, frozen=True):
    """One key of a Common record. ``size``: of a STRING, with its zero byte."""

    name: str
    tid: TID
    value: Any
    size: int = 0


def equipment_common(equipment: Equipment, host: str, client_name: str, file_name: str) -> list[CommonKey]:
    """The Common record of an equipment whose formats (%02d) are filled."""
    return [
        CommonKey("Event ID", TID.UINT16, equipment.event_id),
        CommonKey("Trigger mask", TID.UINT16, equipment.trigger_mask),
        CommonKey("Buffer", TID.STRING, equipment.buffer, 32),
        CommonKey("Type", TID.INT32, int(equipment.type)),
        CommonKey("Source", TID.INT32, equipment.source),
        CommonKey("Format", TID.STRING, equipment.format, 8),
        CommonKey("Enabled", TID.BOOL, equipment.enabled),
        CommonKey("Read on", TID.INT32, int(equipment.read_on)),
        CommonKey("Period", TID.INT32, equipment.period),
        CommonKey("Event limit", TID.FLOAT64, equipment.event_limit),
        CommonKey("Num subevents", TID.UINT32, equipment.num_subevents),
        CommonKey("Log history", TID.INT32, equipment.log_history),
        CommonKey("Frontend host", TID.STRING, _cut(host, 31), 32),
        CommonKey("Frontend name", TID.STRING, _cut(client_name, 31), 32),
        CommonKey("Frontend file name", TID.STRING, _cut_left(file_name, 255), 256),
        CommonKey("Status", TID.STRING, _cut(f"{client_name}@{host}", 255), 256),
        CommonKey("Status color", TID.STRING, "greenLight", 32),
        CommonKey("Hidden", TID.BOOL, equipment.hidden),
    ]


def equipment_from_common(name: str, common: Mapping[str, Any], readout: str = "read") -> Equipment:
    """The equipment that a Common record (key: value) describes; what the record lacks has its default.

    ``readout``: the frontend's method, which MIDAS' record has no place for.
    """
    folded = {key.lower(): value for key, value in common.items()}
    fields = {field: folded[key.lower()] for key, field in _FIELDS.items() if key.lower() in folded}
    try:
        return msgspec.convert({"name": name, "readout": readout, **fields}, Equipment)
    except msgspec.ValidationError as error:
        raise SettingsError(f"/Equipment/{name}/Common: {error}") from None


def current_equipment(odb: Odb, declared: Equipment) -> Equipment:
    """What a component declared, as the ODB has it now; name and readout method are the code's."""
    try:
        common = odb.value(f"/Equipment/{declared.name}/Common", {})
        return equipment_from_common(declared.name, common, declared.readout)
    except SettingsError:  # PREPARE will say so
        return declared


def create_equipment(
    odb: Odb, register: Register, first_values: Mapping[str, Any], reset: Iterable[str]
) -> list[Difference]:
    """The equipment that a component declares, made in the ODB where it is not there yet.

    ``first_values``: ODB path: value, from the experiment file; they go before the code's. Returns where code
    or file differ from the ODB, which stands except below the paths in ``reset``.
    """
    differences: list[Difference] = []
    firsts = {path.lower(): value for path, value in first_values.items()}
    for equipment in register.equipment:
        top = f"/Equipment/{equipment.name}"
        for key in equipment_common(equipment, register.host, register.name, register.file):
            differences += _create_key(odb, f"{top}/Common/{key.name}", key, firsts, reset)
        for name in ("Settings", "Variables"):
            odb.create(f"{top}/{name}", TID.KEY)
        differences += _create_settings(odb, register, f"{top}/Settings", first_values, reset)
        for name in _STATISTICS:
            odb.create(f"{top}/Statistics/{name}", TID.FLOAT64, 0.0)
    return differences


def _create_key(
    odb: Odb, path: str, key: CommonKey, firsts: Mapping[str, Any], reset: Iterable[str]
) -> list[Difference]:
    if key.name in DESCRIPTIVE:
        odb.create(path, key.tid, key.value, key.size)
        odb.set(path, key.value, revision=False)
        return []
    value, origin = (firsts[path.lower()], "file") if path.lower() in firsts else (key.value, "code")
    return odb.first(path, value, origin=origin, tid=key.tid, size=key.size, reset=_is_reset(path, reset))


def _create_settings(
    odb: Odb, register: Register, top: str, first_values: Mapping[str, Any], reset: Iterable[str]
) -> list[Difference]:
    """The Settings of one equipment: the file's values go before the code's."""
    name = top.split("/")[2]
    below = len(top) + 1
    firsts = {p[below:]: (v, "file") for p, v in first_values.items() if p.lower().startswith(f"{top}/".lower())}
    known = {key.lower() for key in firsts}
    code = flat_settings(register.settings.get(name, {}))
    firsts.update({key: (value, "code") for key, value in code if key.lower() not in known})
    builds = register.kind == "builder"
    if builds:
        firsts = {key: (as_setting(key, value), origin) for key, (value, origin) in firsts.items()}
    choices = {key: value for key, (value, _) in firsts.items()}
    differences = []
    for key, (value, origin) in firsts.items():
        path = f"{top}/{key}"
        tid, size = (setting_type(key) if builds else None) or (None, 0)
        found = odb.first(path, value, origin=origin, tid=tid, size=size, reset=_is_reset(path, reset))
        if found and not (builds and is_same_choice(key, choices, odb.get(top))):
            differences += found
    return differences


def _is_reset(path: str, reset: Iterable[str]) -> bool:
    return any(is_below(path, prefix) for prefix in reset)


def write_statistics(odb: Odb, register: Register, status: ComponentStatus) -> None:
    """Put what a heartbeat counts into each equipment's Statistics. 1 kB is 1024 bytes."""
    for equipment in register.equipment:
        part: Mapping[str, float] = status.sources.get(equipment.name, {})
        if not part and len(register.equipment) == 1:
            part = {**status.counters, **status.rates}
        for key, number in zip(_STATISTICS, ("events", "events_per_s", "kb_per_s"), strict=True):
            path = f"/Equipment/{equipment.name}/Statistics/{key}"
            if number in part and odb.exists(path):
                odb.set(path, float(part[number]), revision=False)


def _cut(text: str, size_bytes: int) -> str:
    return text.encode()[:size_bytes].decode("utf-8", "ignore")


def _cut_left(text: str, size_bytes: int) -> str:
    """The end of a path says more than its beginning."""
    data = text.encode()
    return text if len(data) <= size_bytes else "..." + data[3 - size_bytes :].decode("utf-8", "ignore")

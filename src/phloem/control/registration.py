"""Taking components in: the directory, their keys in the ODB, and first values from file and code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from phloem.control.database import Database
from phloem.control.directory import Directory, Member
from phloem.control.equipment import create_equipment
from phloem.control.messages import Messages
from phloem.control.odb import Difference, Odb, is_below
from phloem.control.plan import DEFAULT_CAPACITY_BYTES
from phloem.model.errors import PhloemError
from phloem.model.event import TID
from phloem.protocol.control import Register

__all__ = ["Registration"]

_TYPES = {"logger/run duration": TID.FLOAT64}  # which a whole number in the experiment file does not show


class Registration:
    """``first_values``: ODB path: value, tables allowed; ``reset``: below these paths they replace the ODB's.

    ``differences``: where the ODB stands against file or code; each is said once.
    """

    def __init__(
        self,
        database: Database,
        odb: Odb,
        directory: Directory,
        messages: Messages,
        first_values: Mapping[str, Any],
        reset: Iterable[str],
    ) -> None:
        self._database = database
        self._odb = odb
        self._directory = directory
        self._messages = messages
        self._first_values = dict(_flat(first_values))
        self._reset = tuple(reset)
        self.differences: list[Difference] = []

    def apply_first_values(self, experiment: str) -> None:
        """The file's values, but those of an equipment, which wait for who knows its keys and types."""
        for name in ("Experiment", "Programs", "Logger", "Runinfo", "Equipment"):
            self._odb.create(f"/{name}", TID.KEY)
        self._odb.create("/Experiment/Name", TID.STRING, experiment[:31], 32)
        for path, value in self._first_values.items():
            parts = path.strip("/").lower().split("/")
            if parts[0] == "equipment" and len(parts) > 2 and parts[2] in ("common", "settings"):
                continue
            tid = TID.UINT32 if parts[:2] == ["experiment", "buffer sizes"] else _TYPES.get("/".join(parts))
            reset = any(is_below(path, prefix) for prefix in self._reset)
            self._report(self._odb.first(path, value, tid=tid, reset=reset))

    def take_in(self, identity: bytes, register: Register, now_s: float) -> Member:
        """The new member, with its keys in the ODB; a `SettingsError` says why it is refused."""
        member = self._directory.join(identity, register, now_s)
        try:
            with self._database.transaction():
                self._make_keys(register)
        except PhloemError:
            self._directory.drop(identity)
            raise
        return member

    def _make_keys(self, register: Register) -> None:
        program = f"/Programs/{register.name}"
        self._odb.create(f"{program}/Required", TID.BOOL, False)
        self._odb.create(f"{program}/Hang limit ms", TID.INT32, 1000)
        self._report(create_equipment(self._odb, register, self._first_values, self._reset))
        for equipment in register.equipment:
            buffer = self._odb.get(f"/Equipment/{equipment.name}/Common/Buffer")
            self._odb.create(f"/Experiment/Buffer sizes/{buffer}", TID.UINT32, DEFAULT_CAPACITY_BYTES)

    def _report(self, differences: list[Difference]) -> None:
        for difference in differences:
            if difference not in self.differences:
                self.differences.append(difference)
                self._messages.add("warning", "run control", str(difference))


def _flat(values: Mapping[str, Any], top: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each key, tables taken apart."""
    for name, value in values.items():
        path = f"{top}/{name.strip('/')}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, path)
        else:
            yield path, value

"""What PREPARE draws: the run number, the snapshot of the settings, and the plan, in one transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from phloem.control.builder_statistics import clear_builder_statistics
from phloem.control.database import Database
from phloem.control.equipment import DESCRIPTIVE, equipment_from_common
from phloem.control.fragments import keep_choices
from phloem.control.odb import Odb, is_below
from phloem.control.plan import RECORD_FRAGMENTS, Planned, Wishes, builder_sources, work_out
from phloem.control.runs import RunRecord, Runs, file_name, last_number_on_disk
from phloem.model.errors import TransitionError
from phloem.model.event import TID
from phloem.model.run import RunInfo
from phloem.protocol.control import Plan, Register
from phloem.protocol.state import RUNINFO_STATE, State

__all__ = ["CurrentRun", "Preparation"]

_BUFFER_SIZES = "/Experiment/Buffer sizes"
_READ_ONLY = 1
_LARGEST_NUMBER = 2**31 - 1


class CurrentRun(msgspec.Struct):
    """The run that is prepared or running. ``plans`` by component name; ``begun_s``: when BEGIN was asked."""

    info: RunInfo
    plans: dict[str, Plan]
    begun_s: float | None = None

    @property
    def sources(self) -> list[str]:
        """Everything that sends in this run, to builders and to the logger alike."""
        return [stream.source for plan in self.plans.values() for stream in plan.outputs]

    @property
    def streams(self) -> list[str]:
        """What goes into the logger."""
        return [name for plan in self.plans.values() if plan.odb_json for name in plan.read_names]

    def keeps_data(self, name: str) -> bool:
        """Whether a component passes data on (a builder, the logger), so that the run is torn without it."""
        plan = self.plans[name]
        return bool(plan.inputs) and bool(plan.outputs or plan.odb_json)


class Preparation:
    """Opens runs, and knows what must not change between PREPARE and BEGIN."""

    def __init__(
        self, database: Database, odb: Odb, runs: Runs, data_dir: Path, runtime_dir: Path, file_pattern: str
    ) -> None:
        file_name(file_pattern, 0)
        self._database = database
        self._odb = odb
        self._runs = runs
        self._data_dir = data_dir
        self._runtime_dir = runtime_dir
        self._file_pattern = file_pattern
        self._make_keys()

    def _make_keys(self) -> None:
        keys: list[tuple[str, TID, Any, int, int]] = [
            ("/Experiment/Transition timeout ms", TID.INT32, 120_000, 0, 7),
            (_BUFFER_SIZES, TID.KEY, None, 0, 7),
            ("/Experiment/Run Parameters", TID.KEY, None, 0, 7),
            ("/Logger/Data dir", TID.STRING, str(self._data_dir), 256, _READ_ONLY),
            ("/Logger/Write data", TID.BOOL, True, 0, 7),
            (f"/Logger/{RECORD_FRAGMENTS}", TID.BOOL, False, 0, 7),
            ("/Runinfo/State", TID.INT32, RUNINFO_STATE[State.STOP], 0, _READ_ONLY),
            ("/Runinfo/Run number", TID.INT32, 0, 0, 7),
            ("/Runinfo/Transition in progress", TID.INT32, 0, 0, _READ_ONLY),
            ("/Runinfo/Start time", TID.STRING, "", 32, _READ_ONLY),
            ("/Runinfo/Start time binary", TID.UINT32, 0, 0, _READ_ONLY),
            ("/Runinfo/Stop time", TID.STRING, "", 32, _READ_ONLY),
            ("/Runinfo/Stop time binary", TID.UINT32, 0, 0, _READ_ONLY),
            ("/Programs", TID.KEY, None, 0, 7),
            ("/Equipment", TID.KEY, None, 0, 7),
        ]
        for path, tid, value, size, mode in keys:
            self._odb.create(path, tid, value, size, mode)
        self._odb.set("/Logger/Data dir", str(self._data_dir), revision=False, force=True)

    def open_run(
        self, operator: str, comment: str, write_data: bool | None, components: list[Register]
    ) -> tuple[CurrentRun, Planned]:
        """A new run with number, snapshot and plans in the runs table; if refused, nothing is drawn."""
        unclosed = self._runs.unclosed()
        if unclosed is not None:
            raise TransitionError(f"run {unclosed.number} is not closed: `phloem recover`", run=unclosed.number)
        with self._database.transaction():
            number = self._next_number()
            writes = bool(self._odb.get("/Logger/Write data")) if write_data is None else write_data
            info = RunInfo(number, operator, comment, writes, time.time())
            self._odb.set("/Runinfo/Run number", number, by="run control")
            self.note_time("Start", info.started_s)
            self.note_time("Stop", 0.0)
            file = str(self._data_dir / file_name(self._file_pattern, number)) if writes else ""
            for builder, sources in builder_sources(self._wishes(components)).items():
                keep_choices(self._odb, builder, sources)
                clear_builder_statistics(self._odb, builder, sources)
            text, sha256 = self._odb.snapshot()
            planned = work_out(self._wishes(components), self._runtime_dir, text, file)
            self._runs.open(info, sha256, text, planned.plans)
        return CurrentRun(info, planned.plans), planned

    def again(self, record: RunRecord) -> CurrentRun:
        """A run that is in the table, as it was planned."""
        return CurrentRun(record.info, self._runs.plans(record.number), record.begun_s)

    def note_time(self, which: str, time_s: float) -> None:
        """``/Runinfo/Start time`` or ``Stop time``; 0 for not yet."""
        text = time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(time_s)) if time_s else ""
        self._odb.set(f"/Runinfo/{which} time", text, revision=False, force=True)
        self._odb.set(f"/Runinfo/{which} time binary", int(time_s), revision=False, force=True)

    def changed_since(self, run: CurrentRun) -> list[str]:
        """Paths of settings that are not as they were when the run was prepared."""
        before = dict(_flat(json.loads(self._runs.settings_json(run.info.number))))
        now = dict(_flat(json.loads(self._odb.dump_json())))
        concerned = {source.lower() for source in run.sources}
        # a component that comes late brings its buffer along, which this run has nothing to do with
        paths = [*before, *(path for path in now if path not in before and not is_below(path, _BUFFER_SIZES))]
        return [path for path in paths if before.get(path) != now.get(path) and _is_setting(path, concerned)]

    def settings(self, register: Register) -> dict[str, dict[str, Any]]:
        """The settings of a component's equipment, as in the ODB now."""
        return {
            equipment.name: dict(self._odb.value(f"/Equipment/{equipment.name}/Settings", {}))
            for equipment in register.equipment
        }

    def _next_number(self) -> int:
        on_disk = last_number_on_disk(self._data_dir, self._file_pattern)
        last = max(int(self._odb.get("/Runinfo/Run number")), on_disk, self._runs.last_number())
        if last >= _LARGEST_NUMBER:
            raise TransitionError(
                f"run number {last} is the last one possible; is there a stray file in the data directory?"
            )
        return last + 1

    def _wishes(self, components: list[Register]) -> Wishes:
        names = self._odb.names("/Equipment")
        common = {name: self._odb.value(f"/Equipment/{name}/Common", {}) for name in names}
        return Wishes(
            equipment={name: equipment_from_common(name, common[name]) for name in names if common[name]},
            frontends={name: str(common[name].get("Frontend name", "")) for name in names},
            components=components,
            required=[
                name
                for name in self._odb.names("/Programs")
                if self._odb.value(f"/Programs/{name}/Required", False) is True
            ],
            sizes={name: int(size) for name, size in self._odb.value(_BUFFER_SIZES, {}).items()},
            settings={name: self._odb.value(f"/Equipment/{name}/Settings", {}) for name in names},
            logger_settings=self._odb.get("/Logger"),
        )


def _flat(tree: dict[str, Any], top: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each key in a JSON dump."""
    for name, value in tree.items():
        if isinstance(value, dict):
            if not name.endswith("/key"):
                yield from _flat(value, f"{top}/{name}")
        elif not name.startswith("/"):
            yield f"{top}/{name}", value


def _is_setting(path: str, equipment: set[str]) -> bool:
    """Whether a path is one of the settings that a prepared run depends on."""
    parts = path.split("/")[1:]
    if parts[0] == "Equipment" and len(parts) > 3:
        own = parts[1].lower() in equipment
        return own and (parts[2] == "Settings" or (parts[2] == "Common" and parts[3] not in DESCRIPTIVE))
    return parts[0] in ("Experiment", "Logger")

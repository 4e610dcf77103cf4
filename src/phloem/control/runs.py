"""The runs table and the journal of transitions, in the experiment's database.

A run number is drawn once: the greatest of the ODB, the files on disk and this table, plus one, in the same
transaction that stores it. A run is open until `close`; each step of a transition is committed before it is
asked for, so that a restarted run control knows what was under way.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from phloem.control.database import Database
from phloem.model.errors import NotFoundError, SettingsError
from phloem.model.run import RunInfo, RunStatus
from phloem.protocol.control import Plan
from phloem.protocol.state import State

__all__ = ["RunRecord", "Runs", "Step", "file_name", "last_number_on_disk"]

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    number INTEGER PRIMARY KEY, status TEXT NOT NULL, state TEXT NOT NULL, operator TEXT NOT NULL,
    comment TEXT NOT NULL, write_data INTEGER NOT NULL, prepared_s REAL NOT NULL, begun_s REAL, ended_s REAL,
    settings_sha256 TEXT NOT NULL, settings_json TEXT NOT NULL, plans BLOB NOT NULL, files TEXT NOT NULL,
    account TEXT NOT NULL, result TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS steps (
    run INTEGER NOT NULL, id TEXT NOT NULL, transition_name TEXT NOT NULL, component TEXT NOT NULL,
    asked_s REAL NOT NULL, answered_s REAL, error TEXT NOT NULL, result TEXT NOT NULL,
    PRIMARY KEY (run, id, component));
"""
_COLUMNS = (
    "number, status, state, operator, comment, write_data, prepared_s, begun_s, ended_s, settings_sha256, "
    "files, account, result"
)


class RunRecord(msgspec.Struct, frozen=True):
    """One row of the runs table. ``state``: the last that the run reached; ``result``: the answer to END."""

    number: int
    status: RunStatus
    state: State
    operator: str
    comment: str
    write_data: bool
    prepared_s: float
    begun_s: float | None
    ended_s: float | None
    settings_sha256: str
    files: list[str]
    account: dict[str, Any]
    result: dict[str, Any]

    @property
    def info(self) -> RunInfo:
        """What components are told about the run."""
        return RunInfo(self.number, self.operator, self.comment, self.write_data, self.prepared_s)


class Step(msgspec.Struct, frozen=True):
    """One component's part of one transition; ``answered_s`` None: it was asked and has not answered."""

    run: int
    id: str
    transition: str
    component: str
    asked_s: float
    answered_s: float | None
    error: str
    result: dict[str, Any]


class Runs:
    """The tables ``runs`` and ``steps``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        for statement in _TABLES.split(";"):
            database.execute(statement)

    def last_number(self) -> int:
        """The greatest number in the table, 0 if it is empty."""
        (number,) = self._database.execute("SELECT coalesce(max(number), 0) FROM runs").fetchone()
        return int(number)

    def open(self, info: RunInfo, settings_sha256: str, settings_json: str, plans: dict[str, Plan]) -> None:
        """Enter a new run, whose number must not be in the table yet."""
        self._database.execute(
            f"INSERT INTO runs ({_COLUMNS}, settings_json, plans) VALUES ({', '.join('?' * 15)})",
            (
                *(info.number, RunStatus.OPEN, State.STOP, info.operator, info.comment, info.write_data),
                *(info.started_s, None, None, settings_sha256, "[]", "{}", "{}"),
                *(settings_json, msgspec.msgpack.encode(plans)),
            ),
        )

    def reach(self, number: int, state: State, begun_s: float | None = None) -> None:
        """Note the state that a run has reached, and for RUN when it began."""
        self._database.execute(
            "UPDATE runs SET state = ?, begun_s = coalesce(?, begun_s) WHERE number = ?",
            (state, begun_s, number),
        )

    def close(self, number: int, status: RunStatus, ended_s: float, result: dict[str, Any]) -> None:
        """The run is over. ``result``: the answer to END, with ``files`` and ``account``."""
        self._database.execute(
            "UPDATE runs SET status = ?, state = ?, ended_s = ?, files = ?, account = ?, result = ? WHERE number = ?",
            (
                *(status, State.STOP, ended_s, _json(result.get("files", []))),
                *(_json(result.get("account", {})), _json(result), number),
            ),
        )

    def unclosed(self) -> RunRecord | None:
        """The run that is open, if there is one."""
        row = self._database.execute(
            f"SELECT {_COLUMNS} FROM runs WHERE status = ? ORDER BY number DESC LIMIT 1", (RunStatus.OPEN,)
        ).fetchone()
        return None if row is None else _record(row)

    def get(self, number: int) -> RunRecord:
        """One run, or a `NotFoundError`."""
        row = self._database.execute(f"SELECT {_COLUMNS} FROM runs WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no run {number} in the runs table; the last is {self.last_number()}")
        return _record(row)

    def last(self, count: int) -> list[RunRecord]:
        """The last ``count`` runs, newest first."""
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM runs ORDER BY number DESC LIMIT ?", (count,))
        return [_record(row) for row in rows]

    def plans(self, number: int) -> dict[str, Plan]:
        """What each component was to do in a run, by name."""
        (blob,) = self._database.execute("SELECT plans FROM runs WHERE number = ?", (number,)).fetchone()
        return msgspec.msgpack.decode(blob, type=dict[str, Plan])

    def settings_json(self, number: int) -> str:
        """The ODB as it was when the run was prepared."""
        (text,) = self._database.execute("SELECT settings_json FROM runs WHERE number = ?", (number,)).fetchone()
        return str(text)

    def asked(self, run: int, step_id: str, transition: str, component: str, now_s: float) -> None:
        """Journal a step before its request is sent; asking again keeps the answer of the first time."""
        self._database.execute(
            "INSERT OR IGNORE INTO steps VALUES (?, ?, ?, ?, ?, NULL, '', '{}')",
            (run, step_id, transition, component, now_s),
        )

    def answered(
        self, run: int, step_id: str, component: str, now_s: float, error: str, result: dict[str, Any]
    ) -> None:
        """Journal what came of a step."""
        self._database.execute(
            "UPDATE steps SET answered_s = ?, error = ?, result = ? WHERE run = ? AND id = ? AND component = ?",
            (now_s, error, _json(result), run, step_id, component),
        )

    def steps(self, run: int) -> list[Step]:
        """The journal of a run, in the order in which its steps were asked."""
        rows = self._database.execute("SELECT * FROM steps WHERE run = ? ORDER BY rowid", (run,))
        return [
            msgspec.convert(
                dict(zip(Step.__struct_fields__, [*row[:-1], msgspec.json.decode(row[-1])], strict=True)),
                Step,
            )
            for row in rows
        ]


def file_name(pattern: str, run: int) -> str:
    """The name of a run's file, such as ``run00042.mid`` from ``run{run:05d}.mid``."""
    try:
        name = pattern.format(run=run)
    except (KeyError, IndexError, ValueError) as error:
        raise SettingsError(f"file pattern {pattern!r} is not one like 'run{{run:05d}}.mid': {error}") from None
    if name == pattern:
        raise SettingsError(f"file pattern {pattern!r} lacks the run number: write 'run{{run:05d}}.mid'")
    return name


def last_number_on_disk(data_dir: Path, pattern: str) -> int:
    """The greatest run number among the files that fit ``pattern``, whatever follows it; 0 for none."""
    file_name(pattern, 0)
    head = re.split(r"\{run[^}]*\}", pattern, maxsplit=1)[0]
    folder = data_dir / head.rpartition("/")[0]
    number = re.compile(re.escape(head.rpartition("/")[2]) + r"(\d+)(?!\d)")
    if not folder.is_dir():
        return 0
    found = (number.match(entry.name) for entry in folder.iterdir())
    return max((int(match[1]) for match in found if match), default=0)


def _record(row: tuple[Any, ...]) -> RunRecord:
    plain = dict(zip(_COLUMNS.split(", "), row, strict=True))
    plain["write_data"] = bool(plain["write_data"])
    for name in ("files", "account", "result"):
        plain[name] = msgspec.json.decode(plain[name])
    return msgspec.convert(plain, RunRecord)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()

"""The one SQLite file of an experiment: ODB, runs and run control's journal, owned by one process.

WAL, so that people may read it with other tools while a run is taken. A commit survives the kill of the
process; loss of power may take the last ones. Ownership is an flock on ``<file>.lock`` while it is open.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phloem.model.errors import SettingsError

__all__ = ["Database"]


class Database:
    """Connection with nested transactions: the outermost one commits or rolls back.

    Not for several threads at a time; the thread that opens it need not be the one that uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _own(path)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._depth = 0
        self.after_rollback: list[Callable[[], None]] = []

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """One statement; outside a transaction it is committed at once."""
        return self._connection.execute(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing. What is kept in memory beside the tables is read anew after a rollback."""
        outermost = self._depth == 0
        if outermost:
            self._connection.execute("BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
        except BaseException:
            if outermost:
                self._connection.execute("ROLLBACK")
                for restore in self.after_rollback:
                    restore()
            raise
        else:
            if outermost:
                self._connection.execute("COMMIT")
        finally:
            self._depth -= 1

    def close(self) -> None:
        """Give the file to whoever wants it next."""
        self._connection.close()
        os.close(self._lock)


def _own(path: Path) -> int:
    """A descriptor that holds the lock on ``path``, or a `SettingsError` that names the owner."""
    lock_path = path.with_name(path.name + ".lock")
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise SettingsError(
            f"{path} is owned by the run control with pid {owner}; use that one, or another data directory"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
    return lock

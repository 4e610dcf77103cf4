"""The ODB: the tree of settings and status, with MIDAS' paths and types, kept in SQLite.

Names are looked up without regard to case and shown as they were first written; order is order of creation.
Every key knows its type, number of values, item size, mode and when it was last written. Each value that was
ever set is in the table ``history``, except where the writer says that it is a measurement and no setting.
One process owns the tree: it is kept in memory and written through.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import msgspec

from phloem.control.database import Database
from phloem.control.odb_values import ODB_TYPES, check_value, from_text, guess_type, item_size, json_text
from phloem.model.errors import NotFoundError, SettingsError
from phloem.model.event import TID

__all__ = ["MODE_DELETE", "MODE_READ", "MODE_WRITE", "Difference", "KeyRow", "Odb", "Revision", "is_below"]

MODE_READ, MODE_WRITE, MODE_DELETE = 1, 2, 4
_ALL_MODES = MODE_READ | MODE_WRITE | MODE_DELETE
_LONGEST_NAME = 31  # MIDAS: NAME_LENGTH 32 with its NUL

_TABLES = """
CREATE TABLE IF NOT EXISTS keys (
    path TEXT PRIMARY KEY, place INTEGER NOT NULL, name TEXT NOT NULL, tid INTEGER NOT NULL,
    item_size INTEGER NOT NULL, mode INTEGER NOT NULL, value TEXT, written_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    path TEXT NOT NULL, written_s REAL NOT NULL, by TEXT NOT NULL, value TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS history_path ON history (path);
"""

Watcher: TypeAlias = Callable[[str, Any], None]


class KeyRow(msgspec.Struct, frozen=True):
    """One line of a listing. ``level``: depth below what was asked for. ``value``: None for a directory."""

    level: int
    name: str
    tid: int
    num_values: int
    item_size: int
    age_s: float
    opened: int
    mode: int
    value: Any = None


class Revision(msgspec.Struct, frozen=True):
    """A value that a key had. ``by``: who wrote it."""

    written_s: float
    by: str
    value: Any


class Difference(msgspec.Struct, frozen=True):
    """A first value that is not taken, since the ODB has another one. ``origin``: whose first value it is."""

    path: str
    origin: str
    first: Any
    odb: Any

    def __str__(self) -> str:
        return (
            f"{self.path}: the {self.origin} says {self.first!r}, the ODB has {self.odb!r}, which stands; "
            f"--reset '{self.path}' takes the other"
        )


class _Key:
    """A node of the tree in memory; a directory has children and no value."""

    __slots__ = ("children", "item_size", "mode", "name", "path", "tid", "value", "written_s")

    def __init__(self, path: str, tid: TID, size: int, mode: int, value: Any, written_s: float) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]
        self.tid = tid
        self.item_size = size
        self.mode = mode
        self.value = value
        self.written_s = written_s
        self.children: dict[str, _Key] = {}

    @property
    def num_values(self) -> int:
        return len(self.value) if isinstance(self.value, list) else 1

    def plain(self) -> Any:
        if self.tid is TID.KEY:
            return {child.name: child.plain() for child in self.children.values()}
        return list(self.value) if isinstance(self.value, list) else self.value

    def walk(self) -> Iterator[_Key]:
        yield self
        for child in self.children.values():
            yield from child.walk()


class Odb:
    """The tree. Paths are ``/Equipment/Trigger01/Common/Event ID``; one item of an array is ``path[2]``.

    ``clock``: seconds since 1970, for the times of writing. Watchers are called in the thread that sets.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._watchers: list[tuple[str, Watcher]] = []
        for statement in _TABLES.split(";"):
            database.execute(statement)
        self._load()
        database.after_rollback.append(self._load)

    # reading

    def exists(self, path: str) -> bool:
        """Whether there is a key or directory at ``path``."""
        return self._find(path) is not None

    def get(self, path: str) -> Any:
        """The plain value of a key (a list for an array), or a directory as a dict; `NotFoundError`."""
        key, index = self._located(path)
        return key.plain() if index is None else key.value[index]

    def value(self, path: str, default: Any) -> Any:
        """`get`, or ``default`` if there is no such key."""
        key = self._find(path)
        return default if key is None else key.plain()

    def names(self, path: str) -> list[str]:
        """The names below a directory, in order of creation; none if it does not exist."""
        key = self._find(path)
        return [child.name for child in key.children.values()] if key else []

    def values_below(self, path: str) -> dict[str, Any]:
        """All keys below ``path`` with their values, by full path."""
        key = self._find(path)
        return {} if key is None else {k.path: k.plain() for k in key.walk() if k.tid is not TID.KEY}

    def rows(self, path: str, recursive: bool = False) -> list[KeyRow]:
        """What `ls` lists: the keys of a directory; with ``recursive`` the directory itself and all below."""
        key, _ = self._located(path)
        now_s = self._clock()
        if recursive:
            top = max(1, key.path.count("/"))
            return [self._row(k, k.path.count("/") - top, now_s) for k in key.walk() if k.path]
        listed = list(key.children.values()) if key.tid is TID.KEY else [key]
        return [self._row(k, 0, now_s) for k in listed]

    def history(self, path: str) -> list[Revision]:
        """The values that a key had, oldest first; the last one is today's unless it is a measurement."""
        key, _ = self._located(path)
        found = self._database.execute(
            "SELECT written_s, by, value FROM history WHERE path = ? ORDER BY rowid", (_folded(key.path),)
        )
        return [Revision(written_s, by, json.loads(value)) for written_s, by, value in found]

    def dump_json(self, path: str = "/") -> str:
        """The tree below ``path`` in the form of MIDAS' JSON dumps."""
        key, _ = self._located(path)
        head = f'{{\n  "/ODB path" : {json.dumps(key.path or "/")}'
        body = "".join(",\n" + line for line in _dumped(key, "  "))
        return f"{head}{body}\n}}\n"

    def snapshot(self) -> tuple[str, str]:
        """The whole tree as MIDAS JSON, and the SHA-256 of that text in hex."""
        text = self.dump_json()
        return text, hashlib.sha256(text.encode()).hexdigest()

    # writing

    def create(self, path: str, tid: TID, value: Any = None, size: int = 0, mode: int = _ALL_MODES) -> bool:
        """Make a key with its first value, and the directories above it; False if it was there already.

        ``tid`` KEY makes a directory. ``size``: of a STRING, with its terminating zero byte.
        """
        if self.exists(path):
            return False
        if tid is not TID.KEY and tid not in ODB_TYPES:
            raise SettingsError(f"{path}: an ODB key cannot be of type {tid.odb_name}")
        with self._database.transaction():
            parent = self._root
            parts = _parts(path)
            for depth, name in enumerate(parts):
                _check_name(path, name)
                child = parent.children.get(name.lower())
                if child is None:
                    kind = tid if depth == len(parts) - 1 else TID.KEY
                    child = self._add(parent, name, kind, value, size, mode)
                elif child.tid is not TID.KEY:
                    raise SettingsError(f"{child.path} is a {child.tid.odb_name} key: {path} cannot be below it")
                parent = child
        return True

    def set(self, path: str, value: Any, *, by: str = "", revision: bool = True, force: bool = False) -> Any:
        """Give an existing key a value and return it as stored; text is understood as people type it.

        `NotFoundError` names the nearest key, `SettingsError` says what the key takes. ``revision`` False: a
        measurement, of which no history is kept. ``force``: also keys that are not for operators to write.
        """
        key, index = self._located(path)
        if key.tid is TID.KEY:
            raise SettingsError(f"{key.path or '/'} is a directory; set one of the keys in it")
        if not key.mode & MODE_WRITE and not force:
            raise SettingsError(f"{key.path} is written by run control alone")
        items = self._items(key, index, value)
        stored = items if isinstance(key.value, list) else items[0]
        if stored == key.value and not revision:
            return stored
        self._store(key, stored, by, revision)
        self._tell(key)
        return stored

    def measure(self, path: str, tid: TID, value: Any, size: int = 0) -> None:
        """Give a key a measured value, of which no history is kept; made, or made anew with another type, if need be.

        ``value``: a list, or one item; ``size``: of a STRING at least, with its zero byte.
        """
        if self.create(path, tid, value, size):
            return
        key, _ = self._located(path)
        if key.tid is TID.KEY:
            raise SettingsError(f"{key.path} is a directory in the ODB; it cannot hold a value")
        larger = max(item_size(tid, size), key.item_size if key.tid is tid else 0)
        values = value if isinstance(value, list) else [value]
        checked = [check_value(key.path, tid, larger, item) for item in values]
        if (tid, larger) != (key.tid, key.item_size):
            key.tid, key.item_size = tid, larger
            about = (int(tid), larger, _folded(key.path))
            self._database.execute("UPDATE keys SET tid = ?, item_size = ? WHERE path = ?", about)
        stored = checked if isinstance(value, list) else checked[0]
        self._store(key, stored, "", revision=False)
        self._tell(key)

    def measure_below(self, path: str, values: Mapping[str, Any]) -> None:
        """Measurements below a directory, name: value: no history, and nothing is done for what did not change.

        Names that are not there are left out. Many at once cost a fraction of as many calls of `set`.
        """
        directory = self._find(path)
        if directory is None:
            return
        changed = []
        with self._database.transaction():
            for name, value in values.items():
                key = directory.children.get(name.lower())
                if key is None or key.tid is TID.KEY or key.value == value:
                    continue
                self._store(key, check_value(key.path, key.tid, key.item_size, value), "", revision=False)
                changed.append(key)
        for key in changed:
            self._tell(key)

    def first(
        self,
        path: str,
        value: Any,
        *,
        origin: str = "file",
        tid: TID | None = None,
        size: int = 0,
        reset: bool = False,
    ) -> list[Difference]:
        """Create a key with a first value, or a directory from a dict; a value that is there already stands.

        Returns where the two differ. ``reset``: the first value is taken even so.
        """
        if isinstance(value, dict):
            if not value:
                self.create(path, TID.KEY)
            below = ((f"{path}/{name}", part) for name, part in value.items())
            return [d for name, part in below for d in self.first(name, part, origin=origin, reset=reset)]
        key = self._find(path)
        if key is None:
            guessed, guessed_size = (tid, size) if tid is not None else guess_type(path, value)
            self.create(path, guessed, value, guessed_size)
            return []
        wanted = self._wanted(key, value)
        if wanted == key.value:
            return []
        if reset:
            self.set(path, wanted, by=origin)
            return []
        return [Difference(key.path, origin, value, key.plain())]

    def watch(self, prefix: str, watcher: Watcher) -> Callable[[], None]:
        """Call ``watcher(path, value)`` after every `set` at or below ``prefix``; returns what ends it."""
        entry = ("/" + "/".join(_parts(prefix)), watcher)
        self._watchers.append(entry)
        return lambda: self._watchers.remove(entry)

    # the inside

    def _load(self) -> None:
        self._root = _Key("", TID.KEY, 0, _ALL_MODES, None, 0.0)
        self._place = 0
        by_path = {"": self._root}
        rows = self._database.execute(
            "SELECT path, place, name, tid, item_size, mode, value, written_s FROM keys ORDER BY place"
        )
        for folded, place, name, tid, size, mode, value, written_s in rows:
            parent = by_path[folded.rpartition("/")[0]]
            plain = None if value is None else json.loads(value)
            key = _Key(f"{parent.path}/{name}", TID(tid), size, mode, plain, written_s)
            by_path[folded] = parent.children[name.lower()] = key
            self._place = place

    def _tell(self, key: _Key) -> None:
        for prefix, watcher in list(self._watchers):
            if is_below(key.path, prefix):
                watcher(key.path, key.plain())

    def _find(self, path: str) -> _Key | None:
        key = self._root
        for name in _parts(path):
            child = key.children.get(name.lower())
            if child is None:
                return None
            key = child
        return key

    def _located(self, path: str) -> tuple[_Key, int | None]:
        """The key at ``path``, and the index if ``path`` ends in one."""
        key = self._find(path)
        if key is not None:
            return key, None
        match = re.fullmatch(r"(.*)\[(\d+)\]", path)
        key = self._find(match[1]) if match else None
        if match is None or key is None:
            raise self._not_found(path)
        index = int(match[2])
        if not isinstance(key.value, list) or index >= len(key.value):
            raise NotFoundError(f"{key.path} has {key.num_values} value(s): there is no [{index}]", path=path)
        return key, index

    def _not_found(self, path: str) -> NotFoundError:
        known = {_folded(key.path): key.path for key in self._root.walk() if key.path}
        near = difflib.get_close_matches(_folded(path), known, n=1, cutoff=0.5)
        hint = f"; the nearest is {known[near[0]]}" if near else ""
        return NotFoundError(f"the ODB has no key {path}{hint}", path=path)

    def _wanted(self, key: _Key, value: Any) -> Any:
        if key.tid is TID.KEY:
            raise SettingsError(f"{key.path} is a directory in the ODB; {value!r} is no table")
        values = value if isinstance(value, list | tuple) else [value]
        checked = [check_value(key.path, key.tid, key.item_size, item) for item in values]
        return checked if isinstance(value, list | tuple) or isinstance(key.value, list) else checked[0]

    def _items(self, key: _Key, index: int | None, value: Any) -> list[Any]:
        """The checked items of the whole key after ``value`` was put at ``index`` (None: everywhere)."""
        array = isinstance(key.value, list) and index is None
        if isinstance(value, str) and array and value.lstrip().startswith("["):
            value = _parsed_list(key.path, value)
        if isinstance(value, list | tuple) != array:
            holds = f"is an array of {key.num_values}; give [a, b] or set {key.path}[0]" if array else "is no array"
            raise SettingsError(f"{key.path} {holds}; {value!r} does not fit")
        given = list(value) if isinstance(value, list | tuple) else [value]
        typed = [from_text(key.path, key.tid, v) if isinstance(v, str) else v for v in given]
        checked = [check_value(key.path, key.tid, key.item_size, v) for v in typed]
        if index is None:
            return checked
        return [*key.value[:index], checked[0], *key.value[index + 1 :]]

    def _add(self, parent: _Key, name: str, tid: TID, value: Any, size: int, mode: int) -> _Key:
        path = f"{parent.path}/{name}"
        plain = None
        if tid is not TID.KEY:
            values = list(value) if isinstance(value, list | tuple) else [value]
            checked = [check_value(path, tid, size, item) for item in values]
            plain = checked if isinstance(value, list | tuple) else checked[0]
        key = _Key(path, tid, 0 if tid is TID.KEY else item_size(tid, size), mode, plain, self._clock())
        self._place += 1
        text = None if tid is TID.KEY else json.dumps(plain)
        row = (_folded(path), self._place, name, int(tid), key.item_size, mode, text, key.written_s)
        self._database.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        if text is not None:
            history = (_folded(path), key.written_s, "", text)
            self._database.execute("INSERT INTO history VALUES (?, ?, ?, ?)", history)
        parent.children[name.lower()] = key
        return key

    def _store(self, key: _Key, value: Any, by: str, revision: bool) -> None:
        now_s = self._clock()
        text = json.dumps(value)
        with self._database.transaction():
            self._database.execute(
                "UPDATE keys SET value = ?, written_s = ? WHERE path = ?", (text, now_s, _folded(key.path))
            )
            if revision and value != key.value:
                history = (_folded(key.path), now_s, by, text)
                self._database.execute("INSERT INTO history VALUES (?, ?, ?, ?)", history)
        key.value = value
        key.written_s = now_s

    def _row(self, key: _Key, level: int, now_s: float) -> KeyRow:
        opened = sum(prefix.lower() == key.path.lower() for prefix, _ in self._watchers)
        age_s = max(0.0, now_s - key.written_s)
        value = None if key.tid is TID.KEY else key.plain()
        size = key.item_size
        return KeyRow(level, key.name, int(key.tid), key.num_values, size, age_s, opened, key.mode, value)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _folded(path: str) -> str:
    return "".join("/" + part.lower() for part in _parts(path))


def is_below(path: str, prefix: str) -> bool:
    """Whether ``path`` is ``prefix`` or under it."""
    return (path.lower() + "/").startswith(prefix.lower().rstrip("/") + "/")


def _check_name(path: str, name: str) -> None:
    if len(name.encode()) > _LONGEST_NAME or not name.isprintable():
        raise SettingsError(f"ODB name {name!r} in {path}: use at most {_LONGEST_NAME} printable characters")


def _parsed_list(path: str, text: str) -> list[Any]:
    words = [word.strip().strip('"') for word in text.strip()[1:-1].split(",")]
    if words and all(word.lower() in ("y", "n") for word in words):
        return words  # as it is shown, and as people type it; no JSON
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{path} is an array; {text!r} is no list: {error.msg}, use [1, 2, 3]") from None
    return list(value)


def _dumped(key: _Key, indent: str) -> Iterator[str]:
    """The members of a directory, as MIDAS writes them."""
    for child in key.children.values():
        name = json.dumps(child.name, ensure_ascii=False)
        if child.tid is TID.KEY:
            body = ",\n".join(_dumped(child, indent + "  "))
            yield f"{indent}{name} : {{\n{body}{chr(10) if body else ''}{indent}}}"
            continue
        about = f'"type" : {int(child.tid)}'
        if isinstance(child.value, list):
            about += f', "num_values" : {child.num_values}'
        if child.tid is TID.STRING:
            about += f', "item_size" : {child.item_size}'
        about += f', "access_mode" : {child.mode}, "last_written" : {int(child.written_s)}'
        yield f'{indent}{name[:-1]}/key" : {{ {about} }}'
        if isinstance(child.value, list):
            items = ", ".join(json_text(child.tid, item) for item in child.value)
            yield f"{indent}{name} : [ {items} ]"
        else:
            yield f"{indent}{name} : {json_text(child.tid, child.value)}"

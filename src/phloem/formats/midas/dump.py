"""ODB dumps in begin- and end-of-run events and in files: XML and JSON into plain nested dicts.

Sniffed by the first byte, as MIDAS' own reader does: ``<`` XML (``mxml``, ISO-8859-1), ``{`` JSON. ``[`` is
odbedit's text format, which is not read.

======= ====================================================================================================
format  form
======= ====================================================================================================
XML     ``<odb root="/">`` with ``<dir name>``, ``<key name type>value</key>``, ``<keyarray name type
        num_values>`` of ``<value index>``; types by ODB name (WORD, BOOL, ...), BOOL as y and n
JSON    a directory is an object; ``"name/key" : {"type" : number, ...}`` describes ``"name" : value``; WORD
        and DWORD are hex texts; names that begin with ``/`` tell of the dump itself
======= ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias
from xml.etree import ElementTree

import msgspec

from phloem.model.errors import FormatError
from phloem.model.event import TID

__all__ = ["Dump", "Tree", "parse_dump", "read_dump"]

Tree: TypeAlias = dict[str, Any]

_ERRORS = (ValueError, TypeError, LookupError, RecursionError, ElementTree.ParseError, msgspec.MsgspecError)
MAX_DEPTH = 64  # MIDAS' longest ODB path has 256 characters; deeper is not an ODB


class Dump(msgspec.Struct, frozen=True):
    """An ODB dump. ``root``: the path that was dumped. ``values``: directories as dicts, arrays as lists.

    ``types``: the type of each value by its path below the root, without a leading slash:
    ``Equipment/Trigger01/Common/Event ID``.
    """

    root: str
    values: Tree
    types: dict[str, TID]


def parse_dump(data: bytes, path: str = "", offset: int = 0) -> Tree:
    """The values of a dump, see `read_dump`."""
    return read_dump(data, path, offset).values


def read_dump(data: bytes, path: str = "", offset: int = 0) -> Dump:
    """A dump from the bytes of a run border (NULs at its end are ignored) or of a file.

    ``path`` and ``offset`` say in errors where the dump begins.
    """
    text = data.rstrip(b"\0").strip()
    if b"\0" in text:
        raise FormatError("an ODB dump has a NUL inside", path, offset + data.index(b"\0"))
    reader = _READERS.get(text[:1])
    if reader is None:
        found = f"it begins with {text[:8]!r}" if text else "it is empty"
        hint = "; text dumps of odbedit are not read, save as .xml or .json" if text[:1] == b"[" else ""
        raise FormatError(f"not an ODB dump in XML or JSON: {found}{hint}", path, offset)
    try:
        return reader(text)
    except _ERRORS as error:
        raise FormatError(f"not a whole ODB dump: {error}", path, offset) from None


def _read_xml(text: bytes) -> Dump:
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError("it declares a document type, which MIDAS never does; refused, as entities can explode")
    top = ElementTree.fromstring(text)
    if top.tag != "odb":
        raise ValueError(f"the outermost element is <{top.tag}>, expected <odb>")
    types: dict[str, TID] = {}
    return Dump(top.get("root", "/"), _xml_directory(top, "", types, MAX_DEPTH), types)


def _xml_directory(element: ElementTree.Element, place: str, types: dict[str, TID], depth: int) -> Tree:
    if depth == 0:
        raise ValueError(f"directories are nested deeper than {MAX_DEPTH} at {place}")
    values: Tree = {}
    for child in element:
        name = child.get("name")
        if name is None:
            raise ValueError(f"<{child.tag}> without a name in /{place}")
        below = f"{place}/{name}" if place else name
        if child.tag == "dir":
            values[name] = _xml_directory(child, below, types, depth - 1)
        elif child.tag in ("key", "keyarray"):
            tid = _tid_by_name(child.get("type", ""), below)
            types[below] = tid
            texts = [part.text or "" for part in child] if child.tag == "keyarray" else child.text or ""
            values[name] = _converted(texts, tid, below)
        else:
            raise ValueError(f"unknown element <{child.tag}> in /{place}")
    return values


def _read_json(text: bytes) -> Dump:
    try:
        tree = msgspec.json.decode(text)
    except UnicodeDecodeError:
        # MIDAS copies STRING values as they are; before it took to UTF-8 they were ISO-8859-1.
        tree = msgspec.json.decode(text.decode("latin-1"))
    if not isinstance(tree, dict):
        raise ValueError(f"the JSON is a {type(tree).__name__}, expected an object")
    types: dict[str, TID] = {}
    return Dump(str(tree.get("/ODB path", "/")), _json_directory(tree, "", types, MAX_DEPTH), types)


def _json_directory(tree: Tree, place: str, types: dict[str, TID], depth: int) -> Tree:
    if depth == 0:
        raise ValueError(f"directories are nested deeper than {MAX_DEPTH} at {place}")
    values: Tree = {}
    for name, value in tree.items():
        if "/" in name:
            continue
        below = f"{place}/{name}" if place else name
        described = tree.get(f"{name}/key")
        number = described.get("type") if isinstance(described, dict) else None
        tid = _TIDS.get(number) if isinstance(number, int) else None
        if isinstance(value, dict):
            values[name] = _json_directory(value, below, types, depth - 1)
        elif tid is None:
            values[name] = value
        else:
            types[below] = tid
            values[name] = _converted(value, tid, below)
    return values


def _converted(value: Any, tid: TID, place: str) -> Any:
    """A value, or a list of values, in the Python type of its TID: int, float, bool or str."""
    if isinstance(value, list):
        return [_converted(part, tid, place) for part in value]
    try:
        return _CONVERTERS.get(tid, str)(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{value!r} at /{place} is not a {tid.odb_name}") from None


def _integer(value: Any) -> int:
    return int(value, 0) if isinstance(value, str) else int(value)


def _truth(value: Any) -> bool:
    if isinstance(value, bool | int):
        return bool(value)
    truth = _TRUTHS.get(str(value).lower())
    if truth is None:
        raise ValueError(value)
    return truth


def _tid_by_name(name: str, place: str) -> TID:
    tid = _TIDS_BY_NAME.get(name)
    if tid is None:
        raise ValueError(f"type {name!r} at /{place} is not an ODB type")
    return tid


_TRUTHS = {"y": True, "n": False, "true": True, "false": False, "1": True, "0": False}
_TIDS = {int(tid): tid for tid in TID}
# Both generations of names: WORD and so on up to 2019, UINT16 and so on since.
_TIDS_BY_NAME = {tid.name: tid for tid in TID} | {tid.odb_name: tid for tid in TID}
_INTEGERS = (
    TID.UINT8,
    TID.INT8,
    TID.UINT16,
    TID.INT16,
    TID.UINT32,
    TID.INT32,
    TID.BITFIELD,
    TID.INT64,
    TID.UINT64,
)
_CONVERTERS: dict[TID, Callable[[Any], Any]] = {
    **dict.fromkeys(_INTEGERS, _integer),
    TID.FLOAT32: float,
    TID.FLOAT64: float,
    TID.BOOL: _truth,
}
_READERS: dict[bytes, Callable[[bytes], Dump]] = {b"<": _read_xml, b"{": _read_json}

"""Recorded fragments: one file per source, what the files say of their run, and their events block by block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from phloem.formats.midas.events import decode_header
from phloem.formats.midas.file import read_raw, read_whole
from phloem.formats.midas.index import stem_of
from phloem.model.errors import FormatError, SettingsError
from phloem.model.event import EventId

__all__ = ["RecordedBuilder", "Recording", "builder_of", "recordings"]

BLOCK_BYTES = 256 << 10


class Recording:
    """A source's file. ``run``, ``time_stamp``, ``odb``: of its begin of run; None, 0 and empty if it has none.

    ``damage``: where the file could not be read any further, known once its blocks have been read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = _source_name(path)
        self.run: int | None = None
        self.time_stamp = 0
        self.odb = b""
        self.damage: FormatError | None = None
        raw = _first_event(path)
        self.is_empty = not raw
        if raw and (header := decode_header(raw)).event_id == EventId.BEGIN_OF_RUN:
            self.run, self.time_stamp, self.odb = header.serial_number, header.time_stamp, bytes(raw[16:])

    def blocks(self) -> Iterator[tuple[bytes, int]]:
        """Events at 8-byte steps, about a quarter of a MB at a time, with their number; up to damage, if there is."""
        block, n_events = bytearray(), 0
        for raw in self._until_damage():
            block += raw
            block += bytes(-len(raw) % 8)
            n_events += 1
            if len(block) >= BLOCK_BYTES:
                yield bytes(block), n_events
                block, n_events = bytearray(), 0
        if n_events:
            yield bytes(block), n_events

    def _until_damage(self) -> Iterator[bytes | memoryview]:
        try:
            yield from read_whole(self.path)
        except FormatError as error:
            self.damage = error


def recordings(paths: Sequence[Path]) -> list[Recording]:
    """The files in the order of their sources' names; an error for one that cannot be read at all."""
    found = sorted((Recording(path) for path in paths), key=lambda one: one.source)
    for one, other in pairwise(found):
        if one.source == other.source:
            raise SettingsError(
                f"{one.path} and {other.path} would both be source {one.source}: a source is named by its file, and "
                f"has one; rename one of them"
            )
    return found


def _first_event(path: Path) -> bytes | memoryview:
    try:
        return next(read_raw(path), (0, b""))[1]
    except FormatError as error:
        raise FormatError(f"no .mid file, or damaged from its beginning: {error.reason}", str(path)) from None


def _source_name(path: Path) -> str:
    """``run00042.Trigger01.mid`` and ``Trigger01.mid`` are Trigger01, ``run00042.mid`` is run00042."""
    return unquote(re.sub(r"^run\d+\.", "", stem_of(path)).split(".")[0])  # what file names cannot hold is %XX


# ---------------------------------------------------------------------- the ODB


class RecordedBuilder(msgspec.Struct, frozen=True):
    """A builder in the ODB of the run. ``settings``: plain values, as `/Equipment/<EB>/Settings` had them."""

    equipment: str
    settings: dict[str, Any]
    event_id: int
    trigger_mask: int

    @property
    def sources(self) -> list[str]:
        """Those that took part in the run."""
        names: list[str] = self.settings.get("Fragment Names", [])
        number = self.settings.get("Number of Fragment", len(names))
        return names[:number] if isinstance(number, int) else names


def builder_of(recording: Recording) -> RecordedBuilder | None:
    """The builder of which the file was a source, if the file has the ODB of such a run."""
    try:
        tree = msgspec.json.decode(recording.odb.rstrip(b"\0"), type=dict[str, Any])
    except msgspec.DecodeError:  # MIDAS' own, in XML: it has no settings of ours
        return None
    for equipment, part in _directory(tree.get("Equipment")).items():
        settings = _plain(_directory(part).get("Settings"))
        for key in {"Fragment Names", "Fragment Required"} & settings.keys():
            settings[key] = _listed(settings[key])
        if recording.source in settings.get("Fragment Names", ()):
            common = _directory(_directory(part).get("Common"))
            number, mask = _number(common.get("Event ID"), 1), _number(common.get("Trigger mask"), 0)
            return RecordedBuilder(equipment, settings, number, mask)
    return None


def _plain(tree: Any) -> dict[str, Any]:
    """A directory of an ODB dump without what describes the keys."""
    values = {key: value for key, value in _directory(tree).items() if not key.endswith("/key")}
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _directory(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    """MIDAS writes an array of one item as that item."""
    return value if isinstance(value, list) else [value]


def _number(value: Any, default: int) -> int:
    """MIDAS' JSON has unsigned numbers as texts such as "0x0001"."""
    if isinstance(value, str):
        return int(value, 16)
    return default if value is None else int(value)

"""The index and journal of a run: ``run00042.idx`` beside ``run00042.mid``. One per run, for all its subruns.

Records back to back, only ever appended, all numbers little endian. Format version 1.

Every record:

====== ====== ==============================================================================================
offset  width meaning
====== ====== ==============================================================================================
0           4 magic ``PIDX``
4           2 kind, see below
6           2 format version
8           4 size: bytes of the payload
12          8 sequence number, 0 for the first record, rising by 1
20       size payload
20+size     4 CRC32C of all bytes of the record before this one
====== ====== ==============================================================================================

A text is its length in bytes (2) and UTF-8. Payloads:

====== ======= =============================================================================================
kind   name    payload: width and meaning in this order
====== ======= =============================================================================================
1      RUN     4 run number; 8 start time, seconds since 1970 (float64); text writer's version; text pattern
               of the file names
2      SUBRUN  4 number, from 0; text file name, without a folder
3      STREAM  2 index; text name. Defines the index that BLOCK records use
4      BLOCK   4 subrun; 4 flags: bit 0, serial numbers are valid; 8 offset in the file; 8 length in the file;
               8 offset in the subrun's uncompressed stream; 8 uncompressed length; 4 CRC32C of the bytes in
               the file; 4 number of events, all kinds; 4 and 4 serial number of the first and the last data
               event in it, in file order (run borders and messages do not count); 2 number of positions,
               and each: 2 stream index, 8 ring generation, 8 frame sequence number, 8 events sent so far
5      MARK    text source; 4 first and 4 last serial number; text cause; 4 length and both numbers unwrapped (u64 each)
6      CLOSE   text status; 8 events and 8 bytes on disk of all subruns; 4 length and the account as JSON
7      SIDE    text name of a side file, without a folder; 8 offset; 8 length; 4 CRC32C of these bytes; 4
               number of events. The first one of a file is empty and written before the file is made
====== ======= =============================================================================================

The bytes of a block are in the file before its record is appended: a torn last record is what a killed writer
leaves, and the reader reports it. A run that was closed may be continued by a recovery; the last record says.
The same holds for SIDE, which comes before the BLOCK of the frames that carried its events: it counts once a
BLOCK or CLOSE record follows. A writer that goes on cuts the index at the first SIDE record that does not count.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import crc32c
import msgspec

from phloem.formats.base import Mark, Position
from phloem.formats.midas.disk import create_exclusively, truncate, write_at
from phloem.model.errors import FormatError, NotFoundError

__all__ = [
    "SIDES",
    "BlockRecord",
    "CloseRecord",
    "Index",
    "Journal",
    "Kind",
    "Record",
    "RunRecord",
    "SideRecord",
    "StreamRecord",
    "SubrunRecord",
    "find_index",
    "index_path",
    "is_side_name",
    "parse_index",
    "read_index",
    "side_path",
    "stem_of",
]

MAGIC = b"PIDX"
VERSION = 1
HAS_SERIALS = 1
SIDES = ("late", "quarantine")  # names of side files, between the run's name and ``.mid``

_HEADER = struct.Struct("<4sHHIQ")
_CRC = struct.Struct("<I")
_RUN = struct.Struct("<Id")
_BLOCK = struct.Struct("<IIQQQQIIIIH")
_POSITION = struct.Struct("<HQQQ")
_LENGTH = struct.Struct("<I")
_SERIALS = struct.Struct("<II")
_TOTALS = struct.Struct("<QQ")
_SIDE = struct.Struct("<QQII")
_SUFFIXES = (".mid", ".mid.gz", ".mid.lz4", ".mid.zst")


class Kind(IntEnum):
    """Kinds of record."""

    RUN = 1
    SUBRUN = 2
    STREAM = 3
    BLOCK = 4
    MARK = 5
    CLOSE = 6
    SIDE = 7


class RunRecord(NamedTuple):
    """The run; always the first record. ``start_time_s``: since 1970."""

    run_number: int
    start_time_s: float
    writer: str
    pattern: str


class SubrunRecord(NamedTuple):
    """A file of the run, in the folder of the index."""

    number: int
    file: str


class StreamRecord(NamedTuple):
    """The name that a stream index stands for."""

    number: int
    name: str


class BlockRecord(NamedTuple):
    """One block. ``offset``, ``length``: in the file; ``raw_...``: in the subrun's uncompressed stream.

    ``first_serial`` and ``last_serial`` are None if the block has no data event. Positions: (stream index,
    ring generation, frame sequence number, events sent so far).
    """

    subrun: int
    offset: int
    length: int
    raw_offset: int
    raw_length: int
    crc: int
    n_events: int
    first_serial: int | None
    last_serial: int | None
    positions: tuple[tuple[int, int, int, int], ...] = ()


class CloseRecord(NamedTuple):
    """The end of the run. ``account``: JSON."""

    status: str
    events: int
    size_bytes: int
    account: bytes


class SideRecord(NamedTuple):
    """A stretch of a side file, in the folder of the index."""

    file: str
    offset: int
    length: int
    crc: int
    n_events: int


Record: TypeAlias = RunRecord | SubrunRecord | StreamRecord | BlockRecord | Mark | CloseRecord | SideRecord


def _text(text: str) -> bytes:
    data = text.encode()[:0xFFFF]
    return len(data).to_bytes(2, "little") + data


def _encode_block(record: BlockRecord) -> bytes:
    flags = 0 if record.first_serial is None else HAS_SERIALS
    return _BLOCK.pack(
        record.subrun,
        flags,
        record.offset,
        record.length,
        record.raw_offset,
        record.raw_length,
        record.crc,
        record.n_events,
        record.first_serial or 0,
        record.last_serial or 0,
        len(record.positions),
    ) + b"".join(_POSITION.pack(*position) for position in record.positions)


def _encode(record: Record) -> tuple[Kind, bytes]:
    """Kind and payload of a record."""
    match record:
        case BlockRecord():
            return Kind.BLOCK, _encode_block(record)
        case RunRecord(number, start, writer, pattern):
            return Kind.RUN, _RUN.pack(number, start) + _text(writer) + _text(pattern)
        case SubrunRecord(number, file):
            return Kind.SUBRUN, _LENGTH.pack(number) + _text(file)
        case StreamRecord(number, name):
            return Kind.STREAM, number.to_bytes(2, "little") + _text(name)
        case Mark(source, first, last, cause, data):
            return Kind.MARK, b"".join(
                (_text(source), _SERIALS.pack(first, last), _text(cause), _LENGTH.pack(len(data)), data)
            )
        case CloseRecord(status, events, size, account):
            return Kind.CLOSE, b"".join(
                (_text(status), _TOTALS.pack(events, size), _LENGTH.pack(len(account)), account)
            )
        case SideRecord(file, offset, length, crc, n_events):
            return Kind.SIDE, _text(file) + _SIDE.pack(offset, length, crc, n_events)


class _Payload:
    """Reads a payload from its beginning to its end; ValueError if it does not add up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) < size:
            raise ValueError(f"the payload has {len(self._data)} bytes, expected {self._at + size} or more")
        self._at += size
        return part

    def numbers(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def text(self) -> str:
        return self.take(int.from_bytes(self.take(2), "little")).decode()

    def bytes(self) -> bytes:
        size: int = self.numbers(_LENGTH)[0]
        return self.take(size)

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError(f"the payload has {len(self._data)} bytes, expected {self._at}")


def _decode_block(payload: _Payload) -> BlockRecord:
    numbers = payload.numbers(_BLOCK)
    subrun, flags, offset, length, raw_offset, raw_length, crc, n_events, first, last, count = numbers
    if not flags & HAS_SERIALS:
        first = last = None
    positions = []
    for _ in range(count):
        stream, generation, frame, events = payload.numbers(_POSITION)
        positions.append((stream, generation, frame, events))
    return BlockRecord(subrun, offset, length, raw_offset, raw_length, crc, n_events, first, last, tuple(positions))


def _decode_run(payload: _Payload) -> RunRecord:
    number, start = payload.numbers(_RUN)
    return RunRecord(number, start, payload.text(), payload.text())


def _decode_mark(payload: _Payload) -> Mark:
    source = payload.text()
    first, last = payload.numbers(_SERIALS)
    return Mark(source, first, last, payload.text(), payload.bytes())


def _decode_close(payload: _Payload) -> CloseRecord:
    status = payload.text()
    events, size = payload.numbers(_TOTALS)
    return CloseRecord(status, events, size, payload.bytes())


_DECODERS: dict[int, Callable[[_Payload], Record]] = {
    Kind.RUN: _decode_run,
    Kind.SUBRUN: lambda p: SubrunRecord(p.numbers(_LENGTH)[0], p.text()),
    Kind.STREAM: lambda p: StreamRecord(int.from_bytes(p.take(2), "little"), p.text()),
    Kind.BLOCK: _decode_block,
    Kind.MARK: _decode_mark,
    Kind.CLOSE: _decode_close,
    Kind.SIDE: lambda p: SideRecord(p.text(), *p.numbers(_SIDE)),
}


class Journal:
    """The writer's side: appends records. An append that fails leaves the file as it was."""

    def __init__(self, fd: int, end: int = 0, sequence: int = 0) -> None:
        self._fd = fd
        self.end = end
        self.sequence = sequence

    @classmethod
    def create(cls, path: str | Path) -> Journal:
        """A new, empty journal; SettingsError if there is one of that name."""
        return cls(create_exclusively(path))

    def append(self, record: Record) -> None:
        """Write one record at the end; OSError as it comes."""
        kind, payload = _encode(record)
        data = _HEADER.pack(MAGIC, kind, VERSION, len(payload), self.sequence) + payload
        data += _CRC.pack(crc32c.crc32c(data))
        try:
            write_at(self._fd, memoryview(data), self.end)
        except OSError:
            self.roll_back(self.end, self.sequence)
            raise
        self.end += len(data)
        self.sequence += 1

    def roll_back(self, end: int, sequence: int) -> None:
        """Forget the records from ``end`` on, which had sequence number ``sequence``."""
        truncate(self._fd, end)
        self.end, self.sequence = end, sequence

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file; no record is written."""
        os.close(self._fd)


class Index(msgspec.Struct):
    """What an index file says. ``blocks``, ``marks``: in file order. ``places``: where blocks' records begin.

    ``sides``: the stretches of side files that count. ``waiting``: those that no block follows yet; the records
    from ``waiting_from`` on, where the first of them begins, are dropped by a writer that goes on.
    ``end``: end of the last whole record, ``records`` their number. ``damage``: what is wrong from there on;
    ``torn`` if that is merely a last record that was not written whole. ``close``: None if records follow it.
    """

    path: str
    run: RunRecord | None = None
    subruns: list[SubrunRecord] = []
    streams: dict[int, str] = {}
    blocks: list[BlockRecord] = []
    places: list[int] = []
    marks: list[Mark] = []
    sides: list[SideRecord] = []
    waiting: list[SideRecord] = []
    waiting_from: int = 0
    close: CloseRecord | None = None
    end: int = 0
    records: int = 0
    damage: FormatError | None = None
    torn: bool = False

    def blocks_of(self, subrun: int) -> list[BlockRecord]:
        """The blocks of one subrun in file order."""
        return [block for block in self.blocks if block.subrun == subrun]

    def files(self) -> set[str]:
        """Names of all files that the records speak of, whether they count or not."""
        sides = {side.file for side in (*self.sides, *self.waiting)}
        return sides | {subrun.file for subrun in self.subruns}

    def side_files(self) -> list[str]:
        """Names of the side files, in the order in which they were made."""
        return list(dict.fromkeys(side.file for side in self.sides))

    def sides_of(self, file: str) -> list[SideRecord]:
        """The stretches of one side file that count, in file order."""
        return [side for side in self.sides if side.file == file]

    def positions(self) -> dict[str, Position]:
        """The last position of each stream: where a restarted reader goes on."""
        found = {}
        for block in self.blocks:
            for stream, generation, frame, events in block.positions:
                name = self.streams[stream]
                found[name] = Position(name, generation, frame, events)
        return found

    def account(self) -> dict[str, Any] | None:
        """The account in the last record, None if the run is not closed."""
        return None if self.close is None else msgspec.json.decode(self.close.account, type=dict[str, Any])

    def _take(self, record: Record, place: int) -> None:
        if (self.run is None) != isinstance(record, RunRecord):
            raise ValueError("the first record, and no other, is the run's")
        self.close = None
        match record:
            case BlockRecord():
                unknown = [p[0] for p in record.positions if p[0] not in self.streams]
                if unknown or all(subrun.number != record.subrun for subrun in self.subruns):
                    raise ValueError(f"a block names subrun {record.subrun} or streams {unknown}: not defined")
                self.blocks.append(record)
                self.places.append(place)
                self._settle_sides()
            case RunRecord():
                self.run = record
            case SubrunRecord():
                self.subruns.append(record)
            case StreamRecord(number, name):
                self.streams[number] = name
            case Mark():
                self.marks.append(record)
            case CloseRecord():
                self.close = record
                self._settle_sides()
            case SideRecord():
                if not self.waiting:
                    self.waiting_from = place
                self.waiting.append(record)

    def _settle_sides(self) -> None:
        self.sides += self.waiting
        self.waiting = []


def read_index(path: str | Path) -> Index:
    """An index file, up to its end or to the first record that is not whole; see `Index`."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no index {path}", path=str(path)) from None
    return parse_index(data, str(path))


def parse_index(data: bytes, path: str) -> Index:
    """The content of an index file; as `read_index`."""
    index = Index(path)
    try:
        for place, end, record in _records(data, path):
            try:
                index._take(record, place)
            except ValueError as error:
                raise FormatError(str(error), path, place) from None
            index.end, index.records = end, index.records + 1
    except FormatError as error:
        index.damage = error
        index.torn = data.find(MAGIC, index.end + 1) < 0
    return index


def _records(data: bytes, path: str) -> Iterator[tuple[int, int, Record]]:
    """Beginning, end and content of each record; FormatError at the first that is not whole."""
    at = sequence = 0
    while at < len(data):
        left = len(data) - at
        if left < _HEADER.size:
            raise FormatError(f"{left} bytes are left, and a record header needs {_HEADER.size}", path, at)
        magic, kind, version, size, found = _HEADER.unpack_from(data, at)
        start, end = at + _HEADER.size, at + _HEADER.size + size + _CRC.size
        if magic != MAGIC:
            raise FormatError(f"a record begins with {magic!r}, expected {MAGIC!r}", path, at)
        if end > len(data):
            raise FormatError(f"record {found} has {end - at} bytes, and {left} are left", path, at)
        told, crc = _CRC.unpack_from(data, end - _CRC.size)[0], crc32c.crc32c(data[at : end - _CRC.size])
        if told != crc:
            raise FormatError(f"record {found}: CRC32C is {crc:#010x}, expected {told:#010x}", path, at)
        if version != VERSION or kind not in _DECODERS or found != sequence:
            raise FormatError(
                f"record {found}, kind {kind}, version {version}; expected number {sequence}, a kind of 1 to "
                f"{max(Kind)}, version {VERSION}",
                path,
                at,
            )
        payload = _Payload(data[start : end - _CRC.size])
        try:
            record = _DECODERS[kind](payload)
            payload.end()
        except ValueError as error:
            raise FormatError(f"record {found}, {Kind(kind).name}: {error}", path, at) from None
        yield at, end, record
        at, sequence = end, sequence + 1


def stem_of(path: str | Path) -> str:
    """The file's name without ``.mid`` and what follows it."""
    name = Path(path).name
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


def index_path(path: str | Path) -> Path:
    """Where the index of a run is whose first file is ``path``."""
    return Path(path).with_name(stem_of(path) + ".idx")


def side_path(first: Path, name: str) -> Path:
    """Where a side file of a run is whose first file is ``first``."""
    return first.with_name(f"{stem_of(first)}.{name}.mid")


def is_side_name(path: str | Path) -> bool:
    """Whether a file is named as a side file is."""
    return Path(path).name.endswith(tuple(f".{name}.mid" for name in SIDES))


def find_index(path: str | Path) -> Path | None:
    """The index that belongs to a file: of the same name, or, for a subrun or a side file, of its run."""
    exact = index_path(path)
    if exact.exists():
        return exact
    stem, name = stem_of(path), Path(path).name
    candidates = [found for found in exact.parent.glob("*.idx") if stem.startswith(found.stem)]
    for candidate in sorted(candidates, key=lambda found: -len(found.stem)):
        if name in read_index(candidate).files():
            return candidate
    if is_side_name(path):
        # A damaged index may have lost the record, and it is still the index of this file.
        of_run = exact.with_name(Path(stem).stem + ".idx")
        return of_run if of_run.exists() else None
    return None

"""The laws of a ``.mid`` file and its index: one small generator each, problems with file, offset, numbers.

========= ============================================================================================ =======
law       says                                                                                         needs
========= ============================================================================================ =======
whole     events are whole and back to back, to the last byte                                          file
banks     banks have a name, a type, a fitting size, and fill the event exactly                        file
borders   begin of run first, end of run last, nowhere else; all run numbers agree                     file
serials   serial numbers of one source rise, modulo 2^32; gaps are told, they are no damage            file
blocks    each block has its length, CRC32C, number of events and serial numbers                       index
index     its records are whole; blocks lie back to back and fill the file; it is closed, totals agree index
exists    a side file that the index names is there                                                    index
length    a side file's stretches lie back to back and fill it; while the run is open, more may follow index
stretches each stretch of a side file has its length and CRC32C                                        index
counts    each stretch has its number of events                                                        index
========= ============================================================================================ =======

Of a side file, whole, banks, index and the last four are judged: it has no borders, and its serial numbers come
from several sources.

Whether one event id has one source is known if the index has one stream, or if the ODB in the begin-of-run
event has one equipment of that id that writes to the logger's buffer. Else serial numbers are not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from phloem.formats.midas.dump import Tree, parse_dump
from phloem.formats.midas.events import HEADER_BYTES, MIDAS_MAGIC, Buffer, decode_event, has_banks
from phloem.formats.midas.index import BlockRecord, Index, SideRecord
from phloem.model.errors import FormatError
from phloem.model.event import TID, EventId

__all__ = [
    "Borders",
    "Law",
    "Longs",
    "Piece",
    "Problem",
    "Serials",
    "banks",
    "blocks",
    "blocks_fill_the_file",
    "index_is_whole",
    "side_exists",
    "sources_of",
    "stretch_counts",
    "stretches",
    "stretches_fill_the_file",
    "suspects",
    "take_apart",
    "whole",
]

Longs: TypeAlias = NDArray[np.int64]


class Problem(msgspec.Struct, frozen=True):
    """What a law has to say. ``offset``: in the uncompressed stream of the file, or in the index."""

    law: str
    path: str
    offset: int
    text: str
    damage: bool = True

    def __str__(self) -> str:
        return f"{self.path}: byte {self.offset}: {self.law}: {self.text}"


class Piece(NamedTuple):
    """A stretch of a file's uncompressed stream, taken apart at its event headers: arrays of (n events,).

    ``offset``: of its first byte. ``events``: where each whole event begins in ``data``. ``sizes``: bytes
    after the header. ``broken``: what is wrong after the last whole event. ``block``: the index's record of
    it, ``side`` that of a stretch of a side file; ``crc`` and ``length``: CRC32C and number of the bytes that the
    file has there.
    """

    path: str
    offset: int
    data: Buffer
    events: Longs
    ids: Longs
    masks: Longs
    serials: Longs
    sizes: Longs
    broken: FormatError | None = None
    block: BlockRecord | None = None
    crc: int | None = None
    length: int = 0
    side: SideRecord | None = None


Law: TypeAlias = Callable[[Piece], Iterator[Problem]]


def take_apart(path: str, offset: int, data: Buffer, events: Longs, broken: FormatError | None) -> Piece:
    """A piece with its headers as arrays."""
    words = _words(data)
    first, second = words[events].astype(np.int64), words[events + 8]
    return Piece(
        path,
        offset,
        data,
        events,
        first & 0xFFFF,
        first >> 16 & 0xFFFF,
        first >> 32 & 0xFFFFFFFF,
        (second >> np.uint64(32)).astype(np.int64),
        broken,
    )


def _words(data: Buffer) -> NDArray[np.uint64]:
    """The 8 bytes at each offset as a number: a view that overlaps itself, since events may lie anywhere."""
    return np.ndarray((max(len(data) - 7, 0),), "<u8", data, strides=(1,))


# The laws of the file


def whole(piece: Piece) -> Iterator[Problem]:
    """Events are whole and back to back."""
    if piece.broken is not None:
        yield Problem("whole", piece.path, piece.broken.offset, piece.broken.reason)


def banks(piece: Piece) -> Iterator[Problem]:
    """The bank area of each event adds up. The decoder, asked about suspects only, says why not."""
    for event in piece.events[suspects(piece)].tolist():
        try:
            decode_event(piece.data, event, piece.path, piece.offset)
        except FormatError as error:
            yield Problem("banks", piece.path, error.offset, error.reason)


_ITEM_BYTES = np.zeros(256, np.int64)
_ITEM_BYTES[[int(tid) for tid in TID]] = [tid.dtype.itemsize for tid in TID]
_ITEM_BYTES[TID.BITFIELD] = 1
_BANK_BYTES = np.zeros(256, np.int64)
_BANK_BYTES[[0x01, 0x11, 0x21, 0x31]] = 8, 12, 16, 16
_HIGH_BITS = 0x80808080
_HAS_BANKS = np.array([has_banks(event_id) for event_id in range(1 << 16)])


def suspects(piece: Piece) -> Longs:
    """Which events have banks that do not add up: all events of a piece together, bank by bank."""
    words, last_word = _words(piece.data), len(piece.data) - 8
    which = np.flatnonzero(_HAS_BANKS[piece.ids])
    ends = piece.events[which] + HEADER_BYTES + piece.sizes[which]
    area = words[np.minimum(piece.events[which] + HEADER_BYTES, last_word)]
    flags = (area >> np.uint64(32)).astype(np.int64)
    widths = np.where(flags < 256, _BANK_BYTES[flags & 255], 0)
    bad = (widths == 0) | ((area & np.uint64(0xFFFFFFFF)).astype(np.int64) + 8 != piece.sizes[which])
    found = [which[bad]]
    at = piece.events[which] + HEADER_BYTES + 8
    keep = ~bad & (at < ends)
    while keep.any():
        which, at, ends, widths = which[keep], at[keep], ends[keep], widths[keep]
        fits, following = _bank(words, at, widths, last_word)
        bad = ~fits | (at + widths > ends) | (following > ends)
        found.append(which[bad])
        at = following
        keep = ~bad & (at < ends)
    return np.sort(np.concatenate(found))


def _bank(words: NDArray[np.uint64], at: Longs, widths: Longs, last_word: int) -> tuple[NDArray[np.bool_], Longs]:
    """Whether the bank headers at ``at`` make sense, and where the next ones begin."""
    head = words[np.minimum(at, last_word)]
    tail = words[np.minimum(at + 4, last_word)]
    short = widths == 8
    name = (head & np.uint64(0xFFFFFFFF)).astype(np.int64)
    # From `head` for BANK: its header may be the last 8 bytes there are, and `tail` would be read elsewhere.
    tid = np.where(short, head >> np.uint64(32) & np.uint64(0xFFFF), tail & np.uint64(0xFFFFFFFF)).astype(np.int64)
    size = np.where(short, head >> np.uint64(48), tail >> np.uint64(32)).astype(np.int64)
    # Each byte of a name is 0x20 to 0x7E: no high bit, none is below 0x20, none is 0x7F.
    printable = (name & _HIGH_BITS) == 0
    printable &= ((name | _HIGH_BITS) - 0x20202020) & _HIGH_BITS == _HIGH_BITS
    printable &= (name + 0x01010101) & _HIGH_BITS == 0
    items = np.where(tid < 256, _ITEM_BYTES[tid & 255], 0)
    fits = printable & (items > 0) & (size % np.maximum(items, 1) == 0)
    return fits, at + widths + (size + 7 & ~7)


class Borders:
    """Begin of run first, end of run last, one run number. Of several files the outer two have them."""

    def __init__(self, path: str, run_number: int | None, first: bool, last: bool) -> None:
        self._path = path
        self._run_number = run_number
        self._first = first
        self._last = last
        self._events = 0
        self._end: tuple[int, int] | None = None  # offset of the end of run, and its place among the events
        self._at = 0

    def check(self, piece: Piece) -> Iterator[Problem]:
        """Borders within the piece."""
        if self._first and not self._events and len(piece.ids) and piece.ids[0] != EventId.BEGIN_OF_RUN:
            yield self._problem(piece.offset, f"the first event is {int(piece.ids[0]):#06x}, not the begin of run")
        for number in np.flatnonzero(piece.ids & ~1 == EventId.BEGIN_OF_RUN).tolist():
            offset = piece.offset + int(piece.events[number])
            run, mask = int(piece.serials[number]), int(piece.masks[number])
            if piece.ids[number] == EventId.BEGIN_OF_RUN:
                if self._events + number:
                    yield self._problem(offset, "a begin of run that is not the first event")
            elif self._end is None:
                self._end = (offset, self._events + number)
            else:
                yield self._problem(offset, "a second end of run")
            if self._run_number is None:
                self._run_number = run
            if run != self._run_number:
                yield self._problem(offset, f"run number {run}, expected {self._run_number}")
            if mask != MIDAS_MAGIC:
                yield self._problem(offset, f"trigger mask {mask:#06x}, expected {MIDAS_MAGIC:#06x}")
        self._events += len(piece.ids)
        self._at = piece.offset + len(piece.data)

    def finish(self) -> Iterator[Problem]:
        """What was expected and did not come."""
        if self._first and not self._events:
            yield self._problem(0, "there is no whole event, not even the begin of run")
        if self._end is None and self._last:
            yield self._problem(self._at, "there is no end of run")
        if self._end is not None and self._end[1] != self._events - 1:
            offset, place = self._end
            yield self._problem(offset, f"{self._events - 1 - place} events after the end of run")

    def _problem(self, offset: int, text: str) -> Problem:
        return Problem("borders", self._path, offset, text)


class Serials:
    """Serial numbers of each event id rise modulo 2^32, if the id has one source; gaps are counted."""

    def __init__(self, path: str, one_stream: bool) -> None:
        self._path = path
        self._one_stream = one_stream
        self._sources: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._gaps: dict[int, list[tuple[int, int, int]]] = {}
        self._unjudged: set[int] = set()

    def check(self, piece: Piece) -> Iterator[Problem]:
        """Falls within the piece and from the one before."""
        if piece.offset == 0 and len(piece.ids) and piece.ids[0] == EventId.BEGIN_OF_RUN:
            self._sources = sources_of(bytes(piece.data[HEADER_BYTES : HEADER_BYTES + int(piece.sizes[0])]))
        for event_id in np.unique(piece.ids[piece.ids < EventId.BEGIN_OF_RUN]).tolist():
            which = np.flatnonzero(piece.ids == event_id)
            serials = piece.serials[which]
            before = self._last.get(event_id, int(serials[0]) - 1)
            steps = np.diff(serials, prepend=before) & 0xFFFFFFFF
            self._last[event_id] = int(serials[-1])
            falls = np.flatnonzero((steps == 0) | (steps >= 1 << 31))
            if self._one_stream or self._sources.get(event_id) == 1:
                yield from self._falls(piece, event_id, piece.events[which], serials, falls, before)
                self._count_gaps(piece, event_id, piece.events[which], steps)
            elif len(falls):
                self._unjudged.add(event_id)

    def _falls(
        self, piece: Piece, event_id: int, events: Longs, serials: Longs, falls: Longs, before: int
    ) -> Iterator[Problem]:
        for fall in falls.tolist():
            previous = int(serials[fall - 1]) if fall else before
            yield Problem(
                "serials",
                self._path,
                piece.offset + int(events[fall]),
                f"event id {event_id} has serial number {int(serials[fall])} after {previous}",
            )

    def _count_gaps(self, piece: Piece, event_id: int, events: Longs, steps: Longs) -> None:
        gaps = np.flatnonzero((steps > 1) & (steps < 1 << 31))
        if len(gaps):
            missing = int((steps[gaps] - 1).sum())
            first = piece.offset + int(events[gaps[0]])
            self._gaps.setdefault(event_id, []).append((first, len(gaps), missing))

    def finish(self) -> Iterator[Problem]:
        """Notes: gaps, and ids that could not be judged."""
        for event_id, parts in sorted(self._gaps.items()):
            gaps, missing = sum(part[1] for part in parts), sum(part[2] for part in parts)
            text = f"event id {event_id}: {missing} serial numbers are absent in {gaps} gaps; the first is here"
            yield Problem("serials", self._path, parts[0][0], text, damage=False)
        for event_id in sorted(self._unjudged):
            sources = self._sources.get(event_id, 0)
            known = f"{sources} sources" if sources else "an unknown number of sources"
            text = f"event id {event_id}: serial numbers are not judged, {known} may give it"
            yield Problem("serials", self._path, 0, text, damage=False)


def sources_of(dump: bytes) -> dict[int, int]:
    """How many equipments give each event id to the logger, by a dump of the ODB; empty if unknown."""
    try:
        odb = parse_dump(dump)
    except FormatError:
        return {}
    channels = _below(odb, "Logger", "Channels")
    buffers = {_below(channels, name, "Settings").get("Buffer") for name in channels} - {None}
    found: dict[int, int] = {}
    for name in _below(odb, "Equipment"):
        common = _below(odb, "Equipment", name, "Common")
        event_id = common.get("Event ID")
        if common.get("Buffer") in (buffers or {"SYSTEM"}) and isinstance(event_id, int):
            found[event_id] = found.get(event_id, 0) + 1
    return found


def _below(tree: Tree, *names: str) -> Tree:
    """A directory of an ODB, empty if it is not there."""
    for name in names:
        below = tree.get(name)
        if not isinstance(below, dict):
            return {}
        tree = below
    return tree


# The laws of file and index


def blocks(piece: Piece) -> Iterator[Problem]:
    """A block is what the index says of it."""
    block = piece.block
    if block is None:
        return
    place = f"block at byte {block.offset} of the file"
    if piece.length != block.length:
        text = f"{place}: the file has {piece.length} of its {block.length} bytes"
        yield Problem("blocks", piece.path, piece.offset, text)
        return
    if piece.crc != block.crc:
        text = f"{place}, {block.length} bytes: CRC32C is {piece.crc:#010x}, the index says {block.crc:#010x}"
        yield Problem("blocks", piece.path, piece.offset, text)
    data = np.flatnonzero(piece.ids < EventId.BEGIN_OF_RUN)
    serials = (int(piece.serials[data[0]]), int(piece.serials[data[-1]])) if len(data) else (None, None)
    for what, found, told in (
        ("events", len(piece.ids), block.n_events),
        ("uncompressed bytes", len(piece.data), block.raw_length),
        ("as first and last serial number", serials, (block.first_serial, block.last_serial)),
    ):
        if found != told:
            text = f"{place} has {found} {what}, the index says {told}"
            yield Problem("blocks", piece.path, piece.offset, text)


def index_is_whole(index: Index) -> Iterator[Problem]:
    """Records of the index are whole, and the last one closes the run with the right totals."""
    if index.damage is not None:
        what = "the last record is torn" if index.torn else "a record is damaged"
        yield Problem("index", index.path, index.damage.offset, f"{what}: {index.damage.reason}")
    if index.close is None:
        yield Problem("index", index.path, index.end, "the run is not closed: no record says how it ended")
        return
    events, size = sum(b.n_events for b in index.blocks), sum(b.length for b in index.blocks)
    if (index.close.events, index.close.size_bytes) != (events, size):
        yield Problem(
            "index",
            index.path,
            index.end,
            f"the last record says {index.close.events} events in {index.close.size_bytes} bytes, the blocks "
            f"have {events} in {size}",
        )


def blocks_fill_the_file(index: Index, told: list[BlockRecord], path: str, size: int) -> Iterator[Problem]:
    """Blocks lie back to back, in the file and in its uncompressed stream, and fill it to its last byte."""
    end = raw_end = 0
    for block in told:
        if (block.offset, block.raw_offset) != (end, raw_end):
            yield Problem(
                "index",
                index.path,
                index.places[index.blocks.index(block)],
                f"a block begins at byte {block.offset} ({block.raw_offset} uncompressed), expected {end} ({raw_end})",
            )
        end, raw_end = block.offset + block.length, block.raw_offset + block.raw_length
    if size > end:
        text = f"{size - end} bytes are beyond the last block of the index, which ends at byte {end} of the file"
        yield Problem("index", path, raw_end, text)
    missing = [block for block in told if block.offset >= size]
    if missing:
        text = f"the file ends at byte {size}; the index has {len(missing)} more blocks, up to byte {end}"
        yield Problem("index", path, missing[0].raw_offset, text)


# The laws of side files


def side_exists(index: Index, path: str, exists: bool) -> Iterator[Problem]:
    """A side file that the index names is there."""
    told = index.sides_of(Path(path).name)
    if told and not exists:
        events, size = sum(side.n_events for side in told), sum(side.length for side in told)
        text = f"the file does not exist; the index tells of {events} events in {size} bytes"
        yield Problem("exists", path, 0, text)


def stretches_fill_the_file(index: Index, told: list[SideRecord], path: str, size: int) -> Iterator[Problem]:
    """Stretches lie back to back and fill the side file; what follows them in a run that is open does not count."""
    end = 0
    for side in told:
        if side.offset != end:
            text = f"a stretch of {side.length} bytes begins at byte {side.offset}, expected {end}"
            yield Problem("length", path, side.offset, text)
        end = side.offset + side.length
    if size < end:
        yield Problem("length", path, size, f"the file ends at byte {size}; the index has stretches up to byte {end}")
    if size > end:
        text = f"{size - end} bytes are beyond the last stretch of the index, which ends at byte {end}"
        is_open = index.close is None
        yield Problem("length", path, end, text + "; the run is open" * is_open, damage=not is_open)


def stretches(piece: Piece) -> Iterator[Problem]:
    """A stretch has the bytes that the index says."""
    side = piece.side
    if side is None:
        return
    place = f"stretch at byte {side.offset}, {side.length} bytes"
    if piece.length != side.length:
        yield Problem("stretches", piece.path, side.offset, f"{place}: the file has {piece.length} of them")
    elif piece.crc != side.crc:
        text = f"{place}: CRC32C is {piece.crc:#010x}, the index says {side.crc:#010x}"
        yield Problem("stretches", piece.path, side.offset, text)


def stretch_counts(piece: Piece) -> Iterator[Problem]:
    """A stretch has as many events as the index says."""
    side = piece.side
    if side is not None and len(piece.ids) != side.n_events:
        text = f"stretch at byte {side.offset} has {len(piece.ids)} events, the index says {side.n_events}"
        yield Problem("counts", piece.path, side.offset, text)

"""Proving a ``.mid`` file against the laws in :mod:`phloem.formats.midas.laws`.

With an index, the file is read block by block: CRC32C first, then the headers, then the banks. Without one
only the structure can be judged, and the result says so. A file is read once, in blocks or chunks of about
1 MB; memory stays bounded. The last whole event is named whatever else is wrong. A side file is proved through
its run's index in the same way, stretch by stretch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import crc32c
import msgspec
import numpy as np

from phloem.formats.midas.events import decode_header, walk
from phloem.formats.midas.file import Compression, compression_of, decompress, read_chunks
from phloem.formats.midas.index import BlockRecord, Index, SideRecord, find_index, is_side_name, read_index
from phloem.formats.midas.laws import (
    Borders,
    Law,
    Piece,
    Problem,
    Serials,
    banks,
    blocks,
    blocks_fill_the_file,
    index_is_whole,
    side_exists,
    stretch_counts,
    stretches,
    stretches_fill_the_file,
    take_apart,
    whole,
)
from phloem.model.errors import FormatError, NotFoundError

__all__ = ["Problem", "Result", "WholeEvent", "verify", "verify_run"]

MAX_PROBLEMS = 1000  # a file of noise has millions; the rest are counted


class WholeEvent(NamedTuple):
    """Where a whole event begins in the uncompressed stream, and which one it is."""

    offset: int
    serial_number: int
    event_id: int


class Result(msgspec.Struct, frozen=True):
    """What `verify` found. ``events``: whole ones. ``bytes``: the file's on disk. ``index``: its path, or "".

    ``notes`` are no damage: gaps, and what could not be judged. ``untold``: problems beyond the first 1000.
    """

    path: str
    events: int
    bytes: int
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    last_whole_event: WholeEvent | None
    index: str = ""
    status: str = ""
    untold: int = 0

    @property
    def ok(self) -> bool:
        """True if no law was broken."""
        return not self.problems


def _plain_pieces(path: str, start: int = 0, offset: int = 0) -> Iterator[Piece]:
    """A file without an index, or what is beyond its last block, in chunks."""
    broken = None
    try:
        for chunk in read_chunks(path, start, offset):
            yield take_apart(path, chunk.offset, chunk.data, chunk.events, None)
            offset = chunk.offset + len(chunk.data)
    except FormatError as error:
        broken = error
    if broken is not None:
        yield take_apart(path, offset, b"", np.empty(0, np.int64), broken)


def _indexed_pieces(path: str, told: list[BlockRecord], size: int) -> Iterator[Piece]:
    """A file by the blocks of its index, and what is beyond the last one in chunks."""
    end = raw_end = 0
    with open(path, "rb", buffering=0) as file:
        compression = compression_of(path, file.read(4))
        for block in told:
            end, raw_end = block.offset + block.length, block.raw_offset + block.raw_length
            if block.offset < size:
                data = os.pread(file.fileno(), min(block.length, size - block.offset), block.offset)
                yield _block_piece(path, block, data, compression)
    if end < size:
        yield from _plain_pieces(path, end, raw_end)


def _block_piece(path: str, block: BlockRecord, stored: bytes, compression: Compression | None) -> Piece:
    data, broken = b"", None
    try:
        data = decompress(stored, compression, path, block.offset)
    except FormatError as error:
        broken = error
    piece = _stored_piece(path, block.raw_offset, data, broken)
    return piece._replace(block=block, crc=crc32c.crc32c(stored), length=len(stored))


def _stored_piece(path: str, offset: int, data: bytes, broken: FormatError | None) -> Piece:
    """A piece that must be whole events; ``broken`` if already its bytes could not be had."""
    events, end = walk(data)
    try:
        if end < len(data):
            decode_header(data, end, path, offset)
    except FormatError as error:
        broken = broken or error
    return take_apart(path, offset, data, events, broken)


def _side_pieces(path: str, told: list[SideRecord]) -> Iterator[Piece]:
    """A side file by the stretches that its index tells of. What follows them is never judged."""
    with open(path, "rb", buffering=0) as file:
        for side in told:
            data = os.pread(file.fileno(), side.length, side.offset)
            piece = _stored_piece(path, side.offset, data, None)
            yield piece._replace(side=side, crc=crc32c.crc32c(data), length=len(data))


class _Findings:
    """Gathers what the laws say."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []
        self.untold = 0

    def add(self, found: Iterator[Problem]) -> None:
        for problem in found:
            into = self.problems if problem.damage else self.notes
            if len(into) < MAX_PROBLEMS:
                into.append(problem)
            else:
                self.untold += 1


def verify(path: str | Path) -> Result:
    """Prove one file of a run, compressed or not: by its run's index, else by its structure alone."""
    found = find_index(path)
    index = read_index(found) if found else None
    is_side = _is_side(Path(path).name, index)
    return (_verify_side if is_side else _verify)(Path(path), index)


def _is_side(name: str, index: Index | None) -> bool:
    """Whether a file is a side file: by its run's index, else by its name."""
    if index is not None and name in index.files():
        return all(subrun.file != name for subrun in index.subruns)
    return is_side_name(name)


def verify_run(index: str | Path) -> list[Result]:
    """Prove all files of a run, by its index; the side files come last."""
    state, path = read_index(index), Path(index)
    results = [_verify(path.with_name(subrun.file), state) for subrun in state.subruns]
    return results + [_verify_side(path.with_name(file), state) for file in state.side_files()]


def _verify(path: Path, index: Index | None) -> Result:
    findings, name = _Findings(), str(path)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", path=name) from None
    pieces = _plain_pieces(name)
    run: int | None = None
    first = last = True
    if index is None:
        findings.notes.append(_without_index(name))
    else:
        run = index.run.run_number if index.run else None
        findings.add(index_is_whole(index))
        subrun = next((subrun for subrun in index.subruns if subrun.file == path.name), None)
        if subrun is None:
            findings.problems.append(Problem("index", index.path, 0, f"it does not name the file {path.name}"))
        else:
            told = index.blocks_of(subrun.number)
            findings.add(blocks_fill_the_file(index, told, name, size))
            pieces = _indexed_pieces(name, told, size)
            first, last = subrun == index.subruns[0], subrun == index.subruns[-1]
    borders = Borders(name, run, first, last)
    serials = Serials(name, one_stream=index is not None and len(index.streams) == 1)
    events, end = _judge(pieces, (whole, banks, borders.check, serials.check, blocks), findings)
    for finish in (borders.finish, serials.finish):
        findings.add(finish())
    return _result(name, events, size, end, findings, index)


def _verify_side(path: Path, index: Index | None) -> Result:
    findings, name = _Findings(), str(path)
    told = index.sides_of(path.name) if index else []
    exists = path.exists()
    if not exists and not told:
        raise NotFoundError(f"there is no file {path}", path=name)
    size = path.stat().st_size if exists else 0
    pieces: Iterator[Piece] = iter(())
    if index is not None:
        findings.add(index_is_whole(index))
        findings.add(side_exists(index, name, exists))
    if index is None:
        findings.notes.append(_without_index(name))
        pieces = _plain_pieces(name)
    elif path.name not in index.files():
        findings.problems.append(Problem("index", index.path, 0, f"it does not name the file {path.name}"))
        pieces = _plain_pieces(name)
    elif exists:
        findings.add(stretches_fill_the_file(index, told, name, size))
        pieces = _side_pieces(name, told)
    events, end = _judge(pieces, (whole, banks, stretches, stretch_counts), findings)
    return _result(name, events, size, end, findings, index)


def _without_index(path: str) -> Problem:
    text = "no index beside the file: only its structure could be judged"
    return Problem("index", path, 0, text, damage=False)


def _result(
    path: str, events: int, size: int, last: WholeEvent | None, findings: _Findings, index: Index | None
) -> Result:
    where = index.path if index else ""
    status = index.close.status if index and index.close else ""
    told_of = (tuple(findings.problems), tuple(findings.notes))
    return Result(path, events, size, *told_of, last, where, status, findings.untold)


def _judge(pieces: Iterator[Piece], laws: Sequence[Law], findings: _Findings) -> tuple[int, WholeEvent | None]:
    """Each law over each piece; how many whole events there are, and the last of them."""
    events, last = 0, None
    for piece in pieces:
        for law in laws:
            findings.add(law(piece))
        events += len(piece.ids)
        if len(piece.ids):
            offset = piece.offset + int(piece.events[-1])
            last = WholeEvent(offset, int(piece.serials[-1]), int(piece.ids[-1]))
    return events, last

"""Writing a run: events into ``.mid`` files, and a record of each block into the index beside them.

Order, for each block: its bytes, then its record, then (by policy) both to the disk. Nothing is copied:
blocks are written from where they are, in pieces of 128 kB that are still in the cache when they are written
after their CRC32C was taken. A file name that ends in .gz, .lz4 or .zst makes each block one independent
member. Events that were not built go to side files first, see :mod:`phloem.formats.midas.sides`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec

from phloem.formats.base import Block, Mark, Position
from phloem.formats.midas.disk import (
    crc_in_file,
    create_exclusively,
    refuse_existing,
    sync_folder,
    truncate,
    write_pieces,
)
from phloem.formats.midas.file import compress, compression_of
from phloem.formats.midas.index import (
    SIDES,
    BlockRecord,
    CloseRecord,
    Index,
    Journal,
    RunRecord,
    StreamRecord,
    SubrunRecord,
    index_path,
    parse_index,
    read_index,
    side_path,
)
from phloem.formats.midas.sides import SideFiles
from phloem.model.errors import FormatError, SettingsError

__all__ = ["Fsync", "RunWriter"]

Fsync: TypeAlias = Literal["never", "close", "block"]


class RunWriter:
    """One run on disk, as a `phloem.formats.base.RunFile`.

    ``path``: the first file; it, its index, its side files must not exist (SettingsError names the one that does).
    ``index``: where the index goes; beside the first file and of its name if not given.
    ``fsync``: what survives a loss of power: "never" nothing is promised, "close" a closed run (and each file
    once the next one has begun), "block" every block whose `write` has returned. A kill of the process loses
    nothing that was written, whatever the policy.
    ``started_s``, ``version``, ``pattern`` are kept in the index.
    """

    def __init__(
        self,
        path: str | Path,
        run_number: int,
        *,
        index: str | Path | None = None,
        started_s: float = 0.0,
        version: str = "",
        pattern: str = "",
        fsync: Fsync = "close",
    ) -> None:
        first = Path(path)
        self._begin(Path(index) if index else index_path(first), fsync)
        for file in (first, *(side_path(first, name) for name in SIDES)):
            refuse_existing(file)
        self._journal = Journal.create(self._index)
        self._sides = SideFiles(first, self._journal, each_synced=fsync == "block")
        try:
            self._journal.append(RunRecord(run_number, started_s, version, pattern))
            self._open(first)
        except (OSError, SettingsError):
            # Without its first file the run has not begun; an index left behind would forbid a second try.
            self._journal.close()
            self._index.unlink()
            raise

    def _begin(self, index: Path, fsync: Fsync) -> None:
        if fsync not in get_args(Fsync):
            raise SettingsError(f"fsync is {fsync!r}; choose one of {', '.join(get_args(Fsync))}")
        self._index, self._fsync = index, fsync
        self._streams: dict[str, int] = {}
        self._path, self._compression = index, compression_of(index)
        self._fd, self._subrun = -1, -1
        self._end = self._raw_end = self._earlier_bytes = self._events = 0

    @classmethod
    def resume(cls, index: str | Path, *, fsync: Fsync = "close") -> tuple[RunWriter, Index]:
        """Go on with a run whose writer is gone: the writer, and the index with all that is kept.

        A torn last record is dropped; the blocks of the last file are checked from its beginning (only the
        last one with fsync "block"), what follows the last good one is cut off. Of side files that is kept which
        was recorded before the last good block; one that has nothing of the kind is removed. `Index.positions`
        says where to go on reading. SettingsError if the run is closed, FormatError if the index is damaged.
        """
        state = _sound(Path(index), fsync)
        writer = cls.__new__(cls)
        writer._begin(Path(index), fsync)
        fd = os.open(index, os.O_RDWR | os.O_CLOEXEC)
        writer._journal = Journal(fd, state.end, state.records)
        truncate(fd, state.end)
        writer._streams = {name: number for number, name in state.streams.items()}
        writer._events = sum(block.n_events for block in state.blocks)
        if not state.subruns:
            raise FormatError("the index names no file; nothing was written", str(index), state.end)
        writer._take_up(state)
        first = writer._index.with_name(state.subruns[0].file)
        writer._sides = SideFiles(first, writer._journal, each_synced=fsync == "block")
        writer._sides.take_up(state.sides)
        return writer, state

    def _take_up(self, state: Index) -> None:
        """Open the last file of the run, cut after its last block; it is made if it does not exist yet."""
        last = state.subruns[-1]
        blocks = state.blocks_of(last.number)
        self._subrun = last.number
        self._path = self._index.with_name(last.file)
        self._compression = compression_of(self._path)
        self._earlier_bytes = sum(block.length for block in state.blocks if block.subrun != last.number)
        if blocks:
            self._end = blocks[-1].offset + blocks[-1].length
            self._raw_end = blocks[-1].raw_offset + blocks[-1].raw_length
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._fd, self._end)

    def _open(self, path: Path) -> None:
        """Begin the next subrun. Its record comes first: no file is without an index that names it."""
        refuse_existing(path)
        before = self._journal.end, self._journal.sequence
        self._journal.append(SubrunRecord(self._subrun + 1, path.name))
        try:
            fd = create_exclusively(path)
        except (OSError, SettingsError):
            self._journal.roll_back(*before)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._path, self._compression = fd, path, compression_of(path)
        self._subrun += 1
        self._earlier_bytes += self._end
        self._end = self._raw_end = 0

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._path

    @property
    def index(self) -> Path:
        """The index of the run."""
        return self._index

    @property
    def side_files(self) -> list[Path]:
        """The side files that there are."""
        return self._sides.paths

    @property
    def events(self) -> int:
        """Events written and recorded, of all kinds, in all files."""
        return self._events

    @property
    def bytes(self) -> int:
        """Bytes on disk, all files together."""
        return self._earlier_bytes + self._end

    @property
    def file_bytes(self) -> int:
        """Bytes of the present file that are written and recorded. A `write` that failed did not move it."""
        return self._end

    def write(
        self,
        block: Block | Sequence[Block],
        n_events: int,
        first_serial: int | None,
        last_serial: int | None,
        positions: Sequence[Position] = (),
    ) -> None:
        """Write one block (or several buffers as one): whole events back to back.

        ``n_events`` counts every event in it; the serial numbers are those of the first and last data event,
        None if there is none. OSError (disk full, say) comes as it is: then nothing of this block counts as
        written, `file_bytes` has not moved, and the same call may be made again, or another one instead.
        """
        parts = (block,) if isinstance(block, bytes | bytearray | memoryview) else block
        buffers = [memoryview(part).cast("B") for part in parts]
        raw_length = sum(map(len, buffers))
        if self._compression is not None:
            buffers = [memoryview(compress(b"".join(buffers), self._compression))]
        places = tuple((self._stream(p.stream), p.generation, p.frame, p.events) for p in positions)
        before = self._journal.end, self._journal.sequence
        try:
            length, crc = self._write_bytes(buffers)
            where = (self._end, length, self._raw_end, raw_length)
            self._journal.append(BlockRecord(self._subrun, *where, crc, n_events, first_serial, last_serial, places))
            if self._fsync == "block":
                self._journal.sync()
        except OSError:
            self._journal.roll_back(*before)
            truncate(self._fd, self._end)
            raise
        self._end += length
        self._raw_end += raw_length
        self._events += n_events

    def _write_bytes(self, buffers: Sequence[memoryview]) -> tuple[int, int]:
        """Length and CRC32C of what was written after the last block, synced by policy."""
        length, crc = write_pieces(self._fd, buffers, self._end)
        if self._fsync == "block":
            os.fdatasync(self._fd)
        return length, crc

    def write_side(self, name: str, events: Block, n_events: int) -> None:
        """Write whole events into the side file ``name`` (late, quarantine), before the block of their frames.

        They count once that block is written: a writer that is killed in between has its successor drop them,
        and write them again with the frames. OSError as in `write`; nothing to write makes no file.
        """
        self._sides.write(name, events, n_events)

    def _stream(self, name: str) -> int:
        number = self._streams.get(name)
        if number is None:
            number = len(self._streams)
            self._journal.append(StreamRecord(number, name))
            self._streams[name] = number
        return number

    def mark(self, mark: Mark) -> None:
        """Keep a decision of the builder in the index."""
        self._journal.append(mark)

    def rotate(self, path: str | Path) -> None:
        """Go on in another file of the same folder: the next subrun. OSError as in `write`."""
        if Path(path).parent != self._index.parent:
            raise SettingsError(f"{path} is not in the folder of {self._index}, as all files of a run must be")
        self._settle()
        self._open(Path(path))

    def close(self, status: str, account: Mapping[str, object] | None = None) -> None:
        """End the run with its status (complete, released, interrupted, forced) and its account.

        OSError as in `write`: the call may be made again.
        """
        self._settle()
        self._sides.settle(synced=self._fsync != "never")
        self._journal.append(CloseRecord(status, self.events, self.bytes, msgspec.json.encode(account or {})))
        if self._fsync != "never":
            self._journal.sync()
            sync_folder(self._index.parent)
        self.abandon()

    def _settle(self) -> None:
        """The present file is whole: nothing beyond its last block, and on the disk by policy."""
        os.ftruncate(self._fd, self._end)
        if self._fsync != "never":
            os.fsync(self._fd)

    def abandon(self) -> None:
        """Close the files and leave the run open, as a killed writer would. A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._sides.close()
            self._journal.close()
            self._fd = -1


def _sound(path: Path, fsync: Fsync) -> Index:
    """The index of an open run, cut before what its files do not have and what must be written again."""
    state = read_index(path)
    if state.damage is not None and not state.torn:
        raise state.damage
    if state.run is None:
        raise FormatError("the index has no record of its run", str(path), 0)
    if state.close is not None:
        raise SettingsError(f"run {state.run.run_number} is closed ({state.close.status}): nothing to resume")
    records = path.read_bytes()[: _first_bad_block(state, path, fsync)]
    kept = parse_index(records, str(path))
    if kept.waiting:
        kept = parse_index(records[: kept.waiting_from], str(path))
    _remove_unnamed(state, kept, path)
    os.truncate(path, kept.end)
    return kept


def _first_bad_block(state: Index, path: Path, fsync: Fsync) -> int:
    """Where the record begins of the first block whose bytes are not in the last file; else the records' end."""
    last = state.subruns[-1].number if state.subruns else 0
    doubtful = [number for number, block in enumerate(state.blocks) if block.subrun == last]
    for number in doubtful[-1:] if fsync == "block" else doubtful:
        block = state.blocks[number]
        file = path.with_name(state.subruns[-1].file)
        if crc_in_file(file, block.offset, block.length) != block.crc:
            return state.places[number]
    return state.end


def _remove_unnamed(before: Index, after: Index, path: Path) -> None:
    """Remove the files whose records are dropped: they will be made again, and must not exist then.

    Before the index is cut, since nothing else knows that they are of this run.
    """
    for file in before.files() - after.files():
        path.with_name(file).unlink(missing_ok=True)

"""Side files of a run: ``run00042.late.mid``, ``run00042.quarantine.mid``, what the builder did not build.

Events back to back as in the run's file, but without run borders and never compressed. Every stretch has a SIDE
record in the run's index, and its bytes are written first. Since the block of the frames that carried it comes
after it, a record counts once a BLOCK or CLOSE record follows: else the frames will be read again, and so will it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from phloem.formats.base import Block
from phloem.formats.midas.disk import create_exclusively, refuse_existing, truncate, write_pieces
from phloem.formats.midas.index import SIDES, Journal, SideRecord, side_path
from phloem.model.errors import SettingsError

__all__ = ["SideFiles"]


class _SideFile:
    """One side file that is open. ``end``: of what is written and recorded."""

    def __init__(self, path: Path, fd: int, end: int = 0) -> None:
        self.path = path
        self.fd = fd
        self.end = end


class SideFiles:
    """The side files of one run: none at first, each made when it is first needed.

    ``first``: the run's first file, whose name they bear. ``each_synced``: bring each stretch to the disk.
    """

    def __init__(self, first: Path, journal: Journal, *, each_synced: bool) -> None:
        self._first = first
        self._journal = journal
        self._each_synced = each_synced
        self._open: dict[str, _SideFile] = {}

    @property
    def paths(self) -> list[Path]:
        """The files that there are, in the order in which they were made."""
        return [side.path for side in self._open.values()]

    def take_up(self, records: Iterable[SideRecord]) -> None:
        """Go on with the files that these records tell of, cut where the records end.

        Bytes that the disk lost become zeros, so that what follows is at its place; `verify` names the stretch.
        """
        for record in records:
            path = self._first.with_name(record.file)
            if record.file not in self._open:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                self._open[record.file] = _SideFile(path, fd)
            self._open[record.file].end = record.offset + record.length
        for side in self._open.values():
            os.ftruncate(side.fd, side.end)

    def write(self, name: str, events: Block, n_events: int) -> None:
        """Append whole events, then their record; OSError as it comes, and then nothing of them is there.

        Without events nothing is done.
        """
        data = memoryview(events).cast("B")
        if name not in SIDES:
            raise SettingsError(f"{name!r} is no side file; choose one of {', '.join(SIDES)}", name=name)
        if not data:
            return
        side = self._made(name)
        before = self._journal.end, self._journal.sequence
        try:
            length, crc = write_pieces(side.fd, (data,), side.end)
            if self._each_synced:
                os.fdatasync(side.fd)
            self._journal.append(SideRecord(side.path.name, side.end, length, crc, n_events))
        except OSError:
            self._journal.roll_back(*before)
            truncate(side.fd, side.end)
            raise
        side.end += length

    def _made(self, name: str) -> _SideFile:
        """The side file, which is made if need be. An empty record comes first, as for a subrun.

        Without it, a writer that goes on could not tell a file of this run from one that was here before.
        """
        path = side_path(self._first, name)
        if path.name not in self._open:
            refuse_existing(path)
            before = self._journal.end, self._journal.sequence
            self._journal.append(SideRecord(path.name, 0, 0, 0, 0))
            try:
                fd = create_exclusively(path)
            except (OSError, SettingsError):
                self._journal.roll_back(*before)
                raise
            self._open[path.name] = _SideFile(path, fd)
        return self._open[path.name]

    def settle(self, *, synced: bool) -> None:
        """The files are whole: nothing beyond the last record, and on the disk if ``synced``."""
        for side in self._open.values():
            os.ftruncate(side.fd, side.end)
            if synced:
                os.fsync(side.fd)

    def close(self) -> None:
        """Close the files; `paths` still names them."""
        for side in self._open.values():
            if side.fd >= 0:
                os.close(side.fd)
                side.fd = -1

"""Files that are only ever appended to: made once, written at a place, cut after a failure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import crc32c

from phloem.model.errors import NotFoundError, SettingsError

__all__ = [
    "crc_in_file",
    "create_exclusively",
    "refuse_existing",
    "sync_folder",
    "truncate",
    "write_at",
    "write_pieces",
]

# Fits a core's second-level cache: what the CRC has just read is written without another trip to memory.
PIECE_BYTES = 128 * 1024


def refuse_existing(path: Path) -> None:
    """SettingsError if there is a file of that name."""
    if path.exists():
        raise _exists(path)


def create_exclusively(path: str | Path) -> int:
    """A new file, open for writing and reading; a file that exists is never touched."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise _exists(path) from None


def _exists(path: str | Path) -> SettingsError:
    return SettingsError(
        f"{path} exists and is not overwritten; choose another run number or move the file away",
        path=str(path),
    )


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``, however short the single writes are."""
    done, size = 0, len(data)
    while done < size:
        done += os.pwrite(fd, data[done:] if done else data, offset + done)


def write_pieces(fd: int, buffers: Sequence[memoryview], offset: int) -> tuple[int, int]:
    """Write buffers back to back at ``offset``: how many bytes they have, and their CRC32C."""
    at, crc = offset, 0
    for buffer in buffers:
        for start in range(0, len(buffer), PIECE_BYTES):
            piece = buffer[start : start + PIECE_BYTES]
            crc = crc32c.crc32c(piece, crc)
            write_at(fd, piece, at)
            at += len(piece)
    return at - offset, crc


def truncate(fd: int, size: int) -> None:
    """Cut a file, if the disk lets us: what is beyond ``size`` is overwritten later in any case."""
    try:
        os.ftruncate(fd, size)
    except OSError:
        return


def sync_folder(folder: Path) -> None:
    """Bring the names of new files to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def crc_in_file(path: Path, offset: int, length: int) -> int | None:
    """CRC32C of a stretch of a file, None if the file ends within it."""
    crc = 0
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            while length:
                piece = file.read(min(length, PIECE_BYTES))
                if not piece:
                    return None
                crc, length = crc32c.crc32c(piece, crc), length - len(piece)
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist, and its index has blocks of it", path=str(path)) from None
    return crc

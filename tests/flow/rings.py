"""Edits a ring file in place, from its layout written out by hand: the thief who takes a fragment on its way.

Ring header, little endian: 12 u32 header size, 16 u64 capacity, 256 u64 head, 448 u64 where the last committed frame
begins. The body follows the header; a position stands for byte ``position mod capacity`` of it.

Frame header, 128 bytes: 0 ``PHLF``, 6 u16 kind (2: events), 24 u64 body size, 32 u64 size of the sections behind the
body, 40 u32 number of events, 48 u32 serial number of the last event + 1, 64 u64 events sent so far. Each event takes a
multiple of 8 bytes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EVENTS = 2

_HEADER_SIZE, _CAPACITY, _HEAD, _LAST = (12, "<I"), (16, "<Q"), (256, "<Q"), (448, "<Q")
_KIND, _BODY, _META, _NUMBER, _NEXT, _SENT = (6, "<H"), (24, "<Q"), (32, "<Q"), (40, "<I"), (48, "<I"), (64, "<Q")
_FRAME_BYTES = 128


class Ring:
    """A ring file that is open for theft."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def _get(self, field: tuple[int, str], base: int = 0) -> int:
        return int(struct.unpack_from(field[1], self._memory, base + field[0])[0])

    def _put(self, field: tuple[int, str], base: int, value: int) -> None:
        struct.pack_into(field[1], self._memory, base + field[0], value)

    @property
    def _last(self) -> int:
        """Offset of the last committed frame in the file."""
        return self._get(_HEADER_SIZE) + self._get(_LAST) % self._get(_CAPACITY)

    @property
    def sent(self) -> int:
        """Events committed in this run, as the last frame says."""
        if self._get(_HEAD) == 0:
            return 0
        assert self._memory[self._last : self._last + 4] == b"PHLF"
        return self._get(_SENT, self._last)

    def take_last_event(self) -> int:
        """Take the last event out of the last committed frame; returns its serial number."""
        frame = self._last
        assert self._get(_KIND, frame) == EVENTS
        number, body = self._get(_NUMBER, frame), self._get(_BODY, frame)
        start = at = frame + _FRAME_BYTES
        for _ in range(number - 1):
            at += 16 + (struct.unpack_from("<I", self._memory, at + 12)[0] + 7) // 8 * 8
        serial = int(struct.unpack_from("<I", self._memory, at + 4)[0])
        last_bytes = 16 + (struct.unpack_from("<I", self._memory, at + 12)[0] + 7) // 8 * 8
        assert at + last_bytes == start + body, "the events of the frame fill its body"
        meta = self._get(_META, frame)
        self._memory[at : at + meta] = self._memory[start + body : start + body + meta]
        self._put(_NUMBER, frame, number - 1)
        self._put(_BODY, frame, at - start)
        self._put(_NEXT, frame, serial)
        return serial


@contextmanager
def ring_of(path: Path) -> Iterator[Ring]:
    """The ring in a file, as it is in memory now."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield Ring(memory)

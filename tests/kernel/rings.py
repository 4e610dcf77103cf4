"""Rings for tests: a place that is taken away again, waiting with a deadline, and the ring's layout by hand."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phloem.kernel import RingReader, RingWriter

# What these tests ask for is known to be missing in the ring.

CAPACITY = 1 << 18
RUN = 42

# Offsets in the ring file, written out by hand (docs: "The ring").
CAPACITY_AT, GENERATION_AT, BOOT_ID_AT, N_SLOTS_AT, WRITER_PID_AT = 16, 24, 32, 48, 52
HEAD_AT, RESERVED_AT, PUBLISHED_AT, LAST_AT = 256, 320, 384, 448
SLOTS_AT, SLOT_SIZE, BODY_AT = 1024, 256, 4096
FRAME = struct.Struct("<4sHHIHHQQQIIIIQQQQQ32s")
FRAME_FIELDS = (
    *("magic", "version", "kind", "run", "lane", "flags", "sequence", "body_size", "meta_size", "n_events"),
    *("first_serial", "next_serial", "crc32c", "time_ns", "total_events", "total_bytes", "generation", "size"),
    "reserved",
)


@contextmanager
def ring_place() -> Iterator[Path]:
    """A directory in shared memory, removed afterwards."""
    place = Path(tempfile.mkdtemp(prefix="phloem-test-", dir="/dev/shm"))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def until(condition: Callable[[], Any], what: str, deadline_s: float = 20.0) -> None:
    """Wait for a condition, but not for ever."""
    end_s = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"waited {deadline_s} s for {what}")
        pause.wait(0.0005)


def new_writer(path: Path, readers: list[str] | None = None, **more: Any) -> RingWriter:
    """A writer with small frames and a flush timer that stays out of the way."""
    settings: dict[str, Any] = {"capacity": CAPACITY, "max_frame": 4096, "flush_ns": 10**9, **more}
    return RingWriter(str(path), "Trigger01", "BUF01", readers=["EB"] if readers is None else readers, **settings)


def new_reader(path: Path, name: str = "EB", everything: bool = True) -> RingReader:
    """A reader without a doorbell."""
    return RingReader(str(path), name, everything, None)


def send(writer: RingWriter, serial: int, data: bytes = b"12345678") -> bool:
    """One event with one bank."""
    return writer.send_event(1, 0xFFFF, serial, 7, [(b"DATA", 6, data)])


def drain(reader: RingReader) -> list[dict[str, Any]]:
    """All frames that are there: their header's fields, and ``body`` and ``meta``; released."""
    found = []
    while (frame := reader.next()) is not None:
        fields = frame_fields(frame.header)
        found.append({**fields, "body": bytes(frame.body), "meta": frame.meta})
        end = frame.end
        frame.close()
        reader.release(end)
    return found


def frame_fields(header: bytes) -> dict[str, Any]:
    """A frame header taken apart."""
    return dict(zip(FRAME_FIELDS, FRAME.unpack(header[: FRAME.size]), strict=True))


def read_u64(path: Path, at: int) -> int:
    """A 64-bit word of the ring file."""
    return int.from_bytes(path.read_bytes()[at : at + 8], "little")


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Change bytes of the ring file, seen by all who have mapped it."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


class Progress:
    """Two 64-bit words that a child process and its parent share: how far it came, and a word for it to wait on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)
        self._words = memoryview(self._map).cast("Q")

    def __getitem__(self, i: int) -> int:
        return self._words[i]

    def __setitem__(self, i: int, value: int) -> None:
        self._words[i] = value

    def close(self) -> None:
        self._words.release()
        self._map.close()


@contextmanager
def child(script: str, *args: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that runs a module of these tests; killed at the latest when the block ends."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join(part for part in (os.environ.get("PYTHONPATH", ""), str(root)) if part)
    process = subprocess.Popen(
        [sys.executable, "-m", script, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()

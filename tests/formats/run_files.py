"""Small runs on disk for the tests of reading, verifying and showing files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from phloem.formats.base import Position
from phloem.formats.midas.events import encode_event, message_event, run_event
from phloem.formats.midas.writer import Fsync, RunWriter
from phloem.model.event import TID, Bank, BankFormat, Event, MessageType

GOLDEN = Path(__file__).parent.parent / "golden" / "midas"
TIME = 1_700_000_000
ODB = b'{"Runinfo": {"Run number": 7}}'


def data_event(serial: int, n_values: int = 2, event_id: int = 1, form: BankFormat = BankFormat.BANK32A) -> bytes:
    """One event with a bank of bytes and one of doubles."""
    banks = (
        Bank("BYTS", TID.UINT8, np.arange(serial, serial + n_values, dtype=np.uint8)),
        Bank("DBLS", TID.FLOAT64, np.arange(n_values) / 3),
    )
    return encode_event(Event(event_id, 0xFFFF, serial, TIME, 0, form, banks))


def late_event(serial: int, source: bytes = b"fe01") -> bytes:
    """A late fragment as the builder leaves it: two bytes, and the bank LATE with its source."""
    banks = (
        Bank("BYTS", TID.UINT8, np.array([serial, 7], dtype=np.uint8)),
        Bank("LATE", TID.STRING, np.frombuffer(source + b"\0", dtype="S1")),
    )
    return encode_event(Event(1, 0, serial, TIME, 0, BankFormat.BANK32A, banks))


def quarantined_event(content: bytes = b"no event", why: bytes = b"fe02\0its size cannot be believed\0") -> bytes:
    """Bytes in quarantine as the builder leaves them."""
    banks = (
        Bank("QUAR", TID.UINT8, np.frombuffer(content, dtype=np.uint8)),
        Bank("WHYQ", TID.STRING, np.frombuffer(why, dtype="S1")),
    )
    return encode_event(Event(1, 0, 0, 0, 0, BankFormat.BANK32A, banks))


def border(begin: bool, run_number: int = 7) -> bytes:
    """A begin or end of run."""
    return run_event(begin, run_number, TIME, ODB)


def text(words: str = "hello") -> bytes:
    """A MESSAGE event."""
    return message_event("fe01", MessageType.INFO, words, TIME)


def write_run(
    path: Path,
    blocks: Sequence[Sequence[int]] = ((0, 1), (2, 3, 4)),
    *,
    fsync: Fsync = "never",
    close: bool = True,
    streams: Sequence[str] = ("EB",),
) -> RunWriter:
    """Run 7: begin of run with a message, blocks of data events by serial number, end of run; four blocks."""
    writer = RunWriter(path, 7, started_s=float(TIME), version="test", pattern="run%05d.mid", fsync=fsync)
    writer.write([border(True), text()], 2, None, None)
    sent = 0
    for frame, serials in enumerate(blocks):
        sent += len(serials)
        positions = [Position(stream, 11, frame, sent) for stream in streams]
        writer.write([data_event(s) for s in serials], len(serials), serials[0], serials[-1], positions)
    writer.write(border(False), 1, None, None)
    if close:
        writer.close("complete", {"streams": {"EB": {"sent": sent, "written": sent, "lost": 0}}})
    else:
        writer.abandon()
    return writer

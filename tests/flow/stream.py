"""Reads run files of any size, every event of them, from the layout alone: a row of events of one shape at a time.

Most events of a run have the same banks with the same lengths. The first of a row is taken apart by
`tests.flow.reader`; those behind it belong to the row as long as all words of their headers, and their texts, equal
its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tests.flow.faultlog import WRAP, Verdict
from tests.flow.reader import BEGIN_OF_RUN, END_OF_RUN, MESSAGE, Event, banks_of

ROW_BYTES = 4 << 20
HEADER_WORDS, AREA_WORDS, BANK_WORDS = 4, 2, 4  # of BANK32A
BANK32A = 0x31
UINT32, STRING = 6, 12

Words = NDArray[np.uint32]


class Row(NamedTuple):
    """Consecutive events of one shape: their serial numbers, their UINT32 banks (events, values), their texts."""

    serials: Words
    numbers: dict[str, Words]
    texts: dict[str, list[str]]


def rows_of(path: Path | str) -> Iterator[Row]:
    """All events of a run but its borders and messages; every byte of the file belongs to an event."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, borders = 0, []
        while at < len(data):
            header = np.frombuffer(data[at : at + 16], "<u4").tolist()
            end = at + 16 + header[3]
            assert end <= len(data), f"the event at byte {at} ends at {end}, the file at {len(data)}"
            event_id = header[0] & 0xFFFF
            if event_id in (BEGIN_OF_RUN, END_OF_RUN, MESSAGE):
                borders += [event_id] * (event_id != MESSAGE)
                at = end
                continue
            assert borders == [BEGIN_OF_RUN], f"the event at byte {at} is outside the run"
            event = Event(event_id, header[0] >> 16, header[1], header[2], data[at + 16 : end])
            row, events = _row(event, data, at, end - at)
            at += events * (end - at)
            yield row
        assert borders == [BEGIN_OF_RUN, END_OF_RUN]


def _row(event: Event, data: mmap.mmap, at: int, size: int) -> tuple[Row, int]:
    """The row that begins with this event, at byte ``at``, and how many are in it."""
    assert size % 8 == 0, f"the event at byte {at} has {size} bytes"
    assert event.data[4] == BANK32A
    room = min(len(data) - at, max(ROW_BYTES, size)) // size
    words = np.frombuffer(data[at : at + room * size], "<u4").reshape(room, size // 4)
    equal, numbers, texts = [0, 3, 4, 5], {}, {}
    place = HEADER_WORDS + AREA_WORDS
    for bank in banks_of(event):
        equal += range(place, place + BANK_WORDS)
        place += BANK_WORDS
        whole = place + (len(bank.data) + 7) // 8 * 2
        if bank.tid == UINT32:
            numbers[bank.name] = words[:, place : place + len(bank.data) // 4]
        elif bank.tid == STRING:
            texts[bank.name] = bank.data.rstrip(b"\0").decode().split("\0")
            equal += range(place, whole)
        place = whole
    same = (words[:, equal] == words[0, equal]).all(axis=1)
    events = room if same.all() else int(same.argmin())
    return Row(words[:events, 1], {name: values[:events] for name, values in numbers.items()}, texts), events


def check_stream(path: Path | str, verdict: Verdict, sources: Sequence[str], first_serial: int = 0) -> int:
    """Each event of the file, serial number by serial number, has the fragments that the verdict says, and no other;
    all are of the trigger of that number. ``sources``: in the order of their indices, from 1. The number of events."""
    present = np.stack([verdict.present(name, verdict.end) for name in sources])
    expected = np.flatnonzero(present.any(axis=0))
    banks = {f"ID{index:02d}": index for index in range(1, len(sources) + 1)}
    done = 0
    for row in rows_of(path):
        offsets = (row.serials.astype(np.int64) - first_serial) % WRAP
        wanted = expected[done : done + len(offsets)]
        assert np.array_equal(offsets, wanted), f"events {row.serials[0]} to {row.serials[-1]}, and not {wanted}"
        found = {banks[name] for name in row.numbers}
        for index, source in enumerate(sources, start=1):
            assert (present[index - 1, offsets] == (index in found)).all(), f"{source} in {row.serials} is {found}"
        missing = [source for index, source in enumerate(sources, start=1) if index not in found]
        assert row.texts == ({"MISS": missing} if missing else {}), f"events from {row.serials[0]}: {row.texts}"
        for name, values in row.numbers.items():
            assert (values[:, 0] == banks[name]).all()
            assert np.array_equal(values[:, 1], offsets), f"{name} from event {row.serials[0]} is of other triggers"
        done += len(offsets)
    assert done == len(expected), f"the file has {done} events, and should have {len(expected)}"
    return done

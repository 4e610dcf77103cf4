"""Late and quarantined fragments of whole runs are in the side files, one by one as the fault logs say."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flow.faulty_runs import EXPERIMENT, begin, finish
from tests.flow.lab import Lab, Live
from tests.flow.reader import banks_of, events_of

STRING, UINT8 = 12, 1
# Faulty's garbage: an event header of 40 bytes of data, and 40 bytes that no bank area begins with.
HEADER, REST = struct.Struct("<HHIII"), b"\xff" * 40


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.write(EXPERIMENT.format(logs=shared_lab.folder / "logs"))
    with shared_lab.up() as live:
        yield live


def test_late_fragments_are_kept_as_they_came_with_their_source(live: Live) -> None:
    done = finish(live, begin(live, second={"Reorder rate": 2e-3, "Reorder distance": 5}))
    late = [fault for fault in done.logs[1].faults if fault.what == "reorder"]
    assert len(late) > 10
    assert done.fate("late") == (0, len(late))
    kept = list(events_of(Path(done.document["files"][0]).with_suffix(".late.mid")))
    assert [event.serial_number for event in kept] == [fault.serial for fault in late]
    for event, fault in zip(kept, late, strict=True):
        waveform, identity, source = banks_of(event)
        assert (waveform.name, len(waveform.data)) == ("AD02", 32)
        assert (identity.name, identity.values) == ("ID02", (2, fault.trigger))
        assert source == ("LATE", STRING, b"Trigger02\0")


def test_what_is_no_event_is_kept_byte_by_byte_with_source_and_reason(live: Live) -> None:
    done = finish(live, begin(live, first={"Garbage rate": 2e-3}))
    garbage = [fault for fault in done.logs[0].faults if fault.what == "garbage"]
    assert len(garbage) > 10
    kept = list(events_of(Path(done.document["files"][0]).with_suffix(".quarantine.mid")))
    for event, fault in zip(kept, garbage, strict=True):
        data, why = banks_of(event)
        assert data == ("QUAR", UINT8, HEADER.pack(1, 0xFFFF, fault.serial, fault.trigger, 40) + REST)
        assert (why.name, why.tid) == ("WHYQ", STRING)
        assert why.data == b"Trigger01\0its banks do not fill it; fragments: 1\0"


def test_a_run_without_either_has_no_side_files(live: Live) -> None:
    done = finish(live, begin(live))
    file = Path(done.document["files"][0])
    assert done.document["files"] == [str(file)]
    assert list(file.parent.glob(f"{file.stem}.*.mid")) == []

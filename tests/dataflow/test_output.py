"""What a source puts into its ring at a rejoin, byte for byte: read from the file, by the layout written here.

Ring, little endian: 12 u32 header size, 16 u64 capacity, 256 u64 head. Frame header, 128 bytes: 0 ``PHLF``, 6 u16 kind,
8 u32 run, 16 u64 sequence number, 24 u64 body size, 32 u64 meta size, 40 u32 events, 48 u32 next serial number,
64 u64 events sent, 88 u64 size of the frame. Section: u32 kind (3: JSON), u32 size, payload.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from phloem.dataflow.output import Output
from phloem.model.event import Equipment
from phloem.protocol.control import Stream

BEGIN_OF_RUN, EVENTS, REJOIN = 1, 2, 6
WHO = {"client": "fe01", "host": "daq", "pid": 17, "file": "fe.py"}

# A writer that dies with three events in its open frame: sent, but in no closed frame.
DYING = """
import os, sys
import numpy as np
from phloem.dataflow.output import Output
from tests.dataflow.test_output import WHO, stream
output = Output(stream(sys.argv[1]), lambda: None, flush_s=1000.0)
output.begin(42, WHO)
for serial in (5, 6, 9):
    output.send_event([(b"ADC0", 4, np.zeros(4, "u2"))], serial)
os.kill(os.getpid(), 9)
"""


class Frame(NamedTuple):
    kind: int
    run: int
    sequence: int
    n_events: int
    next_serial: int
    sent: int
    text: str
    said: dict[str, Any]


def stream(path: str | Path) -> Stream:
    equipment = Equipment("Trigger01", event_id=3, buffer="BUF01")
    return Stream("Trigger01", "BUF01", str(path), 262144, ("EB",), equipment)


def frames(path: Path) -> list[Frame]:
    """All frames of a ring that has not come round yet."""
    data = path.read_bytes()
    (header_size,) = struct.unpack_from("<I", data, 12)
    (head,) = struct.unpack_from("<Q", data, 256)
    body, at, found = data[header_size:], 0, []
    while at < head:
        assert body[at : at + 4] == b"PHLF"
        (kind,) = struct.unpack_from("<H", body, at + 6)
        (run,) = struct.unpack_from("<I", body, at + 8)
        sequence, body_size, meta_size = struct.unpack_from("<QQQ", body, at + 16)
        (n_events,) = struct.unpack_from("<I", body, at + 40)
        (next_serial,) = struct.unpack_from("<I", body, at + 48)
        (sent,) = struct.unpack_from("<Q", body, at + 64)
        (size,) = struct.unpack_from("<Q", body, at + 88)
        text, said = "", {}
        if kind != EVENTS:
            event_id, _, _, _, data_size = struct.unpack_from("<HHIII", body, at + 128)
            assert (event_id, 16 + data_size) == (0x8002, body_size), "one MESSAGE event"
            text = body[at + 144 : at + 128 + body_size].rstrip(b"\0").decode()
            section, length = struct.unpack_from("<II", body, at + 128 + body_size)
            assert (section, 8 + length + -length % 8) == (3, meta_size)
            said = json.loads(body[at + 136 + body_size : at + 136 + body_size + length])
        found.append(Frame(kind, run, sequence, n_events, next_serial, sent, text, said))
        at += size
    return found


def die(path: Path) -> None:
    """A process that has sent the events 5, 6 and 9 of run 42 and is killed."""
    here = Path(__file__).parents[2]  # where the package `tests` is
    subprocess.run([sys.executable, "-c", DYING, str(path)], cwd=here, timeout=60, check=False)


def send(output: Output, serial_number: int | None = None) -> None:
    output.send_event([(b"ADC0", 4, np.zeros(4, "u2"))], serial_number)
    output.sender.writer.flush()


def test_a_rejoin_goes_on_where_the_killed_process_was(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    die(path)
    output = Output(stream(path), lambda: None)
    assert output.holds(42)
    assert not output.holds(43)
    output.rejoin(WHO)
    send(output)
    begin, before, rejoin, after = frames(path)
    assert (begin.kind, begin.run, begin.sequence, begin.sent) == (BEGIN_OF_RUN, 42, 0, 0)
    assert (before.kind, before.run, before.sequence, before.n_events, before.sent) == (EVENTS, 42, 1, 3, 3)
    assert rejoin[:7] == (REJOIN, 42, 2, 1, 10, 3, "[Trigger01,INFO] Rejoined run")
    assert {name: rejoin.said[name] for name in WHO} == WHO
    assert rejoin.said["equipment"]["name"] == "Trigger01"
    assert (rejoin.said["sent"], rejoin.said["next_serial"]) == (3, 10)
    assert (after.kind, after.run, after.sequence, after.next_serial, after.sent) == (EVENTS, 42, 3, 11, 4)
    assert output.counts()["sent"] == 4


def test_a_ring_that_was_made_just_now_holds_no_run(tmp_path: Path) -> None:
    output = Output(stream(tmp_path / "ring"), lambda: None)
    assert not output.holds(42)
    output.begin(42, WHO)
    assert output.holds(42)


def test_a_counter_that_begins_anew_is_declared_between_the_events(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    output = Output(stream(path), lambda: None, flush_s=1000.0)
    output.begin(42, WHO)
    output.send_event([(b"ADC0", 4, np.zeros(4, "u2"))], 999)
    output.counter_restarted(0, 1234)
    send(output, 0)
    _, before, restart, after = frames(path)
    assert (before.kind, before.n_events, before.next_serial) == (EVENTS, 1, 1000)
    assert restart[:7] == (REJOIN, 42, 2, 1, 1000, 1, "[Trigger01,INFO] Counter restarted")
    assert restart.said == {"restarted": {"serial_number": 0, "event": 1234}}
    assert (after.kind, after.next_serial, after.sent) == (EVENTS, 1, 2)


def test_serial_and_event_numbers_are_taken_modulo_two_to_the_32(tmp_path: Path) -> None:
    output = Output(stream(tmp_path / "ring"), lambda: None)
    output.begin(42, WHO)
    output.counter_restarted(2**32 + 1, 2**32 + 2)
    assert frames(tmp_path / "ring")[-1].said == {"restarted": {"serial_number": 1, "event": 2}}

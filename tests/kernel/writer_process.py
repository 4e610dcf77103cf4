"""A process that writes into a ring until it is killed. Arguments: RING PROGRESS BATCH READER...

Each event's payload is its own serial number, again and again. The first word of the progress file is the serial
number that comes next, stored when the send has returned; the second is 1 while this process runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.kernel.rings import CAPACITY, RUN, Progress

from phloem.kernel import RingWriter


def payload(serial: int) -> bytes:
    """The data of an event: between 1 and 37 words."""
    return serial.to_bytes(4, "little") * (1 + serial % 37)


def write(path: str, progress: Progress, batch: int, readers: list[str]) -> None:
    """Send for ever."""
    writer = RingWriter(path, "Trigger01", "BUF01", CAPACITY, readers, max_frame=2048, flush_ns=50_000)
    if writer.run != RUN:
        writer.begin_run(RUN)
    serial = writer.next_serial
    progress[1] = 1
    while True:
        if batch > 1:
            data = b"".join((serial + i).to_bytes(4, "little") * 5 for i in range(batch))
            sent = 0
            while sent < batch:
                sent = writer.send_batch(1, 0xFFFF, serial, 7, [(b"DATA", 6, data)], batch, sent, None)
                if sent < batch:
                    writer.wait_space(10**8)
        else:
            while not writer.send_event(1, 0xFFFF, serial, 7, [(b"DATA", 6, payload(serial))]):
                writer.wait_space(10**8)
        serial += batch
        progress[0] = serial


if __name__ == "__main__":
    write(sys.argv[1], Progress(Path(sys.argv[2])), int(sys.argv[3]), sys.argv[4:])

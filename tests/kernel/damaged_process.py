"""Damages a ring byte by byte and uses it in each way: errors are expected, a crash or an endless loop is not.

Arguments: PLACE STEP. Prints how many damaged rings were refused, and how many were read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.kernel.rings import BODY_AT, CAPACITY, RUN, SLOTS_AT, new_reader, new_writer, send

from phloem.kernel import RingError, RingReader, RingWriter, settle

MASKS = (0x01, 0x80, 0xFF)


def pristine(place: Path) -> tuple[bytes, int]:
    """A ring with three frames, one of them read, and the position of its head."""
    path = place / "pristine"
    writer = new_writer(path)
    writer.begin_run(RUN)
    for serial in range(6):
        send(writer, serial)
        if serial % 2:
            writer.flush()
    reader = new_reader(path)
    frame = reader.next()
    assert frame is not None
    reader.release(frame.end)
    frame.close()
    return path.read_bytes(), reader.cursor + reader.backlog


def read(reader: RingReader) -> None:
    """Look at all that a reader gives."""
    for _ in range(10):
        frame = reader.next()
        if frame is None:
            return
        assert len(frame.body) <= CAPACITY
        assert frame.header[:4] == b"PHLF"
        frame.close()


def copy(reader: RingReader) -> None:
    """The same for a reader that may be overtaken."""
    for _ in range(10):
        if reader.copy_next() is None:
            return


def write(path: str) -> None:
    """Go on with the ring."""
    writer = RingWriter(path, "Trigger01", "BUF01", CAPACITY, ["EB"], max_frame=4096, flush_ns=10**12)
    for serial in range(20):
        if not send(writer, serial, bytes(20_000)):
            writer.wait_space(1000)
    writer.flush()


USES: tuple[Callable[[str], object], ...] = (
    lambda path: read(RingReader(path, "EB", True, None)),
    lambda path: copy(RingReader(path, "Monitor", False, None)),
    settle,
    write,
)


def damage(place: Path, step: int) -> tuple[int, int]:
    """(refused, used)."""
    data, head = pristine(place)
    spots = [*range(64), *range(256, 264), *range(320, 328), *range(384, 392), *range(448, 456)]
    spots += [*range(SLOTS_AT, SLOTS_AT + 8), *range(SLOTS_AT + 64, SLOTS_AT + 72)]
    spots += [BODY_AT + frame + byte for frame in range(0, head, 256) for byte in range(128)]
    refused = used = 0
    for at in spots[::step]:
        for mask in MASKS:
            for number, use in enumerate(USES):
                path = place / f"{at}-{mask}-{number}"
                path.write_bytes(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
                try:
                    use(str(path))
                    used += 1
                except RingError:
                    refused += 1
                for left in place.glob(f"{path.name}*"):
                    left.unlink()
    return refused, used


if __name__ == "__main__":
    print(*damage(Path(sys.argv[1]), int(sys.argv[2])))

"""A process that sends three events, 10 to 12, into a frame that stays open, and waits to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.kernel.rings import RUN, Progress, new_writer, send

if __name__ == "__main__":
    writer = new_writer(Path(sys.argv[1]), flush_ns=10**12)
    progress = Progress(Path(sys.argv[2]))
    writer.begin_run(RUN)
    for i in range(3):
        send(writer, 10 + i)
        progress[0] = i + 1
    sys.stdin.read()

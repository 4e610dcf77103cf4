"""A process that opens a ring for reading (NAME empty: as one that may be overtaken), and waits to be killed."""

from __future__ import annotations

import sys

from phloem.kernel import RingReader

if __name__ == "__main__":
    reader = RingReader(sys.argv[1], sys.argv[2] or "Monitor", bool(sys.argv[2]), None)
    print("open", flush=True)
    sys.stdin.read()

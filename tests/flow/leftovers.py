"""A shared-memory directory of a test's own, and the proof that the test left nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["processes_of", "shm_directory"]

VARIABLE = "PHLOEM_SHM"


def processes_of(shm: Path) -> dict[int, str]:
    """Every living process that was started with this directory: pid to command line. Zombies have none."""
    mark = f"{VARIABLE}={shm}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if command:
                    found[int(folder.name)] = command
    return found


@contextmanager
def shm_directory() -> Iterator[Path]:
    """A directory for PHLOEM_SHM; at the end no process and no ring of it may be left."""
    root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="phloem-test-", dir=root))
    try:
        yield directory
        left = processes_of(directory)
        files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
        assert not left, f"processes are left: {left}"
        assert not files, f"files are left in shared memory: {files}"
    finally:
        for pid in processes_of(directory):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)

"""Where an experiment lives on this host: the directory of its rings, and how a running one is found."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from phloem.control.address import ADDRESS_FILE, RunControlAddress, read_address
from phloem.kernel import writer_pid
from phloem.model.errors import NotFoundError, UnreachableError

__all__ = ["find_running", "runtime_dir", "tidy"]


def _base() -> Path:
    return Path(os.environ.get("PHLOEM_SHM", "/dev/shm")) / f"phloem-{os.getuid()}"


def runtime_dir(name: str, data_dir: Path) -> Path:
    """Directory of the rings: one per experiment, told apart by where its data are."""
    digest = hashlib.sha256(str(data_dir).encode()).hexdigest()[:8]
    return _base() / f"{name}-{digest}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def find_running(directory: Path | None = None) -> RunControlAddress:
    """The run control of ``directory``, or the only one of this user on this host."""
    directories = [directory] if directory else sorted(path.parent for path in _base().glob(f"*/{ADDRESS_FILE}"))
    found = [address for d in directories if (address := read_address(d)) is not None and _alive(address.pid)]
    if not found:
        what = f"experiment {directory.name} does not run" if directory else "no experiment of yours runs"
        raise UnreachableError(f"{what} on this host; start one with `phloem up EXPERIMENT.toml`")
    if len(found) > 1:
        names = ", ".join(f"{a.experiment} ({a.address})" for a in found)
        raise NotFoundError(f"{len(found)} experiments run on this host: {names}; say which with -e or --core")
    return found[0]


def tidy(directory: Path) -> None:
    """Remove the rings, locks and doorbells that no process holds, and the directory if nothing is left.

    Only for an experiment whose runs are closed: rings of an open run hold data.
    """
    if not directory.is_dir():
        return
    for ring in directory.glob("*.ring"):
        if writer_pid(str(ring)) == 0:
            for file in (ring, ring.with_name(f"{ring.name}.lock")):
                file.unlink(missing_ok=True)
    for bell in directory.glob("*.bell"):
        pid = bell.name.split(".")[-2]
        if not pid.isdigit() or not _alive(int(pid)):
            bell.unlink(missing_ok=True)
    for folder in (directory, directory.parent):
        try:
            folder.rmdir()
        except OSError:
            return

"""Where run control listens: a free port, and the file in the runtime directory that tells others.

``run_control.json``: ``{"address", "pid", "experiment", "data_dir"}``, there while run control listens.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from phloem.model.errors import SettingsError

__all__ = ["ADDRESS_FILE", "RunControlAddress", "bind", "check_loopback", "read_address"]

ADDRESS_FILE = "run_control.json"
_FIRST_PORT, _PORTS = 24400, 100  # below the ephemeral range, so that no client's socket sits there
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class RunControlAddress(msgspec.Struct, frozen=True):
    """The content of the address file."""

    address: str
    pid: int
    experiment: str
    data_dir: str

    def write(self, runtime_dir: Path) -> None:
        """Put the file there in one step."""
        path = runtime_dir / ADDRESS_FILE
        fresh = path.with_name(f"{ADDRESS_FILE}.{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(self) + b"\n")
        fresh.replace(path)

    def remove(self, runtime_dir: Path) -> None:
        """Take the file away if it is still this one."""
        if read_address(runtime_dir) == self:
            with suppress(FileNotFoundError):
                (runtime_dir / ADDRESS_FILE).unlink()


def read_address(runtime_dir: Path) -> RunControlAddress | None:
    """What the file of a runtime directory says, or None. Its run control may have been killed."""
    try:
        return msgspec.json.decode((runtime_dir / ADDRESS_FILE).read_bytes(), type=RunControlAddress)
    except (OSError, msgspec.MsgspecError):
        return None


def check_loopback(address: str) -> None:
    """Refuse an address that others could reach: that needs keys, which are not there yet."""
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if address and not (address.startswith("tcp://") and host in _LOOPBACK):
        raise SettingsError(
            f"run control cannot listen on {address!r}: without keys it serves loopback only; use tcp://127.0.0.1:PORT"
        )


def bind(socket: zmq.asyncio.Socket, address: str, last: RunControlAddress | None) -> str:
    """Bind and return the address in full.

    Empty: where a killed run control of the same data listened (``last``), since its components look for it
    there, else the first free port from 24400 on. Port 0: any.
    """
    wanted = [address.removesuffix(":0") + ":*" if address.endswith(":0") else address]
    if not address:
        before = [last.address] if last is not None and last.address.startswith("tcp://127.0.0.1:") else []
        wanted = [*before, *(f"tcp://127.0.0.1:{_FIRST_PORT + n}" for n in range(_PORTS))]
    for candidate in wanted:
        try:
            socket.bind(candidate)
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise SettingsError(f"run control cannot listen on {candidate}: {error}; give another address") from None
        return socket.getsockopt_string(zmq.LAST_ENDPOINT)
    raise SettingsError(f"run control cannot listen on {' or '.join({wanted[0], wanted[-1]})}: in use; give another")

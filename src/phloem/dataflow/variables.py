"""About once a second the latest event's banks go to ``/Equipment/<name>/Variables``, if Read on has ODB (256).

One event is looked at, and its bytes are copied; they travel with the next heartbeat. Run control makes values of
them (`phloem.control.variables`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from phloem.dataflow.frontend import BatchDraft, EventDraft
from phloem.formats.midas.events import decode_event, walk
from phloem.model.errors import FormatError
from phloem.model.event import RO_ODB, Equipment
from phloem.protocol.control import BankCopy, Variables
from phloem.transport.shm import BankBuffer

__all__ = ["COPY_S", "LARGEST_BYTES", "Copies"]

COPY_S = 1.0
EARLY_S = 0.05  # so that equipment with a Period of 1000 ms is copied each time
LARGEST_BYTES = 64 << 10  # of all banks; the ODB is for people to look at


class Copies:
    """Which equipment's next event is to be copied. ``offer`` takes a copy, ``warn`` a text.

    Times are monotonic seconds.
    """

    def __init__(self, offer: Callable[[Variables], None], warn: Callable[[str], None]) -> None:
        self._offer = offer
        self._warn = warn
        self._taken_s: dict[str, float] = {}
        self._warned: set[str] = set()

    def due(self, equipment: Equipment, now_s: float) -> bool:
        """Whether the next event of ``equipment`` is to be copied."""
        if not equipment.read_on & RO_ODB:
            return False
        taken_s = self._taken_s.get(equipment.name)
        return taken_s is None or now_s - taken_s >= COPY_S - EARLY_S

    def take(self, equipment: Equipment, draft: EventDraft | BatchDraft, now_s: float) -> None:
        """Copy an event, of several the last one. An event without banks is none."""
        banks = _last_event(draft)
        if not banks:
            return
        self._taken_s[equipment.name] = now_s
        size_bytes = sum(_size_bytes(data) for _, _, data in banks)
        if size_bytes > LARGEST_BYTES:
            self._warn_once(
                equipment.name,
                f"{equipment.name}: its banks have {size_bytes} bytes; more than {LARGEST_BYTES} are not copied to "
                f"the ODB. Take 256 out of its Read on if nobody looks there.",
            )
            return
        self._offer(Variables(equipment.name, tuple(self._copied(equipment.name, banks))))

    def _copied(self, equipment: str, banks: list[BankBuffer]) -> Iterator[BankCopy]:
        for encoded, tid, data in banks:
            name = encoded.decode("ascii")
            if "/" in name:
                self._warn_once(f"{equipment}/{name}", f"{equipment}: bank {name!r} cannot be a key in the ODB: '/'")
                continue
            yield BankCopy(name, tid, data.tobytes() if isinstance(data, np.ndarray) else bytes(data))

    def _warn_once(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._warn(text)


def _last_event(draft: EventDraft | BatchDraft) -> list[BankBuffer]:
    if isinstance(draft, BatchDraft):
        return [(name, tid, np.asarray(data)[-1:]) for name, tid, data in draft.banks]
    if not draft.raw:
        return draft.banks
    starts, _ = walk(draft.raw)
    try:
        event, _ = decode_event(draft.raw, int(starts[-1])) if len(starts) else (None, 0)
    except FormatError:  # the builder will say so
        event = None
    return [(bank.name.encode("ascii", "replace"), bank.tid, bank.values) for bank in (event.banks if event else ())]


def _size_bytes(data: object) -> int:
    return memoryview(data).nbytes if not isinstance(data, np.ndarray) else data.nbytes  # type: ignore[arg-type]

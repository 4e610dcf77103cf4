"""What a user writes: a class that derives from `Frontend`, with `poll` and `read`.

::

    class Ebfe(Frontend):
        name = "ebfe"
        equipment = [Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB)]

        def poll(self) -> bool:
            return True

        def read(self, event) -> None:
            event.bank(f"AD{self.index:02d}", np.random.poisson(100, 32).astype("u2"))

The hooks have the names that MIDAS people know; `phloem.dataflow.readout` calls them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phloem.formats.midas.events import walk
from phloem.model.errors import EventError
from phloem.model.event import TID, Equipment, check_bank_name, tid_of
from phloem.transport.shm import BankBuffer

if TYPE_CHECKING:
    from phloem.model.run import RunInfo

__all__ = ["BatchDraft", "EventDraft", "Frontend", "Host", "SupereventDraft", "bank_of"]

_names: dict[str, bytes] = {}
_tids: dict[int, int] = {}


def bank_of(name: str, values: ArrayLike, n_events: int | None = None) -> BankBuffer:
    """Name, TID and data of a bank, checked; the data are contiguous and little endian."""
    encoded = _names.get(name)
    if encoded is None:
        encoded = _names[name] = check_bank_name(name)
    if isinstance(values, (str, bytes)):
        text = values.encode() if isinstance(values, str) else values
        return encoded, TID.STRING, text + b"\0"
    array = values if type(values) is np.ndarray else np.asarray(values)
    dtype = array.dtype
    tid = _tids.get(dtype.num)  # the number: hashing a dtype takes longer than all the rest of this
    if tid is None:
        tid = int(tid_of(dtype))
        if dtype.kind in "iuf":
            _tids[dtype.num] = tid
    if tid == TID.BOOL or not dtype.isnative:
        array = array.astype(TID(tid).dtype)
    if n_events is not None and (array.ndim == 0 or array.shape[0] != n_events):
        raise EventError(
            f"bank {name} of a batch of {n_events} events has shape {array.shape}; its first axis must count the events"
        )
    return encoded, tid, array if array.flags.c_contiguous else np.ascontiguousarray(array)


class EventDraft:
    """The event that `Frontend.read` fills. Without a bank it is not sent (the hardware had nothing).

    ``raw``: instead of banks, whole events as they stand in a ``.mid`` file, headers included. ``subevent``: how many
    triggers of a super-event are in it already (Num subevents); 0 in all other events.
    """

    __slots__ = ("banks", "equipment", "raw", "serial_number", "time_stamp")
    subevent: int = 0

    def __init__(self, equipment: str) -> None:
        self.equipment = equipment
        self.banks: list[BankBuffer] = []
        self.raw = b""
        self.serial_number: int | None = None
        self.time_stamp: int | None = None

    def bank(self, name: str, values: ArrayLike) -> None:
        """Add a bank. ``name``: 4 ASCII characters. ``values``: an array; its dtype chooses the TID
        (``int64``, say, becomes INT64), or a text. They are copied when the event is sent."""
        self.banks.append(bank_of(name, values))

    def cut(self, n_events: int) -> int:
        """Keep ``n_events`` at most; returns how many there are now."""
        if not self.raw:
            self.banks = self.banks if n_events else []
            return min(n_events, 1 if self.banks else 0)
        starts, _ = walk(self.raw)
        if len(starts) > n_events:
            self.raw = self.raw[: int(starts[n_events])]
        return min(n_events, len(starts))


class SupereventDraft(EventDraft):
    """The event of several triggers."""

    __slots__ = ("subevent",)

    def __init__(self, equipment: str) -> None:
        super().__init__(equipment)
        self.subevent = 0


class BatchDraft:
    """Many events of equal shape, which `Frontend.read_batch` fills: the fast way out of Python."""

    __slots__ = ("banks", "equipment", "n_events", "serial_numbers", "time_stamp")

    def __init__(self, equipment: str) -> None:
        self.equipment = equipment
        self.banks: list[BankBuffer] = []
        self.n_events = 0
        self.serial_numbers: NDArray[np.uint32] | None = None
        self.time_stamp: int | None = None

    def bank(self, name: str, values: ArrayLike) -> None:
        """Add a bank. ``values``: (events, ...); the first axis is the same in all banks of the batch."""
        array = np.asarray(values)
        if not self.banks:
            if array.ndim == 0 or array.shape[0] == 0:
                raise EventError(f"bank {name} of a batch has shape {array.shape}: no events")
            self.n_events = array.shape[0]
        self.banks.append(bank_of(name, array, self.n_events))

    def cut(self, n_events: int) -> int:
        """Keep ``n_events`` at most; returns how many there are now."""
        if self.n_events > n_events:
            self.n_events = n_events
            banks: list[BankBuffer] = [(name, tid, np.asarray(data)[:n_events]) for name, tid, data in self.banks]
            self.banks = banks if n_events else []
            if self.serial_numbers is not None:
                self.serial_numbers = self.serial_numbers[:n_events]
        return self.n_events


class Host(Protocol):
    """What a frontend may ask of the process that runs it."""

    def send(self, draft: EventDraft | BatchDraft) -> None: ...
    def wait(self, timeout_s: float) -> None: ...
    def message(self, text: str, severity: str) -> None: ...
    def missed(self, events: int, equipment: str) -> None: ...
    def counter_restarted(self, serial_number: int, event: int, equipment: str) -> None: ...


class Frontend:
    """Base of all frontends; ``index`` is the number given with ``-i`` or MIDAS_FRONTEND_INDEX.

    ``name``: client name; the index is appended with two digits if there is one, as mfe does. ``equipment``: what it
    reads out; formats in names and buffers get the index. ``default_settings``: first values of
    ``/Equipment/<name>/Settings``; the present ones are in `settings`. ``poll_interval_s``: how long to sleep when
    `poll` said no. ``drain_s``: for how long at the end of a run the hardware is still read while `poll` says yes.
    A class that has ``read_batch`` is asked for batches where equipment is read by ``read``.
    """

    name: str = "frontend"
    equipment: Sequence[Equipment] = ()
    default_settings: ClassVar[Mapping[str, Any]] = {}
    poll_interval_s: float = 0.001
    drain_s: float = 0.1

    def __init__(self, index: int | None = None, host: Host | None = None) -> None:
        self.index = index or 0
        self._host = host
        self.settings: dict[str, Any] = dict(self.default_settings)
        self.run: RunInfo | None = None
        self.begun_at_s = 0.0  # when run control asked for the begin and the end, seconds since 1970
        self.ended_at_s: float | None = None

    # ------------------------------------------------------------------ hooks

    def init(self) -> None:
        """Once, when the process has registered: open the hardware."""

    def exit(self) -> None:
        """Once, at the end of the process."""

    def prepare(self, run_number: int) -> None:
        """PREPARE: data sent from now on belong to this run."""

    def begin_of_run(self, run_number: int) -> None:
        """BEGIN: enable the trigger."""

    def rejoin(self, run_number: int, sent: dict[str, int], next_serial: dict[str, int]) -> None:
        """Instead of `prepare` and `begin_of_run`: the process was started again while the run goes on.

        By equipment name, ``sent``: events sent in this run before; ``next_serial``: the last one's serial number + 1,
        which the next event gets unless it is given one.
        """
        self.prepare(run_number)
        self.begin_of_run(run_number)

    def end_of_run(self, run_number: int) -> None:
        """END: disable the trigger. What the hardware still holds is read afterwards (see ``drain_s``)."""

    def loop(self) -> None:
        """In every turn of the main loop, in all states."""

    def settings_changed(self, key: str, value: Any) -> None:
        """A key of ``/Equipment/<name>/Settings`` was set; `settings` has it already."""

    def busy(self, on: bool) -> None:
        """The ring is 75 % full (True), or half empty again (False): veto the trigger."""

    def poll(self) -> bool:
        """Whether the hardware has an event."""
        return False

    def read(self, event: EventDraft) -> None:
        """Fill one event with banks."""
        raise NotImplementedError(f"{type(self).__name__} has neither read nor read_batch")

    # ------------------------------------------------------------------ what a frontend may call

    def send(self, banks: Mapping[str, ArrayLike], equipment: str = "", serial_number: int | None = None) -> None:
        """Send one event outside `read`, in READY or RUN; blocks while the buffer is full."""
        draft = EventDraft(equipment)
        draft.serial_number = serial_number
        for name, values in banks.items():
            draft.bank(name, values)
        self.host.send(draft)

    def send_batch(
        self,
        banks: Mapping[str, ArrayLike],
        equipment: str = "",
        serial_numbers: NDArray[np.uint32] | None = None,
    ) -> None:
        """Send many events of equal shape: each bank is (events, ...). In READY or RUN; blocks while full."""
        draft = BatchDraft(equipment)
        draft.serial_numbers = serial_numbers
        for name, values in banks.items():
            draft.bank(name, values)
        self.host.send(draft)

    def wait(self, timeout_s: float) -> None:
        """Sleep at most ``timeout_s`` (and 100 ms); wakes early when run control asks for something."""
        self.host.wait(timeout_s)

    def missed(self, events: int, equipment: str = "") -> None:
        """The hardware says that it lost ``events`` (its FIFO was full, say): counted beside the account."""
        self.host.missed(events, equipment)

    def counter_restarted(self, serial_number: int, event: int, equipment: str = "") -> None:
        """The hardware counter begins anew: from here on the fragment that bears ``serial_number`` is of ``event``."""
        self.host.counter_restarted(serial_number, event, equipment)

    def message(self, text: str, severity: str = "info") -> None:
        """A message for people: debug, info, warning or error."""
        self.host.message(text, severity)

    @property
    def host(self) -> Host:
        """The process that runs this frontend."""
        if self._host is None:
            raise EventError(f"{type(self).__name__} is not run by `phloem frontend`; it cannot send")
        return self._host

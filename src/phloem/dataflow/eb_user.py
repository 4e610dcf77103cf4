"""User code of the event builder: what ``eb_user`` and ``eb_user_batch`` see, and what they may do.

A Python file, named in ``Settings/User code``, with any of these functions; each may have one more parameter, ``ctx``::

    def eb_begin_of_run(run, user_field, restarted): ...
    def eb_user(fragments, event): ...            # per event: None or EB_SUCCESS, EB_SKIP, EB_USER_ERROR
    def eb_user_batch(fragments, events): ...     # instead of it, for many events at once
    def eb_end_of_run(run): ...
    def eb_time(source, fragment): ...            # ns; instead of the bank TIME

What it does is done again for events whose frame was not committed when the builder died, so it may depend on its
arguments and ``ctx.state`` alone (datapath, section 4).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from enum import IntEnum
from traceback import format_exception
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from phloem.dataflow.frontend import bank_of
from phloem.formats.midas.events import banks_of_area, decode_event, values_of
from phloem.kernel import Builder
from phloem.model.errors import EventError, FormatError, PhloemError, UserCodeError
from phloem.model.event import Bank, check_bank_name

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "EB",
    "Batch",
    "BatchFragment",
    "BatchFragments",
    "BuiltEvent",
    "Context",
    "Fragment",
    "Fragments",
    "UserCode",
]

BATCH_EVENTS = 2000
BATCH_BYTES = 128 << 10
BUILD, SKIP, COMPOSE = 0, 1, 2  # outcomes, as the kernel has them
NOT_THERE = 0xFFFFFFFF
NO_TIME = 2**64 - 1

_HEADER = np.dtype(
    [
        ("present", "<u4"),
        ("event_id", "<u2"),
        ("trigger_mask", "<u2"),
        ("serial_number", "<u4"),
        ("time_stamp", "<u4"),
        ("data_size", "<u4"),
        ("", "<u4"),
    ]
)
_EVENT = np.dtype([("serial_number", "<u4"), ("incomplete", "<u4")])
_FUNCTIONS = {
    "eb_begin_of_run": 3,
    "eb_user": 2,
    "eb_user_batch": 2,
    "eb_end_of_run": 1,
    "eb_time": 2,
}


class EB(IntEnum):
    """What ``eb_user`` may return, with MIDAS' numbers."""

    SUCCESS = 1
    USER_ERROR = 1002
    SKIP = 1004


EB_SUCCESS, EB_SKIP, EB_USER_ERROR = EB.SUCCESS, EB.SKIP, EB.USER_ERROR


class Context:
    """``state``: bytes that outlive a crash of the builder; they travel with the events. ``run``: its number."""

    __slots__ = ("run", "state")

    def __init__(self, run: int) -> None:
        self.run = run
        self.state = b""


class Stage:
    """The events that are being decided on; what looks at them dies with it."""

    __slots__ = ("headers", "kernel", "names", "numbers", "open")

    def __init__(self, kernel: Builder, names: tuple[str, ...], numbers: dict[str, int]) -> None:
        self.kernel = kernel
        self.names = names
        self.numbers = numbers
        self.open = True
        self.headers = np.frombuffer(kernel.staged_headers(), _HEADER).reshape(-1, len(names))

    def number(self, source: str | int) -> int:
        """The place of a source, given by name or place."""
        if isinstance(source, str):
            if source not in self.numbers:
                raise KeyError(f"this run has no source {source!r}; it has {', '.join(self.names)}")
            return self.numbers[source]
        return range(len(self.names))[source]

    def check(self) -> None:
        """Fragments live until the events that are decided on together have left."""
        if not self.open:
            raise EventError("this fragment has left; arrays of its banks may be kept, the fragment may not")


class Fragment:
    """One source's part of the event. Its banks are given as arrays of their own, which may be kept."""

    __slots__ = ("_event", "_number", "_row", "_stage")

    def __init__(self, stage: Stage, event: int, number: int, row: tuple[int, ...]) -> None:
        self._stage, self._event, self._number, self._row = stage, event, number, row

    @property
    def source(self) -> str:
        """Equipment name."""
        return self._stage.names[self._number]

    @property
    def event_id(self) -> int:
        """Of the fragment's own header, as all of these."""
        return self._row[1]

    @property
    def trigger_mask(self) -> int:
        """Which triggers fired."""
        return self._row[2]

    @property
    def serial_number(self) -> int:
        """As sent."""
        return self._row[3]

    @property
    def time_stamp(self) -> int:
        """Seconds since 1970."""
        return self._row[4]

    @property
    def data_size(self) -> int:
        """Bytes after the header, as sent."""
        return self._row[5]

    def bank(self, name: str) -> NDArray[Any] | None:
        """The values of its first bank of that name: (n,), read-only; None if it has none."""
        self._stage.check()
        found = self._stage.kernel.staged_bank(self._event, self._number, check_bank_name(name))
        return None if found is None else values_of(found[1], found[0])

    @property
    def banks(self) -> list[Bank]:
        """All its banks."""
        self._stage.check()
        return banks_of_area(self._stage.kernel.staged_area(self._event, self._number) or b"")

    def __repr__(self) -> str:
        return f"<fragment {self.serial_number} of {self.source}>"


class Fragments:
    """The fragments of one event: by name or place (None where one is missing), or one after the other."""

    __slots__ = ("_event", "_rows", "_stage")

    def __init__(self, stage: Stage, event: int, rows: list[tuple[int, ...]]) -> None:
        self._stage, self._event, self._rows = stage, event, rows

    def __getitem__(self, source: str | int) -> Fragment | None:
        number = self._stage.number(source)
        row = self._rows[number]
        return Fragment(self._stage, self._event, number, row) if row[0] else None

    def __iter__(self) -> Iterator[Fragment]:
        for number, row in enumerate(self._rows):
            if row[0]:
                yield Fragment(self._stage, self._event, number, row)

    def __len__(self) -> int:
        """How many are there."""
        return sum(1 for row in self._rows if row[0])

    @property
    def names(self) -> tuple[str, ...]:
        """All sources of the run, in name order."""
        return self._stage.names

    @property
    def missing(self) -> list[str]:
        """The sources that are not in this event."""
        return [name for name, row in zip(self._stage.names, self._rows, strict=True) if not row[0]]


class BuiltEvent:
    """The event as it will leave: ``bank`` adds to it. Banks of the user come before those of the fragments."""

    __slots__ = ("banks", "incomplete", "serial_number")

    def __init__(self, serial_number: int, incomplete: bool) -> None:
        self.serial_number = serial_number
        self.incomplete = incomplete
        self.banks: list[tuple[bytes, int, Any]] = []

    def bank(self, name: str, values: ArrayLike) -> None:
        """Add a bank; the array's dtype chooses the TID, as in `Frontend.read`."""
        self.banks.append(bank_of(name, values))


class BatchFragment:
    """One source's fragments of many events. Arrays: one row for each event."""

    __slots__ = ("_number", "_stage")

    def __init__(self, stage: Stage, number: int) -> None:
        self._stage, self._number = stage, number

    @property
    def headers(self) -> NDArray[Any]:
        """(events,): present, event_id, trigger_mask, serial_number, time_stamp, data_size."""
        return self._stage.headers[:, self._number]

    @property
    def present(self) -> NDArray[np.bool_]:
        """(events,): whether the fragment is there."""
        return self._stage.headers["present"][:, self._number].astype(bool)

    def bank(self, name: str) -> NDArray[Any]:
        """(events, values) of one bank. `EventError` if it is not in every event or not always of one length."""
        tid, sizes, data = self._gathered(name)
        if len(sizes) == 0 or (sizes == NOT_THERE).any() or (sizes != sizes[0]).any():
            raise EventError(
                f"bank {name} of {self._stage.names[self._number]} is not in each event with the same length; "
                f"use ragged()"
            )
        return values_of(data, tid).reshape(len(sizes), -1)

    def ragged(self, name: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Values of all events back to back, and how many each event has; -1 where it has no such bank."""
        tid, sizes, data = self._gathered(name)
        width = values_of(b"", tid).dtype.itemsize if tid else 1
        return values_of(data, tid or 1), np.where(sizes == NOT_THERE, -1, sizes // width).astype(np.int64)

    def _gathered(self, name: str) -> tuple[int, NDArray[np.uint32], bytes]:
        self._stage.check()
        tid, sizes, data = self._stage.kernel.gather_bank(self._number, check_bank_name(name))
        return tid, np.frombuffer(sizes, "<u4"), data


class BatchFragments:
    """The fragments of many events: ``fragments["Trigger01"].bank("ADC0")`` is (events, values)."""

    __slots__ = ("_stage",)

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __getitem__(self, source: str | int) -> BatchFragment:
        return BatchFragment(self._stage, self._stage.number(source))

    @property
    def names(self) -> tuple[str, ...]:
        """All sources of the run, in name order."""
        return self._stage.names


class Batch:
    """Many events as they will leave. ``serial_number``: (events,) uint32; ``incomplete``: (events,) bool."""

    __slots__ = ("banks", "incomplete", "serial_number", "skipped")

    def __init__(self, serial_number: NDArray[np.uint32], incomplete: NDArray[np.bool_]) -> None:
        self.serial_number = serial_number
        self.incomplete = incomplete
        self.banks: list[tuple[bytes, int, Any]] = []
        self.skipped: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.serial_number)

    def bank(self, name: str, values: ArrayLike) -> None:
        """Add a bank to every event. ``values``: (events, ...)."""
        self.banks.append(bank_of(name, values, len(self)))

    def skip(self, which: ArrayLike) -> None:
        """Leave events out. ``which``: (events,) bool; they are counted as discarded."""
        mask = np.asarray(which, bool)
        if mask.shape != (len(self),):
            raise EventError(f"skip() of a batch of {len(self)} events got an array of shape {mask.shape}")
        self.skipped = mask if self.skipped is None else self.skipped | mask


class UserCode:
    """The functions of one user file. ``composes``: the banks that it makes are the whole event (User build)."""

    def __init__(self, module: ModuleType, run: int, names: list[str], composes: bool, skips_errors: bool) -> None:
        self.name = getattr(module, "__file__", None) or module.__name__
        self.context = Context(run)
        self.errors = 0
        self.first_error: UserCodeError | None = None  # of those that were skipped; told once
        self._names = tuple(names)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._composes = composes
        self._skips_errors = skips_errors
        self._states: list[bytes] = []
        found = {name: getattr(module, name, None) for name in _FUNCTIONS}
        if found["eb_user"] and found["eb_user_batch"]:
            raise UserCodeError(f"{self.name} has eb_user and eb_user_batch; keep one of them")
        if not any(found.values()):
            raise UserCodeError(f"{self.name} has none of {', '.join(_FUNCTIONS)}")
        self._functions = {name: self._bound(name, function) for name, function in found.items() if function}

    def _bound(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, given ``ctx`` if it asks for it."""
        try:
            wanted = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        except (TypeError, ValueError):
            return function
        if len(wanted) == _FUNCTIONS[name] + 1:
            context = self.context
            return lambda *args: function(*args, context)
        if len(wanted) != _FUNCTIONS[name]:
            raise UserCodeError(
                f"{self.name}: {name} has {len(wanted)} parameters; it has {_FUNCTIONS[name]}, and ctx if it wants"
            )
        return function

    @property
    def sees_events(self) -> bool:
        """Whether events must be staged for it."""
        return "eb_user" in self._functions or "eb_user_batch" in self._functions

    @property
    def gives_times(self) -> bool:
        """Whether it says the fragments' times."""
        return "eb_time" in self._functions

    def begin_of_run(self, user_field: str, restarted: bool) -> None:
        """Before the first event."""
        self._call("eb_begin_of_run", self.context.run, user_field, restarted)

    def end_of_run(self) -> None:
        """After the last event."""
        self._call("eb_end_of_run", self.context.run)

    def _call(self, name: str, *args: Any) -> Any:
        function = self._functions.get(name)
        if function is None:
            return None
        try:
            return function(*args)
        except PhloemError:
            raise
        except Exception as error:
            raise UserCodeError(f"{name}() raised {type(error).__name__}: {error}") from error

    # ------------------------------------------------------------------ events

    def decide(self, kernel: Builder) -> UserCodeError | None:
        """Have all staged events decided on. An error that ends the run: that event and those behind it are skipped."""
        if kernel.n_staged == 0:
            return None
        stage = Stage(kernel, self._names, self._numbers)
        try:
            if "eb_user_batch" in self._functions:
                return self._decide_batch(kernel, stage)
            return self._decide_each(kernel, stage)
        finally:
            stage.open = False

    def state_after(self, n: int) -> bytes:
        """``ctx.state`` after the first ``n`` of the staged events, which then leave."""
        state = self._states[n - 1] if 0 < n <= len(self._states) else self.context.state
        del self._states[:n]
        return state

    def _decide_each(self, kernel: Builder, stage: Stage) -> UserCodeError | None:
        function, context, composes = self._functions["eb_user"], self.context, self._composes
        rows: Any = stage.headers.tolist()
        events: Any = np.frombuffer(kernel.staged_events(), _EVENT).tolist()
        self._states = states = []
        for number, (serial, incomplete) in enumerate(events):
            event = BuiltEvent(serial, bool(incomplete))
            try:
                returned = function(Fragments(stage, number, rows[number]), event)
                outcome = self._outcome(returned)
                if outcome != BUILD or composes or event.banks:
                    kernel.set_outcome(number, outcome or (COMPOSE if composes else BUILD), event.banks)
            except Exception as error:  # noqa: BLE001  user code may raise anything
                kernel.set_outcome(number, SKIP, [])
                self.errors += 1
                if not self._skips_errors:
                    for behind in range(number + 1, len(events)):
                        kernel.set_outcome(behind, SKIP, [])
                    states += [context.state] * (len(events) - number)
                    return self._problem("eb_user()", serial, error)
                if self.errors == 1:
                    self.first_error = self._problem("eb_user()", serial, error)
            states.append(context.state)
        return None

    def _outcome(self, returned: Any) -> int:
        if returned is None or returned == EB.SUCCESS:
            return BUILD
        if returned == EB.SKIP:
            return SKIP
        if returned == EB.USER_ERROR:
            raise UserCodeError("eb_user() returned EB_USER_ERROR")
        raise UserCodeError(f"eb_user() returned {returned!r}; it may return None, EB_SUCCESS, EB_SKIP, EB_USER_ERROR")

    def _decide_batch(self, kernel: Builder, stage: Stage) -> UserCodeError | None:
        events = np.frombuffer(kernel.staged_events(), _EVENT)
        batch = Batch(events["serial_number"], events["incomplete"].astype(bool))
        self._states = []
        try:
            self._functions["eb_user_batch"](BatchFragments(stage), batch)
            skipped = None if batch.skipped is None else np.ascontiguousarray(batch.skipped.astype("u1"))
            kernel.set_outcomes(skipped, self._composes, batch.banks)
        except Exception as error:  # noqa: BLE001  user code may raise anything
            self.errors += len(batch)
            kernel.set_outcomes(np.ones(len(batch), "u1"), False, [])
            problem = self._problem("eb_user_batch()", int(batch.serial_number[0]), error)
            if not self._skips_errors:
                return problem
            if self.errors == len(batch):
                self.first_error = problem
        return None

    def _problem(self, what: str, serial: int, error: Exception) -> UserCodeError:
        problem = UserCodeError(f"{what} at event {serial}: {type(error).__name__}: {error}")
        # As text: the frames of a traceback would keep the rings open that the next run must open.
        problem.where = "".join(format_exception(error))
        return problem

    # ------------------------------------------------------------------ times

    def times(self, source: str, body: bytes, n_events: int) -> NDArray[np.uint64]:
        """What ``eb_time`` says of each fragment of a frame, ns; of one that is no event nothing is asked."""
        function = self._functions["eb_time"]
        times = np.full(n_events, NO_TIME, "<u8")
        at = 0
        for number in range(n_events):
            try:
                fragment, end = decode_event(body, at)
            except FormatError:
                break
            at = end + -end % 8
            try:
                times[number] = function(source, fragment)
            except Exception as error:
                raise UserCodeError(f"eb_time() raised {type(error).__name__}: {error}") from error
        return times

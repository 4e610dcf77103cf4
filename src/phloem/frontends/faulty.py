"""A frontend that makes faults on purpose, and writes down which: to test builders, and analyses.

Each fragment has a bank ``IDnn``, UINT32 [index of the source, trigger number], so that an event whose fragments
belong to different triggers can be seen, and ``ADnn``, the waveform of `Simulated`. What becomes of count n of source
i depends on (seed, i, n) alone (`stream`), wherever batches are cut: the same settings give the same stream again.

Words: the *count* is what the source's own counter has counted in this run, from 0; the *serial number* is made from
it (``First serial``, ``Reset at``); the *trigger number* is the truth (another one after ``Shift at``). A *slot* is
the place of a count in an order without faults: a fragment that is moved back by d leaves in the slot of count n + d,
behind the fragment of that count.

The fault log, ``<Log>/<equipment>.faults``, is text, one record per line, fields separated by blanks. It is
append-only, runs one behind the other. All lines of a batch are written in one call before the batch is sent, its
``batch`` line last; fault lines that no ``batch`` line follows belong to a batch of which nothing was sent.

=============================================  ===================================================================
line                                           meaning
=============================================  ===================================================================
``run NUMBER EQUIPMENT INDEX SETTINGS``        begin of a run; SETTINGS is a JSON object, to the end of the line
``batch SENT SLOT SLOTS FRAGMENTS``            its first fragment is number SENT (from 0) of all that this source
                                               sends in this run; it holds slots SLOT to SLOT + SLOTS - 1
``WHAT SENT TRIGGER SERIAL BY``                a fault; the fragment is number SENT of the run, and of a fault that
                                               sends nothing, SENT is the number of the next fragment sent
``rejoin SENT``                                the process was started again; goes on with fragment SENT
``done SENT``                                  all of ``Events`` has been sent: SENT fragments
=============================================  ===================================================================

========== =========================================================== ===========================================
WHAT       of which fragment                                           BY
========== =========================================================== ===========================================
drop       the first of those that are not sent                        how many consecutive ones
hold       not sent in its slot, but later: ``reorder``                by how many slots it is moved back
reorder    one that was held, where it is sent                         by how many slots it was moved back
duplicate  the second copy, where it is sent                           how many slots behind the first one
garbage    sent as an event whose banks do not fill it                 0
shift      TRIGGER is lost, and the counter did not notice; SERIAL     1
           now has the trigger after it
reset      the first one after the counter was reset                   how far the serial number jumps back
freeze     the first one after the source stopped sending              for how many ms
========== =========================================================== ===========================================
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from phloem.dataflow.frontend import EventDraft
from phloem.frontends.simulated import Simulated
from phloem.model.errors import SettingsError

__all__ = ["STREAM", "Batch", "FaultSettings", "Faulty", "What", "batch_of", "stream"]

NS_PER_TRIGGER = 10_000
GARBAGE_BYTES = 40
BATCH_BYTES = 4 << 20  # of waveforms in a batch, at most
BATCH_SLOTS = 12_000  # more would take longer: arrays above 128 kB are given back to the system each time

STREAM = np.dtype([("serial", "<u4"), ("trigger", "<u8"), ("what", "u1"), ("by", "<u4")])
FAULT = np.dtype([("at", "<i8"), ("trigger", "<u8"), ("serial", "<u4"), ("what", "u1"), ("by", "<u4")])

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finalizer
_BITS = np.uint64(33)


class What(IntEnum):
    """What was done to a fragment."""

    CLEAN = 0
    DROP = 1
    DUPLICATE = 2
    HOLD = 3
    REORDER = 4
    GARBAGE = 5
    SHIFT = 6
    RESET = 7
    FREEZE = 8


# As plain numbers: where thousands of fragments take microseconds, looking up members of an Enum is seen.
_DROP, _DUPLICATE, _HOLD, _REORDER, _GARBAGE, _SHIFT, _RESET, _FREEZE = (int(what) for what in What if what)
_SENT = (_DUPLICATE, _REORDER, _GARBAGE)  # all others send nothing

_KEYS = {
    "events": "Events",
    "drop_rate": "Drop rate",
    "duplicate_rate": "Duplicate rate",
    "duplicate_distance": "Duplicate distance",
    "reorder_rate": "Reorder rate",
    "reorder_distance": "Reorder distance",
    "garbage_rate": "Garbage rate",
    "burst_at": "Burst drop at",
    "burst": "Burst drop",
    "shift_at": "Shift at",
    "reset_at": "Reset at",
    "freeze_at": "Freeze at",
    "freeze_s": "Freeze s",
    "first_serial": "First serial",
    "seed": "Seed",
}


class FaultSettings(msgspec.Struct, frozen=True, rename=_KEYS):
    """The part of the settings on which the stream depends. Rates are per fragment, ``..._at`` are counts (0: never),
    distances are slots: 1 to ``reorder_distance``, 0 to ``duplicate_distance``, each as likely."""

    events: int = 0
    drop_rate: float = 0.0
    duplicate_rate: float = 0.0
    duplicate_distance: int = 0
    reorder_rate: float = 0.0
    reorder_distance: int = 1
    garbage_rate: float = 0.0
    burst_at: int = 0
    burst: int = 0
    shift_at: int = 0
    reset_at: int = 0
    freeze_at: int = 0
    freeze_s: float = 0.0
    first_serial: int = 0
    seed: int = 1

    @classmethod
    def parsed(cls, settings: Mapping[str, Any]) -> FaultSettings:
        """From the keys of the ODB; others are left alone."""
        try:
            found = msgspec.convert(dict(settings), cls, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"settings of a faulty frontend: {error}") from None
        rates = {_KEYS[f]: getattr(found, f) for f in cls.__struct_fields__ if f.endswith("_rate")}
        if min(rates.values()) < 0 or sum(rates.values()) > 1:
            raise SettingsError(f"the rates of faults are {rates}; none may be below 0, nor their sum above 1")
        low = {_KEYS[f]: getattr(found, f) for f in cls.__struct_fields__ if getattr(found, f) < 0}
        if low or found.reorder_distance < 1:
            raise SettingsError(f"{low or {'Reorder distance': found.reorder_distance}} is too low for a fault")
        return found

    @property
    def counts(self) -> int | None:
        """How many the counter counts in a run; None: no end."""
        if not self.events:
            return None
        return self.events - (0 < self.shift_at < self.events)

    @property
    def reach(self) -> int:
        """The farthest that a fragment is moved back, in slots."""
        return max(self.reorder_distance if self.reorder_rate else 0, self.duplicate_distance)

    @property
    def slots(self) -> int | None:
        """How many slots a run has: beyond the last count, those in which what was moved back leaves."""
        return None if self.counts is None else self.counts + self.reach


class Batch(NamedTuple):
    """What leaves in some slots: ``counts``, ``serials`` and ``triggers`` of all fragments in the order in which they
    are sent, and ``faults``, in the same order, of `FAULT`; their ``at`` is the fragment's place in the batch."""

    counts: NDArray[np.uint64]
    serials: NDArray[np.uint32]
    triggers: NDArray[np.uint64]
    faults: NDArray[np.void]


def stream(settings: FaultSettings, index: int, start: int, count: int) -> NDArray[np.void]:
    """What source ``index`` sends in slots ``start`` to ``start + count - 1``, in this order, of `STREAM`."""
    batch = batch_of(settings, index, start, count)
    out = np.zeros(len(batch.counts), STREAM)
    out["serial"], out["trigger"] = batch.serials, batch.triggers
    sent = batch.faults[_is(batch.faults["what"], *_SENT)]
    out["what"][sent["at"]], out["by"][sent["at"]] = sent["what"], sent["by"]
    return out


def batch_of(settings: FaultSettings, index: int, start: int, count: int) -> Batch:
    """The same with the faults that send nothing."""
    first, end = max(0, start - settings.reach), start + count
    own_end = end if settings.counts is None else min(end, settings.counts)
    counts = np.arange(first, max(first, own_end), dtype="<u8")
    own = counts[min(start - first, len(counts)) :]
    faulty = _faulty(settings, index, counts)
    here = faulty.chosen((faulty.counts >= start) & _is(faulty.kinds, _DROP, _HOLD, _GARBAGE))
    burst = np.arange(max(start, settings.burst_at), min(own_end, settings.burst_at + settings.burst), dtype="<u8")
    away = np.concatenate([here.counts[here.kinds != _GARBAGE], burst])
    if len(away):
        own = np.delete(own, away.astype("i8") - start)
    sent, slots, moved = _with_moved(own, faulty, start, end)
    rows = [moved, (np.searchsorted(slots, here.counts), *here), *_singular(settings, slots, burst, start, own_end)]
    return Batch(sent, _serials(settings, sent), _triggers(settings, sent), _fault_table(settings, rows))


Row = tuple[Any, Any, Any, Any]  # of faults: places in the batch, counts, kinds, by how much


class _Faulty(NamedTuple):
    """Counts that have a fault of their own, of which kind, and by how much."""

    counts: NDArray[np.uint64]
    kinds: NDArray[np.uint8]
    by: NDArray[np.uint64]

    def chosen(self, which: NDArray[Any]) -> _Faulty:
        """Some of them: a mask, or places."""
        return _Faulty(self.counts[which], self.kinds[which], self.by[which])


def _with_moved(
    own: NDArray[np.uint64], faulty: _Faulty, start: int, end: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], Row]:
    """Counts and slots of all that is sent: what is in its place, with what comes later, or twice, put in."""
    slots = faulty.counts + faulty.by
    late = np.flatnonzero(_is(faulty.kinds, _DUPLICATE, _HOLD) & (slots >= start) & (slots < end))
    late = late[np.lexsort((faulty.counts[late], slots[late]))]
    moved, late_slots = faulty.chosen(late), slots[late]
    places = np.searchsorted(own, late_slots, side="right")
    row = (
        places + np.arange(len(late)),
        moved.counts,
        np.where(moved.kinds == _HOLD, _REORDER, _DUPLICATE),
        moved.by,
    )
    if not len(late):
        return own, own, row
    return np.insert(own, places, moved.counts), np.insert(own, places, late_slots), row


def _faulty(settings: FaultSettings, index: int, counts: NDArray[np.uint64]) -> _Faulty:
    """Which of these counts have a fault of their own; none in a burst."""
    rates = [settings.drop_rate, settings.duplicate_rate, settings.reorder_rate, settings.garbage_rate]
    if not any(rates):
        return _Faulty(counts[:0], np.zeros(0, "u1"), counts[:0])
    limits = np.array([min(int(limit * 2**64), _MASK) for limit in np.cumsum(rates)], "<u8")
    chances = _hashed(settings.seed, 2 * index, counts)
    chosen = np.flatnonzero(chances < limits[-1])
    chosen = chosen[(counts[chosen] < settings.burst_at) | (counts[chosen] >= settings.burst_at + settings.burst)]
    faulty = counts[chosen]
    drawn = np.searchsorted(limits, chances[chosen], side="right")
    kinds = np.array([_DROP, _DUPLICATE, _HOLD, _GARBAGE], "u1")[drawn]
    draws = _hashed(settings.seed, 2 * index + 1, faulty) >> np.uint64(11)
    by = np.zeros(len(faulty), "<u8")
    by[kinds == _DROP] = 1
    back, twice = kinds == _HOLD, kinds == _DUPLICATE
    by[back] = 1 + draws[back] % np.uint64(settings.reorder_distance)
    by[twice] = draws[twice] % np.uint64(settings.duplicate_distance + 1)
    return _Faulty(faulty, kinds, by)


def _is(kinds: NDArray[np.uint8], *wanted: int) -> NDArray[np.bool_]:
    """Which are one of these; for few, faster than np.isin."""
    found: NDArray[np.bool_] = np.logical_or.reduce([kinds == what for what in wanted])
    return found


def _hashed(seed: int, lane: int, counts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A random number for each count, uniform in 64 bits."""
    key = ((seed * 0x10001 + lane + 1) * _GOLDEN) & _MASK
    x = (counts + np.uint64(key)) * np.uint64(_GOLDEN)
    for multiplier in _MULTIPLIERS:
        x ^= x >> _BITS
        x *= multiplier
    x ^= x >> _BITS
    return x


def _singular(
    settings: FaultSettings, slots: NDArray[np.uint64], burst: NDArray[np.uint64], start: int, end: int
) -> list[Row]:
    """Faults that come once in a run, those of them that are in these counts."""
    once = []
    if len(burst):
        once.append((int(burst[0]), _DROP, len(burst)))
    for at, what, by in (
        (settings.shift_at, _SHIFT, 1),
        (settings.reset_at, _RESET, (settings.first_serial + settings.reset_at) % 2**32),
        (settings.freeze_at if settings.freeze_s else 0, _FREEZE, round(1e3 * settings.freeze_s)),
    ):
        if at and start <= at < end:
            once.append((at, what, by))
    return [(np.searchsorted(slots, [at]), [at], [what], [by]) for at, what, by in once]


def _fault_table(settings: FaultSettings, rows: list[Row]) -> NDArray[np.void]:
    """The faults in the order of their places."""
    table = np.zeros(sum(len(row[1]) for row in rows), FAULT)
    if not len(table):
        return table
    counts = np.concatenate([np.asarray(row[1], "<u8") for row in rows])
    table["at"] = np.concatenate([row[0] for row in rows])
    table["what"] = np.concatenate([row[2] for row in rows])
    table["by"] = np.concatenate([row[3] for row in rows])
    table["serial"] = _serials(settings, counts)
    table["trigger"] = np.where(table["what"] == _SHIFT, counts, _triggers(settings, counts))
    return table[np.lexsort((counts, _is(table["what"], *_SENT), table["at"]))]


def _triggers(settings: FaultSettings, counts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The true trigger number of each count."""
    return counts + (counts >= settings.shift_at) if settings.shift_at else counts


def _serials(settings: FaultSettings, counts: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The serial number that each count gets; astype takes it modulo 2^32."""
    serials = counts + np.uint64(settings.first_serial)
    if settings.reset_at:
        serials = np.where(counts >= settings.reset_at, counts - np.uint64(settings.reset_at), serials)
    return serials.astype("<u4")


def garbage(serial: int, trigger: int) -> bytes:
    """An event whose header is in order, and whose bank area says that it is larger than the event."""
    area = np.full(GARBAGE_BYTES // 4, 0xFFFFFFFF, "<u4").tobytes()
    header = np.array([1 | 0xFFFF << 16, serial, trigger & 0xFFFFFFFF, len(area)], "<u4")
    return header.tobytes() + area


class Faulty(Simulated):
    """Settings: those of `Simulated` (without ``Send in READY``); those of `FaultSettings`; ``Log``: directory of the
    fault log (empty: none); ``Time``: adds a bank ``TIME``, UINT64, ns: trigger number * 10 000.

    Sends in batches, from `read` since that can send garbage as well.
    """

    name: str = "faulty"
    read_batch = None  # type: ignore[assignment]
    default_settings: ClassVar[Mapping[str, Any]] = {
        "Payload bytes": 256,
        "Rate Hz": 0.0,
        **msgspec.to_builtins(FaultSettings()),
        "Log": "",
        "Time": False,
    }

    # ------------------------------------------------------------------ hooks

    def _open_run(self) -> None:
        self._shape()
        self._faults = FaultSettings.parsed(self.settings)
        self._rate_hz = float(self.settings["Rate Hz"])
        self._events = self._faults.slots or 0
        self._sent = 0  # slots that are behind us
        self._fragments = 0  # fragments that have been sent
        self._began_s: float | None = None
        self._thawed = not self._faults.freeze_s or not self._faults.freeze_at
        self._frozen_since_s: float | None = None
        self._ready: Batch | None = None  # of a batch: what has not been sent yet

    def prepare(self, run_number: int) -> None:
        self._open_run()
        self._log = _Log.at(str(self.settings["Log"]), self.source)
        self._log.write(_run_line(run_number, self.source, self.index, self._faults))

    def rejoin(self, run_number: int, sent: dict[str, int], next_serial: dict[str, int]) -> None:
        """Go on exactly behind the last fragment that had been sent."""
        self._open_run()
        self._began_s = self.begun_at_s
        self._log = _Log.at(str(self.settings["Log"]), self.source)
        number = sent.get(self.source, 0)
        first, slot, slots = self._log.position(run_number, number, self.source)
        batch = batch_of(self._faults, self.index, slot, slots)
        self._ready = _tail(batch, number - first)
        self._sent, self._fragments = slot + slots, first + len(batch.counts)
        self._thawed = self._thawed or self._sent > self._faults.freeze_at
        self._log.write(f"rejoin {number}\n")

    @property
    def source(self) -> str:
        """The name of its equipment."""
        return self.equipment[0].indexed(self.index).name

    # ------------------------------------------------------------------ what is sent when

    def _triggered(self) -> int:
        if self._ready is not None:
            return 1
        triggered = super()._triggered()
        if self._thawed or self._sent > self._faults.freeze_at:
            return triggered
        if self._sent < self._faults.freeze_at:
            return min(triggered, self._faults.freeze_at - self._sent)
        now_s = time.monotonic()
        self._frozen_since_s = self._frozen_since_s or now_s
        self._thawed = now_s - self._frozen_since_s >= self._faults.freeze_s
        return triggered if self._thawed else 0

    def read(self, event: EventDraft) -> None:
        """Send what is there, up to the next garbage: that goes out as the event itself, bytes as they are."""
        batch = self._next_batch() if self._ready is None else self._ready
        garbage_at = batch.faults["at"][batch.faults["what"] == _GARBAGE]
        cut = int(garbage_at[0]) if len(garbage_at) else len(batch.counts)
        self._send(batch, cut)
        self._ready = None
        if cut < len(batch.counts):
            event.raw = garbage(int(batch.serials[cut]), int(batch.triggers[cut]))
            self._ready = _tail(batch, cut + 1)

    def _next_batch(self) -> Batch:
        slots = min(self._triggered(), BATCH_SLOTS, max(1, BATCH_BYTES // self._adc[0].nbytes))
        batch = batch_of(self._faults, self.index, self._sent, slots)
        lines = _fault_lines(batch.faults, self._fragments)
        lines += f"batch {self._fragments} {self._sent} {slots} {len(batch.counts)}\n"
        self._sent += slots
        self._fragments += len(batch.counts)
        if self._events and self._sent >= self._events:
            lines += f"done {self._fragments}\n"
        self._log.write(lines)
        return batch

    def _send(self, batch: Batch, end: int) -> None:
        first = int(batch.counts[0]) % len(self._adc) if len(batch.counts) else 0
        at = 0
        while at < end:
            number = min(end - at, len(self._adc) - first)
            part = slice(at, at + number)
            banks: dict[str, Any] = {self._bank: self._adc[first : first + number]}
            identity = np.empty((number, 2), "<u4")
            identity[:, 0], identity[:, 1] = self.index, batch.triggers[part]
            banks[f"ID{self.index % 100:02d}"] = identity
            if self.settings["Time"]:
                banks["TIME"] = batch.triggers[part] * np.uint64(NS_PER_TRIGGER)
            self.send_batch(banks, serial_numbers=batch.serials[part])
            at, first = at + number, 0


def _tail(batch: Batch, start: int) -> Batch | None:
    """What follows in a batch behind its first ``start`` fragments; None: nothing."""
    if start >= len(batch.counts):
        return None
    faults = batch.faults[batch.faults["at"] >= start].copy()
    faults["at"] -= start
    return Batch(batch.counts[start:], batch.serials[start:], batch.triggers[start:], faults)


# ---------------------------------------------------------------------- the fault log


def _run_line(run_number: int, source: str, index: int, settings: FaultSettings) -> str:
    return f"run {run_number} {source} {index} {msgspec.json.encode(settings).decode()}\n"


def _fault_lines(faults: NDArray[np.void], sent: int) -> str:
    names = _NAMES
    return "".join(
        f"{names[what]} {sent + at} {trigger} {serial} {by}\n" for at, trigger, serial, what, by in faults.tolist()
    )


_NAMES = [what.name.lower() for what in What]


class _Log:
    """A fault log, open for appending. Each write is one call of the system: what is written survives a kill."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    @classmethod
    def at(cls, folder: str, source: str) -> _Log:
        """That of one source; an empty ``folder``: none, and nothing is written."""
        return cls(Path(folder).expanduser() / f"{source}.faults" if folder else None)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def write(self, lines: str) -> None:
        """Append; when this returns, the lines are with the operating system."""
        data = lines.encode()
        while data and self._fd >= 0:
            data = data[os.write(self._fd, data) :]

    def position(self, run_number: int, sent: int, source: str) -> tuple[int, int, int]:
        """The batch of which fragment ``sent`` is: its first fragment, its first slot, its slots; 0 slots: it begins
        a new batch. Takes off what a kill left of a batch of which nothing had been sent."""
        if self._path is None:
            raise SettingsError(f"{source} cannot go on in run {run_number}: without 'Log' it has no fault log to read")
        lines = self._path.read_bytes().splitlines(keepends=True)
        while lines and not (lines[-1].endswith(b"\n") and lines[-1].startswith(_WHOLE)):
            lines.pop()
        os.ftruncate(self._fd, sum(map(len, lines)))
        begin = f"run {run_number} {source} ".encode()
        begins = [at for at, line in enumerate(lines) if line.startswith(begin)]
        if not begins:
            raise SettingsError(f"{self._path} has no line {begin.decode()!r}; was 'Log' changed in the run?")
        first, slot = 0, 0
        for line in lines[begins[-1] + 1 :]:
            if line.startswith(b"batch"):
                first, slot, slots, fragments = map(int, line.split()[1:])
                if first <= sent < first + fragments:
                    return first, slot, slots
                first, slot = first + fragments, slot + slots
        if sent != first:
            raise SettingsError(
                f"{self._path} ends with fragment {first} of run {run_number}, and {sent} were sent; "
                f"was 'Log' changed in the run?"
            )
        return first, slot, 0


_WHOLE = (b"run ", b"batch ", b"done ", b"rejoin ")  # behind one of these a log may end

"""What the builder means, in plain Python: the specification to which the tests hold `phloem.kernel.Builder`, in C++.

Written for reading, not for speed. A fragment's way:

1. A frame comes from a source. Is it of this run, and is each of its events a valid one? If not: *quarantined*.
2. The source judges its fragments alone, in the order in which they come (`Source.judge`). Serial numbers count
   modulo 2^32. The same number again within the last ``window`` numbers: *duplicate*. More than ``reorder`` behind the
   source's own highest, or below what the source has passed on already, or below what a mark has closed: *late*.
3. All others are passed on in rising order: a fragment is held while a lower one may still come (`Source.pass_on`).
4. An event is open from the first fragment of its number that was passed on. It closes when every source is in it,
   or past it: has passed on a higher number, has ended, or a mark says so (`Source.may_still_bring`). Events leave
   in rising order.
5. With all sources in it the fragments are *built*; if one is missing they are *incomplete* and the event has a bank
   MISS, or *discarded*, as the policy says. An event of more than ``max_event`` bytes is discarded.

Nothing in 1 to 5 depends on time or on the order in which different sources' frames come. Only `Builder.close_without`
is asked because of time (a source is silent) or space, and each number that it decides is in a mark.

Differs from the C++ in that each fragment is judged when it comes, not when it is needed: what an account says is
the same once everything has been built, but the C++ may not have counted yet what lies behind an open event.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phloem.kernel import Cause, Policy, Stop

__all__ = ["FATES", "Builder"]

FATES = ("received", "built", "incomplete", "late", "duplicate", "discarded", "quarantined")

EVENT_HEADER = struct.Struct("<HHIII")  # event id, trigger mask, serial number, time stamp, data size
BANK_AREA = struct.Struct("<II")  # size of all banks, format
BANK_HEADER = {0x01: struct.Struct("<4sHH"), 0x11: struct.Struct("<4sII"), 0x31: struct.Struct("<4sIIxxxx")}
BANK32A = 0x31
TID_STRING = 12


@dataclass(frozen=True, slots=True)
class Fragment:
    """One source's part of an event. ``serial``: unwrapped. ``banks``: as BANK32A, without the 8-byte area header."""

    serial: int
    time_stamp: int
    banks: bytes


@dataclass(slots=True)
class Mark:
    """Timing decided that ``source`` brings none of the numbers ``first`` to ``last`` any more."""

    source: int
    cause: int
    first: int
    last: int


class Source:
    """One source: judges its fragments alone and passes them on in rising order."""

    def __init__(self, number: int, reorder: int, window: int) -> None:
        self.number = number
        self.reorder = reorder
        self.window = window
        self.fates: Counter[str] = Counter()
        self.highest: int | None = None
        self.seen: set[int] = set()
        self.held: dict[int, Fragment] = {}  # accepted; a lower one may still come
        self.passed_on: deque[Fragment] = deque()
        self.next_to_pass: int | None = None  # nothing below it will be passed on any more
        self.closed_to: int | None = None  # marks have closed all below it
        self.ended = False
        self.absent = False

    @property
    def open_from(self) -> int | None:
        """The lowest number that it may still bring; None if that is not known."""
        known = [bound for bound in (self.next_to_pass, self.closed_to) if bound is not None]
        return max(known, default=None)

    def judge(self, fragment: Fragment) -> str | None:
        """The fragment's fate, or None if it is to be passed on."""
        serial = fragment.serial
        if self.highest is None:
            self.highest = serial
            # A run begins at 0: the first one need not wait for numbers below that.
            self.next_to_pass = serial - min(serial % 2**32, self.reorder)
        known = serial in self.seen and serial > self.highest - self.window
        self.seen.add(serial)
        self.highest = max(self.highest, serial)
        if known:
            return "duplicate"
        behind = self.highest - serial > self.reorder
        decided = self.open_from is not None and serial < self.open_from
        return "late" if behind or decided else None

    def add(self, fragment: Fragment) -> None:
        """Judge, and hold until it can be passed on."""
        fate = self.judge(fragment)
        if fate is not None:
            self.fates[fate] += 1
            return
        self.held[fragment.serial] = fragment
        self.pass_on()

    def pass_on(self) -> None:
        """Pass on, lowest first, what nothing lower can come before any more."""
        while self.held and self.highest is not None:
            lowest = min(self.held)
            follows = self.open_from is not None and lowest <= self.open_from
            if not follows and lowest > self.highest - self.reorder and not self.ended:
                return
            self.passed_on.append(self.held.pop(lowest))
            self.next_to_pass = lowest + 1

    def end(self) -> None:
        """It sends no more: nothing needs to be held."""
        self.ended = True
        self.pass_on()

    def has(self, serial: int) -> bool:
        """Whether its fragment of that number is the next one to be built."""
        return bool(self.passed_on) and self.passed_on[0].serial == serial

    def may_still_bring(self, serial: int) -> bool:
        """Whether an event of that number must wait for it: it is neither in it nor past it."""
        if self.passed_on or self.ended or self.absent:
            return False
        return self.closed_to is None or self.closed_to <= serial


class Builder:
    """Joins the fragments of one serial number. The same arguments and methods as the C++ `phloem.kernel.Builder`."""

    def __init__(
        self,
        names: Sequence[str],
        event_id: int = 1,
        trigger_mask: int = 0xFFFF,
        reorder: int = 0,
        window: int = 4096,
        on_incomplete: int = Policy.BUILD,
        max_event: int = 2**64 - 1,
    ) -> None:
        if not names:
            raise ValueError("a builder needs at least one source")
        if window <= reorder:
            raise ValueError("window must be greater than reorder")
        self._names = list(names)
        self._event_id = event_id
        self._trigger_mask = trigger_mask
        self._reorder = reorder
        self._window = window
        self._policy = Policy(on_incomplete)
        self._max_event = max_event
        self.begin_run(0)

    def begin_run(self, run: int) -> None:
        """Forget everything; from now on fragments of ``run`` are built."""
        self._run = run
        self._sources = [Source(i, self._reorder, self._window) for i in range(len(self._names))]
        self._marks: list[Mark] = []
        self._near: int | None = None  # an unwrapped serial number that is near to all others

    # ------------------------------------------------------------------ what comes

    def add_bytes(self, source: int, run: int, body: bytes, n_events: int, sequence: int) -> None:
        """A frame of ``n_events`` fragments at 8-byte steps."""
        s = self._sources[source]
        s.absent = False
        s.fates["received"] += n_events
        if run != self._run or s.ended:
            s.fates["quarantined"] += n_events
            return
        for event in split_events(bytes(body), n_events):
            banks = None if event is None else banks_as_bank32a(event)
            if event is None or banks is None:
                s.fates["quarantined"] += 1
                continue
            _, _, serial, time_stamp, _ = EVENT_HEADER.unpack_from(event)
            s.add(Fragment(self._unwrapped(serial, s), time_stamp, banks))

    def _unwrapped(self, serial: int, source: Source) -> int:
        """The number without its wrap at 2^32: the one nearest to the source's highest, or else to any other."""
        if self._near is None:
            self._near = serial
        near = self._near if source.highest is None else source.highest
        return near + (serial - near + 2**31) % 2**32 - 2**31

    def end_source(self, source: int) -> None:
        """The source's END_OF_RUN has come."""
        self._sources[source].end()

    # ------------------------------------------------------------------ what leaves

    def build(self, room: int) -> tuple[bytes, int, int, int]:
        """(events, why it stopped, how many, bytes that the next event needs if there is no room for it)."""
        out, n_events = b"", 0
        while (serial := self._closed()) is not None:
            event, fate = self._compose(serial)
            if fate == "incomplete" and self._policy == Policy.STOP:
                return out, Stop.POLICY, n_events, 0
            if fate == "discarded" or len(event) > self._max_event:
                event, fate = b"", "discarded"
            elif len(event) > room - len(out):
                return out, Stop.ROOM, n_events, len(event)
            else:
                n_events += 1
            out += event
            self._decide(serial, fate)
        done = all(s.ended for s in self._sources)
        return out, Stop.DONE if done else Stop.WAITING, n_events, 0

    def _oldest_passed_on(self) -> int | None:
        return min((s.passed_on[0].serial for s in self._sources if s.passed_on), default=None)

    def _closed(self) -> int | None:
        """The number of the next event, if every source is in it or past it."""
        serial = self._oldest_passed_on()
        if serial is None or any(s.may_still_bring(serial) for s in self._sources):
            return None
        return serial

    def _compose(self, serial: int) -> tuple[bytes, str]:
        """The event's bytes and its fragments' fate."""
        present = [s.passed_on[0] for s in self._sources if s.has(serial)]
        missing = [name for name, s in zip(self._names, self._sources, strict=True) if not s.has(serial)]
        banks = b"".join(fragment.banks for fragment in present)
        fate = "built"
        if missing:
            fate = "discarded" if self._policy == Policy.DISCARD else "incomplete"
            banks += encode_bank32a(b"MISS", TID_STRING, b"".join(name.encode() + b"\0" for name in missing))
        # The time stamp is that of the first present source in name order, never the clock.
        header = EVENT_HEADER.pack(
            self._event_id, self._trigger_mask, serial % 2**32, present[0].time_stamp, BANK_AREA.size + len(banks)
        )
        return header + BANK_AREA.pack(len(banks), BANK32A) + banks, fate

    def _decide(self, serial: int, fate: str) -> None:
        for source in self._sources:
            if source.has(serial):
                source.passed_on.popleft()
                source.fates[fate] += 1
            elif source.absent and not source.ended:
                self._mark(source, Cause.SILENCE, serial)

    # ------------------------------------------------------------------ what timing forces

    def waited_for(self) -> list[int]:
        """The sources for which the oldest open event waits."""
        oldest = min((n for s in self._sources for n in (*s.held, *(f.serial for f in s.passed_on))), default=None)
        return [s.number for s in self._sources if oldest is not None and s.may_still_bring(oldest)]

    def close_without(self, source: int, cause: int) -> None:
        """Wait no longer for the source: until it sends again (silence), or in the oldest open event only (space)."""
        s = self._sources[source]
        if s.passed_on or s.ended:
            return
        if s.held:  # it waits for its own lower numbers: those are given up
            self._mark(s, cause, min(s.held) - 1)
            s.pass_on()
        elif cause == Cause.SILENCE:
            s.absent = True
        elif (oldest := self._oldest_passed_on()) is not None:
            self._mark(s, cause, oldest)

    def _mark(self, source: Source, cause: int, last: int) -> None:
        """Close all up to ``last`` that the source has not passed on: what comes of it now is late."""
        first = source.open_from
        if first is not None and first > last:
            return
        source.closed_to = last + 1
        before = next((mark for mark in reversed(self._marks) if mark.source == source.number), None)
        if before is not None and before.cause == cause and before.last + 1 == first:
            before.last = last
        else:
            self._marks.append(Mark(source.number, cause, 0 if first is None else first, last))

    def take_marks(self) -> list[tuple[int, int, int, int]]:
        """The marks since they were taken last: (source, cause, first, last); first is 0 for a source that had not
        sent anything. Ranges of one source and cause that touch are one mark."""
        taken, self._marks = self._marks, []
        return [(mark.source, mark.cause, mark.first % 2**32, mark.last % 2**32) for mark in taken]

    def fates(self, source: int) -> tuple[int, int, int, int, int, int, int]:
        """How many fragments had which fate, in the order of `FATES`."""
        count = self._sources[source].fates
        received, built, incomplete, late, duplicate, discarded, quarantined = (count[fate] for fate in FATES)
        return received, built, incomplete, late, duplicate, discarded, quarantined


# ---------------------------------------------------------------------- bytes


def split_events(body: bytes, n_events: int) -> Iterator[bytes | None]:
    """The events of a frame, each with its padding; None for one that cannot be believed, and all behind it."""
    at = 0
    for index in range(n_events):
        size = None
        if len(body) - at >= EVENT_HEADER.size:
            size = aligned(EVENT_HEADER.size + EVENT_HEADER.unpack_from(body, at)[4])
        if size is None or size > len(body) - at:
            yield from [None] * (n_events - index)
            return
        yield body[at : at + size]
        at += size


def banks_as_bank32a(event: bytes) -> bytes | None:
    """The event's banks as BANK32A (those that are, unchanged), or None if they do not fill the event exactly."""
    data_size = EVENT_HEADER.unpack_from(event)[4]
    if data_size < BANK_AREA.size:
        return None
    area_size, bank_format = BANK_AREA.unpack_from(event, EVENT_HEADER.size)
    if area_size != data_size - BANK_AREA.size or bank_format not in BANK_HEADER:
        return None
    start = EVENT_HEADER.size + BANK_AREA.size
    area, header, at, out = event[start : start + area_size], BANK_HEADER[bank_format], 0, b""
    while at < len(area):
        if len(area) - at < header.size:
            return None
        name, tid, size = header.unpack_from(area, at)
        at += header.size
        if aligned(size) > len(area) - at:
            return None
        out += encode_bank32a(name, tid, area[at : at + size])
        at += aligned(size)
    return area if bank_format == BANK32A else out


def encode_bank32a(name: bytes, tid: int, data: bytes) -> bytes:
    """A bank with its header and padding."""
    return BANK_HEADER[BANK32A].pack(name, tid, len(data)) + data + bytes(-len(data) % 8)


def aligned(size: int) -> int:
    """The next multiple of 8."""
    return size + -size % 8

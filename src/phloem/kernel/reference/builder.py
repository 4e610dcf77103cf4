"""The builder: joins what the sources pass on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import TypeVar

from phloem.kernel import Cause, Check, Policy, Stop
from phloem.kernel.reference.check import Agreed, Blind, Checker
from phloem.kernel.reference.events import (
    EVENT_HEADER,
    TID_STRING,
    TID_UINT8,
    TID_UINT32,
    banks_as_bank32a,
    encode_bank32a,
    encode_event,
    first_uint64,
    split_events,
)
from phloem.kernel.reference.source import Fragment, Rule, Source

__all__ = ["FATES", "Builder"]

FATES = ("received", "built", "incomplete", "late", "duplicate", "discarded", "quarantined")
QUARANTINE_BYTES = 64 << 10  # of what is not an event, so much is kept
TIME_LIMIT = 2**62  # ns, 146 years: a later time is damaged
T = TypeVar("T")


class Verdict(Enum):
    """AGAIN: a source was moved, look at the event again. OFF: a source is off, and the run is to stop."""

    AGAIN = 1
    OFF = 2


class Mark:
    """Timing decided that ``source`` brings none of the keys ``first`` to ``last`` any more."""

    def __init__(self, source: int, cause: int, first: int, last: int) -> None:
        self.source, self.cause, self.first, self.last = source, cause, first, last


class Builder:
    """Joins fragments to events. The same arguments and methods as the C++ `phloem.kernel.Builder`."""

    def __init__(
        self,
        names: Sequence[str],
        event_id: int = 1,
        trigger_mask: int = 0xFFFF,
        reorder: int | Sequence[int] = 0,
        window: int = 4096,
        on_incomplete: int | Sequence[int] = Policy.BUILD,
        max_event: int = 2**64 - 1,
        required: Sequence[bool] | None = None,
        by_time: bool = False,
        match_window: int = 0,
        offsets: Sequence[int] | None = None,
        check: int = Check.OFF,
        time_bank: bytes = b"TIME",
        headers: bool = False,
        side: bool = False,
    ) -> None:
        if not names:
            raise ValueError("a builder needs at least one source")
        n = len(names)
        reorders = each(reorder, n)
        if not by_time and window <= max(reorders):
            raise ValueError("window must be greater than reorder")
        needed = [True] * n if required is None else list(required)
        if not any(needed):
            raise ValueError("at least one source must be required")
        policies = each(on_incomplete, n)
        moved = [0] * n if offsets is None else list(offsets)
        self._rules = [
            Rule(names[i], reorders[i], window, by_time, check == Check.REPAIR, needed[i], policies[i], moved[i])
            for i in range(n)
        ]
        self._event_id = event_id
        self._trigger_mask = trigger_mask
        self._max_event = max_event
        self._by_time = by_time
        self._match_window = match_window if by_time else 0
        self._check = Check(check)
        self._check_window = match_window
        self._time_bank = time_bank
        self._headers = headers
        self._side = side
        self.begin_run(0)

    def begin_run(self, run: int) -> None:
        """Forget everything; from now on fragments of ``run`` are built."""
        self._run = run
        self._sources = [Source(i, rule, self._drop, self._near_to) for i, rule in enumerate(self._rules)]
        self._marks: list[Mark] = []
        self._near: int | None = None  # an unwrapped serial number that is near to all others
        self._late, self._quarantined = b"", b""
        self._count = 0  # events that have left or were discarded
        self._discarding = False
        self._checker = Checker(self._check_window)
        self._reports: list[tuple[int, int, int | None]] = []  # source, event, shift
        self._told: dict[int, int | None] = {}  # sources that are shifted
        self._blind: Source | None = None  # the check waits for it

    # ------------------------------------------------------------------ what comes

    def add_bytes(
        self,
        source: int,
        run: int,
        body: bytes,
        n_events: int,
        sequence: int,
        times: Sequence[int] | None = None,
    ) -> None:
        """A frame of ``n_events`` fragments at 8-byte steps. ``times``: ns, one each, instead of those in the banks."""
        s, left = self._sources[source], n_events
        s.absent = 0
        self._checker.blind.discard(source)
        s.fates["received"] += n_events
        body = bytes(body)
        if run != self._run or s.ended:
            self._quarantine(s, body, n_events, "of another run, or after the end of this one")
            return
        at = 0
        for index, event in enumerate(split_events(body, n_events)):
            if event is None:
                self._quarantine(s, body[at:], left, "its size cannot be believed")
                return
            at, left = at + len(event), left - 1
            self._add_event(s, event, None if times is None else times[index])

    def _add_event(self, s: Source, event: bytes, time: int | None) -> None:
        banks = banks_as_bank32a(event)
        if banks is None:
            self._quarantine(s, event, 1, "its banks do not fill it")
            return
        event_id, mask, serial, time_stamp, data_size = EVENT_HEADER.unpack_from(event)
        timed = self._by_time or self._check != Check.OFF
        time = time if time is not None or not timed else first_uint64(banks, self._time_bank)
        time = None if time is not None and time >= TIME_LIMIT else time
        if time is None and self._by_time:
            self._quarantine(s, event, 1, "it has no time to be matched by")
            return
        if time is not None:
            time = max(0, time + s.rule.offset_ns)
        s.add(Fragment(serial, event_id, mask, time_stamp, data_size, banks, time))

    def _near_to(self, serial: int) -> int:
        if self._near is None:  # far enough from 0 for all that is near; the same for all that begin near a wrap
            self._near = serial + (2**32 if serial >= 2**31 else 2**33)
        return self._near

    def border_follows(self, source: int) -> None:
        """A border, or a text, is the next thing in the source's stream."""
        self._sources[source].flush()

    def end_source(self, source: int) -> None:
        """The source's END_OF_RUN has come."""
        self._sources[source].end()

    def renumber(self, source: int, serial_number: int, event: int) -> None:
        """The source says that its counter starts again: ``serial_number`` is event ``event`` from here on."""
        self._sources[source].renumber(serial_number, event)

    def give_mark(self, source: int, cause: int, first: int, last: int) -> None:
        """A mark of an earlier building of the same fragments: decide as it did."""
        if cause == Cause.CHECK:
            self._checker.blind_at[source, first] = last
        else:
            self._sources[source].given.append((first, last))

    def discard_rest(self) -> None:
        """The run is to end: nothing is built any more, what still comes is discarded."""
        self._discarding = True

    # ------------------------------------------------------------------ what does not pass

    def _drop(self, source: Source, fragment: Fragment, fate: str, why: str) -> None:
        if fate == "quarantined":
            event = encode_event(
                fragment.event_id, fragment.trigger_mask, fragment.raw, fragment.time_stamp, fragment.banks
            )
            self._quarantine(source, event, 1, why)
            return
        source.fates[fate] += 1
        if fate == "late" and self._side:
            banks = fragment.banks + encode_bank32a(b"LATE", TID_STRING, source.rule.name.encode() + b"\0")
            head = (fragment.event_id, fragment.trigger_mask, fragment.raw, fragment.time_stamp)
            event = encode_event(*head, banks)
            self._late += event if len(event) <= self._max_event else b""  # no frame could carry it

    def _quarantine(self, source: Source, data: bytes, n_events: int, why: str) -> None:
        source.fates["quarantined"] += n_events
        if self._side:
            text = f"{source.rule.name}\0{why}; fragments: {n_events}\0".encode()
            banks = encode_bank32a(b"QUAR", TID_UINT8, data[:QUARANTINE_BYTES])
            banks += encode_bank32a(b"WHYQ", TID_STRING, text)
            self._quarantined += encode_event(self._event_id, 0, 0, 0, banks)

    def take_side(self) -> tuple[bytes, bytes]:
        """Late fragments and those in quarantine since they were taken last, as events."""
        taken = self._late, self._quarantined
        self._late, self._quarantined = b"", b""
        return taken

    # ------------------------------------------------------------------ what leaves

    def build(self, room: int) -> tuple[bytes, int, int, int]:
        """(events, why it stopped, how many, bytes that the next event needs if there is no room for it)."""
        out, n_events = b"", 0
        self._blind = None
        while (key := self._closed()) is not None:
            missing = [s for s in self._required() if not self._takes(s, key)]
            policy = max((s.rule.policy for s in missing), default=Policy.BUILD)
            if policy == Policy.STOP and not self._discarding:
                return out, Stop.POLICY, n_events, 0
            try:
                verdict = self._checked(key)
            except Blind as blind:
                self._blind = blind.source
                return out, Stop.WAITING, n_events, 0
            if verdict is Verdict.AGAIN:
                continue
            if isinstance(verdict, Verdict):
                return out, Stop.SHIFTED, n_events, 0
            event, fate = self._compose(key, missing), "incomplete" if missing else "built"
            if policy == Policy.DISCARD or self._discarding or len(event) > self._max_event:
                event, fate = b"", "discarded"
            elif len(event) > room - len(out):
                return out, Stop.ROOM, n_events, len(event)
            else:
                n_events += 1
            out += event
            self._decide(key, fate, verdict)
        done = all(s.ended for s in self._sources)
        return out, Stop.DONE if done else Stop.WAITING, n_events, 0

    def _required(self) -> list[Source]:
        return [s for s in self._sources if s.rule.required]

    def _oldest_passed_on(self) -> int | None:
        return min((s.passed_on[0].key for s in self._sources if s.passed_on), default=None)

    def _takes(self, source: Source, key: int) -> bool:
        """Whether the source's next fragment belongs to the event that opens at ``key``."""
        return bool(source.passed_on) and source.passed_on[0].key <= key + self._match_window

    def _closed(self) -> int | None:
        """Where the next event opens, if every source is in it or past it."""
        for source in self._sources:
            source.drop_given()
        key = self._oldest_passed_on()
        if key is None or any(s.may_still_bring(key + self._match_window) for s in self._sources):
            return None
        return key

    def _compose(self, key: int, missing: Sequence[Source]) -> bytes:
        """The event's bytes."""
        present = [(s.number, s.passed_on[0]) for s in self._sources if self._takes(s, key)]
        banks = b"".join(fragment.banks for _, fragment in present)
        if self._headers:
            rows = ((number, f.event_id, f.trigger_mask, f.raw, f.time_stamp, f.data_size) for number, f in present)
            words = b"".join(word.to_bytes(4, "little") for row in rows for word in row)
            banks += encode_bank32a(b"FRAG", TID_UINT32, words)
        if missing:
            names = b"".join(s.rule.name.encode() + b"\0" for s in missing)
            banks += encode_bank32a(b"MISS", TID_STRING, names)
        shifts = self._shifts([self._sources[number] for number, _ in present])
        if shifts:
            banks += encode_bank32a(b"SHFT", TID_STRING, shifts)
        # The time stamp is that of the first present source in name order, never the clock.
        serial = self._count if self._by_time else key
        return encode_event(self._event_id, self._trigger_mask, serial, present[0][1].time_stamp, banks)

    def _decide(self, key: int, fate: str, said: Agreed | None) -> None:
        if said is not None:
            self._checker.remember(key, said)
        self._count += 1
        for source in self._sources:
            if self._takes(source, key):
                source.passed_on.popleft()
                source.fates[fate] += 1
            elif source.absent and not source.over:
                self._mark(source, source.absent, key + self._match_window)

    # ------------------------------------------------------------------ what the times say

    def _checked(self, key: int) -> Agreed | Verdict | None:
        """What the fragments' times say of this event, or what to do about it."""
        if self._check == Check.OFF or self._discarding:
            return None
        said = self._checker.agreed([s for s in self._sources if self._takes(s, key)])
        if said is None:
            return None
        found = {s.number: self._checker.look_for(s, key, said).shift for s in said.off}
        self._marks += [Mark(source, Cause.CHECK, key, last) for source, last in self._checker.take_looked()]
        for source in said.off:
            shift = found[source.number]
            if self._check == Check.REPAIR and shift is not None:
                source.agrees()
                source.move(shift, key)
                return Verdict.AGAIN
            if source.is_unsure():
                source.give_up()
                self._report(source, key, None)
                return Verdict.AGAIN
        for source in self._sources:
            if source.number in found:
                self._report(source, key, found[source.number])
            elif self._takes(source, key) and source.passed_on[0].time is not None:
                source.agrees()
                self._report(source, key, source.passed_on[0].moved)
        return Verdict.OFF if found and self._check == Check.STOP else said

    def _report(self, source: Source, key: int, shift: int | None) -> None:
        """Tell of a change."""
        if self._told.get(source.number, 0) != shift:
            self._told[source.number] = shift
            self._reports.append((source.number, key, shift))

    def _shifts(self, present: Sequence[Source]) -> bytes:
        """The bank SHFT: who is off or was moved, and by how many events; a question mark where nobody knows."""
        told = [(s, self._told.get(s.number, 0)) for s in present]
        texts = [f"{s.rule.name} {'?' if shift is None else f'{shift:+d}'}" for s, shift in told if shift != 0]
        return b"".join(text.encode() + b"\0" for text in texts)

    def take_reports(self) -> list[tuple[int, int, int | None]]:
        """What the check found since it was asked last: (source, event, shift, None if nobody knows); 0: in step."""
        taken, self._reports = self._reports, []
        return [(source, key % 2**32, shift) for source, key, shift in taken]

    # ------------------------------------------------------------------ what timing forces

    def waited_for(self) -> list[int]:
        """The sources for which the oldest open event waits."""
        if self._blind is not None:
            return [self._blind.number]
        oldest = min((f.key for s in self._sources for f in (*s.held, *s.passed_on)), default=None)
        last = 0 if oldest is None else oldest + self._match_window
        return [s.number for s in self._sources if oldest is not None and s.may_still_bring(last)]

    def close_without(self, source: int, cause: int) -> None:
        """Wait no longer for the source: until it sends again, or in the oldest open event only (space)."""
        s, oldest = self._sources[source], self._oldest_passed_on()
        if self._blind is s:
            self._checker.blind.add(source)
            self._blind = None
            return
        if s.passed_on or s.over:
            return
        if s.held:  # it waits for its own lower numbers: those are given up
            self._mark(s, cause, s.held[0].key - 1)
            s.pass_on()
        elif cause != Cause.SPACE:
            s.absent = cause
        elif oldest is not None:
            self._mark(s, cause, oldest + self._match_window)

    def _mark(self, source: Source, cause: int, last: int) -> None:
        """Close all up to ``last`` that the source has not passed on: what comes of it now is late."""
        first = source.open_from
        if first is not None and first > last:
            return
        source.closed_to = last + 1
        if first is not None and source.rule.by_time and first == source.last_passed:
            first += 1  # what was passed on is not closed
        before = next((mark for mark in reversed(self._marks) if mark.source == source.number), None)
        if before is not None and before.cause == cause and before.last + 1 == first:
            before.last = last
        else:
            self._marks.append(Mark(source.number, cause, 0 if first is None else first, last))

    def take_marks(self) -> list[tuple[int, int, int, int]]:
        """The marks since they were taken last: (source, cause, first, last), unwrapped; first is 0 for a source that
        had not sent anything. Ranges of one source and cause that touch are one mark. CHECK: in event ``first`` the
        source was looked up as far as ``last``, and no further."""
        taken, self._marks = self._marks, []
        return [(mark.source, mark.cause, mark.first, mark.last) for mark in taken]

    def restarted(self, source: int) -> bool:
        """Whether its counter has restarted, and nobody knows which number is which event: all of it is late."""
        return self._sources[source].restarted

    def fates(self, source: int) -> tuple[int, int, int, int, int, int, int]:
        """How many fragments had which fate, in the order of `FATES`."""
        count: Counter[str] = self._sources[source].fates
        received, built, incomplete, late, duplicate, discarded, quarantined = (count[fate] for fate in FATES)
        return received, built, incomplete, late, duplicate, discarded, quarantined


def each(value: T | Sequence[T], n: int) -> list[T]:
    """One value for every source."""
    return list(value) if isinstance(value, Sequence) else [value] * n

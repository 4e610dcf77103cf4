"""Works out from fault logs what the account of a run must be: from the log's layout and the builder's rules alone.

A log is text, one record per line: ``run NUMBER EQUIPMENT INDEX SETTINGS`` (JSON), ``batch SENT SLOT SLOTS
FRAGMENTS``, ``rejoin SENT``, ``done SENT``, and faults, ``WHAT SENT TRIGGER SERIAL BY``. SENT counts from 0 what the
source sends in the run; of a fault that sends nothing it is the number of the next fragment sent. drop: BY consecutive
ones are not sent. hold: not sent in its place, but later, as reorder. duplicate: a second copy is sent. garbage: sent
in its place, and no valid event. shift: a trigger that the counter missed. Faults that no ``batch`` line follows were
never sent.

The rules (datapath, sections 3 and 5). A source is judged alone, each fragment against the highest serial number before
it: no valid event: quarantined; there before, within the duplicate window: duplicate; more than ``reorder`` behind, or
in a mark: late; all others are accepted. When all has come, an event in which every source has an accepted fragment
is built, and any other incomplete, or discarded if the policy says so.

Not judged: counters that restart (or seem to: two duplicates in a row at the very begin), and gaps wider than the
duplicate window, behind which the builder puts a lone fragment into quarantine.

Numbers here are offsets from the first serial number of the run, so that they do not wrap. Only what is faulty is
looked at: the rest, up to 1e8 fragments, is known by its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tests.flow.reader import Event, banks_of

WRAP = 2**32
FAULTS = ("drop", "hold", "reorder", "duplicate", "garbage", "shift", "reset", "freeze")

Offsets = NDArray[np.int64]


class Fault(NamedTuple):
    """One line."""

    what: str
    sent: int
    trigger: int
    serial: int
    by: int


class Log(NamedTuple):
    """One run of one source. ``fragments``: as many are in its batches. ``done``: it said that this was all."""

    source: str
    frontend_index: int
    settings: dict[str, Any]
    faults: list[Fault]
    fragments: int
    done: bool

    @property
    def first_serial(self) -> int:
        """Serial number of its first fragment."""
        return int(self.settings["First serial"])


def read_log(path: Path, run: int) -> Log:
    """The lines of one run."""
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    begins = [at for at, line in enumerate(lines) if line.split(maxsplit=2)[:2] == ["run", str(run)]]
    assert len(begins) == 1, f"{path} has {len(begins)} lines 'run {run}'"
    _, _, source, index, settings = lines[begins[0]].split(maxsplit=4)
    faults: list[Fault] = []
    open_faults: list[Fault] = []
    fragments, done = 0, False
    for line in lines[begins[0] + 1 :]:
        what, *fields = line.split()
        if what == "run":
            break
        numbers = [int(field) for field in fields]
        if what == "batch":
            assert numbers[0] == fragments, f"{path}: {line!r} does not follow on {fragments} fragments"
            fragments += numbers[3]
            faults += open_faults
            open_faults = []
        elif what == "done":
            assert numbers == [fragments], f"{path}: {line!r} after {fragments} fragments"
            done = True
        elif what in FAULTS:
            open_faults.append(Fault(what, *numbers))
        else:
            assert what == "rejoin", f"{path}: {line!r}"
            open_faults = []
    return Log(source, int(index), json.loads(settings), faults, fragments, done)


class Rules(NamedTuple):
    """The builder's settings, and the marks that timing made: by source, first and last serial number."""

    reorder: int = 0
    duplicate_window: int = 4096
    on_incomplete: str = "build"
    marks: Mapping[str, Sequence[tuple[int, int]]] = {}

    @property
    def window(self) -> int:
        """Never smaller than what may come late."""
        return max(self.duplicate_window, self.reorder + 1)


def rising(*parts: Offsets | list[int]) -> Offsets:
    """All of them in rising order, each once. (np.unique takes minutes for 1e7 consecutive numbers.)"""
    ordered: Offsets = np.sort(np.concatenate([np.asarray(part, np.int64) for part in parts]))
    first_of_its_kind: NDArray[np.bool_] = np.diff(ordered, prepend=-1) != 0
    return ordered[first_of_its_kind]


def without(offsets: Offsets, others: Offsets | list[int]) -> Offsets:
    """Those that are not among the others; both in rising order."""
    return np.setdiff1d(offsets, np.asarray(others, np.int64), assume_unique=True)


def is_among(offset: int, ordered: Offsets) -> bool:
    """Whether it is one of these, which are in rising order."""
    at = int(np.searchsorted(ordered, offset))
    return at < len(ordered) and int(ordered[at]) == offset


class Sent:
    """What a source sent: everything in its place up to ``last``, but for ``holes``; among it ``garbage``; and
    ``extras``, in the order in which they were sent: (number of the fragment, offset)."""

    def __init__(self, log: Log, sent: int) -> None:
        assert all(fault.what != "reset" for fault in log.faults), f"{log.source}: a reset of the counter is not judged"
        self.log = log
        self.sent = sent
        holes = [np.arange(0)]
        self.extras: list[tuple[int, int]] = []
        garbage = []
        for fault in log.faults:
            offset = self.offset(fault.serial)
            if fault.what == "drop":
                holes.append(np.arange(offset, offset + fault.by))
            elif fault.what == "hold":
                holes.append(np.arange(offset, offset + 1))
            elif fault.sent < sent and fault.what in ("reorder", "duplicate"):
                self.extras.append((fault.sent, offset))
            elif fault.sent < sent and fault.what == "garbage":
                garbage.append(offset)
        self.extras.sort()
        self.holes: Offsets = rising(*holes)
        self._in_place_before_hole: Offsets = self.holes - np.arange(len(self.holes))
        self.garbage = frozenset(garbage)
        self.in_place = sent - len(self.extras)
        self.last = self.nth_in_place(self.in_place - 1) if self.in_place else -1

    def offset(self, serial: int) -> int:
        """From the first serial number."""
        return (serial - self.log.first_serial) % WRAP

    def nth_in_place(self, n: int) -> int:
        """The n-th (from 0) of those that are sent in their place."""
        return n + int(np.searchsorted(self._in_place_before_hole, n, side="right"))

    def highest_in_place(self, number: int) -> int:
        """The highest valid one among the first ``number`` that were sent in their place; -1: there is none."""
        while number > 0:
            number -= 1
            offset = self.nth_in_place(number)
            if offset not in self.garbage:
                return offset
        return -1

    def is_in_place(self, offset: int) -> bool:
        """Sent in its place, and valid."""
        return offset <= self.last and not is_among(offset, self.holes) and offset not in self.garbage


class Judged:
    """One source alone: which of its fragments are accepted, and the fate of all others."""

    def __init__(self, sent: Sent, rules: Rules) -> None:
        self.sent = sent
        self.late = self.duplicate = 0
        self.accepted: set[int] = set()  # of the extras
        closed = self._closed(rules.marks.get(sent.log.source, ()))
        self._judge_extras(rules, closed)
        never_good = rising(sent.holes, sorted(sent.garbage))
        in_place = without(closed[closed <= sent.last], never_good)
        self.late += len(in_place)
        # Of those up to `last`, unless they are among the accepted extras.
        self._absent: Offsets = rising(never_good, in_place)
        self.number = sent.in_place - len(sent.garbage) - len(in_place) + len(self.accepted)

    def _closed(self, marks: Iterable[tuple[int, int]]) -> Offsets:
        """Offsets in marks. The first one of a mark is 0 if the source had not sent anything before."""
        ranges = [np.arange(0)]
        for first, last in marks:
            end = self.sent.offset(last) + 1
            begin = self.sent.offset(first)
            ranges.append(np.arange(begin if begin < end else 0, end))
        return rising(*ranges)

    def _judge_extras(self, rules: Rules, closed: Offsets) -> None:
        sent, before, highest_extra = self.sent, set[int](), -1
        first = next((n for n in range(sent.last + 1) if sent.is_in_place(n)), sent.last + 1)
        for number, (at, offset) in enumerate(sent.extras):
            highest_in_place = sent.highest_in_place(at - number)
            highest = max(highest_in_place, highest_extra)
            if highest < 0:
                first = highest = offset
            is_there = offset in before or (offset <= highest_in_place and sent.is_in_place(offset))
            if is_there and offset > highest - rules.window:
                self.duplicate += 1
            elif highest - offset > rules.reorder or is_among(offset, closed) or self._is_before_zero(offset, first):
                self.late += 1
            else:
                self.accepted.add(offset)
            before.add(offset)
            highest_extra = max(highest_extra, offset)

    def _is_before_zero(self, offset: int, first: int) -> bool:
        """A source that begins with one of the numbers from 0 is not waited for before 0."""
        return (self.sent.log.first_serial + first) % WRAP < first - offset

    def has(self, offset: int) -> bool:
        """Whether the fragment is accepted."""
        if offset in self.accepted:
            return True
        return 0 <= offset <= self.sent.last and not is_among(offset, self._absent)

    def present(self, end: int) -> NDArray[np.bool_]:
        """For each offset below ``end`` whether the fragment is accepted."""
        found = np.zeros(max(end, self.sent.last + 1), np.bool_)
        found[: self.sent.last + 1] = True
        found[self._absent[self._absent <= self.sent.last]] = False
        found[sorted(self.accepted)] = True
        return found[:end]

    @property
    def end(self) -> int:
        """One more than the highest accepted offset."""
        return max([self.sent.last, *self.accepted]) + 1

    def absent_below(self, end: int) -> Offsets:
        """Offsets below ``end``, which is at most `last` + 1, that are not accepted."""
        return without(self._absent[self._absent < end], sorted(self.accepted))


class Verdict:
    """What a run must come to."""

    def __init__(self, logs: Sequence[Log], sent: Mapping[str, int], rules: Rules) -> None:
        assert len({log.first_serial for log in logs}) == 1, "the sources count from different numbers"
        self._rules = rules
        self._first_serial = logs[0].first_serial
        self._sources = {log.source: Judged(Sent(log, sent[log.source]), rules) for log in logs}

    @property
    def complete(self) -> int:
        """The number of events in which all sources are."""
        sources = list(self._sources.values())
        common_end = min(source.sent.last for source in sources) + 1
        absent = rising(*(source.absent_below(common_end) for source in sources))
        beyond = {n for source in sources for n in source.accepted if n >= common_end}
        return common_end - len(absent) + sum(all(source.has(n) for source in sources) for n in beyond)

    @property
    def end(self) -> int:
        """One more than the highest offset that any source has."""
        return max(source.end for source in self._sources.values())

    def present(self, name: str, end: int) -> NDArray[np.bool_]:
        """For each offset below ``end`` whether this source has it."""
        return self._sources[name].present(end)

    def account(self) -> dict[str, dict[str, int]]:
        """By source, the fates of all its fragments."""
        complete = self.complete
        discards = self._rules.on_incomplete == "discard"
        return {
            name: {
                "sent": source.sent.sent,
                "built": complete,
                "incomplete": 0 if discards else source.number - complete,
                "late": source.late,
                "duplicate": source.duplicate,
                "quarantined": len(source.sent.garbage),
                "discarded": source.number - complete if discards else 0,
            }
            for name, source in self._sources.items()
        }

    def check_events(self, events: Sequence[Event]) -> None:
        """Each event has the fragments of its number that it must have, all of one trigger; no other has any."""
        found = dict.fromkeys(self._sources, 0)
        names = {f"ID{source.sent.log.frontend_index:02d}": name for name, source in self._sources.items()}
        last = -1
        triggers: set[int] = set()
        for event in events:
            offset = (event.serial_number - self._first_serial) % WRAP
            assert offset > last, f"event {event.serial_number} comes behind a higher one, or twice"
            last = offset
            identities = {bank.name: bank.values for bank in banks_of(event) if bank.name in names}
            present = {names[bank] for bank in identities}
            expected = {name for name, source in self._sources.items() if source.has(offset)}
            assert present == expected, f"event {event.serial_number} is of {present}, and should be of {expected}"
            of_event = {int(values[1]) for values in identities.values()}
            assert len(of_event) == 1, f"event {event.serial_number} mixes triggers {of_event}"
            assert triggers.isdisjoint(of_event), f"trigger {of_event} is in two events"
            triggers |= of_event
            assert all(values[0] == int(bank[2:]) for bank, values in identities.items())
            for name in present:
                found[name] += 1
        numbers = {name: source.number for name, source in self._sources.items()}
        if self._rules.on_incomplete == "discard":
            numbers = dict.fromkeys(self._sources, self.complete)
        assert found == numbers, f"events with a fragment of each source: {found}, and should be {numbers}"

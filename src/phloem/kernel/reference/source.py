"""One source: judges its fragments alone and passes them on in rising order."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["Fragment", "Rule", "Source"]

RECENT = 256  # matched by time: how many of the last fragments are known as duplicates
RESTART_RUN = 64  # so many numbers in a row seen again: the counter has restarted
RESTART_AT_FIRST = 2  # the same for a row that begins where counters begin


@dataclass(frozen=True, slots=True)
class Rule:
    """How a source is judged. ``reorder`` and ``window`` in serial numbers, ``reorder`` in ns if ``by_time``."""

    name: str
    reorder: int = 0
    window: int = 4096
    by_time: bool = False
    re_pairs: bool = False  # a counter that restarts is paired again by time
    required: bool = True
    policy: int = 0
    offset_ns: int = 0


@dataclass(frozen=True, slots=True)
class Fragment:
    """One source's part of an event. ``raw``: its serial number as sent. ``time``: ns, offset added; None: it has none.

    ``key``: what it is matched by. ``moved``: by how much the times have shifted it. ``pairing``: after how many
    restarts of its counter, as far as they are known.
    ``banks``: as BANK32A, without the 8-byte area header.
    """

    raw: int
    event_id: int
    trigger_mask: int
    time_stamp: int
    data_size: int
    banks: bytes
    time: int | None
    key: int = 0
    moved: int = 0
    pairing: int = 0


class Source:
    """``drop`` is told of each fragment that is not passed on: (source, fragment, fate, why).

    ``near`` says a key that is near to those of all sources; it is asked with the first number that is believed.
    """

    def __init__(
        self,
        number: int,
        rule: Rule,
        drop: Callable[[Source, Fragment, str, str], None],
        near: Callable[[int], int],
    ) -> None:
        self.number = number
        self.rule = rule
        self.drop = drop
        self.near = near
        self.begins = 0  # its first number is believed at once if it is not far beyond this one
        self.fates: Counter[str] = Counter()
        self.shift = 0  # added to each serial number
        self.first: int | None = None  # the first serial number of the run
        self.highest: int | None = None
        self.highest_time: int | None = None
        self.seen: set[int] = set()
        self.recent: deque[tuple[int, int]] = deque(maxlen=min(rule.window, RECENT))
        self.far: Fragment | None = None  # far beyond its neighbours: what comes next says whether it is believed
        self.again_next, self.again = -1, 0  # the row of numbers seen again: what would follow, how many
        self.held: list[Fragment] = []  # accepted, rising; a lower one may still come
        self.passed_on: deque[Fragment] = deque()
        self.next_to_pass: int | None = None  # nothing below it will be passed on any more
        self.closed_to: int | None = None  # marks have closed all below it
        self.given: list[tuple[int, int]] = []  # keys that a mark of an earlier building has closed
        self.ended = False
        self.absent = 0  # why it is waited for no longer, until it sends again
        self.restarted = False  # its counter has, and nobody knows which number is which event
        self.pairing, self.sure = 0, 0  # restarts paired again: how many, up to which the times have agreed
        self.last_passed: int | None = None
        self.total_shift = 0  # what the times have shifted it by
        self.paired: tuple[int, int, int] | None = None  # the last one was: its number, by how much, the highest before

    @property
    def open_from(self) -> int | None:
        """The lowest key that it may still bring; None if that is not known."""
        known = [bound for bound in (self.next_to_pass, self.closed_to) if bound is not None]
        return max(known, default=None)

    @property
    def over(self) -> bool:
        """Nothing more of it can be built than what it has passed on."""
        return self.ended or self.restarted

    # ------------------------------------------------------------------ judging

    def add(self, fragment: Fragment) -> None:
        """Judge, and hold until it can be passed on."""
        if self.rule.by_time:
            assert fragment.time is not None
            self.judge(replace(fragment, key=fragment.time))
            return
        self.unpair(fragment.raw)
        far, self.far = self.far, None
        if far is not None:
            if abs(wrapped(fragment.raw - far.raw)) <= self.rule.window:
                self.judge_numbered(far)
            else:
                self.drop(self, far, "quarantined", FAR)
        if self.is_far(fragment.raw):
            self.far = fragment
        else:
            self.judge_numbered(fragment)

    def unpair(self, raw: int) -> None:
        """A number that goes on as before the one that was paired again: that one was wrong, and no restart."""
        paired, self.paired = self.paired, None
        if paired is None:
            return
        number, delta, before = paired
        follows = wrapped(raw - number) == 1
        if not follows and 0 < wrapped(raw + self.shift - delta - before) <= self.rule.window:
            self.shift -= delta
            self.total_shift -= delta
            self.sure = max(self.sure, self.pairing)

    def is_far(self, raw: int) -> bool:
        """Whether the next fragment must say if this number is believed. Nothing is known before the first one but
        that counters begin at 0 or 1: one that begins elsewhere is believed when the second one is near to it."""
        if self.highest is None:
            return (raw + self.shift - self.begins) % 2**32 > self.rule.window
        return wrapped(raw + self.shift - self.highest) > self.rule.window and not self.restarted

    def judge_numbered(self, fragment: Fragment) -> None:
        """Judge by the number without its wrap at 2^32: the one nearest to the source's highest, or to all others."""
        number = fragment.raw + self.shift
        base = self.near(number % 2**32) if self.highest is None else self.highest
        self.judge(replace(fragment, key=base + wrapped(number - base)))

    def flush(self) -> None:
        """Something else than a fragment comes next, so that a far one must be believed."""
        far, self.far = self.far, None
        if far is not None:
            self.judge_numbered(far)

    def judge(self, fragment: Fragment) -> None:
        """Its fate, or in it goes."""
        again = self.is_known(fragment)
        fragment = replace(fragment, moved=self.total_shift, pairing=self.pairing)
        fragment, paired = self.paired_again(fragment, again)
        if not paired:
            fate = self.fate_of(fragment, again)
            if fate:
                self.drop(self, fragment, fate, "")
                return
        self.held.append(fragment)
        self.held.sort(key=lambda held: held.key)  # stable: equal keys stay in the order in which they came
        self.pass_on()

    def is_known(self, fragment: Fragment) -> bool:
        """Whether this number was seen within the window; it is from now on."""
        if self.rule.by_time:
            known = (fragment.key, fragment.raw) in self.recent
            self.recent.append((fragment.key, fragment.raw))
            if self.highest is None:
                self.next_to_pass = max(0, fragment.key - self.rule.reorder)
            self.highest = fragment.key if self.highest is None else max(self.highest, fragment.key)
            return known
        if self.restarted:
            return False
        if self.highest is None:
            self.first = self.highest = fragment.key
            # A run begins at 0: the first one need not wait for numbers below that.
            self.next_to_pass = fragment.key - min(fragment.key % 2**32, self.rule.reorder)
        return fragment.key in self.seen and fragment.key > self.highest - self.rule.window

    def paired_again(self, fragment: Fragment, again: bool) -> tuple[Fragment, bool]:
        """A number that goes back while the time goes on: the counter has restarted, and goes on from here."""
        time, before = fragment.time, self.highest_time
        if self.rule.by_time or self.restarted or time is None:
            return fragment, False
        if before is None or time > before:
            self.highest_time = time
        assert self.highest is not None
        goes_back = again or fragment.key <= self.highest - self.rule.window
        if not (self.rule.re_pairs and before is not None and time > before and goes_back):
            return fragment, False
        key = max(self.highest + 1, self.closed_to or 0)
        key = max([key, *(last + 1 for first, last in self.given if first <= key <= last)])
        self.shift += key - fragment.key
        self.total_shift += key - fragment.key
        self.pairing += 1
        self.paired = (fragment.raw, key - fragment.key, self.highest)
        self.seen.add(key)
        self.highest = key
        self.again = 0
        return replace(fragment, key=key, moved=self.total_shift, pairing=self.pairing), True

    def fate_of(self, fragment: Fragment, again: bool) -> str | None:
        """The fragment's fate, or None if it is to be passed on."""
        if self.restarted:
            return "late"
        assert self.highest is not None
        key = fragment.key
        if not self.rule.by_time:
            self.count_again(key, again or key <= self.highest - self.rule.window, fragment.time)
            self.seen.add(key)
            self.highest = max(self.highest, key)
        if again:
            return "duplicate"
        behind = self.highest - key > self.rule.reorder
        decided = self.open_from is not None and key < self.open_from
        return "late" if behind or decided else None

    def count_again(self, key: int, again: bool, time: int | None) -> None:
        """Numbers in a row that were there before: a counter that has restarted. What it sends is not matched. Not so
        if the times were there before as well: then fragments are sent again."""
        if not again or (time is not None and self.highest_time is not None and time < self.highest_time):
            self.again = 0
            return
        self.again = self.again + 1 if key == self.again_next and self.again else 1
        self.again_next = key + 1
        begins = key + 1 - self.again
        at_first = begins == self.first or begins % 2**32 in (0, 1)
        if self.again >= (RESTART_AT_FIRST if at_first else RESTART_RUN):
            self.restarted = True
            self.pass_on()

    def pass_on(self) -> None:
        """Pass on, lowest first, what nothing lower can come before any more."""
        while self.held and self.highest is not None:
            lowest = self.held[0].key
            follows = self.open_from is not None and lowest <= self.open_from
            if not follows and lowest > self.highest - self.rule.reorder and not self.over:
                return
            self.passed_on.append(self.held.pop(0))
            self.last_passed = lowest
            self.next_to_pass = lowest if self.rule.by_time else lowest + 1

    # ------------------------------------------------------------------ what is said of it

    def end(self) -> None:
        """It sends no more: nothing needs to be held."""
        self.flush()
        self.ended = True
        self.pass_on()

    def renumber(self, serial_number: int, event: int) -> None:
        """Its counter starts again, by its own word: what bears ``serial_number`` from here on is event ``event``."""
        self.flush()
        self.shift = event - serial_number
        self.begins = event
        self.paired = None
        self.total_shift = 0
        self.restarted = False
        self.sure = self.pairing
        self.again = 0

    def move(self, shift: int, first: int) -> None:
        """The times say that all that is not built yet belongs ``shift`` events later. Below ``first``: too late."""
        self.shift += shift
        self.total_shift += shift
        self.held = [replace(f, key=f.key + shift, moved=f.moved + shift) for f in self.held]
        self.passed_on = deque(replace(f, key=f.key + shift, moved=f.moved + shift) for f in self.passed_on)
        if self.paired is not None:
            number, delta, before = self.paired
            self.paired = number, delta, before + shift
        self.seen = {key + shift for key in self.seen}
        assert self.highest is not None
        assert self.next_to_pass is not None
        self.highest += shift
        self.next_to_pass = max(self.next_to_pass + shift, first)
        self.again = 0
        while self.passed_on and self.passed_on[0].key < first:
            self.drop(self, self.passed_on.popleft(), "late", "")
        self.held, behind = [f for f in self.held if f.key >= first], [f for f in self.held if f.key < first]
        for fragment in behind:
            self.drop(self, fragment, "late", "")

    def is_given(self, key: int) -> bool:
        """Whether a mark of an earlier building has closed it."""
        return any(first <= key <= last for first, last in self.given)

    def drop_given(self) -> None:
        """Late is what a mark of an earlier building has closed: by the key at which it would be built, which the times
        may have shifted since it was judged."""
        while self.passed_on and self.is_given(self.passed_on[0].key):
            self.drop(self, self.passed_on.popleft(), "late", "")

    def is_unsure(self) -> bool:
        """Whether its next fragment is one that was paired again, and the times have not agreed to any yet."""
        return self.passed_on[0].pairing > self.sure

    def agrees(self) -> None:
        """The times agree to where its next fragment is."""
        self.sure = max(self.sure, self.passed_on[0].pairing)

    def give_up(self) -> None:
        """The times do not say where it belongs either: nothing of it is built any more."""
        self.restarted = True
        for fragment in [*self.passed_on, *self.held]:
            self.drop(self, fragment, "late", "")
        self.passed_on.clear()
        self.held.clear()

    def may_still_bring(self, last: int) -> bool:
        """Whether an event of keys up to ``last`` must wait for it: it is neither in it nor past it."""
        if self.passed_on or self.over or self.absent:
            return False
        return self.closed_to is None or self.closed_to <= last


FAR = "its serial number is far from those before and after it"


def wrapped(difference: int) -> int:
    """A difference of serial numbers modulo 2^32, as a signed number."""
    return (difference + 2**31) % 2**32 - 2**31

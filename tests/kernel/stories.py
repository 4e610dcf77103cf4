"""Stories for the property tests: what sources send, in which frames, and what else happens to a builder."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tests.kernel.fragments import BANK, BANK32, BANK32A, body, broken_events, event

RUN = 7
TICK = 100  # ns from one trigger to the next
ROOMY = 1 << 20
NAMES = ["Trigger01", "Trigger02", "Trigger03", "Trigger04"]
# The same examples each time; PHLOEM_EXAMPLES=20000 searches at random, and longer.
_asked = os.environ.get("PHLOEM_EXAMPLES")
LAW = settings(
    max_examples=int(_asked or 40),
    derandomize=_asked is None,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MANY = LAW if _asked else settings(LAW, max_examples=800)  # for small stories


class AnyBuilder(Protocol):
    """What the kernel's builder and the reference have in common."""

    def begin_run(self, run: int) -> None: ...
    def add_bytes(
        self, source: int, run: int, body: bytes, n_events: int, sequence: int, times: Any = None
    ) -> None: ...
    def border_follows(self, source: int) -> None: ...
    def end_source(self, source: int) -> None: ...
    def renumber(self, source: int, serial_number: int, event: int) -> None: ...
    def give_mark(self, source: int, cause: int, first: int, last: int) -> None: ...
    def discard_rest(self) -> None: ...
    def build(self, room: int) -> tuple[bytes, int, int, int]: ...
    def waited_for(self) -> list[int]: ...
    def close_without(self, source: int, cause: int) -> None: ...
    def fates(self, source: int) -> tuple[int, int, int, int, int, int, int]: ...
    def restarted(self, source: int) -> bool: ...
    def take_marks(self) -> list[tuple[int, int, int, int]]: ...
    def take_reports(self) -> list[tuple[int, int, int | None]]: ...
    def take_side(self) -> tuple[bytes, bytes]: ...


@dataclass(frozen=True)
class Options:
    """How a builder is made."""

    n_sources: int
    reorder: int = 0
    window: int = 16
    on_incomplete: int | tuple[int, ...] = 0
    max_event: int = 2**64 - 1
    required: tuple[bool, ...] | None = None
    by_time: bool = False
    match_window: int = 0
    offsets: tuple[int, ...] | None = None
    check: int = 0
    headers: bool = False

    def made(self, maker: Callable[..., AnyBuilder]) -> AnyBuilder:
        """A builder with these settings."""
        return maker(
            NAMES[: self.n_sources],
            3,
            0x0102,
            self.reorder,
            self.window,
            list(self.on_incomplete) if isinstance(self.on_incomplete, tuple) else self.on_incomplete,
            self.max_event,
            required=None if self.required is None else list(self.required),
            by_time=self.by_time,
            match_window=self.match_window,
            offsets=None if self.offsets is None else list(self.offsets),
            check=self.check,
            headers=self.headers,
            side=True,
        )


@dataclass(frozen=True)
class Add:
    """A frame comes."""

    source: int
    run: int
    events: tuple[bytes, ...]


@dataclass(frozen=True)
class Close:
    """Time or space asks to go on without a source."""

    source: int
    cause: int


@dataclass(frozen=True)
class Build:
    """Events are built into ``room`` bytes."""

    room: int


@dataclass(frozen=True)
class End:
    """A source's END_OF_RUN."""

    source: int


@dataclass(frozen=True)
class Renumber:
    """A border in which the source says that its counter starts again."""

    source: int
    serial_number: int
    event: int


Step = Add | Close | Build | End | Renumber

# Runs begin at 0; the others are runs that go through the wrap of the 32-bit number, or were found half-way.
starts = st.sampled_from([0, 0, 1, 3, 100, 2**31 - 4, 2**32 - 1, 2**32 - 6, 2**32 - 40])


@st.composite
def fragments(
    draw: st.DrawFn,
    serial: int,
    source: int,
    formats: Sequence[int] = (BANK, BANK32, BANK32A),
    time: int | None = None,
) -> bytes:
    """One valid fragment, of any format, whose bytes tell it from others."""
    banks = [
        (b"%c%02d%c" % (65 + i, source, 48 + i), draw(st.sampled_from([1, 4, 6, 10])), draw(st.binary(max_size=20)))
        for i in range(draw(st.integers(0, 2)))
    ]
    if draw(st.integers(0, 15)) == 0:
        banks.append((b"LONG", 1, bytes(range(256)) + b"x" * draw(st.integers(0, 40))))
    if time is not None:
        banks.insert(draw(st.integers(0, len(banks))), (b"TIME", 18, struct.pack("<Q", time)))
    return event(serial, banks, draw(st.sampled_from(formats)), time_stamp=draw(st.integers(0, 2**32 - 1)))


@st.composite
def options(draw: st.DrawFn) -> Options:
    """Any builder."""
    n_sources = draw(st.integers(1, 4))
    reorder = draw(st.integers(0, 4))
    required = [draw(st.integers(0, 4)) > 0 for _ in range(n_sources)]
    required[draw(st.integers(0, n_sources - 1))] = True
    policies = st.sampled_from([0, 0, 0, 1, 2])
    return Options(
        n_sources,
        reorder,
        reorder + draw(st.integers(1, 12)),
        draw(st.one_of(policies, st.tuples(*[policies] * n_sources))),
        draw(st.sampled_from([2**64 - 1, 2**64 - 1, 140])),
        tuple(required) if draw(st.booleans()) else None,
        headers=draw(st.booleans()),
    )


@st.composite
def timed_options(draw: st.DrawFn) -> Options:
    """A builder that matches by time, or checks serial numbers by it."""
    made = draw(options())
    by_time = draw(st.booleans())
    offsets = tuple(draw(st.integers(-3, 3)) for _ in range(made.n_sources))
    return replace(
        made,
        reorder=draw(st.sampled_from([0, 0, TICK, 3 * TICK])) if by_time else made.reorder,
        by_time=by_time,
        match_window=draw(st.sampled_from([0, 6, 20])),
        offsets=draw(st.sampled_from([None, offsets])),
        check=0 if by_time else draw(st.integers(1, 3)),
    )


@st.composite
def _some_events(draw: st.DrawFn, start: int, source: int, timed: bool) -> tuple[bytes, ...]:
    out = []
    far = st.sampled_from([0, 0, 0, 0, 0, 0, 1000, 2**30 + 5])
    for _ in range(draw(st.integers(0, 4))):
        serial = start + draw(st.integers(-6, 20)) + draw(far)
        if timed and draw(st.integers(0, 9)):
            trigger = serial - start + 10 + draw(st.sampled_from([0, 0, 0, 1, -1, 2]))
            out.append(draw(fragments(serial, source, time=max(0, trigger * TICK + draw(st.integers(-4, 4))))))
        elif draw(st.integers(0, 7)) == 0:
            out.append(draw(st.sampled_from(broken_events(serial))).data)
        else:
            out.append(draw(fragments(serial, source)))
    return tuple(out)


@st.composite
def chaos(draw: st.DrawFn, timed: bool = False) -> tuple[Options, list[Step]]:
    """Anything at all, in any order."""
    made, start = draw(timed_options() if timed else options()), draw(starts)
    sources = st.integers(0, made.n_sources - 1)
    steps: list[Step] = []
    for kind in draw(st.lists(st.sampled_from("aaaaabbbcen"), max_size=40)):
        source = draw(sources)
        if kind == "a":
            run = RUN if draw(st.integers(0, 15)) else RUN - 1
            steps.append(Add(source, run, draw(_some_events(start, source, timed))))
        elif kind == "b":
            steps.append(Build(draw(st.sampled_from([0, 23, 24, 60, 100, 300, ROOMY, ROOMY]))))
        elif kind == "c":
            steps.append(Close(source, draw(st.integers(1, 3))))
        elif kind == "n" and not made.by_time:
            near = draw(st.integers(-3, 20))
            steps.append(Renumber(source, draw(st.sampled_from([0, start + near])) % 2**32, (start + near) % 2**32))
        elif draw(st.integers(0, 3)) == 0:
            steps.append(End(source))
    return made, steps


@st.composite
def streams(draw: st.DrawFn, made: Options, start: int, length: int = 24) -> list[list[bytes]]:
    """What each source sends in a run that goes mostly well: some lost, some twice, some out of order."""
    out = []
    calm = draw(st.booleans())  # mostly in order and of our own format: the kernel has a shorter way for that
    for source in range(made.n_sources):
        serials = [start + i for i in range(length)]
        for fault in draw(st.lists(st.sampled_from("lds"), max_size=1 if calm else 6)):
            at = draw(st.integers(0, max(0, len(serials) - 1)))
            if fault == "l":
                del serials[at : at + draw(st.integers(1, 3))]
            elif fault == "d":
                serials.insert(draw(st.integers(0, len(serials))), serials[at] if serials else start)
            elif at + 1 < len(serials):
                other = min(len(serials) - 1, at + draw(st.integers(1, 4)))
                serials[at], serials[other] = serials[other], serials[at]
        formats = (BANK32A,) if calm else (BANK, BANK32, BANK32A)
        out.append([draw(fragments(serial, source, formats)) for serial in serials])
    return out


@st.composite
def timed_streams(draw: st.DrawFn, made: Options, start: int, length: int = 24) -> list[list[bytes]]:
    """The same, with a time in most: counters miss triggers, count too many, restart; clocks have glitches."""
    out = []
    for source in range(made.n_sources):
        rows = [(start + i, (i + 10) * TICK) for i in range(length)]  # serial number, time
        for fault in draw(st.lists(st.sampled_from("lumdgr"), max_size=4)):
            if not rows:
                break
            at = draw(st.integers(0, len(rows) - 1))
            if fault == "l":
                del rows[at : at + draw(st.integers(1, 3))]
            elif fault == "u":  # a trigger is lost and the counter has not noticed
                rows = rows[:at] + [(serial - 1, time) for serial, time in rows[at + 1 :]]
            elif fault == "m":  # one too many
                extra = (rows[at][0] + 1, rows[at][1] + draw(st.sampled_from([1, TICK // 2])))
                rows = rows[: at + 1] + [extra] + [(serial + 1, time) for serial, time in rows[at + 1 :]]
            elif fault == "d":
                rows.insert(draw(st.integers(0, len(rows))), rows[at])
            elif fault == "g":
                rows[at] = (rows[at][0], max(0, rows[at][1] + draw(st.sampled_from([-3 * TICK, -50, 50, 2 * TICK]))))
            else:
                rows = rows[:at] + [(serial - at, time) for serial, time in rows[at:]]
        made_of = [(s, None if draw(st.integers(0, 11)) == 0 and not made.by_time else t) for s, t in rows]
        out.append([draw(fragments(serial, source, time=time)) for serial, time in made_of])
    return out


@st.composite
def arrival(draw: st.DrawFn, sent: Sequence[Sequence[bytes]], builds: bool = True) -> list[Step]:
    """One way in which the streams may arrive: frames cut anywhere, sources in any order, builds in between."""
    left = [list(events) for events in sent]
    steps: list[Step] = []
    open_sources = list(range(len(left)))
    while open_sources:
        source = draw(st.sampled_from(tuple(open_sources)))
        if not left[source]:
            steps.append(End(source))
            open_sources.remove(source)
            continue
        cut = draw(st.integers(1, 9))
        steps.append(Add(source, RUN, tuple(left[source][:cut])))
        del left[source][:cut]
        if builds and draw(st.booleans()):
            steps.append(Build(draw(st.sampled_from([ROOMY, 200, 64]))))
    return steps


class Telling:
    """Tells a story to a builder, and gathers what it says."""

    def __init__(self, builder: AnyBuilder) -> None:
        self.builder = builder
        builder.begin_run(RUN)
        self.out = b""
        self.marks: list[tuple[int, int, int, int]] = []
        self.reports: list[tuple[int, int, int | None]] = []
        self.side: tuple[bytes, bytes] = (b"", b"")
        self._frames = 0

    def tell(self, step: Step) -> tuple[bytes, int, int, int] | None:
        """One step; what `build` said, if it was one."""
        match step:
            case Add(source, run, events):
                self.builder.add_bytes(source, run, body(events), len(events), self._frames)
                self._frames += 1
            case Close(source, cause):
                self.builder.close_without(source, cause)
            case End(source):
                self.builder.end_source(source)
            case Build(room):
                said = self.builder.build(room)
                self.out += said[0]
                self.marks += self.builder.take_marks()
                self.reports += self.builder.take_reports()
                late, quarantined = self.builder.take_side()
                self.side = self.side[0] + late, self.side[1] + quarantined
                return said
            case Renumber(source, serial_number, number):
                self.builder.border_follows(source)
                self.builder.renumber(source, serial_number, number)
        return None

    def tell_all(self, steps: Sequence[Step]) -> bytes:
        """All steps, and then all that can still be built; every event's bytes."""
        for step in steps:
            self.tell(step)
        self.tell(Build(ROOMY))
        return self.out

    def account(self, n_sources: int) -> list[tuple[int, int, int, int, int, int, int]]:
        """The fates of all sources."""
        return [self.builder.fates(source) for source in range(n_sources)]

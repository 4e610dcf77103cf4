"""The laws of the builder, on random and damaged input: the kernel means what the reference says."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernel.stories import (
    LAW,
    MANY,
    ROOMY,
    RUN,
    Add,
    AnyBuilder,
    Build,
    Close,
    End,
    Options,
    Renumber,
    Step,
    Telling,
    arrival,
    chaos,
    options,
    starts,
    streams,
    timed_options,
    timed_streams,
)

from phloem import kernel
from phloem.kernel import Stop, reference


def kernel_of(made: Options) -> Telling:
    return Telling(made.made(kernel.Builder))


def reference_of(made: Options) -> Telling:
    return Telling(made.made(reference.Builder))


def is_balanced(builder: AnyBuilder, n_sources: int) -> bool:
    return all(builder.fates(s)[0] == sum(builder.fates(s)[1:]) for s in range(n_sources))


def both_say_the_same(made: Options, steps: list[Step]) -> None:
    """Whatever is told to the kernel and to the reference, they answer alike."""
    fast, plain = kernel_of(made), reference_of(made)
    reads = cast("kernel.Builder", fast.builder)
    for step in [*steps, *(End(s) for s in range(made.n_sources)), Build(ROOMY)]:
        if isinstance(step, Renumber) and not reads.all_read(step.source):
            continue  # a border is taken when all before it has been read: the kernel reads what it needs, and no more
        assert fast.tell(step) == plain.tell(step)
        if isinstance(step, Build):
            assert fast.builder.waited_for() == plain.builder.waited_for()
            assert fast.reports == plain.reports
    assert folded(fast.marks) == folded(plain.marks)
    if not stops(made):
        assert fast.account(made.n_sources) == plain.account(made.n_sources)
        assert [sorted(events_of(side)) for side in fast.side] == [sorted(events_of(side)) for side in plain.side]
        assert is_balanced(fast.builder, made.n_sources)


def folded(marks: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Marks without their wraps: those depend on which source is seen first, where numbers begin near 2^31."""
    return [(source, cause, first % 2**32, last % 2**32) for source, cause, first, last in marks]


def stops(made: Options) -> bool:
    """Whether building may stop before all has been built."""
    policies = made.on_incomplete if isinstance(made.on_incomplete, tuple) else (made.on_incomplete,)
    return kernel.Policy.STOP in policies or made.check == kernel.Check.STOP


@MANY
@given(chaos())
def test_kernel_and_reference_agree_at_every_step(story: tuple[Options, list[Step]]) -> None:
    both_say_the_same(*story)


@MANY
@given(chaos(timed=True))
def test_kernel_and_reference_agree_at_every_step_where_times_count(story: tuple[Options, list[Step]]) -> None:
    both_say_the_same(*story)


@MANY
@given(chaos())
def test_every_fragment_has_one_fate_once_all_has_been_built(story: tuple[Options, list[Step]]) -> None:
    made, steps = story
    for told in (kernel_of(made), reference_of(made)):
        told.tell_all([*steps, *(End(s) for s in range(made.n_sources))])
        if not stops(made):
            assert is_balanced(told.builder, made.n_sources)
            assert sum(fates[0] for fates in told.account(made.n_sources)) == sum(
                len(step.events) for step in steps if isinstance(step, Add)
            )


@LAW
@given(st.data())
def test_interleaving_and_frame_cuts_change_nothing(data: st.DataObject) -> None:
    made = data.draw(options())
    sent = data.draw(streams(made, data.draw(starts)))
    one, other = data.draw(arrival(sent)), data.draw(arrival(sent, builds=False))
    told = [kernel_of(made), kernel_of(made), reference_of(made)]
    results = [t.tell_all(steps) for t, steps in zip(told, (one, other, one), strict=True)]
    assert results[0] == results[1] == results[2]
    assert not told[0].marks
    if not stops(made):
        assert told[0].account(made.n_sources) == told[1].account(made.n_sources) == told[2].account(made.n_sources)
        assert is_balanced(told[0].builder, made.n_sources)


@LAW
@given(st.data())
def test_events_leave_in_rising_order_and_once(data: st.DataObject) -> None:
    made = data.draw(options())
    start = data.draw(starts)
    steps = data.draw(arrival(data.draw(streams(made, start))))
    told = kernel_of(made)
    serials = [(s - start + 100) % 2**32 for s in serials_of(told.tell_all(steps))]
    assert serials == sorted(set(serials))


@LAW
@given(st.data())
def test_a_rebuild_that_honours_the_marks_gives_the_same_bytes(data: st.DataObject) -> None:
    reorder = data.draw(st.integers(0, 3))
    made = Options(data.draw(st.integers(2, 4)), reorder, reorder + 30)
    sent = data.draw(streams(made, data.draw(st.sampled_from([0, 5]))))
    steps: list[Step] = []
    for step in data.draw(arrival(sent)):
        steps.append(step)
        if data.draw(st.integers(0, 5)) == 0:
            steps += [
                Build(ROOMY),
                Close(data.draw(st.integers(0, made.n_sources - 1)), data.draw(st.integers(1, 2))),
                Build(ROOMY),
            ]
    first = kernel_of(made)
    built = first.tell_all(steps)
    again: list[Step] = [Add(source, RUN, tuple(events)) for source, events in enumerate(sent)]
    for told in (kernel_of(made), reference_of(made)):
        for mark in first.marks:
            told.builder.give_mark(*mark)
        assert told.tell_all([*again, *(End(s) for s in range(made.n_sources))]) == built
        assert told.account(made.n_sources) == first.account(made.n_sources)


KINDS = [pytest.param(kernel_of, id="kernel"), pytest.param(reference_of, id="reference")]


def said_by(told: Telling, n_sources: int) -> tuple[object, ...]:
    """All that may not depend on how things came: events, account, reports, what went to the side."""
    side = [sorted(events_of(data)) for data in told.side]
    return told.out, told.account(n_sources), told.reports, side


@pytest.mark.parametrize("maker", KINDS)
@LAW
@given(st.data())
def test_interleaving_and_frame_cuts_change_nothing_where_times_count(
    maker: Callable[[Options], Telling], data: st.DataObject
) -> None:
    made = data.draw(timed_options())
    sent = data.draw(timed_streams(made, data.draw(st.sampled_from([0, 1, 5, 2**32 - 9]))))
    told = [maker(made), maker(made)]
    for each, builds in zip(told, (True, False), strict=True):
        each.tell_all(data.draw(arrival(sent, builds=builds)))
        assert not each.marks
        if not stops(made):
            assert is_balanced(each.builder, made.n_sources)
    assert told[0].out == told[1].out
    if not stops(made):
        assert said_by(told[0], made.n_sources) == said_by(told[1], made.n_sources)


@pytest.mark.parametrize("maker", KINDS)
@LAW
@given(st.data())
def test_a_rebuild_that_honours_the_marks_gives_the_same_bytes_where_times_count(
    maker: Callable[[Options], Telling], data: st.DataObject
) -> None:
    made = replace(data.draw(timed_options()), on_incomplete=0)
    if made.check:  # a mark of a source that REPAIR has moved does not say by how much
        made = replace(made, check=kernel.Check.CONTINUE)
    sent = data.draw(timed_streams(made, data.draw(st.sampled_from([0, 5]))))
    steps: list[Step] = []
    for step in data.draw(arrival(sent)):
        steps.append(step)
        if data.draw(st.integers(0, 3)) == 0:
            late = Close(data.draw(st.integers(0, made.n_sources - 1)), data.draw(st.integers(1, 2)))
            steps += [Build(ROOMY), late, Build(ROOMY)]
    first, again = maker(made), maker(made)
    first.tell_all(steps)
    for mark in first.marks:
        again.builder.give_mark(*mark)
    whole: list[Step] = [Add(source, RUN, tuple(events)) for source, events in enumerate(sent)]
    again.tell_all([*whole, *(End(s) for s in range(made.n_sources))])
    assert again.out == first.out
    assert said_by(again, made.n_sources) == said_by(first, made.n_sources)


def events_of(data: bytes) -> list[bytes]:
    """Events back to back, taken apart."""
    found, at = [], 0
    while at < len(data):
        size = 16 + int.from_bytes(data[at + 12 : at + 16], "little")
        found.append(data[at : at + size])
        at += size + -size % 8
    return found


def serials_of(data: bytes) -> list[int]:
    """Serial numbers of events back to back."""
    return [int.from_bytes(event[4:8], "little") for event in events_of(data)]


@LAW
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_random_bytes_are_quarantined_and_nothing_else(seed: int, n_sources: int) -> None:
    noise = random.Random(seed)
    made = Options(n_sources)
    fast, plain = kernel_of(made), reference_of(made)
    for sequence in range(6):
        data, n_events = noise.randbytes(noise.randrange(200)), noise.randrange(5)
        for told in (fast, plain):
            told.builder.add_bytes(sequence % n_sources, RUN, data, n_events, sequence)
    ends: list[Step] = [End(s) for s in range(n_sources)]
    assert fast.tell_all(ends) == plain.tell_all(ends)
    assert fast.account(n_sources) == plain.account(n_sources)
    assert is_balanced(fast.builder, n_sources)
    assert fast.builder.build(ROOMY)[1] == Stop.DONE

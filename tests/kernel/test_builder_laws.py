"""The laws of the builder, on random and damaged input: the kernel means what the reference says."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from tests.kernel.stories import (
    LAW,
    MANY,
    NAMES,
    ROOMY,
    RUN,
    Add,
    AnyBuilder,
    Build,
    Close,
    End,
    Options,
    Step,
    Telling,
    arrival,
    chaos,
    options,
    starts,
    streams,
)

from phloem import kernel
from phloem.kernel import Stop, reference


def kernel_of(made: Options) -> Telling:
    names = NAMES[: made.n_sources]
    return Telling(kernel.Builder(names, 3, 0x0102, made.reorder, made.window, made.on_incomplete, made.max_event))


def reference_of(made: Options) -> Telling:
    names = NAMES[: made.n_sources]
    return Telling(reference.Builder(names, 3, 0x0102, made.reorder, made.window, made.on_incomplete, made.max_event))


def is_balanced(builder: AnyBuilder, n_sources: int) -> bool:
    return all(builder.fates(s)[0] == sum(builder.fates(s)[1:]) for s in range(n_sources))


@MANY
@given(chaos())
def test_kernel_and_reference_agree_at_every_step(story: tuple[Options, list[Step]]) -> None:
    made, steps = story
    fast, plain = kernel_of(made), reference_of(made)
    for step in [*steps, *(End(s) for s in range(made.n_sources)), Build(ROOMY)]:
        assert fast.tell(step) == plain.tell(step)
        if isinstance(step, Build):
            assert fast.builder.waited_for() == plain.builder.waited_for()
    assert fast.marks == plain.marks
    if made.on_incomplete != kernel.Policy.STOP:
        assert fast.account(made.n_sources) == plain.account(made.n_sources)


@MANY
@given(chaos())
def test_every_fragment_has_one_fate_once_all_has_been_built(story: tuple[Options, list[Step]]) -> None:
    made, steps = story
    for told in (kernel_of(made), reference_of(made)):
        told.tell_all([*steps, *(End(s) for s in range(made.n_sources))])
        if made.on_incomplete != kernel.Policy.STOP:
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
    if made.on_incomplete != kernel.Policy.STOP:
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
    kept = [
        [event for event in events if not covered(first.marks, source, serials_of(event)[0])]
        for source, events in enumerate(sent)
    ]
    again: list[Step] = [Add(source, RUN, tuple(events)) for source, events in enumerate(kept)]
    rebuilt = kernel_of(made).tell_all([*again, *(End(s) for s in range(made.n_sources))])
    assert rebuilt == built


def covered(marks: list[tuple[int, int, int, int]], source: int, serial: int) -> bool:
    """Whether a mark says that this number is not built from this source, unless it had been passed on before."""
    return any(s == source and first <= serial <= last for s, _, first, last in marks)


def serials_of(events: bytes) -> list[int]:
    """Serial numbers of events back to back."""
    found, at = [], 0
    while at < len(events):
        found.append(int.from_bytes(events[at + 4 : at + 8], "little"))
        size = 16 + int.from_bytes(events[at + 12 : at + 16], "little")
        at += size + -size % 8
    return found


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

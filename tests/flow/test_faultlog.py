"""The judge of the fault logs is judged: by accounts written by hand, and by the plain builder on random streams."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.flow.faultlog import Rules, Verdict, read_log
from tests.flow.reader import Event

from phloem.frontends.faulty import Faulty
from phloem.kernel import Policy
from phloem.kernel.reference import FATES, Builder

RUN = 7
HUGE = 100_000_000
FIRST = 'run 7 Trigger01 1 {"First serial": 0}'
SECOND = 'run 7 Trigger02 2 {"First serial": 0}'


def verdict(folder: Path, first: list[str], second: list[str], sent: tuple[int, int], rules: Rules) -> Verdict:
    """Of two logs; a ``batch`` line that holds all of it is put behind the faults."""
    logs = []
    for begin, lines, number in ((FIRST, first, sent[0]), (SECOND, second, sent[1])):
        path = folder / f"{begin.split()[2]}.faults"
        path.write_text("\n".join([begin, *lines, f"batch 0 0 {number} {number}", ""]))
        logs.append(read_log(path, RUN))
    return Verdict(logs, dict(zip(("Trigger01", "Trigger02"), sent, strict=True)), rules)


def fates(one: Verdict) -> list[dict[str, int]]:
    """Those that are not 0."""
    return [{fate: number for fate, number in part.items() if number} for part in one.account().values()]


@pytest.mark.parametrize(
    ("first", "second", "sent", "rules", "expected"),
    [
        pytest.param([], [], (HUGE, HUGE), Rules(), [(HUGE, {"built": HUGE}), (HUGE, {"built": HUGE})], id="clean"),
        pytest.param(
            ["drop 4 4 4 2"], [], (8, 10), Rules(), [(8, {"built": 8}), (10, {"built": 8, "incomplete": 2})], id="drop"
        ),
        pytest.param(
            ["drop 4 4 4 2"],
            [],
            (8, 10),
            Rules(on_incomplete="discard"),
            [(8, {"built": 8}), (10, {"built": 8, "discarded": 2})],
            id="discard",
        ),
        pytest.param(
            ["duplicate 5 2 2 2"],
            [],
            (11, 10),
            Rules(),
            [(11, {"built": 10, "duplicate": 1}), (10, {"built": 10})],
            id="duplicate",
        ),
        pytest.param(
            ["duplicate 8 2 2 5"],
            [],
            (11, 10),
            Rules(duplicate_window=5),
            [(11, {"built": 10, "late": 1}), (10, {"built": 10})],
            id="a duplicate beyond the window is late",
        ),
        pytest.param(
            ["hold 2 2 2 3", "reorder 5 2 2 3"],
            [],
            (10, 10),
            Rules(reorder=3),
            [(10, {"built": 10}), (10, {"built": 10})],
            id="in time",
        ),
        pytest.param(
            ["hold 2 2 2 3", "reorder 5 2 2 3"],
            [],
            (10, 10),
            Rules(reorder=2),
            [(10, {"built": 9, "late": 1}), (10, {"built": 9, "incomplete": 1})],
            id="too late",
        ),
        pytest.param(
            ["hold 2 2 2 3", "drop 4 5 5 1", "reorder 4 2 2 3"],
            [],
            (9, 10),
            Rules(reorder=2),
            [(9, {"built": 9}), (10, {"built": 9, "incomplete": 1})],
            id="in time, since the one before it was lost",
        ),
        pytest.param(
            ["garbage 3 3 3 0"],
            [],
            (10, 10),
            Rules(),
            [(10, {"built": 9, "quarantined": 1}), (10, {"built": 9, "incomplete": 1})],
            id="garbage",
        ),
        pytest.param(
            ["hold 9 8 8 1", "drop 3 3 3 1", "reorder 9 8 8 1"],
            [],
            (6, 10),
            Rules(),
            [(6, {"built": 6}), (10, {"built": 6, "incomplete": 4})],
            id="a source that was killed has no later faults",
        ),
        pytest.param(
            ["drop 5 5 5 1"],
            [],
            (9, 10),
            Rules(marks={"Trigger01": [(4, 6)]}),
            [(9, {"built": 7, "late": 2}), (10, {"built": 7, "incomplete": 3})],
            id="what comes into a mark is late",
        ),
    ],
)
def test_accounts_by_hand(
    tmp_path: Path, first: list[str], second: list[str], sent: tuple[int, int], rules: Rules, expected: Any
) -> None:
    found = fates(verdict(tmp_path, first, second, sent, rules))
    assert found == [{"sent": number, **parts} for number, parts in expected]


def test_faults_of_a_batch_that_was_not_logged_whole_were_never_sent(tmp_path: Path) -> None:
    path = tmp_path / "Trigger01.faults"
    path.write_text(f"{FIRST}\ndrop 1 1 1 1\nbatch 0 0 4 3\ndrop 4 5 5 1\nbatch 3 4 ")
    log = read_log(path, RUN)
    assert [fault.serial for fault in log.faults] == [1]
    assert (log.fragments, log.done) == (3, False)


def test_another_run_in_the_same_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "Trigger01.faults"
    path.write_text(f"run 6 Trigger01 1 {{}}\nbatch 0 0 4 4\n{FIRST}\nbatch 0 0 2 2\ndone 2\nrun 8 Trigger01 1 {{}}\n")
    assert (read_log(path, RUN).fragments, read_log(path, RUN).done) == (2, True)


def event(serial: int, *fragments: tuple[int, int]) -> Event:
    """A built event of these (source, trigger)."""
    banks = b""
    for source, trigger in fragments:
        name = f"ID{source:02d}".encode()
        banks += name + np.array([6, 8, 0, source, trigger], "<u4").tobytes()
    return Event(1, 0xFFFF, serial, 0, np.array([len(banks), 0x31], "<u4").tobytes() + banks)


GOOD = [event(0, (1, 0), (2, 0)), event(1, (2, 1)), event(2, (1, 2), (2, 2))]


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (GOOD, ""),
        ([GOOD[0], GOOD[1], event(2, (1, 2), (2, 3))], "event 2 mixes triggers"),
        ([GOOD[0], event(1, (1, 1), (2, 1)), GOOD[2]], "event 1 is of .* and should be of"),
        ([GOOD[0], GOOD[1], event(2, (2, 2))], "event 2 is of .* and should be of"),
        ([GOOD[0], GOOD[2], GOOD[1]], "event 1 comes behind a higher one"),
        ([GOOD[0], GOOD[0]], "event 0 comes behind a higher one, or twice"),
        ([GOOD[0], event(1, (2, 0))], "trigger .0. is in two events"),
        (GOOD[:2], "events with a fragment of each source"),
    ],
)
def test_events_that_are_wrong_are_seen(tmp_path: Path, events: list[Event], text: str) -> None:
    one = verdict(tmp_path, ["drop 1 1 1 1"], [], (2, 3), Rules())
    if not text:
        one.check_events(events)
        return
    with pytest.raises(AssertionError, match=text):
        one.check_events(events)


# ---------------------------------------------------------------------- against the plain builder


class Host:
    """Keeps what is sent as the bytes of fragments."""

    def __init__(self) -> None:
        self.fragments: list[bytes] = []

    def send(self, draft: Any) -> None:
        for serial in draft.serial_numbers.tolist():
            area = np.array([24, 0x31], "<u4").tobytes() + b"DATA" + np.array([6, 8, 0, 1, 2], "<u4").tobytes()
            self.fragments.append(np.array([0xFFFF0001, serial, 0, len(area)], "<u4").tobytes() + area)

    def wait(self, timeout_s: float) -> None: ...
    def message(self, text: str, severity: str) -> None: ...
    def missed(self, events: int, equipment: str) -> None: ...
    def counter_restarted(self, serial_number: int, event: int, equipment: str) -> None: ...


class Raw:
    """As an EventDraft, of which only the raw bytes are used."""

    raw = b""


def sent_by(index: int, settings: dict[str, Any]) -> list[bytes]:
    """All fragments of a source."""
    host = Host()
    made = Faulty(index, host)
    made.settings.update(settings)
    made.init()
    made.prepare(RUN)
    made.begin_of_run(RUN)
    while made._triggered():
        draft: Any = Raw()
        made.read(draft)
        if draft.raw:
            host.fragments.append(draft.raw)
    return host.fragments


@pytest.mark.parametrize("seed", range(60))
def test_it_says_what_the_plain_builder_does(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    reorder, window = draw.choice([0, 1, 3, 8]), draw.choice([20, 25, 4096])
    policy = draw.choice([Policy.BUILD, Policy.DISCARD])
    common = {"Events": draw.choice([5, 30, 200]), "First serial": draw.choice([0, 3, 2**32 - 20]), "Seed": seed}
    builder = Builder(["T1", "T2", "T3"], reorder=reorder, window=max(window, reorder + 1), on_incomplete=policy)
    builder.begin_run(RUN)
    logs, sent = [], {}
    for index in (1, 2, 3):
        rates = {f"{fault} rate": draw.choice([0.0, 0.1]) for fault in ("Drop", "Duplicate", "Reorder", "Garbage")}
        distances = {"Duplicate distance": draw.choice([0, 3, 40]), "Reorder distance": draw.choice([1, 4, 12])}
        burst = {"Burst drop at": 10, "Burst drop": draw.choice([0, 7])}
        fragments = sent_by(index, {**common, **rates, **distances, **burst, "Log": str(tmp_path)})
        fragments = fragments[: draw.choice([len(fragments), draw.randint(1, len(fragments))])]
        builder.add_bytes(index - 1, RUN, b"".join(fragments), len(fragments), 0)
        builder.end_source(index - 1)
        logs.append(read_log(tmp_path / f"Trigger{index:02d}.faults", RUN))
        sent[logs[-1].source] = len(fragments)
    builder.build(1 << 30)
    if any(builder.restarted(number) for number in range(3)):
        return  # two duplicates in a row at the very begin are a restart to the builder; the judge knows of none
    account = Verdict(logs, sent, Rules(reorder, window, policy.name.lower())).account()
    for number, found in enumerate(account.values()):
        expected = dict(zip(FATES, builder.fates(number), strict=True))
        assert found == {"sent": expected.pop("received"), **expected}

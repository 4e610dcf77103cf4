"""`phloem build` on files made byte by byte: what its options do to the events, and what it writes and counts."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tests.cli.conftest import Here
from tests.cli.recorded import (
    STAMP,
    XML,
    Built,
    at_ns,
    border,
    brief,
    built,
    fates,
    fragments,
    odb,
    pieces,
    record,
    said,
    timed,
    value,
)
from tests.docs.markdown import ROOT, blocks
from tests.flow.lab import Lab, Ran
from tests.flow.reader import banks_of, run_of
from tests.kernel.fragments import BANK, BANK32, event

from phloem.formats.base import Mark
from phloem.formats.midas.writer import RunWriter

# What a builder adds to the serial numbers of a run that begins near 0, so that they may fall below its first one.
UNWRAPPED = 2**33
DOCUMENT = ROOT / "docs" / "event-building.md"
GOLDEN_XML = Path(__file__).parents[1] / "golden" / "midas" / "equipment_2fe_EB.xml"


def two(lab: Lab, first: list[bytes] | None = None, second: list[bytes] | None = None) -> None:
    """a.mid with 0 to 4 and b.mid with 100 more, in which 2 is missing; without borders."""
    record(lab.folder / "a.mid", fragments(range(5)) if first is None else first, run=None)
    record(lab.folder / "b.mid", fragments([0, 1, 3, 4], 100) if second is None else second, run=None)


def build(here: Here, *args: str, status: int = 0) -> Ran:
    """Build a.mid and b.mid into out.mid."""
    ran = here("build", "a.mid", "b.mid", "-o", "out.mid", "--json", *args)
    assert ran.status == status, ran
    return ran


COMPLETE = [(n, (n, 100 + n), ()) for n in (0, 1, 3, 4)]


# ---------------------------------------------------------------------- what becomes of incomplete events


def test_an_incomplete_event_is_built_and_names_who_is_missing(lab: Lab, here: Here) -> None:
    two(lab)
    ran = build(here)
    assert brief(lab.folder / "out.mid") == sorted([*COMPLETE, (2, (2,), ("b",))])
    assert fates(ran) == {"a": {"sent": 5, "built": 4, "incomplete": 1}, "b": {"sent": 4, "built": 4}}
    document = ran.document
    assert (document["run"], document["status"], document["events"]) == (0, "rebuilt", 5)
    assert (document["balanced"], document["stopped"], document["damaged"]) == (True, "", {})
    assert document["bytes"] == (lab.folder / "out.mid").stat().st_size
    assert ran.err == ""


def test_an_incomplete_event_is_discarded_if_so_asked(lab: Lab, here: Here) -> None:
    two(lab)
    ran = build(here, "--on-incomplete", "discard")
    assert brief(lab.folder / "out.mid") == COMPLETE
    assert fates(ran) == {"a": {"sent": 5, "built": 4, "discarded": 1}, "b": {"sent": 4, "built": 4}}


def test_an_incomplete_event_stops_the_building_if_so_asked(lab: Lab, here: Here) -> None:
    two(lab)
    ran = build(here, "--on-incomplete", "stop", status=1)
    assert brief(lab.folder / "out.mid") == COMPLETE[:2]
    assert fates(ran) == {"a": {"sent": 5, "built": 2, "discarded": 3}, "b": {"sent": 4, "built": 2, "discarded": 2}}
    assert ran.document["status"] == "stopped"
    assert ran.document["balanced"] is True
    assert said(ran) == [
        "note: event 2 is not complete, and On incomplete is stop; nothing is built from there on, the rest is "
        "discarded"
    ]


def test_an_event_need_not_have_an_optional_source(lab: Lab, here: Here) -> None:
    two(lab)
    ran = build(here, "--optional", "b", "--on-incomplete", "stop")
    assert brief(lab.folder / "out.mid") == sorted([*COMPLETE, (2, (2,), ())])
    assert fates(ran) == {"a": {"sent": 5, "built": 5}, "b": {"sent": 4, "built": 4}}


# ---------------------------------------------------------------------- order and times


def test_a_fragment_out_of_order_is_late_unless_so_much_disorder_is_allowed(lab: Lab, here: Here) -> None:
    two(lab, fragments([0, 3, 1, 2, 4]), fragments(range(5), 100))
    ran = build(here)
    assert fates(ran)["a"] == {"sent": 5, "built": 3, "late": 2}
    assert brief(lab.folder / "out.mid")[1] == (1, (101,), ("a",))
    (lab.folder / "out.mid").unlink()
    (lab.folder / "out.idx").unlink()
    ran = build(here, "--reorder", "2")
    assert fates(ran) == {name: {"sent": 5, "built": 5} for name in "ab"}
    assert brief(lab.folder / "out.mid") == [(n, (n, 100 + n), ()) for n in range(5)]


def test_fragments_are_matched_by_time_within_the_window(lab: Lab, here: Here) -> None:
    two(lab, timed({7: 1000, 8: 50_000, 9: 90_000}), timed({70: 1400, 80: 50_600, 90: 90_000}))
    ran = build(here, "--match", "time", "--window-ns", "500")
    assert brief(lab.folder / "out.mid") == [
        (0, (1, 1), ()),
        (1, (50,), ("b",)),
        (2, (50,), ("a",)),
        (3, (90, 90), ()),
    ]
    assert fates(ran) == {name: {"sent": 3, "built": 2, "incomplete": 1} for name in "ab"}


def test_fragments_without_a_time_cannot_be_matched_by_it_and_that_is_said(lab: Lab, here: Here) -> None:
    two(lab)
    ran = build(here, "--match", "time")
    assert brief(lab.folder / "out.mid") == []
    assert fates(ran) == {"a": {"sent": 5, "quarantined": 5}, "b": {"sent": 4, "quarantined": 4}}
    assert said(ran) == [
        "note: fragments of a in quarantine, which are not built: 5 (it has no time to be matched by)",
        "note: fragments of b in quarantine, which are not built: 4 (it has no time to be matched by)",
    ]


def shifted(lab: Lab) -> None:
    """From number 3 on, b counts one less than a: it missed a trigger."""
    a = {n: 10_000 * (n + 1) for n in range(8)}
    b = {n if n < 3 else n - 1: time for n, time in a.items() if n != 3}
    two(lab, timed(a), timed(b))


def test_shifted_times_are_told_and_marked_in_the_events(lab: Lab, here: Here) -> None:
    shifted(lab)
    ran = build(here, "--time-check", "continue")
    events = built(lab.folder / "out.mid")
    assert [(one.serial, one.values) for one in events] == [
        (0, (10, 10)),
        (1, (20, 20)),
        (2, (30, 30)),
        (3, (40, 50)),
        (4, (50, 60)),
        (5, (60, 70)),
        (6, (70, 80)),
        (7, (80,)),
    ]
    assert ["SHFT" in one.names for one in events] == [False] * 3 + [True] * 4 + [False]
    assert said(ran) == ["note: b shifted by +1 since event 3"]


def test_shifted_fragments_are_put_where_their_times_say(lab: Lab, here: Here) -> None:
    shifted(lab)
    ran = build(here, "--time-check", "repair")
    events = built(lab.folder / "out.mid")
    assert [(one.serial, one.values, one.miss) for one in events] == [
        (n, (10 * (n + 1),) if n == 3 else (10 * (n + 1), 10 * (n + 1)), ("b",) if n == 3 else ()) for n in range(8)
    ]
    assert said(ran) == ["note: b shifted by +1 since event 4"]


def test_shifted_times_stop_the_building_if_so_asked(lab: Lab, here: Here) -> None:
    shifted(lab)
    ran = build(here, "--time-check", "stop", status=1)
    assert [one.values for one in built(lab.folder / "out.mid")] == [(10, 10), (20, 20), (30, 30)]
    assert said(ran)[-1] == (
        "note: times disagree at event 3, and Time check is stop; nothing is built from there on, the rest is discarded"
    )


def test_a_shift_is_found_behind_more_than_is_read_ahead(lab: Lab, here: Here) -> None:
    def large(times: dict[int, int]) -> list[bytes]:
        padding = b"PADD", 1, bytes(20_000)
        return [event(serial, [value(ns // 1000), at_ns(ns), padding]) for serial, ns in times.items()]

    times = {n: 1000 * (n + 1) for n in range(200)}
    two(lab, large(times), large({n - 100: time for n, time in times.items() if n >= 100}))
    ran = build(here, "--time-check", "repair", "--window-ns", "100")
    events = built(lab.folder / "out.mid")
    assert [one.values for one in events] == [(n + 1,) if n < 100 else (n + 1, n + 1) for n in range(200)]
    assert fates(ran)["b"] == {"sent": 100, "built": 100}


# ---------------------------------------------------------------------- user code

PER_EVENT = """
import numpy as np
from phloem import EB_SKIP

def eb_begin_of_run(run, user_field, restarted):
    print("begin", run, user_field, restarted)

def eb_user(fragments, event):
    if event.serial_number == 1:
        return EB_SKIP
    event.bank("NSRC", np.array([len(fragments)], "u2"))

def eb_end_of_run(run):
    print("end", run)
"""
BY_TIME = "def eb_time(source, fragment):\n    return 1000 * fragment.serial_number\n"
FAILS = "def eb_user(fragments, event):\n    if event.serial_number in (1, 3):\n        raise ValueError('no')\n"


def test_user_code_sees_each_event_and_may_skip_it_or_add_to_it(lab: Lab, here: Here) -> None:
    two(lab)
    lab.write(PER_EVENT, "user.py")
    ran = here.done("build", "a.mid", "b.mid", "-o", "out.mid", "--user-code", "user.py")
    assert ran.out.splitlines()[:2] == ["begin 0 100 False", "end 0"]
    found = [
        (one.serial_number, banks_of(one)[0].name, banks_of(one)[0].values)
        for one in run_of(lab.folder / "out.mid").events
    ]
    assert found == [(0, "NSRC", (2,)), (2, "NSRC", (1,)), (3, "NSRC", (2,)), (4, "NSRC", (2,))]


def test_user_code_that_only_gives_times_builds_events_of_any_size(lab: Lab, here: Here) -> None:
    def large(base: int) -> list[bytes]:
        return [event(n, [value(base + n), (b"PADD", 1, bytes(400_000))]) for n in range(4)]

    two(lab, large(0), large(100))
    lab.write(BY_TIME, "user.py")
    build(here, "--match", "time", "--user-code", "user.py")
    assert brief(lab.folder / "out.mid") == [(n, (n, 100 + n), ()) for n in range(4)]


def test_an_error_of_user_code_stops_the_building_and_says_where(lab: Lab, here: Here) -> None:
    two(lab)
    lab.write(FAILS, "user.py")
    ran = build(here, "--user-code", "user.py", status=1)
    assert [one.serial for one in built(lab.folder / "out.mid")] == [0]
    assert said(ran) == [
        "note: eb_user() at event 1: ValueError: no; nothing is built from there on, the rest is discarded"
    ]
    assert ran.document["balanced"] is True


def test_errors_of_user_code_are_skipped_and_counted_if_the_settings_say_so(lab: Lab, here: Here) -> None:
    two(lab)
    lab.write(FAILS, "user.py")
    lab.write('"User error" = "skip"\n', "eb.toml")
    ran = build(here, "--user-code", "user.py", "--settings", "eb.toml")
    assert [one.serial for one in built(lab.folder / "out.mid")] == [0, 2, 4]
    assert said(ran) == [
        "note: eb_user() at event 1: ValueError: no; User error is skip, so the event is left out, as others will be",
        "note: events left out by errors of the user code: 2",
    ]


def test_user_code_that_the_settings_name_must_be_given_or_declined(lab: Lab, here: Here) -> None:
    two(lab)
    lab.write('"User code" = "veto.py"\n', "eb.toml")
    ran = build(here, "--settings", "eb.toml", status=1)
    assert said(ran) == [
        "phloem: the settings name user code 'veto.py': say where it is with --user-code FILE.py, or build without it "
        "with --user-code none"
    ]
    build(here, "--settings", "eb.toml", "--user-code", "none")
    assert len(built(lab.folder / "out.mid")) == 5


def test_user_code_that_fails_at_the_begin_of_run_leaves_no_file(lab: Lab, here: Here) -> None:
    two(lab)
    lab.write("def eb_begin_of_run(run, user_field, restarted):\n    1 / 0\n", "user.py")
    ran = build(here, "--user-code", "user.py", status=1)
    assert said(ran) == ["phloem: eb_begin_of_run() raised ZeroDivisionError: division by zero"]
    assert not list(lab.folder.glob("out.*"))


# ---------------------------------------------------------------------- settings

EXPERIMENT = """
[experiment]
name = "lab"

[builder.EB]
buffer = "BUF"
event_id = 5
trigger_mask = 0x12

[builder.EB.settings]
"On incomplete" = "discard"
"Fragments/b/On incomplete" = "build"
"""


def test_an_experiment_file_gives_settings_event_id_and_trigger_mask(lab: Lab, here: Here) -> None:
    two(lab, fragments([0, 1]), fragments([0, 2], 100))
    lab.write(EXPERIMENT)
    build(here, "--settings", "lab.toml")
    assert built(lab.folder / "out.mid") == [
        Built(0, (0, 100), (), ("ADC0", "ADC0"), 5, 0x12),
        Built(1, (1,), ("b",), ("ADC0", "MISS"), 5, 0x12),
    ], "without b it is built, without a it is discarded"


def test_bare_keys_are_settings_too_and_options_go_before_them(lab: Lab, here: Here) -> None:
    two(lab)
    lab.write(
        '"On incomplete" = "stop"\n"Fragment Names" = ["a", "b"]\n"Fragment Required" = [true, false]\n', "eb.toml"
    )
    build(here, "--settings", "eb.toml")
    assert (2, (2,), ()) in brief(lab.folder / "out.mid"), "b is not required"
    here.done("build", "a.mid", "b.mid", "-o", "two.mid", "--settings", "eb.toml", "--optional", "b")
    lab.write('"On incomplete" = "stop"\n', "stop.toml")
    here.done("build", "a.mid", "b.mid", "-o", "three.mid", "--settings", "stop.toml", "--on-incomplete", "discard")
    assert brief(lab.folder / "three.mid") == COMPLETE


def test_the_settings_file_of_the_documentation_is_one(lab: Lab, here: Here) -> None:
    (block,) = [block for block in blocks(DOCUMENT) if block.language == "toml" and "Time offset ns" in block.text]
    lab.write(block.text, "eb.toml")
    for source, serials in (("Trigger01", [2, 0, 1, 3]), ("Trigger02", [0, 1, 2])):
        record(lab.folder / f"{source}.mid", fragments(serials), run=None)
    here.done("build", "Trigger01.mid", "Trigger02.mid", "-o", "out.mid", "--settings", "eb.toml")
    assert brief(lab.folder / "out.mid") == [(n, (n, n), ()) for n in range(3)], "reordered, and 3 is discarded"


SETTINGS: dict[str, Any] = {
    "Number of Fragment": 2,
    "Fragment Names": ["Trigger01", "Trigger02"],
    "Fragment Required": [True, True],
    "User build": False,
    "User Field": "100",
    "On incomplete": "discard",
    "Fragments": {"Trigger01": {"Reorder": 3, "Timeout ms": -1}, "Trigger02": {"On incomplete": "build"}},
}


def recorded_run(lab: Lab, settings: dict[str, Any] = SETTINGS) -> list[str]:
    """Two files as a run names them, with its ODB."""
    text = odb(settings, event_id=3, trigger_mask=9)
    record(lab.folder / "run00042.Trigger01.mid", fragments([2, 0, 1, 3]), odb=text)
    record(lab.folder / "run00042.Trigger02.mid", fragments([0, 1, 3, 4], 100), odb=text)
    return ["run00042.Trigger01.mid", "run00042.Trigger02.mid"]


NOTE = "note: building as EB did in run 42, by the settings that the files bring with them"


def test_a_recorded_run_brings_its_settings_its_number_and_its_odb(lab: Lab, here: Here) -> None:
    files = recorded_run(lab)
    ran = here.done("build", *files, "-o", "out.mid", "--json")
    assert said(ran) == [NOTE]
    assert fates(ran) == {
        "Trigger01": {"sent": 4, "built": 3, "incomplete": 1},
        "Trigger02": {"sent": 4, "built": 3, "discarded": 1},
    }
    assert built(lab.folder / "out.mid")[2] == Built(2, (2,), ("Trigger02",), ("ADC0", "MISS"), 3, 9)
    run = run_of(lab.folder / "out.mid")
    assert run.serials == [0, 1, 2, 3]
    assert (run.begin.serial_number, run.begin.time_stamp) == (42, STAMP)
    assert run.begin.text == odb(SETTINGS, event_id=3, trigger_mask=9)
    assert '"balanced": true' in run.end.text
    assert here.ask("verify", "out.mid")["ok"] is True


def test_options_and_files_go_before_the_recorded_settings_key_by_key(lab: Lab, here: Here) -> None:
    files = recorded_run(lab)
    lab.write('"Fragments/Trigger02/On incomplete" = "discard"\n', "eb.toml")
    here.done("build", *files, "-o", "out.mid", "--settings", "eb.toml")
    assert [one.serial for one in built(lab.folder / "out.mid")] == [0, 1, 3], "Reorder of Trigger01 is as recorded"
    here.done("build", *files, "-o", "two.mid", "--on-incomplete", "build")
    assert [one.serial for one in built(lab.folder / "two.mid")] == [0, 1, 2, 3, 4]


def test_a_source_of_the_run_whose_file_is_not_given_is_named(lab: Lab, here: Here) -> None:
    files = recorded_run(lab)
    ran = here.done("build", files[1], "-o", "out.mid")
    assert said(ran) == [NOTE, "note: EB had also Trigger01 in run 42: no file of it is given, and no event has it"]


def test_a_choice_of_the_run_is_kept_by_name(lab: Lab, here: Here) -> None:
    files = recorded_run(lab, {**SETTINGS, "Fragment Required": [True, False], "Fragments": {}})
    ran = here.done("build", *reversed(files), "-o", "out.mid", "--reorder", "3", "--json")
    assert fates(ran)["Trigger01"] == {"sent": 4, "built": 4}
    assert fates(ran)["Trigger02"] == {"sent": 4, "built": 3, "discarded": 1}


# ---------------------------------------------------------------------- marks


def index_of(lab: Lab, *marks: Mark, run: int = 42) -> None:
    """run.idx, as the logger leaves it."""
    writer = RunWriter(lab.folder / "run.mid", run, started_s=float(STAMP))
    writer.write([border(True, run, "{}")], 1, None, None)
    for mark in marks:
        writer.mark(mark)
    writer.close("complete", {})


def mark(source: str, first: int, last: int, cause: str = "silence", base: int = UNWRAPPED) -> Mark:
    return Mark(source, first, last, cause, struct.pack("<QQ", base + first, base + last))


def test_what_timing_decided_in_the_run_is_decided_again(lab: Lab, here: Here) -> None:
    two(lab, fragments(range(6)), fragments(range(6), 100))
    build(here)
    assert brief(lab.folder / "out.mid") == [(n, (n, 100 + n), ()) for n in range(6)], "nothing is missing"
    index_of(lab, mark("b", 1, 2), mark("a", 4, 4, "space"))
    ran = here.done("build", "a.mid", "b.mid", "-o", "two.mid", "--marks", "run.idx", "--json")
    assert brief(lab.folder / "two.mid") == [
        (0, (0, 100), ()),
        (1, (1,), ("b",)),
        (2, (2,), ("b",)),
        (3, (3, 103), ()),
        (4, (104,), ("a",)),
        (5, (5, 105), ()),
    ]
    assert fates(ran) == {
        "a": {"sent": 6, "built": 3, "incomplete": 2, "late": 1},
        "b": {"sent": 6, "built": 3, "incomplete": 1, "late": 2},
    }


def test_only_marked_events_differ_without_the_marks(lab: Lab, here: Here) -> None:
    two(lab, fragments(range(6)), fragments(range(6), 100))
    index_of(lab, mark("b", 1, 2))
    here.done("build", "a.mid", "b.mid", "-o", "one.mid")
    here.done("build", "a.mid", "b.mid", "-o", "two.mid", "--marks", "run.idx")
    without, with_marks = run_of(lab.folder / "one.mid").events, run_of(lab.folder / "two.mid").events
    assert [n for n, (x, y) in enumerate(zip(without, with_marks, strict=True)) if x != y] == [1, 2]


def test_marks_of_another_builders_sources_are_left_out_and_named(lab: Lab, here: Here) -> None:
    two(lab)
    index_of(lab, mark("WAVE01", 0, 3), mark("b", 0, 0))
    ran = build(here, "--marks", "run.idx")
    assert brief(lab.folder / "out.mid")[0] == (0, (0,), ("b",))
    assert said(ran) == ["note: run.idx has marks of WAVE01 too, of which no file is given; they are left out"]


def test_a_torn_index_gives_the_marks_that_it_has(lab: Lab, here: Here) -> None:
    two(lab)
    index_of(lab, mark("b", 0, 0))
    index = lab.folder / "run.idx"
    index.write_bytes(index.read_bytes()[:-3])
    ran = build(here, "--marks", "run.idx")
    assert brief(lab.folder / "out.mid")[0] == (0, (0,), ("b",))
    assert said(ran)[0].startswith("note: run.idx: byte ")
    assert said(ran)[0].endswith("are left: marks behind that are not known")


# ---------------------------------------------------------------------- what MIDAS wrote


def test_files_of_midas_keep_its_dump_and_are_built_by_plain_settings(lab: Lab, here: Here) -> None:
    xml = GOLDEN_XML.read_text()
    for name, form in (("Trigger01", BANK), ("Trigger02", BANK32)):
        record(lab.folder / f"run00007.{name}.mid", [event(n, [value(n)], form) for n in range(3)], 7, xml)
    ran = here.done("build", "run00007.Trigger02.mid", "run00007.Trigger01.mid", "-o", "out.mid", "--json")
    assert ran.err == ""
    run = run_of(lab.folder / "out.mid")
    assert run.begin.text == xml.rstrip("\0")
    assert run.begin.serial_number == 7
    assert brief(lab.folder / "out.mid") == [(n, (n, n), ()) for n in range(3)]
    assert list(ran.document["account"]["sources"]) == ["Trigger01", "Trigger02"]


def test_events_in_pieces_are_whole_again(lab: Lab, here: Here) -> None:
    whole = [event(n, [value(n), (b"WAVE", 1, bytes(range(200)))], event_id=1) for n in range(3)]
    cut = [*pieces(whole[0], 64), whole[1], *pieces(whole[2], 1000)]
    two(lab, cut, fragments(range(3), 100))
    build(here)
    events = run_of(lab.folder / "out.mid").events
    assert [[bank.data for bank in banks_of(one) if bank.name == "WAVE"] for one in events] == [[bytes(range(200))]] * 3
    assert brief(lab.folder / "out.mid") == [(n, (n, 100 + n), ()) for n in range(3)]


def test_an_event_in_pieces_that_is_no_event_is_put_in_quarantine_and_the_rest_built(lab: Lab, here: Here) -> None:
    wrong = struct.pack("<HHIII", 1, 0, 1, STAMP, 24) + struct.pack("<II", 16, 0x31) + b"ADC0" + bytes(4) + b"\xff" * 8
    two(lab, [*fragments([0]), *pieces(wrong, 10), *fragments([2])], fragments(range(3), 100))
    ran = build(here)
    assert brief(lab.folder / "out.mid") == [(0, (0, 100), ()), (1, (101,), ("a",)), (2, (2, 102), ())]
    assert said(ran) == ["note: fragments of a in quarantine, which are not built: 1 (its banks do not fill it)"]


REPLAY = """
[experiment]
name = "lab"

[logger]

[[frontend]]
code = "phloem.frontends.replay:Replay"
index = 1
settings = {{ "File" = "{0}" }}

[builder.EB]
buffer = "BUF"
"""


def test_the_replay_frontend_sends_events_in_pieces_whole(lab: Lab) -> None:
    whole = [event(n, [value(n), (b"WAVE", 1, bytes(range(200)))]) for n in range(3)]
    file = record(lab.folder / "old.mid", [*pieces(whole[0], 64), whole[1], *pieces(whole[2], 7)], 7, XML)
    lab.write(REPLAY.format(file))
    with lab.up() as live:
        live.start()
        live.until_events("EB", 3)
        document = live.stop()
    assert document["balanced"] is True
    events = run_of(document["files"][0]).events
    assert [(one.serial_number, [bank.data for bank in banks_of(one)]) for one in events] == [
        (n, [struct.pack("<H", n), bytes(range(200))]) for n in range(3)
    ]

"""What `phloem build` says to wrong options and files that are not as they should be, and what it leaves behind."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Here
from tests.cli.recorded import STAMP, UINT16, border, brief, fates, fragments, odb, pieces, record, said
from tests.flow.lab import Lab
from tests.kernel.fragments import event

from phloem.formats.base import Mark
from phloem.formats.midas.writer import RunWriter

TWO_BUILDERS = '[experiment]\nname = "lab"\n[builder.EB]\nbuffer = "BUF"\n[builder.EBW]\nbuffer = "WAVE"\n'
NO_BUILDER = '[experiment]\nname = "lab"\n'
MARK = Mark("Trigger01", 1, 2, "silence", struct.pack("<QQ", 1, 2))
FILES = {
    "wrong.toml": '"On incomplet" = "stop"\n',
    "far.toml": '"Colour" = "red"\n',
    "source.toml": '"Fragments/a/Timout ms" = 3\n',
    "value.toml": 'Fragments = 3\n"Fragments/a/Reorder" = 3\n',
    "table.toml": "Fragments = 3\n",
    "list.toml": '"Fragment Required" = true\n',
    "text.toml": "not toml\n",
    "none.toml": '"Fragment Names" = ["a", "b"]\n"Fragment Required" = [false, false]\n',
    "two.toml": TWO_BUILDERS,
    "no.toml": NO_BUILDER,
    "syntax.py": "def eb_user(:\n",
    "empty.py": "x = 1\n",
}


@pytest.fixture
def files(lab: Lab) -> Path:
    """Two sources, and a file for each mistake."""
    record(lab.folder / "a.mid", fragments(range(3)), odb="{}")
    record(lab.folder / "b.mid", fragments(range(3), 100), odb="{}")
    (lab.folder / "old").mkdir()
    record(lab.folder / "old" / "a.mid", fragments(range(3)))
    (lab.folder / "junk.mid").write_bytes(b"hello world, this is no recorded file at all")
    (lab.folder / "there.mid").write_bytes(b"")
    (lab.folder / "half.idx").write_bytes(b"")
    for name, text in FILES.items():
        lab.write(text, name)
    for run in (41, 42):
        writer = RunWriter(lab.folder / f"run{run}.mid", run, started_s=float(STAMP))
        writer.mark(MARK if run == 42 else MARK._replace(source="a", cause="magic"))
        writer.close("complete", {})
    writer = RunWriter(lab.folder / "cause.mid", 42, started_s=float(STAMP))
    writer.mark(MARK._replace(source="a", cause="magic"))
    writer.close("complete", {})
    return lab.folder


AB = ["a.mid", "b.mid", "-o", "out.mid"]
MISTAKES = [
    (["a.mid", "gone.mid", "-o", "out.mid"], "there is no file gone.mid"),
    (["a.mid", "old", "-o", "out.mid"], "there is no file old"),
    (["a.mid", "junk.mid", "-o", "out.mid"], "junk.mid: byte 0: no .mid file, or damaged from its beginning: "),
    (
        ["a.mid", "old/a.mid", "-o", "out.mid"],
        "a.mid and old/a.mid would both be source a: a source is named by its file, and has one; rename one of them",
    ),
    (
        ["a.mid", "b.mid", "-o", "there.mid"],
        "there.mid exists and is not overwritten; choose another name with -o, or move it away",
    ),
    (
        ["a.mid", "b.mid", "-o", "half.mid"],
        "half.idx exists and is not overwritten; choose another name with -o, or move it away",
    ),
    (
        ["a.mid", "b.mid", "-o", "a.mid"],
        "a.mid exists and is not overwritten; choose another name with -o, or move it away",
    ),
    (
        ["a.mid", "b.mid", "-o", "new/out.mid"],
        "there is no folder new for out.mid; make it first, or choose another with -o",
    ),
    ([*AB, "--optional", "c"], "there is no source 'c' to be optional; there are a, b"),
    ([*AB, "--optional", "a", "--optional", "b"], "all of a, b are optional; one must be required"),
    (
        [*AB, "--settings", "none.toml"],
        "settings/Fragment Required is n for all of a, b; one must be required",
    ),
    ([*AB, "--on-incomplete", "hold"], "settings/On incomplete is 'hold'; use build or discard or stop"),
    ([*AB, "--match", "times"], "settings/Match is 'times'; use serial or time"),
    ([*AB, "--reorder", "-1"], "settings/Reorder is -1; it cannot be less than 0"),
    ([*AB, "--time-check", "repiar"], "settings/Time check is 'repiar'; use off or continue or repair or stop"),
    (
        [*AB, "--settings", "wrong.toml"],
        "settings file wrong.toml: unknown key 'On incomplet'; did you mean 'On incomplete'?",
    ),
    ([*AB, "--settings", "far.toml"], "settings file far.toml: unknown key 'Colour'; known are Timeout ms, "),
    (
        [*AB, "--settings", "source.toml"],
        "settings file source.toml: unknown key 'Fragments/a/Timout ms'; did you mean 'Timeout ms'?",
    ),
    (
        [*AB, "--settings", "value.toml"],
        "settings file value.toml: 'Fragments/a/Reorder' stands below a key that has a value",
    ),
    (
        [*AB, "--settings", "table.toml"],
        "settings file table.toml: 'Fragments' is 3; write \"Fragments/<source>/<key>\" = ..., such as "
        '"Fragments/Trigger01/Reorder" = 10',
    ),
    (
        [*AB, "--settings", "list.toml"],
        "settings file list.toml: 'Fragment Required' is True; write a list, such as [true]",
    ),
    ([*AB, "--settings", "text.toml"], "settings file text.toml: Expected '=' after a key"),
    ([*AB, "--settings", "gone.toml"], "settings file gone.toml cannot be read: No such file or directory"),
    (
        [*AB, "--settings", "two.toml"],
        "two.toml has 2 builders (EB, EBW); give a file with one, or with the keys of its settings alone",
    ),
    (
        [*AB, "--settings", "no.toml"],
        "no.toml has no builder; give a file with one, or with the keys of its settings alone",
    ),
    ([*AB, "--marks", "gone.idx"], "there is no index gone.idx"),
    (
        [*AB, "--marks", "junk.mid"],
        "junk.mid: byte 0: no index of a run (a record begins with b'hell', expected b'PIDX'); give its .idx",
    ),
    ([*AB, "--marks", "half.idx"], "half.idx: byte 0: no index of a run (it is empty); give its .idx"),
    ([*AB, "--marks", "run41.idx"], "run41.idx has the marks of run 41, and the files are of run 42"),
    (
        [*AB, "--marks", "run42.idx"],
        "run42.idx has marks of Trigger01, and the files are of a, b: name each file by its source, as in "
        "Trigger01.mid",
    ),
    (
        [*AB, "--marks", "cause.idx"],
        "cause.idx: byte 0: a mark of a has cause 'magic' and 16 bytes; known causes are silence, space, optional, "
        "check, with 16 bytes",
    ),
    ([*AB, "--user-code", "gone.py"], "there is no file "),
    ([*AB, "--user-code", "empty.py"], ""),
    ([*AB, "--user-code", "syntax.py"], ""),
]


@pytest.mark.parametrize(("args", "text"), MISTAKES, ids=lambda value: " ".join(value) if type(value) is list else "")
def test_a_mistake_is_answered_by_one_line_and_leaves_no_file(
    files: Path, here: Here, args: list[str], text: str
) -> None:
    before = {path: path.read_bytes() for path in files.iterdir() if path.is_file()}
    ran = here("build", *args)
    assert ran.status == 1
    (line,) = said(ran)
    assert line.startswith(f"phloem: {text}"), line
    assert "TRACEBACK" not in line
    assert {path: path.read_bytes() for path in files.iterdir() if path.is_file()} == before


def test_without_an_output_the_option_is_named(here: Here) -> None:
    ran = here("build", "a.mid")
    assert ran.status == 2
    assert "-o" in ran.err


# ---------------------------------------------------------------------- files that are not whole


def torn(lab: Lab, compressed: bool) -> str:
    """b.mid, in which the last of five fragments is not whole; its name."""
    path = record(lab.folder / "b.mid", fragments(range(5), 100), run=None)
    data = path.read_bytes()[:-7]
    if compressed:
        path.unlink()
        path = lab.folder / "b.mid.gz"
        data = gzip.compress(data)[:-8]
    path.write_bytes(data)
    return path.name


@pytest.mark.parametrize("compressed", [False, True])
def test_a_torn_file_is_built_as_far_as_it_goes_and_the_status_says_so(lab: Lab, here: Here, compressed: bool) -> None:
    record(lab.folder / "a.mid", fragments(range(5)), run=None)
    name = torn(lab, compressed)
    ran = here("build", "a.mid", name, "-o", "out.mid", "--json")
    assert ran.status == 1
    assert brief(lab.folder / "out.mid") == [*((n, (n, 100 + n), ()) for n in range(4)), (4, (4,), ("b",))]
    assert fates(ran) == {"a": {"sent": 5, "built": 4, "incomplete": 1}, "b": {"sent": 4, "built": 4}}
    (line,) = said(ran)
    assert line.startswith(f"note: {name}: byte ")
    assert line.endswith(": the fragments of b before that are built, and nothing of it behind that")
    assert list(ran.document["damaged"]) == ["b"]
    assert here.ask("verify", "out.mid")["ok"] is True


def test_an_event_of_which_pieces_are_missing_is_named(lab: Lab, here: Here) -> None:
    record(lab.folder / "a.mid", fragments(range(3)), run=None)
    whole = fragments(range(3), 100)
    record(lab.folder / "b.mid", [whole[0], *pieces(whole[1], 10)[:-1], whole[2]], run=None)
    ran = here("build", "a.mid", "b.mid", "-o", "out.mid", "--json")
    assert ran.status == 1
    assert brief(lab.folder / "out.mid") == [(0, (0, 100), ()), (1, (1,), ("b",)), (2, (2, 102), ())]
    assert "fragmented event 0x0001 serial number 1 has 30 of 32 bytes" in said(ran)[0]


def test_a_fragment_that_is_no_event_is_put_in_quarantine_with_its_reason(lab: Lab, here: Here) -> None:
    wrong = struct.pack("<HHIII", 1, 0, 1, STAMP, 8) + struct.pack("<II", 8, 0x31)
    record(lab.folder / "a.mid", [*fragments([0]), wrong, *fragments([2])], run=None)
    ran = here("build", "a.mid", "-o", "out.mid", "--json")
    assert ran.status == 0
    assert fates(ran) == {"a": {"sent": 3, "built": 2, "quarantined": 1}}
    assert said(ran) == ["note: fragments of a in quarantine, which are not built: 1 (its banks do not fill it)"]


def test_an_empty_file_is_a_source_that_sent_nothing(lab: Lab, here: Here) -> None:
    record(lab.folder / "a.mid", fragments(range(2)), run=None)
    (lab.folder / "b.mid").write_bytes(b"")
    ran = here("build", "a.mid", "b.mid", "-o", "out.mid", "--json")
    assert ran.status == 0
    assert brief(lab.folder / "out.mid") == [(0, (0,), ("b",)), (1, (1,), ("b",))]
    assert said(ran) == ["note: b.mid is empty: events are built as if b had sent nothing"]


def test_files_of_different_runs_are_joined_and_that_is_said(lab: Lab, here: Here) -> None:
    record(lab.folder / "a.mid", fragments(range(2)), run=7)
    record(lab.folder / "b.mid", fragments(range(2), 100), run=8)
    ran = here("build", "b.mid", "a.mid", "-o", "out.mid", "--json")
    assert ran.document["run"] == 7
    assert said(ran) == [
        "note: the files are of different runs (a.mid of run 7, b.mid of run 8); they are joined as run 7"
    ]


@pytest.mark.parametrize(
    ("name", "run", "source"),
    [
        ("run00042.Trigger01.mid", 42, "Trigger01"),
        ("run00042.Trigger01.mid", None, "Trigger01"),
        ("run7.Trigger01.mid.gz", 42, "Trigger01"),
        ("Trigger01.mid", 42, "Trigger01"),
        ("run00042.mid", 42, "run00042"),
        ("runner.mid", 42, "runner"),
    ],
)
def test_a_source_is_named_by_its_file(lab: Lab, here: Here, name: str, run: int | None, source: str) -> None:
    path = record(lab.folder / name, fragments([0]), run)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    document = here.ask("build", name, "-o", "out.mid")
    assert list(document["account"]["sources"]) == [source]


@pytest.mark.parametrize(
    "text",
    ['{"Equipment": 3}', '{"Equipment": {"EB": 3}}', "[1, 2]", "{", '{"Equipment": {"EB": {"Settings": {}}}}', "\xff"],
)
def test_an_odb_that_says_nothing_of_a_builder_changes_nothing(lab: Lab, here: Here, text: str) -> None:
    record(lab.folder / "a.mid", fragments([0]), odb=text)
    assert here.done("build", "a.mid", "-o", "out.mid").err == ""


def test_one_source_that_midas_writes_without_a_list_is_one_source(lab: Lab, here: Here) -> None:
    settings = {"Fragment Names": "Trigger01", "Fragment Required": True, "Number of Fragment": 1}
    for name in ("Trigger0", "Trigger01"):
        record(lab.folder / f"{name}.mid", fragments([0]), odb=odb(settings, event_id=0x11))
    assert here.done("build", "Trigger0.mid", "-o", "one.mid").err == ""
    assert "building as EB did" in here.done("build", "Trigger01.mid", "-o", "two.mid").err


def test_a_disk_that_takes_no_more_is_named_and_no_half_file_is_left(lab: Lab) -> None:
    large(lab.folder / "a.mid", 20)
    command = f"ulimit -f 2000; exec {sys.executable} -m phloem build a.mid -o out.mid"
    done = subprocess.run(
        ["sh", "-c", command], cwd=lab.folder, env=lab.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "phloem: out.mid cannot be written: File too large; choose another place with -o\n"
    assert not list(lab.folder.glob("out.*"))


# ---------------------------------------------------------------------- large files

# VmHWM and not ru_maxrss, which begins with what the process had that started this one.
MEASURE = """
import sys
from pathlib import Path
from phloem.cli.main import main
status = main(sys.argv[1:])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0], file=sys.stderr)
sys.exit(status)
"""
EVENT_BYTES = 100_000


def large(path: Path, n_events: int) -> None:
    """So many fragments of 100 kB, run borders around them."""
    data = (b"WAVE", UINT16, bytes(EVENT_BYTES - 16 - 8 - 16))
    whole = np.tile(np.frombuffer(event(0, [data]), np.uint8), (n_events, 1))
    assert whole.shape[1] == EVENT_BYTES
    whole[:, 4:8] = np.arange(n_events, dtype="<u4").view(np.uint8).reshape(-1, 4)
    with path.open("wb") as file:
        file.write(border(True, 1, "{}"))
        file.write(whole.tobytes())
        file.write(border(False, 1, "{}"))


def peak_kb(lab: Lab, n_events: int) -> int:
    """The memory that it takes to build two files of so many events."""
    for name in ("a.mid", "b.mid"):
        (lab.folder / name).unlink(missing_ok=True)
    large(lab.folder / "a.mid", n_events)
    (lab.folder / "b.mid").hardlink_to(lab.folder / "a.mid")
    out = f"out{n_events}.mid"
    command = [sys.executable, "-c", MEASURE, "build", "a.mid", "b.mid", "-o", out, "--json"]
    done = subprocess.run(command, cwd=lab.folder, env=lab.environment, capture_output=True, text=True, check=True)
    assert f'"events": {n_events}' in done.stdout
    assert (lab.folder / out).stat().st_size > 2 * n_events * (EVENT_BYTES - 100)
    (lab.folder / out).unlink()
    return int(done.stderr)


def test_memory_does_not_grow_with_the_files(lab: Lab) -> None:
    small, great = peak_kb(lab, 50), peak_kb(lab, 1000)
    assert great - small < 30_000, f"{small} kB for 2 x 5 MB, {great} kB for 2 x 100 MB"

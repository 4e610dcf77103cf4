"""Mistakes of newcomers: each is one line that names the thing, what was found and what to do; never a traceback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from tests.cli.conftest import Here
from tests.flow.lab import Lab, Live, Ran, until

FRONTEND = """
[experiment]
name = "lab"

[logger]

[[frontend]]
code = "{code}"
"""


def refused(ran: Ran, *words: str, status: int = 1) -> str:
    """The one line on stderr of a command that failed, which has all these words."""
    assert ran.status == status, ran
    assert ran.out == ""
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("phloem: ")
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err, ran.err
    return ran.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[experiment]\nname = "lab"\n[loger]\n', ["'loger'", "did you mean 'logger'?"]),
        ('[experiment]\nnme = "lab"\n', ["'experiment.nme'", "did you mean 'name'?"]),
        ('[experiment]\nname = "lab"\n[builder.EB]\nbufer = "BUF"\n', ["'builder.EB.bufer'", "did you mean 'buffer'?"]),
        ('[experiment]\nname = "lab"\n[[frontend]]\ncode = "x.py"\nindx = 1\n', ["indx'", "did you mean 'index'?"]),
        ('[experiment]\nname = "lab"\nzzz = 1\n', ["'experiment.zzz'", "known are name, data_dir"]),
        ("[experiment]\nname = 3\n", ["$.experiment.name", "str", "int"]),
        ('[experiment]\nname = "lab"\n[builder]\nbuffer = "BUF"\n', ["$.builder"]),
        ('[experiment]\nname = "lab"\n[frontend]\ncode = "x.py"\n', ["$.frontend"]),
        ("", ["experiment"]),
        ("[experiment\n", ["line 1"]),
    ],
)
def test_a_wrong_experiment_file_is_named_with_the_place_and_the_nearest_key(
    lab: Lab, here: Here, text: str, words: list[str]
) -> None:
    lab.write(text)
    refused(here("up", "lab.toml"), "experiment file lab.toml", *words)


def test_an_experiment_file_that_cannot_be_read_is_named(lab: Lab, here: Here) -> None:
    refused(here("up", "missing.toml"), "missing.toml: No such file")
    refused(here("up", "."), "Is a directory")
    (lab.folder / "binary.toml").write_bytes(b"\xff\xfe\x00")
    refused(here("-e", "binary.toml", "status"), "binary.toml", "utf-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os\ndef f(:\n    pass\n", ["line 2", "SyntaxError"]),
        ("import os\n\nimport no_such_module\n", ["line 3", "no_such_module"]),
        ("x = 1 / 0\n", ["line 1", "ZeroDivisionError"]),
        ("x = 1\n", ["must have one Frontend class", "it has: none"]),
    ],
)
def test_a_frontend_file_that_does_not_import_is_named_with_the_line(lab: Lab, text: str, words: list[str]) -> None:
    lab.write(text, "broken.py")
    lab.write(FRONTEND.format(code="broken.py"))
    refused(lab.run("up", "lab.toml"), "broken.py", *words)


def test_a_frontend_that_is_not_there_is_named(lab: Lab) -> None:
    lab.write(FRONTEND.format(code="nowhere.py:Fe"))
    refused(lab.run("up", "lab.toml"), "nowhere.py")
    lab.write(FRONTEND.format(code="no.such.module:Fe"))
    refused(lab.run("up", "lab.toml"), "'no.such.module' does not import")


def test_two_components_of_one_name_are_refused_by_name(lab: Lab) -> None:
    lab.two_frontends()
    lab.write(lab.file.read_text().replace("index = 2", "index = 1"))
    refused(lab.run("up", "lab.toml"), "simfe01", "is taken", "index")


def test_a_port_in_use_is_named(lab: Lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        lab.write(f'[experiment]\nname = "lab"\n[run_control]\naddress = "{address}"\n')
        refused(lab.run("up", "lab.toml"), address, "in use")


def test_nothing_running_is_said_with_what_to_do(lab: Lab, here: Here) -> None:
    for command in (["status"], ["start"], ["stop"], ["odb", "ls"], ["logger"], ["builder"], ["frontend", "x.py"]):
        refused(here(*command), "runs on this host; start one with `phloem up EXPERIMENT.toml`")
    lab.two_frontends()
    refused(here("-e", "lab.toml", "status"), "lab", "phloem up")
    refused(here("core"), "phloem core -e EXPERIMENT.toml")


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:1"])
def test_an_address_at_which_nobody_answers_is_named(here: Here, address: str) -> None:
    refused(here("--core", address, "status"), address)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense"], ["'nonsense'"]),
        (["demo", "--frontends", "-1"], ["--frontends", "greater than or equal to 1"]),
        (["demo", "--frontends", "0"], ["--frontends"]),
        (["demo", "--frontends", "four"], ["--frontends", "valid integer"]),
        (["demo", "--events", "-5"], ["--events"]),
        (["demo", "--seconds", "-1"], ["--seconds"]),
        (["demo", "--payload", "-256"], ["--payload"]),
        (["demo", "--rate", "-1"], ["--rate"]),
        (["demo", "--frontend", "4"], ["--frontend"]),
        (["frontend", "x.py", "-i", "-4"], ["-i"]),
        (["dump"], ["FILE"]),
        (["build", "-o", "out.mid"], ["FRAG.mid"]),
        (["bench", "evb", "--fragments", "0"], ["--fragments"]),
    ],
)
def test_wrong_options_are_named(here: Here, args: list[str], words: list[str]) -> None:
    refused(here(*args), *words, status=2)


@pytest.mark.parametrize("args", [["dump", "no.mid"], ["verify", "no.mid"], ["build", "no.mid", "-o", "out.mid"]])
def test_a_file_that_is_not_there_is_named(here: Here, args: list[str]) -> None:
    refused(here(*args), "there is no file no.mid")


def test_a_file_that_exists_is_never_overwritten(lab: Lab, here: Here) -> None:
    lab.write("mine", "mine.toml")
    refused(here("demo", "--write-experiment", "mine.toml"), "mine.toml exists and is not overwritten")
    assert (lab.folder / "mine.toml").read_text() == "mine"


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.two_frontends(Rate_Hz=100.0)
    with shared_lab.up() as live:
        yield live


@pytest.fixture
def run(live: Live, within: Callable[[Lab], Here]) -> Here:
    """A command of the operator of the experiment that is up."""
    return within(live.lab)


def test_a_transition_that_is_not_allowed_says_what_is(run: Here) -> None:
    refused(run("begin"), "BEGIN needs READY; the state is STOP. Allowed now: PREPARE.")
    refused(run("release"), "RELEASE needs READY; the state is STOP.")
    refused(run("stop", "--json"), "END needs READY or RUN; the state is STOP.")
    assert run("start").status == 0
    refused(run("start"), "PREPARE needs STOP; the state is RUN. Allowed now: END.")
    refused(run("release"), "RELEASE needs READY; the state is RUN. Allowed now: END.")
    assert run("stop").status == 0


def test_the_same_experiment_does_not_run_twice(live: Live) -> None:
    refused(live.lab.run("up", "lab.toml"), "experiment lab", "is running already")
    refused(live.lab.run("core", "-e", "lab.toml"), "is owned by the run control with pid")
    refused(live.lab.run("logger", "-e", "lab.toml"), "'Logger' is taken")
    refused(live.lab.run("builder", "-b", "BUF", "-e", "lab.toml"), "'EB' is taken")
    assert live.status()["state"] == "STOP"


def test_keys_and_values_that_cannot_be_are_named(run: Here) -> None:
    refused(run("odb", "get", "/Runinfo/Run nunber"), "/Runinfo/Run nunber", "nearest is /Runinfo/Run number")
    refused(run("odb", "set", "/Logger/Write data", "maybe"), "/Logger/Write data", "'maybe'", "y or n")
    refused(run("odb", "set", "/Runinfo/State", "3"), "/Runinfo/State")
    refused(run("odb", "set", "/Runinfo/Run number", "-3"), "/Runinfo/Run number")
    refused(run("odb", "ls", "/Nowhere"), "/Nowhere")


def test_a_buffer_that_is_too_small_is_refused_at_prepare_with_its_setting(live: Live, run: Here) -> None:
    path = "/Experiment/Buffer sizes/BUF01"
    before = live.operator.odb_get(path).result(5)
    live.set(path, 1000)
    refused(run("prepare"), path, "at least")
    live.set(path, before)


def test_with_two_experiments_running_the_operator_is_asked_which(live: Live, run: Here) -> None:
    live.lab.write('[experiment]\nname = "other"\ndata_dir = "other"\n', "other.toml")
    with live.lab.component("core", "-e", "other.toml"):
        until(lambda: "2 experiments" in run("status").err, "two experiments")
        refused(run("status"), "lab", "other", "say which with -e or --core")
        assert run("-e", "lab.toml", "status", "--json").document["experiment"] == "lab"
        assert run("-e", "other.toml", "status", "--json").document["experiment"] == "other"
        assert run("--core", live.operator.address, "status", "--json").document["experiment"] == "lab"

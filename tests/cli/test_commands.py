"""The commands as the README lists them, from other terminals, and each component started by hand."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.cli.conftest import Here
from tests.flow.lab import DEADLINE_S, Lab, Live, until
from tests.flow.leftovers import processes_of
from tests.flow.reader import banks_of, run_of

COMMANDS = (
    "demo",
    "up",
    "core",
    "frontend",
    "builder",
    "builder status",
    "mevb",
    "logger",
    "prepare",
    "begin",
    "end",
    "release",
    "start",
    "stop",
    "status",
    "dump",
    "build",
    "verify",
    "odb ls",
    "odb get",
    "odb set",
    "bench evb",
    "bench ring",
    "bench latency",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_shows_an_example(here: Here, command: str) -> None:
    text = " ".join(here(*command.split(), "--help").out.split())
    assert f"phloem {command}" in text.replace("Usage: phloem", ""), text


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.two_frontends(Rate_Hz=500.0)
    with shared_lab.up() as live:
        yield live


@pytest.fixture
def run(live: Live, within: Callable[[Lab], Here]) -> Here:
    """A command of the operator of the experiment that is up."""
    return within(live.lab)


@pytest.fixture
def closed(live: Live) -> Iterator[None]:
    """A test that fails leaves no open run to the next one."""
    yield
    live.close_run()


@pytest.mark.usefixtures("closed")
def test_the_operator_takes_a_run_step_by_step_with_one_document_for_each(live: Live) -> None:
    ask = live.lab.ask
    prepared = ask("prepare", "--comment", "pedestals", "--operator", "kim")
    assert (prepared["state"], prepared["sources"]) == ("READY", {"EB": ["Trigger01", "Trigger02"]})
    assert ask("begin") == {"run": prepared["run"], "state": "RUN"}
    live.until_events("EB", 100)
    status = ask("status")
    assert (status["state"], status["run"]) == ("RUN", prepared["run"])
    kinds = {part["name"]: part["kind"] for part in status["components"]}
    assert kinds == {"Logger": "logger", "EB": "builder", "simfe01": "frontend", "simfe02": "frontend"}
    for part in status["components"]:
        assert part["health"] == "ok"
        assert 0 <= part["heartbeat_age_s"] < 1
        assert part["host"]
        assert str(part["pid"]) in map(str, processes_of(live.lab.shm))
    until(lambda: all(p["rates"]["events_per_s"] > 0 for p in live.status()["components"]), "a rate of each")
    document = ask("end")
    assert document["run"] == prepared["run"]
    keys = {"run", "files", "account", "balanced", "seconds", "events", "bytes"}
    assert keys <= document.keys()
    [record] = [run for run in live.operator.runs().result(5) if run["number"] == document["run"]]
    assert (record["operator"], record["comment"]) == ("kim", "pedestals")


@pytest.mark.usefixtures("closed")
def test_start_stop_and_release_do_what_they_are_short_for(live: Live, run: Here) -> None:
    ask = run.ask
    number = ask("start")["run"]
    live.until_events("EB", 10)
    assert ask("stop")["run"] == number
    assert ask("prepare")["run"] == number + 1
    assert (ask("release")["status"], live.status()["state"]) == ("released", "STOP")


@pytest.mark.usefixtures("closed")
def test_a_test_run_writes_no_file_and_says_so(live: Live, run: Here) -> None:
    started = run.ask("start", "--no-data")
    assert started["write_data"] is False
    assert "TEST RUN" in run.done("status").out
    live.until_events("EB", 10)
    document = run.ask("stop")
    assert (document["files"], document["balanced"]) == ([], True)
    assert document["account"]["streams"]["EB"]["discarded"] == document["account"]["streams"]["EB"]["sent"] > 0
    assert not (live.lab.data / f"run{document['run']:05d}.mid").exists()


@pytest.mark.usefixtures("closed")
def test_what_people_read_is_on_stdout_and_the_account_is_a_table(live: Live, run: Here) -> None:
    assert re.fullmatch(r"run \d+: RUN\n", run.done("start").out)
    live.until_events("EB", 10)
    assert "simfe01" in run.done("status").out
    out = run.done("stop").out
    assert re.search(r"Trigger02 +[\d,]+ +[\d,]+ +0", out), out
    assert "balanced" in out


def test_odb_get_and_set_keep_the_type_of_the_key(run: Here) -> None:
    path = "/Equipment/Trigger01/Settings/Payload bytes"
    assert run.done("odb", "get", path).out == "256\n"
    assert run.done("odb", "set", path, "512").out == "512\n"
    assert run.ask("odb", "get", path) == 512
    assert run.ask("odb", "set", "/Logger/Write data", "y") is True
    assert "Payload bytes" in run.done("odb", "ls", "/Equipment/Trigger01/Settings").out
    rows = run.ask("odb", "ls", "-l", "/Equipment/Trigger01/Common")
    assert any(row["name"] == "Event ID" and row["value"] == 1 for row in rows)


def test_a_negative_value_is_a_value_and_not_an_option(run: Here) -> None:
    path = "/Equipment/Trigger02/Settings/Rate Hz"
    assert run.done("odb", "set", path, "-1500").out == "-1500\n"
    assert run.done("odb", "set", path, "500").out == "500\n"


@pytest.mark.usefixtures("closed")
def test_verify_and_dump_agree_with_the_file_and_verify_finds_a_flipped_byte(live: Live, run: Here) -> None:
    live.start()
    live.until_events("EB", 50)
    [file] = live.stop()["files"]
    assert run.done("verify", file).out.startswith(f"{file}: ok")
    lines = run.done("dump", file, "--json").out.splitlines()
    events = [event for event in map(json.loads, lines) if event["event_id"] == 1]
    for event, found in zip(run_of(file).events, events, strict=True):
        assert found["serial_number"] == event.serial_number
        assert found["data_size"] == len(event.data)
        banks = [(bank.name, bank.tid, len(bank.data), list(bank.values)) for bank in banks_of(event)]
        assert [(b["name"], b["tid"], b["size_bytes"], b["values"]) for b in found["banks"]] == banks
    data = bytearray(Path(file).read_bytes())
    data[len(data) // 2] ^= 1
    Path(file).write_bytes(data)
    ran = run("verify", file)
    assert ran.status == 1
    assert "DAMAGED" in ran.out


def test_a_reader_that_goes_away_early_is_no_error(live: Live) -> None:
    golden = Path(__file__).parents[1] / "golden" / "midas" / "built_2x50_bank16.mid"
    with live.lab.popen("dump", str(golden)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_up_ends_the_run_in_progress_first(lab: Lab, number: signal.Signals) -> None:
    lab.two_frontends(Rate_Hz=500.0)
    with lab.up() as live:
        live.start()
        live.until_events("EB", 100)
        live.process.send_signal(number)
        assert live.process.wait(DEADLINE_S) == 0
    [file] = lab.data.glob("run*.mid")
    run = run_of(file)
    assert run.serials == list(range(len(run.events)))
    assert json.loads(run.end.text)["Account"]["balanced"] is True
    assert len(run.events) >= 100
    assert lab.ask("verify", str(file))["ok"] is True


def test_up_in_the_background_returns_when_all_are_there_and_ends_at_sigterm(lab: Lab) -> None:
    ran = lab.run("demo", "--frontends", "2", "--write-experiment", "lab.toml")
    assert ran.status == 0
    ran = lab.run("up", "lab.toml", "-D")
    assert ran.status == 0, ran
    found = re.search(r"process (\d+)", ran.err)
    assert found is not None
    assert lab.ask("start")["sources"] == {"EB": ["Trigger01", "Trigger02"]}
    os.kill(int(found[1]), signal.SIGTERM)
    until(lambda: not processes_of(lab.shm), "all processes have ended")
    [file] = lab.data.glob("run*.mid")
    assert json.loads(run_of(file).end.text)["Account"]["balanced"] is True


def test_up_in_the_background_passes_on_why_it_could_not(lab: Lab) -> None:
    lab.two_frontends("nowhere.py")
    ran = lab.run("up", "lab.toml", "-D")
    assert ran.status == 1
    assert "nowhere.py" in ran.err
    assert ran.err.count("\n") == 1


def test_every_component_can_be_started_by_hand(lab: Lab) -> None:
    lab.two_frontends(Rate_Hz=500.0)
    code = "phloem.frontends.simulated:Simulated"
    with ExitStack() as running:
        running.enter_context(lab.component("core", "-e", "lab.toml"))
        until(lambda: lab.run("status").status == 0, "run control answers")
        for args in (
            ["logger", "-e", "lab.toml"],
            ["mevb", "-b", "BUF", "-e", "lab.toml"],
            ["frontend", code, "-i", "1", "-e", "lab.toml"],
            ["frontend", code, "-i", "2"],  # the one experiment that runs is found by itself
        ):
            running.enter_context(lab.component(*args))
        until(lambda: len(lab.ask("status")["components"]) == 4, "all are there")
        lab.ask("-e", "lab.toml", "start")
        until(lambda: built(lab) >= 100, "a hundred events")
        document = lab.ask("stop")
    assert document["balanced"] is True
    assert run_of(document["files"][0]).serials == list(range(document["events"]))


def built(lab: Lab) -> int:
    return int(next(part for part in lab.ask("status")["components"] if part["name"] == "EB")["counters"]["events"])


def test_what_the_odb_has_wins_over_the_file_and_the_difference_is_said(lab: Lab) -> None:
    lab.two_frontends(Payload_bytes=64)
    with lab.up():
        pass
    lab.two_frontends(Payload_bytes=128)
    with lab.up() as live:
        path = "/Equipment/Trigger01/Settings/Payload bytes"
        assert live.operator.odb_get(path).result(5) == 64
        assert any(path in text and "128" in text for text in live.messages())
    with lab.popen("up", "lab.toml", "--reset", "/Equipment/Trigger01") as process:
        until(lambda: lab.run("odb", "get", path).out == "128\n", "the file's value")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def test_a_component_that_dies_is_named_by_up(lab: Lab) -> None:
    lab.two_frontends()
    process: subprocess.Popen[str]
    with lab.up() as live:
        process = live.process
        os.kill(live.part("simfe02")["pid"], signal.SIGKILL)
        assert process.stderr is not None
        line = next(line for line in process.stderr if "has ended" in line)
    assert "killed by signal 9" in line

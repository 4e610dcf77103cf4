"""Four frontends at full speed that lose, repeat and reorder fragments; one is killed in mid-run and started again.

Takes as long as PHLOEM_SOAK_S says, which `make soak` sets to 60. What must come out is worked out from the fault logs
and the marks in the run's index; every event is read from the file's layout alone.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.flow.faultlog import Log, Rules, Verdict, read_log
from tests.flow.lab import Lab, Live, until
from tests.flow.stream import check_stream

from phloem.formats.midas.index import read_index

SOAK_S = float(os.environ.get("PHLOEM_SOAK_S", "4"))
FAULTY = "phloem.frontends.faulty:Faulty"
SOURCES = ("Trigger01", "Trigger02", "Trigger03", "Trigger04")
REORDER = 8
KILLED = 3

EXPERIMENT = """
[experiment]
name = "lab"

[logger]

[builder.EB]
buffer = "BUF"
settings = { "Reorder" = 8 }
"""
FRONTEND = """
[[frontend]]
code = "phloem.frontends.faulty:Faulty"
index = {index}
settings = {{ Log = "{logs}", Seed = {index}, "Payload bytes" = 8, "Drop rate" = 1e-4, "Duplicate rate" = 1e-4, \
"Duplicate distance" = 20, "Reorder rate" = 1e-3, "Reorder distance" = 8 }}
"""


def run_with_a_kill(live: Live) -> dict[str, Any]:
    """A run of SOAK_S in which one frontend is killed after a third, and started again by hand; its document."""
    name, source = f"faulty{KILLED:02d}", SOURCES[KILLED - 1]
    begun_s = time.monotonic()
    number = live.start()["run"]
    until(lambda: time.monotonic() - begun_s > SOAK_S / 3 and live.count("EB") > 10_000, "a third", SOAK_S + 30)
    os.kill(live.part(name)["pid"], signal.SIGKILL)
    alone = live.count("EB", "incomplete")
    live.until_events("EB", live.count("EB") + 10_000)
    until(lambda: live.count("EB", "incomplete") > alone + 10_000, "events without it")
    with live.lab.component("frontend", FAULTY, "-i", str(KILLED), "-e", live.lab.file.name):
        back = f"[run control] {name} is back in run {number}"
        until(lambda: any(line.startswith(back) for line in live.messages()), "it is back")
        built = live.part("EB")["sources"][source]["built"]
        until(lambda: live.part("EB")["sources"][source]["built"] > built + 10_000, "it is built again")
        until(lambda: time.monotonic() - begun_s > SOAK_S, "the time is over", SOAK_S + 30)
        return live.stop()


def fates_of(document: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The account of the sources, without what is beside it."""
    beside = ("blocked_s", "missed", "lost")
    sources = document["account"]["sources"]
    return {name: {key: part[key] for key in part if key not in beside} for name, part in sources.items()}


def report(document: dict[str, Any], logs: list[Log], events: int, bytes_on_disk: int) -> None:
    """The numbers, for docs/reliability.md; `make soak` shows them."""
    print(f"\n{events:,} events, {bytes_on_disk / 1e9:.2f} GB")
    for log, part in zip(logs, fates_of(document).values(), strict=True):
        print(log.source, part, dict(Counter(fault.what for fault in log.faults)))


@pytest.mark.timeout(120 + 10 * SOAK_S)
def test_four_sources_with_faults_and_a_kill_in_mid_run_come_to_what_their_logs_say(lab: Lab) -> None:
    logs_of = lab.folder / "logs"
    lab.write(EXPERIMENT + "".join(FRONTEND.format(index=n + 1, logs=logs_of) for n in range(len(SOURCES))))
    with lab.up() as live:
        document = run_with_a_kill(live)
    file = Path(document["files"][0])
    try:
        assert (document["status"], document["balanced"], document["problems"]) == ("complete", True, [])
        logs = [read_log(logs_of / f"{source}.faults", document["run"]) for source in SOURCES]
        fates = fates_of(document)
        killed = SOURCES[KILLED - 1]
        index = read_index(file.with_suffix(".idx"))
        marks = [(mark.first_serial, mark.last_serial) for mark in index.marks]
        assert {mark.source for mark in index.marks} == {killed}
        sent = {source: part["sent"] for source, part in fates.items()}
        verdict = Verdict(logs, sent, Rules(reorder=REORDER, marks={killed: marks}))
        assert fates == verdict.account()
        events = check_stream(file, verdict, SOURCES)
        assert events == document["events"]
        report(document, logs, events, file.stat().st_size)
    finally:
        file.unlink()
    assert fates[killed]["late"] > 0
    assert all(part["quarantined"] == part["discarded"] == 0 for part in fates.values())
    assert all(part["late"] == 0 for source, part in fates.items() if source != killed)
    assert all(part["duplicate"] > 0 and part["built"] > 20_000 for part in fates.values())

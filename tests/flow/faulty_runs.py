"""Runs of two `Faulty` frontends, and what must come of them: settings, logs, marks, events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.flow.faultlog import Log, Rules, Verdict, read_log
from tests.flow.lab import DEADLINE_S, Live, until
from tests.flow.reader import Event, run_of

from phloem.formats.base import Mark
from phloem.formats.midas.index import read_index

EVENTS = 20_000
NAMES = {"Trigger01": "faulty01", "Trigger02": "faulty02"}
SOURCES = tuple(NAMES)

CLEAN: dict[str, Any] = {
    "Payload bytes": 32,
    "Rate Hz": 0.0,
    "Events": EVENTS,
    "Drop rate": 0.0,
    "Duplicate rate": 0.0,
    "Duplicate distance": 0,
    "Reorder rate": 0.0,
    "Reorder distance": 1,
    "Garbage rate": 0.0,
    "Burst drop at": 0,
    "Burst drop": 0,
    "Shift at": 0,
    "Freeze at": 0,
    "Freeze s": 0.0,
    "Reset at": 0,
    "First serial": 0,
    "Time": False,
}
BUILDER: dict[str, Any] = {
    "Fragment Required": [True, True],
    "Timeout ms": 10_000,
    "Optional wait ms": 20,
    "On incomplete": "build",
    "Reorder": 0,
    "Duplicate window": 4096,
    "Match": "serial",
    "Window ns": 1000,
    "Reorder ns": 0,
    "Time check": "off",
    "Keep headers": False,
    "User code": "",
    "Fragments/Trigger01/Timeout ms": -1,
    "Fragments/Trigger02/Timeout ms": -1,
    "Fragments/Trigger01/On incomplete": "",
    "Fragments/Trigger02/On incomplete": "",
    "Fragments/Trigger02/Time offset ns": 0,
}

AS_THEY_STAND = Rules()

EXPERIMENT = """
[experiment]
name = "lab"

[logger]

[builder.EB]
buffer = "BUF"

[builder.EB.settings]
"Fragment Names" = ["Trigger01", "Trigger02"]
"Fragment Required" = [true, true]
"Fragments/Trigger01/Timeout ms" = -1
"Fragments/Trigger02/Timeout ms" = -1
"Fragments/Trigger01/On incomplete" = ""
"Fragments/Trigger02/On incomplete" = ""
"Fragments/Trigger02/Time offset ns" = 0

[[frontend]]
code = "phloem.frontends.faulty:Faulty"
index = 1
settings = {{ Log = "{logs}", "First serial" = 4294967295 }}

[[frontend]]
code = "phloem.frontends.faulty:Faulty"
index = 2
settings = {{ Log = "{logs}", "First serial" = 4294967295 }}
"""


class Finished(NamedTuple):
    """A run that is over."""

    document: dict[str, Any]
    events: list[Event]
    logs: list[Log]
    marks: list[Mark]

    @property
    def fates(self) -> dict[str, dict[str, int]]:
        """The account of the sources, without what is beside it."""
        beside = ("blocked_s", "missed", "lost")
        sources = self.document["account"]["sources"]
        return {name: {key: part[key] for key in part if key not in beside} for name, part in sources.items()}

    def verdict(self, rules: Rules) -> Verdict:
        """What it must have come to."""
        sent = {name: part["sent"] for name, part in self.document["account"]["sources"].items()}
        return Verdict(self.logs, sent, rules)

    def check(self, rules: Rules = AS_THEY_STAND) -> None:
        """Account and events are what the logs say."""
        assert self.document["balanced"] is True, self.document
        assert bool(self.marks) is bool(rules.marks)
        for log in self.logs:
            assert self.fates[log.source]["sent"] <= log.fragments
        verdict = self.verdict(rules)
        assert self.fates == verdict.account()
        verdict.check_events(self.events)

    def fate(self, fate: str) -> tuple[int, ...]:
        """Of both sources."""
        return tuple(self.fates[name][fate] for name in SOURCES)


def begin(
    live: Live,
    both: Mapping[str, Any] | None = None,
    first: Mapping[str, Any] | None = None,
    second: Mapping[str, Any] | None = None,
    builder: Mapping[str, Any] | None = None,
) -> int:
    """Start a run with these settings, of both frontends or of one of them; its number."""
    wanted = {f"/Equipment/EB/Settings/{key}": value for key, value in {**BUILDER, **(builder or {})}.items()}
    for source, own in zip(SOURCES, (first, second), strict=True):
        settings = {**CLEAN, "Seed": 1, **(both or {}), **(own or {})}
        wanted |= {f"/Equipment/{source}/Settings/{key}": value for key, value in settings.items()}
    for path, value in wanted.items():
        live.set(path, value)
    return int(live.start()["run"])


def log_of(live: Live, source: str, run: int) -> Log:
    """What the log of this source says of the run."""
    return read_log(live.lab.folder / "logs" / f"{source}.faults", run)


def finish(live: Live, run: int) -> Finished:
    """End the run when all has been sent."""
    until(lambda: all(log_of(live, source, run).done for source in SOURCES), "all of it in the logs")
    fragments = {source: log_of(live, source, run).fragments for source in SOURCES}
    until(lambda: all(live.sent(NAMES[s], s) == n for s, n in fragments.items()), f"{fragments} sent")
    done = stop(live, run)
    assert {source: done.fates[source]["sent"] for source in SOURCES} == fragments
    return done


def stop(live: Live, run: int) -> Finished:
    """End the run now."""
    return _finished(live, run, live.stop())


def ended(live: Live, run: int) -> Finished:
    """A run that ends by itself."""
    until(lambda: live.status()["state"] == "STOP", f"run {run} has ended by itself")
    return _finished(live, run, live.operator.runs(1).result(DEADLINE_S)[0]["result"])


def _finished(live: Live, run: int, document: dict[str, Any]) -> Finished:
    assert document["run"] == run
    file = Path(document["files"][0])
    events = run_of(file).events
    file.unlink()
    marks = read_index(file.with_suffix(".idx")).marks
    return Finished(document, events, [log_of(live, source, run) for source in SOURCES], marks)

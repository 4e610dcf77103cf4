"""A frontend that is killed in mid-run, or leaves, and is started again by hand: it goes on in the same run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from tests.flow.lab import DEADLINE_S, Lab, Live, until
from tests.flow.reader import Run, banks_of, run_of

CODE = "counting.py:Counting"

# A trigger that all frontends share, as hardware has it: its number is a function of time alone. Each fragment bears it
# as its serial number, and in the bank CTnn how many this source has sent before it, over all its lives. It refuses to
# come back as long as there is a file named broken.
COUNTING = """
import time
from pathlib import Path
import numpy as np
from phloem import EQ_EB, EQ_POLLED, Equipment, Frontend

class Counting(Frontend):
    name = "fe"
    equipment = [Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB)]
    default_settings = {"Rate Hz": 20000.0}

    def prepare(self, run_number):
        self.count, self.trigger = 0, 0

    def rejoin(self, run_number, sent, next_serial):
        name = f"Trigger{self.index:02d}"
        if Path("broken").exists():
            raise OSError("no crate at VME 0x1000")
        self.count = sent[name]
        self.trigger = max(self.fired(), next_serial[name])

    def fired(self):
        now_s = time.time() if self.ended_at_s is None else self.ended_at_s
        return int((now_s - self.begun_at_s) * self.settings["Rate Hz"])

    def poll(self):
        return self.fired() > self.trigger

    def read_batch(self, batch):
        n = min(self.fired() - self.trigger, 5000)
        batch.bank(f"CT{self.index:02d}", np.arange(self.count, self.count + n, dtype="u4"))
        batch.serial_numbers = np.arange(self.trigger, self.trigger + n, dtype="u4")
        self.count += n
        self.trigger += n
"""


# The same straight into the file, as fast as it can, with a counter of its own that begins anew with the process.
STRAIGHT = """
import numpy as np
from phloem import EQ_POLLED, Equipment, Frontend

class Straight(Frontend):
    name = "straight"
    equipment = [Equipment("Trigger", type=EQ_POLLED)]
    count = 0

    def rejoin(self, run_number, sent, next_serial):
        self.count = sent["Trigger"]
        self.counter_restarted(0, next_serial["Trigger"])

    def poll(self):
        return True

    def read(self, event):
        event.bank("CONT", np.array([self.count], "u4"))
        self.count += 1
"""

STRAIGHT_TOML = """
[experiment]
name = "lab"

[logger]

[[frontend]]
code = "straight.py:Straight"
"""


def counting(lab: Lab) -> None:
    lab.write(COUNTING, "counting.py")
    lab.two_frontends(CODE)


def kill(live: Live, name: str) -> None:
    os.kill(live.part(name)["pid"], signal.SIGKILL)
    until(lambda: live.part(name)["health"] == "gone", f"{name} is seen to be gone")


def again(live: Live, code: str = CODE) -> AbstractContextManager[subprocess.Popen[str]]:
    """The second frontend, started by hand."""
    return live.lab.component("frontend", code, "-i", "2", "-e", live.lab.file.name)


def comes_back(live: Live, number: int, name: str = "fe02", times: int = 1) -> None:
    text = f"[run control] {name} is back in run {number}"
    until(lambda: sum(line.startswith(text) for line in live.messages()) == times, f"{name} is back in run {number}")


def sends_on(live: Live, name: str, source: str, events: int = 2000) -> None:
    before = live.sent(name, source)
    until(lambda: live.sent(name, source) >= before + events, f"{name} sends again")


def proven(lab: Lab, document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Run]:
    """The accounts of both sources and the file of a run in which every event is once."""
    first, second = (document["account"]["sources"][name] for name in ("Trigger01", "Trigger02"))
    assert (document["status"], document["balanced"], document["problems"]) == ("complete", True, [])
    # What comes first after a rejoin belongs to events that were closed while nobody waited for it.
    assert second["sent"] == second["built"] + second["incomplete"] + second["late"]
    assert first["sent"] == first["built"] + first["incomplete"]
    run = run_of(document["files"][0])
    assert run.serials == sorted(set(run.serials)), "every event once"
    assert len(run.events) == document["events"]
    assert lab.ask("verify", document["files"][0])["ok"] is True
    return first, second, run


def values_of(run: Run, bank_name: str) -> list[float]:
    return [bank.values[0] for event in run.events for bank in banks_of(event) if bank.name == bank_name]


def gaps(values: Sequence[float], total: int) -> list[float]:
    """What of 0 to total - 1 is not there; what is there is there once, and in order."""
    assert list(values) == sorted(set(values)), "nothing is doubled"
    return sorted(set(range(total)) - set(values))


def test_a_frontend_that_is_killed_and_started_again_goes_on_in_the_same_run(lab: Lab) -> None:
    counting(lab)
    with lab.up() as live:
        number = int(live.start()["run"])
        live.until_events("EB", 5000)
        kill(live, "fe02")
        live.until_events("EB", live.count("EB") + 2000)
        alone = live.count("EB", "incomplete")
        with again(live):
            comes_back(live, number)
            sends_on(live, "fe02", "Trigger02")
            document = live.stop()
            assert live.start()["sources"] == {"EB": ["Trigger01", "Trigger02"]}
            live.until_events("EB", 1000)
            assert live.stop()["balanced"] is True
    first, second, run = proven(lab, document)
    assert second["sent"] > 5000
    assert first["incomplete"] >= alone > 0
    assert len(gaps(values_of(run, "CT02"), second["sent"])) == second["late"] < 20_000
    texts = [event.text for event in run.messages]
    assert sum(text == "[Trigger02,INFO] Rejoined run" for text in texts) == 1
    assert sum("Beginning run" in text for text in texts) == 3


def test_it_may_be_killed_again_or_told_to_leave_and_comes_back_each_time(lab: Lab) -> None:
    counting(lab)
    with lab.up() as live:
        number = int(live.start()["run"])
        live.until_events("EB", 1000)
        kill(live, "fe02")
        with again(live) as second_life:
            comes_back(live, number)
            sends_on(live, "fe02", "Trigger02")
            second_life.send_signal(signal.SIGTERM)
            assert second_life.wait(DEADLINE_S) == 0
        third_life = lab.popen("frontend", CODE, "-i", "2", "-e", lab.file.name)
        comes_back(live, number, times=2)
        sends_on(live, "fe02", "Trigger02")
        kill(live, "fe02")
        third_life.communicate()
        with again(live):
            comes_back(live, number, times=3)
            sends_on(live, "fe02", "Trigger02")
            document = live.stop()
    _, second, run = proven(lab, document)
    assert len(gaps(values_of(run, "CT02"), second["sent"])) == second["late"]
    assert sum("Rejoined run" in event.text for event in run.messages) == 3


def test_as_fast_as_it_can_nothing_that_was_sent_is_lost_or_doubled(lab: Lab) -> None:
    lab.write(STRAIGHT, "straight.py")
    lab.write(STRAIGHT_TOML)
    with lab.up() as live:
        number = int(live.start()["run"])
        live.until_events("Logger", 20_000)
        kill(live, "straight")
        with lab.component("frontend", "straight.py:Straight", "-e", lab.file.name):
            comes_back(live, number, "straight")
            sends_on(live, "straight", "Trigger", 20_000)
            document = live.stop()
    stream = document["account"]["streams"]["Trigger"]
    assert document["balanced"] is True
    assert stream["sent"] == stream["written"] == document["events"] > 40_000
    run = run_of(document["files"][0])
    assert run.serials == list(range(stream["sent"]))
    assert values_of(run, "CONT") == run.serials
    assert [event.text for event in run.messages] == [
        "[Trigger,INFO] Beginning run",
        "[Trigger,INFO] Rejoined run",
        "[Trigger,INFO] Counter restarted",
        "[Trigger,INFO] Ending run",
    ]


def test_at_full_speed_the_account_of_two_sources_adds_up(lab: Lab) -> None:
    code = "phloem.frontends.simulated:SimulatedPerEvent"
    lab.two_frontends(code, Rate_Hz=0.0, Payload_bytes=64)
    with lab.up() as live:
        number = int(live.start()["run"])
        live.until_events("EB", 20_000)
        kill(live, "simfe02")
        live.until_events("EB", live.count("EB") + 20_000)
        with again(live, code):
            comes_back(live, number, "simfe02")
            sends_on(live, "simfe02", "Trigger02", 20_000)
            document = live.stop()
    first, second, run = proven(lab, document)
    assert run.serials == list(range(max(first["sent"], second["sent"])))


def test_simulated_frontends_of_one_trigger_agree_again_after_a_rejoin(lab: Lab) -> None:
    lab.two_frontends(Rate_Hz=2000.0, Payload_bytes=64)
    with lab.up() as live:
        number = int(live.start()["run"])
        live.until_events("EB", 500)
        kill(live, "simfe02")
        with again(live, "phloem.frontends.simulated:Simulated"):
            comes_back(live, number, "simfe02")
            sends_on(live, "simfe02", "Trigger02", 1000)
            document = live.stop()
    first, second, run = proven(lab, document)
    assert run.serials == list(range(first["sent"]))
    assert first["sent"] == second["sent"] + second["missed"]
    assert {bank.name for bank in banks_of(run.events[-1])} == {"AD01", "AD02"}


def test_it_comes_back_in_ready_too(lab: Lab) -> None:
    lab.two_frontends(Send_in_READY=300, Rate_Hz=2000.0, Payload_bytes=64)
    with lab.up() as live:
        number = int(live.operator.prepare_run().result(DEADLINE_S)["run"])
        live.until_events("EB", 300)
        kill(live, "simfe02")
        with again(live, "phloem.frontends.simulated:Simulated"):
            comes_back(live, number, "simfe02")
            until(lambda: live.sent("simfe02", "Trigger02") == 600, "it is prepared once more")
            assert live.status()["state"] == "READY"
            live.operator.begin_run().result(DEADLINE_S)
            live.until_events("EB", 1000)
            document = live.stop()
    _, second, run = proven(lab, document)
    assert second["sent"] > 600
    assert sum("Rejoined run" in event.text for event in run.messages) == 1


def test_one_that_cannot_come_back_is_named_and_may_try_again(lab: Lab) -> None:
    counting(lab)
    broken = lab.write("", "broken")
    with lab.up() as live:
        number = int(live.start()["run"])
        live.until_events("EB", 1000)
        kill(live, "fe02")
        with again(live) as failing:
            refused = f"fe02 could not be taken back into run {number}: it says: rejoin() raised OSError: no crate"
            until(lambda: any(refused in line for line in live.messages()), "the refusal")
            live.until_events("EB", live.count("EB") + 1000)
            broken.unlink()
            failing.send_signal(signal.SIGTERM)
            assert failing.wait(DEADLINE_S) == 0
        with again(live):
            comes_back(live, number)
            sends_on(live, "fe02", "Trigger02")
            document = live.stop()
    _, second, run = proven(lab, document)
    assert len(gaps(values_of(run, "CT02"), second["sent"])) == second["late"]


def test_a_run_ends_well_with_one_that_could_not_come_back(lab: Lab) -> None:
    counting(lab)
    lab.write("", "broken")
    with lab.up() as live:
        live.start()
        live.until_events("EB", 1000)
        kill(live, "fe02")
        with again(live):
            until(lambda: any("could not be taken back" in line for line in live.messages()), "the refusal")
            document = live.stop()
    _, second, run = proven(lab, document)
    assert values_of(run, "CT02") == list(range(second["sent"]))


def test_no_second_process_takes_the_place_of_a_living_one(lab: Lab) -> None:
    counting(lab)
    with lab.up() as live:
        live.start()
        live.until_events("EB", 1000)
        ran = lab.run("frontend", CODE, "-i", "2", "-e", lab.file.name)
        assert ran.status == 1
        assert f"the name 'fe02' is taken by pid {live.part('fe02')['pid']}" in ran.err
        live.until_events("EB", live.count("EB") + 1000)
        document = live.stop()
    _, second, run = proven(lab, document)
    assert second["late"] == 0
    assert not any("Rejoined run" in event.text for event in run.messages)

"""A frontend that is killed in mid-run: the run goes on, and the account says what is known.

What it had sent before it died is built and counted from its own ring: ``sent`` is exact, nothing is lost. The events
after that hold the other frontends' fragments only and count there as incomplete. The document is balanced; the death
is under ``problems``. (MIDAS stops building, and discards what the others send; reference, section 6.)
"""

from __future__ import annotations

import os
import signal

from tests.flow.lab import Lab, Live, until
from tests.flow.reader import banks_of, run_of


def kill(live: Live, name: str) -> None:
    os.kill(live.part(name)["pid"], signal.SIGKILL)
    until(lambda: live.part(name)["health"] == "gone", f"{name} is seen to be gone")


def test_the_run_goes_on_without_a_frontend_that_was_killed_and_the_account_is_honest(lab: Lab) -> None:
    lab.two_frontends(Rate_Hz=1000.0, Payload_bytes=64)
    with lab.up() as live:
        live.start()
        live.until_events("EB", 300)
        kill(live, "simfe02")
        live.until_events("EB", live.count("EB") + 300)
        document = live.stop()
        assert any("simfe02" in problem for problem in document["problems"])
        second = live.operator.start_run().result(20.0)
        assert second["sources"] == {"EB": ["Trigger01"]}, "the next run does without it"
        assert any("Trigger02" in note for note in second["notes"])
        live.until_events("EB", 100)
        after = live.stop()
    first, dead = document["account"]["sources"]["Trigger01"], document["account"]["sources"]["Trigger02"]
    assert dead["sent"] == dead["built"] >= 300
    assert first["sent"] == first["built"] + first["incomplete"]
    assert first["incomplete"] == first["sent"] - dead["sent"] >= 300
    assert (first["lost"], dead["lost"], document["balanced"]) == (0, 0, True)
    run = run_of(document["files"][0])
    assert run.serials == list(range(first["sent"]))
    for event in run.events:
        names = [bank.name for bank in banks_of(event)]
        assert "AD01" in names
        assert ("AD02" in names) == (event.serial_number < dead["sent"])
    assert after["balanced"] is True
    assert after["account"]["sources"].keys() == {"Trigger01"}

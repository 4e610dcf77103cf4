"""A readout program with a loop of its own hands its data to a run: the example as it stands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.flow.lab import Lab, until
from tests.flow.reader import banks_of, run_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "producer"


def test_what_the_example_program_produces_is_in_the_file_and_it_may_leave_in_mid_run(lab: Lab) -> None:
    shutil.copy(EXAMPLE / "readout.py", lab.folder / "readout.py")
    shutil.copy(EXAMPLE / "experiment.toml", lab.folder / "experiment.toml")
    shutil.copy(EXAMPLE / "experiment.toml", lab.file)
    with lab.up() as live:
        program = subprocess.Popen(
            [sys.executable, "readout.py"], cwd=lab.folder, env=lab.environment, stdin=subprocess.DEVNULL
        )
        try:
            until(lambda: any(part["name"] == "scope" for part in live.status()["components"]), "the program is here")
            live.start()
            assert program.wait(timeout=30) == 0
            document = live.stop()
        finally:
            program.kill()
            program.wait()
    assert document["balanced"] is True
    stream = document["account"]["streams"]["Scope"]
    assert (stream["sent"], stream["written"]) == (1000, 1000)
    events = run_of(document["files"][0]).events
    assert [event.serial_number for event in events] == list(range(1000))
    assert all(
        [(bank.name, bank.tid, len(bank.data)) for bank in banks_of(event)] == [("ADC0", 4, 128)] for event in events
    )

"""A run in which timing decided, and its fragments built again: with the marks the same bytes, else not."""

from __future__ import annotations

from pathlib import Path

from tests.cli.recorded import fragments, record
from tests.flow.lab import Lab, until
from tests.flow.reader import run_of

from phloem.formats.midas.index import read_index

EVENTS = 12
RUN = """
[experiment]
name = "lab"

[logger]

[builder.EB]
buffer = "BUF"
event_id = 3

[builder.EB.settings]
"Timeout ms" = 20

[[frontend]]
code = "phloem.frontends.replay:Replay"
index = 1
settings = {{ "File" = "{0}" }}

[[frontend]]
code = "phloem.frontends.replay:Replay"
index = 2
settings = {{ "File" = "{1}", "Rate Hz" = 5.0 }}
"""


def test_a_run_with_a_slow_source_is_built_again_byte_for_byte_with_its_marks(lab: Lab) -> None:
    files = [
        record(lab.folder / f"Trigger0{n}.mid", fragments(range(EVENTS), 100 * n), run=1, odb="{}") for n in (1, 2)
    ]
    lab.write(RUN.format(*files))
    with lab.up() as live:
        live.start()
        until(lambda: live.part("EB")["sources"].get("Trigger02", {}).get("received", 0) >= EVENTS, "all at EB")
        document = live.stop()
    assert document["balanced"] is True
    run = Path(document["files"][0])
    index = run.with_suffix(".idx")
    assert {mark.source for mark in read_index(index).marks} == {"Trigger02"}, "the slow one was not waited for"

    plain = ["build", *map(str, files), "--settings", "lab.toml"]
    without = lab.ask(*plain, "-o", "without.mid")
    again = lab.ask(*plain, "-o", "again.mid", "--marks", str(index))
    assert run_of(lab.folder / "again.mid").events == run_of(run).events
    fates = {name: {k: v for k, v in part.items() if k != "lost"} for name, part in again["account"]["sources"].items()}
    live_fates = document["account"]["sources"]
    assert fates == {name: {k: live_fates[name][k] for k in part} for name, part in fates.items()}
    assert fates["Trigger02"]["late"] > 0
    assert without["account"]["sources"]["Trigger02"]["built"] == EVENTS
    assert all(len(event.data) == 8 + 2 * 24 for event in run_of(lab.folder / "without.mid").events)

"""What is taken out on the way is missed in the account, by name: a check that cannot fail proves nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.flow.lab import Lab, Live, until
from tests.flow.reader import banks_of, run_of
from tests.flow.rings import ring_of

SENT = 100
KEYS = ("sent", "written", "lost")

COMMANDED = """
import numpy as np
from phloem import EQ_EB, EQ_POLLED, Equipment, Frontend

class Commanded(Frontend):
    name = "fe"
    equipment = [Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB)]
    default_settings = {"Send": 0}

    def settings_changed(self, key, value):
        for _ in range(value):
            self.send({f"AD{self.index:02d}": np.arange(10, dtype="u2")})
"""


@pytest.fixture(scope="module")
def live(shared_lab: Lab) -> Iterator[Live]:
    shared_lab.write(COMMANDED, "commanded.py")
    shared_lab.two_frontends("commanded.py:Commanded")
    with shared_lab.up() as live:
        yield live


@contextmanager
def held(live: Live, name: str) -> Iterator[None]:
    """A component stands still while the block lasts, and is seen to be well again after it."""
    pid = live.part(name)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: live.part(name)["health"] == "ok", f"{name} is well again")


def send(live: Live, index: int, number: int = SENT) -> None:
    """Let a frontend send so many fragments, and wait until all are committed to its ring."""
    ring = live.lab.ring(f"BUF{index:02d}.Trigger{index:02d}")
    with ring_of(ring) as open_ring:
        before = open_ring.sent
        live.set(f"/Equipment/Trigger{index:02d}/Settings/Send", number)
        until(lambda: open_ring.sent == before + number, f"{number} fragments in {ring.name}")
    live.set(f"/Equipment/Trigger{index:02d}/Settings/Send", 0)


def test_a_run_from_which_nothing_is_taken_is_balanced(live: Live) -> None:
    live.start()
    send(live, 1)
    send(live, 2)
    document = live.stop()
    assert document["balanced"] is True
    assert document["losses"] == []
    assert run_of(document["files"][0]).serials == list(range(SENT))


def test_a_fragment_taken_between_ring_and_builder_is_lost_by_name(live: Live) -> None:
    live.start()
    with held(live, "EB"):
        send(live, 1)
        send(live, 2)
        with ring_of(live.lab.ring("BUF02.Trigger02")) as ring:
            assert ring.take_last_event() == SENT - 1
    document = live.stop()
    sources = document["account"]["sources"]
    assert document["balanced"] is False
    fates = {name: [part[key] for key in ("sent", "built", "incomplete", "lost")] for name, part in sources.items()}
    assert fates == {"Trigger01": [100, 99, 1, 0], "Trigger02": [100, 99, 0, 1]}
    assert len(document["losses"]) == 1
    assert "Trigger02" in document["losses"][0]
    run = run_of(document["files"][0])
    assert run.serials == list(range(SENT)), "the event without the stolen fragment is written, as it is"
    assert banks_of(run.events[-1])[0].name == "AD01"
    assert live.lab.run("verify", document["files"][0]).status == 0, "the file itself is whole"
    assert live.status()["state"] == "STOP"


def test_a_built_event_taken_between_ring_and_logger_is_lost_by_name(live: Live) -> None:
    live.start()
    with held(live, "Logger"):
        send(live, 1)
        send(live, 2)
        with ring_of(live.lab.ring("SYSTEM.EB")) as ring:
            until(lambda: ring.sent == SENT, "all events built")
            assert ring.take_last_event() == SENT - 1
    document = live.stop()
    stream = document["account"]["streams"]["EB"]
    assert document["balanced"] is False
    assert (stream["sent"], stream["written"], stream["lost"]) == (100, 99, 1)
    assert any("EB" in loss for loss in document["losses"])
    assert run_of(document["files"][0]).serials == list(range(SENT - 1))


def test_a_fragment_taken_between_ring_and_recorded_file_is_lost_by_name(live: Live) -> None:
    """The builder reads the same ring, and has the fragment already."""
    live.set("/Logger/Record fragments", True)
    live.start()
    with held(live, "Logger"):
        send(live, 1)
        send(live, 2)
        with ring_of(live.lab.ring("SYSTEM.EB")) as built:
            until(lambda: built.sent == SENT, "all events built")
        with ring_of(live.lab.ring("BUF02.Trigger02")) as ring:
            assert ring.take_last_event() == SENT - 1
    document = live.stop()
    live.set("/Logger/Record fragments", False)
    streams = {name: [part[key] for key in KEYS] for name, part in document["account"]["streams"].items()}
    assert streams == {"EB": [100, 100, 0], "Trigger01/fragments": [100, 100, 0], "Trigger02/fragments": [100, 99, 1]}
    assert (document["balanced"], document["losses"]) == (False, ["Trigger02/fragments: lost 1 of 100 sent"])
    assert run_of(document["files"][2]).serials == list(range(SENT - 1))


def test_after_a_loss_the_next_run_is_balanced_again(live: Live) -> None:
    live.start()
    send(live, 1)
    send(live, 2)
    assert live.stop()["balanced"] is True

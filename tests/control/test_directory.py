"""Who is here, and how they are; the time is passed in."""

from __future__ import annotations

import pytest

from phloem.control.directory import Directory, Health
from phloem.model.errors import SettingsError
from phloem.model.event import EQ_EB, EQ_POLLED, Equipment, EquipmentType
from phloem.protocol.control import Heartbeat, Register
from phloem.protocol.state import State


def register(name: str = "ebfe01", incarnation: str = "a", **fields: object) -> Register:
    given = {
        "version": 1,
        "name": name,
        "kind": "frontend",
        "pid": 17,
        "host": "daq",
        "incarnation": incarnation,
        "sequence": {},
        "equipment": (Equipment(f"Eq-{name}", buffer="BUF01", type=EQ_POLLED | EQ_EB),),
        **fields,
    }
    return Register(**given)  # type: ignore[arg-type]


def beat(turned_ago_s: float = 0.0, busy: bool = False) -> Heartbeat:
    return Heartbeat(turned_ago_s, State.STOP, None, busy)


def test_a_living_name_is_refused_to_a_second_process() -> None:
    directory = Directory()
    directory.join(b"1", register(), 0.0)
    with pytest.raises(SettingsError, match="the name 'EBFE01' is taken by pid 17 on daq"):
        directory.join(b"2", register("EBFE01", "b"), 0.9)
    assert directory.heard(b"1", beat(), 0.95)
    with pytest.raises(SettingsError, match="is taken"):
        directory.join(b"2", register(incarnation="b"), 1.9)


def test_a_name_is_free_once_its_process_is_gone_or_said_goodbye() -> None:
    directory = Directory()
    directory.join(b"1", register(), 0.0)
    assert directory.join(b"2", register(incarnation="b"), 1.01).identity == b"2"
    directory.leave(b"2", "end of shift")
    assert directory.join(b"3", register(incarnation="c"), 1.02).identity == b"3"
    assert [member.identity for member in directory.members()] == [b"3"]


def test_the_same_process_may_register_again() -> None:
    directory = Directory()
    directory.join(b"1", register(), 0.0)
    assert directory.join(b"9", register(), 0.1).identity == b"9"


def test_an_equipment_belongs_to_one_living_component() -> None:
    directory = Directory()
    directory.join(b"1", register(), 0.0)
    twin = register("other", "b", equipment=(Equipment("EQ-EBFE01"),))
    with pytest.raises(SettingsError, match="equipment 'EQ-EBFE01' of other belongs to ebfe01"):
        directory.join(b"2", twin, 0.5)
    assert directory.join(b"2", twin, 1.5).name == "other"


def test_health_goes_from_ok_to_gone_with_the_heartbeats() -> None:
    directory = Directory()
    member = directory.join(b"1", register(), 0.0)
    directory.heard(b"1", beat(), 0.3)
    assert member.health(1.2, 1.0) == (Health.OK, "")
    assert member.health(1.31, 1.0) == (Health.GONE, "no heartbeat for 1.0 s")
    assert directory.living(1.31) == []
    directory.heard(b"1", beat(), 1.4)
    assert member.health(1.5, 1.0) == (Health.OK, "")


def test_a_pause_of_run_control_itself_makes_nobody_gone() -> None:
    directory = Directory()
    member = directory.join(b"1", register(), 0.0)
    directory.turned(0.1)
    directory.turned(0.2)
    directory.turned(7.2)
    assert not member.gone(7.3)
    for tenth in range(73, 90):
        directory.turned(tenth / 10)
    assert member.gone(8.9)


def test_a_loop_that_does_not_turn_is_a_warning_unless_a_handler_is_busy() -> None:
    directory = Directory()
    member = directory.join(b"1", register(), 0.0)
    directory.heard(b"1", beat(2.5), 0.1)
    assert member.health(0.2, 1.0) == (
        Health.WARNING,
        "hung: its main loop last turned 2.5 s ago (limit 1 s)",
    )
    assert member.health(0.2, 3.0) == (Health.OK, "")
    directory.heard(b"1", beat(2.5, busy=True), 0.1)
    assert member.health(0.2, 1.0) == (Health.OK, "")


def test_a_refused_transition_is_an_error_until_the_process_is_another() -> None:
    directory = Directory()
    directory.join(b"1", register(), 0.0).fault = "PREPARE of run 1: no crate"
    assert directory.join(b"1", register(), 0.1).health(0.1, 1.0) == (Health.ERROR, "PREPARE of run 1: no crate")
    directory.leave(b"1", "")
    assert directory.join(b"1", register(incarnation="b"), 0.2).health(0.2, 1.0) == (Health.OK, "")


def test_who_said_goodbye_is_forgotten_and_who_vanished_is_not() -> None:
    directory = Directory()
    directory.join(b"1", register(), 0.0)
    left = directory.join(b"2", register("b"), 0.0)
    directory.leave(b"2", "asked to")
    assert left.health(0.0, 1.0) == (Health.GONE, "ended: asked to")
    directory.forget_left()
    assert [member.name for member in directory.members()] == ["ebfe01"]


def test_the_owner_of_an_equipment_is_the_living_one() -> None:
    directory = Directory()
    directory.join(b"1", register(), 0.0)
    owner = directory.owner("eq-EBFE01", 0.5)
    assert owner is not None
    assert owner.name == "ebfe01"
    assert directory.owner("eq-ebfe01", 5.0) is None


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"version": 2}, "speaks version 2 of the control protocol, run control 1"),
        ({"name": "a/b"}, "component name 'a/b' must have"),
        ({"name": ""}, "component name '' must have"),
        ({"kind": "toaster"}, "unknown kind 'toaster'; known are frontend, builder, logger, monitor"),
        ({"kind": "builder", "equipment": ()}, "declares 0 equipments; it has exactly one"),
        ({"equipment": (Equipment("A"), Equipment("a"))}, "declares the same equipment twice"),
        ({"equipment": (Equipment("A", type=EquipmentType.INTERRUPT),)}, "EQ_INTERRUPT, which is not supported"),
        ({"kind": "monitor", "equipment": (Equipment("A/B"),)}, "equipment name 'A/B' must have"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, object], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        Directory().join(b"1", register(**{"name": "x", **fields}), 0.0)  # type: ignore[arg-type]

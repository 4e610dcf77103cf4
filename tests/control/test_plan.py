"""Who sends what to whom, and every way in which that is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from phloem.control.plan import Planned, Wishes, capacity_bytes, ring_path, work_out
from phloem.model.errors import SettingsError, TransitionError
from phloem.model.event import EQ_EB, EQ_PERIODIC, EQ_POLLED, Equipment
from phloem.protocol.control import Register

RUNTIME = Path("/run/exp")


def component(name: str, kind: str, *equipment: Equipment, reads: str = "") -> Register:
    return Register(1, name, kind, 1, "daq", name, {}, equipment, reads)


def trigger(n: int, **fields: object) -> Equipment:
    given = {"name": f"Trigger{n:02d}", "buffer": f"BUF{n:02d}", "type": EQ_POLLED | EQ_EB, **fields}
    return Equipment(**given)  # type: ignore[arg-type]


def frontend(n: int, **fields: object) -> Register:
    return component(f"ebfe{n:02d}", "frontend", trigger(n, readout=f"read{n}", **fields))


LOGGER = component("logger", "logger", reads="SYSTEM")
EB = Equipment("EB", buffer="SYSTEM", type=0)
BUILDER = component("mevb", "builder", EB, reads="BUF")


def wishes(*components: Register, **fields: object) -> Wishes:
    """The ODB has what the components declare, unless ``fields`` say otherwise."""
    equipment = {e.name: e for c in components for e in c.equipment}
    given = {"equipment": equipment, "frontends": {}, "components": list(components), **fields}
    return Wishes(**given)  # type: ignore[arg-type]


def plan(*components: Register, **fields: object) -> Planned:
    return work_out(wishes(*components, **fields), RUNTIME, "{}", "/data/run00001.mid")


def test_sources_go_to_the_builder_and_the_builder_to_the_logger() -> None:
    planned = plan(frontend(2), BUILDER, LOGGER, frontend(1), settings={"EB": {"Policy": "build"}})
    assert planned.sources == {"mevb": ["Trigger01", "Trigger02"]}
    assert planned.streams == ["EB"]
    assert planned.notes == []
    (own,) = planned.plans["ebfe01"].outputs
    assert (own.source, own.buffer, own.ring) == ("Trigger01", "BUF01", "/run/exp/BUF01.Trigger01.ring")
    assert (own.capacity_bytes, own.readers) == (4 << 20, ("mevb",))
    assert own.equipment.readout == "read1"
    builder = planned.plans["mevb"]
    assert [stream.source for stream in builder.inputs] == ["Trigger01", "Trigger02"]
    assert [(s.source, s.ring, s.readers) for s in builder.outputs] == [("EB", "/run/exp/SYSTEM.EB.ring", ("logger",))]
    assert builder.settings == {
        "Policy": "build",
        "Fragment Names": ["Trigger01", "Trigger02"],
        "Fragment Required": [True, True],
        "Fragments": {"Trigger01": {}, "Trigger02": {}},
    }
    assert (builder.odb_json, builder.file) == ("", "")
    logger = planned.plans["logger"]
    assert [stream.source for stream in logger.inputs] == ["EB"]
    assert (logger.odb_json, logger.file, logger.outputs) == ("{}", "/data/run00001.mid", ())


def test_all_may_share_one_buffer_told_apart_by_equipment() -> None:
    planned = plan(frontend(1, buffer="BUFFER"), frontend(2, buffer="BUFFER"), BUILDER, LOGGER)
    rings = [stream.ring for stream in planned.plans["mevb"].inputs]
    assert rings == ["/run/exp/BUFFER.Trigger01.ring", "/run/exp/BUFFER.Trigger02.ring"]


def test_what_the_odb_says_goes_before_what_the_code_declares() -> None:
    moved = trigger(1, buffer="BUF77", period=7)
    planned = plan(frontend(1), BUILDER, LOGGER, equipment={"TRIGGER01": moved, "EB": EB})
    (own,) = planned.plans["ebfe01"].outputs
    assert (own.source, own.buffer, own.equipment.period, own.equipment.readout) == (
        "Trigger01",
        "BUF77",
        7,
        "read1",
    )


def test_equipment_without_the_flag_goes_straight_to_the_logger() -> None:
    slow = component("slow", "frontend", Equipment("Slow", type=EQ_PERIODIC))
    planned = plan(frontend(1), slow, BUILDER, LOGGER)
    assert planned.streams == ["EB", "Slow"]
    assert planned.plans["slow"].outputs[0].readers == ("logger",)
    assert planned.sources == {"mevb": ["Trigger01"]}


def test_without_any_builder_marked_equipment_goes_straight_too() -> None:
    planned = plan(frontend(1, buffer="SYSTEM"), LOGGER)
    assert planned.streams == ["Trigger01"]
    assert planned.plans["logger"].inputs[0].equipment.type == 130


ROWS = [
    ("Trigger01", "ebfe01", "BUF01", 1, 1, "MIDAS", True),
    ("Trigger02", "ebfe02", "BUF02", 7, 3, "MIDAS", False),
]


def test_the_fragments_of_each_builder_are_listed_with_what_people_want_to_know() -> None:
    settings = {"EB": {"Fragment Names": ["Trigger02"], "Fragment Required": [False]}}
    first, second = frontend(1, trigger_mask=1), frontend(2, event_id=7, trigger_mask=3)
    planned = plan(second, first, BUILDER, LOGGER, settings=settings)
    keys = ("source", "frontend", "buffer", "event_id", "trigger_mask", "format", "required")
    assert [dict(zip(keys, row, strict=True)) for row in ROWS] == msgspec.to_builtins(planned.fragments["mevb"])


def test_each_builder_has_the_sources_of_its_prefix() -> None:
    wave = Equipment("Wave01", buffer="WAVE01", type=EQ_POLLED | EQ_EB)
    eb2 = component("eb2", "builder", msgspec.structs.replace(EB, name="EB2"), reads="WAVE")
    settings = {"EB": {"Reorder": 1}, "EB2": {"Reorder": 2}}
    planned = plan(frontend(1), component("wave", "frontend", wave), BUILDER, eb2, LOGGER, settings=settings)
    assert planned.sources == {"mevb": ["Trigger01"], "eb2": ["Wave01"]}
    assert planned.streams == ["EB", "EB2"]
    assert [planned.plans[name].settings["Reorder"] for name in ("mevb", "eb2")] == [1, 2]
    assert planned.plans["eb2"].settings["Fragment Names"] == ["Wave01"]


def test_disabled_equipment_has_no_stream() -> None:
    planned = plan(frontend(1), frontend(2, enabled=False), BUILDER, LOGGER)
    assert planned.plans["ebfe02"].outputs == ()
    assert planned.sources == {"mevb": ["Trigger01"]}
    assert planned.notes == []


def test_enabled_equipment_whose_frontend_is_not_there_is_said() -> None:
    tree = {"Trigger01": trigger(1), "Trigger09": trigger(9), "Off": trigger(3, enabled=False), "EB": EB, "EB2": EB}
    owners = {"Trigger09": "ebfe09", "EB2": "mevb2"}
    planned = plan(frontend(1), BUILDER, LOGGER, equipment=tree, frontends=owners)
    assert planned.sources == {"mevb": ["Trigger01"]}
    assert planned.notes == [
        "equipment Trigger09 is enabled, but its frontend ebfe09 is not running: it is no source of this run",
        "equipment EB2 is enabled, but its builder mevb2 is not running: it builds nothing in this run",
    ]


def test_a_frontend_reads_its_equipment_in_the_order_in_which_it_declares_it() -> None:
    declared = [Equipment(name, buffer="BUF", type=EQ_POLLED | EQ_EB) for name in ("Tdc", "Adc", "Scaler")]
    planned = plan(component("crate", "frontend", *declared), BUILDER, LOGGER)
    assert [stream.source for stream in planned.plans["crate"].outputs] == ["Tdc", "Adc", "Scaler"]
    assert [stream.source for stream in planned.plans["mevb"].inputs] == ["Adc", "Scaler", "Tdc"]


def test_of_several_mistakes_the_same_one_is_said_whoever_came_first() -> None:
    eb2 = component("eb2", "builder", msgspec.structs.replace(EB, name="EB2"), reads="BUF0")
    for components in ([frontend(1), frontend(2)], [frontend(2), frontend(1)]):
        with pytest.raises(TransitionError, match="Trigger01 sends to buffer BUF01"):
            plan(*components, BUILDER, eb2, LOGGER)


def test_a_monitor_watches_without_holding_anybody_up() -> None:
    planned = plan(frontend(1), BUILDER, LOGGER, component("monitor", "monitor", reads="SYSTEM"))
    (watched,) = planned.plans["monitor"].inputs
    assert (watched.source, watched.readers) == ("EB", ("logger",))
    assert planned.streams == ["EB"]


RECORDING = {"logger_settings": {"Record fragments": True}}


def test_recorded_fragments_have_the_logger_as_a_reader_beside_the_builder() -> None:
    slow = component("slow", "frontend", Equipment("Slow", type=EQ_PERIODIC))
    planned = plan(frontend(2), frontend(1), slow, BUILDER, LOGGER, **RECORDING)
    logger = planned.plans["logger"]
    assert [stream.source for stream in logger.inputs] == ["EB", "Slow"], "as without it"
    assert [(stream.source, stream.ring, stream.readers) for stream in logger.recorded] == [
        ("Trigger01", "/run/exp/BUF01.Trigger01.ring", ("mevb", "logger")),
        ("Trigger02", "/run/exp/BUF02.Trigger02.ring", ("mevb", "logger")),
    ]
    assert planned.plans["ebfe01"].outputs == logger.recorded[:1]
    assert planned.plans["mevb"].inputs == logger.recorded
    assert planned.plans["slow"].outputs[0].readers == planned.plans["mevb"].outputs[0].readers == ("logger",)
    assert planned.streams == ["EB", "Slow", "Trigger01/fragments", "Trigger02/fragments"]


def test_each_logger_records_what_it_has_the_built_events_of() -> None:
    wave = Equipment("Wave01", buffer="WAVE01", type=EQ_POLLED | EQ_EB)
    eb2 = component("eb2", "builder", msgspec.structs.replace(EB, name="EB2", buffer="FAST"), reads="WAVE")
    fast = component("fast", "logger", reads="FAST")
    planned = plan(frontend(1), component("wave", "frontend", wave), BUILDER, eb2, LOGGER, fast, **RECORDING)
    recorded = {name: [stream.source for stream in planned.plans[name].recorded] for name in ("logger", "fast")}
    assert recorded == {"logger": ["Trigger01"], "fast": ["Wave01"]}


@pytest.mark.parametrize(("wanted", "file"), [(False, "/data/run00001.mid"), (True, "")])
def test_nothing_is_recorded_unless_it_is_wanted_and_data_are_written(wanted: bool, file: str) -> None:
    asked = wishes(frontend(1), BUILDER, LOGGER, logger_settings={"Record fragments": wanted})
    planned = work_out(asked, RUNTIME, "{}", file)
    assert planned.plans["logger"].recorded == ()
    assert planned.plans["ebfe01"].outputs[0].readers == ("mevb",)
    assert planned.streams == ["EB"]


REFUSALS = [
    ([frontend(1), LOGGER], {"required": ["ebfe02"]}, "PREPARE needs ebfe02, which /Programs/ebfe02/Required"),
    (
        [
            frontend(1),
            BUILDER,
            component("eb2", "builder", msgspec.structs.replace(EB, name="EB2"), reads="BUF0"),
            LOGGER,
        ],
        {},
        r"Trigger01 sends to buffer BUF01 .* which mevb \(-b BUF\) and eb2 \(-b BUF0\) both claim",
    ),
    (
        [frontend(1, buffer="OTHER"), frontend(2), BUILDER, LOGGER],
        {},
        r"Trigger01 sends to buffer OTHER .* no builder reads it \(mevb reads -b BUF\)",
    ),
    (
        [frontend(1, buffer="SYSTEM"), frontend(2), BUILDER, LOGGER],
        {},
        r"Trigger01 sends to buffer SYSTEM .* no builder reads it",
    ),
    (
        [frontend(1, format="FIXED"), BUILDER, LOGGER],
        {},
        "Trigger01 has format FIXED, but its builder mevb builds MIDAS",
    ),
    ([frontend(1), LOGGER], {}, r"Trigger01 sends to buffer BUF01, which nobody reads \(logger reads SYSTEM\)"),
    ([frontend(1), BUILDER], {}, r"EB sends to buffer SYSTEM, which nobody reads \(there is no logger\)"),
    (
        [frontend(1, buffer="SYSTEM"), LOGGER, component("log2", "logger", reads="SYSTEM")],
        {},
        "buffer SYSTEM, which logger and log2 both read",
    ),
    ([BUILDER, LOGGER], {}, r"builder mevb \(-b BUF\) has no source"),
    (
        [frontend(1), BUILDER, LOGGER],
        {"equipment": {"EB": msgspec.structs.replace(EB, enabled=False), "Trigger01": trigger(1)}},
        "builder mevb is running, but its equipment EB is not enabled",
    ),
]


@pytest.mark.parametrize(("components", "fields", "text"), REFUSALS)
def test_what_cannot_work_is_refused_by_name(components: list[Register], fields: dict[str, object], text: str) -> None:
    with pytest.raises(TransitionError, match=text):
        plan(*components, **fields)


def test_the_type_of_eb_equipment_in_an_old_midas_is_not_built_and_refused_by_name() -> None:
    tree = {"Trigger01": trigger(1, type=66), "EB": EB}  # 64 was EB there, and is FRAGMENTED now
    with pytest.raises(TransitionError, match="equipment Trigger01 sends to buffer BUF01, which nobody reads"):
        plan(frontend(1), BUILDER, LOGGER, equipment=tree)


def test_rings_have_safe_names_and_sizes() -> None:
    assert ring_path(RUNTIME, "BUF 1", "a.b%") == RUNTIME / "BUF%201.a%2Eb%25.ring"
    assert ring_path(RUNTIME, "A", "B.C") != ring_path(RUNTIME, "A.B", "C")
    assert capacity_bytes("BUF01", {}) == 4_194_304
    assert capacity_bytes("buf01", {"BUF01": 1_000_000}) == 1_048_576
    assert capacity_bytes("BUF01", {"BUF01": 262_144}) == 262_144
    with pytest.raises(SettingsError, match=r"'/Experiment/Buffer sizes/BUF01' is 100; .* at least 262144 bytes"):
        capacity_bytes("BUF01", {"BUF01": 100})

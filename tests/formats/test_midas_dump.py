"""ODB dumps that odbedit and MIDAS' logger wrote, and dumps that are damaged or hostile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.formats.run_files import GOLDEN

from phloem.formats.midas.dump import parse_dump, read_dump
from phloem.formats.midas.file import read_events
from phloem.model.errors import FormatError
from phloem.model.event import TID

EQUIPMENT = {
    "Event ID": (1, TID.UINT16),
    "Trigger mask": (0, TID.UINT16),
    "Buffer": ("BUF01", TID.STRING),
    "Type": (130, TID.INT32),
    "Source": (16777215, TID.INT32),
    "Format": ("MIDAS", TID.STRING),
    "Enabled": (True, TID.BOOL),
    "Read on": (1, TID.INT32),
    "Period": (100, TID.INT32),
    "Event limit": (0.0, TID.FLOAT64),
    "Num subevents": (0, TID.UINT32),
    "Frontend name": ("fe01", TID.STRING),
    "Hidden": (False, TID.BOOL),
}


@pytest.mark.parametrize("suffix", ["xml", "json"])
def test_an_equipment_has_the_same_values_and_types_in_xml_and_json(suffix: str) -> None:
    dump = read_dump((GOLDEN / f"equipment_2fe_EB.{suffix}").read_bytes())
    assert dump.root == "/Equipment"
    common = dump.values["Trigger01"]["Common"]
    for name, (value, tid) in EQUIPMENT.items():
        assert common[name] == value
        assert type(common[name]) is type(value)
        assert dump.types[f"Trigger01/Common/{name}"] is tid
    assert dump.values["Trigger01"]["Variables"] == {}
    assert dump.values["EB"]["Settings"]["Fragment Required"] == [True, True]
    assert dump.types["EB/Settings/Fragment Required"] is TID.BOOL


def leaves(tree: dict[str, Any], place: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{place}/{name}") if isinstance(value, dict) else {f"{place}/{name}": value}
    return found


def test_a_whole_odb_is_the_same_in_xml_and_json() -> None:
    xml, json = (read_dump((GOLDEN / f"fullodb.{suffix}").read_bytes()) for suffix in ("xml", "json"))
    assert (xml.root, json.root) == ("/", "/")
    for tree in (xml, json):
        tree.values["System"].pop("Clients")  # the two dumps were made by two odbedit processes
    assert leaves(xml.values).keys() == leaves(json.values).keys()
    differing = {place for place, value in leaves(xml.values).items() if leaves(json.values)[place] != value}
    assert all(isinstance(leaves(xml.values)[place], float) for place in differing)
    assert xml.values["Logger"]["Runlog"]["ASCII"]["Links BOR"]["Run number"] == "/Runinfo/Run number"
    assert xml.types["Logger/Runlog/ASCII/Links BOR/Run number"] is TID.LINK
    assert xml.values["Experiment"]["Security"]["RPC hosts"]["Allowed hosts"] == ["localhost"] + 9 * [""]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.mid")), ids=lambda path: path.name)
def test_the_dumps_in_run_borders_tell_run_number_and_state(path: Any) -> None:
    events = [event for _, event in read_events(path)]
    begin, end = parse_dump(events[0].raw), parse_dump(events[-1].raw)
    assert begin["Runinfo"]["Run number"] == end["Runinfo"]["Run number"] == events[0].serial_number
    assert len(begin["Equipment"]) >= 2


def test_names_of_types_of_both_generations_are_read() -> None:
    texts = (("a", "WORD", "7"), ("b", "UINT16", "0x10"), ("c", "FLOAT", "nan"))
    keys = "".join(f'<key name="{name}" type="{kind}">{text}</key>' for name, kind, text in texts)
    dump = read_dump(f'<odb root="/">{keys}</odb>'.encode())
    assert (dump.values["a"], dump.values["b"]) == (7, 16)
    assert dump.types == {"a": TID.UINT16, "b": TID.UINT16, "c": TID.FLOAT32}


def test_json_without_descriptions_keeps_its_values() -> None:
    dump = read_dump(b'{"Runinfo": {"Run number": 7, "x": [1.5, "NaN"]}}')
    assert dump.values == {"Runinfo": {"Run number": 7, "x": [1.5, "NaN"]}}
    assert dump.types == {}


def test_latin_1_is_understood_in_both_forms() -> None:
    xml = '<?xml version="1.0" encoding="ISO-8859-1"?><odb><key name="a" type="STRING">µm</key></odb>'
    assert parse_dump(xml.encode("latin-1")) == {"a": "µm"}
    assert parse_dump('{"a": "µm"}'.encode("latin-1")) == {"a": "µm"}


DEEP = b'<odb root="/">' + 70 * b'<dir name="a">' + 70 * b"</dir>" + b"</odb>"
ENTITY = b'<!DOCTYPE odb [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]><odb root="/"/>'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\0\0", "it is empty"),
        (b"[/Runinfo]\nState = INT : 1\n", "save as .xml or .json"),
        (b"hello", "begins with b'hello'"),
        (b"<odb>\0</odb>", "a NUL inside"),
        (b"<odb><dir>", "no element found"),
        (b"<html/>", "the outermost element is <html>"),
        (b"<odb><dir/></odb>", "without a name"),
        (b'<odb><what name="a"/></odb>', "unknown element <what>"),
        (b'<odb><key name="a" type="WHAT">1</key></odb>', "type 'WHAT' at /a"),
        (b'<odb><key name="a" type="INT">one</key></odb>', "'one' at /a is not a INT"),
        (b'<odb><key name="a" type="BOOL">maybe</key></odb>', "'maybe' at /a is not a BOOL"),
        (b'{"a/key": {"type": 7}, "a": "one"}', "'one' at /a is not a INT"),
        (b'{"a/key": {"type": 7}, "a": null}', "None at /a is not a INT"),
        (b'{"a": ', "truncated"),
        (b"{" + 70 * b'"a": {' + 71 * b"}", "nested deeper than 64"),
        (5000 * b'{"a": ' + 5000 * b"}", "not a whole ODB dump"),
        (DEEP, "nested deeper than 64"),
        (ENTITY, "entities can explode"),
    ],
)
def test_what_is_no_dump_is_named_and_never_crashes(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        parse_dump(data, "run.mid", 16)
    assert caught.value.path == "run.mid"


@settings(max_examples=200)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.sampled_from(["xml", "json"]))
def test_damaged_dumps_give_a_dump_or_a_format_error(place: int, new: bytes, suffix: str) -> None:
    data = bytearray((GOLDEN / f"equipment_2fe_EB.{suffix}").read_bytes()[:2500])
    data[place : place + len(new)] = new
    try:
        assert isinstance(parse_dump(bytes(data)), dict)
    except FormatError:
        return

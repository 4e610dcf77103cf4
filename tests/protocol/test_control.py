"""Control messages: their bytes by hand, and what is not one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from phloem.model.errors import ProtocolError
from phloem.model.event import Equipment
from phloem.model.run import RunInfo
from phloem.protocol.control import (
    GONE_S,
    HEARTBEAT_S,
    VERSION,
    BankCopy,
    ComponentStatus,
    EndRun,
    Goodbye,
    Heartbeat,
    Message,
    Plan,
    Refused,
    Register,
    RegisterAgain,
    Registered,
    Request,
    Response,
    SettingsChanged,
    Stream,
    Terminate,
    Text,
    TransitionReply,
    TransitionRequest,
    Variables,
    decode,
    decode_request,
    encode,
)
from phloem.protocol.state import State, Transition

STREAM = Stream("Trigger01", "BUF01", "/rings/BUF01.Trigger01", 1 << 23, ("EB",), Equipment("Trigger01"))
TO_RUN_CONTROL: list[Message] = [
    Register(VERSION, "fe01", "frontend", 77, "host", "a1b2", {Transition.BEGIN: 500}, (Equipment("Trigger01"),)),
    Heartbeat(0.01, State.RUN, 42, status=ComponentStatus(rates={"events_per_s": 1.5}, counters={"events": 3})),
    TransitionReply("42-BEGIN", result={"sent": {"Trigger01": {"sent": 5}}}),
    Text("warning", "careful"),
    EndRun(42, "Trigger01 has its 1000 events"),
    Variables("Slow01", (BankCopy("TE01", 9, b"\0\0\x80\x3f"),)),
    Goodbye("done"),
    Request(VERSION, "1", "prepare_run", {"comment": "a run"}),
]
FROM_RUN_CONTROL: list[Message] = [
    Registered("rc1", "Online", "/data", State.READY, 42, {"EB": {"Timeout ms": 10_000}}),
    Refused("another fe01 is there"),
    RegisterAgain(),
    TransitionRequest("42-BEGIN", Transition.BEGIN, RunInfo(42), "rc1", plan=Plan(outputs=(STREAM,))),
    SettingsChanged("EB", "Timeout ms", 5),
    Terminate(),
    Response("1", "result", value={"run": 42}),
]


def test_the_version_and_the_times_that_both_sides_must_agree_on() -> None:
    assert (VERSION, HEARTBEAT_S, GONE_S) == (1, 0.3, 1.0)


def test_a_text_byte_by_byte() -> None:
    data = b"\x83\xa4type\xa4Text\xa8severity\xa4info\xa4text\xa2hi"
    assert encode(Text("info", "hi")) == data
    assert decode_request(data) == Text("info", "hi")


def test_a_request_byte_by_byte() -> None:
    data = b"\x85\xa4type\xa7Request\xa7version\x01\xa2id\xa17\xa6method\xabprepare_run\xa6params\x81\xa7comment\xa1x"
    assert encode(Request(1, "7", "prepare_run", {"comment": "x"})) == data
    assert decode_request(data) == Request(1, "7", "prepare_run", {"comment": "x"})


def test_a_message_from_run_control_byte_by_byte() -> None:
    data = b"\x84\xa4type\xafSettingsChanged\xa9equipment\xa2EB\xa3key\xa1k\xa5value\xcd\x01\x00"
    assert decode(data) == SettingsChanged("EB", "k", 256)
    assert encode(SettingsChanged("EB", "k", 256)) == data
    assert decode(b"\x81\xa4type\xa9Terminate") == Terminate()


@pytest.mark.parametrize("message", TO_RUN_CONTROL, ids=lambda message: type(message).__name__)
def test_what_goes_to_run_control_comes_back_equal_and_is_nothing_that_it_says(message: Message) -> None:
    assert decode_request(encode(message)) == message
    with pytest.raises(ProtocolError, match="not a message of run control"):
        decode(encode(message))


@pytest.mark.parametrize("message", FROM_RUN_CONTROL, ids=lambda message: type(message).__name__)
def test_what_run_control_says_comes_back_equal_and_is_nothing_that_it_hears(message: Message) -> None:
    assert decode(encode(message)) == message
    with pytest.raises(ProtocolError, match="not a control message"):
        decode_request(encode(message))


def test_fields_that_a_newer_peer_adds_are_skipped_and_optional_ones_may_be_missing() -> None:
    plain = {"type": "Goodbye", "colour": "green"}
    assert decode_request(msgspec.msgpack.encode(plain)) == Goodbye()


def test_another_version_can_still_be_read_so_that_it_can_be_refused() -> None:
    request = decode_request(msgspec.msgpack.encode({"type": "Request", "version": 9, "id": "1", "method": "x"}))
    assert isinstance(request, Request)
    assert request.version == 9


@pytest.mark.parametrize(
    "plain",
    [
        None,
        [],
        {},
        {"type": "Nonsense"},
        {"type": 5},
        {"severity": "info", "text": "no type"},
        {"type": "Text", "severity": "info"},
        {"type": "Text", "severity": "info", "text": 5},
        {"type": "Heartbeat", "turned_ago_s": 0.0, "state": "SLEEP", "run": 1},
        {"type": "Heartbeat", "turned_ago_s": "soon", "state": "RUN", "run": 1},
        {"type": "Register", "version": 1},
    ],
)
def test_what_is_not_a_message_is_the_peers_fault(plain: Any) -> None:
    with pytest.raises(ProtocolError, match=r"^not a control message: \S"):
        decode_request(msgspec.msgpack.encode(plain))


@pytest.mark.parametrize("message", [*TO_RUN_CONTROL, *FROM_RUN_CONTROL], ids=lambda message: type(message).__name__)
def test_a_message_cut_anywhere_or_with_bytes_behind_it_is_refused(message: Message) -> None:
    read = decode_request if message in TO_RUN_CONTROL else decode
    data = encode(message)
    for size in range(len(data)):
        with pytest.raises(ProtocolError):
            read(data[:size])
    with pytest.raises(ProtocolError, match="trailing"):
        read(data + b"\xc0")


@pytest.mark.parametrize(
    "data",
    [
        b"\x83\xa4type\xa4Text\xa8severity\xa4info\xa4text\xa2\xff\xfe",  # no UTF-8
        b"\x82\xa4type\xa7Request\xa6params\x81\xa1a" + b"\x91" * 100_000,  # nested without end
    ],
)
def test_bytes_that_are_no_text_or_nested_without_end_are_the_peers_fault(data: bytes) -> None:
    for read in (decode, decode_request):
        with pytest.raises(ProtocolError):
            read(data)

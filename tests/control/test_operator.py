"""The operator's calls, against a stand-in run control whose answers the test writes one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from phloem.control.operator import Operator
from phloem.model.errors import PhloemError, TransitionError, UnreachableError
from phloem.protocol.control import Request, Response, Terminate, decode_request, encode

PATIENCE_MS = 10_000
PATIENCE_S = 10.0


class Answerer:
    """A ROUTER that the test reads and writes by hand."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"tcp://127.0.0.1:{port}"

    def next(self) -> tuple[bytes, Request]:
        """The next request and who sent it."""
        assert self.socket.poll(PATIENCE_MS), "no request came"
        identity, data = self.socket.recv_multipart()
        request = decode_request(data)
        assert isinstance(request, Request)
        return identity, request

    def say(self, identity: bytes, request_id: str, kind: str, value: Any = None, **more: Any) -> None:
        self.socket.send_multipart([identity, encode(Response(request_id, kind, value=value, **more))])

    def close(self) -> None:
        self.socket.close()
        self._context.term()


@pytest.fixture
def answerer() -> Iterator[Answerer]:
    opened = Answerer()
    yield opened
    opened.close()


@pytest.fixture
def operator(answerer: Answerer) -> Iterator[Operator]:
    with Operator(answerer.address, connect_timeout_s=PATIENCE_S) as opened:
        yield opened


def test_a_call_returns_at_once_and_its_responses_come_as_they_arrive(answerer: Answerer, operator: Operator) -> None:
    call = operator.prepare_run(operator="ann", comment="x")
    assert repr(call) == "<Call prepare(operator='ann', comment='x', write_data=None): no answer yet>"
    identity, request = answerer.next()
    assert (request.version, request.method) == (1, "prepare")
    assert request.params == {"operator": "ann", "comment": "x", "write_data": None}
    responses = iter(call)
    answerer.say(identity, request.id, "ticket")
    assert next(responses).kind == "ticket"
    answerer.say(identity, request.id, "progress", {"waiting_for": ["ebfe01"]})
    assert next(responses).value == {"waiting_for": ["ebfe01"]}
    assert repr(call).endswith(": waiting for ebfe01>")
    assert not call.done
    answerer.say(identity, request.id, "result", {"run": 42})
    assert next(responses).kind == "result"
    assert list(responses) == []
    assert call.result() == {"run": 42}
    assert [response.kind for response in call] == ["ticket", "progress", "result"]
    assert repr(call).endswith(": result {'run': 42}>")


def test_an_error_is_the_last_response_and_result_raises_it_by_its_name(answerer: Answerer, operator: Operator) -> None:
    call = operator.begin_run()
    identity, request = answerer.next()
    answerer.say(identity, request.id, "error", "BEGIN needs READY", error="TransitionError")
    (last,) = call
    assert (last.kind, last.error) == ("error", "TransitionError")
    for _ in range(2):
        with pytest.raises(TransitionError, match=r"^BEGIN needs READY$"):
            call.result(PATIENCE_S)
    assert repr(call).endswith(": TransitionError: BEGIN needs READY>")


def test_an_error_that_this_side_does_not_know_is_still_an_error(answerer: Answerer, operator: Operator) -> None:
    call = operator.status()
    identity, request = answerer.next()
    answerer.say(identity, request.id, "error", "new trouble", error="FutureError")
    with pytest.raises(PhloemError, match="new trouble"):
        call.result(PATIENCE_S)


def test_calls_interleave_and_each_gets_its_own_answers(answerer: Answerer, operator: Operator) -> None:
    calls = [operator.odb_get(f"/Key{n}") for n in range(5)]
    asked = [answerer.next() for _ in calls]
    for identity, request in reversed(asked):
        answerer.say(identity, request.id, "result", request.params["path"])
    assert [call.result(PATIENCE_S) for call in calls] == [f"/Key{n}" for n in range(5)]


def test_a_late_reply_never_reaches_another_call(answerer: Answerer, operator: Operator) -> None:
    first = operator.odb_get("/First")
    identity, old = answerer.next()
    with pytest.raises(UnreachableError, match=r"no result of 'odb_get' within 0\.01 s; no answer yet"):
        first.result(0.01)
    second = operator.odb_get("/Second")
    identity, new = answerer.next()
    answerer.say(identity, old.id, "result", "late")
    answerer.say(identity, "never asked", "result", "stray")
    answerer.say(identity, new.id, "result", "own")
    answerer.say(identity, new.id, "result", "again")
    assert second.result(PATIENCE_S) == "own"
    assert first.result(PATIENCE_S) == "late"
    assert [response.value for response in second] == ["own"]


def test_bytes_that_are_no_answer_are_passed_over(answerer: Answerer, operator: Operator) -> None:
    call = operator.odb_get("/Key")
    identity, request = answerer.next()
    answerer.socket.send_multipart([identity, b"\xff\xff"])
    answerer.socket.send_multipart([identity, encode(Terminate())])
    answerer.say(identity, request.id, "result", 1)
    assert call.result(PATIENCE_S) == 1


def test_calls_may_come_from_many_threads(answerer: Answerer, operator: Operator) -> None:
    found: dict[int, Any] = {}

    def ask(n: int) -> None:
        found[n] = operator.odb_get(f"/Key{n}").result(PATIENCE_S)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        identity, request = answerer.next()
        answerer.say(identity, request.id, "result", request.params["path"])
    for thread in threads:
        thread.join()
    assert found == {n: f"/Key{n}" for n in range(8)}


def test_nobody_there_is_said_with_the_address_within_the_time(answerer: Answerer) -> None:
    address = answerer.address
    answerer.socket.unbind(address)
    with Operator(address, connect_timeout_s=0.2) as operator:
        began_s = time.monotonic()
        call = operator.begin_run()
        with pytest.raises(UnreachableError, match=f"nobody answers at {address} within 0.2 s"):
            call.result()
        assert time.monotonic() - began_s < 5.0
        assert [response.error for response in call] == ["UnreachableError"]
        answerer.socket.bind(address)
        later = operator.status()
        with pytest.raises(UnreachableError):
            later.result()
    # a request that was withdrawn must not begin a run when run control is started later
    while answerer.socket.poll(100):
        _, request = answerer.next()
        assert request.method == "status"


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(UnreachableError, match="'nonsense' is no address like tcp://127"):
        Operator("nonsense")


def test_closing_ends_the_calls_that_are_open(answerer: Answerer) -> None:
    operator = Operator(answerer.address, connect_timeout_s=PATIENCE_S)
    call = operator.end_run()
    answerer.next()
    operator.close()
    operator.close()
    with pytest.raises(UnreachableError, match="was closed"):
        call.result(PATIENCE_S)
    with pytest.raises(UnreachableError, match="is closed; make a new one"):
        operator.status()


def test_the_names_of_larpix_daq_are_the_same_calls() -> None:
    assert Operator.prepare_physics_run is Operator.prepare_run
    assert Operator.begin_physics_run is Operator.begin_run
    assert Operator.end_physics_run is Operator.end_run

"""Control messages: one class per message, msgpack with a ``type`` tag, one message per ZeroMQ frame.

Run control binds a ROUTER; components and operators connect a DEALER each. Every peer's first message carries
``version``; another version is refused. Requests carry an id, and an answer goes to the request of that id only.

=============== ================================ ==========================================================
from            messages                         answered by
=============== ================================ ==========================================================
component       `Register`                       `Registered` or `Refused`
component       `Heartbeat`, `Text`, `Goodbye`   nothing
component       `EndRun`, `Variables`            nothing
run control     `TransitionRequest`              `TransitionReply`
run control     `SettingsChanged`, `Terminate`   nothing
run control     `RegisterAgain`                  `Register`
operator        `Request`                        `Response`, one or more; the last is a result or an error
=============== ================================ ==========================================================
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from phloem.model.errors import ProtocolError
from phloem.model.event import Equipment
from phloem.model.run import RunInfo
from phloem.protocol.state import State, Transition

__all__ = [
    "GONE_S",
    "HEARTBEAT_S",
    "VERSION",
    "BankCopy",
    "ComponentStatus",
    "EndRun",
    "FromComponent",
    "FromRunControl",
    "Goodbye",
    "Heartbeat",
    "Plan",
    "Refused",
    "Register",
    "RegisterAgain",
    "Registered",
    "Request",
    "Response",
    "SettingsChanged",
    "Stream",
    "Terminate",
    "Text",
    "TransitionReply",
    "TransitionRequest",
    "Variables",
    "decode",
    "decode_request",
    "encode",
]

VERSION = 1
HEARTBEAT_S = 0.3  # design, section 7; a component is gone after GONE_S without one
GONE_S = 1.0


class Message(msgspec.Struct, tag_field="type", frozen=True):
    """Base of all control messages."""


class Stream(msgspec.Struct, frozen=True):
    """One source's way into one buffer.

    ``source``: equipment name. ``ring``: path of the ring file. ``readers``: names of its `all` slots.
    ``equipment`` tells what it carries (event id, trigger mask, format).
    """

    source: str
    buffer: str
    ring: str
    capacity_bytes: int
    readers: tuple[str, ...]
    equipment: Equipment

    @property
    def recorded_name(self) -> str:
        """What the account calls the way of a source's fragments into a file of their own."""
        return f"{self.source}/fragments"


class Plan(msgspec.Struct, frozen=True):
    """What a component has to do in a run, worked out by run control at PREPARE from the ODB.

    ``outputs``: rings that it writes (a frontend's equipment; the builder's one). ``inputs``: rings that it reads.
    ``settings``: for a builder `/Equipment/<EB>/Settings`, for the logger `/Logger`; plain values.
    ``odb_json``: the whole ODB as MIDAS JSON, for the logger only. ``file``: path of the run's file without
    its compression's ending, for the logger only; empty if the run writes no data. ``recorded``: sources of a
    builder that the logger reads too, and writes unchanged to a file each.
    """

    outputs: tuple[Stream, ...] = ()
    inputs: tuple[Stream, ...] = ()
    settings: dict[str, Any] = {}
    odb_json: str = ""
    file: str = ""
    recorded: tuple[Stream, ...] = ()

    @property
    def read_names(self) -> list[str]:
        """All that it reads, as the account calls it."""
        return [stream.source for stream in self.inputs] + [stream.recorded_name for stream in self.recorded]


class Register(Message, frozen=True):
    """A component says who it is; sent again after run control restarted.

    ``name``: unique client name such as ``ebfe01``. ``kind``: frontend, builder, logger, monitor.
    ``incarnation``: random, new for each process. ``sequence``: transition to place in its order.
    ``equipment``: what it declares; for a builder its own equipment (type 0). ``reads``: buffer prefix that a
    builder (EQ_EB sources) or the logger (all streams) reads. ``settings``: first values for the settings of
    its equipment, `{equipment name: {key: value}}`. ``file``: its source file. ``state`` and ``run``: what it
    is doing now.
    """

    version: int
    name: str
    kind: str
    pid: int
    host: str
    incarnation: str
    sequence: dict[Transition, int]
    equipment: tuple[Equipment, ...] = ()
    reads: str = ""
    settings: dict[str, dict[str, Any]] = {}
    file: str = ""
    state: State = State.STOP
    run: int | None = None


class Registered(Message, frozen=True):
    """Run control took the component in; sent again when somebody sets a key of its equipment's Common.

    ``settings``: `{equipment name: {key: value}}`, ``equipment``: what the component declared, both as in the ODB now.
    """

    run_control: str
    experiment: str
    data_dir: str
    state: State
    run: int | None = None
    settings: dict[str, dict[str, Any]] = {}
    equipment: tuple[Equipment, ...] = ()


class Refused(Message, frozen=True):
    """Run control did not take the component in; it must end with this reason."""

    reason: str


class ComponentStatus(msgspec.Struct, frozen=True):
    """What a component says of itself with each heartbeat. Counters are of this run.

    ``rates``: e.g. ``events_per_s``, ``kb_per_s``. ``counters``: e.g. ``events``, ``bytes``. ``sources``: per
    source or stream name its own counters and gauges (``received``, ``backlog_bytes``, ``fill_percent``,
    ``blocked_s``). ``waiting_for``: what holds it up, in words.
    """

    rates: dict[str, float] = {}
    counters: dict[str, int] = {}
    sources: dict[str, dict[str, float]] = {}
    waiting_for: str = ""


class RegisterAgain(Message, frozen=True):
    """A heartbeat came from someone whom run control does not know, since it restarted: say who you are."""


class Heartbeat(Message, frozen=True):
    """``turned_ago_s``: since the main loop last turned, measured on the component's monotonic clock.

    ``busy``: a transition handler is running, so that a loop that does not turn is no sign of hanging.
    """

    turned_ago_s: float
    state: State
    run: int | None
    busy: bool = False
    status: ComponentStatus = ComponentStatus()


class TransitionRequest(Message, frozen=True):
    """Do your part of a transition. Idempotent by (``run.number``, ``id``).

    ``time_s``: when run control asked for the transition, seconds since 1970, the same for all components.
    ``collected``: replies of the components before this one, by name: the builder needs none, the logger writes
    the account from it. ``why``: "end", "released", "failed"; "rejoin" for PREPARE and BEGIN of a frontend that came
    back in mid-run: ``settings`` are the run's then, and ``begun`` says whether the state is RUN: BEGIN follows.
    """

    id: str
    transition: Transition
    run: RunInfo
    run_control: str
    time_s: float = 0.0
    plan: Plan = Plan()
    settings: dict[str, dict[str, Any]] = {}
    collected: dict[str, dict[str, Any]] = {}
    odb_json: str = ""
    why: str = ""
    begun: bool = False


class TransitionReply(Message, frozen=True):
    """The component's part is done, or ``error`` says in one line why not. ``result`` at END and RELEASE:

    frontend ``{"sent": {equipment: {"sent", "blocked_s", "missed"}}}``;
    builder ``{"fates": {source: {"built", "incomplete", ...}}, "sent": {its equipment: {"sent", "blocked_s"}}}``;
    logger ``{"written": {stream: {"written", "discarded"}}, "files": [...], "bytes": n, "events": n}``.
    `Account.assembled` takes these.
    """

    id: str
    error: str = ""
    result: dict[str, Any] = {}


class SettingsChanged(Message, frozen=True):
    """An ODB value under a component's equipment was set (a hot link)."""

    equipment: str
    key: str
    value: Any = None


class Text(Message, frozen=True):
    """A message for people. ``severity``: debug, info, warning, error."""

    severity: str
    text: str


class EndRun(Message, frozen=True):
    """The component asks for the end of run ``run``; ``reason``: in words. Asked twice or too late it has no effect."""

    run: int
    reason: str


class BankCopy(msgspec.Struct, frozen=True):
    """A bank for people to look at. ``data``: its values as in the event, little endian."""

    name: str
    tid: int
    data: bytes


class Variables(Message, frozen=True):
    """The banks of an equipment's latest event, for ``/Equipment/<equipment>/Variables`` (bit 256 of Read on)."""

    equipment: str
    banks: tuple[BankCopy, ...]


class Goodbye(Message, frozen=True):
    """The component ends on purpose."""

    reason: str = ""


class Terminate(Message, frozen=True):
    """The component shall end."""


class Request(Message, frozen=True):
    """An operator asks. ``method``: see `phloem.control.run_control`."""

    version: int
    id: str
    method: str
    params: dict[str, Any] = {}


class Response(Message, frozen=True):
    """``kind``: ticket, progress, result, error. ``error`` names the class in `phloem.model.errors`."""

    id: str
    kind: str
    component: str = ""
    time_s: float = 0.0
    value: Any = None
    error: str = ""


FromComponent: TypeAlias = Register | Heartbeat | TransitionReply | Text | EndRun | Variables | Goodbye | Request
FromRunControl: TypeAlias = (
    Registered | Refused | RegisterAgain | TransitionRequest | SettingsChanged | Terminate | Response
)

_encoder = msgspec.msgpack.Encoder()
_to_run_control: msgspec.msgpack.Decoder[FromComponent] = msgspec.msgpack.Decoder(FromComponent)
_from_run_control: msgspec.msgpack.Decoder[FromRunControl] = msgspec.msgpack.Decoder(FromRunControl)


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def decode_request(data: bytes) -> FromComponent:
    """A message that came to run control, or a `ProtocolError`."""
    try:
        return _to_run_control.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a control message: {error}") from None


def decode(data: bytes) -> FromRunControl:
    """A message that came from run control, or a `ProtocolError`."""
    try:
        return _from_run_control.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message of run control: {error}") from None

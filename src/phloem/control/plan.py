"""Who sends what to whom in a run: the plan of every component, worked out at PREPARE. Pure.

A source belongs to the one builder whose prefix (``-b``) begins its buffer's name; equipment without the EB
flag, and the builders' own, goes to the logger that reads its buffer. Whatever has no reader, or two, or
another format than its builder, refuses the PREPARE by name: nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from phloem.control.fragments import Fragment, plan_settings, required_sources
from phloem.model.errors import SettingsError, TransitionError
from phloem.model.event import EQ_EB, Equipment
from phloem.protocol.control import Plan, Register, Stream

__all__ = [
    "DEFAULT_CAPACITY_BYTES",
    "RECORD_FRAGMENTS",
    "Planned",
    "Wishes",
    "builder_sources",
    "capacity_bytes",
    "ring_path",
    "work_out",
]

DEFAULT_CAPACITY_BYTES = 4 << 20  # three or four of them still fit the cache, which is what makes them fast
RECORD_FRAGMENTS = "Record fragments"  # below /Logger
_STEP_BYTES = 64 << 10  # rings are a multiple of this (datapath, section 1)
_SMALLEST_BYTES = 4 * _STEP_BYTES  # a frame is at most half the ring, 64 kB are kept for border frames


class Wishes(msgspec.Struct, frozen=True):
    """What the ODB and the directory say at PREPARE.

    ``equipment``: from ``/Equipment/*/Common``, in ODB order; ``frontends``: equipment to the name of the
    frontend that last ran it; ``components``: who is registered and alive; ``required``: names of programs
    without which no run is prepared; ``sizes``: bytes per buffer; ``settings``:
    ``/Equipment/<name>/Settings`` by equipment.
    """

    equipment: Mapping[str, Equipment]
    frontends: Mapping[str, str]
    components: Sequence[Register]
    required: Collection[str] = ()
    sizes: Mapping[str, int] = {}
    settings: Mapping[str, dict[str, Any]] = {}
    logger_settings: dict[str, Any] = {}


class Planned(msgspec.Struct, frozen=True):
    """``plans`` by component; ``notes`` for people; ``sources`` by builder; ``streams`` into the logger.

    ``fragments``: the sources once more, with what people want to know of each.
    """

    plans: dict[str, Plan]
    notes: list[str]
    sources: dict[str, list[str]]
    streams: list[str]
    fragments: dict[str, list[Fragment]] = {}


class _Outlet(msgspec.Struct, frozen=True):
    """One equipment of a living component, who reads what it sends, and who records it beside that."""

    owner: Register
    equipment: Equipment
    reader: Register
    recorder: Register | None = None


def work_out(wishes: Wishes, runtime_dir: Path, odb_json: str = "", file: str = "") -> Planned:
    """The plan of each component, or a `TransitionError` or `SettingsError` that says why there is none.

    ``odb_json`` and ``file`` go to the logger. Sources are in name order, what a component sends in the order in
    which it declares it: that is the order in which a frontend reads its equipment, as in MIDAS.
    """
    _check_required(wishes)
    builders = _of_kind(wishes, "builder")
    loggers = _of_kind(wishes, "logger")
    outlets = _sorted_outlets(wishes)
    if file and wishes.logger_settings.get(RECORD_FRAGMENTS):
        outlets = _with_recorders(outlets)
    streams = [(outlet, _stream(outlet, wishes.sizes, runtime_dir)) for outlet in outlets]
    plans = {}
    for component in wishes.components:
        own = {stream.source: stream for outlet, stream in streams if outlet.owner is component}
        outputs = tuple(own[equipment.name] for equipment in component.equipment if equipment.name in own)
        inputs = tuple(stream for outlet, stream in streams if outlet.reader is component)
        plan = Plan(outputs=outputs, inputs=inputs)
        if component.kind == "builder":
            _check_has_sources(component, inputs)
            settings = plan_settings(_settings(wishes, component), [stream.source for stream in inputs])
            plan = msgspec.structs.replace(plan, settings=settings)
        elif component.kind == "logger":
            logging = wishes.logger_settings
            recorded = tuple(stream for outlet, stream in streams if outlet.recorder is component)
            plan = msgspec.structs.replace(plan, settings=logging, odb_json=odb_json, file=file, recorded=recorded)
        elif component.kind == "monitor":
            watched = tuple(stream for _, stream in streams if stream.buffer == component.reads)
            plan = msgspec.structs.replace(plan, inputs=watched)
        plans[component.name] = plan
    return Planned(
        plans=plans,
        notes=_notes(wishes),
        sources={b.name: [stream.source for stream in plans[b.name].inputs] for b in builders},
        streams=[name for logger in loggers for name in plans[logger.name].read_names],
        fragments={b.name: _fragments(wishes, b, outlets) for b in builders},
    )


def builder_sources(wishes: Wishes) -> dict[str, list[str]]:
    """The sources of each builder in name order, by the builder's equipment; the refusals are those of `work_out`."""
    _check_required(wishes)
    outlets = _sorted_outlets(wishes)
    return {
        builder.equipment[0].name: [outlet.equipment.name for outlet in outlets if outlet.reader is builder]
        for builder in _of_kind(wishes, "builder")
    }


def _of_kind(wishes: Wishes, kind: str) -> list[Register]:
    return [component for component in wishes.components if component.kind == kind]


def _settings(wishes: Wishes, builder: Register) -> dict[str, Any]:
    return wishes.settings.get(builder.equipment[0].name, {})


def _fragments(wishes: Wishes, builder: Register, outlets: Sequence[_Outlet]) -> list[Fragment]:
    own = [outlet for outlet in outlets if outlet.reader is builder]
    required = required_sources(_settings(wishes, builder), [outlet.equipment.name for outlet in own])
    return [
        Fragment(
            source=outlet.equipment.name,
            frontend=outlet.owner.name,
            buffer=outlet.equipment.buffer,
            event_id=outlet.equipment.event_id,
            trigger_mask=outlet.equipment.trigger_mask,
            format=outlet.equipment.format,
            required=is_required,
        )
        for outlet, is_required in zip(own, required, strict=True)
    ]


def _check_required(wishes: Wishes) -> None:
    alive = {component.name.lower() for component in wishes.components}
    missing = [name for name in wishes.required if name.lower() not in alive]
    if missing:
        raise TransitionError(
            f"PREPARE needs {' and '.join(missing)}, which /Programs/{missing[0]}/Required asks for and "
            f"which is not running. Start it, or set that key to n."
        )


def _check_has_sources(builder: Register, inputs: Sequence[Stream]) -> None:
    if not inputs:
        raise TransitionError(
            f"builder {builder.name} (-b {builder.reads}) has no source: no enabled equipment with "
            f"EQ_EB of a running frontend has a buffer that begins with {builder.reads!r}. Start a frontend, "
            f"or end the builder."
        )


def _sorted_outlets(wishes: Wishes) -> list[_Outlet]:
    """In name order, and looked at in that order: of several things that are wrong, the same one is always said."""
    builders, loggers = _of_kind(wishes, "builder"), _of_kind(wishes, "logger")
    declared = ((component, equipment) for component in wishes.components for equipment in component.equipment)
    found = []
    for component, equipment in sorted(declared, key=lambda pair: pair[1].name):
        current = _current(wishes, equipment)
        if component.kind == "builder":
            _check_builder_enabled(component, current)
            found.append(_Outlet(component, current, _logger_of(current, loggers)))
        elif current.enabled:
            current.check()
            found.append(_Outlet(component, current, _reader_of(wishes, current, builders, loggers)))
    return found


def _with_recorders(outlets: Sequence[_Outlet]) -> list[_Outlet]:
    """Fragments are recorded by the logger that writes their built events."""
    loggers = {outlet.owner.name: outlet.reader for outlet in outlets if outlet.owner.kind == "builder"}
    return [msgspec.structs.replace(outlet, recorder=loggers.get(outlet.reader.name)) for outlet in outlets]


def _current(wishes: Wishes, declared: Equipment) -> Equipment:
    """The equipment as the ODB has it now; only the readout method is the code's."""
    known = {name.lower(): equipment for name, equipment in wishes.equipment.items()}
    equipment = known.get(declared.name.lower(), declared)
    return msgspec.structs.replace(equipment, name=declared.name, readout=declared.readout)


def _check_builder_enabled(builder: Register, equipment: Equipment) -> None:
    if not equipment.enabled:
        raise TransitionError(
            f"builder {builder.name} is running, but its equipment {equipment.name} is not enabled. "
            f"Set '/Equipment/{equipment.name}/Common/Enabled' to y, or end the builder."
        )


def _reader_of(
    wishes: Wishes, equipment: Equipment, builders: Sequence[Register], loggers: Sequence[Register]
) -> Register:
    if not equipment.type & EQ_EB or not builders:
        return _logger_of(equipment, loggers)
    claims = [builder for builder in builders if equipment.buffer.startswith(builder.reads)]
    where = f"equipment {equipment.name} sends to buffer {equipment.buffer} for the event builder"
    if not claims:
        prefixes = ", ".join(f"{builder.name} reads -b {builder.reads}" for builder in builders)
        raise TransitionError(
            f"{where}, but no builder reads it ({prefixes}). Change the -b prefix or "
            f"'/Equipment/{equipment.name}/Common/Buffer'."
        )
    if len(claims) > 1:
        names = " and ".join(f"{builder.name} (-b {builder.reads})" for builder in claims)
        raise TransitionError(f"{where}, which {names} both claim. Make their prefixes differ.")
    built = _current(wishes, claims[0].equipment[0])
    if equipment.format != built.format:
        raise TransitionError(
            f"equipment {equipment.name} has format {equipment.format}, but its builder {claims[0].name} "
            f"builds {built.format}. Make '/Equipment/{equipment.name}/Common/Format' and "
            f"'/Equipment/{built.name}/Common/Format' the same."
        )
    return claims[0]


def _logger_of(equipment: Equipment, loggers: Sequence[Register]) -> Register:
    claims = [logger for logger in loggers if logger.reads == equipment.buffer]
    where = f"equipment {equipment.name} sends to buffer {equipment.buffer}"
    if not claims:
        known = ", ".join(f"{logger.name} reads {logger.reads}" for logger in loggers) or "there is no logger"
        raise TransitionError(
            f"{where}, which nobody reads ({known}). Start a reader for it, or change "
            f"'/Equipment/{equipment.name}/Common/Buffer'."
        )
    if len(claims) > 1:
        names = " and ".join(logger.name for logger in claims)
        raise TransitionError(f"{where}, which {names} both read. End one of them.")
    return claims[0]


def _stream(outlet: _Outlet, sizes: Mapping[str, int], runtime_dir: Path) -> Stream:
    equipment = outlet.equipment
    return Stream(
        source=equipment.name,
        buffer=equipment.buffer,
        ring=str(ring_path(runtime_dir, equipment.buffer, equipment.name)),
        capacity_bytes=capacity_bytes(equipment.buffer, sizes),
        readers=tuple(reader.name for reader in (outlet.reader, outlet.recorder) if reader is not None),
        equipment=equipment,
    )


def _notes(wishes: Wishes) -> list[str]:
    running = {e.name.lower() for component in wishes.components for e in component.equipment}
    return [
        _note(name, equipment, wishes.frontends.get(name) or "(unknown)")
        for name, equipment in wishes.equipment.items()
        if equipment.enabled and name.lower() not in running
    ]


def _note(name: str, equipment: Equipment, owner: str) -> str:
    if not equipment.type:  # a builder's own
        return f"equipment {name} is enabled, but its builder {owner} is not running: it builds nothing in this run"
    return f"equipment {name} is enabled, but its frontend {owner} is not running: it is no source of this run"


def ring_path(runtime_dir: Path, buffer: str, source: str) -> Path:
    """Where the ring of one source in one buffer lies; what file names cannot hold is written as %XX."""
    return runtime_dir / f"{_safe(buffer)}.{_safe(source)}.ring"


def _safe(name: str) -> str:
    return quote(name, safe="").replace(".", "%2E")  # the dot divides buffer and source


def capacity_bytes(buffer: str, sizes: Mapping[str, int]) -> int:
    """Bytes of each ring of a buffer: its setting, rounded up to a multiple of 64 kB, or 4 MiB."""
    known = {name.lower(): size for name, size in sizes.items()}
    size = known.get(buffer.lower(), DEFAULT_CAPACITY_BYTES)
    if size < _SMALLEST_BYTES:
        raise SettingsError(
            f"'/Experiment/Buffer sizes/{buffer}' is {size}; a ring needs at least {_SMALLEST_BYTES} bytes"
        )
    return -(-size // _STEP_BYTES) * _STEP_BYTES

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

from phloem.model.errors import SettingsError, TransitionError
from phloem.model.event import EQ_EB, Equipment
from phloem.protocol.control import Plan, Register, Stream

__all__ = ["DEFAULT_CAPACITY_BYTES", "Planned", "Wishes", "capacity_bytes", "ring_path", "work_out"]

DEFAULT_CAPACITY_BYTES = 4 << 20  # three or four of them still fit the cache, which is what makes them fast
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
    """``plans`` by component; ``notes`` for people; ``sources`` by builder; ``streams`` into the logger."""

    plans: dict[str, Plan]
    notes: list[str]
    sources: dict[str, list[str]]
    streams: list[str]


class _Outlet(msgspec.Struct, frozen=True):
    """One equipment of a living component, and who reads what it sends."""

    owner: Register
    equipment: Equipment
    reader: Register


def work_out(wishes: Wishes, runtime_dir: Path, odb_json: str = "", file: str = "") -> Planned:
    """The plan of each component, or a `TransitionError` or `SettingsError` that says why there is none.

    ``odb_json`` and ``file`` go to the logger. Sources are in name order.
    """
    _check_required(wishes)
    builders = [c for c in wishes.components if c.kind == "builder"]
    loggers = [c for c in wishes.components if c.kind == "logger"]
    outlets = sorted(_outlets(wishes, builders, loggers), key=lambda outlet: outlet.equipment.name)
    streams = [(outlet, _stream(outlet, wishes.sizes, runtime_dir)) for outlet in outlets]
    plans = {}
    for component in wishes.components:
        outputs = tuple(stream for outlet, stream in streams if outlet.owner is component)
        inputs = tuple(stream for outlet, stream in streams if outlet.reader is component)
        plan = Plan(outputs=outputs, inputs=inputs)
        if component.kind == "builder":
            settings = wishes.settings.get(component.equipment[0].name, {})
            plan = msgspec.structs.replace(plan, settings=settings)
            _check_has_sources(component, inputs)
        elif component.kind == "logger":
            logging = wishes.logger_settings
            plan = msgspec.structs.replace(plan, settings=logging, odb_json=odb_json, file=file)
        elif component.kind == "monitor":
            watched = tuple(stream for _, stream in streams if stream.buffer == component.reads)
            plan = msgspec.structs.replace(plan, inputs=watched)
        plans[component.name] = plan
    return Planned(
        plans=plans,
        notes=_notes(wishes),
        sources={b.name: [stream.source for stream in plans[b.name].inputs] for b in builders},
        streams=[stream.source for logger in loggers for stream in plans[logger.name].inputs],
    )


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


def _outlets(wishes: Wishes, builders: Sequence[Register], loggers: Sequence[Register]) -> list[_Outlet]:
    found = []
    for component in wishes.components:
        for declared in component.equipment:
            equipment = _current(wishes, declared)
            if component.kind == "builder":
                _check_builder_enabled(component, equipment)
                found.append(_Outlet(component, equipment, _logger_of(equipment, loggers)))
            elif equipment.enabled:
                equipment.check()
                found.append(_Outlet(component, equipment, _reader_of(wishes, equipment, builders, loggers)))
    return found


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
        readers=(outlet.reader.name,),
        equipment=equipment,
    )


def _notes(wishes: Wishes) -> list[str]:
    running = {e.name.lower() for component in wishes.components for e in component.equipment}
    return [
        f"equipment {name} is enabled, but its frontend {wishes.frontends.get(name) or '(unknown)'} is not "
        f"running: it is no source of this run"
        for name, equipment in wishes.equipment.items()
        if equipment.enabled and name.lower() not in running
    ]


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

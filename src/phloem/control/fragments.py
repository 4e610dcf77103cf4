"""Which fragments a builder joins: its sources in ``/Equipment/<EB>/Settings``, kept by name.

MIDAS' keys, with the names of the sources beside them (reference, section 4: MIDAS has an index only, and sets
all to y when the list changes)::

    Number of Fragment INT32, User build BOOL, User Field STRING[64],
    Fragment Required BOOL[], Fragment Names STRING[32][]
    Fragments/<source>/  Timeout ms INT32, On incomplete STRING[32], Reorder INT32, Time offset ns INT64

The arrays have the run's sources in name order, then those that are not in this run and whose choice is n.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from phloem.control.odb import MODE_READ, Odb
from phloem.model.errors import SettingsError, TransitionError
from phloem.model.event import TID

__all__ = [
    "Fragment",
    "as_setting",
    "flat_settings",
    "is_same_choice",
    "keep_choices",
    "plan_settings",
    "required_sources",
    "setting_type",
]

_NUMBER, _NAMES, _REQUIRED, _FRAGMENTS = "Number of Fragment", "Fragment Names", "Fragment Required", "Fragments"
_TYPES = {
    _NUMBER: (TID.INT32, 0),
    "User build": (TID.BOOL, 0),
    "User Field": (TID.STRING, 64),
    _REQUIRED: (TID.BOOL, 0),
    _NAMES: (TID.STRING, 32),
}
# of each source; -1 and "" mean: as the builder says
_OF_SOURCE: dict[str, tuple[TID, int, Any]] = {
    "Timeout ms": (TID.INT32, 0, -1),
    "On incomplete": (TID.STRING, 32, ""),
    "Reorder": (TID.INT32, 0, -1),
    "Time offset ns": (TID.INT64, 0, 0),
}


class Fragment(msgspec.Struct, frozen=True):
    """One source of a builder in a run, as PREPARE lists it. ``frontend``: the component that sends it."""

    source: str
    frontend: str
    buffer: str
    event_id: int
    trigger_mask: int
    format: str
    required: bool


def flat_settings(settings: Mapping[str, Any], top: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of each setting; tables become paths such as ``Fragments/Trigger01/Timeout ms``."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{top}{name}/")
        else:
            yield f"{top}{name}", value


def setting_type(key: str) -> tuple[TID, int] | None:
    """Type and string size of a key below a builder's Settings, if it is one of those here.

    `SettingsError` names the nearest key if a source has no such setting.
    """
    first, *rest = key.split("/")
    if first.lower() != _FRAGMENTS.lower():
        return next((kind for name, kind in _TYPES.items() if name.lower() == first.lower() and not rest), None)
    if len(rest) < 2:
        return None
    known = {name.lower(): (tid, size) for name, (tid, size, _) in _OF_SOURCE.items()}
    name = "/".join(rest[1:])
    if name.lower() not in known:
        near = difflib.get_close_matches(name, _OF_SOURCE, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_OF_SOURCE)}"
        raise SettingsError(f"unknown setting {name!r} of source {rest[0]} in {key!r}; {hint}")
    return known[name.lower()]


def as_setting(key: str, value: Any) -> Any:
    """A first value as the key holds it: the arrays take one item without brackets, too."""
    is_array = key.lower() in (_NAMES.lower(), _REQUIRED.lower())
    return [value] if is_array and not isinstance(value, list | tuple) else value


def is_same_choice(key: str, first: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether ``key`` is one of the two arrays, and ``first`` chooses no otherwise than the ODB's ``settings``.

    The arrays themselves differ from first values as soon as a run was prepared, which is worth nobody's attention.
    """
    choices = _choices(first)
    is_array = key.lower() in (_NAMES.lower(), _REQUIRED.lower())
    return is_array and required_sources(settings, list(choices)) == list(choices.values())


def keep_choices(odb: Odb, builder: str, sources: Sequence[str]) -> None:
    """Bring the Settings of a builder's equipment up to date with the sources of the run to come.

    `TransitionError` if none of them is required. Who comes for the first time is.
    """
    top = f"/Equipment/{builder}/Settings"
    settings = odb.value(top, {})
    _check_any_required(top, builder, sources, settings)
    choices = _choices(settings)
    here = {source.lower() for source in sources}
    away = [name for name, required in choices.items() if not required and name.lower() not in here]
    required = required_sources(settings, sources)
    odb.create(f"{top}/{_NUMBER}", TID.INT32, 0, mode=MODE_READ)
    odb.create(f"{top}/User build", TID.BOOL, False)
    odb.create(f"{top}/User Field", TID.STRING, "100", 64)
    odb.create(f"{top}/{_REQUIRED}", TID.BOOL, [])
    odb.create(f"{top}/{_NAMES}", TID.STRING, [], 32)
    _write(odb, f"{top}/{_NUMBER}", len(sources))
    _write(odb, f"{top}/{_REQUIRED}", [*required, *(False for _ in away)])
    _write(odb, f"{top}/{_NAMES}", [*sources, *away])
    for source in sources:
        for name, (tid, size, value) in _OF_SOURCE.items():
            odb.create(f"{top}/{_FRAGMENTS}/{source}/{name}", tid, value, size)


def required_sources(settings: Mapping[str, Any], sources: Sequence[str]) -> list[bool]:
    """Whether each of the sources is required, by the names in the settings."""
    choices = {name.lower(): required for name, required in _choices(settings).items()}
    return [choices.get(source.lower(), True) for source in sources]


def plan_settings(settings: Mapping[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """What a builder gets with its plan: its settings, of which those by source are of this run's sources only."""
    by_source = {_NAMES.lower(), _REQUIRED.lower(), _FRAGMENTS.lower()}
    each = {name.lower(): dict(part) for name, part in _value(settings, _FRAGMENTS, {}).items()}
    return {
        **{key: value for key, value in settings.items() if key.lower() not in by_source},
        _NAMES: list(sources),
        _REQUIRED: required_sources(settings, sources),
        _FRAGMENTS: {source: each.get(source.lower(), {}) for source in sources},
    }


def _choices(settings: Mapping[str, Any]) -> dict[str, bool]:
    """Name: required, as the ODB has them; a name without a choice beside it has none."""
    names, required = (_listed(_value(settings, key, [])) for key in (_NAMES, _REQUIRED))
    return {name: bool(choice) for name, choice in zip(names, required, strict=False) if name}


def _check_any_required(top: str, builder: str, sources: Sequence[str], settings: Mapping[str, Any]) -> None:
    if any(required_sources(settings, sources)) or not sources:
        return
    places = [name.lower() for name in _listed(_value(settings, _NAMES, []))]
    raise TransitionError(
        f"no source of builder {builder} is required: {top}/{_REQUIRED} is n for {', '.join(sources)}. "
        f"Set '{top}/{_REQUIRED}[{places.index(sources[0].lower())}]' to y for {sources[0]}, or end the builder."
    )


def _value(settings: Mapping[str, Any], key: str, default: Any) -> Any:
    return next((value for name, value in settings.items() if name.lower() == key.lower()), default)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _write(odb: Odb, path: str, value: Any) -> None:
    if odb.get(path) != value:
        odb.set(path, value, by="run control", force=True)

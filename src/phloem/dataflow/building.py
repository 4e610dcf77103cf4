"""How fragments are built, as the settings say: the same for a run and for recorded files. Pure.

`/Equipment/<EB>/Settings` and, below it, ``Fragments/<source>`` for what one source has of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeVar

import msgspec

from phloem.kernel import Builder, Check, Policy
from phloem.model.errors import SettingsError

__all__ = [
    "FATES",
    "BuilderSettings",
    "SourceSettings",
    "make_builder",
    "parse_settings",
    "shift_text",
    "source_settings",
]

FATES = ("received", "built", "incomplete", "late", "duplicate", "discarded", "quarantined")
E = TypeVar("E", bound=IntEnum)

_KEYS = {
    "timeout_ms": "Timeout ms",
    "optional_wait_ms": "Optional wait ms",
    "reorder": "Reorder",
    "duplicate_window": "Duplicate window",
    "on_incomplete": "On incomplete",
    "match": "Match",
    "window_ns": "Window ns",
    "reorder_ns": "Reorder ns",
    "time_check": "Time check",
    "time_bank": "Time bank",
    "keep_headers": "Keep headers",
    "user_field": "User Field",
    "user_build": "User build",
    "user_code": "User code",
    "user_error": "User error",
}


class BuilderSettings(msgspec.Struct, frozen=True, rename=_KEYS):
    """`/Equipment/<EB>/Settings`.

    ``timeout_ms``: how long a silent source is waited for; ``optional_wait_ms``: the same for an optional one.
    ``reorder``: how many serial numbers a fragment may come behind the source's highest; ``reorder_ns``: the same
    where sources are matched by time. ``on_incomplete``: build, discard, stop. ``match``: serial, time.
    ``window_ns``: how far times may lie apart that belong together. ``time_check``: off, continue, repair, stop.
    ``time_bank``: UINT64, ns. ``keep_headers``: a bank FRAG in each event. ``user_code``: a Python file with
    ``eb_user`` or ``eb_user_batch``; ``user_build``: only the banks that it makes; ``user_error``: stop, skip.
    """

    timeout_ms: int = 10_000
    optional_wait_ms: int = 20
    reorder: int = 0
    duplicate_window: int = 4096
    on_incomplete: str = "build"
    match: str = "serial"
    window_ns: int = 1000
    reorder_ns: int = 0
    time_check: str = "off"
    time_bank: str = "TIME"
    keep_headers: bool = False
    user_field: str = "100"
    user_build: bool = False
    user_code: str = ""
    user_error: str = "stop"

    @property
    def by_time(self) -> bool:
        """Whether sources are matched by time."""
        return self.match.lower() == "time"

    @property
    def needs_times(self) -> bool:
        """Whether the fragments' times matter."""
        return self.by_time or self.time_check.lower() != "off"


_SOURCE_KEYS = {
    "timeout_ms": "Timeout ms",
    "on_incomplete": "On incomplete",
    "reorder": "Reorder",
    "time_offset_ns": "Time offset ns",
}


class SourceSettings(msgspec.Struct, frozen=True, rename=_SOURCE_KEYS):
    """`/Equipment/<EB>/Settings/Fragments/<source>`; -1 and an empty text: as the builder has it.

    ``required``: from Fragment Required. ``on_incomplete``: what is done with an event in which it is missing.
    """

    timeout_ms: int = -1
    on_incomplete: str = ""
    reorder: int = -1
    time_offset_ns: int = 0
    required: bool = True


def parse_settings(plain: Mapping[str, Any], where: str) -> BuilderSettings:
    """The builder's settings from plain values, checked; ``where`` they stand, for messages."""
    try:
        settings = msgspec.convert(dict(plain), BuilderSettings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where}: {error}") from None
    _one_of(settings.on_incomplete, Policy, f"{where}/On incomplete")
    _check(settings.time_check, where)
    for key, value, allowed in (
        ("Match", settings.match, ("serial", "time")),
        ("User error", settings.user_error, ("stop", "skip")),
    ):
        if value.lower() not in allowed:
            raise SettingsError(f"{where}/{key} is {value!r}; use {' or '.join(allowed)}")
    for key in ("timeout_ms", "optional_wait_ms", "reorder", "duplicate_window", "window_ns", "reorder_ns"):
        if getattr(settings, key) < 0:
            raise SettingsError(f"{where}/{_KEYS[key]} is {getattr(settings, key)}; it cannot be less than 0")
    if len(settings.time_bank) != 4 or not settings.time_bank.isascii():
        raise SettingsError(f"{where}/Time bank is {settings.time_bank!r}; a bank name has 4 ASCII characters")
    return settings


def source_settings(plain: Mapping[str, Any], sources: Sequence[str], where: str) -> dict[str, SourceSettings]:
    """What each source has of its own, from ``Fragments``, ``Fragment Names`` and ``Fragment Required``."""
    names, choices = plain.get("Fragment Names") or [], plain.get("Fragment Required") or []
    required = dict(zip(names, choices, strict=False))
    found = {}
    for source in sources:
        own = dict((plain.get("Fragments") or {}).get(source) or {})
        try:
            one = msgspec.convert({**own, "required": bool(required.get(source, True))}, SourceSettings, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{where}/Fragments/{source}: {error}") from None
        if one.on_incomplete:
            _one_of(one.on_incomplete, Policy, f"{where}/Fragments/{source}/On incomplete")
        found[source] = one
    if not any(one.required for one in found.values()):
        raise SettingsError(f"{where}/Fragment Required is n for all of {', '.join(sources)}; one must be required")
    return found


def make_builder(
    settings: BuilderSettings,
    sources: Mapping[str, SourceSettings],
    event_id: int,
    trigger_mask: int,
    max_event_bytes: int = 2**64 - 1,
) -> Builder:
    """A builder of these sources, in their order."""
    own = list(sources.values())
    usual = settings.reorder_ns if settings.by_time else settings.reorder
    reorder = [usual if s.reorder < 0 or settings.by_time else s.reorder for s in own]
    policies = [_one_of(s.on_incomplete or settings.on_incomplete, Policy, "On incomplete") for s in own]
    window = (
        settings.duplicate_window if settings.by_time else max(settings.duplicate_window, *(r + 1 for r in reorder))
    )
    return Builder(
        list(sources),
        event_id=event_id,
        trigger_mask=trigger_mask,
        reorder=reorder,
        window=max(1, window),
        on_incomplete=[int(policy) for policy in policies],
        max_event=max_event_bytes,
        required=[s.required for s in own],
        by_time=settings.by_time,
        match_window=settings.window_ns,
        offsets=[s.time_offset_ns for s in own],
        check=int(Check.OFF if settings.by_time else _check(settings.time_check, "Time check")),
        time_bank=settings.time_bank.encode(),
        headers=settings.keep_headers,
        side=True,
    )


def shift_text(source: str, event: int, shift: int | None) -> str:
    """What the check by time found, for people."""
    if shift == 0:
        return f"{source} is in step again since event {event}"
    if shift is None:
        return f"{source} disagrees in time since event {event}, and no event near it agrees"
    return f"{source} shifted by {shift:+d} since event {event}"


def _check(text: str, where: str) -> Check:
    return _one_of(text, Check, f"{where}/Time check")


def _one_of(text: str, kind: type[E], where: str) -> E:
    try:
        return kind[text.upper()]
    except KeyError:
        allowed = " or ".join(member.name.lower() for member in kind)
        raise SettingsError(f"{where} is {text!r}; use {allowed}") from None

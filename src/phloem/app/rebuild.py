"""Builds recorded fragments, one file per source, with the same kernel, settings, marks and user code as a run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from phloem.dataflow.building import (
    FATES,
    BuilderSettings,
    SourceSettings,
    make_builder,
    parse_settings,
    shift_text,
    source_settings,
)
from phloem.dataflow.eb_user import BATCH_BYTES, BATCH_EVENTS, UserCode
from phloem.formats.midas.events import decode_header, run_event
from phloem.formats.midas.file import read_raw, read_whole
from phloem.formats.midas.index import read_index
from phloem.formats.midas.writer import RunWriter
from phloem.kernel import Builder, Cause, Stop
from phloem.model.errors import SettingsError
from phloem.model.event import EventId
from phloem.model.run import Account

__all__ = ["BuildOptions", "rebuild"]

BLOCK_BYTES = 256 << 10
FRAMES_AHEAD = 2  # blocks taken from a file before the kernel has read them
_CAUSES = {cause.name.lower(): cause for cause in Cause}


class BuildOptions(msgspec.Struct, frozen=True):
    """What the command line says. ``settings``: keys of `/Equipment/<EB>/Settings`, before those of the recorded run.

    ``optional``: names of sources that an event need not have. ``marks``: the index of the run. ``user_code``: a file.
    """

    settings: dict[str, Any] = {}
    event_id: int | None = None
    trigger_mask: int | None = None
    optional: tuple[str, ...] = ()
    marks: Path | None = None
    user_code: str = ""


class _Recorded(msgspec.Struct):
    """What the files say of the run in which they were recorded."""

    number: int
    time_stamp: int
    odb: bytes
    settings: dict[str, Any] = {}
    event_id: int = 1
    trigger_mask: int = 0


class _Pump:
    """Feeds the files to a builder and writes what leaves."""

    def __init__(
        self, kernel: Builder, names: Sequence[str], user: UserCode | None, note: Callable[[str], None]
    ) -> None:
        self._kernel = kernel
        self._names = names
        self._user = user
        self._note = note
        self.sent = [0] * len(names)
        self._frames = [0] * len(names)
        self._stopped = False

    def run(self, inputs: Sequence[Iterator[tuple[bytes, int]]], writer: RunWriter) -> None:
        """Until all files have been built."""
        room = BLOCK_BYTES
        while True:
            for number, blocks in enumerate(inputs):
                self._feed(number, blocks)
            built, n_events, why, wanted = self._staged() if self._user is not None else self._built(room)
            if n_events:
                first = int.from_bytes(built[4:8], "little")
                writer.write(built, n_events, first, _last_serial(built))
            self._tell(why)
            if why == Stop.DONE:
                return
            room = max(BLOCK_BYTES, wanted)

    def _feed(self, number: int, blocks: Iterator[tuple[bytes, int]]) -> None:
        kernel = self._kernel
        while kernel.frames_unread(number) < FRAMES_AHEAD and not kernel.ended(number):
            block = next(blocks, None)
            if block is None:
                kernel.border_follows(number)
                kernel.end_source(number)
                return
            data, n_events = block
            times = None
            if self._user is not None and self._user.gives_times:
                times = self._user.times(self._names[number], data, n_events)
            kernel.add_bytes(number, 0, data, n_events, self._frames[number], times)
            self._frames[number] += 1
            self.sent[number] += n_events

    def _built(self, room: int) -> tuple[bytes, int, int, int]:
        built, why, n_events, wanted = self._kernel.build(room)
        return built, n_events, why, wanted

    def _staged(self) -> tuple[bytes, int, int, int]:
        assert self._user is not None
        if not self._user.sees_events:
            return self._built(BLOCK_BYTES)
        why = self._kernel.stage(BATCH_BYTES, BATCH_EVENTS)
        problem = self._user.decide(self._kernel)
        if problem is not None:
            self._stop(str(problem))
        built, n_events = self._kernel.write_staged(self._kernel.n_staged)
        return built, n_events, why, 0

    def _tell(self, why: int) -> None:
        kernel = self._kernel
        kernel.take_side()
        for number, event, shift in kernel.take_reports():
            self._note(shift_text(self._names[number], event, shift))
        if why == Stop.POLICY:
            self._stop(f"event {kernel.oldest_serial} is not complete, and On incomplete is stop")
        elif why == Stop.SHIFTED:
            self._stop(f"times disagree at event {kernel.oldest_serial}, and Time check is stop")

    def _stop(self, why: str) -> None:
        if not self._stopped:
            self._note(f"{why}; the rest is discarded")
        self._stopped = True
        self._kernel.discard_rest()


def rebuild(
    fragments: Sequence[Path],
    out: Path,
    options: BuildOptions | None = None,
    load: Callable[[str], ModuleType] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Join the fragments of ``fragments`` into ``out``; the run's document.

    Sources are named by their files (``run00042.Trigger01.mid`` and ``Trigger01.mid`` are Trigger01). Files that
    a run recorded bring that run's settings with them; ``options`` go before those. ``note`` is told what people
    should know.
    """
    asked = options or BuildOptions()
    recorded = _recorded(fragments, note)
    names = [_source_name(path, recorded.number) for path in fragments]
    if len(set(names)) != len(names):
        raise SettingsError(f"two files of the same stem would be one source: {', '.join(names)}")
    order = sorted(range(len(names)), key=names.__getitem__)
    sources = [names[i] for i in order]
    settings, own = _settings(asked, recorded, sources)
    kernel = make_builder(
        settings,
        own,
        recorded.event_id if asked.event_id is None else asked.event_id,
        recorded.trigger_mask if asked.trigger_mask is None else asked.trigger_mask,
    )
    kernel.begin_run(0)
    if asked.marks is not None:
        _give_marks(kernel, sources, asked.marks)
    user = _user_code(asked, settings, recorded.number, sources, load)
    began_s = time.monotonic()
    writer = RunWriter(out, recorded.number, started_s=time.time())
    pump = _Pump(kernel, sources, user, note)
    try:
        writer.write([run_event(True, recorded.number, recorded.time_stamp, recorded.odb)], 1, None, None)
        if user is not None:
            user.begin_of_run(settings.user_field, restarted=False)
        pump.run([_blocks(fragments[i]) for i in order], writer)
        if user is not None:
            user.end_of_run()
        account = _account(kernel, sources, pump.sent)
        told = {**account.report(), "balanced": account.balanced}
        end = msgspec.json.format(msgspec.json.encode({"Account": told}), indent=2)
        writer.write([run_event(False, recorded.number, recorded.time_stamp, end)], 1, None, None)
        writer.close("complete", told)
    except BaseException:
        writer.abandon()
        raise
    return {
        "run": recorded.number,
        "status": "rebuilt",
        "files": [str(out)],
        "account": account.report(),
        "balanced": account.balanced,
        "seconds": time.monotonic() - began_s,
        "events": kernel.events_built,
        "bytes": writer.bytes,
        "losses": account.losses(),
    }


# ---------------------------------------------------------------------- settings


def _settings(
    asked: BuildOptions, recorded: _Recorded, sources: Sequence[str]
) -> tuple[BuilderSettings, dict[str, SourceSettings]]:
    plain = {**recorded.settings, **asked.settings}
    where = "settings"
    own = source_settings(plain, sources, where)
    for name in asked.optional:
        if name not in own:
            raise SettingsError(f"there is no source {name!r} to be optional; there are {', '.join(sources)}")
        own[name] = msgspec.structs.replace(own[name], required=False)
    if not any(one.required for one in own.values()):
        raise SettingsError(f"all of {', '.join(sources)} are optional; one must be required")
    return parse_settings(plain, where), own


def _user_code(
    asked: BuildOptions,
    settings: BuilderSettings,
    run: int,
    sources: Sequence[str],
    load: Callable[[str], ModuleType] | None,
) -> UserCode | None:
    if not asked.user_code:
        if settings.user_code:
            raise SettingsError(
                f"the settings name user code {settings.user_code!r}: say where it is with --user-code FILE.py, or "
                f"build without it with --user-code none"
            )
        return None
    if asked.user_code == "none" or load is None:
        return None
    skips = settings.user_error.lower() == "skip"
    return UserCode(load(asked.user_code), run, list(sources), settings.user_build, skips)


def _give_marks(kernel: Builder, sources: Sequence[str], index: Path) -> None:
    """What timing decided in the run is decided again."""
    for mark in read_index(index).marks:
        if mark.source not in sources or mark.cause not in _CAUSES:
            raise SettingsError(
                f"{index} has a mark of source {mark.source!r} ({mark.cause}); the files are of {', '.join(sources)}"
            )
        first, last = int.from_bytes(mark.data[:8], "little"), int.from_bytes(mark.data[8:16], "little")
        kernel.give_mark(sources.index(mark.source), _CAUSES[mark.cause], first, last)


def _recorded(paths: Sequence[Path], note: Callable[[str], None]) -> _Recorded:
    """Run number, time and ODB of the first file's begin of run, with the settings of the builder that had them."""
    _, raw = next(read_raw(paths[0]), (0, b""))
    if not raw or (header := decode_header(raw)).event_id != EventId.BEGIN_OF_RUN:
        return _Recorded(0, 0, b"{}")
    odb = bytes(raw[16:])
    found = _Recorded(header.serial_number, header.time_stamp, odb)
    name = _source_name(paths[0], found.number)
    try:
        tree = msgspec.json.decode(odb.rstrip(b"\0"), type=dict[str, Any])
    except msgspec.DecodeError:  # MIDAS' own, in XML: it has no settings of ours
        return found
    for equipment, part in (tree.get("Equipment") or {}).items():
        settings = _plain(part.get("Settings")) if isinstance(part, dict) else {}
        if name in (settings.get("Fragment Names") or ()):
            common = part.get("Common") or {}
            found.settings = settings
            found.event_id = _number(common.get("Event ID"), 1)
            found.trigger_mask = _number(common.get("Trigger mask"), 0)
            note(f"building as {equipment} did in run {found.number}, by the settings in {paths[0].name}")
    return found


def _plain(tree: Any) -> dict[str, Any]:
    """A directory of an ODB dump without what describes the keys."""
    if not isinstance(tree, Mapping):
        return {}
    values = {key: value for key, value in tree.items() if not key.endswith("/key")}
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _number(value: Any, default: int) -> int:
    """MIDAS' JSON has unsigned numbers as texts such as "0x0001"."""
    if isinstance(value, str):
        return int(value, 16)
    return default if value is None else int(value)


# ---------------------------------------------------------------------- files


def _source_name(path: Path, run: int) -> str:
    stem = re.sub(rf"^run0*{run}\.", "", path.name)
    return stem.split(".")[0]


def _account(kernel: Builder, sources: Sequence[str], sent: Sequence[int]) -> Account:
    fates = {name: dict(zip(FATES[1:], kernel.fates(i)[1:], strict=True)) for i, name in enumerate(sources)}
    told = [{"fates": fates}, {"sent": {name: {"sent": n} for name, n in zip(sources, sent, strict=True)}}]
    return Account.assembled(told, [])


def _last_serial(built: bytes) -> int:
    at = last = 0
    while at < len(built):
        last = int.from_bytes(built[at + 4 : at + 8], "little")
        at += 16 + int.from_bytes(built[at + 12 : at + 16], "little")
    return last


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Events at 8-byte steps, about a quarter of a MB at a time, with their number."""
    block, n_events = bytearray(), 0
    for raw in read_whole(path):
        block += raw
        block += bytes(-len(raw) % 8)
        n_events += 1
        if len(block) >= BLOCK_BYTES:
            yield bytes(block), n_events
            block, n_events = bytearray(), 0
    if n_events:
        yield bytes(block), n_events

"""Builds recorded fragments, one file per source, with the same kernel, settings, marks and user code as a run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from phloem.app.recorded import BLOCK_BYTES, RecordedBuilder, Recording, builder_of, recordings
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
from phloem.formats.midas.events import decode_event, run_event, scan
from phloem.formats.midas.index import index_path, read_index
from phloem.formats.midas.writer import RunWriter
from phloem.kernel import Builder, Cause, Stop
from phloem.model.errors import FormatError, SettingsError
from phloem.model.run import Account

__all__ = ["BuildOptions", "rebuild"]

FRAMES_AHEAD = 2  # blocks taken from a file before the kernel has read them
MARK_BYTES = 16
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


class _Pump:
    """Feeds the files to a builder and writes what leaves."""

    def __init__(
        self, kernel: Builder, names: Sequence[str], user: UserCode | None, out: Path, note: Callable[[str], None]
    ) -> None:
        self._kernel = kernel
        self._names = names
        self._user = user
        self._out = out
        self._note = note
        self.sent = [0] * len(names)
        self.stopped = ""  # why, if it was
        self._frames = [0] * len(names)
        self._quarantined: Counter[tuple[str, str]] = Counter()

    def run(self, inputs: Sequence[Iterator[tuple[bytes, int]]], writer: RunWriter) -> None:
        """Until all files have been built."""
        room = BLOCK_BYTES
        while True:
            for number, blocks in enumerate(inputs):
                self._feed(number, blocks)
            built, n_events, why, wanted = self._build(room)
            if n_events:
                first = int.from_bytes(built[4:8], "little")
                with _writing(self._out):
                    writer.write(built, n_events, first, _last_serial(built))
            self._tell(why)
            if why == Stop.DONE:
                self._tell_at_end()
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

    def _build(self, room: int) -> tuple[bytes, int, int, int]:
        if self._user is None or not self._user.sees_events:
            built, why, n_events, wanted = self._kernel.build(room)
            return built, n_events, why, wanted
        why = self._kernel.stage(BATCH_BYTES, BATCH_EVENTS)
        problem = self._user.decide(self._kernel)
        if problem is not None:
            self._stop(str(problem))
        built, n_events = self._kernel.write_staged(self._kernel.n_staged)
        return built, n_events, why, 0

    def _tell(self, why: int) -> None:
        kernel = self._kernel
        _, quarantined = kernel.take_side()
        for source, reason, n_fragments in _quarantined_in(quarantined):
            self._quarantined[source, reason] += n_fragments
        for number, event, shift in kernel.take_reports():
            self._note(shift_text(self._names[number], event, shift))
        if self._user is not None and self._user.first_error is not None:
            self._note(f"{self._user.first_error}; User error is skip, so the event is left out, as others will be")
            self._user.first_error = None
        if why == Stop.POLICY:
            self._stop(f"event {kernel.oldest_serial} is not complete, and On incomplete is stop")
        elif why == Stop.SHIFTED:
            self._stop(f"times disagree at event {kernel.oldest_serial}, and Time check is stop")

    def _tell_at_end(self) -> None:
        for (source, reason), number in self._quarantined.items():
            self._note(f"fragments of {source} in quarantine, which are not built: {number} ({reason})")
        if self._user is not None and self._user.errors and not self.stopped:
            self._note(f"events left out by errors of the user code: {self._user.errors}")

    def _stop(self, why: str) -> None:
        if not self.stopped:
            self._note(f"{why}; nothing is built from there on, the rest is discarded")
            self.stopped = why
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
    should know. ``damaged`` in the document: files that could be read in part only; ``stopped``: why nothing was
    built from some event on, empty if all was. An error leaves no file behind.
    """
    asked = options or BuildOptions()
    inputs = recordings(fragments)
    sources = [one.source for one in inputs]
    recorded = _recorded(inputs, note)
    run = recorded.run or 0
    settings, own, event_id, trigger_mask = _settings(asked, inputs, run, note)
    kernel = make_builder(settings, own, event_id, trigger_mask)
    kernel.begin_run(0)
    if asked.marks is not None:
        _give_marks(kernel, sources, asked.marks, recorded.run, note)
    user = _user_code(asked, settings, run, sources, load)
    began_s = time.monotonic()
    pump = _Pump(kernel, sources, user, out, note)
    writer = _writer(out, run)
    try:
        with _writing(out):
            writer.write([run_event(True, run, recorded.time_stamp, recorded.odb or b"{}")], 1, None, None)
        if user is not None:
            user.begin_of_run(settings.user_field, restarted=False)
        pump.run([one.blocks() for one in inputs], writer)
        if user is not None:
            user.end_of_run()
        account = _account(kernel, sources, pump.sent)
        told = {**account.report(), "balanced": account.balanced}
        end = msgspec.json.format(msgspec.json.encode({"Account": told}), indent=2)
        with _writing(out):
            writer.write([run_event(False, run, recorded.time_stamp, end)], 1, None, None)
            writer.close("complete", told)
    except BaseException:
        writer.abandon()
        out.unlink(missing_ok=True)
        index_path(out).unlink(missing_ok=True)
        raise
    for one in inputs:
        if one.damage is not None:
            note(f"{one.damage}: the fragments of {one.source} before that are built, and nothing of it behind that")
    return {
        "run": run,
        "status": "stopped" if pump.stopped else "rebuilt",
        "files": [str(out)],
        "account": account.report(),
        "balanced": account.balanced,
        "seconds": time.monotonic() - began_s,
        "events": kernel.events_built,
        "bytes": writer.bytes,
        "losses": account.losses(),
        "stopped": pump.stopped,
        "damaged": {one.source: str(one.damage) for one in inputs if one.damage is not None},
    }


def _writer(out: Path, run: int) -> RunWriter:
    for path in (out, index_path(out)):
        if path.exists():
            raise SettingsError(f"{path} exists and is not overwritten; choose another name with -o, or move it away")
    if not out.parent.is_dir():
        raise SettingsError(f"there is no folder {out.parent} for {out.name}; make it first, or choose another with -o")
    with _writing(out):
        return RunWriter(out, run, started_s=time.time())


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"{out} cannot be written: {error.strerror}; choose another place with -o"
        raise SettingsError(text) from None


# ---------------------------------------------------------------------- settings


def _recorded(inputs: Sequence[Recording], note: Callable[[str], None]) -> Recording:
    """The file whose run number, time and ODB are taken: the first that has them."""
    for one in inputs:
        if one.is_empty:
            note(f"{one.path} is empty: events are built as if {one.source} had sent nothing")
    with_run = [one for one in inputs if one.run is not None]
    if len({one.run for one in with_run}) > 1:
        runs = ", ".join(f"{one.path.name} of run {one.run}" for one in with_run)
        note(f"the files are of different runs ({runs}); they are joined as run {with_run[0].run}")
    return with_run[0] if with_run else inputs[0]


def _settings(
    asked: BuildOptions, inputs: Sequence[Recording], run: int, note: Callable[[str], None]
) -> tuple[BuilderSettings, dict[str, SourceSettings], int, int]:
    """The builder's settings, those of each source, event id and trigger mask: as asked, else as recorded."""
    sources = [one.source for one in inputs]
    was = next((found for one in inputs if (found := builder_of(one))), RecordedBuilder("", {}, 1, 0))
    if was.equipment:
        note(f"building as {was.equipment} did in run {run}, by the settings that the files bring with them")
    absent = sorted(set(was.sources) - set(sources))
    if absent:
        note(f"{was.equipment} had also {', '.join(absent)} in run {run}: no file of it is given, and no event has it")
    plain = _merged(was.settings, asked.settings)
    where = "settings"
    own = source_settings(plain, sources, where)
    for name in asked.optional:
        if name not in own:
            raise SettingsError(f"there is no source {name!r} to be optional; there are {', '.join(sources)}")
        own[name] = msgspec.structs.replace(own[name], required=False)
    if not any(one.required for one in own.values()):
        raise SettingsError(f"all of {', '.join(sources)} are optional; one must be required")
    event_id = was.event_id if asked.event_id is None else asked.event_id
    trigger_mask = was.trigger_mask if asked.trigger_mask is None else asked.trigger_mask
    return parse_settings(plain, where), own, event_id, trigger_mask


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both trees in one; ``above`` goes before, key by key."""
    merged = {**below, **above}
    for key, value in above.items():
        before = below.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            merged[key] = _merged(before, value)
    return merged


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


def _give_marks(
    kernel: Builder, sources: Sequence[str], path: Path, run: int | None, note: Callable[[str], None]
) -> None:
    """What timing decided in the run is decided again."""
    index = read_index(path)
    if index.run is None:
        raise FormatError(
            f"no index of a run ({index.damage.reason if index.damage else 'it is empty'}); give its .idx", str(path)
        )
    if run is not None and index.run.run_number != run:
        raise SettingsError(f"{path} has the marks of run {index.run.run_number}, and the files are of run {run}")
    if index.damage is not None:
        note(f"{index.damage}: marks behind that are not known")
    foreign = sorted({mark.source for mark in index.marks} - set(sources))
    if foreign and len(foreign) == len({mark.source for mark in index.marks}):
        raise SettingsError(
            f"{path} has marks of {', '.join(foreign)}, and the files are of {', '.join(sources)}: name each file by "
            f"its source, as in {foreign[0]}.mid"
        )
    if foreign:
        note(f"{path} has marks of {', '.join(foreign)} too, of which no file is given; they are left out")
    for mark in index.marks:
        if mark.source in foreign:
            continue
        if mark.cause not in _CAUSES or len(mark.data) != MARK_BYTES:
            raise FormatError(
                f"a mark of {mark.source} has cause {mark.cause!r} and {len(mark.data)} bytes; known causes are "
                f"{', '.join(_CAUSES)}, with {MARK_BYTES} bytes",
                str(path),
            )
        first, last = int.from_bytes(mark.data[:8], "little"), int.from_bytes(mark.data[8:], "little")
        kernel.give_mark(sources.index(mark.source), _CAUSES[mark.cause], first, last)


# ---------------------------------------------------------------------- what left


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


def _quarantined_in(side: bytes) -> Iterator[tuple[str, str, int]]:
    """Source, reason and number of fragments, from the kernel's events on what it put in quarantine."""
    for at, _ in scan(side):
        banks = {bank.name: bank.values for bank in decode_event(side, at)[0].banks}
        source, text, *_ = banks["WHYQ"].tobytes().decode().split("\0")
        reason, _, number = text.rpartition("; fragments: ")
        yield source, reason, int(number)

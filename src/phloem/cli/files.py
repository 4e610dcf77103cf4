"""What `phloem dump` and `phloem verify` do: show the events of a file, and report on proofs.

JSON lines of `dump`, one object per event::

    {"event_id", "trigger_mask", "serial_number", "time_stamp", "data_size", "format", "banks" or "text"}

``banks``: list of {"name", "tid", "size_bytes", "values"}; run borders and messages have ``text`` instead,
pieces of fragmented events ``data_hex``. CHAR values are one text, STRING and LINK a list of texts; numbers
that JSON does not know are the texts "NaN", "Infinity" and "-Infinity", as MIDAS writes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import msgspec

from phloem.formats.midas.events import is_piece
from phloem.formats.midas.file import read_events
from phloem.formats.midas.verify import Problem, Result, verify, verify_run
from phloem.model.event import TID, Bank, Event, EventId, MessageType

__all__ = ["dump", "event_dict", "event_lines", "verify_dict", "verify_files", "verify_report"]

TEXT_LINES = 3  # of an ODB dump, which has hundreds


def dump(path: str | Path, as_json: bool, out: TextIO, limit: int | None = None) -> None:
    """Write the events of a file to ``out``, at most ``limit``: as JSON lines or for people.

    All whole events are written before the FormatError of the first that is not.
    """
    for number, (offset, event) in enumerate(islice(read_events(path), limit)):
        if as_json:
            out.write(msgspec.json.encode(event_dict(event)).decode() + "\n")
        else:
            out.writelines(line + "\n" for line in event_lines(number, offset, event))


def event_dict(event: Event) -> dict[str, Any]:
    """An event as plain values, see the module."""
    plain: dict[str, Any] = {
        "event_id": event.event_id,
        "trigger_mask": event.trigger_mask,
        "serial_number": event.serial_number,
        "time_stamp": event.time_stamp,
        "data_size": event.data_size,
        "format": event.format.name if event.format is not None else None,
    }
    if event.format is not None:
        plain["banks"] = [
            {
                "name": bank.name,
                "tid": bank.tid,
                "size_bytes": bank.values.nbytes,
                "values": plain_values(bank),
            }
            for bank in event.banks
        ]
    elif is_piece(event.event_id):
        plain["data_hex"] = event.raw.hex()
    else:
        plain["text"] = _text(event.raw)
    return plain


def plain_values(bank: Bank) -> Any:
    """The values of a bank as numbers, truths or texts."""
    if bank.tid == TID.CHAR:
        return _text(bank.values.tobytes())
    if bank.tid in (TID.STRING, TID.LINK):
        return _strings(bank)
    if bank.tid == TID.BOOL:
        return [bool(value) for value in bank.values.tolist()]
    return [_number(value) for value in bank.values.tolist()]


def _strings(bank: Bank) -> list[str]:
    """The texts of a STRING bank, which are separated by NULs and padded with them."""
    return [text for text in _decoded(bank.values.tobytes()).split("\0") if text]


def _number(value: float) -> float | str:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _text(data: bytes) -> str:
    return _decoded(data.rstrip(b"\0"))


# For people


def event_lines(number: int, offset: int, event: Event) -> Iterator[str]:
    """An event as mdump shows it, with true types, the position in the file and the time in UTC."""
    yield f"------------------------ Event# {number} ------------------------ byte {offset}"
    time = datetime.fromtimestamp(event.time_stamp, UTC).strftime("%Y-%m-%d %H:%M:%S")
    yield (
        f"Evid:{event.event_id:04x}- Mask:{event.trigger_mask:04x}- Serial:{event.serial_number}- "
        f"Time:{event.time_stamp:#x} ({time} UTC)- Dsize:{event.data_size}/{event.data_size:#x}"
    )
    if event.format is None:
        yield from _raw_lines(event)
        return
    names = "".join(bank.name for bank in event.banks)
    yield f"#banks:{len(event.banks)} - Bank list:-{names}- Format:{event.format.name}"
    for bank in event.banks:
        yield ""
        yield from _bank_lines(bank)


def _raw_lines(event: Event) -> Iterator[str]:
    if is_piece(event.event_id):
        yield f"Piece of a fragmented event, {len(event.raw)} bytes"
        return
    lines = _text(event.raw).splitlines()
    if event.event_id == EventId.MESSAGE:
        yield f"Message, type {MessageType(event.trigger_mask).name or event.trigger_mask}: {' '.join(lines)}"
        return
    what = "Begin" if event.event_id == EventId.BEGIN_OF_RUN else "End"
    yield f"{what} of run {event.serial_number}, ODB dump of {len(event.raw)} bytes:"
    yield from (f"   {line}" for line in lines[:TEXT_LINES])
    if len(lines) > TEXT_LINES:
        yield f"   ... {len(lines) - TEXT_LINES} more lines"


def _bank_lines(bank: Bank) -> Iterator[str]:
    tid = TID(bank.tid)
    size, item = bank.values.nbytes, tid.dtype.itemsize
    yield f"Bank:{bank.name} Length: {size}(I*1)/{len(bank.values)}(values) Type:{tid.odb_name} ({bank.tid})"
    if tid in (TID.STRING, TID.LINK):
        yield from (f"{place:4d}-> {text}" for place, text in enumerate(_strings(bank), 1))
        return
    per_line = 16 if item == 1 else 8
    show = _SHOWN.get(tid, "{:#04x}".format)
    values = bank.values.tolist()
    for start in range(0, len(values), per_line):
        row = " ".join(show(value) for value in values[start : start + per_line])
        yield f"{start + 1:4d}-> {row}"


def _character(value: bytes) -> str:
    text = value.decode("latin-1")
    return text if text.isprintable() and text else "."


_SHOWN: dict[TID, Callable[[Any], str]] = {
    TID.CHAR: _character,
    TID.INT8: "{:4d}".format,
    TID.INT16: "{:6d}".format,
    TID.INT32: "{:11d}".format,
    TID.INT64: "{:20d}".format,
    TID.UINT16: "{:#06x}".format,
    TID.UINT32: "{:#010x}".format,
    TID.UINT64: "{:#018x}".format,
    TID.BITFIELD: "{:#010x}".format,
    TID.BOOL: lambda value: "Y" if value else "N",
    TID.FLOAT32: "{:12.6g}".format,
    TID.FLOAT64: "{:15.9g}".format,
}


# Proofs


def verify_files(paths: Iterable[str | Path]) -> list[Result]:
    """Prove files; an ``.idx`` stands for all files of its run."""
    results: list[Result] = []
    for path in paths:
        results += verify_run(path) if Path(path).suffix == ".idx" else [verify(path)]
    return results


TOLD = 20  # problems of one file that people want to read


def verify_report(results: Iterable[Result]) -> list[str]:
    """The results as lines for people: one for each file, then what is wrong and what is worth knowing."""
    lines = []
    for result in results:
        verdict = "ok" if result.ok else "DAMAGED"
        how = f"closed as {result.status}" if result.status else "index" if result.index else "no index"
        lines.append(f"{result.path}: {verdict}, {result.events} events in {result.bytes} bytes ({how})")
        lines += [f"  {_place(problem)}{problem.law}: {problem.text}" for problem in result.problems[:TOLD]]
        more = len(result.problems[TOLD:]) + result.untold
        if more:
            lines.append(f"  and {more} more (--json tells the first 1000)")
        lines += [f"  note: {_place(note)}{note.law}: {note.text}" for note in result.notes]
        if not result.ok:
            lines.append(f"  {_last_event(result)}")
    return lines


def _place(problem: Problem) -> str:
    where = f"{problem.path}, " if problem.path.endswith(".idx") else ""
    return f"{where}byte {problem.offset}: "


def _last_event(result: Result) -> str:
    last = result.last_whole_event
    if last is None:
        return "there is no whole event"
    name, serial, offset = f"{last.event_id:#06x}", last.serial_number, last.offset
    return f"last whole event: id {name}, serial number {serial}, at byte {offset}"


def verify_dict(results: Iterable[Result]) -> dict[str, Any]:
    """The results as plain values: {"ok", "files": [{"path", "ok", "events", "bytes", "problems", ...}]}."""
    files = [{"ok": result.ok, **msgspec.to_builtins(result)} for result in results]
    for plain in files:
        last = plain["last_whole_event"]
        if last is not None:
            plain["last_whole_event"] = dict(zip(("offset", "serial_number", "event_id"), last, strict=True))
    return {"ok": all(plain["ok"] for plain in files), "files": files}

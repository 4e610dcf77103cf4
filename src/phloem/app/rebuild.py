"""Builds recorded fragments, one file per source, with the same kernel as a run does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from phloem.dataflow.building import FATES
from phloem.formats.midas.events import decode_header, has_banks, run_event
from phloem.formats.midas.file import read_raw
from phloem.formats.midas.writer import RunWriter
from phloem.kernel import Builder, Stop
from phloem.model.errors import SettingsError
from phloem.model.event import EventId
from phloem.model.run import Account

__all__ = ["rebuild"]

BLOCK_BYTES = 256 << 10


def rebuild(fragments: list[Path], out: Path, event_id: int = 1, trigger_mask: int = 0) -> dict[str, Any]:
    """Join the fragments of ``fragments`` (sources named by file stem) into ``out``; the run's document."""
    names = [_stem(path) for path in fragments]
    if len(set(names)) != len(names):
        raise SettingsError(f"two files of the same stem would be one source: {', '.join(names)}")
    order = sorted(range(len(names)), key=names.__getitem__)
    inputs = [_blocks(fragments[i]) for i in order]
    sources = [names[i] for i in order]
    builder = Builder(sources, event_id=event_id, trigger_mask=trigger_mask)
    builder.begin_run(0)
    number, time_stamp, odb = _begin_of(fragments[order[0]])
    writer = RunWriter(out, number, started_s=time.time())
    began_s = time.monotonic()
    try:
        writer.write([run_event(True, number, time_stamp, odb)], 1, None, None)
        sent = _pump(builder, inputs, writer)
    except BaseException:
        writer.abandon()
        raise
    fates = {name: dict(zip(FATES[1:], builder.fates(i)[1:], strict=True)) for i, name in enumerate(sources)}
    told = [{"fates": fates}, {"sent": {name: {"sent": n} for name, n in zip(sources, sent, strict=True)}}]
    account = Account.assembled(told, [])
    report = account.report()
    told_at_end = {**report, "balanced": account.balanced}
    end = msgspec.json.format(msgspec.json.encode({"Account": told_at_end}), indent=2)
    writer.write([run_event(False, number, time_stamp, end)], 1, None, None)
    writer.close("complete", told_at_end)
    return {
        "run": number,
        "status": "rebuilt",
        "files": [str(out)],
        "account": report,
        "balanced": account.balanced,
        "seconds": time.monotonic() - began_s,
        "events": builder.events_built,
        "bytes": writer.bytes,
        "losses": account.losses(),
    }


def _begin_of(path: Path) -> tuple[int, int, bytes]:
    """Run number, time and ODB dump of the begin of run of a file; of none if it begins with something else."""
    _, raw = next(read_raw(path), (0, b""))
    if raw and (header := decode_header(raw)).event_id == EventId.BEGIN_OF_RUN:
        return header.serial_number, header.time_stamp, bytes(raw[16:])
    return 0, 0, b"{}"


def _pump(builder: Builder, inputs: list[Iterator[tuple[bytes, int]]], writer: RunWriter) -> list[int]:
    """Feed all sources until they end; the number of fragments that each had."""
    sent = [0] * len(inputs)
    frames = [0] * len(inputs)
    room = BLOCK_BYTES
    while True:
        for i, blocks in enumerate(inputs):
            while builder.frames_waiting(i) < 2 and not builder.ended(i):
                block = next(blocks, None)
                if block is None:
                    builder.end_source(i)
                    break
                builder.add_bytes(i, 0, block[0], block[1], frames[i])
                frames[i] += 1
                sent[i] += block[1]
        built, why, n_events, wanted = builder.build(room)
        if n_events:
            first = int.from_bytes(built[4:8], "little")
            writer.write(built, n_events, first, _last_serial(built))
        if why == Stop.DONE:
            return sent
        room = max(BLOCK_BYTES, wanted)


def _last_serial(built: bytes) -> int:
    at = last = 0
    while at < len(built):
        last = int.from_bytes(built[at + 4 : at + 8], "little")
        at += 16 + int.from_bytes(built[at + 12 : at + 16], "little")
    return last


def _blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Events at 8-byte steps, about a quarter of a MB at a time, with their number."""
    block, n_events = bytearray(), 0
    for _, raw in read_raw(path):
        if not has_banks(decode_header(raw).event_id):
            continue
        block += raw
        block += bytes(-len(raw) % 8)
        n_events += 1
        if len(block) >= BLOCK_BYTES:
            yield bytes(block), n_events
            block, n_events = bytearray(), 0
    if n_events:
        yield bytes(block), n_events


def _stem(path: Path) -> str:
    return path.name.split(".")[0]

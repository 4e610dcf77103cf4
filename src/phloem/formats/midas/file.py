"""Reading ``.mid`` files, plain or compressed, as a stream of events with bounded memory.

A ``.mid`` file is events back to back (:mod:`phloem.formats.midas.events`), without header or trailer of its
own. ``.mid.gz``, ``.mid.lz4`` and ``.mid.zst`` hold the same bytes as one or more gzip members, LZ4 frames or
zstd frames one after the other; all of them are read. Offsets are those in the uncompressed stream.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import lz4.frame
import numpy as np
import zstandard
from numpy.typing import NDArray

from phloem.formats.midas.events import (
    HEADER_BYTES,
    Buffer,
    Reassembly,
    decode_event,
    decode_header,
    has_banks,
    is_piece,
    walk,
)
from phloem.model.errors import FormatError, NotFoundError
from phloem.model.event import Event

__all__ = [
    "COMPRESSIONS",
    "Chunk",
    "compress",
    "compression_of",
    "decompress",
    "read_bytes",
    "read_chunks",
    "read_events",
    "read_raw",
    "read_whole",
]

CHUNK_BYTES = 1 << 20
# What one step of a decoder may be fed. zstd decoders take no limit for what comes out, and 4 kB of zstd can
# become 128 MB at the very most; the other two are limited on their way out.
FEED_BYTES = 4096
MAX_EVENT_BYTES = 1 << 30  # a larger event is a damaged size; it would be read into memory whole


class Chunk(NamedTuple):
    """Whole events back to back. ``offset``: of the first byte in the uncompressed stream.

    ``events``: (n,) int64, where each event begins in ``data``.
    """

    offset: int
    data: memoryview
    events: NDArray[np.int64]


class _Decoder(Protocol):
    """One compressed member: bytes in, bytes out."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...
    def rest(self) -> bytes | None:
        """What followed the member's end; None while it has not ended."""


class _Zlib:
    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self._decoder.eof:
            yield self._decoder.decompress(data, CHUNK_BYTES)
            data = self._decoder.unconsumed_tail

    def rest(self) -> bytes | None:
        return self._decoder.unused_data if self._decoder.eof else None


class _Lz4:
    def __init__(self) -> None:
        self._decoder = lz4.frame.LZ4FrameDecompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        out = self._decoder.decompress(data, CHUNK_BYTES)
        yield out
        while not self._decoder.eof and not self._decoder.needs_input:
            yield self._decoder.decompress(b"", CHUNK_BYTES)

    def rest(self) -> bytes | None:
        return (self._decoder.unused_data or b"") if self._decoder.eof else None


class _Zstd:
    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor().decompressobj()

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self._decoder.decompress(data)

    def rest(self) -> bytes | None:
        return self._decoder.unused_data if self._decoder.eof else None


class Compression(NamedTuple):
    """One way to compress: ending of the file name, first bytes of a member, and both directions."""

    suffix: str
    magic: bytes
    member: str
    compress: Callable[[bytes], bytes]
    decoder: Callable[[], _Decoder]


def _gzip(data: bytes) -> bytes:
    coder = zlib.compressobj(1, wbits=31)
    return coder.compress(data) + coder.flush()


def _lz4(data: bytes) -> bytes:
    return bytes(lz4.frame.compress(data, content_checksum=True))


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)


COMPRESSIONS = (
    Compression(".gz", b"\x1f\x8b", "gzip member", _gzip, _Zlib),
    Compression(".lz4", b"\x04\x22\x4d\x18", "LZ4 frame", _lz4, _Lz4),
    Compression(".zst", b"\x28\xb5\x2f\xfd", "zstd frame", _zstd, _Zstd),
)
_ERRORS = (zlib.error, RuntimeError, zstandard.ZstdError)


def compression_of(path: str | Path, first: bytes = b"") -> Compression | None:
    """How a file is compressed: by the ending of its name, else by its first bytes; None if it is not."""
    for compression in COMPRESSIONS:
        if str(path).endswith(compression.suffix):
            return compression
    return next((c for c in COMPRESSIONS if first.startswith(c.magic)), None)


def compress(data: bytes, compression: Compression | None) -> bytes:
    """One independent member that holds ``data``."""
    return data if compression is None else compression.compress(data)


def decompress(data: bytes, compression: Compression | None, path: str = "", base: int = 0) -> bytes:
    """The content of one or more whole members; ``base`` is their position in the file."""
    return b"".join(_expanded(iter((data,)), compression, path, base)) if compression else data


def read_bytes(path: str | Path, start: int = 0) -> Iterator[bytes]:
    """The uncompressed bytes of a file in pieces of about 1 MB.

    ``start``: byte of the file on disk to begin at, the beginning of a member. FormatError where a member is
    damaged or not whole, after all bytes that could be had. Memory is bounded by a few pieces.
    """
    with _opened(path) as file:
        compression = compression_of(path, file.read(4))
        file.seek(start)
        if compression is None:
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")
        else:
            fed = iter(lambda: file.read(FEED_BYTES), b"")
            yield from _gathered(_expanded(fed, compression, str(path), start))


def _opened(path: str | Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(f"there is no file {path}", path=str(path)) from None


def _expanded(pieces: Iterator[bytes], compression: Compression, path: str, position: int) -> Iterator[bytes]:
    """What is in the members of a compressed stream; ``position`` is where the stream begins in the file."""
    decoder, started = compression.decoder(), False
    for piece in pieces:
        position += len(piece)
        data: bytes | None = piece
        while data:
            started = True
            try:
                yield from decoder.feed(data)
            except _ERRORS as error:
                raise FormatError(f"damaged {compression.member}: {error}", path, position) from None
            data = decoder.rest()
            if data is not None:
                decoder, started = compression.decoder(), False
    if started:
        raise FormatError(f"the file ends within a {compression.member}", path, position)


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces joined to about 1 MB; what came before an error is given before it."""
    parts: list[bytes] = []
    size = 0
    failure: FormatError | None = None
    try:
        for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size >= CHUNK_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    except FormatError as error:
        failure = error
    if size:
        yield b"".join(parts)
    if failure:
        raise failure


def read_chunks(
    path: str | Path, start: int = 0, offset: int = 0, max_event_bytes: int = MAX_EVENT_BYTES
) -> Iterator[Chunk]:
    """The events of a file in chunks of about 1 MB, or one event if that is larger.

    ``start``: byte of the file on disk to begin at, ``offset``: its place in the uncompressed stream. All
    whole events are given before the FormatError that names the first one that is not.
    """
    parts: list[bytes] = []
    have, wanted = 0, HEADER_BYTES
    for piece in read_bytes(path, start):
        parts.append(piece)
        have += len(piece)
        if have < wanted:
            continue
        data = b"".join(parts)
        events, end = walk(data)
        if end:
            yield Chunk(offset, memoryview(data)[:end], events)
        offset += end
        rest = data[end:]
        parts, have = [rest] if rest else [], len(rest)
        wanted = _wanted(rest, str(path), offset, max_event_bytes)
    if have:
        decode_header(b"".join(parts), 0, str(path), offset)


def _wanted(rest: bytes, path: str, offset: int, max_event_bytes: int) -> int:
    """How many bytes the event that begins with ``rest`` needs, as far as they tell."""
    if len(rest) < HEADER_BYTES:
        return HEADER_BYTES
    size = HEADER_BYTES + int.from_bytes(rest[12:16], "little")
    if size > max_event_bytes:
        raise FormatError(
            f"an event has {size} bytes by its header, more than {max_event_bytes}: a damaged header, or "
            "raise max_event_bytes",
            path,
            offset,
        )
    return size


def read_raw(path: str | Path) -> Iterator[tuple[int, memoryview]]:
    """Each event's offset and its bytes, header included, without decoding."""
    for chunk in read_chunks(path):
        starts = chunk.events.tolist()
        for start, end in zip(starts, [*starts[1:], len(chunk.data)], strict=True):
            yield chunk.offset + start, chunk.data[start:end]


def read_whole(path: str | Path) -> Iterator[bytes | memoryview]:
    """Each event that has banks, as bytes; those that MIDAS wrote in pieces (EQ_FRAGMENTED) are whole again."""
    joining = Reassembly(str(path))
    for offset, raw in read_raw(path):
        event_id = decode_header(raw).event_id
        if has_banks(event_id):
            yield raw
        elif is_piece(event_id):
            whole = joining.take(offset, decode_event(raw)[0])
            if whole is not None:
                yield whole[1]
    joining.end()


def read_events(path: str | Path) -> Iterator[tuple[int, Event]]:
    """Each event's offset and the event; a FormatError at the first one that is damaged or not whole."""
    name = str(path)
    for chunk in read_chunks(path):
        data: Buffer = chunk.data
        for start in chunk.events.tolist():
            yield chunk.offset + start, decode_event(data, start, name, chunk.offset)[0]

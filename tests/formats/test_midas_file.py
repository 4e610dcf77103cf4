"""Reading files: all members of compressed ones, bounded chunks, large events, and torn ends."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
import zstandard
from tests.formats.run_files import GOLDEN, data_event

from phloem.formats.midas import file as midas_file
from phloem.formats.midas.events import encode_event
from phloem.formats.midas.file import read_bytes, read_chunks, read_events, read_raw
from phloem.model.errors import FormatError, NotFoundError
from phloem.model.event import TID, Bank, BankFormat, Event

SOURCE = GOLDEN / "built_2x50_bank16.mid"
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".lz4": lz4.frame.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def members(data: bytes, suffix: str, cuts: tuple[int, ...] = (1000, 1001, 40000)) -> list[bytes]:
    """The data as independent members, cut without regard to events; one of them is empty."""
    borders = [0, *cuts, cuts[-1], len(data)]
    parts = [data[start:end] for start, end in pairwise(borders)]
    return [COMPRESSORS[suffix](part) for part in parts]


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("one_member", [True, False])
def test_every_member_of_a_compressed_file_is_read(tmp_path: Path, suffix: str, one_member: bool) -> None:
    content = SOURCE.read_bytes()
    path = tmp_path / f"run00002.mid{suffix}"
    path.write_bytes(COMPRESSORS[suffix](content) if one_member else b"".join(members(content, suffix)))
    assert b"".join(read_bytes(path)) == content
    plain = [(offset, bytes(data)) for offset, data in read_raw(SOURCE)]
    assert [(offset, bytes(data)) for offset, data in read_raw(path)] == plain


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_file_is_known_by_its_first_bytes_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(COMPRESSORS[suffix](SOURCE.read_bytes()))
    assert len(list(read_events(path))) == 52


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_cut_within_a_member_gives_what_is_whole_and_an_error(tmp_path: Path, suffix: str) -> None:
    content = SOURCE.read_bytes()
    stored = members(content, suffix, (20000, 40000))
    path = tmp_path / f"torn.mid{suffix}"
    path.write_bytes(stored[0] + stored[1][: len(stored[1]) // 2])
    offsets: list[int] = []
    with pytest.raises(FormatError, match="ends within a"):
        offsets.extend(offset for offset, _ in read_events(path))  # keeps what came before the error
    whole = [offset for offset, data in read_raw(SOURCE) if offset + len(data) <= 20000]
    assert offsets[: len(whole)] == whole


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_damage_within_a_member_is_named_with_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bad.mid{suffix}"
    path.write_bytes(COMPRESSORS[suffix](SOURCE.read_bytes()) + b"this is no member")
    with pytest.raises(FormatError, match=f"bad.mid{suffix}: byte .* damaged"):
        list(read_bytes(path))


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_much_that_was_squeezed_into_little_comes_out_in_small_pieces(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"zeros.mid{suffix}"
    path.write_bytes(COMPRESSORS[suffix](bytes(40 << 20)))
    sizes = [len(piece) for piece in read_bytes(path)]
    assert sum(sizes) == 40 << 20
    assert suffix == ".zst" or max(sizes) <= 2 * midas_file.CHUNK_BYTES


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunk_size_does_not_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "small.mid"
    path.write_bytes(b"".join(data_event(n, n) for n in range(20)))
    expected = [(offset, bytes(data)) for offset, data in read_raw(path)]
    monkeypatch.setattr(midas_file, "CHUNK_BYTES", chunk)
    assert [(offset, bytes(data)) for offset, data in read_raw(path)] == expected
    assert len(expected) == 20


def test_an_event_larger_than_a_chunk_is_read(tmp_path: Path) -> None:
    values = np.arange(500_000, dtype=np.uint64)
    big = encode_event(Event(1, 0, 1, 0, 0, BankFormat.BANK32A, (Bank("LONG", TID.UINT64, values),)))
    path = tmp_path / "big.mid"
    path.write_bytes(data_event(0) + big + data_event(2))
    events = [event for _, event in read_events(path)]
    assert [event.serial_number for event in events] == [0, 1, 2]
    assert np.array_equal(events[1].banks[0].values, values)


def test_an_absurd_size_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "absurd.mid"
    path.write_bytes(data_event(0) + b"\1\0\0\0" + bytes(8) + b"\xff\xff\xff\xff" + bytes(100))
    with pytest.raises(FormatError, match="raise max_event_bytes") as caught:
        list(read_events(path))
    assert caught.value.offset == len(data_event(0))


def test_a_cut_at_any_byte_gives_the_whole_events_and_names_the_torn_one(tmp_path: Path) -> None:
    events = [data_event(n) for n in range(3)]
    data, path = b"".join(events), tmp_path / "cut.mid"
    borders = [0, 80, 160, 240]
    assert [len(event) for event in events] == [80, 80, 80]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        found = []
        try:
            for _, event in read_events(path):
                found.append(event.serial_number)
            torn = None
        except FormatError as error:
            torn = error.offset
        assert found == list(range(cut // 80))
        assert torn == (None if cut in borders else cut // 80 * 80)


def test_a_stretch_of_a_file_is_read_with_its_true_offsets(tmp_path: Path) -> None:
    path = tmp_path / "run.mid"
    path.write_bytes(b"".join(data_event(n) for n in range(3)))
    chunk = next(read_chunks(path, start=80, offset=80))
    assert (chunk.offset, chunk.events.tolist(), len(chunk.data)) == (80, [0, 80], 160)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.mid"):
        list(read_events(tmp_path / "nothing.mid"))

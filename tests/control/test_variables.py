"""Banks as ODB keys: types, lengths that change, and what is left out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phloem.control.database import Database
from phloem.control.odb import Odb
from phloem.control.variables import values_of, write_variables
from phloem.protocol.control import BankCopy, Variables


@pytest.fixture
def odb(tmp_path: Path) -> Iterator[Odb]:
    database = Database(tmp_path / "odb.db")
    yield Odb(database)
    database.close()


@pytest.mark.parametrize(
    ("tid", "data", "values"),
    [
        (1, b"\x01\xff", [1, 255]),
        (2, b"\x01\xff", [1, -1]),
        (3, b"a\xff", ["a", "?"]),
        (4, b"\x01\x02", [0x0201]),
        (5, b"\xfe\xff", [-2]),
        (6, b"\x00\x00\x00\x80", [0x80000000]),
        (7, b"\x00\x00\x00\x80", [-0x80000000]),
        (8, b"\x01\0\0\0\0\0\0\0", [True, False]),
        (9, struct.pack("<f", 1.5), [1.5]),
        (10, struct.pack("<d", 0.1), [0.1]),
        (12, b"two words\0", "two words"),
        (12, b"\xff\0", "\ufffd"),
        (17, struct.pack("<q", -5), [-5]),
        (18, struct.pack("<Q", 1 << 63), [1 << 63]),
        (4, b"\x01\x02\x03", [0x0201]),
        (4, b"", None),
        (14, b"\x01\x02", None),
        (99, b"\x01\x02", None),
    ],
)
def test_values_are_what_the_tid_says(tid: int, data: bytes, values: list[Any] | None) -> None:
    assert values_of(BankCopy("ADC0", tid, data)) == values


def written(odb: Odb, tid: int, data: bytes) -> tuple[int, int, int, Any]:
    write_variables(odb, Variables("Slow", (BankCopy("TEMP", tid, data),)))
    [row] = odb.rows("/Equipment/Slow/Variables/TEMP")
    return row.tid, row.num_values, row.item_size, row.value


def test_a_key_follows_the_length_and_the_type_of_its_bank(odb: Odb) -> None:
    assert written(odb, 4, b"\1\0\2\0") == (4, 2, 2, [1, 2])
    assert written(odb, 4, b"\1\0\2\0\3\0") == (4, 3, 2, [1, 2, 3])
    assert written(odb, 9, struct.pack("<f", 2.5)) == (9, 1, 4, [2.5])
    assert written(odb, 12, b"hot\0") == (12, 1, 32, "hot")
    assert written(odb, 12, b"x" * 40 + b"\0") == (12, 1, 64, "x" * 40)
    assert written(odb, 12, b"cold\0") == (12, 1, 64, "cold")
    assert written(odb, 12, b"") == (12, 1, 64, "cold"), "an empty bank leaves the key as it is"


def test_measured_values_outlive_run_control_and_have_no_history(tmp_path: Path) -> None:
    for n in range(3):
        database = Database(tmp_path / "odb.db")
        odb = Odb(database)
        assert n == 0 or odb.get("/Equipment/Slow/Variables/TEMP") == [n]
        assert written(odb, 6, struct.pack("<I", n + 1)) == (6, 1, 4, [n + 1])
        assert [revision.value for revision in odb.history("/Equipment/Slow/Variables/TEMP")] == [[1]]
        database.close()

"""Events, banks and equipment: MIDAS' numbers by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from phloem.model.errors import EventError, SettingsError
from phloem.model.event import (
    TID,
    Bank,
    BankFormat,
    Equipment,
    EquipmentType,
    Event,
    EventId,
    MessageType,
    ReadOn,
    check_bank_name,
    tid_of,
)

# MIDAS reference, section 1.3: number, dtype of a value, name in the ODB.
TYPES = [
    (1, "<u1", "BYTE"),
    (2, "<i1", "SBYTE"),
    (3, "S1", "CHAR"),
    (4, "<u2", "WORD"),
    (5, "<i2", "SHORT"),
    (6, "<u4", "DWORD"),
    (7, "<i4", "INT"),
    (8, "<u4", "BOOL"),
    (9, "<f4", "FLOAT"),
    (10, "<f8", "DOUBLE"),
    (12, "S1", "STRING"),
    (16, "S1", "LINK"),
    (17, "<i8", "INT64"),
    (18, "<u8", "UINT64"),
]


@pytest.mark.parametrize(("number", "dtype", "name"), TYPES)
def test_the_types_have_midas_numbers_sizes_and_names(number: int, dtype: str, name: str) -> None:
    assert TID(number).dtype == np.dtype(dtype)
    assert TID(number).odb_name == name


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        *(("u1", 1), ("i1", 2), ("S1", 3), ("u2", 4), (">u2", 4), ("i2", 5), ("u4", 6), (">i4", 7), ("?", 8)),
        *(("f4", 9), ("f8", 10), ("i8", 17), ("u8", 18)),
    ],
)
def test_an_arrays_dtype_gives_its_type_whatever_its_byte_order(dtype: str, number: int) -> None:
    assert tid_of(np.dtype(dtype)) == number


@pytest.mark.parametrize("dtype", ["c16", "f2", "U4", "S2", "M8[ns]", "O"])
def test_a_dtype_without_a_midas_type_is_refused_with_those_that_have_one(dtype: str) -> None:
    with pytest.raises(EventError, match=r"has no MIDAS type; use one of S1, b1, f4, f8"):
        tid_of(np.dtype(dtype))


def test_a_bank_name_is_four_printable_ascii_characters() -> None:
    assert check_bank_name("ADC0") == b"ADC0"
    for name in ("", "ADC", "ADC01", "ADÇ0", "AD\n0", "AD\0\0"):
        with pytest.raises(EventError, match="is not 4 printable ASCII characters") as raised:
            check_bank_name(name)
        assert raised.value.name == name  # type: ignore[attr-defined]


def test_midas_words() -> None:
    assert (BankFormat.BANK, BankFormat.BANK32, BankFormat.BANK32A) == (0x01, 0x11, 0x31)
    assert (EventId.BEGIN_OF_RUN, EventId.END_OF_RUN, EventId.MESSAGE) == (0x8000, 0x8001, 0x8002)
    assert (MessageType.ERROR, MessageType.INFO, MessageType.CALL) == (1, 2, 64)
    assert EquipmentType.POLLED | EquipmentType.EB == 130
    assert ReadOn.RUNNING | ReadOn.ODB == 257


def test_the_first_bank_of_a_name_is_found() -> None:
    banks = tuple(Bank(name, TID.UINT8, np.array([i], dtype="u1")) for i, name in enumerate(["ADC0", "ADC1", "ADC0"]))
    event = Event(1, 0xFFFF, 7, 0, 80, BankFormat.BANK32A, banks)
    assert event.bank("ADC0") is banks[0]
    assert event.bank("TDC0") is None


def test_an_index_fills_formats_only_where_there_are_any() -> None:
    trigger = Equipment("Trigger%02d", buffer="BUF%02d").indexed(7)
    assert (trigger.name, trigger.buffer) == ("Trigger07", "BUF07")
    plain = Equipment("Trigger", buffer="BUFFER").indexed(7)
    assert (plain.name, plain.buffer) == ("Trigger", "BUFFER")
    for name in ("Trigger%", "Trigger%d%d", "Trigger%y"):
        with pytest.raises(SettingsError, match="is not a format for one number"):
            Equipment(name).indexed(1)


@pytest.mark.parametrize(
    ("equipment", "complaint"),
    [
        (Equipment("T", type=EquipmentType.INTERRUPT | EquipmentType.EB), "EQ_INTERRUPT, which is not supported"),
        (Equipment("T", type=EquipmentType.EB), "say EQ_POLLED, EQ_PERIODIC or EQ_SLOW"),
        (Equipment("T", type=0), "say EQ_POLLED, EQ_PERIODIC or EQ_SLOW"),
        (Equipment(""), "must have 1 to 31 characters"),
        (Equipment("a/b"), "no '/'"),
        (Equipment("x" * 32), "must have 1 to 31 characters"),
        (Equipment("T", buffer=""), "buffer '' must have 1 to 31 characters"),
        (Equipment("T", buffer="a/b"), "no '/'"),
    ],
)
def test_equipment_that_cannot_be_is_refused_by_name(equipment: Equipment, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        equipment.check()


def test_the_equipment_of_the_field_is_accepted() -> None:
    Equipment("Trigger01", type=130, buffer="BUF01").check()
    Equipment("Slow", type=EquipmentType.PERIODIC).check()

"""Which event is copied for the ODB, how often, and what is not."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import ArrayLike

from phloem.dataflow.frontend import BatchDraft, EventDraft
from phloem.dataflow.variables import Copies
from phloem.model.event import Equipment
from phloem.protocol.control import Variables

TRIGGER = Equipment("Trigger01")


class Taken:
    """What was offered, and what was said."""

    def __init__(self) -> None:
        self.offered: list[Variables] = []
        self.said: list[str] = []
        self.copies = Copies(self.offered.append, self.said.append)


def event(**banks: ArrayLike) -> EventDraft:
    draft = EventDraft("Trigger01")
    for name, values in banks.items():
        draft.bank(name, values)
    return draft


def test_about_once_a_second_one_event_is_due() -> None:
    taken = Taken()
    assert taken.copies.due(TRIGGER, 100.0)
    taken.copies.take(TRIGGER, event(ADC0=np.array([1, 2], "u2")), 100.0)
    assert not taken.copies.due(TRIGGER, 100.9)
    assert taken.copies.due(TRIGGER, 101.0)
    [variables] = taken.offered
    assert variables.equipment == "Trigger01"
    assert [(b.name, b.tid, b.data) for b in variables.banks] == [("ADC0", 4, b"\1\0\2\0")]


def test_without_the_bit_odb_nothing_is_due() -> None:
    assert not Taken().copies.due(Equipment("Trigger01", read_on=1), 100.0)


def test_an_event_without_banks_is_none() -> None:
    taken = Taken()
    taken.copies.take(TRIGGER, event(), 100.0)
    assert taken.copies.due(TRIGGER, 100.0)
    assert not taken.offered


def test_of_a_batch_the_last_event_is_copied() -> None:
    taken, batch = Taken(), BatchDraft("Trigger01")
    batch.bank("ADC0", np.array([[1, 2], [3, 4]], "u1"))
    batch.bank("TIME", np.array([5, 6], "u8"))
    taken.copies.take(TRIGGER, batch, 0.0)
    assert [bank.data for bank in taken.offered[0].banks] == [b"\3\4", struct.pack("<Q", 6)]


def test_of_whole_events_the_last_one_is_copied() -> None:
    taken, draft = Taken(), EventDraft("Trigger01")
    for value in (1, 2):
        bank = struct.pack("<4sII4xI4x", b"ADC0", 6, 4, value)
        draft.raw += struct.pack("<HHIIIII", 1, 0xFFFF, value, 0, len(bank) + 8, len(bank), 0x31) + bank
    taken.copies.take(TRIGGER, draft, 0.0)
    assert [(b.name, b.tid, b.data) for b in taken.offered[0].banks] == [("ADC0", 6, struct.pack("<I", 2))]


@pytest.mark.parametrize("raw", [b"\0" * 10, struct.pack("<HHIII4s", 1, 0, 0, 0, 4, b"abcd")])
def test_bytes_that_are_no_event_are_not_copied(raw: bytes) -> None:
    taken, draft = Taken(), EventDraft("Trigger01")
    draft.raw = raw
    taken.copies.take(TRIGGER, draft, 0.0)
    assert not taken.offered


def test_large_events_are_not_copied_and_that_is_said_once() -> None:
    taken = Taken()
    fits, large = np.zeros(65_536, "u1"), np.zeros(65_537, "u1")
    taken.copies.take(TRIGGER, event(ADC0=large), 0.0)
    taken.copies.take(TRIGGER, event(ADC0=large), 1.0)
    assert not taken.offered
    assert len(taken.said) == 1
    assert "65537 bytes" in taken.said[0]
    taken.copies.take(TRIGGER, event(ADC0=fits), 2.0)
    assert [bank.data for bank in taken.offered[0].banks] == [bytes(65_536)]


def test_a_bank_whose_name_is_no_key_is_left_out() -> None:
    taken = Taken()
    slashed: dict[str, ArrayLike] = {"AD/0": np.zeros(1, "u1"), "TEXT": "hi"}
    taken.copies.take(TRIGGER, event(**slashed), 0.0)
    assert [(bank.name, bank.data) for bank in taken.offered[0].banks] == [("TEXT", b"hi\0")]
    assert "'AD/0'" in taken.said[0]


def test_a_draft_is_cut_to_what_the_limit_leaves() -> None:
    batch = BatchDraft("T")
    batch.bank("ADC0", np.array([[1, 2], [3, 4], [5, 6]], "u1"))
    batch.serial_numbers = np.array([7, 8, 9], "<u4")
    assert batch.cut(5) == 3
    assert batch.cut(2) == 2
    assert [bytes(data) for _, _, data in batch.banks] == [b"\1\2\3\4"]
    assert batch.serial_numbers.tolist() == [7, 8]
    assert batch.cut(0) == 0
    assert batch.banks == []
    single = event(ADC0=np.zeros(1, "u1"))
    assert (single.cut(1), len(single.banks), single.cut(0), single.banks) == (1, 1, 0, [])
    whole = EventDraft("T")
    events = [struct.pack("<HHIII", 1, 0, n, 0, 2 * n) + b"x" * 2 * n for n in range(3)]
    whole.raw = b"".join(events)
    assert (whole.cut(3), whole.raw) == (3, b"".join(events))
    assert (whole.cut(2), whole.raw) == (2, b"".join(events[:2]))

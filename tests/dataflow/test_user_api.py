"""What user code may do, and what it is told when it cannot be done."""

from __future__ import annotations

import numpy as np
import pytest

from phloem import EQ_EB, EQ_MANUAL_TRIG, EQ_PERIODIC, EQ_POLLED, EQ_SLOW, Equipment
from phloem.dataflow.frontend import BatchDraft, EventDraft, Frontend
from phloem.dataflow.readout import client_name
from phloem.model.errors import EventError, SettingsError


def test_the_dtype_chooses_the_tid() -> None:
    draft = EventDraft("T")
    for dtype, tid in [("u1", 1), ("i1", 2), ("u2", 4), ("i2", 5), ("u4", 6), ("i4", 7), ("f4", 9), ("f8", 10)]:
        draft.bank("ADC0", np.zeros(3, dtype))
        assert draft.banks[-1][:2] == (b"ADC0", tid)
    draft.bank("TIME", np.zeros(1, "u8"))
    assert draft.banks[-1][1] == 18
    draft.bank("TEXT", "hello")
    assert draft.banks[-1][1:] == (12, b"hello\0")


def test_a_truth_value_travels_as_four_bytes() -> None:
    draft = EventDraft("T")
    draft.bank("BOOL", np.array([True, False]))
    name, tid, data = draft.banks[0]
    assert (name, tid, bytes(data)) == (b"BOOL", 8, b"\1\0\0\0\0\0\0\0")


def test_big_endian_values_travel_little_endian() -> None:
    draft = EventDraft("T")
    draft.bank("ADC0", np.array([0x0102], ">u2"))
    assert bytes(draft.banks[0][2]) == b"\x02\x01"


@pytest.mark.parametrize("name", ["ADC", "ADC00", "ÄDC0", "AD\n0"])
def test_a_bank_name_that_is_not_four_ascii_characters_is_refused_by_name(name: str) -> None:
    with pytest.raises(EventError, match="4 printable ASCII") as caught:
        EventDraft("T").bank(name, np.zeros(1, "u2"))
    assert repr(name) in str(caught.value)


def test_a_dtype_without_a_midas_type_is_refused_by_name() -> None:
    with pytest.raises(EventError, match="complex128"):
        EventDraft("T").bank("ADC0", np.zeros(1, "c16"))


def test_all_banks_of_a_batch_count_the_same_events() -> None:
    batch = BatchDraft("T")
    batch.bank("ADC0", np.zeros((10, 4), "u2"))
    assert batch.n_events == 10
    with pytest.raises(EventError, match="ADC1 of a batch of 10 events has shape"):
        batch.bank("ADC1", np.zeros((9, 4), "u2"))


def test_an_index_fills_formats_as_mfe_does() -> None:
    equipment = Equipment("Trigger%02d", buffer="BUF%02d").indexed(7)
    assert (equipment.name, equipment.buffer) == ("Trigger07", "BUF07")
    plain = Equipment("Trigger", buffer="BUFFER").indexed(7)
    assert (plain.name, plain.buffer) == ("Trigger", "BUFFER")
    assert client_name("ebfe", 1) == "ebfe01"
    assert client_name("ebfe", None) == "ebfe"


def test_an_equipment_type_that_is_not_supported_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="'Manual' has type EQ_MANUAL_TRIG, which is not supported"):
        Equipment("Manual", type=EQ_PERIODIC | EQ_MANUAL_TRIG).check()
    Equipment("Slow", type=EQ_SLOW).check()
    with pytest.raises(SettingsError, match="say EQ_POLLED, EQ_PERIODIC or EQ_SLOW"):
        Equipment("None", type=EQ_EB).check()
    Equipment("Scaler", type=EQ_PERIODIC).check()
    Equipment("Trigger", type=EQ_POLLED | EQ_EB).check()


def test_a_frontend_by_itself_cannot_send() -> None:
    with pytest.raises(EventError, match="not run by `phloem frontend`"):
        Frontend(1).send({"ADC0": np.zeros(1, "u2")})

"""``/Equipment/<name>/Variables/<BANK>``: the latest event's banks as ODB keys, an array each, typed by TID.

As mfe's ``update_odb`` does with Read on bit 256: an empty bank leaves its key as it is; of two banks of one name the
last one stands. A STRING bank is one text. Banks of types that the ODB has not (STRUCT, ARRAY) are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from phloem.control.odb import Odb
from phloem.control.odb_values import ODB_TYPES
from phloem.model.event import TID
from phloem.protocol.control import BankCopy, Variables

__all__ = ["values_of", "write_variables"]

_SMALLEST_STRING = 32


def write_variables(odb: Odb, variables: Variables) -> None:
    """Put the banks into the equipment's Variables, making keys and changing their types where need be."""
    for bank in variables.banks:
        values = values_of(bank)
        if values is None:
            continue
        size = max(_SMALLEST_STRING, 1 << len(values.encode()).bit_length()) if isinstance(values, str) else 0
        odb.measure(f"/Equipment/{variables.equipment}/Variables/{bank.name}", TID(bank.tid), values, size)


def values_of(bank: BankCopy) -> list[Any] | str | None:
    """The values of a bank as the ODB takes them, or None if there are none."""
    if bank.tid not in ODB_TYPES or not bank.data:
        return None
    tid = TID(bank.tid)
    if tid is TID.STRING:
        return bank.data.split(b"\0", 1)[0].decode("utf-8", "replace")
    if tid is TID.CHAR:
        return [chr(code) if code < 128 else "?" for code in bank.data]
    whole = len(bank.data) // tid.dtype.itemsize * tid.dtype.itemsize
    values = np.frombuffer(bank.data[:whole], tid.dtype)
    return list((values != 0 if tid is TID.BOOL else values).tolist())

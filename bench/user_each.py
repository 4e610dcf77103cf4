"""User code for `bench/evb.py`: looks at a bank of each event and adds one."""

from __future__ import annotations

import numpy as np

from phloem.dataflow.eb_user import BuiltEvent, Fragments

ONE = np.zeros(1, "f4")


def eb_user(fragments: Fragments, event: BuiltEvent) -> None:
    """A bank with the first sample of the first fragment."""
    first = fragments[0]
    adc = first.bank("AD01") if first is not None else None
    if adc is not None:
        ONE[0] = adc[0]
    event.bank("FRST", ONE)

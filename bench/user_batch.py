"""User code for `bench/evb.py`: the sums of all waveforms, many events at once."""

from __future__ import annotations

import numpy as np

from phloem.dataflow.eb_user import Batch, BatchFragments


def eb_user_batch(fragments: BatchFragments, events: Batch) -> None:
    """A bank with one number for each fragment. At the end of a run some events lack one."""
    sums = np.zeros((len(events), len(fragments.names)), "f4")
    for column, source in enumerate(fragments.names):
        values, lengths = fragments[source].ragged("AD" + source[-2:])
        present = lengths > 0
        if present.any():
            sums[present, column] = values.reshape(int(present.sum()), -1).sum(axis=1, dtype="f4")
    events.bank("SUMS", sums)

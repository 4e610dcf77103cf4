"""For measuring: fragments with faults at no cost, since those of the first 65536 triggers come over and over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from phloem.dataflow.frontend import BatchDraft
from phloem.frontends.faulty import FaultSettings, batch_of
from phloem.frontends.simulated import Simulated

__all__ = ["RepeatedFaults"]

PERIOD = 1 << 16


class RepeatedFaults(Simulated):
    """Settings: those of `Simulated`, ``Drop rate`` and ``Duplicate rate``. Always at full speed; no fault log."""

    name: str = "repeated"
    default_settings: ClassVar[Mapping[str, Any]] = {
        **Simulated.default_settings,
        "Drop rate": 0.0,
        "Duplicate rate": 0.0,
    }

    def prepare(self, run_number: int) -> None:
        super().prepare(run_number)
        faults = FaultSettings(
            drop_rate=float(self.settings["Drop rate"]), duplicate_rate=float(self.settings["Duplicate rate"])
        )
        self._pattern = batch_of(faults, self.index, 0, PERIOD).serials
        self._place, self._periods = 0, 0

    def read_batch(self, batch: BatchDraft) -> None:
        serials = self._pattern[self._place : self._place + len(self._adc)]
        batch.bank(self._bank, self._adc[: len(serials)])
        batch.serial_numbers = serials + np.uint32(self._periods * PERIOD % 2**32)
        self._place += len(serials)
        self._sent += len(serials)
        if self._place == len(self._pattern):
            self._place, self._periods = 0, self._periods + 1

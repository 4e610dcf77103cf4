"""A simulated frontend: waveforms of a few channels, with pedestal, noise and pulses with exponential tails.

All simulated frontends of an experiment are fired by one imaginary trigger: event n at n / rate after the begin of
run. At the end of a run each one reads what was triggered until run control asked for the end, as a real readout
empties its FIFO, so that all end with the same event.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from phloem.dataflow.frontend import BatchDraft, EventDraft, Frontend
from phloem.model.event import EQ_EB, EQ_POLLED, Equipment

__all__ = ["Simulated", "SimulatedPerEvent", "Timed", "waveforms"]

PEDESTAL, NOISE = 400.0, 4.0  # ADC counts
TAIL_SAMPLES = 12.0  # decay time of a pulse
GATE_S = 0.05  # how long after END was asked for the trigger closes
BATCH_BYTES = 256 << 10
TEMPLATE_EVENTS = 512


def waveforms(events: int, samples: int, seed: int) -> NDArray[np.uint16]:
    """(events, samples) ADC counts, uint16: pedestal, noise, and in two of three events a pulse."""
    rng = np.random.default_rng(seed)
    adc = rng.normal(PEDESTAL, NOISE, (events, samples))
    times = np.arange(samples) - rng.uniform(0.2, 0.5, (events, 1)) * samples
    heights = rng.exponential(600.0, (events, 1)) * (rng.random((events, 1)) < 2 / 3)
    adc += heights * np.exp(-np.clip(times, 0, None) / TAIL_SAMPLES) * (times >= 0)
    return np.clip(adc, 0, 4095).astype("<u2")


class Simulated(Frontend):
    """Settings: ``Payload bytes`` in each fragment; ``Rate Hz`` (0: as fast as it can); ``Events`` after which it
    stops (0: never); ``Send in READY``: fragments sent at PREPARE already. Sends in batches."""

    name: str = "simfe"
    equipment: Sequence[Equipment] = (
        Equipment("Trigger%02d", buffer="BUF%02d", type=EQ_POLLED | EQ_EB, format="MIDAS"),
    )
    default_settings: ClassVar[Mapping[str, Any]] = {
        "Payload bytes": 256,
        "Rate Hz": 0.0,
        "Events": 0,
        "Send in READY": 0,
    }

    def init(self) -> None:
        self._bank = f"AD{self.index % 100:02d}"
        self._skipped = False
        self._adc = np.zeros((1, 1), "<u2")
        self._shape()

    def settings_changed(self, key: str, value: Any) -> None:
        self._shape()

    def _shape(self) -> None:
        samples = max(1, int(self.settings["Payload bytes"]) // 2)
        if self._adc.shape[1] != samples:
            events = max(1, min(TEMPLATE_EVENTS * 8, BATCH_BYTES // (2 * samples)))
            self._adc = waveforms(events, samples, seed=self.index)

    def prepare(self, run_number: int) -> None:
        self._shape()
        self._rate_hz = float(self.settings["Rate Hz"])
        self._events = int(self.settings["Events"])
        self._sent = 0
        self._skipped = False  # numbers were skipped, so that the next event cannot just be counted on
        self._began_s: float | None = None
        early = int(self.settings["Send in READY"])
        while self._sent < early:
            self.send_batch({self._bank: self._next(early - self._sent)})

    def begin_of_run(self, run_number: int) -> None:
        self._began_s = self.begun_at_s

    def rejoin(self, run_number: int, sent: dict[str, int], next_serial: dict[str, int]) -> None:
        """The trigger has gone on: what it fired meanwhile is missed, and what comes now bears its number."""
        self._shape()
        self._rate_hz = float(self.settings["Rate Hz"])
        self._events = int(self.settings["Events"])
        self._sent = max(next_serial.values())
        self._began_s = self.begun_at_s
        missed = self._triggered() if self._rate_hz else 0
        self.missed(missed)
        self._sent += missed
        self._skipped = missed > 0

    def end_of_run(self, run_number: int) -> None:
        """The imaginary trigger goes on for a moment after the end was asked for, so that all see the same last one."""
        if self.ended_at_s is None or not self._rate_hz:
            return
        self.ended_at_s += GATE_S
        while (left_s := self.ended_at_s - time.time()) > 0:
            time.sleep(min(left_s, GATE_S))

    def _triggered(self) -> int:
        """Events that the trigger has fired and that are not read yet."""
        left = self._events - self._sent if self._events else BATCH_BYTES
        if not self._rate_hz:
            return 0 if self.ended_at_s is not None else max(0, left)
        if self._began_s is None:
            return 0
        now_s = time.time() if self.ended_at_s is None else self.ended_at_s
        fired = int((now_s - self._began_s) * self._rate_hz) + 1
        return max(0, min(fired - self._sent, left))

    def poll(self) -> bool:
        if self._triggered():
            return True
        if self.ended_at_s is None:
            self._wait_for_trigger()
        return False

    def _wait_for_trigger(self) -> None:
        if not self._rate_hz or self._began_s is None or (self._events and self._sent >= self._events):
            self.wait(0.1)
            return
        next_s = self._began_s + self._sent / self._rate_hz
        self.wait(max(0.0005, next_s - time.time()))

    def _next(self, wanted: int) -> NDArray[np.uint16]:
        start = self._sent % len(self._adc)
        adc = self._adc[start : start + min(wanted, len(self._adc))]
        self._sent += len(adc)
        return adc

    def read_batch(self, batch: BatchDraft) -> None:
        first = self._sent
        batch.bank(self._bank, self._next(self._triggered()))
        if self._skipped:
            self._skipped = False
            batch.serial_numbers = np.arange(first, self._sent, dtype="<u4")


class SimulatedPerEvent(Simulated):
    """The same with one Python call per event."""

    read_batch = None  # type: ignore[assignment]

    def poll(self) -> bool:
        if self._rate_hz or self._events or self.ended_at_s is not None:
            return super().poll()
        return True

    def read(self, event: EventDraft) -> None:
        event.bank(self._bank, self._adc[self._sent % len(self._adc)])
        if self._skipped:
            self._skipped = False
            event.serial_number = self._sent
        self._sent += 1


class Timed(SimulatedPerEvent):
    """The same with a bank TInn: when it was read, ns of the monotonic clock, UINT64."""

    def read(self, event: EventDraft) -> None:
        super().read(event)
        event.bank(f"TI{self.index % 100:02d}", np.array([time.monotonic_ns()], "<u8"))

"""A logger that writes nothing: `Checker` reads every byte and checks every serial number.

For benchmarks and for trying an experiment without a disk. `LatencyChecker` also measures the time from the read in
a frontend (a bank whose name begins with TI: UINT64, ns of the monotonic clock) to the arrival of the event here.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from phloem.dataflow.component import Place, Result
from phloem.dataflow.logger import Logger
from phloem.dataflow.logger_input import LoggerInput
from phloem.formats.midas.events import decode_event
from phloem.kernel import Frame, FrameKind, check_events, monotonic_ns
from phloem.protocol.control import ComponentStatus, TransitionRequest

__all__ = ["Checker", "LatencyChecker"]

KEPT = 20_000  # latencies of so many events, the last ones


class Checker(Logger):
    """In the place of the logger; what it takes counts as discarded."""

    kind: ClassVar[str] = "logger"
    hold_s: ClassVar[float] = 0.0
    writes: ClassVar[bool] = False

    def __init__(self, name: str, place: Place, reads: str = "SYSTEM") -> None:
        super().__init__(name, place, reads)
        self._expected: dict[str, int] = {}
        self._wrong = 0

    def prepare(self, request: TransitionRequest) -> Result | None:
        self._expected = {}
        self._wrong = 0
        return super().prepare(request)

    def count(self, stream: LoggerInput, frame: Frame) -> None:
        if frame.kind == FrameKind.EVENTS and frame.n_events:
            expected = self._expected.get(stream.name, frame.first_serial)
            _, self._expected[stream.name], wrong, _ = check_events(frame, expected)
            self._wrong += wrong
        super().count(stream, frame)

    def status(self) -> ComponentStatus:
        status = super().status()
        return msgspec.structs.replace(status, counters={**status.counters, "out_of_order": self._wrong})


class LatencyChecker(Checker):
    """The same, and how long each event took to come here."""

    _measured = 0

    def prepare(self, request: TransitionRequest) -> Result | None:
        self._latencies_ms = np.zeros(KEPT)
        self._measured = 0
        return super().prepare(request)

    def count(self, stream: LoggerInput, frame: Frame) -> None:
        if frame.kind == FrameKind.EVENTS:
            self._measure(frame)
        super().count(stream, frame)

    def _measure(self, frame: Frame) -> None:
        now_ns = monotonic_ns()
        body, at = frame.body, 0
        while at < len(body):
            event, at = decode_event(body, at)
            at += -at % 8
            times = [int(bank.values[0]) for bank in event.banks if bank.name.startswith("TI")]
            if times:
                self._latencies_ms[self._measured % KEPT] = (now_ns - max(times)) / 1e6
                self._measured += 1

    def status(self) -> ComponentStatus:
        status = super().status()
        measured = min(self._measured, KEPT)
        if not measured:
            return status
        median, worst = np.percentile(self._latencies_ms[:measured], [50, 99])
        rates = {**status.rates, "latency_ms_median": float(median), "latency_ms_99": float(worst)}
        return msgspec.structs.replace(status, rates=rates)

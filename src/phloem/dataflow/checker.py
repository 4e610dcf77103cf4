"""A logger that writes nothing: it reads every byte, checks every serial number, and measures latency.

For benchmarks and for trying an experiment without a disk. With a bank TIME (UINT64, ns of the monotonic clock) in the
events, the time from the frontend's send to the arrival here is the latency.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from phloem.dataflow.component import Place
from phloem.dataflow.logger import Logger, LoggerInput
from phloem.formats.midas.events import decode_event
from phloem.kernel import Frame, FrameKind, check_events, monotonic_ns
from phloem.protocol.control import ComponentStatus, TransitionRequest

__all__ = ["Checker"]

SAMPLE_EVENTS_PER_S = 20_000  # above this rate latency is not looked at: decoding would hold the reader up


class Checker(Logger):
    """In the place of the logger; what it takes counts as discarded."""

    kind: ClassVar[str] = "logger"

    def __init__(self, name: str, place: Place, reads: str = "SYSTEM") -> None:
        super().__init__(name, place, reads)
        self._expected: dict[str, int] = {}
        self._wrong = 0
        self._latencies_ms: list[float] = []

    def open_run(self, request: TransitionRequest) -> None:
        self._expected = {}
        self._wrong = 0
        self._latencies_ms = []

    def count(self, stream: LoggerInput, frame: Frame) -> None:
        if frame.kind == FrameKind.EVENTS and frame.n_events:
            if frame.n_events < SAMPLE_EVENTS_PER_S // 200:
                self._measure(frame)
            expected = self._expected.get(stream.name, frame.first_serial)
            _, self._expected[stream.name], wrong, _ = check_events(frame, expected)
            self._wrong += wrong
        super().count(stream, frame)

    def _measure(self, frame: Frame) -> None:
        now_ns = monotonic_ns()
        body, at = frame.body, 0
        while at < len(body):
            event, at = decode_event(body, at)
            at += -at % 8
            times = [bank.values[0] for bank in event.banks if bank.name.startswith("TI")]
            if times and len(self._latencies_ms) < 1_000_000:
                self._latencies_ms.append((now_ns - int(max(times))) / 1e6)

    def status(self) -> ComponentStatus:
        status = super().status()
        rates = dict(status.rates)
        latencies = self._latencies_ms[-10_000:]
        if latencies:
            rates["latency_ms_median"] = float(np.median(latencies))
            rates["latency_ms_99"] = float(np.percentile(latencies, 99))
        return msgspec.structs.replace(status, rates=rates, counters={**status.counters, "out_of_order": self._wrong})

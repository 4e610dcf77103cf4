"""Rates from counters: how much more there is than about a second ago."""

from __future__ import annotations

import time
from collections.abc import Mapping

__all__ = ["Rates"]


class Rates:
    """Call `update` with the counters as often as you like; `per_s` has each one's rate over about a second."""

    def __init__(self, interval_s: float = 1.0) -> None:
        self._interval_s = interval_s
        self._before: dict[str, int] = {}
        self._then_s = time.monotonic()
        self.per_s: dict[str, float] = {}

    def update(self, counters: Mapping[str, int]) -> dict[str, float]:
        """The rates; worked out anew when the interval is over."""
        now_s = time.monotonic()
        past_s = now_s - self._then_s
        if past_s >= self._interval_s:
            self.per_s = {
                name: max(0.0, (value - self._before.get(name, 0)) / past_s) for name, value in counters.items()
            }
            self._before = dict(counters)
            self._then_s = now_s
        return self.per_s

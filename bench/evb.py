"""The table of docs/performance.md: event building and latency, medians of three runs each, beside memcpy.

    python bench/evb.py [--seconds 4] [--runs 3] > table.md

Each row is `phloem bench evb` in a process of its own. ``ratio``: payload moved per second over what one thread's
memcpy does in the same run; on a shared machine only that can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from typing import Any

ROWS: list[tuple[str, list[str]]] = [
    ("2 x 64 B", ["--fragments", "2", "--payload", "64"]),
    ("2 x 64 B, logged to RAM", ["--fragments", "2", "--payload", "64", "--log", "/dev/shm"]),
    ("2 x 64 B, a Python call per event", ["--fragments", "2", "--payload", "64", "--per-event"]),
    ("2 x 64 B, numbered by the frontend", ["--fragments", "2", "--payload", "64", "--drop", "0"]),
    ("the same, 0.1 % lost", ["--fragments", "2", "--payload", "64", "--drop", "1e-3"]),
    (
        "the same, 0.1 % lost, 0.1 % twice",
        ["--fragments", "2", "--payload", "64", "--drop", "1e-3", "--duplicate", "1e-3"],
    ),
    ("2 x 64 B, eb_user for each event", ["--user-code", "bench/user_each.py"]),
    ("2 x 64 B, eb_user_batch", ["--user-code", "bench/user_batch.py"]),
    ("2 x 1 kB", ["--fragments", "2", "--payload", "1024"]),
    ("2 x 16 kB", ["--fragments", "2", "--payload", "16384"]),
    ("2 x 256 kB", ["--fragments", "2", "--payload", "262144"]),
    ("4 x 64 B", ["--fragments", "4", "--payload", "64"]),
    ("4 x 1 kB", ["--fragments", "4", "--payload", "1024"]),
]


def measured(args: list[str]) -> dict[str, Any]:
    """One run."""
    command = [sys.executable, "-m", "phloem", "bench", *args, "--json"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=300)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def commit() -> str:
    """The commit that is measured."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, check=False, text=True)
    return done.stdout.strip() or "unknown"


def building(seconds: float, runs: int) -> None:
    """A row for each kind of load."""
    print("| load | events/s | payload GB/s | memcpy GB/s | ratio | lost | CPU s: builder, reader, frontends |")
    print("|---|---|---|---|---|---|---|")
    for name, args in ROWS:
        results = [measured(["evb", *args, "--seconds", str(seconds)]) for _ in range(runs)]
        events = statistics.median(r["events_per_s"] for r in results)
        rate = statistics.median(r["mb_per_s"] for r in results) / 1e3
        copy = statistics.median(r["memcpy_gb_per_s"] for r in results)
        lost = sum(r["lost"] for r in results)
        cpu = results[0]["cpu_s"]
        others = [f"{v:.1f}" for k, v in cpu.items() if k not in ("core", "EB", "Logger")]
        told = f"{cpu['EB']:.1f}, {cpu['Logger']:.1f}, {' + '.join(others)}"
        print(f"| {name} | {events:,.0f} | {rate:.2f} | {copy:.1f} | {rate / copy:.2f} | {lost} | {told} |", flush=True)


def latency(seconds: float, runs: int) -> None:
    """Latency at 1 kHz, and the cost of doing next to nothing."""
    results = [measured(["latency", "--rate", "1000", "--seconds", str(seconds)]) for _ in range(runs)]
    median = statistics.median(r["latency_ms_median"] for r in results)
    worst = statistics.median(r["latency_ms_99"] for r in results)
    print(f"\nlatency at 1 kHz, 2 frontends: median {median:.2f} ms, 99 % {worst:.2f} ms")
    results = [
        measured(["latency", "--rate", "10", "--fragments", "4", "--seconds", str(seconds)]) for _ in range(runs)
    ]
    cpu = statistics.median(r["cpu_percent_of_a_core"] for r in results)
    print(f"CPU of all processes at 10 Hz, 4 frontends: {cpu:.1f} % of one core")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, commit {commit()}\n")
    building(options.seconds, options.runs)
    latency(options.seconds, options.runs)


if __name__ == "__main__":
    main()

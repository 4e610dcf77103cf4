"""The demo's experiment file: four simulated frontends, built by serial number, written to disk."""

from __future__ import annotations

import msgspec

from phloem.control.plan import DEFAULT_CAPACITY_BYTES

__all__ = ["DemoOptions", "experiment_text"]


class DemoOptions(msgspec.Struct, frozen=True):
    """``events``: of each frontend, 0 for no limit. ``rate_hz``: 0 for as fast as it can."""

    frontends: int = 4
    events: int = 0
    payload_bytes: int = 256
    rate_hz: float = 1000.0
    per_event: bool = False
    name: str = "demo"
    checker: bool = False
    data_dir: str = "data"
    latency: bool = False


def experiment_text(options: DemoOptions) -> str:
    """The TOML text."""
    frontends = "\n".join(_frontend(options, index) for index in range(1, options.frontends + 1))
    cls = "LatencyChecker" if options.latency else "Checker"
    checker = f'code = "phloem.dataflow.checker:{cls}"   # reads every byte, writes nothing\n' * options.checker
    return f"""# An experiment of phloem: start it with `phloem up THIS-FILE`, begin a run with `phloem start`.

[experiment]
name = "{options.name}"
data_dir = "{options.data_dir}"          # beside this file: runs, database, logs

[logger]
buffer = "SYSTEM"          # what goes to disk
{checker}
[builder.EB]
buffer = "BUF"             # joins all EQ_EB equipment whose buffer begins with BUF
destination = "SYSTEM"
{frontends}{_sizes(options)}"""


def _sizes(options: DemoOptions) -> str:
    """Larger buffers where the events are large: an event may have a little less than half of its buffer."""
    fragment = 3 * options.payload_bytes
    built = fragment * options.frontends
    if built <= DEFAULT_CAPACITY_BYTES:
        return ""
    buffers = [f"BUF{index:02d}" for index in range(1, options.frontends + 1)]
    sizes = {buffer: max(fragment, DEFAULT_CAPACITY_BYTES) for buffer in buffers} | {"SYSTEM": built}
    lines = [f'"/Experiment/Buffer sizes/{buffer}" = {size}' for buffer, size in sizes.items()]
    return "\n[odb]\n" + "\n".join(lines) + "\n"


def _frontend(options: DemoOptions, index: int) -> str:
    cls = "Timed" if options.latency else "SimulatedPerEvent" if options.per_event else "Simulated"
    return f"""
[[frontend]]
code = "phloem.frontends.simulated:{cls}"
index = {index}                  # Trigger{index:02d} into BUF{index:02d}
[frontend.settings]
"Payload bytes" = {options.payload_bytes}
"Rate Hz" = {float(options.rate_hz)}
"Events" = {options.events}
"""

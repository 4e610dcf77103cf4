"""A readout program with a loop of its own: where it printed, it now produces.

Start the experiment (``phloem up experiment.toml``), then this program (``python readout.py``), then a run
(``phloem start``). It waits for the run, sends 1000 events, and leaves.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import phloem


def my_readout(events: int = 1000) -> Iterator[NDArray[np.uint16]]:
    """What the program did before: 64 samples at a time."""
    rng = np.random.default_rng(1)
    for _ in range(events):
        yield rng.poisson(100, 64).astype("u2")


def main() -> None:
    """The loop."""
    experiment = str(Path(__file__).with_name("experiment.toml"))
    with phloem.Producer("scope", phloem.Equipment("Scope", buffer="SYSTEM"), experiment=experiment) as producer:
        for samples in my_readout():
            producer.produce({"ADC0": samples})  # was: print(samples)


if __name__ == "__main__":
    main()

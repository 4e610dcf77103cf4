"""Places for rings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.rings import ring_place


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in shared memory, removed afterwards."""
    with ring_place() as path:
        yield path

"""Places for rings, and builders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kernel.builders import MakeBuilder
from tests.kernel.rings import ring_place
from tests.kernel.stories import AnyBuilder

from phloem import kernel
from phloem.kernel import reference


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in shared memory, removed afterwards."""
    with ring_place() as path:
        yield path


@pytest.fixture(params=["kernel", "reference"])
def make(request: pytest.FixtureRequest) -> MakeBuilder:
    """Either of the two builders, for run 1."""
    kept = []

    def made(names: list[str], **settings: Any) -> AnyBuilder:
        builder: AnyBuilder = (kernel if request.param == "kernel" else reference).Builder(names, **settings)
        builder.begin_run(1)
        kept.append(builder)
        return builder

    return made

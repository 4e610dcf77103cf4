"""Fixtures of the tests that start processes: a directory for the rings, and a laboratory in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flow.lab import Lab
from tests.flow.leftovers import shm_directory


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A laboratory of one test; no process and no file in shared memory may be left of it."""
    with shm_directory() as shm:
        yield Lab(tmp_path, shm)


@pytest.fixture(scope="module")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A laboratory of the tests of one file, which share an experiment."""
    with shm_directory() as shm:
        yield Lab(tmp_path_factory.mktemp("lab"), shm)

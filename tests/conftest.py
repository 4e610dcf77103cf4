"""Fixtures of the tests that start processes: a directory for the rings, and a laboratory in it."""

from __future__ import annotations

import os
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


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a test that is skipped, or expected to fail, is a failure: what it needs has to be installed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") != "true" or reporter is None:
        return
    left_out = sum(len(reporter.stats.get(kind, ())) for kind in ("skipped", "xfailed"))
    if left_out:
        reporter.write_line(f"{left_out} tests were not run, which is a failure where CI=true", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

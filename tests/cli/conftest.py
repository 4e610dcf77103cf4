"""The command line within the test's own process, which is much faster than a process for each command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.flow.lab import Lab, Ran

from phloem.cli.main import main


class Here:
    """``here("status")`` is ``lab.run("status")`` without a process; not for commands that handle signals."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *args: str) -> Ran:
        status = main(list(args))
        captured = self._capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    def done(self, *args: str) -> Ran:
        """Run a command that must succeed."""
        ran = self(*args)
        assert ran.status == 0, f"phloem {' '.join(args)}: {ran}"
        return ran

    def ask(self, *args: str) -> Any:
        """The JSON document of a command that must succeed."""
        return self.done(*args, "--json").document


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Lab], Here]:
    """The command line in a laboratory's folder and environment."""

    def of(lab: Lab) -> Here:
        monkeypatch.chdir(lab.folder)
        for name, value in lab.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("MIDAS_FRONTEND_INDEX", raising=False)
        return Here(capsys)

    return of


@pytest.fixture
def here(lab: Lab, within: Callable[[Lab], Here]) -> Here:
    """In a laboratory of the test's own."""
    return within(lab)

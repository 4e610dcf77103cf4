"""What the families of commands share: which experiment is meant, and how JSON leaves."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from phloem.app import find_running, load, runtime_dir
from phloem.control.operator import Operator

__all__ = ["ExperimentOption", "JsonOption", "Target", "print_json"]

JsonOption = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, nothing else")]
ExperimentOption = Annotated[str, typer.Option("-e", "--experiment", metavar="EXPERIMENT.toml", help="experiment file")]


@dataclass(frozen=True)
class Target:
    """Which experiment the operator means: a file, an address, or the one that runs on this host."""

    experiment: str = ""
    core: str = ""

    def address(self) -> str:
        """Run control's address."""
        if self.core:
            return self.core
        return find_running(self.directory()).address

    def directory(self) -> Path | None:
        """The runtime directory, if an experiment file was given."""
        if not self.experiment:
            return None
        experiment = load(self.experiment)
        return runtime_dir(experiment.experiment.name, experiment.data_dir)

    def operator(self) -> Operator:
        """An operator of it; close it after use."""
        return Operator(self.address())


def print_json(value: Any) -> None:
    """Exactly one JSON document on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()

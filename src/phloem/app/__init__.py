"""Reads the experiment file and starts components as processes; alone knows all rooms."""

from phloem.app.experiment import Experiment, load
from phloem.app.launcher import Launcher
from phloem.app.places import find_running, runtime_dir

__all__ = ["Experiment", "Launcher", "find_running", "load", "runtime_dir"]

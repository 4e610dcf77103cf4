"""The experiment file: which components there are, and first values for the ODB.

::

    [experiment]
    name = "lab"
    data_dir = "data"                 # relative to this file

    [logger]
    buffer = "SYSTEM"

    [builder.EB]                      # by equipment name
    buffer = "BUF"                    # prefix, as mevb's -b
    settings = { "Fragments/Trigger01/Timeout ms" = 2000 }    # /Equipment/EB/Settings

    [[frontend]]
    code = "ebfe.py:Ebfe"             # file (relative to this file) or module, and class
    index = 1
    settings = { "Threshold" = 20 }   # /Equipment/<its equipment>/Settings

    [odb]
    "/Experiment/Buffer sizes/BUF01" = 16777216

After the first start the ODB wins over these values; what differs is printed.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from phloem.model.errors import SettingsError

__all__ = [
    "BuilderSection",
    "Experiment",
    "ExperimentSection",
    "FrontendSection",
    "LoggerSection",
    "RunControlSection",
    "load",
    "read_toml",
    "unknown_key",
]


class ExperimentSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``data_dir``: files, database and log."""

    name: str
    data_dir: str = "data"


class RunControlSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``address``: empty for the first free port of loopback from 24400 on."""

    address: str = ""


class LoggerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``buffer``: what it reads. ``file``: pattern of the run's file, in the data directory. ``code``: its class."""

    buffer: str = "SYSTEM"
    file: str = "run{run:05d}.mid"
    name: str = "Logger"
    code: str = "phloem.dataflow.logger:Logger"


class BuilderSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``buffer``: prefix of the sources' buffers. ``destination``: buffer of the built events.

    ``settings``: first values below ``/Equipment/<builder>/Settings``; paths or tables.
    """

    buffer: str
    destination: str = "SYSTEM"
    event_id: int = 1
    trigger_mask: int = 0
    format: str = "MIDAS"
    settings: dict[str, Any] = {}


class FrontendSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``code``: ``module:Class`` or ``file.py:Class``; the class may be left out if there is one only."""

    code: str
    index: int | None = None
    name: str = ""
    settings: dict[str, Any] = {}


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole experiment file; ``path`` is where it was read from."""

    experiment: ExperimentSection
    run_control: RunControlSection = RunControlSection()
    logger: LoggerSection | None = None
    builder: dict[str, BuilderSection] = {}
    frontend: tuple[FrontendSection, ...] = ()
    odb: dict[str, Any] = {}
    path: str = ""

    @property
    def data_dir(self) -> Path:
        """Absolute path of the data directory."""
        return (Path(self.path).parent / self.experiment.data_dir).resolve()

    @property
    def folder(self) -> Path:
        """Where relative file names of code are looked for."""
        return Path(self.path).resolve().parent

    def frontend_section(self, code: str, index: int | None) -> FrontendSection | None:
        """The section of a frontend that is started by hand, if the file has it."""
        wanted = self._code_path(code)
        for section in self.frontend:
            if self._code_path(section.code) == wanted and section.index == index:
                return section
        return None

    def _code_path(self, code: str) -> str:
        file, _, cls = code.rpartition(":") if ":" in code else (code, "", "")
        return f"{(self.folder / file).resolve()}:{cls}" if file.endswith(".py") else code


def load(path: str | Path) -> Experiment:
    """Read an experiment file. `SettingsError` names the key that is wrong and the nearest known one."""
    file = Path(path)
    try:
        plain = read_toml(file, "experiment file")
    except OSError as error:
        raise SettingsError(f"experiment file {file}: {error.strerror}") from None
    _check_keys(plain, Experiment, str(file), "")
    try:
        found = msgspec.convert(plain, Experiment)
    except msgspec.ValidationError as error:
        raise SettingsError(f"experiment file {file}: {error}") from None
    return msgspec.structs.replace(found, path=str(file.resolve()))


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """A TOML file; `SettingsError` if it is none. ``what`` it is, for the message. OSError as it comes."""
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{what} {file}: {error}") from None


def unknown_key(place: str, key: str, known: Collection[str]) -> str:
    """What is said of a key that nobody knows: the nearest known one, or all of them."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {place + key!r}; {hint}"


def _check_keys(plain: Any, kind: type[msgspec.Struct], file: str, place: str) -> None:
    """Name an unknown key with the nearest known one: msgspec would name the key only."""
    fields = {field.name: field.type for field in msgspec.structs.fields(kind) if field.name != "path"}
    for key, value in plain.items():
        if key not in fields:
            raise SettingsError(f"experiment file {file}: {unknown_key(place, key, fields)}")
        section = _SECTIONS.get((kind, key))
        if section is None:
            continue
        parts = value.items() if key == "builder" and isinstance(value, dict) else [("", value)]
        for name, part in parts:
            for each in part if isinstance(part, list) else [part]:
                if isinstance(each, dict):
                    _check_keys(each, section, file, f"{key}.{name}." if name else f"{key}.")


_SECTIONS: dict[tuple[type[msgspec.Struct], str], type[msgspec.Struct]] = {
    (Experiment, "experiment"): ExperimentSection,
    (Experiment, "run_control"): RunControlSection,
    (Experiment, "logger"): LoggerSection,
    (Experiment, "builder"): BuilderSection,
    (Experiment, "frontend"): FrontendSection,
}

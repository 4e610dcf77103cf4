"""Settings of an event builder from a TOML file, for building recorded fragments."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from phloem.app.experiment import load
from phloem.app.rebuild import BuildOptions
from phloem.dataflow.building import BuilderSettings
from phloem.model.errors import SettingsError

__all__ = ["settings_file"]

_OTHERS = ("Fragment Names", "Fragment Required", "Fragments", "Number of Fragment")


def settings_file(path: Path) -> BuildOptions:
    """An experiment file's one builder with its event id and trigger mask, or a file of the settings' keys alone."""
    try:
        plain = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path}: {error}") from None
    if "builder" not in plain:
        return BuildOptions(settings=_checked(plain, path))
    sections = load(path).builder
    if len(sections) != 1:
        raise SettingsError(f"{path} has {len(sections)} builders ({', '.join(sections)}); settings are of one")
    (section,) = sections.values()
    return BuildOptions(_nested(section.settings), section.event_id, section.trigger_mask)


def _checked(plain: dict[str, Any], path: Path) -> dict[str, Any]:
    known = [*(field.encode_name for field in msgspec.structs.fields(BuilderSettings)), *_OTHERS]
    for key in plain:
        if key not in known and not key.startswith("Fragments/"):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise SettingsError(f"settings file {path}: unknown key {key!r}; {hint}")
    return _nested(plain)


def _nested(plain: dict[str, Any]) -> dict[str, Any]:
    """Keys such as "Fragments/Trigger01/Timeout ms" as tables."""
    tree: dict[str, Any] = {}
    for key, value in plain.items():
        *folders, name = key.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return tree

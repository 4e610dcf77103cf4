"""Settings of an event builder from a TOML file, for building recorded fragments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from phloem.app.experiment import load, read_toml, unknown_key
from phloem.app.rebuild import BuildOptions
from phloem.dataflow.building import BuilderSettings, SourceSettings
from phloem.model.errors import SettingsError

__all__ = ["settings_file"]

_OTHERS = ("Fragment Names", "Fragment Required", "Fragments", "Number of Fragment")


def settings_file(path: Path) -> BuildOptions:
    """An experiment file's one builder with its event id and trigger mask, or a file of the settings' keys alone."""
    try:
        plain = read_toml(path, "settings file")
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error.strerror}") from None
    if "builder" not in plain and "experiment" not in plain:
        return BuildOptions(settings=_checked(plain, path))
    sections = load(path).builder
    if len(sections) != 1:
        have = f"{len(sections)} builders ({', '.join(sections)})" if sections else "no builder"
        raise SettingsError(f"{path} has {have}; give a file with one, or with the keys of its settings alone")
    (section,) = sections.values()
    return BuildOptions(_nested(section.settings, path), section.event_id, section.trigger_mask)


def _checked(plain: dict[str, Any], path: Path) -> dict[str, Any]:
    tree = _nested(plain, path)
    _check_keys(tree, [*_keys(BuilderSettings), *_OTHERS], "", path)
    for source, own in tree.get("Fragments", {}).items():
        _check_keys(own, _keys(SourceSettings), f"Fragments/{source}/", path)
    return tree


def _keys(kind: type[msgspec.Struct]) -> list[str]:
    """Those of the ODB; what has no blank or capital is a field that is set in another way."""
    return [field.encode_name for field in msgspec.structs.fields(kind) if field.encode_name != field.name]


def _check_keys(tree: dict[str, Any], known: Sequence[str], where: str, path: Path) -> None:
    for key in tree:
        if key not in known:
            raise SettingsError(f"settings file {path}: {unknown_key(where, key, known)}")


def _nested(plain: dict[str, Any], path: Path) -> dict[str, Any]:
    """Keys such as "Fragments/Trigger01/Timeout ms" as tables."""
    tree: dict[str, Any] = {}
    for key, value in plain.items():
        *folders, name = key.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict):
            raise SettingsError(f"settings file {path}: {key!r} stands below a key that has a value")
        place[name] = value
    _check_shapes(tree, path)
    return tree


def _check_shapes(tree: dict[str, Any], path: Path) -> None:
    for key, kind, example in (("Fragment Names", str, '["Trigger01"]'), ("Fragment Required", bool, "[true]")):
        value = tree.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise SettingsError(f"settings file {path}: {key!r} is {value!r}; write a list, such as {example}")
    folder = tree.get("Fragments", {})
    for source, own in folder.items() if isinstance(folder, dict) else [("", folder)]:
        if not isinstance(own, dict):
            place = f"Fragments/{source}".rstrip("/")
            raise SettingsError(
                f'settings file {path}: {place!r} is {own!r}; write "Fragments/<source>/<key>" = ..., such as '
                f'"Fragments/Trigger01/Reorder" = 10'
            )

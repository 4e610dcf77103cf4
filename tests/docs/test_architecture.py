"""docs/architecture.md lists every module once, and nothing that is not there."""

from __future__ import annotations

import re
import tomllib
from collections import Counter

from tests.docs.markdown import ROOT

PACKAGE = ROOT / "src" / "phloem"
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def section(title: str) -> str:
    """What is under one heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"architecture.md has no heading {title!r}"
    return found[1]


def listed() -> Counter[str]:
    return Counter(re.findall(r"^\| `([^`]+)` \|", section("Modules, one line each"), re.MULTILINE))


def there() -> set[str]:
    """All sources; an `__init__.py` may be listed, but need not be."""
    files = (path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".cpp", ".hpp"))
    return {str(path.relative_to(PACKAGE)) for path in files}


def test_every_module_is_listed() -> None:
    missing = {name for name in there() - set(listed()) if not name.endswith("__init__.py")}
    assert not missing, f"say in docs/architecture.md in one line what these are for: {sorted(missing)}"


def test_every_listed_module_exists() -> None:
    assert not set(listed()) - there()


def test_no_module_is_listed_twice() -> None:
    assert not [name for name, times in listed().items() if times > 1]


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *(name for group in project["project"]["optional-dependencies"].values() for name in group),
        *project["build-system"]["requires"],
    ]
    reasons = section("Dependencies, each with its reason")
    missing = [name for entry in wanted if (name := re.split(r"[<>=\[ ]", entry)[0]) not in reasons]
    assert not missing, f"docs/architecture.md gives no reason for {missing}"


def test_the_rooms_in_the_text_are_those_of_the_import_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["name"] == "imports only go down")
    rooms = {room.strip() for layer in layers for room in layer.split("|")}
    told = set(re.findall(r"`(\w+)`", section("The house"))) - {"CI"}
    assert rooms <= told

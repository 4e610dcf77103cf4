"""Code blocks, links and headings of the project's documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


class Block(NamedTuple):
    """A fenced code block. ``language`` and ``way``: the two words of its info string; ``line``: where it begins."""

    path: Path
    line: int
    language: str
    way: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of a console block that somebody types."""
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a document; one that is not closed is an error."""
    found: list[Block] = []
    info, began, inside = "", 0, list[str]()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("```") and not began:
            info, began, inside = line[3:], number, []
        elif line.startswith("```"):
            language, _, way = info.partition(" ")
            found.append(Block(path, began, language, way, "".join(f"{text}\n" for text in inside)))
            began = 0
        elif began:
            inside.append(line)
    assert not began, f"{path}:{began}: block is not closed"
    return found


def links(path: Path) -> list[str]:
    """Targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", without_blocks(path))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    titles = re.findall(r"^#+ (.+)$", without_blocks(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def without_blocks(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)

"""README says nothing that is not so: its code is the example's, its commands exist, its console runs."""

from __future__ import annotations

import ast
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docs.markdown import ROOT, blocks
from typer.main import get_command

from phloem.cli.main import app

README = ROOT / "README.md"
TEXT = README.read_text()
EXAMPLE = ROOT / "examples" / "eventbuilder"
COMMAND_S = 60


def test_python_blocks_are_the_files_that_they_name_but_for_a_docstring() -> None:
    named = [block for block in blocks(README) if block.language == "python"]
    assert named
    for block in named:
        assert block.way.startswith("file="), f"{block.place}: name the file that it is"
        assert block.text == without_docstring((ROOT / block.way.removeprefix("file=")).read_text())


def without_docstring(source: str) -> str:
    tree = ast.parse(source)
    if ast.get_docstring(tree) is None:
        return source
    end = tree.body[0].end_lineno
    return "".join(source.splitlines(keepends=True)[end:]).lstrip("\n")


def test_the_frontend_has_at_most_fifteen_lines() -> None:
    (block,) = [block for block in blocks(README) if block.language == "python"]
    assert len(block.text.splitlines()) <= 15


def test_every_make_target_exists() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"\bmake ([a-z]+)", "\n".join(code_of(TEXT)))
    assert {"demo", "test"} <= set(named) <= set(targets)


def code_of(text: str) -> list[str]:
    """What stands in code, Python aside: in blocks, and between back-quotes."""
    inside = [block.text for block in blocks(README) if block.language != "python"]
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*inside, *re.findall(r"`([^`]+)`", outside)]


def test_every_command_that_is_named_exists() -> None:
    named = {tuple(words) for code in code_of(TEXT) for words in commands_in(code)}
    assert ("demo",) in named
    for words in named:
        assert find(words) is not None, f"README names `phloem {' '.join(words)}`, which does not exist"


def commands_in(code: str) -> Iterator[list[str]]:
    for words in re.findall(r"\bphloem ([a-z]+(?: [a-z]+)?)", code):
        first, *more = words.split()
        yield [first, *more] if below(find((first,))) else [first]


def find(words: tuple[str, ...]) -> Any:
    """The command of these words, or None."""
    command: Any = get_command(app)
    for word in words:
        command = below(command).get(word)
    return command


def below(command: Any) -> dict[str, Any]:
    """The commands of a group; none of one that is no group."""
    return getattr(command, "commands", {})


def test_the_table_of_commands_is_complete() -> None:
    named = {" ".join(words) for code in code_of(TEXT) for words in commands_in(code)}
    have = set[str]()
    for name, command in below(get_command(app)).items():
        have |= {f"{name} {part}" for part in below(command)} or {name}
    assert have <= named, f"README does not tell of {sorted(have - named)}"


@pytest.fixture
def workshop() -> Iterator[tuple[Path, dict[str, str]]]:
    """A copy of the example, and an environment in which no other experiment runs."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="phloem-readme-", dir=shm if shm.is_dir() else None))
    shutil.copytree(EXAMPLE, folder / "example", ignore=shutil.ignore_patterns("data", "__pycache__"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        yield folder / "example", {**os.environ, "PATH": path, "PHLOEM_SHM": str(folder)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(180)
def test_the_console_runs_as_it_is_written(workshop: tuple[Path, dict[str, str]]) -> None:
    folder, environment = workshop
    (block,) = [block for block in blocks(README) if (block.language, block.way) == ("console", "run")]
    background: list[int] = []
    try:
        for command in block.commands:
            done = type_in(command, folder, environment)
            background += [int(pid) for pid in re.findall(r"\(process (\d+)", done.stderr)]
            assert done.returncode == 0, f"{command}: {done.stderr}"
    finally:
        for pid in background:
            os.kill(pid, signal.SIGTERM)
            wait_for_end(pid)
    assert background, "the example is to run in the background"


def type_in(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What happens when somebody types it in a shell."""
    line = ["sh", "-c", command]
    return subprocess.run(
        line, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=COMMAND_S
    )


def wait_for_end(pid: int) -> None:
    """The process is no child of ours: its pidfd becomes readable when it ends."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([fd], [], [], COMMAND_S)
        assert ready, f"process {pid} has not ended"
    finally:
        os.close(fd)

"""What holds in every document: links lead somewhere, blocks say whether they run, examples in docs/ work."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.markdown import DOCUMENTS, ROOT, Block, anchors, blocks, links

from phloem import Frontend
from phloem.app import load
from phloem.dataflow.frontend import BatchDraft, EventDraft

# What a block may say after its language, and what that means.
WAYS = {
    "run": "it is executed",
    "compiles": "it is compiled, since it needs something that a test does not have",
    "shown": "it is shown only",
    "make": "its commands are targets of the Makefile",
}
BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]
OF_DOCS = [block for block in BLOCKS if block.path.name != "README.md"]


def of_docs(language: str, way: str) -> list[Block]:
    found = [block for block in OF_DOCS if (block.language, block.way) == (language, way)]
    assert found, f"no {language} block in docs/ says {way!r}: is this test still needed?"
    return found


def place(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_project_leads_somewhere(path: Path) -> None:
    for link in links(path):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.relative_to(ROOT)}: {link} does not exist"
        assert not anchor or anchor in anchors(target), f"{path.relative_to(ROOT)}: {link} has no such heading"


@pytest.mark.parametrize("block", BLOCKS, ids=place)
def test_every_block_says_by_its_language_and_a_second_word_whether_it_runs(block: Block) -> None:
    assert block.language, f"{block.place}: the block names no language"
    assert block.way in WAYS or block.way.startswith("file="), f"{block.place}: {block.way!r} is none of {list(WAYS)}"


def test_every_document_in_docs_is_reached_from_the_readme() -> None:
    seen, ahead = set[Path](), [ROOT / "README.md"]
    while ahead:
        path = ahead.pop()
        if path in seen:
            continue
        seen.add(path)
        targets = [(path.parent / link.partition("#")[0]).resolve() for link in links(path) if "://" not in link]
        ahead += [target for target in targets if target.suffix == ".md"]
        ahead += [page for target in targets if target.is_dir() for page in target.glob("*.md")]
    assert not [str(path.relative_to(ROOT)) for path in DOCUMENTS if path not in seen]


def test_decisions_are_numbered_without_a_gap_and_have_the_four_parts() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [page.name[:5] for page in pages] == [f"{n:04d}-" for n in range(1, len(pages) + 1)]
    for page in pages:
        headings = anchors(page)
        assert {"context", "decision", "alternatives", "consequences"} <= headings, page.name


@pytest.mark.parametrize("block", of_docs("python", "run"), ids=place)
def test_the_frontends_of_the_tutorial_can_be_declared_and_read(block: Block) -> None:
    names: dict[str, object] = {"__name__": "tutorial"}
    exec(compile(block.text, block.place, "exec"), names)
    classes = [v for v in names.values() if isinstance(v, type) and issubclass(v, Frontend) and v is not Frontend]
    assert classes, f"{block.place}: no frontend in it"
    for cls in classes:
        _read_all(cls(index=1))


def _read_all(frontend: Frontend) -> None:
    """What the process around it does, in short; each equipment must come to an event with banks."""
    frontend.init()
    for key, value in frontend.default_settings.items():
        frontend.settings_changed(key, value)
    frontend.begin_of_run(1)
    assert frontend.poll()
    for equipment in (declared.indexed(1) for declared in frontend.equipment):
        equipment.check()
        assert "01" in equipment.name
        batches = getattr(frontend, "read_batch", None) is not None and equipment.readout == "read"
        draft = BatchDraft(equipment.name) if batches else EventDraft(equipment.name)
        getattr(frontend, "read_batch" if batches else equipment.readout)(draft)
        assert draft.banks
    frontend.end_of_run(1)


@pytest.mark.parametrize("block", of_docs("python", "compiles"), ids=place)
def test_python_that_cannot_run_here_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec")


@pytest.mark.parametrize("block", of_docs("toml", "run"), ids=place)
def test_experiment_files_in_documents_are_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(block.text)
    assert load(file).experiment.name == "lab"

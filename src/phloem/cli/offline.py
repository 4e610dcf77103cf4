"""Commands on files: dump, build, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from phloem.app.rebuild import rebuild
from phloem.cli import files
from phloem.cli.common import JsonOption, print_json
from phloem.cli.live import account_table

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (dump, build, verify):
        app.command()(command)


def dump(
    file: Annotated[str, typer.Argument(metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document per event and line")] = False,
    limit: Annotated[int | None, typer.Option("-n", help="only so many events")] = None,
) -> None:
    """The events of a .mid file (also .gz, .lz4, .zst). Example: phloem dump run00042.mid --json"""
    files.dump(file, as_json, sys.stdout, limit)


def build(
    fragments: Annotated[list[str], typer.Argument(metavar="FRAG.mid ...")],
    out: Annotated[str, typer.Option("-o", metavar="OUT.mid", help="the built events")],
    as_json: JsonOption = False,
) -> None:
    """Build recorded fragments, one file per source. Example: phloem build fe01.mid fe02.mid -o built.mid"""
    document = rebuild([Path(path) for path in fragments], Path(out))
    if as_json:
        print_json(document)
    else:
        Console().print(account_table(document))
    if not document["balanced"]:
        raise typer.Exit(1)


def verify(
    paths: Annotated[list[str], typer.Argument(metavar="FILE ...")],
    as_json: JsonOption = False,
) -> None:
    """Prove files against their index and structure. Example: phloem verify run00042.mid"""
    results = files.verify_files(paths)
    if as_json:
        print_json(files.verify_dict(results))
    else:
        print("\n".join(files.verify_report(results)))
    if not all(result.ok for result in results):
        raise typer.Exit(1)

"""Commands on files: dump, build, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from phloem.app.rebuild import BuildOptions, rebuild
from phloem.app.settings_file import settings_file
from phloem.app.user_code import load_module
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
    settings: Annotated[
        str, typer.Option(metavar="FILE.toml", help="an experiment file with one builder, or its settings alone")
    ] = "",
    marks: Annotated[str, typer.Option(metavar="RUN.idx", help="decide as the run did where timing decided")] = "",
    on_incomplete: Annotated[
        str, typer.Option(help="what becomes of an incomplete event: build, discard or stop")
    ] = "",
    optional: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="an event need not have this source; may be repeated")
    ] = None,
    reorder: Annotated[
        int | None, typer.Option(help="by how many serial numbers a fragment may be out of order")
    ] = None,
    match: Annotated[str, typer.Option(help="serial or time: what fragments are matched by")] = "",
    window_ns: Annotated[int | None, typer.Option(help="how far apart times may lie that belong together")] = None,
    time_check: Annotated[str, typer.Option(help="compare times, too: off, continue, repair or stop")] = "",
    user_code: Annotated[str, typer.Option(metavar="FILE.py", help="eb_user and its like; none: leave it out")] = "",
    as_json: JsonOption = False,
) -> None:
    """Build recorded fragments, one file per source. Example: phloem build fe01.mid fe02.mid -o built.mid"""
    said = {
        "On incomplete": on_incomplete or None,
        "Reorder": reorder,
        "Match": match or None,
        "Window ns": window_ns,
        "Time check": time_check or None,
    }
    options = settings_file(Path(settings)) if settings else BuildOptions()
    options = msgspec.structs.replace(
        options,
        settings={**options.settings, **{key: value for key, value in said.items() if value is not None}},
        optional=tuple(optional or ()),
        marks=Path(marks) if marks else None,
        user_code=user_code,
    )
    document = rebuild(
        [Path(path) for path in fragments],
        Path(out),
        options,
        load=lambda code: load_module(code, Path.cwd()),
        note=lambda text: print(f"note: {text}", file=sys.stderr),
    )
    if as_json:
        print_json(document)
    else:
        Console().print(account_table(document))
    if not document["balanced"] or document["stopped"] or document["damaged"]:
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

"""The operator's commands: the transitions, status, and the ODB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from phloem.cli import odb as odb_text
from phloem.cli.building import fragments_table
from phloem.cli.common import JsonOption, Target, print_json
from phloem.cli.live import account_table, status_table
from phloem.control.operator import Call, Operator

__all__ = ["add_to", "follow", "show_end"]

OperatorOption = Annotated[str, typer.Option("--operator", help="who takes the run")]
CommentOption = Annotated[str, typer.Option("--comment", help="what the run is for")]
NoDataOption = Annotated[bool, typer.Option("--no-data", help="a test run: nothing is written")]

messages = Console(stderr=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (prepare, begin, end, release, start, stop, status):
        app.command()(command)
    tree = typer.Typer(help="The tree of settings and status.", no_args_is_help=True, rich_markup_mode=None)
    tree.command(name="ls")(odb_ls)
    tree.command(name="get")(odb_get)
    tree.command(name="set", context_settings={"ignore_unknown_options": True})(odb_set)  # -1500 is a value
    app.add_typer(tree, name="odb")


def follow(call: Call[Any]) -> Any:
    """The result of a call. Whom it waits for goes to stderr, once it takes longer than a second."""
    for response in call:
        waits = response.value if response.kind == "progress" and isinstance(response.value, dict) else {}
        if waits.get("waiting_for"):
            names = ", ".join(waits["waiting_for"])
            messages.print(f"{waits['transition']} waits for {names} ({waits['seconds']:.0f} s)", highlight=False)
    return call.result()


def _do(context: typer.Context, ask: Callable[[Operator], Call[Any]]) -> Any:
    target: Target = context.obj
    with target.operator() as operator:
        return follow(ask(operator))


def _transition(context: typer.Context, as_json: bool, ask: Callable[[Operator], Call[Any]]) -> None:
    document = _do(context, ask)
    if as_json:
        print_json(document)
    else:
        if document.get("fragments"):
            messages.print(fragments_table(document["fragments"]), highlight=False)
        notes = document.get("notes", [])
        for note in notes:
            messages.print(f"note: {note}", highlight=False)
        print(f"run {document.get('run')}: {document.get('state', document.get('status', ''))}")


def prepare(
    context: typer.Context,
    operator: OperatorOption = "",
    comment: CommentOption = "",
    no_data: NoDataOption = False,
    as_json: JsonOption = False,
) -> None:
    """STOP to READY: draw the run number, open the file. Example: phloem prepare --comment "pedestals" """
    write = False if no_data else None
    _transition(context, as_json, lambda o: o.prepare_run(operator, comment, write))


def begin(context: typer.Context, as_json: JsonOption = False) -> None:
    """READY to RUN. Example: phloem begin"""
    _transition(context, as_json, lambda o: o.begin_run())


def start(
    context: typer.Context,
    operator: OperatorOption = "",
    comment: CommentOption = "",
    no_data: NoDataOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prepare and begin. Example: phloem start --operator kim"""
    write = False if no_data else None
    _transition(context, as_json, lambda o: o.start_run(operator, comment, write))


def end(context: typer.Context, as_json: JsonOption = False) -> None:
    """End the run and print its account. Example: phloem end --json"""
    show_end(_do(context, lambda o: o.end_run()), as_json)


def stop(context: typer.Context, as_json: JsonOption = False) -> None:
    """End the run (as `end`). Example: phloem stop --json"""
    show_end(_do(context, lambda o: o.end_run()), as_json)


def release(context: typer.Context, as_json: JsonOption = False) -> None:
    """READY to STOP without a run. Example: phloem release"""
    show_end(_do(context, lambda o: o.release_run()), as_json)


def show_end(document: dict[str, Any], as_json: bool) -> None:
    """The document of a closed run, as JSON or as a table."""
    if as_json:
        print_json(document)
        return
    console = Console()
    console.print(account_table(document))
    for line in [*document.get("losses", []), *document.get("problems", [])]:
        console.print(f"  {line}", highlight=False)
    for file in document["files"]:
        console.print(f"file: {file}", highlight=False, soft_wrap=True)


def status(context: typer.Context, as_json: JsonOption = False) -> None:
    """State, run and components. Example: phloem status --json"""
    document = _do(context, lambda o: o.status())
    if as_json:
        print_json(document)
        return
    console = Console()
    console.print(status_table(document))
    for message in document["messages"][-5:]:
        console.print(f"[{message['origin']}] {message['text']}", highlight=False, markup=False)


def odb_ls(
    context: typer.Context,
    path: Annotated[str, typer.Argument()] = "/",
    long: Annotated[bool, typer.Option("-l", help="as a table: type, size, age, mode, value")] = False,
    recursive: Annotated[bool, typer.Option("-r", help="with everything below")] = False,
    as_json: JsonOption = False,
) -> None:
    """List a directory of the tree. Example: phloem odb ls -lr /Equipment/Trigger01"""
    rows = _do(context, lambda o: o.odb_ls(path, recursive))
    if as_json:
        print_json(rows)
    else:
        print(odb_text.table(rows) if long else odb_text.listing(rows))


def odb_get(context: typer.Context, path: str, as_json: JsonOption = False) -> None:
    """The value at a path. Example: phloem odb get "/Runinfo/Run number" """
    value = _do(context, lambda o: o.odb_get(path))
    if as_json:
        print_json(value)
    else:
        print(odb_text.plain_value(value))


def odb_set(context: typer.Context, path: str, value: str, as_json: JsonOption = False) -> None:
    """Set a key; the key's type says how the text is read. Example: phloem odb set "/Logger/Write data" n"""
    stored = _do(context, lambda o: o.odb_set(path, value))
    if as_json:
        print_json(stored)
    else:
        print(odb_text.plain_value(stored))

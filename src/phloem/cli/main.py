"""The command `phloem`: gathers the families of commands, and turns every error into one line."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.main import get_command

from phloem.cli import bench, components, demo, offline, operate
from phloem.cli.common import Target
from phloem.model.errors import PhloemError

__all__ = ["app", "main"]

app = typer.Typer(
    name="phloem",
    help="Data acquisition for physics experiments: run control and event building.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)


@app.callback()
def _common(
    context: typer.Context,
    experiment: Annotated[
        str, typer.Option("-e", "--experiment", metavar="EXPERIMENT.toml", help="which experiment")
    ] = "",
    core: Annotated[
        str, typer.Option("--core", metavar="ADDRESS", help="run control's address, e.g. tcp://127.0.0.1:24400")
    ] = "",
) -> None:
    context.obj = Target(experiment, core)


demo.add_to(app)
components.add_to(app)
operate.add_to(app)
offline.add_to(app)
bench.add_to(app)


def main(args: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0 only on success."""
    try:
        status = get_command(app)(args=args, prog_name="phloem", standalone_mode=False)
    except PhloemError as error:
        return _say(" ".join(str(error).splitlines()), 1)
    except typer.Abort:
        return _say("interrupted", 130)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  people get one line, never a traceback
        return _unexpected(error)
    return status if isinstance(status, int) else 0


def _unexpected(error: Exception) -> int:
    show = getattr(error, "format_message", None)  # a usage error of the command line
    if show is not None and type(error).__name__ == "NoArgsIsHelpError":
        print(show(), file=sys.stderr)
        return 2
    if show is not None:
        return _say(f"{show()} (see phloem --help)", 2)
    if os.environ.get("PHLOEM_TRACEBACK"):
        raise error
    text = f"{type(error).__name__}: {error}"
    return _say(f"{' '.join(text.splitlines())} (PHLOEM_TRACEBACK=1 shows where)", 1)


def _say(text: str, status: int) -> int:
    print(f"phloem: {text}", file=sys.stderr)
    return status

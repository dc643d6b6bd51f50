"""The command `cdc`: what people type and what programs read.

Owns arguments, tables, JSON and exit codes: 0 well, 1 failed, 2 usage or configuration, 3 the slot is
lost. It must not decide anything about events; each command asks the module that knows, and errors end as one
line with their remedy.
"""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import psycopg
import typer

from cdc.cli import checking, handlers, letters, replay, running, slot, status, tailing
from cdc.cli.output import forget_json, print_error
from cdc.codes import Code
from cdc.errors import CdcError, ServerUnfit
from cdc.preflight.connections import first_line
from cdc.refusals import remedy

__all__ = ["app", "main"]

app = typer.Typer(
    name="cdc",
    help="From a commit in PostgreSQL to a Python callback: every change, at least once, in commit order.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is for a fault of ours, and then it is needed whole
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (checking.app, running.app, status.app, tailing.app, replay.app):
    app.add_typer(part)
app.add_typer(slot.app, name="slot")
app.add_typer(handlers.app, name="handlers")
app.add_typer(letters.app, name="dead-letters")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cdc {importlib.metadata.version('walsignal')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version  # its callback has answered


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    forget_json()
    try:
        app()
    except CdcError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except psycopg.Error as error:
        print_error(ServerUnfit(first_line(error), hint=remedy(error), code=Code.SERVER_UNREACHABLE))
        sys.exit(1)

"""`cdc run` is the service; `cdc demo` shows it at work on a server of its own."""

from __future__ import annotations

import importlib
from typing import Annotated

import structlog
import typer

from cdc import logs
from cdc.cli.output import ConfigOption, print_error
from cdc.config import find, load
from cdc.errors import ConfigError, SlotInvalidated

app = typer.Typer()


@app.command()
def run(
    config: ConfigOption = None,
    accept_gap: Annotated[
        bool,
        typer.Option("--accept-gap", help="Go on although changes are gone for good; the gap is recorded."),
    ] = False,
) -> None:
    """Receive changes and run the handlers, until SIGTERM or Ctrl-C; exit 3 when the slot is invalidated."""
    path = find(config)
    settings = load(path)
    if not settings.handlers:
        raise ConfigError(
            f"{path} has no handlers: nothing would receive the changes",
            hint='add to it: [[handlers]] with callback = "console", or package.module:name of your own',
        )
    logs.setup(settings.log.level, settings.log.format)
    for text in settings.warnings:
        structlog.get_logger("cdc").warning(text)
    from cdc.runner import run as serve  # noqa: PLC0415 - the other commands need neither its time nor its memory

    try:
        serve(settings, accept_gap=accept_gap)
    except SlotInvalidated as error:
        print_error(error)
        raise typer.Exit(error.exit_code) from None


@app.command()
def demo(
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="How long; 0 until Ctrl-C.")] = 20,
    keep: Annotated[bool, typer.Option("--keep", help="Leave server and files for a closer look.")] = False,
) -> None:
    """A throw-away PostgreSQL with live traffic, and every change on the screen."""
    # By name: the demo stands on the command line's own floor, and starts `cdc run` as everybody does.
    show = importlib.import_module("cdc.demo").run
    raise typer.Exit(show(seconds=seconds, keep=keep) or 0)

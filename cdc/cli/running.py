"""`cdc run` is the service; `cdc demo` shows it at work on a server of its own."""

from __future__ import annotations

import importlib
from typing import Annotated

import psycopg
import structlog
import typer

from cdc import logs
from cdc.cli.output import ConfigOption, print_error
from cdc.codes import Code
from cdc.config import LogConfig, find, load
from cdc.errors import CdcError, ConfigError, ServerUnfit
from cdc.hangups import Hangups
from cdc.preflight.connections import first_line
from cdc.refusals import remedy

app = typer.Typer()

log = structlog.get_logger("cdc")


@app.command()
def run(
    config: ConfigOption = None,
    accept_gap: Annotated[
        bool,
        typer.Option("--accept-gap", help="Go on although changes are gone for good; the gap is recorded."),
    ] = False,
) -> None:
    """Receive changes and run the handlers, until SIGTERM or Ctrl-C; exit 3 when the slot is invalidated.

    SIGHUP applies changes of the handlers in the file: see `cdc check --diff`.
    """
    hangups = Hangups()
    path = find(config)
    settings = load(path)
    if not settings.handlers:
        raise ConfigError(
            f"{path} has no handlers: nothing would receive the changes",
            hint='add to it: [[handlers]] with callback = "console", or package.module:name of your own',
            code=Code.HANDLERS_MISSING,
        )
    logs.setup(settings.log.level, settings.log.format)
    for text in settings.warnings:
        log.warning("config_warning", text=text)
    from cdc.runner import run as serve  # noqa: PLC0415 - the other commands need neither its time nor its memory

    try:
        serve(settings, accept_gap=accept_gap, hangups=hangups)
    except CdcError as error:
        _tell_end(error, settings.log)
        raise typer.Exit(error.exit_code) from None
    except psycopg.Error as problem:
        _tell_end(ServerUnfit(first_line(problem), hint=remedy(problem), code=Code.SERVER_UNREACHABLE), settings.log)
        raise typer.Exit(1) from None
    except Exception as error:
        log.error("service_broken", error=type(error).__name__, exc_info=error)  # noqa: TRY400 - its text stays out
        raise typer.Exit(1) from None


def _tell_end(error: CdcError, settings: LogConfig) -> None:
    """For people as every command tells its error; where the log is read by programs, as its last line."""
    if logs.is_for_people(settings.format):
        print_error(error)
        return
    problems = list(error.problems) if isinstance(error, ConfigError) else []
    log.error(
        "service_failed",
        code=error.code,
        error=error.message,
        hint=error.hint,
        problems=problems,
        exit_code=error.exit_code,
    )


@app.command()
def demo(
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="How long; 0 until Ctrl-C.")] = 20,
    keep: Annotated[bool, typer.Option("--keep", help="Leave server and files for a closer look.")] = False,
) -> None:
    """A throw-away PostgreSQL with live traffic, and every change on the screen."""
    # By name: the demo stands on the command line's own floor, and starts `cdc run` as everybody does.
    show = importlib.import_module("cdc.demo").run
    raise typer.Exit(show(seconds=seconds, keep=keep) or 0)

"""`cdc check --diff`: what a reload would change, without changing it."""

from __future__ import annotations

import contextlib
import sys

import typer
from rich.text import Text

from cdc.cli.output import console, print_json
from cdc.cli.stored import opened
from cdc.config import Changes, Config, Fingerprint, compare
from cdc.errors import ConfigError, StateError
from cdc.loading import code_of, load_callback
from cdc.logs import clean
from cdc.state.owner import is_owned

__all__ = ["show"]


def show(settings: Config, *, as_json: bool) -> None:
    """Print it. Exit 0: a reload applies all of it, or nothing has changed; 1: some of it waits for a restart.

    StateError when nothing is known of a service with this state, ConfigError when a handler cannot be loaded.
    """
    running = _running(settings)
    if not settings.handlers:
        raise ConfigError(f"{settings.file} has no handlers: a reload would be refused", hint="add one")
    code = _loaded(settings)
    changes = compare(running, Fingerprint.of(settings, code, salt=running.salt))
    is_running = is_owned(settings.state.url)
    if as_json:
        print_json({"running": is_running, **changes.to_dict()})
    else:
        _print(changes, is_running=is_running)
    raise typer.Exit(1 if changes.restart else 0)


def _running(settings: Config) -> Fingerprint:
    with opened(settings, read_only=True) as store:
        text = store.configuration()
    if text is None:
        raise StateError("the state does not know what the service runs with", hint="restart it: cdc run")
    try:
        return Fingerprint.from_json(text)
    except ValueError as error:
        raise StateError(
            f"the state's record of the configuration is damaged: {error}", hint="restart: cdc run"
        ) from None


def _loaded(settings: Config) -> dict[str, str]:
    """Load all handlers, as the service would; the digests of their modules."""
    problems: list[str] = []
    with contextlib.redirect_stdout(sys.stderr):  # modules of handlers may print while they are imported
        for handler in settings.handlers:
            try:
                load_callback(handler, settings.folder, settings.python_path)
            except ConfigError as error:
                problems += error.problems or [str(error)]
    if problems:
        raise ConfigError(f"{settings.file} would be refused", problems=problems, hint="mend it, look again: cdc check")
    return dict(code_of(handler) for handler in settings.handlers)


def _print(changes: Changes, *, is_running: bool) -> None:
    out = console()
    lines: list[tuple[str, str, str]] = [
        *(("+ ", "green", f"handler {name}") for name in changes.added),
        *(("- ", "red", f"handler {name}") for name in changes.removed),
        *(("~ ", "yellow", f"handler {name}: {', '.join(keys)}") for name, keys in changes.changed.items()),
        *(("~ ", "yellow", key) for key in changes.settings),
        *(("! ", "bold red", f"{key} (waits for a restart)") for key in changes.restart),
    ]
    for mark, style, text in lines:
        out.print(Text.assemble((mark, style), clean(text)))
    if not is_running:
        out.print(Text("no service runs with this state; compared with the last one that did"))
    out.print(Text(_next(changes, is_running=is_running), style="bold"))


def _next(changes: Changes, *, is_running: bool) -> str:
    if changes.is_empty and not changes.restart:
        return "nothing has changed"
    if not is_running:
        return "next: cdc run"
    if changes.restart:
        return "next: restart the service; a reload (SIGHUP) leaves out what waits for it"
    return "next: reload the service, kill -HUP its process"

"""What the service needs of its own machine: its callbacks, and a place for its state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cdc.config import Config
from cdc.errors import ConfigError
from cdc.loading import load_invocation
from cdc.preflight.findings import Finding, error, ok, warning
from cdc.preflight.position import SQLITE

__all__ = ["check"]


def check(config: Config) -> Iterator[Finding]:
    """All of it. Imports the modules of the handlers, and makes their objects."""
    yield from (warning("config", text) for text in config.warnings)
    yield from _handlers(config)
    yield from _state_folder(config)


def _handlers(config: Config) -> Iterator[Finding]:
    if not config.handlers:
        yield warning(
            "handlers",
            "the configuration has no handlers; cdc run needs one",
            'add to the file: [[handlers]] callback = "console"',
        )
    for handler in config.handlers:
        try:
            load_invocation(handler, config.folder, config.python_path)
        except ConfigError as problem:
            yield from (error("handler", text) for text in problem.problems)
        else:
            yield ok("handler", f"handler {handler.name} is {handler.callback}")


def _state_folder(config: Config) -> Iterator[Finding]:
    if not config.state.url.startswith(SQLITE):
        return
    folder = Path(config.state.url.removeprefix(SQLITE)).parent
    if not folder.is_dir():
        yield error("state_folder", f"the state's folder {folder} does not exist", f"mkdir -p '{folder}'")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield error(
            "state_folder",
            f"the state's folder {folder} cannot be written by this user",
            f"chown {os.geteuid()} '{folder}'",
        )
    else:
        yield ok("state_folder", f"the state lies in {folder}")

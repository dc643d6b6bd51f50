"""What the service needs of its own machine: its callbacks, a place for its state, a port."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from cdc.config import Config, HttpConfig
from cdc.errors import ConfigError
from cdc.loading import load_callback
from cdc.preflight.findings import Finding, error, ok, warning
from cdc.preflight.position import SQLITE

__all__ = ["check"]


def check(config: Config, *, is_running: bool = False) -> Iterator[Finding]:
    """All of it. Imports the modules of the handlers, and makes their objects.

    `is_running`: somebody consumes the slot, probably the service, which then has the port, too.
    """
    yield from (warning("config", text) for text in config.warnings)
    yield from _handlers(config)
    yield from _state_folder(config)
    if config.http.enabled:
        yield _port(config.http, is_running=is_running)


def _handlers(config: Config) -> Iterator[Finding]:
    if not config.handlers:
        yield warning(
            "handlers",
            "the configuration has no handlers; cdc run needs one",
            'add to the file: [[handlers]] callback = "console"',
        )
    for handler in config.handlers:
        try:
            load_callback(handler, config.folder, config.python_path)
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


def _port(http: HttpConfig, *, is_running: bool) -> Finding:
    """Try to listen, as the service would."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except OSError as problem:
        return (warning if is_running else error)(
            "http_port",
            f"cannot listen on {http.host}:{http.port}: {problem.strerror or problem}",
            "set http.port (0 takes a free one) or http.host; or is cdc run up already?",
        )
    return ok("http_port", f"{http.host}:{http.port} is free")

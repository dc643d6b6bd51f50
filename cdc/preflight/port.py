"""Whether the service can listen where it shall; a port that is taken may be its own."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

from cdc import endpoint
from cdc.config import Config, HttpConfig
from cdc.errors import StateError
from cdc.preflight.findings import Finding, error, ok, warning
from cdc.state.owner import is_owned

__all__ = ["look"]

_FREE_ONE = "set http.port (0 takes a free one) or http.host"


async def look(config: Config, *, is_running: bool) -> Finding:
    """Try to listen, and ask who does. `is_running`: a service consumes the slot, here or on another machine."""
    http = config.http
    refused = _refusal(http)
    if refused is None:
        return ok("http_port", f"{http.host}:{http.port} is free")
    text = f"cannot listen on {http.host}:{http.port}: {refused.strerror or refused}"
    if refused.errno != errno.EADDRINUSE:
        return error("http_port", text, "set http.host to an address of this machine, and http.port to one above 1023")
    answer = await endpoint.ask(http)
    if answer is None:
        return (warning if is_running else error)("http_port", text, f"{_FREE_ONE}; or is cdc run up already?")
    return _judge(config, answer, is_ours=is_running or await asyncio.to_thread(_is_owned, config))


def _refusal(http: HttpConfig) -> OSError | None:
    """Listen for an instant, as the service would."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            http.host, http.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except OSError as problem:
        return problem
    return None


def _is_owned(config: Config) -> bool:
    try:
        return is_owned(config.state.url)
    except StateError:
        return False  # told by the look at the state


def _judge(config: Config, answer: dict[str, Any], *, is_ours: bool) -> Finding:
    """Slots of two servers may have one name: it is ours only where slot or state are in use as well."""
    where, slot = f"{config.http.host}:{config.http.port}", (answer.get("slot") or {}).get("name")
    if slot == config.source.slot and is_ours:
        return ok("http_port", f"{where} is the running service's own")
    if slot is None and is_ours:  # it tells its slot once it has looked at it
        return ok("http_port", f"{where} is that of a service which is {answer['phase']}")
    whose = "does not know its slot yet" if slot is None else f"reads a slot {slot}"
    return error("http_port", f"{where} is taken by another service, which {whose}", _FREE_ONE)

"""Connections as aiohttp has them, within bounds: how many at once, how long each, how large a head may be.

Must not know what is asked or answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

__all__ = ["CONNECTION_SECONDS", "MAX_CONNECTIONS", "Answer", "BoundedServer"]

CONNECTION_SECONDS = 10.0
"""From the first byte to the last: Prometheus gives up after as long, and a probe long before."""
MAX_CONNECTIONS = 64
"""At once. Two Prometheus servers, the probes and some people are ten; more can only be a flood."""
MAX_LINE_BYTES = 4096
"""Of the request line, and of each header."""
MAX_HEADERS = 64

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class BoundedServer(web.Server):
    """Accepts connections, not too many at once, and ends each at its deadline: aiohttp has neither bound."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(
            answer,
            access_log=None,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=0,  # nobody waits for a body that no endpoint reads
        )
        self._deadlines: dict[object, asyncio.TimerHandle] = {}

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        """Of aiohttp's connection: it is open."""
        super().connection_made(handler, transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._deadlines[handler] = loop.call_later(CONNECTION_SECONDS, transport.abort)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """Of aiohttp's connection: it has ended."""
        self.let_stay(handler)
        super().connection_lost(handler, exc)

    def let_stay(self, handler: object) -> None:
        """No deadline any more: its answer has an end of its own, and bounds how long each part of it may take."""
        if (deadline := self._deadlines.pop(handler, None)) is not None:
            deadline.cancel()

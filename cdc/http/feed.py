"""The page's stream of server-sent events: a picture of the service every second, and what was before.

Each reader has a task of its own and takes the latest picture when it is ready for one: who reads slowly misses
some, and who does not read is let go. The stream of changes waits for none of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import structlog
from aiohttp import web

from cdc.http.access import HEADERS
from cdc.pulse import BEAT_SECONDS, Pulse
from cdc.service import Service
from cdc.snapshot import snapshot
from cdc.status import Status
from cdc.values import to_json

__all__ = ["MAX_READERS", "Feed"]

log = structlog.get_logger("cdc.http")

MAX_READERS = 16
"""Pages that are open at once; a hidden one closes its stream. The others of the connections are for probes."""
HISTORY = 300
"""Points of the charts: five minutes, so that a page shows what was before it was opened."""
WRITE_SECONDS = 10.0
"""A reader that has taken nothing for so long is gone, or is none."""

Point = tuple[float, float, float, int | None, int]
"""Unix time, events per second, lag in seconds, lag in bytes if it is known, events queued."""


class Feed:
    """Beats the pulse; `run` it as long as the server listens, and `close` it before its connections are closed."""

    def __init__(self, service: Service, pulse: Pulse, facts: dict[str, Any]) -> None:
        self._service = service
        self._pulse = pulse
        self._facts = facts  # that do not change: told once
        self._history: deque[Point] = deque(maxlen=HISTORY)
        self._picture = b""
        self._next = asyncio.Event()
        self._closing = asyncio.Event()
        self.readers = 0

    async def run(self) -> None:
        """A beat a second, until it is cancelled."""
        while True:
            try:
                self._beat()
            except Exception as error:  # noqa: BLE001 - a mistake of ours here must cost the page, not the stream
                log.warning("http_feed_failed", error=type(error).__name__)
            await asyncio.sleep(BEAT_SECONDS)

    def _beat(self) -> None:
        self._pulse.beat()
        status = snapshot(self._service, self._pulse)
        point = self._point(status)
        self._history.append(point)
        if self.readers:
            self._picture = _event("status", {"point": point, "status": status.to_dict()})
        self._wake()

    def close(self) -> None:
        """Every reader is told the end, and its answer is over."""
        self._closing.set()
        self._wake()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Tell one reader everything, until one of us ends it."""
        if self.readers >= MAX_READERS:
            return web.Response(
                status=503, text=f"{MAX_READERS} pages are open already\n", headers={"Retry-After": "5"}
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"} | HEADERS)
        response.force_close()
        self.readers += 1
        try:
            await response.prepare(request)
            await self._tell(response)
        except TimeoutError:
            log.debug("page_gone")
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.readers -= 1
        return response

    async def _tell(self, response: web.StreamResponse) -> None:
        status = snapshot(self._service, self._pulse).to_dict()
        await _write(response, _event("hello", self._facts | {"history": list(self._history), "status": status}))
        while not self._closing.is_set():
            await self._next.wait()
            if not self._closing.is_set():
                await _write(response, self._picture)
        await _write(response, _event("end", {}))

    def _wake(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    def _point(self, status: Status) -> Point:
        return (
            round(time.time(), 3),
            round(self._pulse.pace.last_events, 1),
            round(status.lag_seconds, 3),
            status.lag_bytes,
            status.queue.events,
        )


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_SECONDS):
        await response.write(data)


def _event(name: str, value: dict[str, Any]) -> bytes:
    """JSON has no line breaks of its own, so that one `data:` line holds it."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), to_json(value))

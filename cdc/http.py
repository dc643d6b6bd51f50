"""The endpoints: `/metrics`, `/healthz`, `/readyz` and `/status`, on the service's own event loop.

Owns sockets and HTTP, and nothing of what is said there. A client can cost us little: it may only read,
send small heads, make one request per connection, and each connection has one deadline.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import structlog
from aiohttp import web

from cdc.errors import CdcError
from cdc.metrics import Families, ServiceCollector, render
from cdc.service import Service
from cdc.status import snapshot
from cdc.values import to_json

__all__ = ["CONNECTION_SECONDS", "MAX_CONNECTIONS", "HttpServer"]

log = structlog.get_logger("cdc.http")

CONNECTION_SECONDS = 10.0
"""From the first byte to the last: Prometheus gives up after as long, and a probe long before."""
MAX_CONNECTIONS = 64
"""At once. Two Prometheus servers, the probes and some people are ten; more can only be a flood."""
MAX_LINE_BYTES = 4096
"""Of the request line, and of each header."""
MAX_HEADERS = 64
SHUTDOWN_SECONDS = 2.0
"""For answers that are on their way; none takes longer to write."""

HEADERS = {"Server": "walsignal", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Endpoint = Callable[[web.BaseRequest], Awaitable[web.Response]]


class HttpServer:
    """Serves one service, also before it streams and while it drains: start it first, stop it last.

    ``async with HttpServer(service) as server`` does both. `port` is the real one where the configuration
    says 0, None while nothing is served. `start` raises CdcError when the address cannot be had.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config.http
        self._collector = ServiceCollector(service)
        self._endpoints: dict[str, Endpoint] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/status": self._status,
        }
        self._renderer: ThreadPoolExecutor | None = None
        self._connections: BoundedServer | None = None
        self._server: asyncio.Server | None = None
        self.port: int | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, if the configuration says so."""
        if not self._config.enabled:
            return
        host, port = self._config.host, self._config.port
        connections = BoundedServer(self._answer)
        try:
            self._server = await asyncio.get_running_loop().create_server(connections, host, port)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        self._connections = connections
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="cdc-http")
        self.port = int(self._server.sockets[0].getsockname()[1])
        log.info("http_listening", host=host, port=self.port)

    async def stop(self) -> None:
        """Let go of the port, and finish what is being answered."""
        if self._server is not None:
            self._server.close()
            self._server = self.port = None
        if self._connections is not None:
            self._connections.pre_shutdown()
            await self._connections.shutdown(SHUTDOWN_SECONDS)
            self._connections = None
        if self._renderer is not None:
            self._renderer.shutdown(wait=False)
            self._renderer = None

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        endpoint = self._endpoints.get(request.path)
        if endpoint is None:
            response = web.Response(status=404, text=f"not here; there is {' '.join(self._endpoints)}\n")
        elif request.method not in ("GET", "HEAD"):
            response = web.Response(status=405, text="only GET and HEAD\n", headers={"Allow": "GET, HEAD"})
        else:
            response = await endpoint(request)
        response.headers.update(HEADERS)
        response.force_close()  # so that the deadline of a connection is that of its one request
        return response

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        families = Families(self._collector.collect())
        # Writing the text costs more than collecting, and needs nothing that the loop may change.
        body, content_type = await asyncio.get_running_loop().run_in_executor(
            self._renderer, render, families, request.headers.get("Accept", "")
        )
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.BaseRequest) -> web.Response:
        status = snapshot(self._service)
        return _json({"alive": status.alive, "reasons": list(status.not_alive)}, healthy=status.alive)

    async def _readyz(self, _request: web.BaseRequest) -> web.Response:
        status = snapshot(self._service)
        return _json({"ready": status.ready, "reasons": list(status.not_ready)}, healthy=status.ready)

    async def _status(self, _request: web.BaseRequest) -> web.Response:
        return _json(snapshot(self._service).to_dict())


class BoundedServer(web.Server):
    """Accepts connections, not too many at once, and ends each at its deadline: aiohttp has neither bound."""

    def __init__(self, answer: Endpoint) -> None:
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
        if (deadline := self._deadlines.pop(handler, None)) is not None:
            deadline.cancel()
        super().connection_lost(handler, exc)


def _json(value: dict[str, Any], *, healthy: bool = True) -> web.Response:
    return web.Response(
        body=to_json(value), status=200 if healthy else 503, headers={"Content-Type": "application/json"}
    )


def _cannot_listen(host: str, port: int, error: OSError) -> CdcError:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        hint = f"stop what listens there (ss -ltnp 'sport = :{port}'), or set http.port to a free one"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "set http.port to one above 1023"
    else:
        hint = "set http.host to an address of this machine, e.g. 127.0.0.1"
    return CdcError(f"http.port: cannot listen on {host} port {port}: {reason}", hint=hint)

"""The server: which path is answered by whom, from listening to its end, on the service's own event loop."""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog
from aiohttp import web

from cdc.codes import Code
from cdc.errors import CdcError
from cdc.http.access import HEADERS, TokenFile, is_loopback, is_served
from cdc.http.connections import Answer, BoundedServer
from cdc.http.controls import Controls
from cdc.http.feed import Feed
from cdc.http.page import PageFiles
from cdc.metrics import ServiceCollector, version
from cdc.pulse import Pulse
from cdc.rendering import Families, render
from cdc.service import Service
from cdc.snapshot import snapshot
from cdc.values import to_json

__all__ = ["HttpServer"]

log = structlog.get_logger("cdc.http")

SHUTDOWN_SECONDS = 2.0
"""For answers that are on their way; none takes longer to write."""


class HttpServer:
    """Serves one service, also before it streams and while it drains: start it first, stop it last.

    ``async with HttpServer(service) as server`` does both. `port` is the real one where the configuration
    says 0, None while nothing is served. `start` raises CdcError when the address cannot be had.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._config = service.config.http
        self._collector = ServiceCollector(service)
        self._pulse = Pulse(service)
        self._token = TokenFile(Path(self._config.token_file)) if self._config.token_file else None
        self._controls = Controls(service, self._token)
        page = PageFiles()
        self._feed = Feed(
            service,
            self._pulse,
            {"version": version(), "slot": service.config.source.slot, "controls": self._token is not None},
        )
        self._endpoints: dict[str, Answer] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/status": self._status,
            "/events": self._events,
            **dict.fromkeys(page.paths, page.answer),
        }
        self._renderer: ThreadPoolExecutor | None = None
        self._connections: BoundedServer | None = None
        self._server: asyncio.Server | None = None
        self._beating: asyncio.Task[None] | None = None
        self.port: int | None = None

    @property
    def readers(self) -> int:
        """Pages that are open."""
        return self._feed.readers

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
        self._warn()
        host, port = self._config.host, self._config.port
        connections = BoundedServer(self._answer)
        try:
            self._server = await asyncio.get_running_loop().create_server(connections, host, port)
        except OSError as error:
            raise _cannot_listen(host, port, error) from None
        self._connections = connections
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="cdc-http")
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._beating = asyncio.get_running_loop().create_task(self._feed.run(), name="cdc-http-feed")
        log.info("http_listening", host=host, port=self.port)

    async def stop(self) -> None:
        """Let go of the port, and finish what is being answered."""
        self._feed.close()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
            self._beating = None
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

    def _warn(self) -> None:
        """Say what is allowed, but wants a second thought."""
        host = self._config.host
        if self._token is not None:
            try:
                self._token.read()
            except CdcError as error:
                log.error("http_token_unusable", error=error.message, hint=error.hint)  # noqa: TRY400
        if not is_loopback(host):
            note = "everybody who reaches this address may read metrics and status: names of tables and handlers"
            if self._token is not None:
                note += "; the token crosses the network in the clear: put TLS in front, or set http.host to 127.0.0.1"
            log.warning("http_beyond_loopback", host=host, note=note)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not is_served(request.headers.get("Host"), bound=self._config.host, allowed=self._config.allowed_hosts):
            response: web.StreamResponse = _refusal(421, "this host name is not served here; see http.allowed_hosts")
        elif self._controls.covers(request.path):
            response = await self._controls.answer(request)
        elif (endpoint := self._endpoints.get(request.path)) is None:
            response = _refusal(404, f"not here; there is {' '.join(self._endpoints)}")
        elif request.method not in ("GET", "HEAD"):
            response = _refusal(405, "only GET and HEAD", {"Allow": "GET, HEAD"})
        else:
            response = await endpoint(request)
        if not response.prepared:
            response.headers.update(HEADERS)
            response.force_close()  # so that the deadline of a connection is that of its one request
        return response

    async def _events(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "HEAD":
            return web.Response(headers={"Content-Type": "text/event-stream"})
        if self._connections is not None:
            self._connections.let_stay(request.protocol)
        return await self._feed.answer(request)

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        families = Families(self._collector.collect())
        # Writing the text costs more than collecting, and needs nothing that the loop may change.
        body, content_type = await asyncio.get_running_loop().run_in_executor(
            self._renderer, render, families, request.headers.get("Accept", "")
        )
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _healthz(self, _request: web.BaseRequest) -> web.Response:
        status = snapshot(self._service)
        return _json(
            {"alive": status.alive, "reasons": list(status.not_alive), "codes": list(status.not_alive_codes)},
            healthy=status.alive,
        )

    async def _readyz(self, _request: web.BaseRequest) -> web.Response:
        status = snapshot(self._service)
        return _json(
            {"ready": status.ready, "reasons": list(status.not_ready), "codes": list(status.not_ready_codes)},
            healthy=status.ready,
        )

    async def _status(self, _request: web.BaseRequest) -> web.Response:
        return _json(snapshot(self._service, self._pulse).to_dict())


def _refusal(code: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=code, text=f"{text}\n", headers=headers)


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
    return CdcError(
        f"http.port: cannot listen on {host} port {port}: {reason}", hint=hint, code=Code.HTTP_PORT_UNAVAILABLE
    )

"""Orders over HTTP: `POST /handlers/NAME/pause|resume|remove`, for those who hold the token, never for another site.

Owns what makes such a request trustworthy; what an order means the service knows. Nothing here reads a cookie.
"""

from __future__ import annotations

import asyncio
import json
from urllib.parse import unquote

import structlog
from aiohttp import web

from cdc.errors import CallbackError, CdcError, StateError, UnknownCallback
from cdc.http.access import TokenFile, is_foreign_page
from cdc.orders import Order
from cdc.service import Service
from cdc.state import CallbackState
from cdc.values import to_json

__all__ = ["Controls"]

log = structlog.get_logger("cdc.http")

MAX_BODY = 1024
"""Bytes: an order has nothing to say but its path."""
ORDER_SECONDS = 5.0
"""For the state to take an order down: its disk, or its server, may be slow."""
NOTES = {
    CallbackState.PAUSED: "called no more, within a second; what comes for it is parked",
    CallbackState.REMOVED: "called no more, within a second",
    CallbackState.RESUMING: "gets what was parked, then the live stream",
}


class Controls:
    """Answers orders; without a token file every one is refused, with the way to turn them on."""

    def __init__(self, service: Service, token: TokenFile | None) -> None:
        self._service = service
        self._token = token

    def covers(self, path: str) -> bool:
        """Whether this is the path of an order."""
        return path.startswith("/handlers/")

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Refuse, or obey."""
        _, _, name, word = [unquote(part) for part in f"{request.rel_url.raw_path}///".split("/")[:4]]
        if request.rel_url.raw_path.count("/") != 3 or word not in [order.value for order in Order]:
            return _error(404, "not here; there is POST /handlers/NAME/pause, resume and remove")
        if request.method != "POST":
            return _error(405, "only POST", {"Allow": "POST"})
        return await self._refusal(request) or await self._obey(name, Order(word), str(request.remote))

    async def _refusal(self, request: web.BaseRequest) -> web.Response | None:
        """None for a request that may change something."""
        if self._token is None:
            return _error(403, "changes over HTTP are off; http.token_file turns them on, cdc handlers needs none")
        if is_foreign_page(request):
            return _error(403, "another site's page may not ask for this")
        try:
            is_known = self._token.accepts(request)
        except CdcError as error:
            log.error("http_token_unusable", error=error.message, hint=error.hint)  # noqa: TRY400
            return _error(403, "the token file cannot be used; the log says why")
        if not is_known:
            log.warning("http_token_refused", remote=request.remote)
            return _error(401, "the token is missing or another one", {"WWW-Authenticate": "Bearer"})
        return await _refusal_of_body(request)

    async def _obey(self, name: str, order: Order, remote: str) -> web.Response:
        try:
            async with asyncio.timeout(ORDER_SECONDS):
                state = await self._service.order(name, order)
        except CallbackError as error:
            return _error(404 if isinstance(error, UnknownCallback) else 409, str(error))
        except StateError as error:
            return _error(503, str(error))
        except TimeoutError:
            return _error(503, "the state does not answer; the order may be carried out later")
        log.info("http_order", callback=name, order=order.value, remote=remote)
        answer = {"name": name, "state": state.value, "note": NOTES[state]}
        return web.Response(body=to_json(answer), headers={"Content-Type": "application/json"})


async def _refusal_of_body(request: web.BaseRequest) -> web.Response | None:
    """None for an empty JSON object, which no form of another site's page can send unasked, and for nothing."""
    if request.content_type != "application/json":
        return _error(415, "the body is JSON: Content-Type: application/json, and {}")
    body = await _read(request)
    if body is None:
        return _error(413, f"the body is larger than {MAX_BODY} bytes")
    return None if _is_empty(body) else _error(400, "the body is an empty JSON object: {}")


async def _read(request: web.BaseRequest) -> bytes | None:
    """The body; None when it is too large. The connection has its deadline."""
    body = bytearray()
    while not request.content.at_eof():
        body += await request.content.read(MAX_BODY + 1)
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def _is_empty(body: bytes) -> bool:
    try:
        return not body.strip() or json.loads(body) == {}
    except (ValueError, RecursionError):
        return False


def _error(code: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    plain = {"Content-Type": "application/json"}
    return web.Response(status=code, body=to_json({"error": text}), headers=plain | (headers or {}))
